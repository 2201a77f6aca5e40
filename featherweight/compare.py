# SPDX-License-Identifier: Apache-2.0
"""Several runs side by side: one plot with all of them, and for each step the mean over the runs and what it proves.

Differences are paired: each run's step is compared with the first step of the same run. The interval of the mean is
Student's, so three runs need a large difference before anything is claimed; otherwise the words are "within noise".
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from featherweight import files, page, plots, tables
from featherweight.drawing import INK, MUTED, PAGE, SERIES, Drawing, canvas, svg
from featherweight.errors import OptionError, clean
from featherweight.pareto import place_labels, tidy_log_axis
from featherweight.report import Report, Stage, load

# Student's t for a two-sided 95 % interval by degrees of freedom; beyond the table the last one, which is cautious
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
COLUMNS = ("step", "runs", "acc %", "Δ points", "size", "p50 ms (bs1)", "vs base", "kept", "verdict")
NAME_LIMIT = 40


@dataclass(frozen=True)
class Mean:
    """The mean of one number over the runs, its spread (standard deviation) and half its 95 % interval."""

    value: float
    spread: float | None
    half: float | None
    n: int

    def text(self, digits: int) -> str:
        return f"{self.value:.{digits}f}" + ("" if self.spread is None else f" ±{self.spread:.{digits}f}")


@dataclass(frozen=True)
class Row:
    """One step over all runs that have it."""

    name: str
    runs: int
    kept: int
    accuracy: Mean | None
    difference: Mean | None  # in points, to the first step of the same run
    size_bytes: Mean | None
    median_ms: Mean | None
    ratio: Mean | None


@dataclass(frozen=True)
class Comparison:
    """Runs by name, a row for each step, and the sentences that the numbers allow."""

    names: tuple[str, ...]
    reports: tuple[Report, ...]
    rows: tuple[Row, ...]
    findings: tuple[str, ...]
    warnings: tuple[str, ...]

    def table(self) -> str:
        return tables.aligned([self.columns, *map(cells, self.rows)])

    @property
    def what(self) -> str:
        """What is compared: accuracy, or AP of detectors."""
        return tables.KINDS[tables.kind([stage for report in self.reports for stage in report.stages])]

    @property
    def columns(self) -> tuple[str, ...]:
        """The heads of the table."""
        return tuple("AP %" if name == "acc %" and self.what == "AP" else name for name in COLUMNS)


def compare(
    sources: Sequence[str | os.PathLike[str] | Report], *, folder: str | os.PathLike[str] | None = None
) -> Comparison:
    """Lay reports (values, report.json or run folders) side by side; into `folder` go compare.html, .md and .svg."""
    if not sources:
        raise OptionError("report", "no run to compare; name at least two run folders")
    reports = tuple(source if isinstance(source, Report) else load(source) for source in sources)
    names = tuple(
        f"run {i + 1}" if isinstance(source, Report) else clean(_run_name(Path(source)), limit=NAME_LIMIT)
        for i, source in enumerate(sources)
    )
    steps = dict.fromkeys(stage.name for report in reports for stage in report.stages)
    rows = tuple(_row(name, reports) for name in steps)
    findings = tuple(sentence for row in rows[1:] if (sentence := finding(row, rows[0].name)))
    result = Comparison(names, reports, rows, findings, _warnings(reports))
    if folder is not None:
        _write(result, Path(folder))
    return result


def _run_name(path: Path) -> str:
    return path.parent.name if path.is_file() else path.resolve().name


def _warnings(reports: Sequence[Report]) -> tuple[str, ...]:
    found = []
    if len({str(report.environment.get("cpu")) for report in reports}) > 1:
        found.append("the runs were measured on different processors: compare ratios, not milliseconds")
    if len({report.fingerprint for report in reports}) > 1:
        found.append("the runs saw different data: their accuracies do not compare")
    if len({tables.kind(report.stages) for report in reports}) > 1:
        found.append("some runs are of classifiers, others of detectors: their accuracies do not compare")
    return tuple(found)


def average(values: Sequence[float]) -> Mean | None:
    """Mean, standard deviation and half of Student's 95 % interval; of a single value only the value."""
    if not values:
        return None
    if len(values) == 1:
        return Mean(values[0], None, None, 1)
    spread = stdev(values)
    factor = STUDENT[min(len(values) - 1, len(STUDENT)) - 1]
    return Mean(mean(values), spread, factor * spread / math.sqrt(len(values)), len(values))


