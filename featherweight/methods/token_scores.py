# SPDX-License-Identifier: Apache-2.0
"""Which tokens stay: predictors that score them, how many may stay at which place, and the cut itself.

What the forms of DynamicViT (Rao 2021, 2106.02034; Rao 2022, 2207.01580) share: the predictor, shares and their checks,
top-k and threshold. Random order stands beside it as a baseline that costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import OptionError, closest
from ..surgery import Aside, all_of

TINY = 1e-12  # keeps log(keep) and the mean over kept tokens finite when nothing is kept
PRIME = 16777199  # below 2**24, so exact in float32; not 1 mod 3, so that a cube is a permutation of what is below it
Score = Literal["predictor", "random", "attention"]
SCORES: tuple[Score, ...] = ("predictor", "random", "attention")
Keep = float | Sequence[float] | Mapping[int, float]


class Sparse(nn.Module):
    """A module inside of which tokens are dropped. `keep`: pairs (before which block, share of all tokens)."""

    def __init__(self, keep: Sequence[tuple[int, float]], threshold: float | None) -> None:
        super().__init__()
        self.keep = tuple((int(place), float(share)) for place, share in keep)
        self.threshold = threshold
        self.recording = False  # also in evaluation: put the kept places aside
        self.aside = Aside()

    def stages(self) -> dict[int, int]:
        """Before which block -> number of the stage."""
        return {place: stage for stage, (place, _) in enumerate(self.keep)}

    def count(self, stage: int, total: int) -> int:
        """How many of the first `total` tokens stay from this stage on; never none."""
        return max(1, int(total * self.keep[stage][1]))


class Predictor(nn.Module):
    """Tokens (B, N, C) and what is kept so far (B, N, 1) -> log-probabilities keep, drop (B, N, 2)."""

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.in_conv = nn.Sequential(nn.LayerNorm(dim, eps=eps), nn.Linear(dim, dim), nn.GELU())
        self.out_conv = nn.Sequential(
            nn.Linear(dim, dim // 2), nn.GELU(), nn.Linear(dim // 2, dim // 4), nn.GELU(), nn.Linear(dim // 4, 2)
        )
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)  # not 0.02, which hardly learns where C is small
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, kept: Tensor | None = None) -> Tensor:
        local, rest = self.in_conv(x).chunk(2, dim=-1)  # (B, N, C / 2) each
        if kept is None:
            whole = rest.mean(dim=1, keepdim=True)
        else:
            whole = (rest * kept).sum(1, keepdim=True) / kept.sum(1, keepdim=True).clamp(min=TINY)
        return F.log_softmax(self.out_conv(torch.cat([local, whole.expand_as(local)], dim=-1)).float(), dim=-1)


def random_order(places: Tensor, seed: int) -> Tensor:
    """Scores (B, n) of places (B, n): a random order that is the same in every run, runtime and batch.

    Each place has one score, so that what a stage drops a later one would have dropped. Whole numbers below 2**24: a
    cube modulo a prime, twice.
    """
    x = (places * 7919 + seed * 104729 + 12345) % PRIME
    for _ in range(2):
        x = (x * x % PRIME * x + 2654435) % PRIME
    return x.to(torch.float32)


def best(score: Tensor, count: int) -> Tensor:
    """Which of the scores (B, N) are the `count` largest, by place: (B, count)."""
    return score.topk(count, dim=1).indices.sort(dim=1).values


def above(score: Tensor, threshold: float, alive: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Those whose keep probability reaches the threshold, at least the best: places (B, n), and which are real (B, n).

    score is the log-probability (B, N). Where images keep different numbers, the shorter rows are filled with copies of
    their first token, which nothing may attend to; None stands for "all are real". While a graph is captured n is N, as
    its shape may not depend on the data.
    """
    if alive is not None:
        score = score.masked_fill(~alive, -torch.inf)
    stays = score.exp() >= threshold
    stays = stays | (score >= score.amax(dim=1, keepdim=True))
    counts = stays.sum(dim=1)
    fixed = torch.compiler.is_compiling() or torch.compiler.is_exporting()
    width = score.shape[1] if fixed else int(counts.max())
    number = torch.arange(score.shape[1], device=score.device)
    chosen = torch.where(stays, number, number + score.shape[1]).sort(dim=1).values[:, :width]
    real = chosen < score.shape[1]
    chosen = torch.where(real, chosen, chosen[:, :1])
    return chosen, None if not fixed and int(counts.min()) == width else real


