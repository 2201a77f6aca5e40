# SPDX-License-Identifier: Apache-2.0
"""Attention as the hosts themselves compute it, and rollout against its definition."""

from __future__ import annotations

import fill
import pytest
import torch
from families import FAMILIES, IMAGES, Family
from torch import Tensor
from torch.nn import functional as F

from featherweight.anatomy import anatomy_of, blocks_of, prefix_of
from featherweight.errors import OptionError
from featherweight.methods import deit, dynamicvit, grouping, recursion, tome
from featherweight.methods.attention import attention_of, class_attention, rollout
from featherweight.surgery import apply


@torch.no_grad()
def test_the_probabilities_are_the_hosts(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    model = family.make()
    inputs: list[Tensor] = []
    for block in blocks_of(model).values():
        block.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    used: list[Tensor] = []
    attend = F.scaled_dot_product_attention

    def watched(q: Tensor, k: Tensor, v: Tensor, *args: object, **options: object) -> Tensor:
        used.append((q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1))
        return attend(q, k, v, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    family.logits(model)
    for block, x, wanted in zip(blocks_of(model).values(), inputs, used, strict=True):
        found = attention_of(block, anatomy_of(model), x)
        torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)
        patches = class_attention(block, anatomy_of(model), x, prefix_of(model))
        torch.testing.assert_close(patches, wanted.mean(1)[:, 0, prefix_of(model) :], atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_rollout_is_the_product_of_mean_attentions(family: Family) -> None:
    model = family.make()
    inputs: list[Tensor] = []
    handles = [
        block.register_forward_pre_hook(lambda _, args: inputs.append(args[0])) for block in blocks_of(model).values()
    ]
    family.logits(model)
    for handle in handles:
        handle.remove()
    product = torch.eye(inputs[0].shape[1])
    for block, x in zip(blocks_of(model).values(), inputs, strict=True):
        product = (attention_of(block, anatomy_of(model), x).mean(1) / 2 + torch.eye(x.shape[1]) / 2) @ product
    wanted = product[:, 0, prefix_of(model) :]
    found = rollout(model, IMAGES)
    torch.testing.assert_close(found, wanted / wanted.sum(-1, keepdim=True))
    torch.testing.assert_close(found.sum(-1), torch.ones(2))
    assert not model.training and not any(m._forward_pre_hooks for m in model.modules())


def test_rollout_of_a_model_that_drops_tokens_covers_the_whole_picture(family: Family) -> None:
    host = family.make()
    all_of_them = apply(host, dynamicvit.plan(host, keep={1: 1.0}))
    torch.testing.assert_close(rollout(all_of_them, IMAGES), rollout(host, IMAGES))
    sparse = apply(host, dynamicvit.plan(host, keep={1: 0.5, 2: 0.25})).train()
    found = rollout(sparse, IMAGES)
    assert found.shape == (2, 16) and bool((found > 0).all())  # a dropped patch was seen before
    torch.testing.assert_close(found.sum(-1), torch.ones(2))
    assert sparse.training
    early = apply(host, dynamicvit.plan(host, keep={0: 0.25}))
    with dynamicvit.recording(early.eval()) as record:
        family.logits(early)
        mask = torch.zeros(2, 16).scatter_(1, record.aside.places[0], 1.0)
    assert torch.equal(rollout(early, IMAGES) > 0, mask > 0)  # dropped before anything could see it


def test_rollout_with_a_distillation_token() -> None:
    family = FAMILIES["ours"]
    host = family.make()
    assert rollout(apply(host, deit.plan(host)), IMAGES).shape == (2, 16)


@torch.no_grad()
def test_rollout_of_blocks_that_run_several_times(family: Family) -> None:
    model, shared = family.make(), recursion.share(family.make(), loops=3)
    for block in list(blocks_of(model).values())[1:]:
        block.load_state_dict(next(iter(blocks_of(model).values())).state_dict())
    torch.testing.assert_close(rollout(shared, IMAGES), rollout(model, IMAGES))
    sparse = recursion.share(family.make(), loops=2, unique=3)
    sparse = apply(sparse, dynamicvit.plan(sparse, keep={1: 0.5}))
    torch.testing.assert_close(rollout(sparse, IMAGES).sum(-1), torch.ones(2))


def test_what_cannot_be_rolled_out_says_so() -> None:
    family = FAMILIES["ours"]
    model = family.make()
    with pytest.raises(OptionError, match="residual"):
        rollout(model, IMAGES, residual=1.0)
    with pytest.raises(TypeError, match="no anatomy"):
        rollout(torch.nn.Linear(3, 3), fill.normal("x", (2, 3)))
    merged = apply(model, tome.plan(model, r=2))
    with pytest.raises(OptionError, match="merges"):
        rollout(merged, IMAGES)
    with pytest.raises(OptionError, match="attends in groups"):
        rollout(grouping.group(model, groups=4), IMAGES)
