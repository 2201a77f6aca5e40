# SPDX-License-Identifier: Apache-2.0
"""Layers in factors: which become what, with which rank, and what comes out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fill
import pytest
import torch
from families import FAMILIES, IMAGES, PLAIN, Images
from torch import Tensor, nn

from featherweight import artifact, surgery
from featherweight.errors import Diverged, InputError, OptionError
from featherweight.layers import Factors
from featherweight.methods import lowrank
from featherweight.methods.chains import by_outputs
from featherweight.methods.ranks import Case, choose
from featherweight.surgery import Edit, all_of, apply

IMAGE = fill.normal("image", (2, 6, 9, 11))
FULL: dict[str, dict[str, Any]] = {
    "low_rank": {"rank": 8}, "spatial": {"rank": 18}, "tucker": {"ranks": [6, 8]}, "cp": {"rank": 54},
}  # fmt: skip


def conv(**options: Any) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(6, 8, 3, **{"padding": 1, **options})


@pytest.mark.parametrize("kind", list(FULL))
@pytest.mark.parametrize(
    "options",
    [{}, {"stride": 2, "bias": False}, {"stride": (2, 1), "dilation": 2, "padding": (2, 0)}, {"padding": "same"}],
    ids=str,
)
def test_full_rank_is_the_layer(kind: str, options: dict[str, Any]) -> None:
    layer = conv(**options)
    new = apply(layer, [Edit("", kind, FULL[kind])])
    assert isinstance(new, Factors)
    assert (new.in_channels, new.out_channels, new.kernel_size) == (6, 8, (3, 3))
    torch.testing.assert_close(new(IMAGE), layer(IMAGE), atol=2e-5, rtol=0)


def test_tensorflow_padding_is_kept() -> None:
    layers = pytest.importorskip("timm.layers")
    layer = layers.Conv2dSame(6, 8, 3, stride=2)
    for kind in FULL:
        new = apply(layer, [Edit("", kind, FULL[kind])])
        torch.testing.assert_close(new(IMAGE), layer(IMAGE), atol=2e-5, rtol=0)


def test_a_linear_layer_loses_what_its_singular_values_say() -> None:
    layer = nn.Linear(12, 10)
    new: Any = apply(layer, [Edit("", "low_rank", {"rank": 4})])
    error = (new[1].weight @ new[0].weight - layer.weight).norm()
    torch.testing.assert_close(error, torch.linalg.svdvals(layer.weight)[4:].norm())
    assert torch.equal(new.bias, layer.bias)
    assert new.weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("layer", "edit", "says"),
    [
        (nn.Linear(4, 4), Edit("", "low_rank", {"rank": 5}), "rank 5 is not a whole number from 1 to 4"),
        (nn.Linear(4, 4), Edit("", "low_rank", {"rank": 0}), "rank 0 is not"),
        (nn.Linear(4, 4), Edit("", "spatial", {"rank": 1}), "has no kernel to take apart"),
        (conv(groups=2), Edit("", "tucker", {"ranks": [1, 1]}), "Conv2d with groups has no such factors"),
        (nn.ConvTranspose2d(4, 4, 3), Edit("", "cp", {"rank": 1}), "a ConvTranspose2d has no such factors"),
        (conv(), Edit("", "tucker", {"ranks": [7, 1]}), "tucker: inputs: rank 7 is not a whole number from 1 to 6"),
        (conv(), Edit("", "tucker", {"ranks": 3}), "ranks 3 are not two"),
    ],
)
def test_what_cannot_be_is_said(layer: nn.Module, edit: Edit, says: str) -> None:
    with pytest.raises(OptionError, match=says):
        apply(layer, [edit])


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.stem, self.depthwise = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.wide, self.point = nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.Conv2d(32, 32, 1)
        self.head, self.tied = nn.Linear(32, 32), nn.Linear(32, 32)
        self.tied.weight = self.head.weight
        self.attention = nn.MultiheadAttention(32, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.point(self.wide(self.depthwise(self.stem(x)).relu()).relu()).relu()
        tokens = x.flatten(2).transpose(1, 2)
        return self.tied(self.head(self.attention(tokens, tokens, tokens)[0].mean(1)))


def test_what_is_left_alone() -> None:
    kinds = {edit.path: edit.kind for edit in lowrank.plan(Net(), ranks="share", keep=0.25)}
    assert kinds == {"stem": "tucker", "wide": "tucker", "point": "low_rank"}
    assert {e.path for e in lowrank.plan(Net(), ranks="share", keep=0.25, conv="none")} == {"point"}
    assert {e.path for e in lowrank.plan(Net(), ranks="share", keep=0.25, skip=["wi*", "stem"])} == {"point"}
    assert lowrank.plan(Net(), keep=1.0) == []
    assert lowrank.plan(Net(), ranks="share", keep=0.99) == []  # would be larger


@pytest.mark.parametrize("conv_kind", ["tucker", "spatial", "cp", "low_rank"])
@pytest.mark.parametrize("ranks", ["energy", "share", "evbmf", "budget"])
def test_every_way_of_choosing_makes_a_smaller_model(conv_kind: Any, ranks: Any) -> None:
    model = Net().eval()
    new = lowrank.factorize(model, conv=conv_kind, ranks=ranks, keep=0.4)
    assert sum(p.numel() for p in new.parameters()) < sum(p.numel() for p in model.parameters())
    assert new(IMAGES).isfinite().all()


def test_energy_is_kept() -> None:
    layer = nn.Linear(40, 30)
    (edit,) = lowrank.plan(layer, keep=0.6)
    values = torch.linalg.svdvals(layer.weight.detach()).square()
    kept = [float(values[:r].sum() / values.sum()) for r in (edit.spec["rank"] - 1, edit.spec["rank"])]
    assert kept[0] < 0.6 <= kept[1]


@pytest.mark.parametrize("by", ["params", "macs"])
def test_a_budget_is_kept_and_used(by: Any) -> None:
    family = FAMILIES["ours"]
    seen = lowrank.look(family.make(), Images().epoch(0), family.task)
    cases = {
        path: Case(layer, "low_rank", seen[path].places)
        for path, layer in family.make().named_modules()
        if path in seen and isinstance(layer, nn.Linear)
    }
    chosen = choose(cases, "budget", 0.5, by)
    share = sum(one.cost(by) for one in chosen.values()) / sum(case.whole.cost(by) for case in cases.values())
    assert 0.42 < share <= 0.5
    uniform = {path: case.at([round(0.25 * case.full[0])]) for path, case in cases.items()}
    assert sum(one.loss for one in chosen.values()) < sum(
        case.every()[uniform[path].spec["rank"] - 1].loss for path, case in cases.items()
    )


def test_macs_of_candidates_are_those_that_are_counted() -> None:
    from featherweight import counting

    layer, task = conv(stride=2, bias=False), PLAIN.task
    seen = lowrank.look(nn.Sequential(layer), [{"image": IMAGE}], task)
    for kind, spec in {"low_rank": [3], "spatial": [4], "tucker": [2, 3], "cp": [4, 4]}.items():
        case = Case(layer, kind, seen["0"].places)
        one = case.at(spec)
        new = apply(layer, [Edit("", one.kind, one.spec)])
        assert one.params == counting.parameters(new), kind
        if kind != "tucker" and kind != "cp":  # 9 x 11 by 2 is not 4.5 x 5.5: theirs are of whole strides
            assert abs(one.macs - counting.macs(new, IMAGE)) / one.macs < 0.12, kind
    assert case.whole.macs == counting.macs(layer, IMAGE)


def test_an_impossible_budget_says_what_is_possible() -> None:
    with pytest.raises(OptionError, match=r"keep: 0.01 of the params cannot be met: the lowest ranks leave 0.2"):
        lowrank.plan(nn.Linear(10, 10), ranks="budget", keep=0.01)


def test_factors_from_data_change_outputs_least() -> None:
    """The same optimum as weighting the weight with the root of the inputs' second moment, which is known."""
    torch.manual_seed(0)
    layer = nn.Linear(8, 6, bias=False)
    x = torch.randn(500, 8) @ torch.randn(8, 8)
    y = layer(x).detach().double()
    first, second, bias = by_outputs(layer, 3, torch.cov(y.T, correction=0), y.mean(0))
    assert bias is None
    root = torch.linalg.cholesky(x.double().T @ x.double() / 500)
    u, s, v = torch.linalg.svd(layer.weight.double() @ root)
    known = (u[:, :3] * s[:3]) @ v[:3] @ torch.linalg.inv(root)
    torch.testing.assert_close(second @ first, known, atol=1e-6, rtol=1e-4)


