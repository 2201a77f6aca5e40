# SPDX-License-Identifier: Apache-2.0
"""Features of student and teacher: heard, compared, and what each comparison does and does not see."""

from __future__ import annotations

from typing import Any

import fill
import pytest
import torch
from families import PLAIN, Images
from torch import Tensor, nn
from torch.nn import functional as F

from featherweight import optim
from featherweight.errors import OptionError
from featherweight.methods.attention_transfer import AttentionTransfer, attention, attention_distance
from featherweight.methods.features import FeatureDistill, embedding, same_places, seen, shapes, tensor_of
from featherweight.methods.rkd import RKD, Relations, angle_loss, angles, distance_loss, distances
from featherweight.methods.similarity import SimilarityPreserving, similarities, similarity_distance
from featherweight.train import fit

MAPS, OTHERS = fill.normal("maps", (3, 4, 6, 6)), fill.normal("other maps", (3, 8, 6, 6))
PAIRS = {"features.0": "features.0", "features.3": "features.3"}


def test_attention_is_the_normed_power_over_places() -> None:
    found = attention(MAPS)
    assert found.shape == (3, 36)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3))
    power = MAPS.square().sum(1).flatten(1)
    torch.testing.assert_close(found, power / power.norm(dim=1, keepdim=True))
    assert attention(fill.normal("tokens", (2, 5, 7))).shape == (2, 5)


def test_attention_does_not_see_scale_and_width() -> None:
    assert float(attention_distance(MAPS, -3 * MAPS)) == pytest.approx(0, abs=1e-12)
    wide = torch.cat([MAPS, MAPS], 1)
    assert float(attention_distance(MAPS, wide)) == pytest.approx(0, abs=1e-12)
    assert float(attention_distance(MAPS, MAPS.flip(3))) > 1e-4
    small = F.adaptive_avg_pool2d(MAPS, 3)
    torch.testing.assert_close(attention_distance(small, OTHERS), attention_distance(small, F.avg_pool2d(OTHERS, 2)))


def test_similarity_compares_the_samples_of_a_batch() -> None:
    gram = torch.stack([torch.stack([(a * b).sum() for b in MAPS]) for a in MAPS])
    torch.testing.assert_close(similarities(MAPS), gram / gram.norm(dim=1, keepdim=True))
    assert float(similarity_distance(MAPS, 2 * MAPS)) == pytest.approx(0, abs=1e-12)
    wanted = (similarities(MAPS) - similarities(OTHERS)).square().sum() / 9
    torch.testing.assert_close(similarity_distance(MAPS, OTHERS), wanted)


def test_relations_do_not_see_where_the_points_lie_and_how_they_are_turned() -> None:
    points = fill.normal("points", (5, 3))
    turn, _ = torch.linalg.qr(fill.normal("turn", (3, 3)))
    moved = 2 * points @ turn + 1
    assert float(distance_loss(points, moved)) == pytest.approx(0, abs=1e-10)
    assert float(angle_loss(points, moved)) == pytest.approx(0, abs=1e-10)
    assert float(angle_loss(points, fill.normal("others", (5, 4)))) > 1e-3


def test_distances_and_angles_are_those_of_school() -> None:
    corner = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
    torch.testing.assert_close(distances(corner) * 4, torch.tensor([[0.0, 3, 4], [3, 0, 5], [4, 5, 0]]))
    found = angles(corner)
    assert float(found[0, 1, 2]) == pytest.approx(0.0, abs=1e-6)
    assert float(found[1, 0, 2]) == pytest.approx(0.6, abs=1e-6)
    assert float(found[2, 0, 1]) == pytest.approx(0.8, abs=1e-6)


@pytest.mark.parametrize("loss", [distance_loss, angle_loss, similarity_distance, attention_distance])
def test_gradients_are_finite_even_where_samples_are_equal(loss: Any) -> None:
    student = torch.ones(3, 4, 2, 2, requires_grad=True)
    loss(student, MAPS[:, :, :2, :2]).backward()
    assert student.grad is not None
    assert bool(student.grad.isfinite().all())


