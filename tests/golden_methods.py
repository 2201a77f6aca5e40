# SPDX-License-Identifier: Apache-2.0
"""What golden files of a model with a method ask: DynamicViT at every rate and in training, token merging."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import fill
import pytest
import torch
from golden_case import Case, at
from golden_models import answers, image, in_training, parameters, stand_in, watched
from torch import Tensor, nn
from torch.nn import functional as F

from featherweight import official_names
from featherweight.anatomy import prefix_of
from featherweight.methods import dynamicvit, tome
from featherweight.methods.dynamicvit_maps import pyramid_of
from featherweight.methods.token_scores import one_sparse
from featherweight.surgery import apply

RATES = re.compile(r"r(?:\*\*(\d+)|-([\d.]+))?")


def dynamic(case: Case, model: nn.Module) -> None:
    """DynamicViT on DeiT, LV-ViT, ConvNeXt and Swin."""
    method = case.reference["method"]
    by_rate = at(case.reference, "outputs.eval_by_base_rate")
    places = {rate: f"outputs.eval_by_base_rate.{rate}" for rate in by_rate} if by_rate else {"": "outputs"}
    shares = {rate: _shares(method["ratios"], rate, at(case.reference, place)) for rate, place in places.items()}
    options = {"at": method["places"], **({"stage": method["stage"]} if "stage" in method else {})}
    made = apply(model, dynamicvit.plan(model, keep=next(iter(shares.values())), **options))
    loaded = stand_in(case, made).eval()
    case.equal("params", parameters(loaded))
    for rate, place in places.items():
        _kept(case, dynamicvit.set_keep(loaded, shares[rate]), place)
    if "train_fixed_mask" in case.reference:
        for mode in ("plain", "bn_batch", "bn_frozen", ""):
            place = f"train_fixed_mask.{mode}".rstrip(".")
            if at(case.reference, f"{place}.cls_logits"):
                _masked(case, in_training(stand_in(case, made), norms=mode == "bn_batch"), place)
    if "train_gradients" in case.reference:
        _gradients(case, dynamicvit.set_keep(loaded, _shares(method["ratios"], "0.7", {})).train())
    if "teacher" in case.reference:
        _teacher(case, model)


def _shares(ratios: Any, rate: str, stored: Mapping[str, Any]) -> list[float]:
    """A list of shares: given, stored beside the rate, or by a rule such as `r, r**2, r-0.4`."""
    if isinstance(ratios, list):
        return ratios
    for name in ("token_ratio", "sparse_ratio"):
        if name in stored:
            return stored[name]
    r, found = float(rate), []
    for term in ratios.split(","):
        power, less = RATES.fullmatch(term.strip()).groups()  # type: ignore[union-attr]
        found.append(r ** int(power) if power else r - float(less) if less else r)
    return found


@torch.no_grad()
def _kept(case: Case, model: nn.Module, place: str) -> None:
    """One rate: logits, the predictors' first answer, how many tokens stay and which."""
    sparse = one_sparse(model)
    scores: list[Tensor] = []
    handles = [p.register_forward_hook(lambda _m, _a, out: scores.append(out[..., 0])) for p in sparse.score_predictor]
    with dynamicvit.recording(model):
        case.compare(f"{place}.logits", answers(case, model))
        positions = list(sparse.aside.places)
    for handle in handles:
        handle.remove()
    for k in range(len(at(case.reference, f"{place}.log_keep_prob") or ())):
        case.compare(f"{place}.log_keep_prob.{k}", scores[k])
    case.equal(f"{place}.kept_tokens", [kept.shape[1] for kept in positions])
    total = sparse.aside.count if "count" in sparse.aside else None
    for stage, samples in enumerate(at(case.reference, f"{place}.kept_bits_by_stage_then_sample") or ()):
        for sample, bits in enumerate(samples):
            wanted = int(bits, 16 if bits.startswith("0x") else 2)
            n = total or _tokens(case, model)
            found = sum(1 << (n - 1 - int(i)) for i in positions[stage][sample])
            if found != wanted:
                case.wrong.append(f"{place}: other tokens survive stage {stage} of sample {sample}")


def _tokens(case: Case, model: nn.Module) -> int:
    """How many patches the predictors begin with."""
    seen: list[int] = []
    first = one_sparse(model).score_predictor[0]
    handle = first.register_forward_hook(lambda _m, args, _out: seen.append(args[0].shape[1]))
    model(image(case)[:1])
    handle.remove()
    return seen[0]


@contextmanager
def _decided(decide: Callable[[int, Tensor], Tensor]) -> Iterator[list[Tensor]]:
    """While inside, decide(stage, log-probabilities) stands in for the noise; yields the log-probabilities."""
    seen: list[Tensor] = []

    def gumbel_softmax(logits: Tensor, **_: Any) -> Tensor:
        seen.append(logits)
        return decide(len(seen) - 1, logits)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "gumbel_softmax", gumbel_softmax)
        yield seen


