# SPDX-License-Identifier: Apache-2.0
"""Weight sharing: k-means against what is known of it, summed gradients, zeros that stay, and every kind of layer."""

from __future__ import annotations

import copy
from pathlib import Path

import fill
import numpy as np
import pytest
import torch
from families import PLAIN, Images, everything, same
from torch import Tensor, nn

from featherweight import artifact
from featherweight.errors import InputError, OptionError
from featherweight.methods.kmeans import STARTS, cluster, nearest
from featherweight.methods.share import Scaled, Shared, plan, rounded, share
from featherweight.surgery import Edit, all_of, apply, edits_of, submodule
from featherweight.train import fit


# k-means --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("start", list(STARTS))
def test_clusters_that_lie_apart_are_found(start: str) -> None:
    rng = np.random.default_rng(0)
    middles = np.array([-3.0, -1.0, 0.5, 2.0])
    values = (middles[:, None] + rng.normal(0, 0.01, (4, 200))).ravel()
    found = cluster(rng.permutation(values), 4, start=start, seed=1)
    if start != "random" or len(found) == 4:
        assert len(found) == 4
    if start in ("density", "mixed", "linear"):
        np.testing.assert_allclose(found, middles, atol=0.01)


@pytest.mark.parametrize("start", list(STARTS))
def test_no_centroid_can_be_moved_to_gain(start: str) -> None:
    """Lloyd's fixed point: every centroid is the mean of what it is nearest to."""
    values = np.random.default_rng(2).normal(size=3000)
    found = cluster(values, 16, start=start, iterations=10_000)
    which = nearest(values, found)
    assert np.array_equal(which, np.abs(values[:, None] - found).argmin(1))
    np.testing.assert_allclose(found, [values[which == i].mean() for i in range(len(found))], atol=1e-12)


def test_more_iterations_are_never_worse() -> None:
    values = np.random.default_rng(3).laplace(size=5000)
    errors = []
    for iterations in (0, 1, 5, 50):
        found = cluster(values, 8, iterations=iterations)
        errors.append(((values - found[nearest(values, found)]) ** 2).sum())
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.7 * errors[0]


def test_few_different_values_are_kept_as_they_are() -> None:
    values = np.array([1.0, 2.0, 2.0, 7.0])
    assert cluster(values, 8).tolist() == [1.0, 2.0, 7.0]


def test_linear_starts_give_the_largest_weights_a_value() -> None:
    """What the paper says of it: large weights are few and matter, and quantiles leave them without one."""
    values = np.concatenate([np.random.default_rng(4).normal(0, 0.1, 10_000), [3.0, -3.0]])
    reach = {start: np.abs(cluster(values, 16, start=start, iterations=0)).max() for start in ("linear", "density")}
    assert reach["linear"] > 2.9
    assert reach["density"] < 1.0


def test_an_unknown_start_is_named() -> None:
    with pytest.raises(OptionError, match="did you mean 'linear'"):
        share(PLAIN.make(), init="linaer")


