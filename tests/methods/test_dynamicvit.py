# SPDX-License-Identifier: Apache-2.0
"""DynamicViT against numbers of its own code, and its promises on every family."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import fill
import pytest
import torch
from families import CONFIG, FAMILIES, IMAGES, Family, Images
from golden_files import agrees, golden
from torch import Tensor, nn
from torch.nn import functional as F

from featherweight import optim
from featherweight.anatomy import anatomy_of, blocks_of
from featherweight.errors import OptionError
from featherweight.methods import deit, dynamicvit
from featherweight.methods.distill import kl
from featherweight.methods.dynamicvit import (
    DynamicViT,
    Predictor,
    SparseBlocks,
    attention_mask,
    recording,
    stages,
    token_distance,
    token_kl,
)
from featherweight.methods.dynamicvit_loss import ratio_distance
from featherweight.models import zoo
from featherweight.models.vit import Attention, ViTConfig
from featherweight.surgery import apply, find, submodule
from featherweight.train import Pass, fit

FUNCTIONS = golden("functions_dynamicvit")
WHOLE = golden("dyvit_deit_s")
HARD = torch.tensor(FUNCTIONS["softmax_with_policy"]["inputs"]["hard_policy"])[..., None]  # (2, 6, 1)


# Functions against the official code ----------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["hard", "soft", "ones"])
def test_the_additive_mask_is_the_official_masked_softmax(kind: str) -> None:
    """Equal but for the official 1e-6 / N in the numerator and 1e-6 in the denominator, which this test puts in.

    They weigh most (here 0.03) where a dropped key has by far the largest score: exponents are counted from it.
    """
    scores = 3 * fill.normal("swp:attn", (2, 3, 6, 6))
    policy = {"hard": HARD, "soft": fill.normal("swp:policy", (2, 6, 1)).sigmoid(), "ones": torch.ones(2, 6, 1)}[kind]
    mask = attention_mask(policy, 0)
    total = (scores + mask - scores.amax(-1, keepdim=True)).exp().sum(-1, keepdim=True)
    found = ((scores + mask).softmax(-1) * total + 1e-6 / 6) / (total + 1e-6)
    agrees(found, FUNCTIONS["softmax_with_policy"][kind]["out"], atol=5e-7)
    if kind != "soft":  # with the class token, which always stays, counted as prefix
        assert torch.equal(attention_mask(policy[:, 1:], 1), attention_mask(policy, 0))


def test_the_gradient_reaches_the_scores_and_the_decisions() -> None:
    scores = (3 * fill.normal("swp:attn", (2, 3, 6, 6))).requires_grad_()
    policy = fill.normal("swp:policy", (2, 6, 1)).sigmoid().requires_grad_()
    out = (scores + attention_mask(policy, 0)).softmax(-1)
    (out * fill.normal("swp:grad", out.shape)).sum().backward()
    wanted = FUNCTIONS["softmax_with_policy"]["soft"]
    agrees(scores.grad, wanted["grad_attn"], atol=1e-5)  # type: ignore[arg-type]
    torch.testing.assert_close(policy.grad[..., 0].tolist(), wanted["grad_policy"], atol=2e-4, rtol=1e-4)  # type: ignore[index]


@pytest.mark.parametrize("kind", ["policy_none", "policy_hard"])
def test_masked_attention(kind: str) -> None:
    attention = Attention(ViTConfig(embed_dim=12, num_heads=3))
    attention.load_state_dict(fill.fill_(attention.state_dict()))
    mask = attention_mask(HARD[:, 1:], 1) if kind == "policy_hard" else None
    agrees(attention(fill.normal("swp:x", (2, 6, 12)), mask), FUNCTIONS["attention"][kind], atol=5e-6)


def test_the_predictor() -> None:
    wanted = FUNCTIONS["predictor"]
    predictor = Predictor(16)
    assert [[k, list(t.shape), "float32"] for k, t in predictor.state_dict().items()] == wanted["state_dict"]
    predictor.load_state_dict(fill.fill_(predictor.state_dict()))
    x = fill.normal("pred:x", (2, 5, 16))
    found = predictor(x, torch.tensor(wanted["policy"])[..., None])
    torch.testing.assert_close(found.tolist(), wanted["log_probs"], atol=1e-6, rtol=0)
    torch.testing.assert_close(predictor(x), predictor(x, torch.ones(2, 5, 1)))
    assert predictor(x, torch.zeros(2, 5, 1)).isfinite().all()  # where the official code gives NaN


def test_the_losses() -> None:
    wanted, inputs = FUNCTIONS["losses"]["deit(mse_token)"], FUNCTIONS["losses"]["inputs"]
    logits, answer = 2 * fill.normal("dl:pred", (3, 10)), 2 * fill.normal("dl:teacher", (3, 10))
    task = F.cross_entropy(logits, torch.tensor(inputs["labels"]))
    assert float(task) == pytest.approx(wanted["cls"], rel=1e-6)
    anatomy = anatomy_of(FAMILIES["ours"].make())
    sparse = SparseBlocks(nn.ModuleList(), anatomy, list(enumerate(inputs["keep_ratio"])), 8, 1)
    decisions = [(fill.normal(f"dl:dec{k}", (3, 7)) > (-0.5, 0, 0.4)[k]).float()[..., None] for k in range(3)]
    sparse.aside.decisions = decisions
    run = Pass(sparse, {}, logits, lambda model: answer, 0.0, ("task",))
    terms = DynamicViT().loss({"task": task}, run)
    assert float(terms["ratio"]) == pytest.approx(2 * wanted["ratio_sum_over_stages"] / 3, rel=1e-6)
    assert float(kl(logits, answer)) == pytest.approx(wanted["cls_kl"], rel=1e-6)
    tokens = token_distance(
        fill.normal("dl:tok", (3, 7, 5)), fill.normal("dl:tok_t", (3, 7, 5)), fill.normal("dl:mask", (3, 7, 1)) > 0
    )
    assert float(tokens) == pytest.approx(wanted["token"], rel=1e-6)
    options = DynamicViT()
    total = terms["task"] + terms["ratio"] + options.distill_weight * kl(logits, answer) + options.token_weight * tokens
    assert float(total) == pytest.approx(wanted["total"], rel=1e-6)
    assert float(token_distance(torch.ones(1, 2, 3), torch.zeros(1, 2, 3), torch.zeros(1, 2, 1))) == 0.0


def test_the_variants_of_the_losses() -> None:
    wanted, shares = FUNCTIONS["losses"], FUNCTIONS["losses"]["inputs"]["keep_ratio"]
    decisions = [(fill.normal(f"dl:dec{k}", (3, 7)) > (-0.5, 0, 0.4)[k]).float()[..., None] for k in range(3)]
    official = wanted["dynamic(batch-level ratio)"]["ratio_sum_over_stages"]
    assert float(3 * ratio_distance([d.mean() for d in decisions], shares)) == pytest.approx(official, rel=1e-6)
    tokens, teacher = fill.normal("dl:tok", (3, 7, 5)), fill.normal("dl:tok_t", (3, 7, 5))
    kept = fill.normal("dl:mask", (3, 7, 1)) > 0
    assert float(token_kl(tokens, teacher, kept)) == pytest.approx(wanted["lvvit(kl tokens)"]["token"], rel=1e-6)
    assert float(token_kl(tokens, teacher, kept & False)) == 0.0


@pytest.mark.parametrize("rate", list(FUNCTIONS["kept_tokens_for_base_rate_of_196"]))
def test_how_many_tokens_stay(rate: str) -> None:
    model = zoo.build({"name": "vit", "config": {**CONFIG, "image_size": (14, 14), "patch_size": 1, "depth": 4}}).eval()
    new = apply(model, dynamicvit.plan(model, keep=float(rate), at=[1, 2, 3]))
    with torch.no_grad(), recording(new) as sparse:
        new(torch.zeros(1, 3, 14, 14))
        found = [places.shape[1] for places in sparse.aside.places]
    assert found == FUNCTIONS["kept_tokens_for_base_rate_of_196"][rate]


def test_the_schedule_is_the_official_one_half_a_step_later() -> None:
    official = FUNCTIONS["lr_schedule"]
    schedule = optim.cosine(warmup=5 / 30, min_ratio=1e-6 / 1e-3)
    for step, lr in zip(official["step"], official["lr"], strict=True):  # ours: the progress a step will have made
        assert abs(1e-3 * schedule((step + 1) / official["len"]) - lr) <= 1e-3 / 500 * 1.001
    assert 1e-3 * schedule(1.0) == pytest.approx(1e-6)


def test_its_learning_rates_are_parameter_groups() -> None:
    with torch.device("meta"):
        model = apply(zoo.create("deit_small"), dynamicvit.plan(zoo.create("deit_small")))
    optimizer = optim.adamw(
        1e-3,
        groups={"*.score_predictor.*": 1.0, "*": 0.01},
        freeze={"cls_token": 1.0, "pos_embed": 1.0, "*.score_predictor.*": 1e-9, "*": 5 / 30},
    ).build(model)
    found = {
        (round(g["peak_lr"] / 1e-3, 6), g["weight_decay"], round(30 * g["starts"])): len(g["params"])
        for g in optimizer.param_groups
    }
    wanted = {
        (g["lr_scale"], g["weight_decay"], g["epochs_with_zero_lr"]): g["n_tensors"]
        for g in FUNCTIONS["parameter_groups_deit_s"]
    }
    assert {key: count for key, count in found.items() if key[2] < 30} == wanted
    assert sum(count for key, count in found.items() if key[2] == 30) == len(FUNCTIONS["parameters_in_no_group"])


# The whole of DeiT-S against the official code ------------------------------------------------------------------------
def ours(key: str) -> str:
    """The name of ours for a tensor of the official state dict."""
    return f"blocks.0.{key}" if key.startswith(("blocks.", "score_predictor.")) else key


@pytest.fixture(scope="module")
def deit_s() -> dict[str, Tensor]:
    return {ours(key): fill.tensor(key, shape) for key, shape, _ in WHOLE["state_dict"]}


def whole(state: dict[str, Tensor], keep: float = 0.7) -> nn.Module:
    with torch.device("meta"):
        host = zoo.create("deit_small")
        model = apply(host, dynamicvit.plan(host, keep=keep))
    assert sum(p.numel() for p in model.parameters()) == WHOLE["params"]
    model.load_state_dict({key: tensor.clone() for key, tensor in state.items()}, assign=True)
    return model.eval()


def image() -> Tensor:
    return fill.image(WHOLE["input"]["image_name"], WHOLE["input"]["shape"])


def bits(text: str) -> list[int]:
    """Kept positions of a string of 196 bits, binary or hexadecimal."""
    digits = bin(int(text, 16))[2:].zfill(196) if text.startswith("0x") else text
    return [i for i, bit in enumerate(digits) if bit == "1"]


RATES = [
    pytest.param(rate, marks=() if rate == "0.7" else pytest.mark.slow) for rate in ("0.5", "0.6", "0.7", "0.8", "0.9")
]


@pytest.mark.parametrize("rate", RATES)
@torch.no_grad()
def test_evaluation_keeps_the_same_tokens_and_answers_the_same(deit_s: dict[str, Tensor], rate: str) -> None:
    wanted, model = WHOLE["outputs"]["eval_by_base_rate"][rate], whole(deit_s, float(rate))
    seen: list[Tensor] = []
    find(model, SparseBlocks).score_predictor[0].register_forward_hook(lambda _m, _a, output: seen.append(output))
    with recording(model) as sparse:
        logits = model(image())
        places = sparse.aside.places
    for stage, samples in enumerate(wanted["kept_bits_by_stage_then_sample"]):
        assert [row.tolist() for row in places[stage]] == [bits(text) for text in samples]
    agrees(seen[0][..., 0], wanted["log_keep_prob"][0], atol=2e-5)
    agrees(logits, wanted["logits"], atol=2e-5)


def decided(monkeypatch: pytest.MonkeyPatch, decide: Any) -> None:
    """Put given decisions in the place of sampled ones: decide(stage, log-probabilities)."""
    stage = iter(range(3))
    monkeypatch.setattr(F, "gumbel_softmax", lambda logits, hard, dim: decide(next(stage), logits))


@torch.no_grad()
def test_training_with_given_masks(deit_s: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    wanted, model = WHOLE["train_fixed_mask"]["plain"], whole(deit_s).train()
    masks = [(fill.normal(f"dyvit_deit_s:mask{k}", (2, 196)) > -0.5).float() for k in range(3)]
    decided(monkeypatch, lambda stage, logits: torch.stack([masks[stage], 1 - masks[stage]], dim=-1))
    seen: list[Tensor] = []
    sparse = find(model, SparseBlocks)
    for predictor in sparse.score_predictor:
        predictor.register_forward_hook(lambda _m, _a, output: seen.append(output))
    model.norm.register_forward_hook(lambda _m, _a, output: seen.append(output))
    agrees(model(image()), wanted["cls_logits"], atol=2e-5)
    agrees(seen[3][:, 1:], wanted["token_features"], atol=2e-5)
    for found, digest in zip(seen, wanted["predictor_log_probs"], strict=False):
        agrees(found, digest, atol=2e-5)
    means = [decision.mean(dim=(1, 2)).tolist() for decision in sparse.aside.decisions]
    torch.testing.assert_close(means, wanted["decision_means_by_stage_and_sample"])


def test_training_gradients_with_given_noise(deit_s: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    wanted, model = WHOLE["train_gradients"], whole(deit_s).train()

    def decide(stage: int, logits: Tensor) -> Tensor:
        soft = (logits + fill.normal(f"dyvit_deit_s:gumbel{stage}", (2, 196, 2))).softmax(-1)
        return F.one_hot(soft.argmax(-1), 2).float() - soft.detach() + soft

    decided(monkeypatch, decide)
    logits = model(image())
    decisions = find(model, SparseBlocks).aside.decisions
    means = [decision.detach().mean(dim=(1, 2)).tolist() for decision in decisions]
    torch.testing.assert_close(means, wanted["decision_means_by_stage_and_sample"])
    run = SimpleNamespace(model=model, output=logits)
    terms = DynamicViT().loss({"task": logits.square().mean()}, run)  # type: ignore[arg-type]
    loss = terms["task"] + terms["ratio"]
    assert float(loss.detach()) == pytest.approx(wanted["loss"], rel=1e-5)
    loss.backward()
    named = dict(model.named_parameters())
    for key, digest in wanted["grad"].items():
        scale = digest["l2"] / named[ours(key)].numel() ** 0.5  # of one value
        agrees(named[ours(key)].grad, digest, atol=0.02 * scale, rtol=1e-3)  # type: ignore[arg-type]


# On every family ------------------------------------------------------------------------------------------------------
def sparse_of(family: Family, **options: Any) -> nn.Module:
    model = family.make()
    return apply(model, dynamicvit.plan(model, **options))


@torch.no_grad()
def test_masking_and_gathering_agree_given_equal_masks(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training with the masks that evaluation would choose answers as evaluation does."""
    model = sparse_of(family, keep={1: 0.5, 2: 0.25})
    seen: list[Tensor] = []
    submodule(model, anatomy_of(model).norm).register_forward_hook(lambda _m, _a, output: seen.append(output[:, 0]))
    with recording(model) as sparse:
        family.logits(model)
        places = sparse.aside.places
    masks = [torch.zeros(2, 16).scatter_(1, where, 1.0) for where in places]
    decided(monkeypatch, lambda stage, logits: torch.stack([masks[stage], 1 - masks[stage]], dim=-1))
    sparse.training = True
    family.logits(model)
    torch.testing.assert_close(seen[1], seen[0], atol=1e-5, rtol=0)


