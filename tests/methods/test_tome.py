# SPDX-License-Identifier: Apache-2.0
"""Token merging: the authors' numbers, and what must hold on every family."""

from __future__ import annotations

import dataclasses
from typing import Any

import fill
import pytest
import tiny_runs
import torch
from families import CONFIG, DEPTH, FAMILIES, Family, Images
from golden_files import agrees, filled, golden
from torch import Tensor, nn

from featherweight import anatomy as anatomies
from featherweight import artifact, runs, steps_tokens
from featherweight.anatomy import Anatomy, anatomy_of, blocks_of, mean_key
from featherweight.errors import OptionError
from featherweight.methods import deit, dynamicvit, tome
from featherweight.methods.tome import MergingBlocks, recording, schedule
from featherweight.models import zoo
from featherweight.models.vit import VisionTransformer, ViTConfig
from featherweight.surgery import Edit, apply, edits_of, find, submodule
from featherweight.train import fit

FUNCTIONS, WHOLE = golden("functions_tome"), golden("tome_deit_small")
KEYS, TOKENS = fill.normal("tome:metric", (2, 11, 8)), fill.normal("tome:x", (2, 11, 4))


def merging(family: Family, **options: Any) -> nn.Module:
    model = family.make()
    return apply(model, tome.plan(model, **options))


# The authors' numbers -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("r", "wanted"),
    [(8, "8"), (13, "13"), (16, "16"), ((13, -1.0), None), ((13, 0.0), None), ((8, 1.0), None), ((16, -0.5), None),
     ([1, 2, 3], "[1,2,3]")],
)  # fmt: skip
def test_the_schedule(r: Any, wanted: str | None) -> None:
    numbers = FUNCTIONS["parse_r"][wanted or str(r)]
    assert list(schedule(r, 12)) == numbers
    if isinstance(r, tuple):
        assert list(schedule(r[0], 12, r[1])) == list(schedule(list(r), 12)) == numbers
    assert schedule(r, 1) in ((numbers[0],), (1,)) if not isinstance(r, list) else True


