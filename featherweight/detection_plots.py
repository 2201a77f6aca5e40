# SPDX-License-Identifier: Apache-2.0
"""Figures of a detector: precision by recall, F1 by confidence, who is taken for whom, what each kind of error costs.

`write` makes them all from what lies in each picture and what was detected there, with the numbers beside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featherweight.drawing import ACCENT, BAD, INK, MUTED, SERIES, Drawing, canvas, svg
from featherweight.errors import clean
from featherweight.files import publish, publish_json
from featherweight.scores import curves, errors
from featherweight.scores.coco import RECALLS, Truth
from featherweight.scores.curves import ClassCurves
from featherweight.scores.errors import Errors

MAX_NAMED = 10  # classes with a line of their own; the others are drawn pale
MAX_CLASSES = 25  # of a confusion matrix that is drawn
LABEL = 24  # characters of a name


def write(
    truth: Sequence[Truth],
    detections: Sequence[NDArray[np.floating]],
    folder: str | Path,
    *,
    classes: Sequence[str],
    confidence: float | None = None,
) -> dict[str, Any]:
    """The figures as SVG files and their numbers as detection.json; the numbers.

    confidence: of the confusion matrix; where the mean F1 is highest unless given.
    """
    count, place = len(classes), Path(folder)
    drawn = curves.curves(truth, detections, classes=count)
    best = drawn.best_confidence if confidence is None else confidence
    table = errors.confusion(truth, detections, classes=count, confidence=best)
    told = errors.split(truth, detections, classes=count)
    figures = [precision_recall(drawn, classes), f1(drawn, classes), error_costs(told)]
    figures += [matrix] if (matrix := confusion(table, classes, confidence=best)) else []
    place.mkdir(parents=True, exist_ok=True)
    for figure in figures:
        publish(place / f"{figure.name}.svg", figure.file().encode("utf-8"))
    numbers = {
        "classes": list(classes),
        "best_confidence": drawn.best_confidence,
        "confidence": best,
        "confusion": table.tolist(),
        "errors": {"ap50": told.ap50, "gains": told.gains, "counts": told.counts},
        "curves": {
            "confidence": drawn.confidences.tolist(),
            **{name: _plain(getattr(drawn, name)) for name in ("precision", "recall", "f1", "precision_at_recall")},
        },
    }
    publish_json(place / "detection.json", numbers)
    return numbers


def precision_recall(drawn: ClassCurves, classes: Sequence[str]) -> Drawing:
    """COCO's falling precision at IoU 0.5, a line for each class and a strong one for their mean."""
    alt = "Precision by recall at IoU 0.5 of " + ", ".join(_names(classes))
    return _lines("precision_recall", RECALLS, drawn.precision_at_recall, classes, ("recall", "precision"), alt)


def f1(drawn: ClassCurves, classes: Sequence[str]) -> Drawing:
    """F1 by confidence, with a mark where the mean is highest."""
    best = drawn.best_confidence
    alt = f"F1 by confidence at IoU 0.5; the mean of the classes is highest at {best:.2f}"
    return _lines("f1", drawn.confidences, drawn.f1, classes, ("confidence", "F1"), alt, mark=best)


def _lines(
    name: str,
    x: NDArray[np.float64],
    rows: NDArray[np.float64],
    classes: Sequence[str],
    axes: tuple[str, str],
    alt: str,
    *,
    mark: float | None = None,
) -> Drawing:
    there = [k for k in range(len(classes)) if not np.isnan(rows[k, 0])]
    with canvas(6.4, 3.6) as (figure, (plot,)):
        for number, k in enumerate(there):
            named = len(there) <= MAX_NAMED
            color = SERIES[number % len(SERIES)] if named else MUTED
            style = "-" if number < len(SERIES) or not named else "--"
            text = clean(classes[k], limit=LABEL) if named else None
            plot.plot(x, rows[k], style, color=color, linewidth=1.2, alpha=0.9 if named else 0.25, label=text)
        if there:
            plot.plot(x, rows[there].mean(0), color=INK, linewidth=2.4, label="mean of the classes")
            plot.legend(fontsize=8, loc="lower left" if mark is None else "best")
        if mark is not None and there:
            plot.axvline(mark, color=MUTED, linewidth=1, linestyle=":")
        plot.set(xlim=(0, 1), ylim=(0, 1.02), xlabel=axes[0], ylabel=axes[1])
        return svg(name, figure, alt)


def confusion(table: NDArray[np.int64], classes: Sequence[str], *, confidence: float) -> Drawing | None:
    """Truth by detection with background last, as shares of each row; None for more classes than can be read."""
    count = len(table)
    if count - 1 > MAX_CLASSES:
        return None
    from matplotlib.patches import Rectangle

    names = [*(clean(name, limit=12) for name in classes), "background"]
    shares = table / np.maximum(table.sum(1, keepdims=True), 1)
    side = 2.2 + 0.36 * count
    with canvas(side + 0.6, side) as (figure, (plot,)):
        for i, j in np.argwhere(table > 0).tolist():
            color = ACCENT if i == j else BAD
            plot.add_patch(
                Rectangle((j - 0.5, i - 0.5), 1, 1, color=color, alpha=0.1 + 0.6 * shares[i, j], linewidth=0)
            )
            if count <= 16:
                plot.text(j, i, str(table[i, j]), ha="center", va="center", fontsize=7)
        plot.set(xlim=(-0.5, count - 0.5), ylim=(count - 0.5, -0.5), aspect="equal", xlabel="detected", ylabel="truth")
        plot.set_xticks(range(count), names, rotation=90, fontsize=7.5)
        plot.set_yticks(range(count), names, fontsize=7.5)
        plot.grid(False)
        right = int(np.trace(table[:-1, :-1]))
        total = int(table[:-1].sum())
        alt = f"Confusion at confidence {confidence:.2f}: {right} of {total} objects found as what they are"
        return svg("confusion", figure, alt)


def error_costs(told: Errors) -> Drawing:
    """What AP50 would gain if each kind of error were mended, with how often it occurs."""
    kinds = list(told.gains)
    with canvas(6.4, 2.8) as (figure, (plot,)):
        values = [100 * told.gains[kind] for kind in kinds]
        plot.barh(range(len(kinds)), values, color=BAD, alpha=0.75, height=0.6)
        for i, kind in enumerate(kinds):
            plot.text(values[i], i, f" +{values[i]:.1f} ({told.counts[kind]})", va="center", fontsize=8.5, color=INK)
        plot.set_yticks(range(len(kinds)), kinds)
        plot.invert_yaxis()
        plot.set(xlabel="points of AP50 gained if mended", xlim=(0, max([*values, 1.0]) * 1.25))
        worst = max(kinds, key=lambda kind: told.gains[kind])
        return svg("errors", figure, f"What errors cost of AP50 {100 * told.ap50:.1f}: most by {worst}")


def _names(classes: Sequence[str]) -> list[str]:
    some = [clean(name, limit=LABEL) for name in classes[:MAX_NAMED]]
    return [*some, f"and {len(classes) - MAX_NAMED} more"] if len(classes) > MAX_NAMED else some


def _plain(rows: NDArray[np.float64]) -> list[list[float | None]]:
    """Rounded numbers, None for a class without objects."""
    return [[None if np.isnan(value) else round(float(value), 6) for value in row] for row in rows]
