# SPDX-License-Identifier: Apache-2.0
"""The figures of a report: accuracy against latency and size, training, confusion, sensitivity, latency."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from featherweight import tables
from featherweight.drawing import ACCENT, BAD, GOOD, INK, MUTED, PAGE, SERIES, Drawing, canvas, svg
from featherweight.errors import clean
from featherweight.latency import quantile
from featherweight.pareto import Point, place_labels, tidy_log_axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from featherweight.latency import Latency
    from featherweight.report import Report, Stage

MAX_CLASSES = 25  # of a confusion matrix that is drawn
MAX_BARS = 24
MAX_CURVES = 10
RIGHT = dict.fromkeys(("top1", "val_top1", "accuracy"), "validation accuracy %") | {"val_AP": "validation AP %"}
LABEL = 34  # characters of a name in a figure


def figures(report: Report) -> dict[str, Drawing]:
    """Every figure the report has the numbers for."""
    drawn = (
        pareto(report.stages, against="latency"),
        pareto(report.stages, against="size"),
        curves(report.curves),
        confusion(report),
        sensitivity(report.sensitivity),
        latencies(report.stages),
    )
    return {drawing.name: drawing for drawing in drawn if drawing}


def label(name: object) -> str:
    return clean(name, limit=LABEL)


def finite(value: object) -> float | None:
    """A number that can be drawn, or None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if abs(value) < 1e30 else None  # NaN compares as False


def pareto(stages: Sequence[Stage], *, against: str) -> Drawing | None:
    """Accuracy over latency at batch 1 (or bytes on disk), log x; left out is hollow, what stayed is joined."""
    found = points(stages, against)
    if not found:
        return None
    latency = against == "latency"
    with canvas(6.4 if latency else 4.5, 3.9) as (figure, (axes,)):
        kept = [p for p in found if p.kept]
        axes.plot([p.x for p in kept], [p.y for p in kept], color=ACCENT, linewidth=1.6, alpha=0.45, zorder=2)
        for number, p in enumerate(found):
            color = MUTED if number == 0 else GOOD if kept and p is kept[-1] else ACCENT
            color = color if p.kept else BAD
            error: Any = {"ecolor": color, "elinewidth": 1.0, "capsize": 2, "alpha": 0.4, "fmt": "none", "zorder": 3}
            axes.errorbar(
                p.x, p.y, xerr=[[p.x - p.x_low], [p.x_high - p.x]], yerr=[[p.y - p.low], [p.high - p.y]], **error
            )
            face = color if p.kept else PAGE
            axes.scatter(p.x, p.y, s=p.area, facecolors=face, edgecolors=color, linewidths=1.8, alpha=0.95, zorder=4)
        axes.set_xscale("log")
        axes.set_xlabel(_axis(stages) if latency else "bytes on disk (log)  ·  left is smaller")
        what = tables.KINDS[tables.kind(stages)]
        axes.set_ylabel(f"{what} %")
        tidy_log_axis(axes, [v for p in found for v in (p.x_low, p.x_high)], size=not latency)
        low, high = min(p.low for p in found), max(p.high for p in found)
        axes.set_ylim(low - 0.14 * (high - low or 1), high + 0.14 * (high - low or 1))
        place_labels(figure, axes, found, colors=(INK, MUTED, PAGE))
        unit = "ms" if latency else "bytes"
        each = [f"{p.name} {p.y:.1f} % at {p.x:.3g} {unit}{'' if p.kept else ' (left out)'}" for p in found]
        return svg("pareto" if latency else "pareto-size", figure, f"{what} against {against}: " + "; ".join(each))


def points(stages: Sequence[Stage], against: str = "latency") -> list[Point]:
    """The stages that have an accuracy and a latency (or a size)."""
    largest = max((s.measurement.size_bytes or 0 for s in stages), default=0)
    found = []
    for stage in stages:
        mine, timed, weight = tables.score(stage.measurement), stage.latency(), stage.measurement.size_bytes
        if mine is None or (timed is None if against == "latency" else not weight):
            continue
        x, low, high = _x(timed, weight, against)
        area = 50 + 220 * (weight or 0) / largest if largest and against == "latency" else 70.0
        found.append(Point(label(stage.name), x, low, high, mine.value, mine.low, mine.high, area, stage.kept))
    return found