@torch.no_grad()
def _masked(case: Case, model: nn.Module, place: str) -> None:
    """Training with given masks."""

    def decide(stage: int, logits: Tensor) -> Tensor:
        mask = (fill.normal(f"{case.reference['name']}:mask{stage}", logits.shape[:2]) > -0.5).float()
        return torch.stack([mask, 1 - mask], dim=-1)

    with _decided(decide) as seen, _features(model) as features:
        found = {"cls_logits": model(image(case)), **features()}
    case.inside(place, found)
    for k in range(len(at(case.reference, f"{place}.predictor_log_probs") or ())):
        case.compare(f"{place}.predictor_log_probs.{k}", seen[k])


@contextmanager
def _features(model: nn.Module) -> Iterator[Callable[[], dict[str, Tensor]]]:
    """While inside, collects what a run shows: normed tokens or maps, logits of tokens."""
    pyramid = pyramid_of(model)
    with watched(model, {"x": pyramid.features if pyramid else "norm", "aux_logits": "aux_head"}) as seen:

        def found() -> dict[str, Tensor]:
            aux = {"aux_logits": seen["aux_logits"]} if "aux_logits" in seen else {}
            if pyramid is None:
                return {"token_features": seen["x"][:, prefix_of(model) :], **aux}
            tokens = pyramid.normed(model, seen["x"])  # (B, N, C)
            side = round(tokens.shape[1] ** 0.5)
            return {"feature_map": tokens if pyramid.channels_last else tokens.unflatten(1, (side, side))}

        yield found


def _gradients(case: Case, model: nn.Module) -> None:
    """Gradients with given noise. They pass through a softmax that lacks the official 1e-6, hence the tolerance."""
    wanted, name = case.reference["train_gradients"], case.reference["name"]

    def decide(stage: int, logits: Tensor) -> Tensor:
        soft = (logits + fill.normal(f"{name}:gumbel{stage}", logits.shape)).softmax(-1)
        return F.one_hot(soft.argmax(-1), 2).float() - soft.detach() + soft

    with _decided(decide):
        logits = model(image(case))
    sparse = one_sparse(model)
    shares = [share for _, share in sparse.keep]
    means = [decision.mean(dim=(1, 2)) for decision in sparse.aside.decisions]
    ratio = torch.stack([(mean - share).square().mean() for mean, share in zip(means, shares, strict=True)]).sum()
    loss = logits.square().mean() + 2 * ratio / len(shares)
    if abs(float(loss.detach()) - wanted["loss"]) > 1e-5 * wanted["loss"]:
        case.wrong.append(f"train_gradients.loss: {float(loss)}, not {wanted['loss']}")
    loss.backward()
    named, names = dict(model.named_parameters()), official_names.of(model)
    for key, digest in wanted["grad"].items():
        gradient = named[official_names.ours(key, names)].grad
        case.compare(f"train_gradients.grad.{key}", gradient, atol=0.02 * digest["l2"] / gradient.numel() ** 0.5)


@torch.no_grad()
def _teacher(case: Case, model: nn.Module) -> None:
    """The plain model with the stand-ins of its own names."""
    case.equal("teacher.params", parameters(model))
    names = official_names.of(model)
    own = {ours: fill.tensor(key, model.state_dict()[ours].shape) for key, ours in names.items()}
    teacher = copy.deepcopy(model).eval()
    teacher.load_state_dict({k: own[k].to(t.dtype) for k, t in teacher.state_dict().items()})
    with _features(teacher) as features, watched(teacher, {"head": "head"}) as seen:
        logits = teacher(image(case))
    found = features()
    case.inside("teacher", {"cls_logits": seen["head"] if "aux_logits" in found else logits, **found})


@torch.no_grad()
def merging(case: Case, model: nn.Module) -> None:
    """ToMe at the file's numbers of tokens, with and without proportional attention."""
    for r in at(case.reference, "outputs.by_r"):
        place = f"outputs.by_r.{r}"
        numbers = at(case.reference, f"{place}.r_per_layer") or int(r)
        for proportional, name in ((True, "logits"), (False, "logits_without_proportional_attention")):
            if at(case.reference, f"{place}.{name}") is None:
                continue
            merged = apply(model, tome.plan(model, r=numbers, proportional=proportional))
            loaded = stand_in(case, merged).eval()
            with tome.recording(loaded) as blocks:
                case.compare(f"{place}.{name}", answers(case, loaded))
                sizes = list(blocks.aside.sizes)
            if proportional:
                case.equal("params", parameters(loaded))
                _sizes(case, place, sizes, prefix_of(model))


def _sizes(case: Case, place: str, sizes: list[Tensor], prefix: int) -> None:
    case.equal(f"{place}.tokens_after_each_block", [held.shape[1] + prefix for held in sizes])
    last = torch.cat([torch.ones(len(sizes[-1]), prefix), sizes[-1]], dim=1)
    largest = at(case.reference, f"{place}.final_token_sizes_sorted_sample0")
    if largest:
        case.equal(
            f"{place}.final_token_sizes_sorted_sample0", last[0].sort(descending=True).values[: len(largest)].tolist()
        )
    case.inside(place, {"size_digest": last[..., None]})
