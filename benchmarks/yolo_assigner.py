# SPDX-License-Identifier: Apache-2.0
"""How fast and how large lead-guided assignment is, against building the full cost tensor image by image.

    python benchmarks/yolo_assigner.py             all cases, a few minutes, kept in docs/measured/yolo_assigner.json
    python benchmarks/yolo_assigner.py --threads 2
    python benchmarks/yolo_assigner.py --case 16x1000x365 --only ours        one case, printed alone

The other side is what the formula says, image by image: IoU of all targets with all candidate cells, and cross-entropy
of all classes for each pair, a tensor of targets x columns x classes. It is without gradient, too. Both take turns; the
ratio is the median over the turns. Times are those of the processor, on one thread unless told otherwise; the load of
the machine is kept beside them. Each side is measured in a process of its own as well, whose largest resident memory is
kept; `maps_mib` of it are the detector's maps. Predictions and boxes are random.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from featherweight import files, measure
from featherweight.tasks.detection import Detection, Maps
from featherweight.tasks.detection.boxes import iou_matrix, xyxy_of
from featherweight.tasks.detection.candidates import Cells, candidates, distinct
from featherweight.tasks.detection.decode import boxes_at

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "measured" / "yolo_assigner.json"
STRIDES = (8, 16, 32)
ANCHORS = torch.tensor([
    [[12, 16], [19, 36], [40, 28]], [[36, 75], [76, 55], [72, 146]], [[142, 110], [192, 243], [459, 401]],
]) / torch.tensor(STRIDES)[:, None, None]  # fmt: skip
CASES = ((16, 8, 80), (16, 50, 80), (4, 200, 80), (2, 200, 365), (16, 1000, 365))  # images, boxes of each, classes
LARGEST = 10**9  # elements of the full cost tensor of one image that are still built
SIZE = 640


def problem(images: int, boxes: int, classes: int) -> tuple[Maps, Tensor]:
    """Random maps and targets; boxes of 8 to 250 pixels, small ones more often."""
    drawn = torch.Generator().manual_seed(0)
    shapes = [(images, 3, SIZE // s, SIZE // s, 5 + classes) for s in STRIDES]
    maps = Maps.of([torch.randn(shape, generator=drawn) for shape in shapes], ANCHORS, STRIDES)
    count = images * boxes
    middle = torch.rand(count, 2, generator=drawn)
    sides = 8 * (250 / 8) ** torch.rand(count, 2, generator=drawn).square() / SIZE
    image = torch.arange(images).repeat_interleave(boxes)[:, None]
    labels = torch.randint(classes, (count, 1), generator=drawn)
    return maps, torch.cat((image, labels, middle, sides), dim=1)


@torch.no_grad()
def ours(maps: Maps, targets: Tensor) -> list[Cells]:
    return Detection(maps.num_classes).positives(maps, targets)


@torch.no_grad()
def full(maps: Maps, targets: Tensor) -> list[Cells]:
    """The same assignment with the whole cost tensor of each image."""
    shapes = [raw.shape[2:4] for raw in maps]
    found = [distinct(c, m.shape) for c, m in zip(candidates(targets, ANCHORS, shapes), maps, strict=True)]
    picked: list[list[Cells]] = [[] for _ in maps]
    for image in range(len(maps[0])):
        own = [cells[cells.image == image] for cells in found]
        mine = (targets[:, 0] == image).nonzero()[:, 0]
        raw = torch.cat([cells.of(values) for cells, values in zip(own, maps, strict=True)])
        boxes = torch.cat([
            xyxy_of(boxes_at(c.of(m)[:, :4], a[c.anchor], torch.stack((c.column, c.row), 1), s))
            for c, m, a, s in zip(own, maps, ANCHORS, STRIDES, strict=True)
        ])  # fmt: skip
        owner = _owners(raw, boxes, xyxy_of(targets[mine, 2:6] * SIZE), targets[mine, 1].long())
        for level, part in enumerate(owner.split([len(cells) for cells in own])):
            cells, won = own[level], part >= 0
            kept = cells[won]
            picked[level].append(Cells(kept.image, kept.anchor, kept.row, kept.column, mine[part[won]]))
    return [Cells(*(torch.cat([getattr(c, n) for c in level]) for n in vars(level[0]))) for level in picked]


def _owners(raw: Tensor, boxes: Tensor, true: Tensor, labels: Tensor) -> Tensor:
    """The target of each column, -1 for none."""
    overlap = iou_matrix(true, boxes)
    k = overlap.topk(min(10, overlap.shape[1])).values.sum(1).long().clamp(min=1)
    y = (raw[:, 5:].sigmoid() * raw[:, 4:5].sigmoid()).sqrt()[None].expand(len(true), -1, -1)
    wanted = F.one_hot(labels, y.shape[-1]).float()[:, None].expand_as(y)
    cost = F.binary_cross_entropy_with_logits(torch.logit(y, eps=1e-7), wanted, reduction="none").sum(-1)
    cost = cost - 3 * torch.log(overlap + 1e-8)
    taken = torch.zeros_like(cost, dtype=torch.bool)
    for row, count in enumerate(k.tolist()):
        taken[row, cost[row].topk(count, largest=False).indices] = True
    many = taken.sum(0) > 1
    owner = torch.where(many, cost.argmin(0), taken.int().argmax(0))
    return torch.where(taken.any(0), owner, -1)


SIDES: dict[str, Callable[[Maps, Tensor], list[Cells]]] = {"ours": ours, "full": full}


def once(side: str, case: tuple[int, int, int], turns: int) -> dict[str, Any]:
    """Time of one side of a case, and the process' largest memory."""
    maps, targets = problem(*case)
    times = []
    for _ in range(turns):
        start = time.process_time()
        SIDES[side](maps, targets)
        times.append(time.process_time() - start)
    return {"seconds": statistics.median(times), "peak_mib": peak_mib()}


