# SPDX-License-Identifier: Apache-2.0
"""Figures of a detector: all of them made, the same each time, names escaped, many classes too."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from detection_sets import random_set

from featherweight import detection_plots
from featherweight.data.objects import Objects


@pytest.mark.parametrize("count", [5, 40])
def test_all_figures_and_their_numbers(tmp_path: Path, count: int) -> None:
    truth, found = random_set(0, classes=count)
    names = [f"<b>{k}&" for k in range(count)]
    numbers = detection_plots.write(truth, found, tmp_path, classes=names)
    wanted = {"precision_recall", "f1", "errors"} | ({"confusion"} if count == 5 else set())
    assert {path.stem for path in tmp_path.glob("*.svg")} == wanted
    for path in tmp_path.glob("*.svg"):
        text = path.read_text()
        ElementTree.fromstring(text)
        assert "<b>" not in text and "NaN" not in text
    assert json.loads((tmp_path / "detection.json").read_text()) == numbers
    assert sum(map(sum, numbers["confusion"][:-1])) == sum(int((~one.crowd).sum()) for one in truth)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.svg")}
    detection_plots.write(truth, found, tmp_path, classes=names)
    assert before == {path.name: path.read_bytes() for path in tmp_path.glob("*.svg")}


def test_nothing_there_and_nothing_found(tmp_path: Path) -> None:
    truth = [Objects.of(np.zeros((0, 4)), np.zeros(0))]
    numbers = detection_plots.write(truth, [np.zeros((0, 6))], tmp_path, classes=["a"])
    assert numbers["errors"]["ap50"] == -1 and numbers["curves"]["f1"] == [[None] * 101]