@pytest.mark.parametrize(
    "make",
    [
        lambda teacher, **known: AttentionTransfer(teacher, PAIRS, **known),
        lambda teacher, **known: SimilarityPreserving(teacher, PAIRS, **known),
        lambda teacher, **known: RKD(teacher, PAIRS, **known),
        lambda teacher, **known: FeatureDistill(teacher, PAIRS, F.mse_loss, **known),
    ],
    ids=["attention", "similarity", "rkd", "mse"],
)
def test_a_student_comes_nearer_to_its_teacher_inside(make: Any) -> None:
    student, teacher, images = PLAIN.make(), PLAIN.make("teacher"), Images(steps=4, size=8)
    batch = next(images.epoch(0))["image"]
    method = make(teacher, weight=100.0)

    def apart(model: nn.Module) -> float:
        with torch.no_grad(), seen(model, PAIRS) as mine, seen(teacher, PAIRS.values()) as theirs:
            model(batch), teacher(batch)
        return float(sum(method.distance(mine[a], theirs[b]) for a, b in PAIRS.items()))

    fast = optim.adamw(1e-2)
    taught = fit(student, images, PLAIN.task, methods=[method], epochs=8, optimizer=fast)
    alone = fit(student, images, PLAIN.task, epochs=8, optimizer=fast)
    assert apart(taught) < 0.8 * apart(alone)


def test_weight_0_is_plain_training() -> None:
    teacher = PLAIN.make("teacher")
    plain = fit(PLAIN.make(), Images(), PLAIN.task).state_dict()
    for method in (AttentionTransfer(teacher, PAIRS, weight=0.0), RKD(teacher, PAIRS, Relations(0.0, 0.0))):
        found = fit(PLAIN.make(), Images(), PLAIN.task, methods=[method]).state_dict()
        assert all(torch.equal(plain[name], found[name]) for name in plain)


def test_shapes_and_embeddings() -> None:
    assert shapes(PLAIN.make(), ["features.0", "classifier"], (3, 16, 16)) == [(8, 8, 8), (5,)]
    torch.testing.assert_close(embedding(MAPS), MAPS.mean((2, 3)))
    torch.testing.assert_close(embedding(MAPS.flatten(2)), MAPS.flatten(2).mean(1))
    assert tensor_of((MAPS, None), "x") is MAPS


def wrong(student: Tensor, teacher: Tensor) -> None:
    same_places(student, teacher, "x")


def test_what_cannot_be_compared_is_named() -> None:
    teacher = PLAIN.make("teacher")
    with pytest.raises(LookupError, match=r"no module 'features.9'"):
        AttentionTransfer(teacher, {"features.0": "features.9"})
    with pytest.raises(LookupError, match=r"no module 'feature.0'"):
        fit(PLAIN.make(), Images(), PLAIN.task, methods=[AttentionTransfer(teacher, {"feature.0": "features.0"})])
    with pytest.raises(OptionError, match="pairs: there are none"):
        AttentionTransfer(teacher, {})
    with pytest.raises(OptionError, match="weight: -1"):
        AttentionTransfer(teacher, PAIRS, weight=-1)
    with pytest.raises(OptionError, match="angle_weight"):
        Relations(1.0, -1.0)
    with pytest.raises(OptionError, match=r"\[3, 4, 6, 6\] and \[3, 4\] cannot be compared"):
        wrong(MAPS, MAPS[:, :, 0, 0])
    with pytest.raises(OptionError, match="5 tokens of the student cannot be compared with 6"):
        wrong(torch.zeros(1, 5, 2), torch.zeros(1, 6, 2))
    with pytest.raises(OptionError, match="puts out dict"):
        tensor_of({}, "x")
