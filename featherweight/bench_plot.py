# SPDX-License-Identifier: Apache-2.0
"""A race as a figure: a bar for each racer, a panel for each batch and number of threads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from featherweight.drawing import ACCENT, INK, MUTED, Drawing, canvas, svg
from featherweight.errors import OptionError, clean

LABEL = 40  # characters of a name
PANELS = 6


def drawn(rows: Sequence[Mapping[str, Any]]) -> Drawing:
    """Medians with the 10th to 90th percentile, and the machine's limit where it was measured, as a mark."""
    if not rows:
        raise OptionError("plot", "no model was timed, so there is nothing to draw")
    panels = list(dict.fromkeys((row["threads"], row["batch"]) for row in rows))[:PANELS]
    tallest = max(sum((row["threads"], row["batch"]) == panel for row in rows) for panel in panels)
    with canvas(5.2, (0.9 + 0.3 * tallest) * len(panels), rows=len(panels)) as (figure, axes):
        for plot, (threads, batch) in zip(axes, panels, strict=True):
            here = [row for row in rows if (row["threads"], row["batch"]) == (threads, batch)]
            for place, row in enumerate(here):
                middle = row["median_ms"]
                plot.barh(place, middle, height=0.6, color=ACCENT, alpha=0.45, linewidth=0)
                plot.plot([row["p10_ms"], row["p90_ms"]], [place, place], color=INK, linewidth=1.2)
                if row.get("limit_ms"):
                    plot.plot([row["limit_ms"]] * 2, [place - 0.3, place + 0.3], color=MUTED, linewidth=2)
                plot.annotate(f" {middle:.3g}", (max(middle, row["p90_ms"]), place), va="center", fontsize=8, color=INK)
            names = [f"{clean(row['model'], limit=LABEL)} · {row['dtype']}" for row in here]
            plot.set_yticks(range(len(here)), names, fontsize=8)
            title = f"batch {batch}, {threads} thread{'s' if threads > 1 else ''}"
            widest = max(max(row["median_ms"], row["p90_ms"]) for row in here)
            plot.set(ylim=(len(here) - 0.4, -0.6), xlim=(0, 1.12 * widest), title=title, xlabel="ms per call")
            plot.grid(False, axis="y")
        cpu = rows[0]["conditions"]["cpu"]
        return svg("bench", figure, f"Latency on {cpu}: medians, 10th to 90th percentile; a gray mark is the limit")
