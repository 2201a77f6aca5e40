# SPDX-License-Identifier: Apache-2.0
"""yolov7_tiny trained from scratch on a small real set, in three ways of assigning labels over the same epochs.

    python benchmarks/yolo_study.py --data BCCD --out runs/yolo_study            what is missing, one after the other
    python benchmarks/yolo_study.py --data BCCD --out runs/yolo_study --only lead
    python benchmarks/yolo_study.py --data BCCD --out runs/yolo_study --table    no training: table, curves, pictures

BCCD: 364 photographs of blood smears with red cells, white cells and platelets, in the parts 205 / 87 / 72
(github.com/Shenggan/BCCD_Dataset, MIT). Each training is the recipe `yolov7_tiny_small`; killed, it goes on from its
last checkpoint. The test part is looked at once for each, at its end. What is found is kept in
docs/measured/yolo_study.json, and docs/studies/yolo.md is written from there.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from featherweight import artifact, files, measure, pipeline, recipe, runs
from featherweight.boxes_over import drawn
from featherweight.data import detection
from featherweight.doors import json as strict_json
from featherweight.drawing import SERIES, canvas, svg

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"(<!-- study:begin (\w+) -->\n)(.*?)(<!-- study:end -->)", re.DOTALL)
RECIPE = "yolov7_tiny_small"
LAST = ["fuse", {"evaluate": {"part": "test"}}]
TRIALS: dict[str, tuple[str, tuple[str, ...], list[Any]]] = {  # name -> title, overrides, steps before LAST
    "lead": ("lead-guided", (), ["train"]),
    "plain": ("plain: every cell near by", ("detection.assign=plain",), ["train"]),
    "aux": ("coarse to fine, with auxiliary heads", (), ["aux_heads", "train"]),
}
PICTURES = 4


def trained(name: str, seed: int, data: Any, source: str, options: argparse.Namespace) -> dict[str, Any]:
    """One training, or the rest of it; what came out as plain values."""
    title, overrides, steps = TRIALS[name]
    more = [f"train.epochs={options.epochs}"] if options.epochs else []
    said = json.dumps([*steps, *LAST])
    asked = [*overrides, *more, f"seed={seed}", f"data.source={source}", f"steps={said}"]
    plan, folder = recipe.read(RECIPE, asked), options.out / "runs"
    clock, began = folder / f"{name}-{seed}.seconds", time.perf_counter()
    before = float(clock.read_text()) if clock.is_file() else 0.0
    try:
        work = runs.run(plan, project=folder, name=f"{name}-{seed}", source=data)
    finally:
        seconds = before + time.perf_counter() - began
        folder.mkdir(parents=True, exist_ok=True)
        files.publish(clock, f"{seconds:.1f}\n".encode())
    step = next(path for path in sorted((folder / f"{name}-{seed}" / "steps").iterdir()) if "train" in path.name)
    return {
        "trial": name, "title": title, "seed": seed, "minutes": round(seconds / 60, 1), "threads": plan.threads,
        "size": list(work.preprocess.size), "epochs": plan.train.epochs, "batch_size": plan.train.batch_size,
        "params": measure.parameters(work.model), "evaluation": work.results["evaluation"],
        "curve": curve(step / "journal.jsonl"), "machine": measure.machine(),
    }  # fmt: skip


def curve(journal: Path) -> list[dict[str, Any]]:
    """Loss of each epoch, and AP and AP50 on validation pictures where they were looked at."""
    rows = []
    for line in journal.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row.get("event") == "epoch":
            seen = row.get("validation") or {}
            rows.append(
                {"epoch": row["epoch"] + 1, "loss": row["loss"], "AP": seen.get("AP"), "AP50": seen.get("AP50")}
            )
    return rows


def table(found: Sequence[Mapping[str, Any]]) -> str:
    """A row for each training."""
    if not found:
        return "Not run yet."
    classes = list(found[0]["evaluation"]["classes"])
    heads = ["assignment", "seed", "AP", "AP50", "AP75", *(f"AP50 {name}" for name in classes), "minutes"]
    lines = ["| " + " | ".join(heads) + " |", "| --- |" + " ---: |" * (len(heads) - 1)]
    for run in found:
        stats, by_class = run["evaluation"]["stats"], run["evaluation"]["classes"]
        values = [*(stats[key] for key in ("AP", "AP50", "AP75")), *(by_class[name]["AP50"] for name in classes)]
        cells = ["–" if value < 0 else f"{100 * value:.1f}" for value in values]
        lines.append("| " + " | ".join([run["title"], str(run["seed"]), *cells, f"{run['minutes']:.0f}"]) + " |")
    return "\n".join(lines)


def conditions(found: Sequence[Mapping[str, Any]]) -> str:
    if not found:
        return "Not run yet."
    run = found[0]
    here = run["machine"]
    size, images = " × ".join(map(str, run["size"])), run["evaluation"]["images"]
    text = f"{run['epochs']} epochs, batch {run['batch_size']}, {size} pixels; {images} test pictures. "
    return (
        text + f"{here['cpu']}, {here['cores']} cores, {', '.join(here['flags'])}; torch {here['versions']['torch']}."
    )


def draw_curves(found: Sequence[Mapping[str, Any]], folder: Path) -> str:
    """AP50 on validation pictures over the epochs, as a figure in light and dark."""
    if not found:
        return "Not run yet."
    with canvas(5.2, 3.2) as (figure, (axes,)):
        for color, run in zip(SERIES[1:], found, strict=False):
            points = [(row["epoch"], 100 * row["AP50"]) for row in run["curve"] if row["AP50"] is not None]
            axes.plot(*zip(*points, strict=True), color=color, label=f"{run['title']}, seed {run['seed']}")
        axes.set_xlabel("epoch")
        axes.set_title("AP50 on validation pictures, %")
        axes.legend(loc="lower right")
        figured = svg("yolo-curves", figure, "AP50 on validation pictures over the epochs, a line for each assignment")
    for dark in (False, True):
        name = f"yolo-curves{'-dark' if dark else ''}.svg"
        files.publish(folder / name, figured.file(dark=dark).encode())
    picture = '<picture><source media="(prefers-color-scheme: dark)" srcset="yolo-curves-dark.svg">'
    return picture + '<img alt="AP50 over the epochs, a line for each assignment" src="yolo-curves.svg"></picture>'


def draw_pictures(found: Sequence[Mapping[str, Any]], data: Any, out: Path, folder: Path) -> str:
    """What the best model finds in the first test pictures."""
    if not found:
        return "Not run yet."
    best = max(found, key=lambda run: float(run["evaluation"]["stats"]["AP"]))
    model = artifact.load(out / "runs" / f"{best['trial']}-{best['seed']}" / "model")
    detect, names = pipeline("object-detection", model), []
    for i in range(min(PICTURES, len(data.test))):
        pixels = data.test.picture(i * len(data.test) // PICTURES)
        rows = next(detect.detections([pixels], threshold=0.4))
        names.append(f"yolo-{i}.jpg")
        small = Image.fromarray(np.asarray(drawn(pixels, rows, detect.label)))
        small.thumbnail((400, 400))
        small.save(folder / names[-1], quality=80)
    return " ".join(f'<img alt="detections in a test picture" src="{name}" width="380">' for name in names)


def write(docs: Path, data: Any, out: Path) -> None:
    """The page, from docs/measured and the models in `out`."""
    stored, page = docs / "measured" / "yolo_study.json", docs / "studies" / "yolo.md"
    found = strict_json.read(stored)["runs"] if stored.is_file() else []
    blocks = {
        "table": table(found),
        "conditions": conditions(found),
        "curves": draw_curves(found, page.parent),
        "pictures": draw_pictures(found, data, out, page.parent),
    }
    text = BLOCK.sub(lambda m: f"{m[1]}{blocks[m[2]]}\n{m[4]}", page.read_text(encoding="utf-8"))
    files.publish(page, text.encode())


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="BCCD, in any format that is read")
    parser.add_argument("--out", type=Path, default=Path("runs/yolo_study"), help="where the runs are kept")
    parser.add_argument("--only", action="append", choices=list(TRIALS), default=[], help="repeatable")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int, help="the recipe's unless given")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="where the tables are written")
    parser.add_argument("--table", action="store_true", help="train nothing")
    options = parser.parse_args(argv)
    data = detection.load(options.data)
    results, stored = options.out / "results", options.docs / "measured" / "yolo_study.json"
    for seed in range(0 if options.table else options.seeds):
        for name in options.only or TRIALS:
            path = results / f"{name}-{seed}.json"
            if not path.is_file():
                print(f"{time.strftime('%H:%M:%S')} {name}, seed {seed}", flush=True)
                found = trained(name, seed, data, options.data, options)
                results.mkdir(parents=True, exist_ok=True)
                files.publish_json(path, found)
                print(table([found]), flush=True)
    rows = [strict_json.read(path) for path in sorted(results.glob("*.json"))]
    rows.sort(key=lambda row: (list(TRIALS).index(row["trial"]), row["seed"]))
    files.publish_json(stored, {"format": 1, "runs": rows})
    write(options.docs, data, options.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