def test_calibrated_factors_are_nearer_on_data_than_plain_ones() -> None:
    family = FAMILIES["ours"]
    model, batches = family.make(), list(Images().epoch(0))
    answer = family.logits(model, batches[0]["image"])
    errors = []
    for known in ({}, {"batches": batches, "task": family.task}):
        new = lowrank.factorize(model, ranks="share", keep=0.3, **known)
        errors.append(float((family.logits(new, batches[0]["image"]) - answer).norm()))
    assert errors[1] < 0.7 * errors[0]


def test_a_judge_decides_and_sees_an_input() -> None:
    shapes = []

    def judge(layer: nn.Module, factors: nn.Module, example: Tensor | None) -> bool:
        assert example is not None
        assert layer(example).shape == factors(example).shape
        shapes.append(tuple(example.shape))
        return isinstance(layer, nn.Conv2d)

    seen = lowrank.look(PLAIN.make(), Images().epoch(0), PLAIN.task)
    edits = lowrank.plan(PLAIN.make(), seen=seen, ranks="share", keep=0.3, conv="low_rank", only=judge)
    assert [edit.path for edit in edits] == ["features.0", "features.3"]
    assert shapes == [(4, 3, 16, 16), (4, 8, 8, 8), (4, 8)]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"keep": 0.0}, r"keep: 0.0 is not in \(0, 1\]"),
        ({"ranks": "enrgy"}, "ranks: 'enrgy' is not one of energy"),
        ({"conv": "tt"}, "conv: 'tt' is not one of"),
        ({"by": "macs"}, "macs need `batches`"),
        ({"skip": ["nothing"]}, "skip: 'nothing' covers no linear or convolution layer of Net"),
        ({"batches": []}, "batches: go with `task`"),
    ],
)
def test_wrong_options_are_said_before_anything_is_done(options: dict[str, Any], says: str) -> None:
    with pytest.raises(OptionError, match=says):
        lowrank.factorize(Net(), **options)
    with pytest.raises(LookupError, match="no linear or ungrouped 2d convolution layer left"):
        lowrank.plan(nn.Sequential(nn.ReLU()))


