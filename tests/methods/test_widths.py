# SPDX-License-Identifier: Apache-2.0
"""Widths of heads and tokens, whole blocks left out, and how much layers mind: exact, replayable, mistakes named."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from families import DEPTH, DIM, FAMILIES, HEADS, IMAGES, PLAIN, Family, Images, everything, same
from torch import Tensor, nn

from featherweight import anatomy, artifact, prune_plots
from featherweight.errors import OptionError
from featherweight.methods import drop_blocks, prune, sensitivity, widths
from featherweight.methods.masks import sparsity
from featherweight.methods.sparsify import sparsify
from featherweight.surgery import Edit, apply, edits_of, submodule

EACH = DIM // HEADS


@pytest.fixture(params=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> Family:
    return FAMILIES[request.param]


@torch.no_grad()
def silenced(model: nn.Module, edits: list[Edit]) -> nn.Module:
    """A copy of the same size, whose keys and projection take nothing from what the edits remove in each head."""
    new = apply(model, [])
    record = anatomy.anatomy_of(new)
    for edit in edits:
        block = submodule(new, edit.spec["block"])
        gone = {name: torch.ones(HEADS, EACH, dtype=torch.bool) for name in ("qk", "v")}
        for name, mask in gone.items():
            for head, kept in enumerate(edit.spec[name]):
                mask[head, kept] = False
        layers = [submodule(block, path) for path in record.qkv]
        for tensor in layers[len(layers) // 3].parameters():
            keys = tensor.chunk(3)[1] if len(layers) == 1 else tensor
            keys[gone["qk"].flatten()] = 0
        submodule(block, record.projection).weight[:, gone["v"].flatten()] = 0
    return new


def test_narrower_heads_are_exactly_the_sub_network(family: Family, tmp_path: Path) -> None:
    model = family.make()
    before = everything(model)
    edits = widths.plan_heads(model, ratio=0.5, round_to=2)
    small = apply(model, edits)
    assert same(before, everything(model))
    assert {len(kept) for edit in edits for name in ("qk", "v") for kept in edit.spec[name]} == {EACH // 2}
    torch.testing.assert_close(family.logits(small), family.logits(silenced(model, edits)), atol=1e-5, rtol=0)
    assert not torch.allclose(family.logits(small), family.logits(model), atol=1e-3)
    loaded = artifact.load(artifact.save(small, tmp_path), base=family.base())
    assert torch.equal(family.logits(loaded), family.logits(small))
    heads = prune.prune(small, mlp=0.0, heads=0.5)  # and further cuts find what they need
    assert family.logits(heads).shape == family.logits(model).shape


def test_timms_other_way_to_attend_keeps_the_scale_too() -> None:
    family = FAMILIES["timm"]
    model = family.make()
    edits = widths.plan_heads(model, ratio=0.5, round_to=2)
    small = apply(model, edits)
    answer = family.logits(small)
    for block in small.blocks:
        block.attn.fused_attn = False
    torch.testing.assert_close(family.logits(small), answer, atol=1e-5, rtol=0)
    assert (small.blocks[0].attn.head_dim, small.blocks[0].attn.attn_dim) == (EACH // 2, DIM // 2)


def test_fewer_channels_for_every_token(family: Family, tmp_path: Path) -> None:
    model = family.make()
    small = apply(model, widths.plan_embed(model, IMAGES, ratio=0.25))
    assert anatomy.embed_dim(small) == 24
    loaded = artifact.load(artifact.save(small, tmp_path), base=family.base())
    assert torch.equal(family.logits(loaded), family.logits(small))
    both = widths.narrow_heads_and_tokens(model, IMAGES, head_width=0.5, embed=0.25, round_to=4)
    record, block = anatomy.anatomy_of(both), next(iter(anatomy.blocks_of(both).values()))
    assert submodule(block, record.projection).weight.shape == (24, DIM // 2)
    assert family.logits(both).shape == family.logits(model).shape


def test_dead_channels_of_tokens_go_first() -> None:
    family = FAMILIES["ours"]
    model = family.make()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if name in ("cls_token", "pos_embed"):
                tensor[..., ::2] = 0
            elif name.endswith(("attn.proj.weight", "attn.proj.bias", "fc2.weight", "fc2.bias")) or "patch" in name:
                tensor[::2] = 0
            elif name.endswith(("qkv.weight", "fc1.weight")) or name == "head.weight":
                tensor[:, ::2] = 0
    (edit,) = [e for e in widths.plan_embed(model, IMAGES, ratio=0.5) if e.path == "head"]
    assert edit.spec["keep"]["weight"]["1"] == list(range(1, DIM, 2))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"ratio": 1.0}, "ratio: 1.0 is not in [0, 1)"),
        ({"round_to": 0}, "round_to: 0 is not"),
        ({"importance": "taylor"}, "Known: l1, l2"),
        ({"skip": ["block.0"]}, "did you mean 'blocks.0'"),
    ],
)
def test_mistakes_are_named(options: dict[str, object], says: str) -> None:
    with pytest.raises(OptionError) as error:
        widths.plan_heads(FAMILIES["ours"].make(), **options)
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("qk", "v"),
    [([[0]], [[0]]), ([[0]] * 4, [[0, 1]] * 4), ([[1, 0]] * 4, [[0, 1]] * 4), ([[8]] * 4, [[0]] * 4), (3, [[0]] * 4)],
)
def test_widths_from_a_file_are_checked(qk: object, v: object) -> None:
    with pytest.raises(OptionError):
        apply(FAMILIES["ours"].make(), [Edit("", "narrow_head_width", {"block": "blocks.0", "qk": qk, "v": v})])


def test_norms_of_heads_cannot_follow() -> None:
    model = FAMILIES["timm"].make()
    model.blocks[1].attn.q_norm = nn.LayerNorm(EACH)
    with pytest.raises(LookupError, match=r"blocks\.1\.attn\.q_norm works on all 8 channels"):
        widths.plan_heads(model, ratio=0.5, round_to=2)
    assert len(widths.plan_heads(model, ratio=0.5, round_to=2, skip=["blocks.1"])) == DEPTH - 1


# Blocks ---------------------------------------------------------------------------------------------------------------
def test_the_block_that_does_least_goes(family: Family, tmp_path: Path) -> None:
    model = family.make()
    record = anatomy.anatomy_of(model)
    with torch.no_grad():
        block = list(anatomy.blocks_of(model).values())[1]
        for layer in (submodule(block, record.projection), submodule(block, record.mlp[1])):
            layer.weight.zero_()
            layer.bias.zero_()
    before = everything(model)
    influence = drop_blocks.influences(model, Images(), family.task)
    assert list(influence.values())[1] == pytest.approx(0.0, abs=1e-6)
    assert min(v for i, v in enumerate(influence.values()) if i != 1) > 1e-3
    small = drop_blocks.drop_blocks(model, count=1, batches=Images(), task=family.task)
    assert same(before, everything(model))
    assert [edit.spec for edit in edits_of(small)] == [{"keep": [0, 2]}]
    torch.testing.assert_close(family.logits(small), family.logits(model), atol=1e-5, rtol=0)
    loaded = artifact.load(artifact.save(small, tmp_path), base=family.base())
    assert torch.equal(family.logits(loaded), family.logits(small))


class Ladder(nn.Module):
    """A user's own residual net: the first rung changes the shape."""

    class Rung(nn.Module):
        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__()
            self.conv = nn.Conv2d(inputs, outputs, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x).relu()
            return x + y if y.shape == x.shape else y

    def __init__(self) -> None:
        super().__init__()
        self.rungs = nn.Sequential(self.Rung(3, 8), *(self.Rung(8, 8) for _ in range(4)))
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.rungs(x).mean((2, 3)))


