# SPDX-License-Identifier: Apache-2.0
"""Golden numbers of detection data (augmentation, letterbox, suppression, anchors, precision), and their controls."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import golden_runner
import pytest
from golden_files import FOLDER

pytest.importorskip("faster_coco_eval")
FILES = ("augment", "pre_post", "metrics")


@pytest.mark.parametrize("name", FILES)
def test_every_number_of_the_file_is_ours(name: str) -> None:
    case = golden_runner.check(FOLDER / "yolo" / f"{name}.json")
    assert case is not None and case.wrong == [] and len(case.seen) > 40


CHANGES: dict[str, list[Any]] = {
    "augment": [
        lambda held: held["affine"]["cases"][5]["boxes"][0].__setitem__(1, 11.1),
        lambda held: held["mosaic9"]["cases"][0]["tiles"].reverse(),
        lambda held: held["hsv"]["cases"][0]["gains"].__setitem__(1, 0.66),
    ],
    "pre_post": [
        lambda held: held["letterbox"]["cases"][0]["args"].__setitem__("auto", False),
        lambda held: held["scale_back"][1]["out"][1].__setitem__(2, 372.6),
        lambda held: held["nms"]["cases"][0]["args"].__setitem__("iou_thres", 0.5),
        lambda held: held["anchors"]["metric_thr4"]["p6"].__setitem__("bpr", 0.97),
        lambda held: held["rect_batches"]["cases"][0].__setitem__("pad", 1.5),
    ],
    "metrics": [
        lambda held: held["A"]["pycocotools"].__setitem__("APs", 0.3095),
        lambda held: held["B"]["gt"][0].__setitem__(7, 1),
        lambda held: held["C"]["default"]["P"].__setitem__(0, 0.9),
    ],
}


@pytest.mark.parametrize(("name", "change"), [(name, one) for name in CHANGES for one in CHANGES[name]])
def test_what_is_wrong_is_seen(tmp_path: Path, name: str, change: Any) -> None:
    held = copy.deepcopy(json.loads((FOLDER / "yolo" / f"{name}.json").read_text()))
    if name == "pre_post":
        held["anchors"]["kmeans_then_evolve_seed0"] = {}
        held["letterbox"]["cases"] = held["letterbox"]["cases"][:3]
    change(held)
    (tmp_path / "renamed.json").write_text(json.dumps(held))
    case = golden_runner.check(tmp_path / "renamed.json")
    assert case is not None and case.wrong
