# SPDX-License-Identifier: Apache-2.0
"""The stages of a run as a table for a terminal, Markdown or a spreadsheet, and the three figures of the headline.

Accuracies are given in percent with half the width of their 95 % interval, latencies as median and half the distance
from the 10th to the 90th percentile. Names come from data: control characters are made visible before they are shown.
"""

from __future__ import annotations

import csv
import io
import re
import sys
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

from featherweight.accuracies import KINDS as KINDS
from featherweight.accuracies import Score as Score
from featherweight.accuracies import kind as kind
from featherweight.accuracies import score as score
from featherweight.errors import OptionError, clean, closest
from featherweight.latency import Latency, faster, verdict

if TYPE_CHECKING:
    from featherweight.report import Stage

COLUMNS = ("step", "acc %", "Δ", "MMACs", "size", "p50 ms (bs1)", "vs base", "kept")
STYLES = ("text", "markdown", "csv")
NAME_LIMIT = 60
NOTHING = "–"


def columns(stages: Sequence[Stage]) -> tuple[str, ...]:
    """The heads of the table; detectors have AP and AP50."""
    first = {"AP": ("AP %", "AP50 %"), "f1": ("F1 %",)}.get(kind(stages), COLUMNS[1:2])
    return (COLUMNS[0], *first, *COLUMNS[2:])


def table(stages: Sequence[Stage], *, style: str = "text") -> str:
    """One row per stage as "text" with aligned columns, "markdown" or "csv"."""
    if style not in STYLES:
        raise OptionError("style", f"no {style!r} here; {closest(style, STYLES)}Known: {', '.join(STYLES)}.")
    if style == "csv":
        return _csv(stages)
    rows = [columns(stages), *(tuple(clean(cell, limit=2 * NAME_LIMIT) for cell in _cells(s, stages)) for s in stages)]
    if style == "text":
        return aligned(rows)
    lines = ["| " + " | ".join(markdown_text(cell) for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "|---|" + "---:|" * (len(rows[0]) - 2) + "---|", *lines[1:]]) + "\n"


