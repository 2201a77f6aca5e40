# SPDX-License-Identifier: Apache-2.0
"""Every number of golden files against our models: `make golden DIR=path`, one line a file, exit 1 if one disagrees.

A file of a classifier names a family and its configuration, and a method with its options. The model is made by
`featherweight.create`; stand-in weights (`fill`) under the official names go through a `.pth` file and the checkpoint
reader; then each digest of the file is compared with what our model computes there. Files of detection are recognised
by what they hold (`RECOGNIZED`), never by their names. A digest that nothing is compared with is a failure too, and so
is a file in which nothing was compared. `COMPILE=1` lets evaluation go through torch.compile.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from golden_case import Case, digests
from golden_methods import dynamic, merging
from golden_models import sret, vit
from golden_yolo_data import augmentation, metrics, pre_post
from golden_yolo_losses import losses, overlaps
from golden_yolo_models import checkpoint, detector, hostile
from golden_yolo_training import schedules, steps
from torch import nn

import featherweight
from featherweight.errors import FeatherweightError

FAMILIES: dict[str, Callable[[Case, nn.Module], None]] = {
    "vit": vit, "lvvit": vit, "sret": sret,
    "vit+dynamicvit": dynamic, "lvvit+dynamicvit": dynamic, "timm+dynamicvit": dynamic,
    "vit+tome": merging, "lvvit+tome": merging, "timm+tome": merging,
}  # fmt: skip
Reference = Mapping[str, Any]
# What a file holds -> who compares it; the first that recognises a file takes it.
RECOGNIZED: list[tuple[Callable[[Reference], bool], Callable[[Case], None]]] = [
    (lambda held: held.get("family") == "yolov7" and "config" in held, detector),
    (lambda held: len(held) > 0 and all("sha256_file" in str(value) for value in held.values()), checkpoint),
    (lambda held: "boxes_xywh_pred" in held and "ciou" in held, overlaps),
    (lambda held: "kind" in held and "preds" in held, losses),
    (lambda held: "warmup" in held and "epoch_lr" in held, schedules),
    (lambda held: "steps" in held and "group_sizes" in held, steps),
    (lambda held: "affine" in held, augmentation),
    (lambda held: "letterbox" in held, pre_post),
    (lambda held: "stat_names" in held, metrics),
]


def check(path: Path, *, compiled: bool = False) -> Case | None:
    """A golden file against ours; None for a file that nobody here knows how to compare."""
    reference = json.loads(path.read_text())
    handler = next((take for known, take in RECOGNIZED if isinstance(reference, dict) and known(reference)), None)
    if handler is None and not (isinstance(reference, dict) and "family" in reference):
        return None
    case = Case(reference.get("name", path.stem), reference, compiled, path=path)
    try:
        (handler or _classifier)(case)
    except (FeatherweightError, LookupError, ValueError, TypeError, RuntimeError) as error:
        case.wrong.append(f"{type(error).__name__}: {error}")
        return case
    unseen = [place for place in digests(reference) if not any(at in case.seen for at in _above(place))]
    case.wrong += [f"{place}: compared with nothing" for place in unseen]
    if not case.seen and not case.wrong:
        case.wrong.append("nothing in it was compared")
    return case


def _above(place: str) -> list[str]:
    """A dotted place and everything that it lies in, each of which a handler may have compared as a whole."""
    parts = place.split(".")
    return [".".join(parts[:end]) for end in range(len(parts), 0, -1)]


def _classifier(case: Case) -> None:
    reference = case.reference
    family, method = reference["family"], (reference.get("method") or {}).get("name", "")
    handler = FAMILIES.get(f"{family}+{method}" if method else family)
    if handler is None:
        raise LookupError(f"no {method or family} for the family {family} here")
    handler(case, featherweight.create(family, **reference["config"]))


def main(folder: str, *, compiled: bool = False) -> int:
    """One line for each golden file below a folder; 1 if one fails or there is none."""
    failed = done = 0
    for path in sorted(Path(folder).rglob("*.json")):
        start = time.perf_counter()
        case = check(path, compiled=compiled)
        if case is None:
            continue
        done += 1
        failed += bool(case.wrong)
        result = "FAILED" if case.wrong else "ok"
        said = "; ".join(case.wrong[:4]) or "; ".join([f"{len(case.seen)} digests", *case.told])
        print(f"{result:6} {path.name}: {said} ({time.perf_counter() - start:.1f} s)", flush=True)
    for path in sorted(Path(folder).rglob("hostile*.tar.gz")):
        done += 1
        failed += bool(wrong := hostile(path))
        print(
            f"{'FAILED' if wrong else 'ok':6} {path.name}: {'; '.join(wrong[:4]) or 'every file refused'}", flush=True
        )
    print(f"{done - failed} of {done} golden files agree")
    return 1 if failed or not done else 0


if __name__ == "__main__":
    names = [word for word in sys.argv[1:] if word != "--compile"]
    if len(names) != 1:
        sys.exit("usage: make golden DIR=path, with COMPILE=1 through torch.compile")
    sys.exit(main(names[0], compiled="--compile" in sys.argv))
