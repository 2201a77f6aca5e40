# SPDX-License-Identifier: Apache-2.0
"""Attention in groups: equal to the host's attention under a mask, and clear about what cannot be."""

from __future__ import annotations

import fill
import pytest
import torch
from families import DEPTH, DIM, FAMILIES
from torch import Tensor, nn

from featherweight.anatomy import OURS, Anatomy, anatomy_of, blocks_of, describe, prefix_of
from featherweight.errors import OptionError
from featherweight.methods import deit, dynamicvit, grouping
from featherweight.methods.grouping import Grouped
from featherweight.models.vit import VisionTransformer, ViTConfig
from featherweight.surgery import Edit, all_of, apply

TOKENS = 16


def together(n: int, groups: int, order: Tensor | None, prefix: int) -> Tensor:
    """(P + N, P + N) additive mask: 0 where a token may look, within its group and at the prefix."""
    place = torch.arange(n) if order is None else order.argsort()
    member = place // (n // groups)
    seen = member[:, None] == member[None, :]
    whole = torch.ones(prefix + n, prefix + n, dtype=torch.bool)
    whole[prefix:, prefix:] = seen
    return torch.where(whole, 0.0, -torch.inf)


@torch.no_grad()
@pytest.mark.parametrize("name", list(FAMILIES))
@pytest.mark.parametrize("permute", ["none", "all"])
def test_a_patch_sees_its_group_and_the_prefix(name: str, permute: str) -> None:
    """As in the host's whole block under a mask that says so."""
    family = FAMILIES[name]
    model = family.make()
    anatomy, prefix = anatomy_of(model), prefix_of(model)
    grouped = next(iter(all_of(grouping.group(model, groups=4, permute=permute), Grouped).values()))
    block = next(iter(blocks_of(model).values()))
    order = None if grouped.permutation is None else grouped.permutation.order
    assert (order is None) == (permute == "none")
    x = fill.normal("tokens", (2, prefix + TOKENS, DIM))
    wanted = anatomy.run(block, x, together(TOKENS, 4, order, prefix)[None, None])
    torch.testing.assert_close(anatomy.run(grouped, x, None)[:, prefix:], wanted[:, prefix:], atol=1e-5, rtol=0)


@torch.no_grad()
def test_prefix_tokens_are_the_mean_over_the_groups() -> None:
    """With a block that answers the mean of all tokens it is given, the prefix gets the mean of the means."""
    mean = nn.Module()
    mean.forward = lambda x: x.mean(1, keepdim=True).expand_as(x)  # type: ignore[method-assign]
    x = torch.randn(2, 2 + 8, 4)
    y = Grouped(mean, OURS, 8, 2, None)(x)
    halves = [torch.cat([x[:, :2], x[:, 2 + 4 * i : 6 + 4 * i]], dim=1).mean(1) for i in range(2)]
    torch.testing.assert_close(y[:, 0], (halves[0] + halves[1]) / 2)
    torch.testing.assert_close(y[:, 1], (halves[0] + halves[1]) / 2)
    torch.testing.assert_close(y[:, 2], halves[0])
    torch.testing.assert_close(y[:, 9], halves[1])


def test_which_blocks_permute() -> None:
    model = FAMILIES["ours"].make()
    kinds = {"alternate": [False, True, False], "all": [True] * 3, "none": [False] * 3}
    for permute, wanted in kinds.items():
        found = all_of(grouping.group(model, groups=2, permute=permute), Grouped).values()
        assert [m.permutation is not None for m in found] == wanted
    assert list(all_of(grouping.group(model, groups=2, at=[2]), Grouped)) == ["blocks.2"]
    assert [e.spec["seed"] for e in grouping.plan(model, groups=2, at=[1, 2], seed=5)] == [None, 7]


