# SPDX-License-Identifier: Apache-2.0
"""What DynamicViT learns from, and how fast its parts learn (Rao 2021, 2106.02034).

Two averages: "official" is the published code's, "corrected" the paper's formula, where the distance of a token is
summed over its channels and not averaged (C times as much).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..anatomy import anatomy_of, prefix_of
from ..errors import OptionError
from ..layers import AuxLogits, TwoHeads
from ..optim import FOR_EVER
from ..surgery import Aside, all_of, submodule, tap, watching
from ..train import Pass
from . import dynamicvit_maps as maps
from .distill import kl
from .token_scores import Sparse, take

Ratio = Literal["image", "batch"]
Averaging = Literal["official", "corrected"]
RATIOS: tuple[Ratio, ...] = ("image", "batch")
AVERAGINGS: tuple[Averaging, ...] = ("official", "corrected")
AT_ONCE = 1e-9  # a progress that is reached at the first step
NEVER_TRAINED = ("cls_token", "pos_embed", "position_embeddings")


def check(ratio: str, averaging: str) -> None:
    """OptionError for a name that is not known."""
    for where, value, known in (("ratio", ratio, RATIOS), ("averaging", averaging, AVERAGINGS)):
        if value not in known:
            raise OptionError(where, f"{value!r} is not one of {', '.join(known)}")


def ratio_distance(means: list[Tensor], shares: list[float]) -> Tensor:
    """Mean over stages and images of (share kept - share wanted)^2; means: for each stage one tensor (B,) or ()."""
    parts = [(mean.float() - share).square().mean() for mean, share in zip(means, shares, strict=True)]
    return torch.stack(parts).mean()


def ratio_of(sparse: Sparse, how: Ratio) -> Tensor | None:
    """The ratio loss of the last forward pass; None where nothing was decided by predictors."""
    if "decisions" in sparse.aside:
        decisions: list[Tensor] = sparse.aside.decisions
        means = [d.float().mean(dim=(1, 2)) if how == "image" else d.float().mean() for d in decisions]
        return ratio_distance(means, [share for _, share in sparse.keep])
    rates: list[tuple[Tensor, float]] = sparse.aside.take("rates")
    if not rates:
        return None
    means = [mean if how == "image" else mean.mean() for mean, _ in rates]
    return ratio_distance(means, [share for _, share in rates])


def token_distance(tokens: Tensor, teacher: Tensor, kept: Tensor, averaging: Averaging = "official") -> Tensor:
    """Squared difference of kept tokens (B, N, C), mean over them and over channels (or summed over channels).

    kept: decisions (B, N, 1). 0 if nothing is kept.
    """
    if tokens.shape != teacher.shape:
        raise ValueError(
            f"the teacher's tokens are {tuple(teacher.shape)}, the student's {tuple(tokens.shape)}; give one alike"
        )
    kept = (kept > 0.5).float()
    squares = (tokens.float() - teacher.float()).square()
    difference = squares.mean(-1, keepdim=True) if averaging == "official" else squares.sum(-1, keepdim=True)
    return (difference * kept).sum() / kept.sum().clamp(min=1.0)


def token_kl(logits: Tensor, teacher: Tensor, kept: Tensor) -> Tensor:
    """KL(teacher || student) of the logits of kept tokens (B, N, K), mean over them; 0 if nothing is kept."""
    kept = (kept > 0.5).float()[..., 0]
    target = F.log_softmax(teacher.float(), dim=-1)
    each = F.kl_div(F.log_softmax(logits.float(), dim=-1), target, reduction="none", log_target=True).sum(-1)
    return (each * kept).sum() / kept.sum().clamp(min=1.0)


def tapped(model: nn.Module) -> nn.Module:
    """A copy that puts what the teacher's is compared with aside: the last norm's output, or the last map."""
    pyramid = maps.pyramid_of(model)
    return tap(model, pyramid.features if pyramid else anatomy_of(model).norm)


def lessons(run: Pass, sparse: Sparse, teacher: nn.Module, averaging: Averaging) -> tuple[Tensor, Tensor]:
    """KL of the answers, and the distance of what stands behind them: kept tokens, or the last maps."""
    pyramid = maps.pyramid_of(run.model)
    if pyramid is not None:
        sparse.aside.clear()
        with watching(teacher, pyramid.features) as seen:
            answer = run.call(teacher)
        mine = pyramid.normed(run.model, _told(run.model, pyramid.features))
        with torch.no_grad():
            theirs = pyramid.normed(teacher, seen[-1])
        whole = theirs.new_ones(*theirs.shape[:2], 1)
        return kl(run.output, answer), token_distance(mine, theirs, whole, averaging)
    with watching(teacher, anatomy_of(teacher).norm) as seen, _aux_of(teacher) as heads:
        answer = run.call(teacher)
    student = list(all_of(run.model, AuxLogits).values())
    normed = _told(run.model, anatomy_of(run.model).norm)
    if student and heads:
        (answer, theirs), mine = heads[-1], student[0].aside.aux_logits
    else:
        theirs, mine = seen[-1][:, prefix_of(teacher) :], normed[:, prefix_of(run.model) :]
    theirs, kept = _of_kept(theirs, mine, sparse)
    distance = token_kl(mine, theirs, kept) if student and heads else token_distance(mine, theirs, kept, averaging)
    return kl(_answer(run), answer), distance


def _told(model: nn.Module, path: str) -> Tensor:
    """What a tapped module put aside."""
    aside: Aside = submodule(model, path).aside  # type: ignore[assignment]
    output: Tensor = aside.take("output")
    return output


def _answer(run: Pass) -> Tensor:
    """The student's logits as its teacher's are meant: of two heads their mean."""
    heads = list(all_of(run.model, TwoHeads).values())
    answer: Tensor = heads[0].answer(run.output) if heads else run.output
    return answer


def _of_kept(theirs: Tensor, mine: Tensor, sparse: Sparse) -> tuple[Tensor, Tensor]:
    """The teacher's tokens that the student still has, and which of them are kept (B, n, 1)."""
    if "decisions" in sparse.aside:
        return theirs, sparse.aside.take("decisions")[-1]
    return take(theirs, sparse.aside.take("places")), mine.new_ones(*mine.shape[:2], 1)


