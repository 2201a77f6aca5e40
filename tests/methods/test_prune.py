# SPDX-License-Identifier: Apache-2.0
"""Pruning: what stays is exactly the sub-network, the right things go, and lists of edits replay."""

from __future__ import annotations

import json

import pytest
import torch
from families import CLASSES, DEPTH, FAMILIES, HEADS, PLAIN, Family, Images, everything, same
from torch import nn

from featherweight import anatomy, artifact
from featherweight.errors import OptionError
from featherweight.methods import deit, dynamicvit, prune
from featherweight.methods.importance import by_taylor
from featherweight.surgery import Edit, apply, edits_of, submodule

HIDDEN = 128


def kept(edits: list[Edit], kind: str) -> list[int]:
    """How many stay, block by block."""
    return [len(edit.spec["keep"]) for edit in edits if edit.kind == kind]


@torch.no_grad()
def silenced(model: nn.Module, edits: list[Edit]) -> nn.Module:
    """A copy of the same size in which what the edits remove is mute: its columns in the next layer are zero."""
    new = apply(model, [])
    record = anatomy.anatomy_of(new)
    for edit in edits:
        block = submodule(new, edit.spec["block"])
        if edit.kind == "narrow_mlp":
            reader, groups = submodule(block, record.mlp[1]), HIDDEN
        else:
            reader, groups = submodule(block, record.projection), HEADS
        gone = torch.ones(groups, dtype=torch.bool)
        gone[edit.spec["keep"]] = False
        reader.weight.mul_((~gone).float().repeat_interleave(reader.in_features // groups))
    return new


@pytest.mark.parametrize(
    "options", [{"importance": "l2"}, {"importance": "l1", "uniform": False}, {"importance": "taylor"}]
)
def test_what_stays_is_exactly_the_sub_network(family: Family, options: dict[str, object]) -> None:
    model = family.make()
    edits = prune.plan(model, mlp=0.5, heads=0.5, batches=Images(), task=family.task, **options)
    small = apply(model, edits)
    assert {edit.kind for edit in edits} == {"narrow_mlp", "narrow_heads"}
    assert sum(p.numel() for p in small.parameters()) < 0.7 * sum(p.numel() for p in model.parameters())
    torch.testing.assert_close(family.logits(small), family.logits(silenced(model, edits)), atol=1e-5, rtol=0)
    assert not torch.allclose(family.logits(small), family.logits(model), atol=1e-2)


def test_the_ratio_is_what_is_removed() -> None:
    model = FAMILIES["ours"].make()
    assert kept(prune.plan(model, mlp=0.3, heads=0.25), "narrow_mlp") == [88] * DEPTH  # 89.6, to a multiple of 8
    assert kept(prune.plan(model, mlp=0.3, heads=0.25, round_to=1), "narrow_mlp") == [90] * DEPTH
    assert kept(prune.plan(model, mlp=0.3, heads=0.25), "narrow_heads") == [3] * DEPTH
    assert kept(prune.plan(model, mlp=0.99, heads=0.99), "narrow_mlp") == [8] * DEPTH
    assert kept(prune.plan(model, mlp=0.99, heads=0.99), "narrow_heads") == [1] * DEPTH
    assert prune.plan(model, mlp=0.01, heads=0.1) == []  # less than one step
    assert kept(prune.plan(model, mlp=0.0, heads=0.5), "narrow_mlp") == []


def test_global_ranking_takes_from_where_it_hurts_least() -> None:
    model = FAMILIES["ours"].make()
    with torch.no_grad():
        quiet = model.blocks[1]
        quiet.mlp.fc1.weight[:100] *= 0.01
        quiet.mlp.fc1.bias[:100] *= 0.01
        quiet.mlp.fc2.weight[:, :100] *= 0.01
    counts = kept(prune.plan(model, mlp=0.25, heads=0.0, uniform=False), "narrow_mlp")
    assert counts[0] == 32  # only block 1 is cut, to about the 28 that are loud
    assert len(counts) == 1
    for mlp in (0.3, 0.6, 0.9):
        left = apply(model, prune.plan(model, mlp=mlp, heads=mlp, uniform=False))
        total = sum(block.mlp.fc1.out_features for block in left.blocks)
        assert abs(total - (1 - mlp) * HIDDEN * DEPTH) <= 8 * DEPTH
        assert min(block.attn.num_heads for block in left.blocks) >= 1


@pytest.mark.parametrize("importance", ["l1", "l2", "taylor"])
def test_dead_neurons_and_heads_go_first(family: Family, importance: str) -> None:
    model = family.make()
    record = anatomy.anatomy_of(model)
    with torch.no_grad():
        for block in anatomy.blocks_of(model).values():
            fc1, fc2 = (submodule(block, path) for path in record.mlp)
            fc1.weight[::2] = fc1.bias[::2] = fc2.weight[:, ::2] = 0
            width = submodule(block, record.projection).in_features // HEADS
            submodule(block, record.projection).weight[:, width : 2 * width] = 0
            for path in record.qkv:
                layer = submodule(block, path)
                for rows in (t.chunk(3 // len(record.qkv)) for t in layer.parameters()):
                    for part in rows:
                        part[width : 2 * width] = 0
    small = prune.prune(model, mlp=0.5, heads=0.25, importance=importance, batches=Images(), task=family.task)
    torch.testing.assert_close(family.logits(small), family.logits(model), atol=1e-5, rtol=0)
    assert [edit.spec["keep"] for edit in edits_of(small) if edit.kind == "narrow_heads"] == [[0, 2, 3]] * DEPTH


def test_taylor_is_the_sum_of_activation_times_gradient() -> None:
    family = FAMILIES["ours"]
    model, batches = family.make(), list(Images(steps=2, size=3).epoch(0))
    layer = model.blocks[1].mlp.fc2
    found = by_taylor(model, {"x": (layer, HIDDEN)}, batches, family.task)["x"]
    wanted = torch.zeros(HIDDEN)
    for batch in batches:
        for image, label in zip(batch["image"], batch["label"], strict=True):
            seen = []
            handle = layer.register_forward_pre_hook(
                lambda _, args, seen=seen: (args[0].retain_grad(), seen.append(args[0]))[0]
            )
            nn.functional.cross_entropy(model(image[None]), label[None]).backward()
            handle.remove()
            wanted += (seen[0] * seen[0].grad).sum((0, 1)).abs()
    torch.testing.assert_close(found, wanted)


def test_taylor_leaves_the_model_as_it_was(family: Family) -> None:
    model = family.make().train()
    anatomy.blocks_of(model)[next(iter(anatomy.blocks_of(model)))].eval()
    before = everything(model)
    for frozen in (False, True):
        model.requires_grad_(not frozen)
        prune.plan(model, importance="taylor", batches=Images(), task=family.task)
    model.requires_grad_(True)
    assert same(before, everything(model))


def test_edits_are_json_and_replay_on_a_fresh_base(family: Family, tmp_path: object) -> None:
    once = prune.prune(family.make(), mlp=0.25, heads=0.25)
    twice = prune.prune(once, mlp=0.5, heads=0.5, uniform=False)
    edits = [Edit.from_dict(data) for data in json.loads(json.dumps([edit.to_dict() for edit in edits_of(twice)]))]
    assert all(max(edit.spec["keep"]) < 96 for edit in edits[2 * DEPTH :])  # counted in the layer that was left
    torch.testing.assert_close(family.logits(apply(family.make(), edits)), family.logits(twice), atol=0, rtol=0)
    loaded = artifact.load(artifact.save(twice, tmp_path), base=family.base())  # type: ignore[arg-type]
    assert torch.equal(family.logits(loaded), family.logits(twice))
    assert edits_of(loaded) == edits_of(twice)


def test_inside_a_distillation_token_and_sparse_blocks(family: Family) -> None:
    host = apply(family.make(), deit.plan(family.make()))
    host = apply(host, dynamicvit.plan(host, keep=0.7))
    small = prune.prune(host, mlp=0.5, heads=0.5)
    assert len(edits_of(small)) == 2 + 2 * DEPTH
    before, after = anatomy.blocks_of(host), anatomy.blocks_of(small)
    assert list(before) == list(after)
    name = anatomy.anatomy_of(small).mlp[0]
    assert {submodule(block, name).out_features for block in after.values()} == {HIDDEN // 2}
    assert family.logits(small).shape == (2, CLASSES)
    skipped = prune.plan(host, skip=[f"{anatomy.anatomy_of(host).blocks}.0"])  # the name it had before it was wrapped
    assert {edit.spec["block"] for edit in skipped} == set(list(before)[1:])


def test_skip_blocks_and_parts() -> None:
    model = FAMILIES["ours"].make()
    assert {e.spec["block"] for e in prune.plan(model, skip=["blocks.0", "blocks.2"])} == {"blocks.1"}
    assert {e.kind for e in prune.plan(model, skip=["*.attn"])} == {"narrow_mlp"}
    assert [(e.kind, e.spec["block"]) for e in prune.plan(model, skip=["blocks.[01]", "*.mlp"])] == [
        ("narrow_heads", "blocks.2")
    ]


def test_frozen_parameters_stay_frozen() -> None:
    model = FAMILIES["ours"].make()
    model.blocks[0].requires_grad_(False)
    small = prune.prune(model, mlp=0.5, heads=0.5)
    assert not any(p.requires_grad for p in small.blocks[0].parameters())
    assert all(p.requires_grad for p in small.blocks[1].parameters())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"mlp": 1.0}, "mlp: 1.0 is not in [0, 1)"),
        ({"heads": -0.1}, "heads: -0.1 is not in [0, 1)"),
        ({"mlp": True}, "mlp: True is not in [0, 1)"),
        ({"round_to": 0}, "round_to: 0 is not"),
        ({"importance": "tailor"}, "did you mean 'taylor'"),
        ({"importance": "taylor"}, "needs batches="),
        ({"importance": "taylor", "batches": [], "task": PLAIN.task}, "batches: there are none"),
        ({"skip": ["block.0"]}, "did you mean 'blocks.0'"),
        ({"skip": "blocks.0"}, "write ['blocks.0']"),
    ],
)
def test_mistakes_are_named(options: dict[str, object], says: str) -> None:
    with pytest.raises(OptionError) as error:
        prune.plan(FAMILIES["ours"].make(), **options)
    assert says in str(error.value)


@pytest.mark.parametrize("keep", [[], [3, 1], [0, 0], [-1, 1], [0, HIDDEN], [0.0, 1.0], "01", [True], 3])
def test_indices_from_a_file_are_checked(keep: object) -> None:
    with pytest.raises(OptionError, match="rising whole numbers"):
        apply(FAMILIES["ours"].make(), [Edit("", "narrow_mlp", {"block": "blocks.0", "keep": keep})])


def test_models_it_cannot_prune() -> None:
    with pytest.raises(TypeError, match="no anatomy for Plain"):
        prune.plan(PLAIN.make())
    model = FAMILIES["ours"].make()
    model.blocks[1].mlp.fc1 = nn.Sequential(nn.Linear(32, 4), nn.Linear(4, HIDDEN))
    with pytest.raises(
        LookupError, match=r"blocks\.1\.mlp\.fc1 is a Sequential, not a plain linear layer: prune first"
    ):
        prune.plan(model)
    model = FAMILIES["ours"].make()
    model.blocks[2].mlp.norm = nn.LayerNorm(HIDDEN)
    with pytest.raises(LookupError, match=r"blocks\.2\.mlp\.norm works on all 128 channels"):
        prune.plan(model)
    assert prune.plan(model, skip=["*.mlp"])


def test_a_transformer_of_the_users_own() -> None:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
            self.q, self.k, self.v, self.o = (nn.Linear(8, 8, bias=False) for _ in range(4))
            self.h = 2

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q, k, v = (f(x).unflatten(-1, (self.h, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
            x = x + self.o(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
            return x + self.down(self.up(x).relu())

    class Mine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(Layer(), Layer())
            self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.norm(self.layers(x))[:, 0])

    anatomy.describe(
        Mine,
        anatomy.Anatomy(
            blocks="layers", norm="norm", head="head", run=lambda block, x, mask: block(x), mlp=("up", "down"),
            attention="", qkv=("q", "k", "v"), projection="o", num_heads="h",
        ),
    )  # fmt: skip
    model, x = Mine(), torch.randn(2, 3, 8)
    small = prune.prune(model, mlp=0.5, heads=0.5)
    assert (small.layers[0].up.out_features, small.layers[0].h, small.layers[0].o.in_features) == (8, 1, 4)
    assert small(x).shape == (2, 2)
