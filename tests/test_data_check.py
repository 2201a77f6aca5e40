# SPDX-License-Identifier: Apache-2.0
"""`data check` on detection sets: everything odd with counts, an HTML sheet, a repaired copy that has nothing wrong."""

from __future__ import annotations

import json
from pathlib import Path

import detection_files as files
import numpy as np
import pytest

from featherweight import cli
from featherweight.data import detection, detection_copy, detection_report, detection_sheet
from featherweight.errors import OptionError, StorageError


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """A YOLO set with one of each: clipped, dropped, twice, without labels; a twin and a name that is HTML."""
    root = files.yolo(tmp_path / "set", pictures=5)
    rows = ["0 1.02 0.5 0.2 0.2", "1 nan 0.5 0.2 0.2", "1 0.5 0.5 0.25 0.25", "1 0.5 0.5 0.25 0.25"]
    files.put(root / "labels/train/pic 0.txt", "\n".join([*rows, "1 0.5 0.5 0.25 0.24", "2 0.5 0.5 1 1", ""]))
    files.put(root / "labels/train/pic 3.txt", "2 0.1 0.1 0.4 0.1 0.4 0.4\n")
    (root / "labels/val/pic 1.txt").unlink()
    text = (root / "data.yaml").read_text().replace("big dog", "<script>alert(1)</script>")
    files.put(root / "data.yaml", text)
    return root


def test_what_is_said_and_what_is_put_out(odd: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", "check", str(odd), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    counts = {(one["reason"], one["done"]): one["count"] for one in found["findings"]}
    assert counts == {
        ("clipped", "repaired"): 1, ("bad_box", "dropped"): 1, ("duplicate_box", "dropped"): 1, ("missing", "kept"): 1,
    }  # fmt: skip
    odd_ones = {one["kind"]: one["boxes"] for one in found["odd"]}
    assert odd_ones == {"twin": 1, "tiny": 0, "thin": 0, "whole": 1}
    assert found["parts"]["train"]["outlines"] == 1 and found["parts"]["val"]["background"] == 2
    assert cli.main(["data", "check", str(odd)]) == 0
    said = capsys.readouterr().out
    assert "✗ bad_box: 1 dropped" in said and "line 2" in said and "--repair" in said
    assert cli.main(["data", "check", str(odd), "--on-bad", "refuse"]) == 2


@pytest.mark.parametrize("layout", detection_copy.FORMATS)
def test_the_repaired_copy_says_the_same_without_a_finding(odd: Path, tmp_path: Path, layout: str) -> None:
    before = detection.load(odd)
    counts = detection_copy.write(before, tmp_path / "copy", layout=layout)
    assert counts["left_out"] == 0 and counts["pictures"] == 10
    after = detection.load(tmp_path / "copy")
    assert not after.findings.counts and after.classes == before.classes
    for part in ("train", "val"):
        one, two = getattr(before, part), getattr(after, part)
        assert [len(one.objects(i)) for i in range(len(one))] == [len(two.objects(i)) for i in range(len(two))]
        for i in range(len(one)):
            assert np.allclose(one.objects(i).boxes, two.objects(i).boxes, atol=1e-4)
            assert np.array_equal(one.picture(i), two.picture(i))
    assert after.train.outlined
    with pytest.raises(StorageError, match="not there yet"):
        detection_copy.write(before, tmp_path / "copy")
    with pytest.raises(OptionError, match="coco, yolo"):
        detection_copy.write(before, tmp_path / "other", layout="voc")


def test_coco_to_yolo_to_coco_keeps_boxes_to_a_millionth(tmp_path: Path) -> None:
    one = detection.load(files.coco(tmp_path / "a"))
    detection_copy.write(one, tmp_path / "b", layout="yolo")
    detection_copy.write(detection.load(tmp_path / "b"), tmp_path / "c", layout="coco")
    two = detection.load(tmp_path / "c")
    for i in range(len(one.train)):
        assert np.allclose(one.train.objects(i).boxes, two.train.objects(i).boxes, atol=1e-6)


def test_the_sheet_shows_pictures_and_escapes_names(odd: Path, tmp_path: Path) -> None:
    page = detection_sheet.write(detection.load(odd), tmp_path / "sheet.html").read_text()
    assert "<script>" not in page and "&lt;script&gt;" in page
    assert page.count("data:image/jpeg;base64,") >= 12 and "http" not in page.replace("http-equiv", "")
    assert "bad_box: 1 dropped" in page and "worth a look" in page


def test_results_have_the_file_s_own_ids(tmp_path: Path) -> None:
    data = detection.load(files.coco(tmp_path))
    rows = [np.array([[1.23456, 2, 11.23456, 22, 0.1234567, 2.0]])] + [np.zeros((0, 6))] * 3
    (found,) = detection_copy.results(rows, data.train, data.category_ids)
    assert found == {"image_id": 7, "category_id": 90, "bbox": [1.235, 2.0, 10.0, 20.0], "score": 0.12346}


def test_only_detection_sets_are_drawn_or_repaired(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("cat/1.png", "dog/2.png"):
        files.put(tmp_path / name, files.picture(1))
    assert cli.main(["data", "check", str(tmp_path), "--sheet", "x.html"]) == 2
    assert "detection sets" in capsys.readouterr().err
    assert (
        detection_report.describe(detection.load("digits-det", n_train=2, n_val=1, n_test=1))["format"] == "digits-det"
    )