@contextmanager
def _aux_of(teacher: nn.Module) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """While inside, a teacher with a head on every token tells class logits (B, K) and token logits (B, N, K) apart."""
    seen: list[tuple[Tensor, Tensor]] = []
    handles = [
        module.register_forward_pre_hook(lambda _, args: seen.append((args[0], args[1])))
        for module in all_of(teacher, AuxLogits).values()
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def param_groups(
    model: nn.Module, *, backbone: float | None = None, frozen: float = 5 / 30, train_positions: bool = False
) -> dict[str, dict[str, float]]:
    """Options for `optim.adamw(lr, **param_groups(model))`: new parts learn at the full rate, the rest more slowly.

    backbone: the factor of the rest's rate; None is the published 0.01, and 0.2 on ConvNeXt and Swin. frozen: the share
    of the run in which only new parts learn. The class token and the positions are never trained, as in the published
    code, unless train_positions says so. `model` is the one given to `fit`.
    """
    pyramid = maps.pyramid_of(model)
    factor = backbone if backbone is not None else 0.01 if pyramid is None else 0.2
    if not factor > 0:
        raise OptionError("backbone", f"{factor!r} is not a factor above 0")
    if not 0 <= frozen <= 1:
        raise OptionError("frozen", f"{frozen!r} is not a share of the run, 0..1")
    new = new_parts(model)
    last = {name.rsplit(".", 1)[-1] for name, _ in model.named_parameters()}
    fixed = [] if train_positions else [name for name in NEVER_TRAINED if name in last]
    starts = {f"*{name}": FOR_EVER for name in fixed}
    later = {**dict.fromkeys(new, AT_ONCE), "*": frozen} if frozen else {}
    return {"groups": {**dict.fromkeys(new, 1.0), "*": factor}, "freeze": {**starts, **later}}


def new_parts(model: nn.Module) -> list[str]:
    """Patterns of the names of what this method puts into a model and starts at random."""
    return ["*score_predictor.*", *(["*fast_path*"] if maps.pyramid_of(model) is not None else [])]
