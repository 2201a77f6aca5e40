# SPDX-License-Identifier: Apache-2.0
"""Points of an accuracy plot, ticks for a logarithmic axis that spans less than a decade, labels apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MANTISSAS = (
    (1.0,),
    (1.0, 3.0),
    (1.0, 2.0, 5.0),
    (1.0, 1.5, 2.0, 3.0, 5.0, 7.0),
    tuple(1 + 0.25 * i for i in range(36)),
)
GAP = 3.0  # pixels between labels
AROUND = tuple((sx, k / 4) for sx in (1, -1) for k in (0, 1, -1, 2, -2, 3, -3, 4, -4)) + tuple(
    (k / 4, sy) for sy in (1, -1) for k in (0, 1, -1, 2, -2, 3, -3)
)  # where a label may stand around its point, in halves of its size

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Point:
    """A stage in a plot: x with its spread, accuracy in percent with its interval, area of the marker."""

    name: str
    x: float
    x_low: float
    x_high: float
    y: float
    low: float
    high: float
    area: float
    kept: bool = True


def ticks(low: float, high: float) -> list[float]:
    """Between three and eight round numbers in [low, high] (> 0), as evenly spread as a logarithmic axis allows."""
    found: list[float] = []
    for mantissas in MANTISSAS:
        exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        candidates = [m * 10.0**e for e in exponents for m in mantissas]
        inside = [c for c in candidates if low <= c <= high]
        if len(inside) > 8:
            break
        found = inside
        if len(found) >= 4:
            break
    return found or [low, high]


def tidy_log_axis(axes: Axes, values: Sequence[float], *, size: bool = False) -> None:
    """Limits around `values` with room for labels, and plain numbers (or bytes) at round places."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    low, high = max(min(values), 1e-6), max(max(values), 1e-6)
    room = 0.12 * math.log(high / low) + 0.12
    low, high = low * math.exp(-room), high * math.exp(room)
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(FixedLocator(ticks(low, high)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _bytes(value) if size else f"{value:.4g}"))


def _bytes(value: float) -> str:
    return f"{value / 1e6:.3g} MB" if value >= 1e6 else f"{value / 1e3:.3g} kB" if value >= 1e3 else f"{value:.3g} B"


def place_labels(
    figure: Figure, axes: Axes, points: Sequence[Point], *, colors: tuple[str, str, str], size: float = 9.0
) -> None:
    """Write each point's name where it covers no marker, no line and no other name; a line leads to one moved far.

    `colors` are those of text, of pale text and of the page.
    """
    from matplotlib.font_manager import FontProperties

    figure.draw_without_rendering()
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    frame, scale = axes.get_window_extent(renderer), figure.dpi / 72.0
    marks = [_mark(axes, p, scale) for p in points]
    stayed = [m for p, m in zip(points, marks, strict=True) if p.kept]
    lines = [m.bar for m in marks] + [box for a, b in pairwise(stayed) for box in _segment(a, b)]
    font = FontProperties(size=size)
    sizes = [renderer.get_text_width_height_descent(p.name, font, False)[:2] for p in points]
    boxes: dict[int, Box] = {}
    for _ in range(3):  # later rounds mend what the first could not know
        for i, (width, height) in enumerate(sizes):
            others = [box for j, box in boxes.items() if j != i]
            boxes[i] = _best(marks, i, (1.05 * width, height), others, lines, (frame.x0, frame.y0, frame.x1, frame.y1))
    for i, p in enumerate(points):
        mark, box = marks[i], boxes[i]
        offset = (((box[0] + box[2]) / 2 - mark.x) / scale, ((box[1] + box[3]) / 2 - mark.y) / scale)
        far = float(_distances(np.array([box]), mark)[0]) > mark.radius + 9 * scale
        line = {"arrowstyle": "-", "color": colors[1], "linewidth": 0.7, "shrinkA": 0, "shrinkB": mark.radius / scale}
        axes.annotate(
            p.name, (p.x, p.y), xytext=offset, textcoords="offset points", ha="center", va="center", fontsize=size,
            color=colors[0] if p.kept else colors[1], arrowprops=line if far else None, annotation_clip=False, zorder=6,
            bbox={"facecolor": colors[2], "edgecolor": "none", "alpha": 0.7, "pad": 1.0},
        )  # fmt: skip


@dataclass(frozen=True)
class _Mark:
    """Where a point stands in pixels: its marker and the bar of its interval."""

    x: float
    y: float
    radius: float
    bar: Box

    @property
    def box(self) -> Box:
        return self.x - self.radius, self.y - self.radius, self.x + self.radius, self.y + self.radius


def _mark(axes: Axes, p: Point, scale: float) -> _Mark:
    (x, y), (_, bottom), (_, top) = axes.transData.transform([(p.x, p.y), (p.x, p.low), (p.x, p.high)]).tolist()
    return _Mark(x, y, math.sqrt(p.area / math.pi) * scale + 1, (x - 2.0, bottom, x + 2.0, top))


def _segment(a: _Mark, b: _Mark) -> list[Box]:
    """A line as small boxes along it."""
    count = max(1, int(math.hypot(b.x - a.x, b.y - a.y) / 6))
    along = [(a.x + (b.x - a.x) * i / count, a.y + (b.y - a.y) * i / count) for i in range(count + 1)]
    return [(x - 3, y - 3, x + 3, y + 3) for x, y in along]


def _best(
    marks: Sequence[_Mark], i: int, size: tuple[float, float], names: Sequence[Box], lines: Sequence[Box], limits: Box
) -> Box:
    """The candidate around mark i with the least overlap; among equals the nearest."""
    mark, half = marks[i], np.array(size) / 2
    away = mark.radius + 4 + 9 * np.arange(8)[:, None, None]  # rings of candidates
    centers = ((mark.x, mark.y) + np.array(AROUND) * (away + half)).reshape(-1, 2)
    boxes = np.concatenate([centers - half - GAP, centers + half + GAP], axis=1)
    distances = np.stack([_distances(boxes, other) for other in marks], axis=1)
    cost = 3 * _overlaps(boxes, [*names, *(m.box for m in marks)]) + 0.35 * _overlaps(boxes, lines)
    cost += 20 * ((2 * half + 2 * GAP).prod() - _overlaps(boxes, [limits]))
    cost += 60 * (distances < distances[:, i : i + 1]).sum(axis=1) + 4 * distances[:, i]
    x0, y0, x1, y1 = boxes[int(cost.argmin())].tolist()
    return x0, y0, x1, y1


def _distances(boxes: np.ndarray, mark: _Mark) -> np.ndarray:
    """From each box to the center of a mark."""
    dx = np.maximum(np.maximum(boxes[:, 0] - mark.x, mark.x - boxes[:, 2]), 0)
    dy = np.maximum(np.maximum(boxes[:, 1] - mark.y, mark.y - boxes[:, 3]), 0)
    return np.hypot(dx, dy)


def _overlaps(boxes: np.ndarray, others: Sequence[Box]) -> np.ndarray:
    """Pixels that each box shares with the others."""
    if not others:
        return np.zeros(len(boxes))
    other = np.array(others)
    low, high = np.maximum(boxes[:, None, :2], other[None, :, :2]), np.minimum(boxes[:, None, 2:], other[None, :, 2:])
    return np.maximum(high - low, 0).prod(axis=2).sum(axis=1)