def test_blocks_of_a_net_of_ones_own() -> None:
    model = Ladder()
    known = {"batches": Images(), "task": PLAIN.task}
    assert list(drop_blocks.influences(model, Images(), PLAIN.task)) == [f"rungs.{i}" for i in range(1, 5)]
    edits = drop_blocks.plan(model, count=2, rule="even", **known)
    assert edits == [Edit("rungs.2", "pass_on"), Edit("rungs.4", "pass_on")]
    small = apply(model, json.loads(json.dumps([])) or edits)
    by_hand = copy.deepcopy(model)
    by_hand.rungs = nn.Sequential(*(model.rungs[i] for i in (0, 1, 3)))
    assert torch.equal(small(IMAGES), by_hand(IMAGES))
    assert drop_blocks.plan(model, count=1, skip=["rungs.[12]"], **known)[0].path in ("rungs.3", "rungs.4")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"count": 4}, "4 of 4 blocks cannot be left out; at most 3"),
        ({"count": -1}, "count: -1 is not"),
        ({"rule": "odd"}, "Known: similarity, even"),
        ({"batches": None}, "are needed"),
        ({"batches": []}, "there are none"),
        ({"skip": ["rung.1"]}, "did you mean 'rungs.1'"),
    ],
)
def test_what_cannot_be_dropped_is_named(options: dict[str, object], says: str) -> None:
    with pytest.raises(OptionError) as error:
        drop_blocks.plan(Ladder(), **{"batches": Images(), "task": PLAIN.task, **options})
    assert says in str(error.value)