def _axis(stages: Sequence[Stage]) -> str:
    """The label of the latency axis, with the machine, because this is the picture that travels alone."""
    text = "latency in ms, batch 1 (log)  ·  left is faster"
    timed = [found.conditions for stage in stages if (found := stage.latency())]
    if not timed:
        return text
    runtimes = clean(", ".join(dict.fromkeys(c.runtime for c in timed)), limit=50)
    return f"{text}\n{clean(timed[0].cpu, limit=50)} · {_threads(timed[0].threads)} · {runtimes}"


def _threads(count: int) -> str:
    return f"{count} thread" if count == 1 else f"{count} threads"


def _x(timed: Latency | None, weight: int | None, against: str) -> tuple[float, float, float]:
    if against == "latency" and timed is not None:
        return timed.median_ms, timed.p10_ms, timed.p90_ms
    return float(weight or 0), float(weight or 0), float(weight or 0)


def curves(rows: Sequence[Mapping[str, Any]]) -> Drawing | None:
    """Loss and accuracy over epochs, a line for each stage that was trained."""
    names = list(dict.fromkeys(str(row.get("stage", "")) for row in rows))[:MAX_CURVES]
    loss = next((k for k in ("loss", "train_loss", "total") if any(finite(r.get(k)) is not None for r in rows)), None)
    right = next((k for k in RIGHT if any(finite(r.get(k)) is not None for r in rows)), None)
    panels = [(key, title) for key, title in ((loss, "training loss"), (right, RIGHT.get(str(right), ""))) if key]
    if not panels:
        return None
    from matplotlib.ticker import MaxNLocator

    with canvas(7.6, 3.0, columns=len(panels)) as (figure, axes):
        for plot, (key, title) in zip(axes, panels, strict=True):
            for number, name in enumerate(names):
                x, y = _line(rows, name, key, scale=100 if key == right else 1)
                style = "-" if number < len(SERIES) else "--"
                color = SERIES[number % len(SERIES)]
                plot.plot(x, y, style, color=color, linewidth=1.7, marker="o", markersize=3, label=label(name))
            plot.set_title(title)
            plot.set_xlabel("epoch")
            plot.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
            if plot.get_xlim()[1] - plot.get_xlim()[0] < 1:  # one epoch
                plot.margins(x=10)
        handles, texts = axes[0].get_legend_handles_labels()
        if len(names) > 1:
            figure.legend(handles, texts, loc="outside lower center", ncols=min(4, len(names)), fontsize=8.5)
        return svg("curves", figure, "Training curves of " + ", ".join(map(label, names)))


def _line(rows: Sequence[Mapping[str, Any]], name: str, key: str, *, scale: float) -> tuple[list[float], list[float]]:
    """Epochs and values of one stage, where both are numbers."""
    mine = [(finite(row.get("epoch")), finite(row.get(key))) for row in rows if str(row.get("stage", "")) == name]
    known = [(epoch, scale * value) for epoch, value in mine if epoch is not None and value is not None]
    return [epoch for epoch, _ in known], [value for _, value in known]


def confusion(report: Report) -> Drawing | None:
    """Truth (rows) by answer, before and after, and the difference; right answers are pale, mistakes are strong."""
    base, small, count = report.confusion_base, report.confusion_small, len(report.answers)
    if not 2 <= count <= MAX_CLASSES or not any(len(m) == count for m in (base, small)):
        return None
    panels = [(title, matrix) for title, matrix in (("before", base), ("after", small)) if len(matrix) == count]
    if len(panels) == 2:
        rows = zip(base, small, strict=True)
        panels.append(("change", tuple(tuple(b - a for a, b in zip(*row, strict=True)) for row in rows)))
    names = [clean(c, limit=12) for c in report.answers]
    with canvas(3.3 * len(panels), 3.5, columns=len(panels)) as (figure, axes):
        for plot, (title, matrix) in zip(axes, panels, strict=True):
            _matrix(plot, title, matrix, names)
        wrong = [sum(v for i, row in enumerate(m) for j, v in enumerate(row) if i != j) for _, m in panels[:2]]
        return svg("confusion", figure, "Confusion matrix; mistakes " + " before, ".join(map(str, wrong)) + " after")