@pytest.mark.parametrize("case", list(FUNCTIONS["cases"]))
def test_matching_and_merging(case: str) -> None:
    wanted, options = FUNCTIONS["cases"][case], dict(part.split("=") for part in case.split("|"))
    prefix = (options["class_token"] == "True") + (options["distill_token"] == "True")
    found = tome.match(KEYS, min(int(options["r"]), (11 - prefix) // 2), prefix=prefix)
    merged, sizes = tome.merge(TOKENS, None, found)
    torch.testing.assert_close(merged.tolist(), wanted["merged_weighted"], atol=1e-6, rtol=0)
    torch.testing.assert_close(merged.tolist(), wanted["merged_mean"], atol=1e-6, rtol=0)  # all of size 1
    assert sizes[..., 0].tolist() == wanted["sizes"]
    owner = tome.moved(found)
    sources = nn.functional.one_hot(owner, merged.shape[1]).transpose(1, 2)
    assert sources.tolist() == wanted["source_matrix"]
    if prefix < 2:  # with two, the official function gives the distillation token another's values
        agrees(tome.unmerge(merged, owner), wanted["unmerged"], atol=1e-6)


@pytest.mark.parametrize("r", [13, pytest.param(8, marks=pytest.mark.slow)])
@torch.no_grad()
def test_the_whole_of_deit_small(r: int) -> None:
    wanted = WHOLE["outputs"]["by_r"][str(r)]
    host = filled(zoo.create("deit_small"))
    image = fill.image(WHOLE["input"]["image_name"], WHOLE["input"]["shape"])
    assert sum(parameter.numel() for parameter in host.parameters()) == WHOLE["params"]
    model = apply(host, tome.plan(host, r=r))
    with recording(model) as blocks:
        agrees(model(image), wanted["logits"], atol=2e-5)
        sizes = [nn.functional.pad(size, (1, 0), value=1.0) for size in blocks.aside.sizes]  # the class token's
    assert list(blocks.r) == wanted["r_per_layer"]
    assert [size.shape[1] for size in sizes] == wanted["tokens_after_each_block"]
    agrees(sizes[-1][..., None], wanted["size_digest"], atol=0)
    largest = sorted(sizes[-1][0].tolist(), reverse=True)[:16]
    assert largest == wanted["final_token_sizes_sorted_sample0"]
    alike = apply(host, tome.plan(host, r=r, proportional=False))
    agrees(alike(image), wanted["logits_without_proportional_attention"], atol=2e-5)


# On every family ------------------------------------------------------------------------------------------------------
@torch.no_grad()
def test_halves_are_the_block(family: Family) -> None:
    model = family.make()
    record, x = anatomy_of(model), torch.randn(2, 5, 32)
    mask = torch.randn(2, 1, 1, 5)
    for block in blocks_of(model).values():
        for bias in (None, mask):
            half = record.halves.attend(block, x, submodule(block, record.halves.norm)(x), bias)  # type: ignore[union-attr]
            assert torch.equal(record.halves.mlp(block, half), record.run(block, x, bias))  # type: ignore[union-attr]


@torch.no_grad()
def test_the_mean_key_is_the_mean_of_the_keys(family: Family) -> None:
    model = family.make()
    record, block = anatomy_of(model), next(iter(blocks_of(model).values()))
    y = torch.randn(2, 5, 32)
    of_keys = submodule(block, record.qkv[-1] if len(record.qkv) == 1 else record.qkv[1])
    keys = of_keys(y).chunk(3, dim=-1)[1] if len(record.qkv) == 1 else of_keys(y)
    wanted = keys.reshape(2, 5, 4, 8).mean(2)
    torch.testing.assert_close(mean_key(block, record, y), wanted, atol=1e-6, rtol=1e-5)
    of_keys.__class__ = type("Other", (nn.Linear,), {})  # a layer of which nobody knows what it does to its weight
    torch.testing.assert_close(mean_key(block, record, y), wanted, atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_every_patch_is_held_once(family: Family) -> None:
    model = merging(family, r=[3, 0, 99])
    lengths: list[int] = []
    for block in blocks_of(model).values():
        submodule(block, anatomy_of(model).mlp[0]).register_forward_pre_hook(lambda _, a: lengths.append(a[0].shape[1]))
    with recording(model) as blocks:
        family.logits(model)
        owners, sizes = blocks.aside.owners, blocks.aside.sizes
    assert lengths == [14, 14, 8]  # 17 - 3, - 0, - half of 13
    for owner, size in zip(owners, sizes, strict=True):
        counts = torch.stack([row.bincount(minlength=size.shape[1]) for row in owner])
        assert torch.equal(counts.float(), size)
    assert "owners" not in blocks.aside  # forgotten with the recording
    assert not blocks.recording


@torch.no_grad()
def test_a_merged_token_is_the_mean_of_what_it_holds() -> None:
    x, keys = fill.normal("x", (2, 20, 6)), fill.normal("keys", (2, 20, 4))
    sizes, owner, tokens = None, torch.arange(20).expand(2, -1), x
    for r in (5, 4, 3):
        found = tome.match(keys, r, prefix=1)
        owner = tome.moved(found).gather(1, owner)
        tokens, sizes = tome.merge(tokens, sizes, found)
        keys = tokens[..., :4]
    holds = nn.functional.one_hot(owner, tokens.shape[1]).float().transpose(1, 2)  # (B, n, 20)
    torch.testing.assert_close(tokens, holds @ x / holds.sum(-1, keepdim=True))
    torch.testing.assert_close(tome.unmerge(tokens, owner)[:, 0], x[:, 0])  # the class token is nobody else's
    assert torch.equal(sizes, holds.sum(-1, keepdim=True))


@torch.no_grad()
def test_proportional_attention_sees_a_token_as_often_as_it_holds_patches(family: Family) -> None:
    model = family.make()
    run, block = anatomy_of(model).run, next(iter(blocks_of(model).values()))
    x, sizes = torch.randn(2, 4, 32), torch.tensor([1, 3, 1, 2])
    merged = run(block, x, sizes.float().log().expand(2, 1, 1, -1))
    copies = run(block, x.repeat_interleave(sizes, dim=1), None)
    torch.testing.assert_close(merged, copies[:, [0, 1, 4, 5]], atol=1e-5, rtol=1e-4)


def _theirs(**options: Any) -> nn.Module:
    timm = pytest.importorskip("timm")
    sizes = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": 5}
    return timm.models.vision_transformer.VisionTransformer(**sizes, **options).eval()


HOSTS = {
    "distilled": (lambda: VisionTransformer(ViTConfig(**{**CONFIG, "distilled": True})), 2),  # type: ignore[arg-type]
    "token added": (lambda: apply(FAMILIES["ours"].make(), [Edit("", "distillation_token")]), 2),
    "layer scale and registers": (lambda: _theirs(init_values=0.5, reg_tokens=4), 5),
    "norms of queries and keys": (lambda: _theirs(qk_norm=True), 1),
    "no class token": (lambda: _theirs(class_token=False, global_pool="avg"), 0),
    "timm's distilled": (lambda: pytest.importorskip("timm").models.deit.VisionTransformerDistilled(
        img_size=16, patch_size=4, embed_dim=32, depth=3, num_heads=4, num_classes=5), 2),
}  # fmt: skip


@pytest.mark.parametrize("name", list(HOSTS))
@torch.no_grad()
def test_prefix_tokens_stay_where_they_are(name: str) -> None:
    make, prefix = HOSTS[name]
    torch.manual_seed(0)
    model = make().eval()
    new = apply(model, tome.plan(model, r=[5, 4]))
    seen: list[Tensor] = []
    blocks = list(blocks_of(new).values())
    path = anatomy_of(new).halves.norm  # type: ignore[union-attr]
    submodule(blocks[1], path).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with recording(new) as found:
        images = fill.normal("images", (2, 3, 16, 16))
        answer, sizes = new(images), found.aside.sizes
        owners = found.aside.owners
    assert found.prefix == prefix
    assert [size.shape[1] for size in sizes[:2]] == [11, 7]
    assert all(int(owner.min()) == 0 for owner in owners)
    assert seen[0].shape == (2, prefix + 11, 32)
    assert answer.isfinite().all() and not torch.equal(answer, model(images))
    assert torch.equal(apply(model, tome.plan(model, r=0))(images), model(images))


def test_gradients_reach_every_weight(family: Family) -> None:
    reached = []
    for model in (family.make().train(), merging(family, r=4).train()):
        family.task.forward(model, {"image": fill.normal("images", (2, 3, 16, 16))}).square().mean().backward()
        found = {name.replace("blocks.0.blocks", "blocks"): p.grad for name, p in model.named_parameters()}
        found = {name.replace("layers.0.blocks", "layers"): grad for name, grad in found.items() if grad is not None}
        assert all(bool(grad.isfinite().all()) for grad in found.values())
        reached.append({name for name, grad in found.items() if float(grad.norm()) > 0})
    assert len(reached[0]) > 40
    assert reached[0] == reached[1]


def test_it_learns_while_it_merges(family: Family) -> None:
    rows: list[dict[str, Any]] = []
    new = fit(merging(family, r=4), Images(steps=1), family.task, epochs=12, log=rows.append)
    losses = [row["terms"]["task"] for row in rows if "terms" in row]
    assert losses[-1] < 0.7 * losses[0]
    assert [edit.kind for edit in edits_of(new)] == ["merge_tokens"]


# Another r ------------------------------------------------------------------------------------------------------------
@torch.no_grad()
def test_r_can_be_changed(family: Family, tmp_path: Any) -> None:
    plain, model = family.make(), merging(family, r=3)
    before = family.logits(model)
    other = tome.with_r(model, 5, inflection=0.5)
    assert edits_of(other)[0].spec["r"] == [2, 5, 8] == list(find(other, MergingBlocks).r)
    assert torch.equal(family.logits(other), family.logits(apply(plain, tome.plan(plain, r=[2, 5, 8]))))
    assert torch.equal(family.logits(model), before)  # the one given is untouched
    loaded = artifact.load(artifact.save(other, tmp_path), base=family.base())
    assert torch.equal(family.logits(loaded), family.logits(other))
    find(model, MergingBlocks).r = (0,) * DEPTH  # at run time
    assert torch.equal(family.logits(model), family.logits(plain))


# Mistakes -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"r": [1.5, 0.5]}, "r: 1.5 is not a number of tokens, or a list"),
        ({"r": -1}, "r: -1 is not a number of tokens"),
        ({"r": 1.5}, "r: 1.5 is not a number of tokens, or a list"),
        ({"r": [1, True]}, "r: True is not a number of tokens"),
        ({"r": [1] * 4}, "r: names 4 blocks; the model has 3"),
        ({"r": 8, "inflection": 2.0}, "inflection: 2.0 is not in -1..1"),
        ({"r": [1, 2], "inflection": 0.5}, "inflection: goes with one number r"),
    ],
)
def test_mistakes_are_named(options: dict[str, Any], says: str) -> None:
    with pytest.raises(OptionError) as error:
        tome.plan(FAMILIES["ours"].make(), **options)
    assert says in str(error.value)


def test_it_merges_once_and_comes_last(family: Family) -> None:
    model = merging(family, r=2)
    with pytest.raises(OptionError, match=r"merges tokens already; another r: tome.with_r"):
        apply(model, tome.plan(model, r=3))
    with pytest.raises(OptionError, match="treats each block by its number, so it comes last"):
        apply(model, dynamicvit.plan(model))
    with pytest.raises(OptionError):
        apply(model, deit.plan(model))
    sparse = apply(family.make(), dynamicvit.plan(family.make()))
    with pytest.raises(OptionError, match="treats each block by its number, so it comes last"):
        apply(sparse, tome.plan(sparse))


def test_a_block_that_is_not_two_halves_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    vision_transformer = pytest.importorskip("timm.models.vision_transformer")
    post = _theirs(block_fn=vision_transformer.ResPostBlock, init_values=0.1)
    with pytest.raises(LookupError, match=r"ResPostBlock\) is not an attention and then an MLP"):
        apply(post, tome.plan(post, r=2))
    monkeypatch.setattr(anatomies, "_BY_CLASS", {})
    own = FAMILIES["ours"].make()
    bare = Anatomy(blocks="blocks", norm="norm", head="head", run=lambda block, x, mask: block(x))
    anatomies.describe(type(own), bare)
    with pytest.raises(LookupError, match="has no halves"):
        apply(own, tome.plan(own, r=2))
    with pytest.raises(LookupError, match="has no halves"):
        mean_key(own.blocks[0], bare, torch.zeros(1, 2, 32))


# In a recipe ----------------------------------------------------------------------------------------------------------
def test_the_step_merges_and_trains_if_asked(tmp_path: Any) -> None:
    """Without `epochs` the weights stay; its file answers like the model on every picture, near ties or not."""
    steps = [
        "baseline",
        {"merge": {"r": 6, "epochs": 1, "images": 32}},
        {"export": {"formats": ["onnx"], "images": 16}},
    ]
    work = runs.run(tiny_runs.plan(steps=steps), project=tmp_path)
    assert [stage.title for stage in work.stages] == ["baseline", "merge (r 6)"]
    before, after = (stage.model for stage in work.stages)
    assert find(after, MergingBlocks).r == (6, 6)
    assert not torch.equal(before.head.weight, after.head.weight)
    untrained = steps_tokens.merge(dataclasses.replace(work, model=before, step="09-merge"), r=[4])
    assert find(untrained.model, MergingBlocks).r == (4, 0)  # type: ignore[arg-type]
    assert torch.equal(before.head.weight, untrained.model.head.weight)  # type: ignore[union-attr]
    with pytest.raises(OptionError, match="epochs: merge is not trained without"):
        steps_tokens.merge(work, r=4, images=8)