@torch.no_grad()
def test_later_blocks_are_smaller_and_keep_the_best_in_order(family: Family) -> None:
    model = sparse_of(family, keep={1: 0.5, 2: 0.25})
    lengths: list[int] = []
    for block in blocks_of(model).values():
        block.register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[1]))
    scores: list[Tensor] = []
    sparse = find(model, SparseBlocks)
    sparse.score_predictor[0].register_forward_hook(lambda _m, _a, output: scores.append(output[..., 0]))
    with recording(model):
        family.logits(model)
        first, second = sparse.aside.places
    assert lengths == [17, 9, 5]
    assert torch.equal(first, scores[0].topk(8).indices.sort().values)
    for outer, inner in zip(first.tolist(), second.tolist(), strict=True):
        assert set(inner) < set(outer)
        assert inner == sorted(inner)
    assert "places" not in sparse.aside  # forgotten with the recording


def test_a_dropped_token_stays_dropped_and_is_not_seen(family: Family) -> None:
    model = sparse_of(family, keep={1: 0.5, 2: 0.5}).train()
    torch.manual_seed(0)
    family.logits(model)
    first, second = find(model, SparseBlocks).aside.decisions
    assert set(first.unique().tolist()) == {0.0, 1.0}
    assert bool((second <= first).all())