def _row(name: str, reports: Sequence[Report]) -> Row:
    pairs = [(stage, report) for report in reports for stage in report.stages if stage.name == name]
    stages = [stage for stage, _ in pairs]

    def over(value: Callable[[Stage, Report], float | None]) -> Mean | None:
        return average([found for stage, report in pairs if (found := value(stage, report)) is not None])

    return Row(
        name=name,
        runs=len(stages),
        kept=sum(stage.kept for stage in stages),
        accuracy=over(lambda stage, _: _percent(stage)),
        difference=over(_difference),
        size_bytes=over(lambda stage, _: stage.measurement.size_bytes),
        median_ms=over(lambda stage, _: found.median_ms if (found := stage.latency()) else None),
        ratio=over(lambda stage, report: found[0] if (found := tables.ratio(stage, report.stages)) else None),
    )


def _percent(stage: Stage) -> float | None:
    found = tables.score(stage.measurement)
    return found.value if found else None


def _difference(stage: Stage, report: Report) -> float | None:
    mine, base = _percent(stage), _percent(report.stages[0])
    return None if mine is None or base is None or stage is report.stages[0] else mine - base


def judged(difference: Mean | None) -> str:
    """better, worse or within noise; nothing is said of a single run."""
    if difference is None or difference.half is None:
        return tables.NOTHING
    if abs(difference.value) <= difference.half or tables.points(difference.value) == "0.0":
        return "within noise"
    return "better" if difference.value > 0 else "worse"


def finding(row: Row, base: str) -> str:
    """distilled against baseline over 3 runs: +0.3 ± 0.4 points (95 %): within noise"""
    if row.difference is None or row.difference.half is None:
        return ""
    name, first = (clean(text, limit=NAME_LIMIT) for text in (row.name, base))
    figure = f"{tables.points(row.difference.value)} ± {row.difference.half:.1f} points (95 %)"
    return f"{name} against {first} over {row.difference.n} runs: {figure}: {judged(row.difference)}"


def cells(row: Row) -> tuple[str, ...]:
    """One row as text: accuracy with its spread over the runs, differences with half their 95 % interval."""
    d = row.difference
    nothing = tables.NOTHING
    return (
        clean(row.name, limit=NAME_LIMIT),
        str(row.runs),
        row.accuracy.text(1) if row.accuracy else nothing,
        nothing if d is None else tables.points(d.value) + ("" if d.half is None else f" ±{d.half:.1f}"),
        tables.size(round(row.size_bytes.value)) if row.size_bytes else nothing,
        row.median_ms.text(2) if row.median_ms else nothing,
        f"{row.ratio.text(2)}×" if row.ratio else nothing,
        f"{row.kept}/{row.runs}",
        judged(d),
    )


def drawn(comparison: Comparison) -> Drawing | None:
    """All runs on one plot, a color each; the steps are named once if all runs have the same ones."""
    found = [(n, p) for n, r in zip(comparison.names, comparison.reports, strict=True) if (p := plots.points(r.stages))]
    if not found:
        return None
    same = len({tuple(p.name for p in mine) for _, mine in found}) == 1
    everything = [p for _, mine in found for p in mine]
    with canvas(8.6, 4.6) as (figure, (axes,)):
        for number, (name, mine) in enumerate(found):
            color, kept = SERIES[(number + 1) % len(SERIES)], [p for p in mine if p.kept]
            axes.plot([p.x for p in kept], [p.y for p in kept], color=color, linewidth=1.5, alpha=0.6, label=name)
            for point in mine:
                face = color if point.kept else PAGE
                axes.scatter(point.x, point.y, s=46, facecolors=face, edgecolors=color, linewidths=1.6, zorder=4)
        axes.set_xscale("log")
        axes.set(xlabel="latency in ms, batch 1 (log)  ·  left is faster", ylabel=f"{comparison.what} %")
        tidy_log_axis(axes, [p.x for p in everything])
        low, high = min(p.y for p in everything), max(p.y for p in everything)
        room = 0.2 * (high - low or 1)
        axes.set_ylim(low - room, high + room)
        if len(found) > 1:
            figure.legend(loc="outside lower center", ncols=min(4, len(found)), fontsize=8.5)
        place_labels(figure, axes, found[0][1] if same else everything, colors=(INK, MUTED, PAGE))
        names = ", ".join(name for name, _ in found)
        return svg("compare", figure, f"{comparison.what} against latency of {names}; the table has the numbers")


def _write(comparison: Comparison, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    figure = drawn(comparison)
    values: dict[str, Any] = {"comparison": comparison, "figure": figure, "columns": comparison.columns}
    rows = [cells(row) for row in comparison.rows]
    files.publish(folder / "compare.html", page.template("compare.html.j2", rows=rows, **values).encode())
    files.publish(folder / "compare.md", page.template("compare.md.j2", rows=rows, **values).encode())
    if figure:
        files.publish(folder / "compare.svg", figure.file().encode())
