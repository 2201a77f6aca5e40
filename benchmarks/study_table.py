# SPDX-License-Identifier: Apache-2.0
"""From the stored results of the study to its tables and its plot, and to a verdict for each claim.

Two models are compared picture by picture on the same test part, which says more than their two accuracies: the 95 %
interval is that of the mean difference over the pictures, the answers of all seeds taken together. It holds the
trainings for given; how much they vary is told by the seeds. A claim has held where the interval and every seed say so.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from study_plan import KEEPS, ROWS, TRIALS, WHOLE, Row, Side, Trial

from featherweight import files
from featherweight.drawing import MUTED, SERIES, Drawing, canvas, svg

Results = Mapping[str, Mapping[int, Mapping[str, Any]]]  # trial -> seed -> what was found
BLOCK = re.compile(r"(<!-- study:begin (\w+) -->\n)(.*?)(<!-- study:end -->)", re.DOTALL)
COMMAND = "python benchmarks/vit_study.py --data cifar10 --only {}"
MISSING = "not run yet"
CURVES = {"dynamicvit": "predictors", "dynamicvit_attention": "attention", "dynamicvit_random": "chance"}


@dataclass(frozen=True)
class Outcome:
    """What a comparison gave, in points; None where a side was not run."""

    seeds: tuple[int, ...]
    better: tuple[float, ...] = ()  # accuracies by seed, in percent
    than: tuple[float, ...] = ()
    half: float = 0.0  # of the 95 % interval of the difference

    @property
    def differences(self) -> tuple[float, ...]:
        return tuple(one - other for one, other in zip(self.better, self.than, strict=True))

    @property
    def difference(self) -> float:
        return mean(self.differences)

    @property
    def low(self) -> float:
        return self.difference - self.half

    @property
    def high(self) -> float:
        return self.difference + self.half

    def verdict(self, margin: float) -> str:
        """Whether the difference is above -margin, for certain, in every seed."""
        if not self.seeds:
            return MISSING
        if self.low > -margin and min(self.differences) > -margin:
            return "held"
        if self.high < -margin and max(self.differences) < -margin:
            return "not held" if margin else "not held: the opposite"
        return "undecided: within noise"


def stored(docs: Path) -> Results:
    """Every stored result."""
    found: dict[str, dict[int, Mapping[str, Any]]] = {}
    for path in sorted((docs / "measured").glob("study-*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        found[record["trial"]] = {run["seed"]: run for run in record["runs"]}
    return found


def outcome(row: Row, results: Results) -> Outcome:
    """The comparison of a row over the seeds that both sides have."""
    better, than = (results.get(side.trial, {}) for side in (row.better, row.than))
    seeds = tuple(
        seed
        for seed in sorted(better.keys() & than.keys())
        if row.better.view in better[seed]["views"] and row.than.view in than[seed]["views"]
    )
    if not seeds:
        return Outcome(())
    one, other = (
        np.stack([rights(runs[seed], side) for seed in seeds])
        for runs, side in ((better, row.better), (than, row.than))
    )
    by_picture = 100 * (one.astype(float) - other).mean(axis=0)  # (N,) over the seeds
    half = 1.96 * float(by_picture.std(ddof=1)) / math.sqrt(by_picture.size)
    return Outcome(seeds, *(tuple((100 * side.mean(axis=1)).tolist()) for side in (one, other)), half)


def rights(run: Mapping[str, Any], side: Side) -> np.ndarray:
    """Which pictures of the test part a view had right (N,)."""
    view = run["views"][side.view]
    packed = np.frombuffer(base64.b64decode(view["right"]), np.uint8)
    return np.unpackbits(packed, count=view["n"])


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation of percentages."""
    return f"{mean(values):.2f}" + (f" ±{stdev(values):.2f}" if len(values) > 1 else "")


def claims(results: Results) -> str:
    """The table of the claims."""
    lines = [
        "| | claim | ours, % | difference, points | seeds | the paper's | held? | command |",
        "|---|---|---|---|---:|---|---|---|",
    ]
    for row in ROWS:
        found = outcome(row, results)
        ours, gap = "–", "–"
        if found.seeds:
            ours = f"{spread(found.better)} against {spread(found.than)}"
            gap = f"{found.difference:+.2f} [{found.low:+.2f}, {found.high:+.2f}]"
        allowed = f", {row.margin:g} points allowed" if row.margin else ""
        command = f"`{COMMAND.format(f'claim{row.claim}')}`"
        cells = (ours, gap, str(len(found.seeds)), row.paper, found.verdict(row.margin), command)
        lines.append("| " + " | ".join((row.claim, row.says + allowed, *cells)) + " |")
    return "\n".join(lines)