# Layers ---------------------------------------------------------------------------------------------------------------
class Every(nn.Module):
    """One of each layer that can be shared, and some that cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 12)
        self.line = nn.Conv1d(12, 8, 3, padding=1)
        self.up1 = nn.ConvTranspose1d(8, 6, 2, stride=2)
        self.grown = nn.Conv2d(1, 6, 3, padding="same", padding_mode="reflect")
        self.deep = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.up2 = nn.ConvTranspose2d(6, 4, 2, stride=2)
        self.cube = nn.Conv3d(1, 2, (1, 3, 3))
        self.norm = nn.BatchNorm3d(2)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        words = self.embedding((x.flatten(1)[:, :10].abs() * 6).long().clamp(max=19))  # (B, 10, 12)
        line = self.up1(self.line(words.transpose(1, 2)))  # (B, 6, 20)
        maps = self.up2(self.deep(self.grown(line[:, None])))  # (B, 4, 12, 40)
        cube = self.norm(self.cube(maps[:, None])).mean((2, 3))[..., :8]  # (B, 2, 8)
        return self.head(self.attention(cube, cube, cube)[0].mean(1))


def everything_shared() -> nn.Module:
    model = Every().eval()
    model.load_state_dict({k: fill.tensor(k, t.shape, t.dtype) for k, t in model.state_dict().items()})
    return model


def answer(model: nn.Module) -> Tensor:
    return model(fill.normal("pictures", (2, 3, 16, 16))).detach()


def test_every_kind_of_layer_is_shared_and_learns() -> None:
    model = everything_shared()
    new = share(model, bits=4)
    shared = all_of(new, Shared)
    assert list(shared) == [
        "embedding", "line", "up1", "grown", "deep", "up2", "cube", "attention.out_proj", "head"
    ] or set(shared) >= {"embedding", "line", "up1", "grown", "up2", "attention.out_proj"}  # fmt: skip
    for path, layer in shared.items():
        old = submodule(model, path)
        assert isinstance(layer, type(old))
        assert layer.weight.shape == old.weight.shape
        assert len(torch.unique(layer.codes)) <= 16
        assert (layer.weight - old.weight).norm() < 0.4 * old.weight.norm()
    new(fill.normal("pictures", (2, 3, 16, 16))).sum().backward()
    assert all(layer.centroids.grad is not None for layer in shared.values())
    assert (answer(new) - answer(model)).norm() < 0.6 * answer(model).norm()


def test_eight_bits_for_few_weights_change_next_to_nothing() -> None:
    """A layer of fewer different weights than codes keeps them all, but for the rounding to half precision."""
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16)).eval()
    x = fill.normal("x", (4, 16))
    torch.testing.assert_close(share(model, bits=8, scaled=False)(x), model(x), atol=0.01, rtol=0.02)


def test_a_value_learns_by_the_sum_of_its_weights_gradients() -> None:
    layer = share(nn.Sequential(nn.Linear(9, 7)), bits=2, scaled=True)[0]
    x, y = fill.normal("x", (5, 9)), fill.normal("y", (5, 7))
    ((layer(x) - y) ** 2).sum().backward()
    plain = layer.weight.detach().requires_grad_()
    ((nn.functional.linear(x, plain, layer.bias.detach()) - y) ** 2).sum().backward()
    for value in range(len(layer.centroids)):
        wanted = (plain.grad * layer.scale)[layer.codes == value].sum()
        torch.testing.assert_close(layer.centroids.grad[value], wanted)


def test_the_operator_is_sound() -> None:
    codes = torch.randint(0, 4, (3, 5), dtype=torch.uint8)
    for scale in (None, torch.rand(3, 1, dtype=torch.double)):
        table = torch.randn(4, dtype=torch.double, requires_grad=True)
        checks = ("test_schema", "test_autograd_registration", "test_faketensor")
        torch.library.opcheck(torch.ops.featherweight.lookup.default, (table, codes, scale), test_utils=checks)
        assert torch.autograd.gradcheck(lambda t, s=scale: torch.ops.featherweight.lookup(t, codes, s), (table,))


def test_zeros_stay_zero_through_training() -> None:
    model = PLAIN.make()
    with torch.no_grad():
        weight = model.features[3].weight
        weight.copy_(torch.where(weight.abs() > weight.abs().median(), weight, 0))
    zeros = model.features[3].weight == 0
    new = share(model, bits=3, scaled=False)
    assert edits_of(new)[1].spec["zero"] is True
    trained = fit(new, Images(), PLAIN.task, epochs=1)
    layer = trained.features[3]
    assert torch.equal(layer.weight == 0, zeros)
    assert torch.equal(layer.codes == 0, zeros)
    assert not torch.equal(layer.centroids, new.features[3].centroids)
    assert len(torch.unique(layer.weight)) <= 9
    assert torch.equal(layer.codes, new.features[3].codes)


def test_a_layer_that_is_all_zero_and_one_of_dead_channels() -> None:
    model = PLAIN.make()
    with torch.no_grad():
        model.features[0].weight.zero_()
        model.features[3].weight[2].zero_()
    for scaled in (True, False, "energy"):
        new = share(model, bits=3, scaled=scaled)
        assert not new.features[0].weight.any()
        assert not new.features[3].weight[2].any()
        assert all(t.isfinite().all() for t in new.state_dict().values() if t.is_floating_point())


def test_scales_are_what_makes_channels_of_different_size_bearable() -> None:
    layer = nn.Conv2d(16, 16, 3, groups=16)
    with torch.no_grad():
        layer.weight.mul_(torch.logspace(-3, 1, 16).reshape(-1, 1, 1, 1))
    model = nn.Sequential(layer)

    def error(scaled: Scaled) -> float:
        found = share(model, bits=4, scaled=scaled)[0].weight.detach()
        return float(
            (
                (found - layer.weight.detach()).flatten(1).norm(dim=1) / layer.weight.detach().flatten(1).norm(dim=1)
            ).max()
        )

    assert error(True) < 0.15
    assert error(False) > 0.5


@pytest.mark.parametrize("scaled", [True, "energy"])
def test_a_nearly_dead_channel_stays_that_small(scaled: Scaled) -> None:
    """Half precision has no scale for it; one of 1 would make it as loud as the others."""
    model = nn.Sequential(nn.Conv2d(8, 8, 3))
    with torch.no_grad():
        model[0].weight[2].mul_(1e-9)
    weight, found = (m[0].weight.detach()[2] for m in (model, share(model, bits=3, scaled=scaled)))
    assert float((found - weight).norm() / weight.norm()) < 0.5


def test_channels_are_measured_by_their_peak_or_their_energy() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(500, 8, bias=False))
    largest = {
        scaled: float(share(model, bits=5, scaled=scaled)[0].centroids.detach().abs().max())
        for scaled in (True, "energy")
    }
    assert 0.9 < largest[True] < 1.1  # of a uniform distribution the peak is sqrt(3) times its energy
    assert 0.9 * 3**0.5 < largest["energy"] < 1.1 * 3**0.5
    with pytest.raises(OptionError, match="'peak' is not one of true, false, energy"):
        plan(model, scaled="peak")  # type: ignore[arg-type]


def test_values_and_scales_fit_into_half_precision() -> None:
    new = share(PLAIN.make(), bits=4, scaled=True)
    for layer in all_of(new, Shared).values():
        assert torch.equal(layer.centroids.half().float(), layer.centroids)
        assert torch.equal(layer.scale.half().float(), layer.scale)
    trained = fit(new, Images(), PLAIN.task, epochs=1)
    before = everything(trained)
    half = rounded(trained)
    assert same(before, everything(trained))
    for name, tensor in half.state_dict().items():
        if tensor.is_floating_point():
            old = trained.state_dict()[name]
            assert torch.equal(tensor[old.abs() > 1e-4], old.half().float()[old.abs() > 1e-4])
            torch.testing.assert_close(tensor, old, rtol=2**-11, atol=0)


def test_large_weights_are_not_made_infinite() -> None:
    model = nn.Sequential(nn.Linear(8, 8))
    with torch.no_grad():
        model[0].weight.mul_(1e6)
    assert share(model, bits=3, scaled=False)[0].weight.isfinite().all()
    assert share(model, bits=3, scaled=True)[0].weight.isfinite().all()


# Plans ----------------------------------------------------------------------------------------------------------------
def test_bits_by_pattern_and_what_is_skipped() -> None:
    model = PLAIN.make()
    edits = plan(model, bits={"*": 3, "features.*": 4, "features.3": 2}, skip=["classifier"])
    assert {edit.path: edit.spec["centroids"] for edit in edits} == {"features.0": 16, "features.3": 4}
    assert plan(model, bits=32) == []
    assert torch.equal(answer_of(apply(model, plan(model, bits=32))), answer_of(model))
    assert plan(model, bits=2)[0].spec["scaled"] is True  # it has a batch norm
    assert plan(nn.Sequential(nn.Linear(30, 30)), bits=2)[0].spec["scaled"] is False


def answer_of(model: nn.Module) -> Tensor:
    return PLAIN.logits(model)


def test_tied_and_small_layers_stay() -> None:
    model = nn.Sequential(nn.Embedding(40, 8), nn.Linear(8, 40), nn.Linear(40, 40), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    assert [edit.path for edit in plan(model, bits=4)] == ["2"]


@pytest.mark.parametrize("bits", [0, 9, 2.0, True, {"*": 12}])
def test_bits_that_are_none(bits: object) -> None:
    with pytest.raises(OptionError, match="not one of 1 to 8"):
        plan(PLAIN.make(), bits=bits)


def test_mistakes_are_named() -> None:
    model = PLAIN.make()
    with pytest.raises(LookupError, match="'nowhere' matches no layer"):
        plan(model, skip=["nowhere"])
    with pytest.raises(LookupError, match="no float linear"):
        plan(share(model))
    with pytest.raises(OptionError, match="a BatchNorm2d has no weights to share"):
        apply(model, [Edit("features.1", "codebook", {"centroids": 4, "zero": False, "scaled": False})])
    with pytest.raises(OptionError, match="from 1 to 255 have a code"):
        apply(
            model, [type(plan(model)[0])("classifier", "codebook", {"centroids": 256, "zero": True, "scaled": False})]
        )
    with torch.no_grad():
        model.classifier.weight[0, 0] = float("nan")
    with pytest.raises(InputError, match="classifier"):
        share(model, bits=2)


def test_what_would_write_into_a_shared_weight_is_refused() -> None:
    new = share(PLAIN.make(), bits=2)
    with pytest.raises(KeyError):
        new.classifier.weight = nn.Parameter(torch.zeros(5, 8))


def test_a_copy_is_a_copy_and_a_compact_file_is_exact(tmp_path: Path) -> None:
    new = share(PLAIN.make(), bits=3)
    twin = copy.deepcopy(new)
    assert twin.classifier.codes.data_ptr() != new.classifier.codes.data_ptr()
    assert torch.equal(answer_of(twin), answer_of(new))
    path = artifact.save(new, tmp_path / "model.fwz")
    loaded = artifact.load(path, base=PLAIN.build())
    assert torch.equal(answer_of(loaded), answer_of(new))
    assert repr(loaded) == repr(new)
    assert "Linear" in repr(new.classifier)
    assert "8 shared values" in repr(new.classifier)
