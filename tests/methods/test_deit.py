# SPDX-License-Identifier: Apache-2.0
"""The distillation token: losses of DeiT's own code, and a host that gains a token without being rewritten."""

from __future__ import annotations

import fill
import pytest
import torch
from families import CONFIG, DEPTH, DIM, FAMILIES, IMAGES, Family, Images
from golden_files import golden
from torch import nn

from featherweight.anatomy import anatomy_of, blocks_of, prefix_of
from featherweight.errors import OptionError
from featherweight.layers import TwoHeads
from featherweight.methods import deit
from featherweight.methods.deit import DistillationToken, TokenDistill
from featherweight.methods.distill import hard, kl, kl_per_class
from featherweight.models import zoo
from featherweight.surgery import apply, find, submodule
from featherweight.tasks.classification import Classification
from featherweight.train import Pass, fit

LOSSES = golden("functions_deit")["distillation_loss"]


@pytest.mark.parametrize("case", list(LOSSES))
def test_losses_are_those_of_deit(case: str) -> None:
    base, kind, alpha, tau = (part.rpartition("=")[2] for part in case.split("|"))
    logits = (2 * fill.normal("deit_loss:cls", (4, 10))).requires_grad_()
    dist_logits = (2 * fill.normal("deit_loss:dist", (4, 10))).requires_grad_()
    batch = {"label": torch.tensor([1, 3, 5, 7])}
    if base == "soft_target":
        batch["soft_label"] = (2 * fill.normal("deit_loss:soft", (4, 10))).softmax(-1)
    task = Classification(10, label_smoothing=0.1 if base == "label_smoothing_0.1" else 0.0)
    terms = task.loss(logits, batch)
    if kind != "none":
        heads = TwoHeads()
        heads.aside.dist_logits = dist_logits
        answer = 3 * fill.normal("deit_loss:teacher", (4, 10))
        run = Pass(heads, batch, logits, lambda model: answer, 0.0, ("task",))
        distance = {"soft": kl_per_class, "hard": hard}[kind]
        method = TokenDistill(nn.Identity(), alpha=float(alpha), temperature=float(tau), distance=distance)
        terms = method.loss(terms, run)
    loss = torch.stack(list(terms.values())).sum()
    loss.backward()
    wanted = LOSSES[case]
    assert float(loss.detach()) == pytest.approx(wanted["loss"], rel=1e-5)
    assert float(logits.grad.norm()) == pytest.approx(wanted["grad_cls_l2"], rel=1e-5)  # type: ignore[union-attr]
    found = dist_logits.grad.norm() if dist_logits.grad is not None else 0.0
    assert float(found) == pytest.approx(wanted["grad_dist_l2"], rel=1e-5)


def test_soft_distillation_is_the_papers_by_name_and_the_codes_by_another() -> None:
    dist_logits, answer = 2 * fill.normal("deit_loss:dist", (4, 10)), 3 * fill.normal("deit_loss:teacher", (4, 10))
    for tau, wanted in (("1.0", "tau=1.0"), ("3.0", "tau=3.0")):
        found = kl(dist_logits, answer, float(tau))
        assert float(found) == pytest.approx(golden("functions_deit")["kl_batchmean_for_comparison"][wanted], rel=1e-5)


def test_a_host_gains_one_token_and_one_head(family: Family) -> None:
    model = family.make()
    new = apply(model, deit.plan(model))
    assert (prefix_of(model), prefix_of(new)) == (1, 2)
    assert len(blocks_of(new)) == DEPTH
    added = sum(p.numel() for p in new.parameters()) - sum(p.numel() for p in model.parameters())
    assert added == DIM + sum(p.numel() for p in submodule(model, anatomy_of(model).head).parameters())
    lengths = []
    next(iter(blocks_of(new).values())).register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[1]))
    family.logits(new)
    assert lengths == [1 + 1 + 16]


def test_evaluation_is_the_mean_of_two_heads_and_training_the_class_tokens(family: Family) -> None:
    model = family.make()
    new = apply(model, deit.plan(model))
    heads, seen = submodule(new, anatomy_of(new).head), {}
    with torch.no_grad():
        heads.head_dist.weight.add_(fill.normal("other", heads.head_dist.weight.shape))
    for name in ("head", "head_dist"):
        heads.get_submodule(name).register_forward_hook(lambda _m, _a, output, name=name: seen.update({name: output}))
    aux = torch.zeros(1)
    if path := anatomy_of(new).aux_head:
        submodule(new, path).register_forward_hook(lambda _m, _a, output: seen.update(aux=output))
    answer = family.logits(new)
    if path:
        assert seen["aux"].shape == (2, 16, 5)  # of the patches, not of the distillation token
        aux = 0.5 * seen["aux"].amax(1)
    assert not torch.allclose(seen["head"], seen["head_dist"])
    torch.testing.assert_close(answer, (seen["head"] + seen["head_dist"]) / 2 + aux)
    answer = family.logits(new.train())
    assert torch.equal(answer, seen["head"])
    assert torch.equal(find(new, TwoHeads).aside.dist_logits, seen["head_dist"])