@torch.no_grad()
def test_permutations_are_fixed_in_evaluation_and_redrawn_in_training_if_wanted() -> None:
    family = FAMILIES["ours"]
    for redraw in (True, False):
        model = grouping.group(family.make(), groups=4, permute="all", redraw=redraw)
        again = grouping.group(family.make(), groups=4, permute="all", redraw=redraw)
        assert torch.equal(family.logits(model), family.logits(again))
        model.train()
        assert torch.equal(family.logits(model), family.logits(model)) != redraw
        assert torch.equal(family.logits(model.eval()), family.logits(again))


@torch.no_grad()
@pytest.mark.parametrize("name", list(FAMILIES))
def test_a_distillation_token_before_or_after(name: str) -> None:
    """Two prefix tokens, in whichever order they came to be."""
    family = FAMILIES[name]
    before = grouping.group(apply(family.make(), deit.plan(family.make())), groups=4)
    grouped = grouping.group(family.make(), groups=4)
    after = apply(grouped, deit.plan(grouped))
    after.load_state_dict(before.state_dict())
    assert torch.equal(family.logits(before.eval()), family.logits(after.eval()))


def test_it_keeps_every_token() -> None:
    model = FAMILIES["ours"].make()
    sparse = apply(model, dynamicvit.plan(model, keep=0.5))
    with pytest.raises(OptionError, match="changes the number of tokens"):
        grouping.plan(sparse, groups=4)
    grouped = grouping.group(model, groups=4)
    with pytest.raises(OptionError, match="attention in groups cannot follow"):
        apply(grouped, dynamicvit.plan(grouped, keep=0.5))
    with pytest.raises(ValueError, match="9 tokens given to attention in groups of 16 patches"):
        grouped.blocks[0](torch.zeros(1, 9, 32))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"groups": 3}, "groups: 3 does not divide the 16 patches"),
        ({"groups": 0}, "groups: 0 does not divide"),
        ({"groups": 32}, "groups: 32 does not divide"),
        ({"at": [DEPTH]}, f"at: no block {DEPTH}: the model has {DEPTH}"),
        ({"at": [1, 1]}, r"at: \[1, 1\] names a block twice"),
        ({"permute": "some"}, "permute: 'some' is not one of alternate, all, none"),
        ({"seed": -1}, "seed: -1 is not a whole number"),
        ({"tokens": 0}, "tokens: 0 is not a number of patches"),
        ({"tokens": 10**12}, "tokens: 1000000000000 is not a number of patches"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, object], says: str) -> None:
    with pytest.raises(OptionError, match=says):
        grouping.plan(FAMILIES["ours"].make(), **options)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({"block": "head"}, "no block 'head'"),
        ({"tokens": 10**12}, "tokens: 1000000000000"),
        ({"seed": "1"}, "seed: '1' is not"),
        ({"groups": 3}, "groups: 3 does not divide"),
    ],
)
def test_what_a_file_asks_for_is_checked(spec: dict[str, object], says: str) -> None:
    whole = {"block": "blocks.0", "tokens": 16, "groups": 4, "seed": 1, "redraw": True, **spec}
    with pytest.raises(OptionError, match=says):
        apply(FAMILIES["ours"].make(), [Edit("", "group_attention", whole)])


def test_twice_is_refused() -> None:
    model = grouping.group(FAMILIES["ours"].make(), groups=4)
    with pytest.raises(OptionError, match="in groups already"):
        grouping.group(model, groups=2)


def test_a_family_that_cannot_tell_its_patches_is_told() -> None:
    class Mine(VisionTransformer):
        pass

    describe(Mine, Anatomy("blocks", "norm", "head", run=lambda block, x, mask: block(x)))
    model = Mine(ViTConfig(image_size=(16, 24), patch_size=8, embed_dim=16, depth=1, num_heads=2, num_classes=3))
    with pytest.raises(OptionError, match="tokens: say how many patches Mine has"):
        grouping.plan(model, groups=2)
    assert len(grouping.plan(model, groups=2, tokens=6)) == 1