def trials(results: Results) -> str:
    """The table of the trainings."""
    lines = [
        "| | training | top-1, % | 95 % of the pictures | seeds | parameters | MMACs | minutes of a core | name |",
        "|---|---|---:|---|---:|---:|---:|---:|---|",
    ]
    for one in TRIALS:
        for view, title in views_of(one, results):
            runs = [run for _, run in sorted(results.get(one.name, {}).items()) if view in run["views"]]
            cells = [one.claim, title, MISSING, "–", "0", "–", "–", "–", f"`{one.name}`"]
            if runs:
                accuracies = [100 * run["views"][view]["top1"] for run in runs]
                low, high = np.mean([run["views"][view]["interval"] for run in runs], axis=0)
                cells[2:5] = spread(accuracies), f"{100 * low:.1f} to {100 * high:.1f}", str(len(runs))
                cells[5:7] = f"{runs[0]['params']:,}", f"{runs[0]['macs'] / 1e6:.2f}"
                cells[7] = f"{mean(run['cpu_minutes'] for run in runs):.1f}"
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def views_of(one: Trial, results: Results) -> list[tuple[str, str]]:
    """(view, title) of every line of a trial; the curve has a table of its own."""
    some = next(iter(results.get(one.name, {}).values()), {"views": {}})
    extra = [name for name in some["views"] if name != WHOLE and not name.startswith("keep ")]
    return [(WHOLE, one.says), *((name, f"{one.says}: {name}") for name in extra)]


def curve(results: Results) -> str:
    """Accuracy against the keep ratio, as a table and a picture; nothing where nothing was run."""
    known = [name for name in CURVES if name in results]
    if not known:
        return f"Accuracy against the keep ratio: {MISSING}."
    lines = ["| keep r | " + " | ".join(CURVES[name] for name in known) + " |", "|---:|" + "---:|" * len(known)]
    for keep in KEEPS:
        lines.append(f"| {keep:g} | " + " | ".join(spread(kept(results[name], keep)) for name in known) + " |")
    picture = '<picture><source media="(prefers-color-scheme: dark)" srcset="keep-ratio-dark.svg">'
    picture += '<img alt="accuracy against the keep ratio, one line for each way to choose" src="keep-ratio.svg">'
    return "\n".join([picture + "</picture>", "", *lines])


def kept(runs: Mapping[int, Mapping[str, Any]], keep: float) -> list[float]:
    """Accuracies at a keep ratio, in percent, by seed."""
    return [100 * run["views"][f"keep {keep:g}"]["top1"] for _, run in sorted(runs.items())]


def drawn(results: Results) -> Drawing | None:
    """The curve as a figure."""
    known = [name for name in CURVES if name in results]
    if not known:
        return None
    with canvas(5.2, 3.2) as (figure, (axes,)):
        for color, name in zip(SERIES[1:], known, strict=False):
            values = [mean(kept(results[name], keep)) for keep in KEEPS]
            axes.plot(KEEPS, values, color=color, marker="o", markersize=3.5, label=CURVES[name])
        if "vit" in results:
            whole = mean(100 * run["views"][WHOLE]["top1"] for run in results["vit"].values())
            axes.axhline(whole, color=MUTED, linewidth=1, linestyle="--", label="all tokens, before")
        axes.set_xlabel("keep ratio r: r, r², r³ of the tokens stay")
        axes.set_title("top-1 on the test images, %")
        axes.legend(loc="lower right")
        return svg("keep-ratio", figure, "accuracy against the keep ratio, one line for each way to choose tokens")


SHOW: dict[str, Callable[[Results], str]] = {"claims": claims, "trainings": trials, "curve": curve}


def filled(text: str, results: Results) -> str:
    """The page with its blocks written anew."""
    return BLOCK.sub(lambda found: f"{found[1]}{SHOW[found[2]](results)}\n{found[4]}", text)


def write_docs(docs: Path) -> None:
    """The page and the plot, from docs/measured."""
    results, page = stored(docs), docs / "studies" / "vit.md"
    figure = drawn(results)
    for dark in (False, True) if figure else ():
        name = "keep-ratio-dark.svg" if dark else "keep-ratio.svg"
        files.publish(page.parent / name, figure.file(dark=dark).encode())  # type: ignore[union-attr]
    if page.is_file():
        files.publish(page, filled(page.read_text(encoding="utf-8"), results).encode())
