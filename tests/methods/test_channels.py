# SPDX-License-Identifier: Apache-2.0
"""Channel pruning: what hangs together in every kind of net, and that what stays is exactly the sub-network."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import fill
import pytest
import torch
from families import FAMILIES, IMAGES, PLAIN, Images, everything, same
from torch import Tensor, nn
from torch.nn import functional as F

from featherweight import anatomy, artifact
from featherweight.counting import macs
from featherweight.errors import OptionError
from featherweight.methods import channels
from featherweight.methods.budgeted import fit_budget
from featherweight.methods.channel_scores import scores
from featherweight.methods.coupling import couple
from featherweight.methods.narrow import kept_outputs, narrow
from featherweight.methods.slimming import Slimming
from featherweight.models import zoo
from featherweight.surgery import Edit, apply, edits_of, submodule
from featherweight.train import fit

X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
NORMS = (nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)


class Residual(nn.Module):
    """A stream, a bottleneck, a shortcut with its own convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.down, self.up = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 16, 1)
        self.wide, self.short = nn.Conv2d(16, 24, 3, 2, 1), nn.Conv2d(16, 24, 1, 2)
        self.fc = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.stem(x)).relu()
        x = x + self.up(self.down(x).relu())
        x = (self.wide(x) + self.short(x)).relu()
        return self.fc(x.mean((2, 3)))


class Dense(nn.Module):
    """Concatenations, and a classifier on flattened pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 16, 3, 2, 1), nn.Conv2d(24, 8, 1)
        self.fc = nn.Linear(8 * 4 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x).relu()
        x = torch.cat([F.max_pool2d(a, 2), self.b(a).relu()], 1)
        return self.fc(self.c(x).relu().flatten(1))


class Mobile(nn.Module):
    """Depthwise, grouped and gated convolutions, and halves that are cut apart by chunk."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.dw = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 32, 3, padding=1, groups=16)
        self.gate, self.grouped = nn.Conv2d(32, 32, 1), nn.Conv2d(32, 32, 3, groups=4)
        self.norm, self.project = nn.GroupNorm(4, 32), nn.ConvTranspose2d(32, 16, 2, 2)
        self.prelu, self.fc = nn.PReLU(16), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dw(self.expand(x).relu())
        x = x * self.gate(x.mean((2, 3), keepdim=True)).sigmoid()
        x = self.prelu(self.project(self.norm(self.grouped(x))))
        left, right = x.chunk(2, 1)
        return self.fc((left * right).mean((2, 3)))


