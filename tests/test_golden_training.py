# SPDX-License-Identifier: Apache-2.0
"""The runner of golden files on those of detection training, and that it sees what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import golden_runner
import pytest
from golden_files import FOLDER

QUICK = ("loss_", "schedule", "train_step-yolov7-tiny")
KINDS = ("loss_*", "schedule", "train_step-*")
FILES = [path.stem for kind in KINDS for path in sorted((FOLDER / "yolo").glob(f"{kind}.json"))]


@pytest.mark.parametrize("name", [n if n.startswith(QUICK) else pytest.param(n, marks=pytest.mark.slow) for n in FILES])
def test_every_number_of_the_file_is_ours(name: str) -> None:
    case = golden_runner.check(FOLDER / "yolo" / f"{name}.json")
    assert case is not None and case.wrong == [] and len(case.seen) >= 6


def moved(reference: dict[str, Any]) -> None:
    reference["assignment_lead"][1][0][4] = 6


def heavier(reference: dict[str, Any]) -> None:
    reference["grad"][0]["l2"] *= 1.001
    reference["items_box_obj_cls_total"][0] += 1e-4


def later(reference: dict[str, Any]) -> None:
    reference["warmup"][0]["points"][3]["momentum"] += 1e-4


WRONG: dict[str, tuple[Callable[[dict[str, Any]], None], list[str]]] = {
    "loss_ota_p5": (moved, ["assignment_lead: other positives"]),
    "loss_aux_p6": (heavier, ["items: ", "grad.0: "]),
    "schedule": (later, ["warmup.0.points.3: "]),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_seen(name: str, tmp_path: Path) -> None:
    change, said = WRONG[name]
    reference = json.loads((FOLDER / "yolo" / f"{name}.json").read_text())
    change(reference)
    (tmp_path / "changed.json").write_text(json.dumps(reference))
    case = golden_runner.check(tmp_path / "changed.json")
    assert case is not None and len(case.wrong) == len(said)
    assert all(found.startswith(start) for found, start in zip(case.wrong, said, strict=True)), case.wrong
