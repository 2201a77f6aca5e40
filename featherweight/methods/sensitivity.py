# SPDX-License-Identifier: Apache-2.0
"""How much each layer minds being pruned: one layer at a time at several ratios, and what the model is still worth.

Worth is any number of a model where more is better; without one it is the share of images on which it still answers as
before, which needs no labels. `allowed` reads off the rows how much each layer may lose, as a mapping that `sparsify`
and `channels` take as `sparsity` and `ratio`. Drawn by `prune_plots`. Not here: what layers mind together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import OptionError
from ..method import Task
from ..modes import evaluating
from ..surgery import apply
from . import channels, sparsify
from .importance import each
from .masks import prunable

RATIOS = (0.25, 0.5, 0.75, 0.9)
Worth = Callable[[nn.Module], float]


@dataclass(frozen=True)
class Row:
    """One layer cut by one ratio, everything else whole."""

    layer: str
    ratio: float
    worth: float
    weights: int  # of the layer, before

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def of_weights(
    model: nn.Module, worth: Worth, *, ratios: Sequence[float] = RATIOS, skip: Sequence[str] = (), **options: Any
) -> list[Row]:
    """A row for every linear layer and convolution, and ratio; options as of `sparsify.choose`."""
    _check(ratios)
    layers = prunable(model, skip)
    rows = []
    for path, layer in layers.items():
        for ratio in ratios:
            new = sparsify.sparsify(model, sparsity={_exactly(path): ratio}, **options)
            rows.append(Row(path, ratio, worth(new), layer.weight.numel()))  # type: ignore[operator, union-attr]
    return rows


def of_channels(
    model: nn.Module, example: Any, worth: Worth, *, ratios: Sequence[float] = RATIOS, **options: Any
) -> list[Row]:
    """A row for every group of channels, named by the first layer that makes them; options as of `channels.rank`."""
    _check(ratios)
    ranked = channels.rank(model, example, **options)
    rows = []
    for place, group in enumerate(ranked.groups):
        alone, count = ranked.only(place), sum(int(torch.tensor(ranked.sizes[name]).prod()) for name, _ in group.makers)
        for ratio in ratios:
            if (1 - ratio) * group.channels >= 1:
                new = apply(model, alone.edits(ratio, round_to=1))
                rows.append(Row(group.name, ratio, worth(new), count))
    return rows


def agreement(model: nn.Module, batches: Any, task: Task) -> Worth:
    """The share of images to which a model gives the answer that this one gives."""
    seen = list(each(batches))
    if not seen:
        raise OptionError("batches", "there are none; at least one batch of images is needed")
    wanted = [answer.argmax(-1) for answer in _answers(model, seen, task)]

    def worth(other: nn.Module) -> float:
        found = [answer.argmax(-1) for answer in _answers(other, seen, task)]
        return float((torch.cat(found) == torch.cat(wanted)).float().mean())

    return worth


def allowed(rows: Sequence[Row], *, floor: float) -> dict[str, float]:
    """Layer -> the largest ratio up to which its worth is never below `floor`; 0 where it minds from the start."""
    found: dict[str, float] = {}
    for layer in dict.fromkeys(row.layer for row in rows):
        mine = sorted((row for row in rows if row.layer == layer), key=lambda row: row.ratio)
        kept = 0.0
        for row in mine:
            if row.worth < floor:
                break
            kept = row.ratio
        found[layer] = kept
    return found


def _answers(model: nn.Module, batches: Sequence[Mapping[str, Any]], task: Task) -> Iterator[Tensor]:
    with evaluating(model), torch.no_grad():
        for batch in batches:
            yield task.forward(model, batch)


def _exactly(path: str) -> str:
    """A name pattern that fits this path alone."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in path)


def _check(ratios: Sequence[float]) -> None:
    fine = [r for r in ratios if isinstance(r, (int, float)) and not isinstance(r, bool) and 0 < r < 1]
    if not ratios or len(fine) != len(ratios):
        raise OptionError("ratios", f"{list(ratios)} must be shares between 0 and 1, at least one")
