# SPDX-License-Identifier: Apache-2.0
"""The loss around a trained model, over two random directions of its weights (Li 2018, 1712.09913).

A direction is random numbers, scaled filter by filter to the length of the model's own filters, so that landscapes of
different models can be compared. Biases, norms, tokens and batch norm's statistics stay where they are, and the model
is in evaluation mode, as in the paper. Two directions of millions: a valley seen here is one among many.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from featherweight.drawing import ACCENT, INK, MUTED, ROLES, Drawing, canvas, svg
from featherweight.errors import OptionError, clean
from featherweight.files import publish, publish_json
from featherweight.method import Batch, Task

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Direction = dict[str, Tensor]
FORMATS = (".svg", ".png")
LEVELS = 12


@dataclass(frozen=True)
class Landscape:
    """Loss and accuracy at (steps[i], steps[j]) along the two directions; None where it is not finite."""

    steps: tuple[float, ...]
    loss: tuple[tuple[float | None, ...], ...]  # rows: first direction
    top1: tuple[tuple[float, ...], ...]
    images: int
    seed: int
    parameters_moved: int

    @property
    def center(self) -> float | None:
        """The loss of the model itself."""
        middle = len(self.steps) // 2
        return self.loss[middle][middle]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"format": 1, **asdict(self), "center": self.center}


def landscape(
    model: nn.Module,
    batches: Iterable[Batch],
    task: Task,
    *,
    points: int = 21,
    span: float = 1.0,
    seed: int = 0,
    told: Callable[[int, int], object] | None = None,
) -> Landscape:
    """The task's loss on `batches` at points x points places, from -span to span times the length of the filters.

    points: odd, so that the model itself is the middle. told: gets how many places are done, and of how many.
    OptionError for a model without floating weights to move.
    """
    if points < 3 or points % 2 == 0:
        raise OptionError("points", f"{points!r} is not an odd number of 3 or more, with the model in the middle")
    if not 0 < span <= 100:
        raise OptionError("span", f"{span!r} is not above 0, at most 100")
    seen = list(batches)
    if not seen:
        raise OptionError("data", "there are no batches")
    probe = copy.deepcopy(model).eval()
    first, second = directions(probe, seed)
    start = {name: parameter.detach().clone() for name, parameter in probe.named_parameters() if name in first}
    steps = tuple(span * (2 * i / (points - 1) - 1) for i in range(points))
    loss: list[tuple[float | None, ...]] = []
    top1: list[tuple[float, ...]] = []
    for i, alpha in enumerate(steps):
        row = []
        for j, beta in enumerate(steps):
            _move(probe, start, (alpha, first), (beta, second))
            row.append(_evaluated(probe, seen, task))
            if told is not None:
                told(i * points + j + 1, points * points)
        loss.append(tuple(value if math.isfinite(value) else None for value, _ in row))
        top1.append(tuple(share for _, share in row))
    count = sum(len(batch["label"]) for batch in seen)
    return Landscape(steps, tuple(loss), tuple(top1), count, seed, sum(t.numel() for t in start.values()))


def directions(model: nn.Module, seed: int) -> tuple[Direction, Direction]:
    """Two directions with the filters' lengths, for every weight of two or more dimensions that belongs to a layer."""
    generator = torch.Generator().manual_seed(seed)
    weights = {name: parameter for name, parameter in model.named_parameters() if _moves(name, parameter)}
    if not weights:
        raise OptionError("model", "has no floating weights of two or more dimensions to move")
    first, second = ({name: _filterwise(weight, generator) for name, weight in weights.items()} for _ in range(2))
    return first, second


def _moves(name: str, parameter: nn.Parameter) -> bool:
    layer = name.rpartition(".")[2] == "weight"
    return layer and parameter.ndim > 1 and parameter.is_floating_point()


def _filterwise(weight: Tensor, generator: torch.Generator) -> Tensor:
    """Normal numbers, each filter (a row of a linear layer) as long as the weight's; a filter of zeros stays."""
    drawn = torch.randn(weight.shape, generator=generator).to(weight)
    flat, own = drawn.flatten(1), weight.detach().flatten(1)
    scale = own.norm(dim=1, keepdim=True) / (flat.norm(dim=1, keepdim=True) + 1e-10)
    return (flat * scale).reshape(weight.shape)


@torch.no_grad()
def _move(model: nn.Module, start: Mapping[str, Tensor], *moves: tuple[float, Direction]) -> None:
    for name, parameter in model.named_parameters():
        if name in start:
            parameter.copy_(start[name] + sum(share * direction[name] for share, direction in moves))


@torch.no_grad()
def _evaluated(model: nn.Module, batches: Sequence[Batch], task: Task) -> tuple[float, float]:
    """Mean loss and the share of right answers."""
    loss, right, count = 0.0, 0, 0
    for batch in batches:
        output = task.forward(model, batch)
        size = len(batch["label"])
        loss += size * sum(float(term) for term in task.loss(output, batch).values())
        right += int((output.argmax(-1) == batch["label"]).sum())
        count += size
    return loss / count, right / count


def draw(found: Landscape, *, title: str = "") -> Drawing:
    """Lines of equal loss, with the model in the middle."""
    with canvas(4.6, 4.2) as (figure, (axes,)):
        _contours(axes, found, title, {"line": ACCENT, "mark": INK, "text": MUTED})
        where = f"{found.center:.3g} in the middle" if found.center is not None else "not finite in the middle"
        return svg("landscape", figure, f"Loss over two random directions of the weights: {where}")


def save(found: Landscape, path: Path, *, title: str = "") -> Path:
    """The drawing as .svg or .png, and the numbers beside it as .json; OptionError for another ending."""
    if path.suffix not in FORMATS:
        raise OptionError("out", f"{path.name!r} ends neither in {' nor in '.join(FORMATS)}")
    publish_json(path.with_suffix(".json"), found.to_dict())
    if path.suffix == ".svg":
        publish(path, draw(found, title=title).file().encode())
        return path
    import io

    with canvas(4.6, 4.2) as (figure, (axes,)):
        colors = {"line": ROLES["accent"][1], "mark": ROLES["ink"][1], "text": ROLES["muted"][1]}
        _contours(axes, found, title, colors)
        stored = io.BytesIO()
        figure.savefig(stored, format="png", dpi=160, facecolor="white", metadata={"Software": None})
    publish(path, stored.getvalue())
    return path


def _contours(axes: Axes, found: Landscape, title: str, colors: Mapping[str, str]) -> None:
    known = [value for row in found.loss for value in row if value is not None]
    if not known or min(known) == max(known):
        raise OptionError("landscape", "is flat or not finite everywhere: there is nothing to draw")
    low, high = min(known), max(known)
    floor = max(low, 1e-4 * high) if low > 0 else None
    share = [i / LEVELS for i in range(1, LEVELS)]
    levels = [
        floor * (high / floor) ** s if floor else low + (high - low) * s for s in share
    ]  # as loss is read: by ratio
    values = [[high if value is None else value for value in row] for row in zip(*found.loss, strict=True)]
    lines = axes.contour(found.steps, found.steps, values, levels=levels, colors=[colors["line"]], linewidths=1.1)
    axes.clabel(lines, fontsize=7, fmt="%.3g", colors=[colors["text"]])
    axes.plot([0], [0], "o", color=colors["mark"], markersize=4)
    axes.set(xlabel="first direction", ylabel="second direction", aspect="equal")
    axes.set_title(clean(title, limit=60) if title else f"loss on {found.images} pictures")
    axes.grid(False)