def show(stages: Sequence[Stage], *, file: IO[str] | None = None) -> None:
    """Print the table: drawn by rich on a terminal, plain text elsewhere."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    stream = file or sys.stdout
    console = Console(file=stream)
    if not console.is_terminal or console.width < 100:
        stream.write(table(stages))
        return
    drawn = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns(stages):
        drawn.add_column(name, justify="left" if name in ("step", "kept") else "right", no_wrap=name != "kept")
    for stage in stages:
        cells = [Text(clean(cell, limit=2 * NAME_LIMIT)) for cell in _cells(stage, stages)]
        drawn.add_row(*cells, style="" if stage.kept else "dim")
    console.print(drawn)


def _cells(stage: Stage, stages: Sequence[Stage]) -> tuple[str, ...]:
    found, first = stage.measurement, stage is stages[0]
    mine, base = score(found), score(stages[0].measurement)
    delta = NOTHING if first or not mine or not base else points(mine.value - base.value)
    return (
        clean(stage.name, limit=NAME_LIMIT),
        accuracy(mine),
        *([percent(mine.ap50 if mine else None)] if kind(stages) == "AP" else []),
        delta,
        millions(found.macs),
        size(found.size_bytes),
        milliseconds(stage.latency()),
        against(stage, stages),
        kept(stage, first=first),
    )


def accuracy(mine: Score | None) -> str:
    """97.1 ±0.6; without an interval the value alone."""
    return NOTHING if mine is None else f"{mine.value:.1f} ±{mine.half:.1f}" if mine.half else f"{mine.value:.1f}"


def percent(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.1f}"


def points(difference: float) -> str:
    """−0.8, with a real minus; +0.0 is 0.0."""
    text = f"{difference:+.1f}"
    return "0.0" if float(text) == 0 else text.replace("-", "−")


def millions(count: int | None) -> str:
    if count is None:
        return NOTHING
    value = count / 1e6
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def count(number: int | None) -> str:
    """12, 3.4 k, 0.89 M: parameters."""
    if number is None:
        return NOTHING
    if number < 100_000:
        return f"{number / 1e3:.1f} k" if number >= 1000 else str(number)
    return f"{number / 1e6:.2f} M" if number < 100_000_000 else f"{number / 1e6:.0f} M"


def size(count: int | None) -> str:
    """Bytes in decimal units."""
    if count is None:
        return NOTHING
    megabytes = count / 1e6
    if megabytes < 0.1:
        return f"{count / 1e3:.1f} kB"
    return f"{megabytes:.1f} MB" if megabytes >= 1 else f"{megabytes:.2f} MB"


def milliseconds(found: Latency | None) -> str:
    if found is None:
        return NOTHING
    digits = 2 if found.median_ms < 10 else 1 if found.median_ms < 100 else 0
    return f"{found.median_ms:.{digits}f} ±{(found.p90_ms - found.p10_ms) / 2:.{digits}f}"


def ratio(stage: Stage, stages: Sequence[Stage], *, batch: int = 1) -> tuple[float, bool] | None:
    """How many times faster than the first stage, and whether it was raced against it (or only divided)."""
    mine, base = stage.latency(batch), stages[0].latency(batch)
    if mine is None or base is None:
        return None
    if stage is stages[0]:
        return 1.0, True
    return (mine.ratio, True) if mine.ratio is not None else (base.median_ms / mine.median_ms, False)


def against(stage: Stage, stages: Sequence[Stage], *, batch: int = 1) -> str:
    found = ratio(stage, stages, batch=batch)
    return f"{'' if found[1] else '~'}{found[0]:.2f}×" if found else NOTHING


def kept(stage: Stage, *, first: bool = False) -> str:
    mark = "✓" if stage.kept else "✗"
    return f"{mark} {stage.reason}".rstrip() if stage.reason else NOTHING if first else mark


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text in columns: the first and the last to the left, numbers to the right."""
    widths = [max(_width(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(_line(row, widths) for row in rows) + "\n"


def timed(stages: Sequence[Stage]) -> list[tuple[str, Latency]]:
    """Every latency once, with its model's name: two stages may show one model in two runtimes."""
    found: dict[tuple[object, ...], tuple[str, Latency]] = {}
    for stage in stages:
        for latency in stage.measurement.latencies:
            c = latency.conditions
            key = (stage.measurement.name, c.runtime, c.dtype, c.threads, c.batch)
            found.setdefault(key, (stage.measurement.name, latency))
    return list(found.values())


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    parts = []
    for i, (cell, width) in enumerate(zip(row, widths, strict=True)):
        gap = " " * (width - _width(cell))
        parts.append(cell + gap if i in (0, len(row) - 1) else gap + cell)
    return "  " + "  ".join(parts).rstrip()


def _width(text: str) -> int:
    """Columns of a terminal: wide characters take two, combining ones none."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _csv(stages: Sequence[Stage]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    detects = kind(stages) == "AP"
    scores = ["AP", "low", "high", "n", "AP50"] if detects else ["score", "low", "high", "n"]
    writer.writerow(["step", *scores, "macs", "params", "size_bytes", "p50_ms", "ratio", "kept", "why"])
    for stage in stages:
        mine, timed, versus = score(stage.measurement), stage.latency(), ratio(stage, stages)
        numbers: list[float | None] = [mine.value, mine.low, mine.high, mine.n] if mine else [None] * 4
        numbers += [mine.ap50 if mine else None] if detects else []
        m = stage.measurement
        rest = [m.macs, m.params, m.size_bytes, timed.median_ms if timed else None, versus[0] if versus else None]
        writer.writerow([spreadsheet_text(stage.name), *numbers, *rest, stage.kept, spreadsheet_text(stage.reason)])
    return out.getvalue()


def spreadsheet_text(text: str) -> str:
    """A name that a spreadsheet will not take for a formula."""
    text = clean(text, limit=2 * NAME_LIMIT)
    return "'" + text if text.lstrip()[:1] in ("=", "+", "-", "@", "|", "%") and text.strip() else text


def markdown_text(text: object) -> str:
    """A name that stays text in Markdown: no HTML, no link, no table cell of its own."""
    return re.sub(r"([\\`*_\[\]<>|!#&])", r"\\\1", clean(text, limit=2000))


@dataclass(frozen=True)
class Figure:
    """One figure of the headline: "2.6×" "faster", and the sentence that belongs under it."""

    value: str
    word: str
    detail: str
    good: bool


def headline(stages: Sequence[Stage]) -> tuple[Figure, ...]:
    """Faster, smaller, points: the last stages that stayed against the first one."""
    left = [stage for stage in stages if stage.kept]
    if len(left) < 2:
        return ()
    makers: tuple[Callable[[Sequence[Stage], Sequence[Stage]], Figure | None], ...] = (_speed, _size, _accuracy)
    return tuple(figure for maker in makers if (figure := maker(left, stages)))


def sentence(figures: Sequence[Figure]) -> str:
    """2.6× faster · 7.2× smaller · −0.8 points"""
    return " · ".join(f"{figure.value} {figure.word}" for figure in figures)


def _speed(left: Sequence[Stage], stages: Sequence[Stage]) -> Figure | None:
    last = next((s for s in reversed(left) if s.latency()), None)
    mine, base = last and last.latency(), stages[0].latency()
    found = ratio(last, stages) if last else None
    if not mine or not base or not found or last is stages[0]:
        return None
    times, raced = found
    sure = raced and faster(times, mine.ratio_interval)
    detail = (
        f"{base.median_ms:.2f} → {mine.median_ms:.2f} ms at batch {mine.conditions.batch}: {_how(base)} → {_how(mine)}"
    )
    word = "faster" if sure else verdict(times, mine.ratio_interval).rpartition(":")[0] if raced else "(not raced)"
    return Figure(f"{times:.1f}×" if sure else f"{times:.2f}×", word, detail, sure)


def _how(found: Latency) -> str:
    c = found.conditions
    return f"{c.runtime} {c.dtype}, {c.threads} thread{'s' * (c.threads != 1)}"


def _size(left: Sequence[Stage], stages: Sequence[Stage]) -> Figure | None:
    base = stages[0].measurement.size_bytes
    mine = next((s.measurement.size_bytes for s in reversed(left) if s.measurement.size_bytes), None)
    if not base or not mine:
        return None
    word, times = ("smaller", base / mine) if mine <= base else ("larger", mine / base)
    return Figure(f"{times:.1f}×", word, f"{size(base)} → {size(mine)} on disk", mine < base)


def _accuracy(left: Sequence[Stage], stages: Sequence[Stage]) -> Figure | None:
    base = score(stages[0].measurement)
    mine = next((found for s in reversed(left) if (found := score(s.measurement))), None)
    if not base or not mine:
        return None
    difference = mine.value - base.value
    noise = ", within the noise of one test set" if abs(difference) <= base.half else ""
    what = {"top1": "top-1", "AP": "AP", "f1": "F1"}.get(mine.kind, "agreement with the original model")
    sure = f" (±{mine.half:.1f}{noise})" if mine.half else ""
    detail = f"{base.value:.1f} → {mine.value:.1f} % {what} on {mine.n} {mine.of}{sure}"
    if base.ap50 is not None and mine.ap50 is not None:
        detail += f"; AP50 {base.ap50:.1f} → {mine.ap50:.1f} %"
    return Figure(points(difference), "points", detail, difference >= -base.half)