def test_the_two_heads_read_two_tokens(family: Family) -> None:
    new = apply(family.make(), deit.plan(family.make()))
    seen: dict[str, torch.Tensor] = {}
    heads = submodule(new, anatomy_of(new).head)
    submodule(new, f"{anatomy_of(new).norm}.norm").register_forward_hook(lambda _m, _a, x: seen.update(norm=x))
    for name in ("head", "head_dist"):
        heads.get_submodule(name).register_forward_pre_hook(lambda _m, args, name=name: seen.update({name: args[0]}))
    family.logits(new)
    assert torch.equal(seen["head"], seen["norm"][:, 0])
    assert torch.equal(seen["head_dist"], seen["norm"][:, 1])


@torch.no_grad()
def test_a_token_put_in_is_the_token_built_in() -> None:
    """Our ViT with a distillation token of its own, and the plain one with the edit, given the same weights."""
    built = zoo.build({"name": "vit", "config": {**CONFIG, "distilled": True}}).eval()
    built.load_state_dict(fill.fill_(built.state_dict()))
    plain = FAMILIES["ours"].build()
    made = apply(plain, deit.plan(plain)).eval()
    state = {}
    for key, tensor in built.state_dict().items():
        if key == "dist_token":
            first = built.cls_token + built.pos_embed[:, :1]
            state["blocks.0.token"] = tensor + built.pos_embed[:, 1:2] - first
        elif key == "pos_embed":
            state[key] = torch.cat([tensor[:, :1], tensor[:, 2:]], dim=1)
        elif key.startswith(("blocks.", "norm.", "head.")):
            place, rest = key.split(".", 1)
            state[{"blocks": "blocks.0.blocks.", "norm": "norm.norm.", "head": "head.head."}[place] + rest] = tensor
        else:
            state[key.replace("head_dist.", "head.head_dist.")] = tensor
    made.load_state_dict(state)
    torch.testing.assert_close(made(IMAGES), built(IMAGES), atol=1e-6, rtol=0)
    assert deit.plan(built) == []


def test_the_new_head_begins_as_a_copy(family: Family) -> None:
    model = family.make()
    heads = submodule(apply(model, deit.plan(model)), anatomy_of(model).head)
    assert torch.equal(heads.head_dist.weight, heads.head.weight)
    assert heads.head_dist.weight is not heads.head.weight


def test_the_teacher_teaches_the_token_and_the_labels_the_class(family: Family) -> None:
    model = TokenDistill(family.make("teacher")).prepare(family.make()).train()
    batch = next(Images().epoch(0))
    family.task.forward(model, batch)
    torch.stack([x.sum() for x in [find(model, TwoHeads).aside.dist_logits]]).sum().backward()
    heads = submodule(model, anatomy_of(model).head)
    assert heads.head.weight.grad is None
    assert heads.head_dist.weight.grad is not None
    assert find(model, DistillationToken).token.grad is not None


def test_training_brings_the_token_nearer_to_the_teacher(family: Family) -> None:
    teacher, images = family.make("teacher"), Images(steps=1)
    rows: list[dict[str, object]] = []
    fit(family.make(), images, family.task, methods=[TokenDistill(teacher)], epochs=15, log=rows.append)
    terms = [row["terms"]["distill"] for row in rows if row["event"] == "step"]  # type: ignore[index]
    assert terms[-1] < 0.8 * terms[0]


def test_what_it_cannot_be_put_into() -> None:
    with pytest.raises(TypeError, match="no anatomy for Linear"):
        apply(nn.Linear(2, 2), [deit.Edit("", "distillation_token")])
    model = FAMILIES["ours"].make()
    model.head = nn.Sequential(nn.Linear(DIM, 5))
    with pytest.raises(LookupError, match="is a Sequential, not a linear layer to copy"):
        apply(model, deit.plan(model))
    distilled = zoo.build({"name": "vit", "config": {**CONFIG, "distilled": True}})
    with pytest.raises(OptionError, match="has a distillation token already"):
        apply(distilled, [deit.Edit("", "distillation_token")])
