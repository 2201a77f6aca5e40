# SPDX-License-Identifier: Apache-2.0
"""CReLU: pairs of filters found, merged exactly where they are exact, halved for training from the start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fill
import pytest
import torch
from families import PLAIN, Images
from torch import Tensor, nn

from featherweight import artifact, counting
from featherweight.errors import InputError, OptionError
from featherweight.methods import crelu
from featherweight.methods.crelu import PairedConv2d
from featherweight.surgery import Edit, all_of, apply, edits_of, record
from featherweight.train import fit


def paired_net(*, bias: bool = True, noise: float = 0.0) -> nn.Module:
    """A net in whose first convolution filters 4 and 7 are -2 and -0.5 times 0 and 2, and 5 is 3 times 1."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=bias), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))
    with torch.no_grad():
        weight = net[0].weight
        for mirror, kept, scale in ((4, 0, -2.0), (7, 2, -0.5), (5, 1, 3.0)):
            weight[mirror] = scale * weight[kept] + noise * torch.randn_like(weight[kept])
        net[1].load_state_dict({k: fill.tensor(k, t.shape, t.dtype) for k, t in net[1].state_dict().items()})
    return net.eval()


IMAGE = fill.normal("image", (2, 3, 10, 10))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("phase", "merged"), [("opposite", 2), ("either", 3)])
def test_exact_pairs_are_merged_exactly(bias: bool, phase: Any, merged: int) -> None:
    net = paired_net(bias=bias)
    (edit,) = crelu.plan(net, similarity=0.999, phase=phase)
    new = crelu.pair(net, similarity=0.999, phase=phase)
    assert edit.spec["keep"] == ([0, 1, 2, 3, 5, 6] if merged == 2 else [0, 1, 2, 3, 6])
    assert edit.spec["partner"] == ([0, 2] if merged == 2 else [0, 1, 2])
    torch.testing.assert_close(new(IMAGE), net(IMAGE), atol=1e-5, rtol=0)
    saved = counting.macs(net, IMAGE) - counting.macs(new, IMAGE)
    assert saved == merged * 27 * 100


def test_near_pairs_are_merged_near() -> None:
    net = paired_net(noise=0.02)
    new = crelu.pair(net, similarity=0.9)
    assert len(all_of(new, PairedConv2d)) == 1
    error = float((new(IMAGE) - net(IMAGE)).detach().norm() / net(IMAGE).detach().norm())
    assert 1e-4 < error < 0.2


def test_a_kept_filter_may_have_several_mirrors_and_no_mirror_has_one() -> None:
    conv = nn.Conv2d(2, 6, 1, bias=False)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([[1, 0], [-1, 0], [-2, 0.1], [0, 1], [0, -1], [1, 1]]).float()[..., None, None])
    (edit,) = crelu.plan(conv)
    assert edit.spec == {"keep": [0, 3, 5], "partner": [0, 0, 1]}


def test_phases_tell_how_paired_a_net_is() -> None:
    found = crelu.phases(paired_net())
    assert list(found) == ["0", "3"]
    assert found["0"] < found["3"] < 0
    both = nn.Conv2d(3, 4, 3)
    with torch.no_grad():
        both.weight[2:] = -both.weight[:2]
    assert crelu.phases(both)[""] == pytest.approx(-1.0, abs=1e-6)


def test_fresh_is_the_papers_layer() -> None:
    """The rectifier of a half and of its negative, each filter computed once."""
    conv = nn.Conv2d(3, 8, 3, bias=False)
    new: Any = crelu.pair(nn.Sequential(conv), fresh=True)[0]
    y = nn.functional.conv2d(IMAGE, conv.weight[:4])
    torch.testing.assert_close(new(IMAGE).relu(), torch.cat([y.relu(), (-y).relu()], 1))
    assert new.conv.out_channels == 4
    odd: Any = crelu.pair(nn.Conv2d(3, 7, 3), fresh=True)
    assert odd(IMAGE).shape[1] == 7


def test_first_counts_from_the_input_and_0_changes_nothing() -> None:
    net = nn.Sequential(*(nn.Conv2d(4, 4, 1) for _ in range(4)), nn.Conv2d(4, 4, 1, groups=4), nn.Linear(4, 4))
    assert [e.path for e in crelu.plan(net, fresh=True, first=0.5)] == ["0", "1"]
    assert [e.path for e in crelu.plan(net, fresh=True, skip=["1", "2"])] == ["0", "3"]
    assert crelu.plan(net, fresh=True, first=0.0) == []
    assert crelu.plan(net, similarity=1.0) == []


def test_it_trains_and_saves(tmp_path: Path) -> None:
    model = crelu.pair(PLAIN.make(), fresh=True)
    new = fit(model, Images(), PLAIN.task, epochs=1)
    layer = new.get_submodule("features.0")
    assert not torch.equal(layer.scale, model.get_submodule("features.0").scale)  # type: ignore[arg-type]
    loaded = artifact.load(artifact.save(new, tmp_path), base=PLAIN.build())
    assert torch.equal(PLAIN.logits(loaded), PLAIN.logits(new))


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({"keep": [1, 0], "partner": [0] * 6}, "keep must rise within 0 to 7"),
        ({"keep": [0, 8], "partner": [0] * 6}, "keep must rise within 0 to 7"),
        ({"keep": [0, 1], "partner": [0, 2, 0, 0, 0, 0]}, "partner name a kept filter"),
        ({"keep": [0, 1], "partner": [0]}, "partner name a kept filter for each other one"),
        ({"keep": [], "partner": [0] * 8}, "keep must rise"),
        ({"keep": "01", "partner": [0] * 6}, "keep must be a list of whole numbers"),
    ],
)
def test_pairs_from_a_file_are_checked(spec: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=says):
        apply(nn.Conv2d(3, 8, 3), [Edit("", "pair_filters", spec)])
    new = crelu.pair(PLAIN.make(), fresh=True, first=0.5)
    record(new, [Edit(e.path, e.kind, spec) for e in edits_of(new)])
    with pytest.raises(InputError, match=says):
        artifact.load(artifact.save(new, tmp_path), base=PLAIN.build())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"similarity": 0.0}, r"similarity: 0.0 is not in \(0, 1\]"),
        ({"first": 2}, r"first: 2 is not in \[0, 1\]"),
        ({"phase": "same"}, "'same' is not one of opposite, either"),
    ],
)
def test_wrong_options_are_said(options: dict[str, Any], says: str) -> None:
    with pytest.raises(OptionError, match=says):
        crelu.plan(PLAIN.make(), **options)
    with pytest.raises(LookupError, match="no plain convolution without groups"):
        crelu.plan(nn.Linear(2, 2))
    with pytest.raises(OptionError, match="a BatchNorm2d has no such factors"):
        apply(nn.BatchNorm2d(2), [Edit("", "pair_filters", {"keep": [0], "partner": [0]})])


def test_gradients_reach_what_is_mirrored() -> None:
    layer: Any = crelu.pair(nn.Conv2d(3, 8, 3), fresh=True)
    y: Tensor = layer(IMAGE)
    y[:, 4:].sum().backward()
    assert float(layer.conv.weight.grad.abs().sum()) > 0
    assert float(layer.scale.grad.abs().sum()) > 0
