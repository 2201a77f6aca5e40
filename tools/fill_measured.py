# SPDX-License-Identifier: Apache-2.0
"""Write measured numbers into README and docs, from the reports of runs.

    python tools/fill_measured.py demo=runs/demo                      one run
    python tools/fill_measured.py demo=runs/demo,runs/demo-1,runs/demo-2   three seeds; the first is the one shown
    python tools/fill_measured.py --check                             do the texts say what the stored reports say?

What a report says is kept in docs/measured/NAME-0.json ..., without pictures, and every text is filled from there. In

    <!-- measured:begin demo stage tokens -->
    <!-- measured:end -->

the first word is the run, the rest what of it to show: `picture`, `picture zh`, `table`, or `stage WORD` for the first
stage whose name has that word in it. Blocks of a run that has no stored report stay as they are.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from featherweight import compare, files, tables
from featherweight.measure import Measurement
from featherweight.report import Report, Stage, load

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"(<!-- measured:begin (\w+) ([^>]*?) -->\n)(.*?)(<!-- measured:end -->)", re.DOTALL)
PICTURES = ("pareto.svg", "pareto-dark.svg")
CAPTIONS = {
    "": "Accuracy against latency at batch 1, each stage of `featherweight demo`. Measured on {where}.",
    "zh": "`featherweight demo` 各阶段的准确率与单张图片延迟。测于 {where}。",
}
ALT = {"": "accuracy against latency, every stage labelled", "zh": "准确率与延迟的关系图，每个阶段都有标注"}


def texts(root: Path) -> list[Path]:
    """Every text that may hold a block."""
    return [*sorted(root.glob("README*.md")), *sorted((root / "docs").rglob("*.md"))]


def stored(root: Path, name: str) -> list[Report]:
    """The kept reports of one name, the shown one first."""
    return [load(path) for path in sorted((root / "docs" / "measured").glob(f"{name}-*.json"))]


def keep(root: Path, name: str, runs: Sequence[Path]) -> None:
    """Store what the reports of these runs say; the plot of the first becomes the README's picture."""
    folder = root / "docs" / "measured"
    folder.mkdir(parents=True, exist_ok=True)
    reports = [slim(load(run)) for run in runs]
    for old in folder.glob(f"{name}-*.json"):
        old.unlink()
    for number, report in enumerate(reports):
        text = json.dumps(report.to_dict(), indent=1, ensure_ascii=False, allow_nan=False)
        files.publish(folder / f"{name}-{number}.json", (text + "\n").encode())
    for picture in PICTURES:
        if name == "demo" and (source := runs[0] / "plots" / picture).is_file():
            files.publish(root / "docs" / picture, source.read_bytes())


def slim(report: Report) -> Report:
    """The numbers alone: no pictures, no curves, no single timings."""
    stages = tuple(replace(stage, measurement=_slim(stage.measurement)) for stage in report.stages)
    return replace(report, stages=stages, samples=(), tokens=(), curves=(), layers=(), sensitivity=())


def _slim(found: Measurement) -> Measurement:
    return replace(found, latencies=tuple(replace(latency, samples_ms=()) for latency in found.latencies))


def filled(text: str, root: Path) -> str:
    """The text with its blocks written anew."""

    def block(found: re.Match[str]) -> str:
        reports = stored(root, found[2])
        if not reports:
            return found[0]
        what, _, argument = found[3].strip().partition(" ")
        if what not in SHOW:
            raise SystemExit(f"{found[1].strip()}: no {what!r}; known: {', '.join(SHOW)}")
        return f"{found[1]}{SHOW[what](reports, argument.strip())}\n{found[5]}"

    return BLOCK.sub(block, text)


def picture(reports: Sequence[Report], language: str) -> str:
    dark = '<source media="(prefers-color-scheme: dark)" srcset="docs/pareto-dark.svg">'
    image = f'<picture>{dark}<img alt="{ALT[language]}" src="docs/pareto.svg"></picture>'
    return f"{image}\n\n*{CAPTIONS[language].format(where=where(reports[0]))}*"


def table(reports: Sequence[Report], _: str) -> str:
    shown = reports[0]
    lines = ["```text", tables.table(shown.stages).rstrip(), ""]
    lines += [f"result  {tables.sentence(tables.headline(shown.stages))}", f"on      {where(shown)}"]
    if score := tables.score(shown.stages[0].measurement):
        lines.append(f"images  {score.n}, seen by nothing before; ± is the 95 % interval")
    if len(reports) > 1:
        together = compare.compare(reports)
        lines += ["", f"the same over {len(reports)} seeds", together.table().rstrip(), "", *together.findings]
    return "\n".join([*lines, "```"])


def stage(reports: Sequence[Report], word: str) -> str:
    """The stage and the one before it beside the start, and what the other seeds say."""
    shown = reports[0]
    number = next((i for i, one in enumerate(shown.stages) if i and word in one.name), None)
    if number is None:
        raise SystemExit(f"no stage of {shown.title!r} has {word!r} in its name: {[s.name for s in shown.stages]}")
    rows = list(dict.fromkeys([0, number - 1, number]))
    lines = [tables.table([shown.stages[i] for i in rows], style="markdown").rstrip(), ""]
    lines.append(f"{_images(shown.stages[number])}Latency is raced against the first row, on {where(shown)}.")
    if len(reports) > 1:
        name = shown.stages[number].name
        row = next(row for row in compare.compare(reports).rows if row.name == name)
        if said := compare.finding(row, shown.stages[0].name):
            lines.append(f"{tables.markdown_text(said)}.")
    return "\n".join(lines)


def _images(one: Stage) -> str:
    score = tables.score(one.measurement)
    return f"Accuracy on {score.n} test images with its 95 % interval. " if score else ""


def where(report: Report) -> str:
    """Processor, cores, instruction sets and versions."""
    machine = report.environment
    flags = " ".join(flag for flag in machine.get("flags", ()) if "vnni" in flag or "amx" in flag or "bf16" in flag)
    versions = machine.get("versions", {})
    named = ", ".join(f"{name} {versions[name]}" for name in ("torch", "onnxruntime", "openvino") if name in versions)
    parts = [str(machine.get("cpu", "an unnamed processor")), f"{machine.get('cores', '?')} cores", flags, named]
    return ", ".join(part for part in parts if part)


SHOW: dict[str, Callable[[Sequence[Report], str], str]] = {"picture": picture, "table": table, "stage": stage}


def main(arguments: Sequence[str], root: Path = ROOT) -> int:
    check = "--check" in arguments
    for argument in arguments:
        name, equals, runs = argument.partition("=")
        if equals:
            keep(root, name, [Path(run) for run in runs.split(",")])
        elif argument != "--check":
            raise SystemExit(f"{argument!r} is not NAME=RUN[,RUN], such as demo=runs/demo")
    stale = []
    for path in texts(root):
        old = path.read_text(encoding="utf-8")
        new = filled(old, root)
        if new != old:
            stale.append(str(path.relative_to(root)))
            if not check:
                files.publish(path, new.encode())
    print("\n".join(f"{'stale' if check else 'filled'}: {name}" for name in stale) or "nothing to do")
    return 1 if check and stale else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