def test_too_few_or_broken_calibration_pictures_are_said() -> None:
    model = PLAIN.make()
    with pytest.raises(OptionError, match="2 images are too few"):
        lowrank.factorize(model, batches=[{"image": IMAGES}], task=PLAIN.task)
    with pytest.raises(Diverged, match="not finite"):
        lowrank.factorize(model, batches=[{"image": IMAGES.repeat(2, 1, 1, 1) / 0}], task=PLAIN.task)


def test_loading_works_out_no_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new = lowrank.factorize(PLAIN.make(), ranks="share", keep=0.3, conv="cp")
    folder = artifact.save(new, tmp_path)
    monkeypatch.setattr(lowrank.chains.decompose, "cp", lambda *args: pytest.fail("was worked out"))
    loaded = artifact.load(folder, base=PLAIN.build())
    assert torch.equal(PLAIN.logits(loaded), PLAIN.logits(new.eval()))
    assert surgery.has_values(torch.zeros(1))


def test_a_rank_that_a_file_makes_up_is_refused(tmp_path: Path) -> None:
    new = lowrank.factorize(PLAIN.make(), ranks="share", keep=0.3)
    surgery.record(new, [Edit(e.path, e.kind, {"ranks": [10**9, 1]}) for e in surgery.edits_of(new)])
    folder = artifact.save(new, tmp_path)
    with pytest.raises(InputError, match="rank 1000000000 is not a whole number from 1 to 3"):
        artifact.load(folder, base=PLAIN.build())


def test_factors_stand_where_layers_stood() -> None:
    for family in FAMILIES.values():
        new = lowrank.factorize(family.make(), ranks="share", keep=0.25)
        assert len(all_of(new, Factors)) >= 3 * 4
        assert family.logits(new).isfinite().all()


def test_norms_fold_into_the_last_factor() -> None:
    from featherweight.convs import ConvNorm, RepConv
    from featherweight.methods.fuse import fuse

    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Sequential(nn.Conv2d(6, 8, 3, bias=False), nn.BatchNorm2d(8)), ConvNorm(8, 16, 3), RepConv(16, 16)
    )
    net.load_state_dict({k: fill.tensor(k, t.shape, t.dtype) for k, t in net.state_dict().items()})
    new = lowrank.factorize(net.eval(), ranks="share", keep=0.4)
    fused = fuse(new, IMAGE)
    assert len(all_of(fused, Factors)) == len(all_of(new, Factors)) == 4
    assert not all_of(fused, nn.BatchNorm2d) or set(all_of(fused, nn.BatchNorm2d)) == {"2.rbr_identity"}
    torch.testing.assert_close(fused(IMAGE), new(IMAGE), atol=1e-4, rtol=0)


def test_a_detector_is_fused_before_its_head_is_factored_or_its_head_is_skipped() -> None:
    from featherweight.methods.fuse import difference, fuse
    from featherweight.models import zoo

    graph = "C8/3s2 C8/3s2 C16/3s2 C16/3s2 Rep16 C16/3s2 Detect<2,3,4,5"
    anchors = [[5, 6, 7, 8]] * 4
    told: dict[str, Any] = {"variant": "custom", "graph": graph, "anchors": anchors, "num_classes": 3}
    model = zoo.create("yolov7", form="training", **told).eval()
    image = torch.rand(1, 3, 64, 64)
    options: dict[str, Any] = {"ranks": "share", "keep": 0.3}
    with pytest.raises(OptionError, match=r"a Factors stands for the head's convolutions.* fuse first, or skip it"):
        fuse(lowrank.factorize(model, **options), image)
    new = lowrank.factorize(model, skip=["model.6"], **options)
    assert len(all_of(fuse(new, image), Factors)) == len(all_of(new, Factors)) >= 5
    deployed = lowrank.factorize(fuse(model, image), **options)
    assert len(all_of(deployed, Factors)) > 5
    assert difference(deployed, deployed, image) == 0