class Convnext(nn.Module):
    """Channels last, a scale that stands in the model itself, layer norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.dw = nn.Conv2d(3, 16, 4, 4), nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.norm, self.up, self.down = nn.LayerNorm(16), nn.Linear(16, 32), nn.Linear(32, 16)
        self.gamma = nn.Parameter(torch.full((16,), 0.5))
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.down(F.gelu(self.up(self.norm(self.dw(x).permute(0, 2, 3, 1)))))
        x = x + (self.gamma * y).permute(0, 3, 1, 2)
        return self.head(x.flatten(2).transpose(1, 2).mean(1))


NETS: dict[str, Callable[[], nn.Module]] = {
    "residual": Residual,
    "dense": Dense,
    "mobile": Mobile,
    "convnext": Convnext,
    "plain": PLAIN.build,
    "resnet": lambda: zoo.build({"name": "resnet", "config": RESNET}),
}
RESNET = {"num_classes": 5, "widths": [8, 16], "depths": [2, 1], "stem": "small", "image_size": [16, 16]}


def made(name: str) -> nn.Module:
    """A net with weights and statistics of sensible size."""
    model = NETS[name]()
    model.load_state_dict({key: fill.tensor(key, t.shape, t.dtype) for key, t in model.state_dict().items()})
    return model.eval()


@torch.no_grad()
def silenced(model: nn.Module, edits: list[Edit]) -> nn.Module:
    """A copy of the same size whose layers take nothing from the channels that the edits remove."""
    new = copy.deepcopy(model)
    for edit in edits:
        layer = submodule(new, edit.path)
        for name, dims in edit.spec["keep"].items():
            reads = isinstance(layer, nn.Linear | nn.Conv2d) and name == "weight" and "1" in dims
            reads = reads or (isinstance(layer, nn.ConvTranspose2d) and name == "weight" and "0" in dims)
            if reads:
                dim = 0 if isinstance(layer, nn.ConvTranspose2d) else 1
                gone = torch.ones(layer.weight.shape[dim], dtype=torch.bool)
                gone[dims[str(dim)]] = False
                layer.weight.movedim(dim, 0)[gone] = 0
    return new


@pytest.mark.parametrize(
    ("name", "scope"),
    [("residual", "uniform"), ("dense", "uniform"), ("plain", "global"), ("resnet", "isomorphic")],
)
def test_what_stays_is_exactly_the_sub_network(name: str, scope: str) -> None:
    model = made(name)
    before = everything(model)
    edits = channels.plan(model, X, ratio=0.5, scope=scope, round_to=2)
    small = apply(model, edits)
    assert same(before, everything(model))
    torch.testing.assert_close(small(X), silenced(model, edits)(X), atol=1e-5, rtol=0)
    assert sum(p.numel() for p in small.parameters()) < 0.6 * sum(p.numel() for p in model.parameters())
    assert macs(small, X) < 0.75 * macs(model, X)


@pytest.mark.parametrize("name", list(NETS))
def test_every_kind_of_net_gets_smaller_and_replays(name: str, tmp_path: Path) -> None:
    model = made(name)
    small = channels.prune_channels(model, X, ratio=0.5, round_to=1)
    assert sum(p.numel() for p in small.parameters()) < 0.55 * sum(p.numel() for p in model.parameters())
    edits = [Edit.from_dict(data) for data in json.loads(json.dumps([e.to_dict() for e in edits_of(small)]))]
    assert torch.equal(apply(model, edits)(X), small(X))
    loaded = artifact.load(artifact.save(small, tmp_path), base=None if name == "resnet" else NETS[name]())
    assert torch.equal(loaded(X), small(X))
    assert repr(loaded) == repr(small)  # in_channels, groups, num_features say what the weights are
    again = channels.prune_channels(small, X, ratio=0.5, round_to=1)
    assert again(X).shape == (2, 5)
    assert torch.equal(channels.prune_channels(model, X, ratio=0.0)(X), model(X))


def test_groups_are_what_hangs_together() -> None:
    found = {group.name: group for group in couple(made("residual"), X).groups}
    assert {name: group.channels for name, group in found.items()} == {"stem": 16, "down": 8, "wide": 24}
    assert set(found["stem"].members) == {
        ("stem.weight", 0), ("stem.bias", 0), ("bn.weight", 0), ("bn.bias", 0), ("bn.running_mean", 0),
        ("bn.running_var", 0), ("down.weight", 1), ("up.weight", 0), ("up.bias", 0), ("wide.weight", 1),
        ("short.weight", 1),
    }  # fmt: skip
    assert {slot[0] for slot in found["wide"].makers} == {"wide.weight", "short.weight"}
    assert couple(made("residual"), X).locked == {"fc": "the model's output"}


def test_a_flattened_picture_is_sixteen_inputs_a_channel() -> None:
    (group,) = [g for g in couple(made("dense"), X).groups if g.name == "c"]
    assert group.members["fc.weight", 1][1].tolist() == list(range(16, 32))
    (second,) = [g for g in couple(made("dense"), X).groups if g.name == "b"]
    assert second.members["c.weight", 1].flatten().tolist() == list(range(8, 24))  # behind the 8 of `a`


def test_groups_halves_and_depthwise() -> None:
    found = {group.name: group for group in couple(made("mobile"), X).groups}
    assert found["expand"].channels == 4  # four groups read what 16 channels became, and lose alike
    assert found["expand"].members["dw.weight", 0].shape == (4, 8)
    small = channels.prune_channels(made("mobile"), X, ratio=0.5, round_to=1)
    assert (small.dw.groups, small.dw.in_channels, small.dw.out_channels) == (8, 8, 16)
    assert (small.grouped.groups, small.grouped.in_channels) == (4, 16)
    assert (small.project.in_channels, small.project.out_channels, small.prelu.num_parameters) == (16, 8, 8)
    assert (small.norm.num_groups, small.norm.num_channels) == (4, 16)
    assert small.fc.in_features == 4


def test_ratios_rounding_and_skipping() -> None:
    model = made("residual")

    def widths(**options: object) -> tuple[int, int, int]:
        new = channels.prune_channels(model, X, **options)
        return new.stem.out_channels, new.down.out_channels, new.wide.out_channels

    assert widths(ratio=0.3, round_to=1) == (11, 6, 17)
    assert widths(ratio=0.3, round_to=8) == (8, 8, 16)  # 11.2, 5.6 and 16.8, to the nearest multiple
    assert widths(ratio=0.5, round_to=1, skip=["wide"]) == (8, 4, 24)
    assert widths(ratio={"*": 0.25, "down": 0.75}, round_to=1) == (12, 2, 18)
    assert widths(ratio={"down": 0.5}, round_to=1) == (16, 4, 24)


def test_global_takes_where_it_hurts_least_and_isomorphic_among_equals() -> None:
    model = made("residual")
    with torch.no_grad():
        model.down.weight[:4] *= 1e-3
        model.down.bias[:4] *= 1e-3
        model.up.weight[:, :4] *= 1e-3
    new = channels.prune_channels(model, X, ratio=4 / 48, scope="global", round_to=1)
    assert (new.stem.out_channels, new.down.out_channels, new.wide.out_channels) == (16, 4, 24)
    equal = channels.prune_channels(model, X, ratio=0.5, scope="isomorphic", round_to=1)
    assert (equal.stem.out_channels, equal.down.out_channels, equal.wide.out_channels) == (8, 4, 12)


@pytest.mark.parametrize("importance", ["l1", "l2", "taylor"])
def test_dead_channels_go_first(importance: str) -> None:
    model = made("residual")
    with torch.no_grad():
        for layer in (model.down, model.stem, model.bn, model.up):
            layer.weight[::2] = layer.bias[::2] = 0
        model.bn.running_mean[::2] = 0
        for layer in (model.down, model.wide, model.short):
            layer.weight[:, ::2] = 0
        model.up.weight[:, ::2] = 0
    known = {"importance": importance, "batches": list(Images().epoch(0)), "task": PLAIN.task}
    small = channels.prune_channels(model, X, ratio={"stem": 0.5, "down": 0.5}, round_to=1, **known)
    torch.testing.assert_close(small(X), model(X), atol=1e-5, rtol=0)


def test_scores_are_the_papers() -> None:
    model = made("residual")
    groups = {group.name: group for group in couple(model, X).groups}
    down = groups["down"]
    (l1,) = scores(model, [down], "l1")
    torch.testing.assert_close(l1, model.down.weight.abs().sum((1, 2, 3)) + model.up.weight.abs().sum((0, 2, 3)))
    (fpgm,) = scores(model, [down], "fpgm")
    rows = model.down.weight.detach().flatten(1)
    torch.testing.assert_close(fpgm, torch.stack([(rows - row).norm(dim=1).sum() for row in rows]), atol=1e-4, rtol=0)
    stem, none = scores(model, [groups["stem"], down], "bn_scale")
    torch.testing.assert_close(stem, model.bn.weight.detach().abs())
    assert none is None
    with pytest.raises(LookupError, match="'bn_scale': no channel"):
        scores(model, [down], "bn_scale")


def test_taylor_is_what_the_loss_loses_at_first_order() -> None:
    model, batches = made("residual"), list(Images(steps=2, size=3).epoch(0))
    (group,) = [g for g in couple(model, X).groups if g.name == "down"]
    (found,) = scores(model, [group], "taylor", batches, PLAIN.task)
    wanted = torch.zeros(8)
    for batch in batches:
        model.zero_grad()
        F.cross_entropy(model(batch["image"]), batch["label"]).backward()
        wanted += (model.down.weight * model.down.weight.grad).sum((1, 2, 3)).abs().detach() / 2
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("name", ["ours", "transformers"])
def test_transformers_lose_neurons_and_token_width_but_no_heads(name: str) -> None:
    family = FAMILIES[name]
    model = family.make()
    small = channels.prune_channels(model, IMAGES, ratio=0.5, round_to=1)
    record, (path, block) = anatomy.anatomy_of(small), next(iter(anatomy.blocks_of(small).items()))
    fc1, reader = submodule(block, record.mlp[0]), submodule(block, record.projection)
    assert (fc1.in_features, fc1.out_features) == (16, 64)
    assert (reader.in_features, reader.out_features) == (32, 16)
    assert family.logits(small).shape == (2, 5)
    reason = channels.left_alone(model, IMAGES)[f"{path}.{record.qkv[0]}"]
    assert reason == "its channels are split into several dimensions"


def test_what_cannot_be_cut_is_left_and_named() -> None:
    class Shuffled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)
            self.shared = nn.Linear(4, 4)
            self.twin = nn.Linear(4, 4)
            self.twin.weight = self.shared.weight

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x).unflatten(1, (2, 4)).transpose(1, 2).flatten(1, 2)
            return self.twin(self.shared(self.c(self.b(x)).mean((2, 3)).relu()).relu())

    found = channels.left_alone(Shuffled(), X)
    assert found["a"] == "its channels are split into several dimensions"
    assert {"a", "c", "twin"} == set(found)  # of weights that two layers share the name is one of the two
    assert [edit.path for edit in channels.plan(Shuffled(), X, ratio=0.5, round_to=1)] == ["b", "c"]


def test_sizes_in_the_code_are_found_before_anything_is_returned() -> None:
    class Fixed(nn.Module):
        def __init__(self, *shape: int) -> None:
            super().__init__()
            self.a, self.b, self.shape = nn.Conv2d(3, 8, 3, 2, 1), nn.Linear(8 * 64, 4), shape

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).reshape(*self.shape).flatten(1))

    for shape, says in (((2, 8, 64), "shape '"), ((-1, 8 * 64), "mat1 and mat2 shapes")):
        with pytest.raises(LookupError, match=f"Fixed has a size in its code .*{says}"):
            channels.plan(Fixed(*shape), X, ratio=0.5, round_to=1)
    with pytest.raises(LookupError, match=r"has no channels that could be cut\. 0: the model's output"):
        channels.plan(nn.Sequential(nn.Conv2d(3, 4, 1)), X)


def test_multihead_attention_of_torch_is_left_alone() -> None:
    class Torch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside, self.attn = nn.Linear(8, 8), nn.MultiheadAttention(8, 2, batch_first=True)
            self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

        def forward(self, x: Tensor) -> Tensor:
            x = self.inside(x)
            x = x + self.attn(x, x, x, need_weights=False)[0]
            return x + self.down(self.up(x).relu())

    edits = channels.plan(Torch(), torch.randn(2, 5, 8), ratio=0.5, round_to=1)
    assert {edit.path for edit in edits} == {"up", "down"}


def test_a_budget_of_macs_is_met_from_below() -> None:
    model = made("resnet")
    ranked, whole = channels.rank(model, X), macs(model, X)
    found = fit_budget(
        lambda ratio: apply(model, ranked.edits(ratio, round_to=1)), lambda m: macs(m, X) / whole, budget=0.5
    )
    assert 0.4 < found.cost <= 0.5
    assert found.cost == macs(found.model, X) / whole
    assert found.tried[0] == (0.0, 1.0)
    enough = fit_budget(lambda ratio: apply(model, ranked.edits(ratio)), lambda m: 1.0, budget=1.0)
    assert enough.ratio == 0.0
    with pytest.raises(OptionError, match=r"0\.001 was not reached"):
        fit_budget(lambda r: apply(model, ranked.edits(r)), lambda m: macs(m, X) / whole, budget=0.001, highest=0.5)


def test_slimming_presses_scales_together() -> None:
    family = PLAIN
    sums = []
    for weight in (0.0, 0.3):
        rows: list[dict[str, object]] = []
        model = fit(family.make(), Images(), family.task, methods=[Slimming(weight)], epochs=2, log=rows.append)
        sums.append(float(model.features[1].weight.detach().abs().sum()))
        assert ("slimming" in rows[0]["terms"]) == bool(weight)  # type: ignore[operator]
    assert sums[1] < sums[0]
    with pytest.raises(LookupError, match="no batch norm"):
        fit(nn.Sequential(nn.Linear(2, 2)), Images(), family.task, methods=[Slimming()])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"ratio": 1.0}, "ratio: 1.0 is not in [0, 1)"),
        ({"ratio": {"*": True}}, "not in [0, 1)"),
        ({"ratio": 0.9}, "would leave nothing of down (8 channels); at most 0.875"),
        ({"ratio": {"dwn": 0.5}}, "did you mean 'down'"),
        ({"ratio": {"*": 0.5}, "scope": "global"}, "which scope 'global' decides"),
        ({"scope": "gobal"}, "did you mean 'global'"),
        ({"round_to": 0}, "round_to: 0 is not"),
        ({"importance": "fpmg"}, "did you mean 'fpgm'"),
        ({"importance": "taylor"}, "needs batches="),
        ({"importance": "taylor", "batches": [], "task": PLAIN.task}, "batches: there are none"),
        ({"skip": ["stm"]}, "did you mean 'stem'"),
    ],
)
def test_mistakes_are_named(options: dict[str, object], says: str) -> None:
    with pytest.raises(OptionError) as error:
        channels.plan(made("residual"), X, **options)
    assert says in str(error.value)


@pytest.mark.parametrize(
    "keep",
    [{}, [], {"wight": {"0": [0]}}, {"weight": [0]}, {"weight": {"9": [0]}}, {"weight": {"0": []}}]
    + [{"weight": {"0": bad}} for bad in ([3, 1], [0, 0], [-1], [16], [0.0], [True], "01")],
)
def test_edits_from_a_file_are_checked(keep: object) -> None:
    with pytest.raises(OptionError):
        narrow(nn.Conv2d(3, 16, 3), keep=keep)  # type: ignore[arg-type]


def test_which_outputs_are_left_is_told_over_several_cuts() -> None:
    model = made("mobile")
    once = channels.prune_channels(model, X, ratio=0.5, round_to=1)
    twice = channels.prune_channels(once, X, ratio=0.5, round_to=1)
    kept = kept_outputs(twice, model)
    for path in ("expand", "gate", "project"):
        old, new = submodule(model, path), submodule(twice, path)
        assert torch.equal(old.bias[kept[path]], new.bias)
    assert "fc" not in kept
    assert torch.equal(once.gate.bias[kept_outputs(twice, once)["gate"]], twice.gate.bias)
    assert kept_outputs(model, model) == {}


def test_frozen_weights_and_buffers_keep_what_they_are() -> None:
    layer = nn.BatchNorm2d(8)
    layer.weight.requires_grad_(False)
    narrow(layer, keep={name: {"0": [1, 2]} for name in ("weight", "bias", "running_mean", "running_var")})
    assert not layer.weight.requires_grad
    assert layer.bias.requires_grad
    assert layer.num_features == len(layer.running_var) == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "mobilenetv3_small_100", "densenet121", "yolov7_tiny"])
def test_nets_of_others_are_cut_to_exactly_the_sub_network(name: str) -> None:
    timm = pytest.importorskip("timm")
    model = zoo.create(name) if name.startswith("yolo") else timm.create_model(name)
    model.load_state_dict({key: fill.tensor(key, t.shape, t.dtype) for key, t in model.state_dict().items()})
    pictures = torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    edits = channels.plan(model.eval(), pictures, ratio=0.4, round_to=2)
    assert len(edits) > 50
    with torch.no_grad():
        answers = [first(one(pictures)) for one in (apply(model, edits), silenced(model, edits), model)]
    scale = float(answers[1].std())
    torch.testing.assert_close(answers[0] / scale, answers[1] / scale, atol=1e-4, rtol=0)
    assert not torch.allclose(answers[0] / scale, answers[2] / scale, atol=0.1)


def first(answer: object) -> Tensor:
    """The first tensor of an answer."""
    if isinstance(answer, Tensor):
        return answer
    return first(next(iter(answer.values() if isinstance(answer, dict) else answer)))  # type: ignore[attr-defined]