def _matrix(plot: Axes, title: str, matrix: Sequence[Sequence[int]], names: Sequence[str]) -> None:
    from matplotlib.patches import Rectangle

    count, change = len(names), title == "change"
    mistakes = max([abs(v) for i, row in enumerate(matrix) for j, v in enumerate(row) if change or i != j] or [1]) or 1
    for i, row in enumerate(matrix):
        for j, value in enumerate(row):
            if not value:
                continue
            better = (value > 0) == (i == j)
            color = (GOOD if better else BAD) if change else ACCENT if i == j else BAD
            alpha = 0.16 if i == j and not change else 0.15 + 0.7 * min(1.0, abs(value) / mistakes)
            plot.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, color=color, alpha=alpha, linewidth=0))
            if count <= 15:
                text = f"{value:+d}".replace("-", "−") if change else str(value)
                plot.text(j, i, text, ha="center", va="center", fontsize=7.5 if count <= 10 else 6)
    plot.set(xlim=(-0.5, count - 0.5), ylim=(count - 0.5, -0.5), aspect="equal", title=title, xlabel="answer")
    plot.set_xticks(range(count), names, rotation=90 if max(map(len, names)) > 3 else 0, fontsize=7.5)
    plot.set_yticks(range(count), names if title == "before" else [""] * count, fontsize=7.5)
    plot.set_ylabel("truth" if title == "before" else "")
    plot.grid(False)


def sensitivity(rows: Sequence[Mapping[str, Any]]) -> Drawing | None:
    """How many points are lost when only this layer is changed, worst first."""
    pairs = [(label(row.get("layer", "")), value) for row in rows if (value := finite(row.get("drop"))) is not None]
    pairs = sorted(pairs, key=lambda pair: (-pair[1], pair[0]))[:MAX_BARS]
    if not pairs:
        return None
    with canvas(7.4, 0.9 + 0.2 * len(pairs)) as (figure, (axes,)):
        places = range(len(pairs))
        axes.barh(
            places, [v for _, v in pairs], height=0.62, color=[BAD if v > 0 else GOOD for _, v in pairs], alpha=0.85
        )
        axes.set_yticks(places, [name for name, _ in pairs], fontsize=8)
        axes.set(ylim=(len(pairs) - 0.4, -0.6), xlabel="points lost when only this layer is changed")
        axes.grid(False, axis="y")
        return svg("sensitivity", figure, "Most sensitive layers: " + "; ".join(f"{n} {v:.2f}" for n, v in pairs[:5]))


def latencies(stages: Sequence[Stage]) -> Drawing | None:
    """Boxes over the timed calls: quartiles, 10th and 90th percentile; a panel per batch, a color per runtime."""
    timed = [(label(name), found) for name, found in tables.timed(stages) if len(found.samples_ms) >= 5]
    batches = sorted({found.conditions.batch for _, found in timed})[:3]
    if not batches:
        return None
    runtimes = list(dict.fromkeys(found.conditions.runtime for _, found in timed))
    tallest = max(sum(f.conditions.batch == b for _, f in timed) for b in batches)
    with canvas(10.4, 1.0 + 0.2 * tallest, columns=len(batches)) as (figure, axes):
        for plot, batch in zip(axes, batches, strict=True):
            rows = [(name, found) for name, found in timed if found.conditions.batch == batch]
            for place, (_, found) in enumerate(rows):
                _box(plot, place, found, SERIES[(runtimes.index(found.conditions.runtime) + 1) % len(SERIES)])
            names = [f"{name} · {found.conditions.runtime}" for name, found in rows]
            plot.set_yticks(range(len(rows)), names if plot is axes[0] else [""] * len(rows), fontsize=8)
            plot.set(ylim=(len(rows) - 0.4, -0.6), xscale="log", title=f"batch {batch}", xlabel="ms per call (log)")
            tidy_log_axis(plot, [v for _, found in rows for v in (found.p10_ms, found.p90_ms)])
            plot.grid(False, axis="y")
        return svg("latency", figure, "Latency of every stage in every runtime; the table below has the numbers")


def _box(plot: Axes, place: int, found: Latency, color: str) -> None:
    low, middle, high = (quantile(found.samples_ms, q) for q in (0.25, 0.5, 0.75))
    plot.plot([found.p10_ms, found.p90_ms], [place, place], color=color, linewidth=1.2)
    plot.barh(place, max(high - low, 1e-9), left=low, height=0.55, color=color, alpha=0.35, linewidth=0)
    plot.plot([middle, middle], [place - 0.28, place + 0.28], color=color, linewidth=2)
