# SPDX-License-Identifier: Apache-2.0
"""COCO's twelve numbers: our function against pycocotools (and torchmetrics, if it is there), in time and in digits.

    python benchmarks/coco_eval.py                      5,000 pictures, 100 detections each, 80 classes
    python benchmarks/coco_eval.py --pictures 500       the same, smaller
    python benchmarks/coco_eval.py --out FILE.json      where the numbers go

Truth and detections are made: seven boxes a picture on average, one in a hundred a crowd, scores of two decimals so
that many are equal. Each evaluator starts from arrays, as a detector gives them; what it needs to turn them into its
own form is part of its time. Times are the process's own, so that other work on the machine counts little.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featherweight import files, measure
from featherweight.data.objects import Objects
from featherweight.scores import coco

Detections = Sequence[NDArray[np.float64]]
CLASSES, MOST = 80, 100


def made(pictures: int, *, seed: int = 0) -> tuple[list[Objects], list[NDArray[np.float64]]]:
    """Objects and detections near them."""
    rng = np.random.default_rng(seed)
    truth, found = [], []
    for _ in range(pictures):
        n = int(rng.poisson(7.3))
        corner, side = rng.uniform(0, 500, (n, 2)), np.exp(rng.uniform(np.log(8), np.log(300), (n, 2)))
        labels = rng.integers(0, CLASSES, n)
        boxes = np.concatenate([corner, corner + side], axis=1)
        truth.append(Objects(boxes, labels, rng.random(n) < 0.01, side.prod(1)))
        which = rng.integers(0, n, MOST) if n else np.zeros(0, np.int64)
        moved = corner[which] + rng.normal(0, 0.12, (len(which), 2)) * side[which]
        sides = side[which] * np.exp(rng.normal(0, 0.12, (len(which), 2)))
        label = np.where(rng.random(len(which)) < 0.6, labels[which], rng.integers(0, CLASSES, len(which)))
        columns = (moved, moved + sides, rng.random((len(which), 1)).round(2), label[:, None])
        found.append(np.concatenate(columns, axis=1))
    return truth, found


def ours(truth: Sequence[Objects], found: Detections) -> NDArray[np.float64]:
    return np.array(list(coco.evaluate(truth, found, classes=CLASSES).stats.values()))


def pycocotools(truth: Sequence[Objects], found: Detections) -> NDArray[np.float64]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    theirs = COCO()
    theirs.dataset = coco._dataset(truth, CLASSES)
    theirs.createIndex()
    rows = [np.concatenate([np.full((len(r), 1), i + 1), coco._xywh(r[:, :4]), r[:, 4:5], r[:, 5:] + 1], axis=1)
            for i, r in enumerate(found)]  # fmt: skip
    evaluator = COCOeval(theirs, theirs.loadRes(np.concatenate(rows)), "bbox")
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summarize()
    return np.array(evaluator.stats)


def torchmetrics(truth: Sequence[Objects], found: Detections) -> NDArray[np.float64]:
    import torch
    from torchmetrics.detection.mean_ap import MeanAveragePrecision

    metric = MeanAveragePrecision(backend="faster_coco_eval")
    for one, rows in zip(truth, found, strict=True):
        target = {
            "boxes": torch.from_numpy(one.boxes), "labels": torch.from_numpy(one.labels),
            "iscrowd": torch.from_numpy(one.crowd.astype(np.int64)), "area": torch.from_numpy(one.areas),
        }  # fmt: skip
        answer = torch.from_numpy(rows)
        metric.update([{"boxes": answer[:, :4], "scores": answer[:, 4], "labels": answer[:, 5].long()}], [target])
    stats = metric.compute()
    names = ("map", "map_50", "map_75", "map_small", "map_medium", "map_large", "mar_1", "mar_10", "mar_100")
    return np.array([float(stats[name]) for name in (*names, "mar_small", "mar_medium", "mar_large")])


def timed(run: Callable[..., NDArray[np.float64]], *given: Any) -> tuple[float, float, NDArray[np.float64]]:
    """Seconds of the processor and of the clock, and the twelve numbers."""
    cpu, wall = time.process_time(), time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        stats = run(*given)
    return time.process_time() - cpu, time.perf_counter() - wall, stats


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--pictures", type=int, default=5000)
    parser.add_argument("--out")
    options = parser.parse_args()
    truth, found = made(options.pictures)
    evaluators = {"ours": ours, "pycocotools": pycocotools}
    if importlib.util.find_spec("torchmetrics") is not None:
        evaluators["torchmetrics"] = torchmetrics
    results: dict[str, Any] = {}
    for name, run in evaluators.items():
        cpu, wall, stats = timed(run, truth, found)
        results[name] = {"cpu_s": cpu, "wall_s": wall, "stats": stats.tolist()}
        print(f"{name:12} {cpu:7.2f} s of processor, {wall:7.2f} s by the clock, AP {stats[0]:.6f}", flush=True)
    reference = np.array(results["pycocotools"]["stats"])
    for name, one in results.items():
        one["largest_difference"] = float(np.abs(np.array(one["stats"]) - reference).max())
        one["times_as_fast"] = results["pycocotools"]["cpu_s"] / one["cpu_s"]
        print(f"{name:12} {one['times_as_fast']:5.1f} x as fast, off by at most {one['largest_difference']:.1e}")
    packages = ("numpy", "pycocotools", "faster-coco-eval", "torchmetrics")
    versions = {name: metadata.version(name) for name in packages if importlib.util.find_spec(name.replace("-", "_"))}
    detections = sum(len(rows) for rows in found)
    held = {"pictures": options.pictures, "detections": detections, "classes": CLASSES, "versions": versions}
    if options.out:
        files.publish_json(options.out, {**held, "machine": measure.machine(), "evaluators": results})


if __name__ == "__main__":
    main()
