# SPDX-License-Identifier: Apache-2.0
"""Ways to compress a network and to make up for it, tried on CIFAR-10 at the scale of one machine.

    python benchmarks/compression_study.py --data cifar10 --out runs/compression    what is missing, one after the other
    python benchmarks/compression_study.py --fashion FOLDER --only best              what is on Fashion-MNIST
    python benchmarks/compression_study.py --data cifar10 --only distillation
    python benchmarks/compression_study.py --data cifar10 --tiny --out runs/try      every trial in seconds; kept apart
    python benchmarks/compression_study.py --table                                   no training: the page alone

Start it twice to use two cores: each takes what the other has not. Killed, it goes on from the last checkpoint when it
is started again. What it finds is kept in docs/measured/compression-NAME.json, and the tables of
docs/studies/compression.md and of the methods' cards are written from there.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import compression_cards
from compression_asked import asked
from compression_plan import FASHION, PARTS, ROWS, TRIALS, chosen, trial
from fashion import fashion
from results import fill, table
from study_plan import WHOLE, Trial
from study_table import Results, outcome, spread
from vit_study import ROOT, clocked, folder_of, told, view, work_through

from featherweight import data, files, measure, recipe, runs
from featherweight.data import Data
from featherweight.errors import FeatherweightError
from featherweight.interrupt import Interrupted
from featherweight.recipe import ModelSpec, Recipe, Step

PREFIX = "compression-"
COMMAND = "`python benchmarks/compression_study.py {} --only {}`"
MISSING = "not run yet"
# a trial in seconds, to see that it works
TINY = ("train.epochs=1", "train.images=64", "train.batch_size=16", "train.validate_images=16")
SHORT = {"epochs": 1, "samples": 32, "rounds": 1, "calibration_images": 16, "repeats": 6, "budget_s": 0.1, "images": 16}


def planned(one: Trial, seed: int, out: Path, *, tiny: bool = False, more: Sequence[str] = ()) -> Recipe:
    """The trial's recipe, with the models that other trials have trained already."""
    plan = recipe.read(one.recipe, [*one.overrides, *(TINY if tiny else ()), *more, f"seed={seed}"])
    if one.teacher:
        plan = dataclasses.replace(plan, teacher=ModelSpec(str(folder_of(out, trial(one.teacher), seed) / "model")))
    if one.start:
        plan = dataclasses.replace(plan, model=ModelSpec(str(folder_of(out, trial(one.start), seed) / "model")))
    return dataclasses.replace(plan, steps=tuple(shortened(step) for step in plan.steps)) if tiny else plan


def shortened(step: Step) -> Step:
    """The same step with little data and one epoch, where it has these options and they were given or cost time."""
    known = recipe.defaults(step.name)
    less = {name: value for name, value in SHORT.items() if name in known and name in {**step.options, **COSTLY}}
    return Step(step.name, {**step.options, **less})


COSTLY = {"samples": 0, "calibration_images": 0, "repeats": 0, "budget_s": 0}  # options that cost time when left out


def carried_out(one: Trial, seed: int, out: Path, source: Data, **planning: Any) -> dict[str, Any]:
    """Train, or go on; then evaluate, once. What is found as plain values."""
    plan, folder = planned(one, seed, out, **planning), folder_of(out, one, seed)
    with clocked(folder.with_suffix(".seconds")) as clock:
        work = runs.run(plan, project=folder.parent, name=folder.name, source=source)
        if (model := work.model) is None:
            raise ValueError(f"{one.name} makes no model")
        logits, labels = work.task.predictions(model, work.batches("test", size=100).epoch(0))
    weights = measure.size(folder / "model" / "model.safetensors")
    found = {**told(one, plan, work, model, clock()), "weights_bytes": weights, **raced(work.results)}
    return {**found, "views": {WHOLE: view(logits, labels)}}


def raced(results: Mapping[str, Any]) -> dict[str, Any]:
    """Bytes of the compact file, and how many times faster than the first stage in the same runtime."""
    found: dict[str, Any] = {}
    if "compact" in results:
        found["compact_bytes"] = results["compact"]["model"]["size_bytes"]
        found["dense_bytes"] = results["compact"]["float32_bytes"]
    if "measure" in results:
        first, last = results["measure"]["rows"][0], results["measure"]["rows"][-1]
        times = [{one["conditions"]["runtime"]: one["median_ms"] for one in row["latencies"]} for row in (first, last)]
        found["latency_ms"] = {name: [times[0][name], times[1][name]] for name in times[0] if name in times[1]}
    return found


def collect(out: Path, docs: Path) -> None:
    """Every result into docs/measured."""
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted((out / "results").glob("*.json")):
        run = json.loads(path.read_text(encoding="utf-8"))
        found.setdefault(run["trial"], []).append(run)
    (docs / "measured").mkdir(parents=True, exist_ok=True)
    for name, several in found.items():
        files.publish_json(docs / "measured" / f"{PREFIX}{name}.json", {"format": 1, "trial": name, "runs": several})


