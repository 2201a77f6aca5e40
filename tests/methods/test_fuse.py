# SPDX-License-Identifier: Apache-2.0
"""Fuse: every block merged alone and together, on detectors and classifiers, with blocks of the user's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fill
import pytest
import torch
from families import everything, same
from torch import Tensor, nn

import featherweight
from featherweight import artifact
from featherweight.convs import ConvAct, ConvNorm, RepConv, folded, fused
from featherweight.errors import CheckFailed, OptionError
from featherweight.methods.fuse import difference, fuse, plan
from featherweight.models import zoo
from featherweight.surgery import edits_of

GRAPH = "C8/3s2 C8/3s2 C8/3s2 C16/3s2 Rep16 C16/3s2 C16/3s2 "
GRAPHS = {
    "plain": GRAPH + "Detect<2,4,5,6",
    "auxiliary": GRAPH + "C8/3<2 C8/3<4 C8/3<5 C8/3<6 Detect<2,4,5,6+7,8,9,10",
}
ANCHORS = [[5, 6, 7.5, 8], [15, 16, 17, 18], [25, 26, 27, 28], [35, 36, 37, 300]]


def filled(model: nn.Module, seed: str = "") -> nn.Module:
    """The model with weights and statistics of sensible size, in evaluation mode."""
    state = {k: t if "anchor" in k else fill.tensor(seed + k, t.shape, t.dtype) for k, t in model.state_dict().items()}
    model.load_state_dict({k: t + 1 if ".im." in k else t for k, t in state.items()})
    return model.eval()


def detector(graph: str = "auxiliary", form: str = "training", **config: Any) -> nn.Module:
    told = {"variant": "custom", "graph": GRAPHS[graph], "anchors": ANCHORS, "num_classes": 3, **config}
    return filled(zoo.create("yolov7", form=form, **told))


@torch.no_grad()
def close(one: nn.Module, other: nn.Module, x: Tensor) -> None:
    torch.testing.assert_close(one(x), other(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "block",
    [
        ConvNorm(8, 12, 3, 2),
        ConvNorm(8, 8, 1, groups=4, act="leaky_relu"),
        RepConv(8, 8),
        RepConv(8, 8, identity=False),
        RepConv(8, 8, groups=2, act="relu", eps=1e-5),
        RepConv(8, 12, 2),
        nn.Sequential(nn.Conv2d(8, 4, 3, bias=True), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1)),
        nn.Sequential(nn.Conv2d(8, 4, 3, padding_mode="reflect", padding=1), nn.BatchNorm2d(4, affine=False)),
    ],
    ids=lambda block: f"{type(block).__name__}-{sum(p.numel() for p in block.parameters())}",
)
def test_each_block_is_one_convolution_with_the_same_answer(block: nn.Module) -> None:
    filled(block)
    before = everything(block)
    new = fused(block)
    assert new is not None and not any(isinstance(m, nn.BatchNorm2d) for m in new.modules())
    close(block, new, fill.normal("x", (2, 8, 12, 10)))
    assert same(before, everything(block)) and fused(new) is None


def test_the_planned_repconv_has_no_identity_branch_where_widths_differ() -> None:
    assert RepConv(8, 8).rbr_identity is not None
    assert RepConv(8, 16).rbr_identity is None and RepConv(8, 8, 2).rbr_identity is None


@pytest.mark.parametrize("graph", list(GRAPHS))
def test_a_training_detector_becomes_the_deployed_one(graph: str, tmp_path: Path) -> None:
    model = detector(graph)
    before = everything(model)
    new = fuse(model)
    assert same(before, everything(model)) and difference(model, new) < 2e-5
    assert not any(isinstance(m, nn.BatchNorm2d) or hasattr(m, "implicit") for m in new.modules())
    assert len(new.model) == 8 and new.graph.aux == () and len(new.head.m2) == 0
    assert torch.equal(new.head.anchor_grid, model.head.anchor_grid) and new.head.num_classes == 3
    assert plan(new) == [] and len(edits_of(new)) == len(plan(model))
    images = fill.image("fuse", (1, 3, 128, 64))
    loaded = artifact.load(artifact.save(new, tmp_path))
    with torch.no_grad():
        assert all(torch.equal(one, other) for one, other in zip(new(images), loaded(images), strict=True))


def test_a_fused_model_can_be_trained_on() -> None:
    model = fuse(detector()).train()
    sum(m.sum() for m in model(torch.rand(1, 3, 64, 64))).backward()
    assert all(p.grad is not None for p in model.parameters()) and "aux" not in model.aside


@pytest.mark.parametrize("name", ["yolov7", "yolov7_w6"])
def test_larger_variants_have_the_authors_number_of_parameters(name: str) -> None:
    with torch.device("meta"):
        new = fuse(featherweight.create(name, form="training"), verify=False)
    counts = {"yolov7": 36_905_341, "yolov7_w6": 70_394_300}
    assert sum(p.numel() for p in new.parameters()) == counts[name]


def test_classification_nets_fuse_too() -> None:
    net = filled(zoo.create("resnet", widths=(8, 16), depths=(1, 2), stem="small", num_classes=5, image_size=(16, 16)))
    new = fuse(net)
    close(net, new, fill.normal("images", (2, 3, 16, 16)))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in new.modules())
    reps = nn.Sequential(RepConv(3, 8, 2), RepConv(8, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    new = fuse(filled(reps), fill.normal("images", (2, 3, 16, 16)))
    assert [type(m) for m in list(new)[:2]] == [ConvAct, ConvAct]
    assert edits_of(fuse(nn.Linear(2, 2))) == ()


def test_a_norm_without_statistics_stays() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False))
    assert plan(net) == []


class Turned(nn.Module):
    """A block of a user's own: the norm comes first."""

    def __init__(self, wrong: bool = False) -> None:
        super().__init__()
        self.norm, self.conv, self.wrong = nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1), wrong

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)).relu()


@fused.register
def _(block: Turned) -> nn.Module:
    return nn.Sequential(folded(block.conv, block.norm), nn.Identity() if block.wrong else nn.ReLU())


def test_users_register_their_blocks_and_a_wrong_one_is_caught() -> None:
    example = torch.randn(2, 3, 8, 8)
    net = nn.ModuleDict({"inner": filled(Turned())})
    net.forward = lambda x: net["inner"](x)  # type: ignore[method-assign]
    assert type(fused(net["inner"])) is nn.Sequential and [edit.path for edit in plan(net)] == ["inner"]
    close(fuse(nn.Sequential(filled(Turned())), example), nn.Sequential(filled(Turned())), example)
    with pytest.raises(CheckFailed, match="fuse: outputs differ by"):
        fuse(nn.Sequential(filled(Turned(wrong=True))), example)


def test_where_no_example_is_known_one_is_asked_for() -> None:
    with pytest.raises(OptionError, match="example: is needed: this model does not say what size of picture it takes"):
        fuse(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))