def test_nothing_to_drop() -> None:
    with pytest.raises(LookupError, match="no block in a sequence"):
        drop_blocks.plan(PLAIN.make(), batches=Images(), task=PLAIN.task)
    assert drop_blocks.plan(Ladder(), count=0, batches=Images(), task=PLAIN.task) == []


# How much layers mind -------------------------------------------------------------------------------------------------
def test_rows_for_every_layer_and_ratio(tmp_path: Path) -> None:
    family = PLAIN
    model = family.make()
    worth = sensitivity.agreement(model, Images(steps=2, size=8), family.task)
    assert worth(model) == 1.0
    rows = sensitivity.of_weights(model, worth, ratios=(0.3, 0.7))
    assert [(r.layer, r.ratio) for r in rows] == [
        (layer, ratio) for layer in ("features.0", "features.3", "classifier") for ratio in (0.3, 0.7)
    ]
    only = sparsify(model, sparsity={"features.3": 0.7})
    assert next(r.worth for r in rows if (r.layer, r.ratio) == ("features.3", 0.7)) == worth(only)
    assert sparsity(only) < 0.7
    by_channel = sensitivity.of_channels(model, IMAGES, worth, ratios=(0.5, 0.95))
    assert [(r.layer, r.ratio) for r in by_channel] == [("features.0", 0.5), ("features.3", 0.5)]  # 0.95 empties them
    path = prune_plots.save(rows, tmp_path / "s.svg")
    assert "features.0" in path.read_text()
    assert json.loads((tmp_path / "s.json").read_text()) == [row.to_dict() for row in rows]
    with pytest.raises(OptionError, match=r"does not end in \.svg"):
        prune_plots.save(rows, tmp_path / "s.gif")


def test_what_each_layer_may_lose() -> None:
    rows = [sensitivity.Row("a", r, w, 1) for r, w in ((0.5, 0.9), (0.25, 0.99), (0.75, 0.95))]
    rows += [sensitivity.Row("b", 0.25, 0.5, 1)]
    assert sensitivity.allowed(rows, floor=0.94) == {"a": 0.25, "b": 0.0}
    with pytest.raises(OptionError, match="ratios"):
        sensitivity.of_weights(PLAIN.make(), lambda _: 1.0, ratios=(0.5, 1.0))