def take(x: Tensor, chosen: Tensor) -> Tensor:
    """Tokens (B, N, C) and places (B, n) -> the tokens there (B, n, C)."""
    return x.gather(1, chosen[..., None].expand(-1, -1, x.shape[2]))


def shares_at(
    keep: Keep, at: Sequence[int] | None, depth: int, rule: Callable[[float, int], float]
) -> dict[int, float]:
    """{before which block: share} of a mapping, of shares listed for `at`, or of a rate r, made shares by rule(r, k).

    Places default to a quarter, a half and three quarters of the depth.
    """
    if isinstance(keep, Mapping):
        if at is not None and list(at) != list(keep):
            raise OptionError("at", f"{list(at)} are not the places of keep, {list(keep)}; leave one of them out")
        return {int(place): float(share) for place, share in keep.items()}
    places = list(at) if at is not None else sorted({max(1, depth * k // 4) for k in (1, 2, 3) if depth > 1} or {0})
    if len(set(places)) < len(places):
        raise OptionError("at", f"{places} names a block twice")
    listed = keep if isinstance(keep, Sequence) else [rule(float(keep), k) for k in range(len(places))]
    shares = [float(share) for share in listed]
    if len(shares) != len(places):
        raise OptionError("keep", f"{len(shares)} shares are given for {len(places)} places, blocks {places}")
    return dict(zip(places, shares, strict=True))


def check_shares(found: Mapping[int, float], depth: int, *, falling: bool) -> dict[int, float]:
    """The same by place. OptionError for a place outside 0..depth - 1, a share outside (0, 1] or, falling, a growth."""
    if not found:
        raise OptionError("at", "names no block to drop tokens before")
    for place, share in found.items():
        if not 0 <= place < depth:
            raise OptionError("at", f"no block {place}: the model has {depth}, counted from 0")
        if not 0 < share <= 1:
            raise OptionError("keep", f"{share!r} is not in (0, 1]; it is the share of tokens that stays")
    ordered = dict(sorted(found.items()))
    shares = list(ordered.values())
    if falling and shares != sorted(shares, reverse=True):
        raise OptionError("keep", f"{shares} grows; dropped tokens do not come back")
    return ordered


def check_choice(score: str, threshold: float | None, seed: int = 0) -> None:
    """OptionError for an unknown score, a threshold that is no probability or has no predictor to ask, or a seed."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise OptionError("seed", f"{seed!r} is not a whole number from 0 to 2**32 - 1")
    if score not in SCORES:
        raise OptionError("score", f"no {score!r}; {closest(str(score), SCORES)}Known: {', '.join(SCORES)}")
    if threshold is None:
        return
    if not 0 < threshold < 1:
        raise OptionError("threshold", f"{threshold!r} is not between 0 and 1; it is a probability to stay")
    if score != "predictor":
        raise OptionError("threshold", f"needs predictors, and score is {score!r}")


def all_sparse(model: nn.Module) -> list[Sparse]:
    """The modules of a model inside of which tokens are dropped."""
    return list(all_of(model, Sparse).values())


def one_sparse(model: nn.Module) -> Sparse:
    """The one module inside of which tokens are dropped; LookupError says how many there are instead."""
    found = all_sparse(model)
    if len(found) != 1:
        raise LookupError(f"{type(model).__name__} has {len(found)} modules that drop tokens, not one")
    return found[0]


@contextmanager
def recording(model: nn.Module) -> Iterator[Sparse]:
    """While inside, each evaluation puts the kept positions (B, n) of every stage in the module's `aside.places`."""
    sparse = one_sparse(model)
    sparse.recording = True
    try:
        yield sparse
    finally:
        sparse.recording = False
        sparse.aside.clear()