def stored(docs: Path) -> Results:
    """Every stored result: trial -> seed -> what was found."""
    found: dict[str, dict[int, Mapping[str, Any]]] = {}
    for one in TRIALS:
        path = docs / "measured" / f"{PREFIX}{one.name}.json"
        if path.is_file():
            record = json.loads(path.read_text(encoding="utf-8"))
            found[one.name] = {run["seed"]: run for run in record["runs"]}
    return found


def trainings(part: str, results: Results) -> str:
    """The trainings of a part: accuracy, size, work and, where it was raced, speed."""
    body = []
    for one in TRIALS:
        runs_of = [run for _, run in sorted(results.get(one.name, {}).items())]
        if one.claim != part:
            continue
        if not runs_of:
            body.append([one.says, MISSING, *"––––––", f"`{one.name}`"])
            continue
        first = runs_of[0]
        accuracy = spread([100 * run["views"][WHOLE]["top1"] for run in runs_of])
        size = first.get("compact_bytes", first["weights_bytes"])
        minutes = f"{mean(run['cpu_minutes'] for run in runs_of):.1f}"
        figures = [f"{first['params']:,}", f"{first['macs'] / 1e6:.2f}", f"{size / 1e3:.1f} kB"]
        body.append([one.says, accuracy, *figures, smaller(first), faster(first), minutes, f"`{one.name}`"])
    head = ("training", "top-1, %", "parameters", "MMACs", "file", "smaller", "faster", "minutes of a core", "name")
    return table(head, body)


def smaller(run: Mapping[str, Any]) -> str:
    """How many times smaller the compact file is than the dense network's weights in float32, where there is one."""
    return f"{run['dense_bytes'] / run['compact_bytes']:.1f}×" if "compact_bytes" in run else "–"


def faster(run: Mapping[str, Any]) -> str:
    """How many times faster than the dense network in OpenVINO, where that was raced."""
    before, after = run.get("latency_ms", {}).get("openvino", (None, None))
    return f"{before / after:.2f}×" if before and after else "–"


def claims(part: str, results: Results) -> str:
    """The comparisons of a part, picture by picture."""
    body = []
    for row in (row for row in ROWS if row.claim == part):
        found = outcome(row, results)
        gap = f"{found.difference:+.2f} [{found.low:+.2f}, {found.high:+.2f}]" if found.seeds else "–"
        body.append([row.says, gap, len(found.seeds), row.paper, found.verdict(row.margin)])
    return table(("claim", "difference, points", "seeds", "the paper's", "held?"), body)


def blocks(results: Results) -> dict[str, str]:
    """Name of a block of the page -> its text."""
    found = {}
    for part in PARTS:
        command = COMMAND.format("--fashion FOLDER" if part in FASHION else "--data cifar10", part)
        found[part] = f"{claims(part, results)}\n\n{trainings(part, results)}\n\n{command}"
    return found


def write(docs: Path) -> None:
    """What is stored, into the page and the cards of the methods."""
    page = docs / "studies" / "compression.md"
    if page.is_file():
        fill(page, {"asked": asked(docs / "measured"), **blocks(stored(docs))})
    compression_cards.write(docs / "methods", stored(docs))


def read(source: Path) -> Data:
    """CIFAR-10, or the built-in digits in its size."""
    if str(source) == "digits":
        return data.load("digits", size=32, glyph_max=24)
    return data.load(source, val_share=0.1, in_memory=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="CIFAR-10: a folder with train and test; or the word digits")
    parser.add_argument("--fashion", type=Path, help="Fashion-MNIST: a folder with its four *-ubyte.gz files")
    parser.add_argument("--out", type=Path, default=Path("runs/compression"), help="where the runs are kept")
    parser.add_argument(
        "--only", action="append", default=[], help=f"{', '.join(PARTS)}, or a trial's name; repeatable"
    )
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="where the tables are written")
    parser.add_argument("--table", action="store_true", help="train nothing")
    parser.add_argument("--tiny", action="store_true", help="a few pictures and steps for each trial; writes no docs")
    parser.add_argument(
        "--epochs", type=int, help="of trainings from the start, in place of the study's; writes no docs"
    )
    options = parser.parse_args(arguments)
    more = [] if options.epochs is None else [f"train.epochs={options.epochs}"]
    official = not options.tiny and not more and str(options.data) != "digits"  # what may go into the docs

    def carry_out(one: Trial, seed: int, out: Path, source: Data) -> dict[str, Any]:
        return carried_out(one, seed, out, source, tiny=options.tiny, more=more)

    def tell() -> None:
        if official:
            collect(options.out, options.docs)
            write(options.docs)

    if options.table:
        write(options.docs)
        return 0
    if options.data is None and options.fashion is None:
        parser.error("--data or --fashion is needed to train: the folder of CIFAR-10, that of Fashion-MNIST")
    failed = 0
    try:
        for source, reader, there in ((options.data, read, False), (options.fashion, fashion, True)):
            trials = [one for one in chosen(options.only) if (one.claim in FASHION) is there]
            if source is not None and trials:
                asked = trials, options.seeds, options.out, source, tell
                failed += work_through(*asked, carry_out=carry_out, read=reader)
        return 1 if failed else 0
    except (Interrupted, FeatherweightError) as error:  # stopped, or the data are not there
        print(error)
        return error.exit_code


if __name__ == "__main__":
    raise SystemExit(main())
