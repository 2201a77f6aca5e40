# SPDX-License-Identifier: Apache-2.0
"""Which rank each layer gets: a share of the full one, enough for a share of the energy, what is more than noise
(EVBMF), or the best use of a budget over all layers together.

Energy is the squared singular values of a weight; on real data, the variance of a layer's outputs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import OptionError
from . import decompose
from .plain import Layer

Ranks = Literal["energy", "share", "evbmf", "budget"]
By = Literal["params", "macs"]
LEVELS = 64  # the two ranks of a Tucker core are tried at so many common shares of the energy
HALVINGS = 60  # of the price in a budget


@dataclass(frozen=True)
class Candidate:
    """What a layer could become; kind "" is the layer as it is."""

    kind: str
    spec: Mapping[str, Any]
    params: int  # of its weights
    macs: int  # per image; 0 where the model was not run
    loss: float = 0.0  # the share of the energy that is lost

    def cost(self, by: str) -> int:
        return self.macs if by == "macs" else self.params


@dataclass(frozen=True)
class Case:
    """A layer, the kind of factors it may get, and the places (H, W) of its output on one image."""

    layer: Layer
    kind: str
    places: tuple[int, int] = (0, 0)
    strength: Tensor | None = field(default=None, compare=False)  # of its outputs' directions on data, strongest first

    @property
    def whole(self) -> Candidate:
        count = self.layer.weight.numel()
        return Candidate("", {}, count, count * math.prod(self.places))

    def at(self, ranks: Sequence[int], loss: float = 0.0) -> Candidate:
        """The candidate of these ranks: one, or of Tucker and CP those of the inputs and of the outputs."""
        outputs, inputs, *kernel = self.layer.weight.shape
        height, width = kernel or (1, 1)
        down, right = getattr(self.layer, "stride", (1, 1))
        after = math.prod(self.places)
        if self.kind == "low_rank":
            spec, counts = {"rank": ranks[0]}, [ranks[0] * inputs * height * width, ranks[0] * outputs]
            places = [after, after]
        elif self.kind == "spatial":
            spec, counts = {"rank": ranks[0]}, [ranks[0] * inputs * height, ranks[0] * outputs * width]
            places = [after * right, after]
        elif self.kind == "tucker":
            ins, outs = ranks
            spec, counts = {"ranks": [ins, outs]}, [inputs * ins, ins * outs * height * width, outs * outputs]  # type: ignore[dict-item]
            places = [after * down * right, after, after]
        else:
            rank = max(ranks)
            spec, counts = {"rank": rank}, [inputs * rank, height * rank, width * rank, rank * outputs]
            places = [after * down * right, after * right, after, after]
        macs = sum(count * place for count, place in zip(counts, places, strict=True))
        return Candidate(self.kind, spec, sum(counts), macs, min(1.0, loss))

    @cached_property
    def matrices(self) -> list[Tensor]:
        """What the ranks are ranks of, in the order of `at`."""
        weight = self.layer.weight.detach().double().cpu()
        if self.kind == "low_rank":
            return [weight.flatten(1)]
        if self.kind == "spatial":
            return [decompose.rows_and_columns(weight)]
        return [decompose.unfolded(weight, axis) for axis in (1, 0)]

    @property
    def full(self) -> list[int]:
        """The ranks at which nothing is lost."""
        if self.kind in ("tucker", "cp"):
            return [len(matrix) for matrix in self.matrices]
        return [min(matrix.shape) for matrix in self.matrices]

    def every(self) -> list[Candidate]:
        """Candidates from few weights to many: every rank, or every pair at a common loss."""
        if self.strength is not None:
            lost = [decompose.tails(self.strength)]
        else:
            lost = [decompose.tails(torch.linalg.svdvals(matrix)) for matrix in self.matrices]
        if len(lost) == 1:
            return [self.at([rank], lost[0][min(rank, len(lost[0]) - 1)]) for rank in range(1, self.full[0] + 1)]
        found = {}
        for step in range(LEVELS + 1):
            level = (1 - step / LEVELS) ** 2  # finer where little is lost
            pair = tuple(max(1, enough(tail, level)) for tail in lost)
            found[pair] = self.at(pair, sum(tail[rank] for tail, rank in zip(lost, pair, strict=True)))
        return list(found.values())


def enough(lost: Sequence[float], level: float) -> int:
    """The fewest components that lose no more than the level."""
    return next(rank for rank, loss in enumerate(lost) if loss <= level + 1e-12)


def choose(cases: Mapping[str, Case], ranks: Ranks, keep: float, by: By) -> dict[str, Candidate]:
    """Path -> what that layer becomes: itself where no candidate costs less."""
    if ranks == "budget":
        return _within_budget(cases, keep, by)
    found = {path: _by_rule(case, ranks, keep) for path, case in cases.items()}
    return {
        path: one if one.cost(by) < cases[path].whole.cost(by) else cases[path].whole for path, one in found.items()
    }


def _by_rule(case: Case, ranks: Ranks, keep: float) -> Candidate:
    if ranks == "share":
        return case.at([max(1, round(keep * full)) for full in case.full])
    if ranks == "evbmf":
        return case.at([decompose.evbmf_rank(matrix) for matrix in case.matrices])
    every = case.every()
    return next((one for one in every if one.loss <= 1 - keep + 1e-12), every[-1])


def _within_budget(cases: Mapping[str, Case], keep: float, by: By) -> dict[str, Candidate]:
    """The least loss, added up over the layers, whose cost is within the share `keep`: one price for all layers."""
    options = {path: (case.whole, *case.every()) for path, case in cases.items()}
    whole = sum(case.whole.cost(by) for case in cases.values())

    def at(price: float) -> dict[str, Candidate]:
        return {path: min(some, key=lambda one: one.loss + price * one.cost(by)) for path, some in options.items()}

    def share(found: Mapping[str, Candidate]) -> float:
        return sum(one.cost(by) for one in found.values()) / max(1, whole)

    low, high = 0.0, 1.0  # at the price 1 for a weight every layer takes its cheapest candidate: a loss is at most 1
    if share(at(low)) <= keep:
        return at(low)
    if share(at(high)) > keep:
        text = f"{keep:g} of the {by} cannot be met: the lowest ranks leave {share(at(high)):.3f}"
        raise OptionError("keep", text)
    for _ in range(HALVINGS):
        middle = math.sqrt(low * high) if low else high / 1e3
        low, high = (middle, high) if share(at(middle)) > keep else (low, middle)
    return at(high)
