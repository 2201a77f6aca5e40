# SPDX-License-Identifier: Apache-2.0
"""A report as HTML and Markdown: fills the templates, and works out what only the page needs.

In HTML everything is escaped but our own figures; in Markdown names are kept from becoming markup. In both, control
characters are made visible. The page holds no script and asks for nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featherweight import __version__, drawing, plots, tables
from featherweight.errors import clean
from featherweight.latency import Latency, verdict

if TYPE_CHECKING:
    from featherweight.report import Box, Kept, Report, Sample, Stage

CELL_LIMIT = 300  # characters of one value in the page
FILTERS = (
    "score", "accuracy", "percent", "points", "millions", "count", "size", "milliseconds", "against", "kept",
    "sentence",
)  # fmt: skip
TURN = 0.618034  # of the color wheel from one class to the next
SAMPLES, VIEWS, LAYERS, CLASSES, SKIPPED = 24, 8, 12, 40, 200  # how many of each are shown; report.json has all


def html(report: Report, figures: Mapping[str, drawing.Drawing] | None = None) -> str:
    """The page, as one self-contained text."""
    drawn = plots.figures(report) if figures is None else figures
    return template("report.html.j2", **_values(report), figures=drawn, samples=_samples(report))


def markdown(report: Report) -> str:
    """The same numbers for pasting into an issue."""
    return template("report.md.j2", **_values(report))


def model_card(report: Report) -> str:
    """README.md of the model folder: what it is, what was measured, how to use it, what it was not tested for."""
    return template("model_card.md.j2", **_values(report))


def _values(report: Report) -> dict[str, Any]:
    return {
        "report": report,
        "env": {"cpu": "", "cores": "", "flags": (), "versions": {}, **report.environment},
        "detects": report.task == "object-detection",
        "word": tables.KINDS[tables.kind(report.stages)],
        "headline": tables.headline(report.stages),
        "classes": per_class(report),
        "confused": most_confused(report),
        "grid": latency_grid(report.stages),
        "curve_keys": list(dict.fromkeys(str(key) for row in report.curves for key in row)),
        "limits": {"views": VIEWS, "layers": LAYERS, "classes": CLASSES, "skipped": SKIPPED},
    }


def template(name: str, **values: Any) -> str:
    """Fill a template of the package; what comes out of `{{ }}` is text, never markup."""
    import jinja2
    from markupsafe import Markup, escape

    page = name.endswith(".html.j2")

    def final(value: Any) -> Any:
        if isinstance(value, str) and not isinstance(value, Markup):
            return clean(value, limit=CELL_LIMIT) if page else tables.markdown_text(value)
        return value

    def block(value: object) -> Markup:
        """Text of several lines for <pre> or a fence."""
        lines = "\n".join(clean(line, limit=1000) for line in str(value).splitlines())
        return escape(lines) if page else Markup(lines.replace("```", "'''"))

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"), autoescape=page, finalize=final,
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    trusted: dict[str, Callable[..., Any]] = {
        "block": block,
        "svg": lambda figure: Markup(figure.inline()),
        "table": lambda stages: Markup(tables.table(stages, style="markdown")),
        "quoted": lambda value: Markup(_quoted(value)),
        "dropped": lambda kept: Markup(dropped(kept)),
        "uri": lambda text: Markup(escape(text)),  # too long for a name; its form was checked when it came in
    }
    environment.filters.update({name: getattr(tables, name) for name in FILTERS}, **trusted)
    environment.filters.update(bar=bar, hue=hue, verdict=verdict)
    environment.globals.update(roles=drawing.ROLES, version=__version__)
    return environment.get_template(name).render(**values)


def _quoted(value: object) -> str:
    """A YAML string that can be nothing else."""
    return json.dumps(clean(value, limit=CELL_LIMIT))


def bar(value: float | None, values: Sequence[float | None]) -> float:
    """The length of a bar in percent of the longest."""
    longest = max((abs(v) for v in values if v), default=0)
    return round(100.0 * abs(value) / longest, 1) if value and longest else 0.0


def hue(box: Box, classes: Sequence[str]) -> str:
    """The color of a box by its class, always the same; neighbors in the list differ most."""
    place = classes.index(box.label) if box.label in classes else len(classes)
    return f"hsl({round(360 * (place * TURN % 1))} 90% 60%)"


def dropped(kept: Kept) -> str:
    """The dropped patches as one SVG path, in units of a patch; neighbors in a row are joined."""
    parts = []
    for y, row in enumerate(kept.mask):
        x = 0
        while x < len(row):
            end = x
            while end < len(row) and not row[end]:
                end += 1
            if end > x:
                parts.append(f"M{x} {y}h{end - x}v1H{x}z")
            x = end + 1
    return "".join(parts)


@dataclass(frozen=True)
class PerClass:
    """One class: how many test images and percent right before and after; of a detector objects and AP."""

    name: str
    n: int
    base: float
    small: float


def per_class(report: Report) -> list[PerClass]:
    """Percent right of each class, of a detector its AP, worst change first."""
    if report.per_class:
        told = [PerClass(str(c["name"]), int(c["n"]), float(c["base"]), float(c["small"])) for c in report.per_class]
        return sorted(told, key=lambda row: row.small - row.base)
    count = len(report.classes)
    if not count or any(len(m) != count for m in (report.confusion_base, report.confusion_small)):
        return []
    rows = []
    for i, name in enumerate(report.classes):
        base, small = report.confusion_base[i], report.confusion_small[i]
        rows.append(PerClass(name, sum(small), *(100.0 * row[i] / max(1, sum(row)) for row in (base, small))))
    return sorted(rows, key=lambda row: row.small - row.base)


def most_confused(report: Report, *, limit: int = 12) -> list[tuple[str, str, int, int]]:
    """(truth, answer, before, after) of the commonest mistakes."""
    names = report.answers
    if any(len(m) != len(names) for m in (report.confusion_base, report.confusion_small)):
        return []
    pairs = [(i, j) for i in range(len(names)) for j in range(len(names)) if i != j]
    rows = [(names[i], names[j], report.confusion_base[i][j], report.confusion_small[i][j]) for i, j in pairs]
    return sorted((row for row in rows if row[2] or row[3]), key=lambda row: -max(row[2:]))[:limit]


def _samples(report: Report) -> list[tuple[Sample, str]]:
    """Newly wrong first, then newly right, wrong both times, right: what people look at in that order."""
    kinds = {(True, False): "newly wrong", (False, True): "newly right", (False, False): "wrong", (True, True): "right"}
    order = list(kinds.values())
    marked = [(sample, kinds[sample.base == sample.label, sample.small == sample.label]) for sample in report.samples]
    return sorted(marked, key=lambda pair: (order.index(pair[1]), -pair[0].score))[:SAMPLES]


def latency_grid(stages: Sequence[Stage]) -> dict[str, Any]:
    """{"batches", "rows"}: a row for each model and runtime, with its latency at each batch or None."""
    timed = tables.timed(stages)
    batches = sorted({found.conditions.batch for _, found in timed})
    rows: dict[tuple[str, str, str], dict[int, Latency]] = {}
    for name, found in timed:
        rows.setdefault((name, found.conditions.runtime, found.conditions.dtype), {})[found.conditions.batch] = found
    made = [
        {"name": n, "runtime": r, "dtype": d, "cells": [at.get(b) for b in batches], "first": at[min(at)].conditions}
        for (n, r, d), at in rows.items()
    ]
    return {"batches": batches, "rows": made}