def peak_mib() -> int:
    """The largest resident memory of this process; getrusage would count what the parent had when it was forked."""
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) // 1024
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)


def race(case: tuple[int, int, int], turns: int) -> dict[str, Any]:
    """Both sides in turns, and whether they choose the same cells."""
    maps, targets = problem(*case)
    seen: dict[str, list[float]] = {name: [] for name in SIDES}
    chosen = {}
    for _ in range(turns + 1):
        for name, side in SIDES.items():
            start = time.process_time()
            chosen[name] = side(maps, targets)
            seen[name].append(time.process_time() - start)
    ratios = [b / a for a, b in zip(seen["ours"][1:], seen["full"][1:], strict=True)]
    rows = {n: [sorted(torch.stack(tuple(vars(c).values()), 1).tolist()) for c in cells] for n, cells in chosen.items()}
    return {
        **{f"{name}_cpu_ms": round(1e3 * statistics.median(times[1:]), 2) for name, times in seen.items()},
        "ratio": round(statistics.median(ratios), 2),
        "turns": turns,
        "same_cells": rows["ours"] == rows["full"],
    }


def in_own_process(side: str, case: tuple[int, int, int], threads: int) -> dict[str, Any]:
    """`once` in a fresh process, for its memory."""
    command = [sys.executable, __file__, "--case", "x".join(map(str, case)), "--only", side, "--threads", str(threads)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)  # type: ignore[no-any-return]


def measured(case: tuple[int, int, int], threads: int, turns: int) -> dict[str, Any]:
    images, boxes, classes = case
    maps, targets = problem(*case)
    found = candidates(targets, ANCHORS, [raw.shape[2:4] for raw in maps])
    columns = sum(len(distinct(c, m.shape)) for c, m in zip(found, maps, strict=True))
    elements = boxes * columns // images * classes
    result: dict[str, Any] = {
        "images": images,
        "boxes": boxes,
        "classes": classes,
        "columns_per_image": columns // images,
    }
    result |= {"threads": threads, "full_elements_per_image": elements}
    result["maps_mib"] = round(sum(m.numel() for m in maps) * 4 / 2**20)
    del maps, targets, found
    built = elements <= LARGEST
    if built:
        result |= race(case, turns)
    for side in SIDES if built else ("ours",):
        alone = in_own_process(side, case, threads)
        result[f"{side}_peak_mib"] = alone["peak_mib"]
        result.setdefault(f"{side}_cpu_ms", round(1e3 * alone["seconds"], 2))
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", help="images x boxes x classes, such as 16x1000x365")
    parser.add_argument("--only", choices=list(SIDES))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--turns", type=int, default=5)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    images, boxes, classes = (int(n) for n in (asked.case or "0x0x0").split("x"))
    if asked.only:
        print(json.dumps(once(asked.only, (images, boxes, classes), 1 if boxes > 500 else 3)))
        return 0
    rows = []
    for case in ((images, boxes, classes),) if asked.case else CASES:
        rows.append(measured(case, asked.threads, asked.turns))
        print(json.dumps(rows[-1]), flush=True)
    if not asked.case:
        machine = {**measure.machine(), "load": round(os.getloadavg()[0], 2)}
        text = json.dumps({"format": 1, "machine": machine, "size": SIZE, "cases": rows}, indent=1)
        files.publish(RESULTS, (text + "\n").encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