def test_the_ratio_loss_teaches_the_predictors_how_many(family: Family) -> None:
    keep = {1: 0.25}
    model = fit(
        family.make(), Images(steps=1), family.task, methods=[DynamicViT(keep=keep, ratio_weight=20.0)], epochs=30,
        optimizer=optim.adamw(1e-2), schedule=optim.constant(),
    ).train()  # fmt: skip
    torch.manual_seed(0)
    family.logits(model, fill.normal("many", (32, 3, 16, 16)))
    assert 0.1 < float(find(model, SparseBlocks).aside.decisions[0].mean()) < 0.4  # it began at a half


def test_a_teacher_adds_two_terms(family: Family) -> None:
    rows: list[dict[str, Any]] = []
    fit(family.make(), Images(steps=1), family.task, methods=[DynamicViT(family.make("teacher"))], log=rows.append)
    assert set(rows[0]["terms"]) == {"task", "ratio", "kl", "tokens"}
    assert all(value > 0 for value in rows[0]["terms"].values())


def test_the_teachers_tokens_are_compared_without_its_prefix() -> None:
    family = FAMILIES["ours"]
    plain = family.make()
    model = apply(plain, deit.plan(plain))  # two prefix tokens; its teacher has one
    rows: list[dict[str, Any]] = []
    fit(model, Images(steps=1), family.task, methods=[DynamicViT(plain)], log=rows.append)
    assert rows[0]["terms"]["tokens"] > 0
    with pytest.raises(ValueError, match="give one alike"):
        token_distance(torch.zeros(1, 3, 4), torch.zeros(1, 3, 8), torch.ones(1, 3, 1))


