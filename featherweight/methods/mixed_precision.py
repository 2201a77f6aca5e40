# SPDX-License-Identifier: Apache-2.0
"""A number of bits for each layer: few where the model does not mind, many where it does, within a budget.

For each layer and each grid the noise is measured that this one layer alone puts into the model's answers, on images
without labels. Noises of layers add up nearly, so a size is met by giving bits away where a byte costs the least noise,
and a drop by taking them back where it hurts most, the model being asked each time (HAWQ-like, with a measured
sensitivity in place of a Hessian: Dong 2019, 1905.03696). Layers may stay float, which is accuracy control. Not here:
activations; `quantize` afterwards, on layers left float, is a step of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import OptionError, closest
from ..modes import evaluating
from ..runtime.parity import snr_db
from ..surgery import Edit, apply, submodule
from .calibration import Calls, enough, run_watched, selected
from .stored import packed
from .weight_only import GRIDS, spec

FLOAT = "float32"
CHOICES = ("int8", "int4", "int2")


@dataclass(frozen=True)
class Row:
    """What one grid does to one layer alone."""

    layer: str
    weights: str  # the grid
    size_bytes: int  # of the weight as stored
    noise: float  # power of the answers' error over the power of the answers
    agreement: float  # share of images with the same best class


@dataclass(frozen=True)
class Choice:
    """A grid for each layer, and what it comes to; the noise is expected, by adding up."""

    grids: Mapping[str, str]
    size_bytes: int
    noise: float

    def edits(self) -> list[Edit]:
        """One for each layer that does not stay float."""
        return [Edit(path, "packed", spec(grid)) for path, grid in self.grids.items() if grid != FLOAT]


def sensitivity(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    task: Calls,
    *,
    choices: Sequence[str] = CHOICES,
    skip: Sequence[str] = (),
    calibration_images: int = 64,
) -> list[Row]:
    """One row for each layer and each choice, in the order of the layers; the model as it is, one layer rounded.

    Raises OptionError for an unknown grid or too few images.
    """
    for grid in choices:
        if grid not in GRIDS:
            raise OptionError("choices", f"no {grid!r}; {closest(str(grid), GRIDS)}Known: {', '.join(GRIDS)}")
    images, rows = enough(batches, calibration_images), []
    with evaluating(model), torch.no_grad():
        wanted = torch.cat(run_watched(model, {}, images, task))
        for path, layer in selected(model, skip).items():
            for grid in choices:
                other = packed(layer, **spec(grid)).eval()
                watch = {path: lambda _host, args, _output, other=other: other(*args)}
                got = torch.cat(run_watched(model, watch, images, task))
                rows.append(Row(path, grid, _size(other), _noise(wanted, got), _agreement(wanted, got)))
    return rows


def choose(
    model: nn.Module, rows: Sequence[Row], *, size_bytes: int | None = None, keep_float: bool = True
) -> list[Choice]:
    """Choices from the most bits to the fewest, each with one layer taken down where a byte costs the least noise.

    size_bytes: of all these weights together; the list then ends with the first choice that fits. OptionError where
    none does. keep_float: begin with every layer as it is, else with the best of the rows.
    """
    ladders = _ladders(model, rows, keep_float)
    place = dict.fromkeys(ladders, 0)
    found = [_choice(ladders, place)]
    while size_bytes is None or found[-1].size_bytes > size_bytes:
        steps = [
            (_price(ladders[path][at], ladders[path][further]), path, further)
            for path, at in place.items()
            for further in range(at + 1, len(ladders[path]))
        ]
        if not steps:
            break
        _, path, further = min(steps)
        place[path] = further
        found.append(_choice(ladders, place))
    if size_bytes is not None and found[-1].size_bytes > size_bytes:
        least = found[-1].size_bytes
        raise OptionError("size_bytes", f"{size_bytes} cannot be met: with the fewest bits it is {least} bytes")
    return found


def mixed_precision(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    task: Calls,
    *,
    size_bytes: int | None = None,
    min_agreement: float | None = None,
    choices: Sequence[str] = CHOICES,
    skip: Sequence[str] = (),
    calibration_images: int = 64,
) -> nn.Module:
    """A copy whose layers have as many bits as the budget and their sensitivity say.

    size_bytes: the most that the weights of these layers may take; min_agreement: the least share of the calibration
    images that keep their best class. One of them, or both: then the size is met and the agreement checked. Raises
    OptionError where the budget cannot be met.
    """
    if size_bytes is None and min_agreement is None:
        raise OptionError("mixed_precision", "needs a budget: size_bytes, min_agreement or both")
    if min_agreement is not None and not 0 < min_agreement <= 1:
        raise OptionError("min_agreement", f"{min_agreement!r} is not a share above 0, at most 1")
    images = enough(batches, calibration_images)
    rows = sensitivity(model, images, task, choices=choices, skip=skip)
    found = choose(model, rows, size_bytes=size_bytes)
    if min_agreement is None:
        return apply(model, found[-1].edits())
    with evaluating(model), torch.no_grad():
        wanted = torch.cat(run_watched(model, {}, images, task))
        if size_bytes is not None:
            found = found[-1:]
        at = _furthest(model, found, min_agreement, wanted, images, task)
    if at is None:
        text = f"{min_agreement:.0%} are not reached within {size_bytes} bytes; allow more, or train (`qat`)"
        raise OptionError("min_agreement", text)
    return apply(model, found[at].edits())


def _furthest(
    model: nn.Module, found: Sequence[Choice], least: float, wanted: Tensor, images: Any, task: Calls
) -> int | None:
    """The choice with the fewest bits that still agrees, by halving; None if not even the first one does."""

    def holds(choice: Choice) -> bool:
        new = apply(model, choice.edits()).eval()
        return _agreement(wanted, torch.cat(run_watched(new, {}, images, task))) >= least

    if not holds(found[0]):
        return None
    low, high = 0, len(found)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(found[middle]) else (low, middle)
    return low


def _ladders(model: nn.Module, rows: Sequence[Row], keep_float: bool) -> dict[str, list[Row]]:
    """For each layer its rows from the largest to the smallest, those left out that are larger and noisier."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.layer, []).append(row)
    for path, mine in found.items():
        weight: Any = submodule(model, path).weight
        start = [Row(path, FLOAT, 4 * weight.numel(), 0.0, 1.0)] if keep_float else []
        ordered = sorted([*start, *mine], key=lambda row: (row.size_bytes, row.noise))
        kept: list[Row] = []
        for row in ordered:  # from the smallest up: each must be less noisy than all smaller ones
            if not kept or row.noise < kept[-1].noise:
                kept.append(row)
        found[path] = kept[::-1]
    return found


def _price(now: Row, then: Row) -> float:
    """Noise for each byte saved."""
    return (then.noise - now.noise) / max(1, now.size_bytes - then.size_bytes)


def _choice(ladders: Mapping[str, list[Row]], place: Mapping[str, int]) -> Choice:
    taken = [ladders[path][at] for path, at in place.items()]
    grids = {row.layer: row.weights for row in taken}
    return Choice(grids, sum(row.size_bytes for row in taken), sum(row.noise for row in taken))


def _size(layer: Any) -> int:
    """Bytes of the stored weight."""
    return sum(buffer.numel() * buffer.element_size() for buffer in layer.store.buffers())


def _noise(wanted: Tensor, got: Tensor) -> float:
    ratio = snr_db(wanted.numpy(), got.numpy())
    return 0.0 if math.isinf(ratio) else 10 ** (-ratio / 10)


def _agreement(wanted: Tensor, got: Tensor) -> float:
    return float((wanted.argmax(-1) == got.argmax(-1)).double().mean())