def test_the_places_default_to_quarters_of_the_depth() -> None:
    assert stages(0.7, None, 12) == {3: 0.7, 6: 0.7**2, 9: 0.7**3}
    assert stages(0.5, None, 3) == {1: 0.5, 2: 0.25}
    assert stages(0.5, [2, 4], 6) == {2: 0.5, 4: 0.25}
    assert stages({4: 0.3, 2: 0.9}, None, 6) == {2: 0.9, 4: 0.3}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"keep": 0.0}, "keep: 0.0 is not in (0, 1]"),
        ({"keep": 1.5}, "keep: 1.5 is not in (0, 1]"),
        ({"keep": 0.5, "at": [3]}, "at: no block 3: the model has 3"),
        ({"keep": 0.5, "at": []}, "at: names no block"),
        ({"keep": {1: 0.5, 2: 0.6}}, "dropped tokens do not come back"),
    ],
)
def test_mistakes_are_named(options: dict[str, Any], says: str) -> None:
    with pytest.raises(OptionError) as error:
        dynamicvit.plan(FAMILIES["ours"].make(), **options)
    assert says in str(error.value)


def test_one_token_always_stays(family: Family) -> None:
    model = sparse_of(family, keep={1: 0.01})
    with recording(model) as sparse:
        assert family.logits(model).isfinite().all()
        assert sparse.aside.places[0].shape == (len(IMAGES), 1)
