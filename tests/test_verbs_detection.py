# SPDX-License-Identifier: Apache-2.0
"""val and export of detectors, as functions and as commands."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_detector import Told, small

from featherweight import artifact, pipeline, verbs
from featherweight.data.objects import Objects
from featherweight.errors import OptionError
from featherweight.models import zoo
from featherweight.runtime.preprocess import Preprocess
from featherweight.verbs import accuracy_detection, shipping_detection

LETTERBOX = Preprocess(
    size=(64, 64), resize="letterbox", interpolation="bilinear", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)
)
SEEN = [(10, 20, 40, 44, 0.75, 1), (4, 18, 20, 30, 0.375, 0)]  # in the input
THERE = [(20.0, 8.0, 80.0, 56.0), (8.0, 4.0, 40.0, 28.0)]  # the same in a picture of 64 x 128


class Scenes:
    """Three pictures in which the same lies."""

    def __init__(self, boxes: Any, labels: Any) -> None:
        self.found = Objects.of(np.array(boxes), np.array(labels))

    def __len__(self) -> int:
        return 3

    def picture(self, i: int) -> Any:
        return np.full((64, 128, 3), 40 * i, np.uint8)

    def objects(self, i: int) -> Objects:
        return self.found


def scenery(boxes: Any = THERE, labels: Any = (1, 0), classes: tuple[str, ...] = ("cat", "dog", "kite")) -> Any:
    scenes = Scenes(boxes, labels)
    return SimpleNamespace(name="made", classes=classes, train=scenes, val=scenes, test=None)


def runner(classes: tuple[str, ...] = ("cat", "dog", "kite")) -> Any:
    return pipeline("object-detection", Told(SEEN), preprocess=LETTERBOX, classes=classes).runner


def test_what_is_found_where_it_lies_is_worth_all() -> None:
    found = accuracy_detection.val(runner(), scenery(), batch_size=2)
    assert (found["AP"], found["AR100"], found["n"]) == (pytest.approx(1.0), pytest.approx(1.0), 3)
    assert found["per_class"]["dog"]["AP"] == pytest.approx(1.0) and found["per_class"]["kite"]["AP"] == -1
    assert found["text"].count("\n") == 11


def test_classes_go_by_their_names() -> None:
    other = scenery(labels=(0, 2), classes=("dog", "kite", "cat"))
    assert accuracy_detection.val(runner(), other)["AP"] == pytest.approx(1.0)
    assert accuracy_detection.val(runner(), scenery(labels=(0, 1)))["AP"] == 0
    with pytest.raises(OptionError, match="does not know bird"):
        accuracy_detection.val(runner(), scenery(classes=("bird", "dog", "kite")))


def test_a_box_in_another_place_is_worth_less() -> None:
    moved = [(26.0, 8.0, 86.0, 56.0), THERE[1]]  # overlap 54 / 66
    found = accuracy_detection.val(runner(), scenery(moved), limit=1)
    assert found["per_class"]["dog"]["AP"] == pytest.approx(0.7) and found["n"] == 1


def test_a_part_that_is_not_there() -> None:
    with pytest.raises(OptionError, match="no test part"):
        accuracy_detection.val(runner(), scenery(), part="test")


def test_options_of_detectors_are_not_for_others() -> None:
    with pytest.raises(OptionError, match="iou"):
        verbs.val("vit_digits", "digits", iou=0.5, limit=8)
    with pytest.raises(OptionError, match="form"):
        verbs.export("vit_digits", "unused", form="raw")


def test_eight_bits_leave_the_head_in_float() -> None:
    from featherweight.methods.fuse import fuse
    from featherweight.methods.int8 import QuantConv2d

    images = torch.rand(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    model = fuse(small(), images[:1])
    new = shipping_detection.quantized(model, images)
    assert {type(conv) for conv in new.head.m} == {torch.nn.Conv2d}
    assert sum(isinstance(m, QuantConv2d) for m in new.modules()) == 3
    everything = shipping_detection.quantized(model, images, skip=())
    assert sum(isinstance(m, QuantConv2d) for m in everything.modules()) == 5


@pytest.mark.parametrize("form", ["decoded", "end2end"])
def test_a_file_of_any_size_is_raced_at_the_one_it_is_made_for(form: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    from featherweight.export import detector
    from featherweight.export.check import describe

    file, images = tmp_path / "d.onnx", torch.rand(2, 3, 64, 64)
    about = describe(task="object-detection", classes=("cat", "dog", "kite"), preprocess=LETTERBOX)
    detector.export(small(), file, images, form=form, metadata=about)
    (row,) = verbs.bench([file], batch=(2,), repeats=6, budget_s=0.05)
    assert row["conditions"]["resolution"] == (64, 64) and row["batch"] == 2 and row["median_ms"] > 0
    detector.export(small(), file, images, form=form)
    with pytest.raises(OptionError, match="resolution: unknown for this model"):
        verbs.bench([file], batch=(1,), repeats=6, budget_s=0.05)
    assert verbs.bench([file], batch=(1,), resolution=(32, 64), repeats=6, budget_s=0.05)[0]["median_ms"] > 0


def test_what_is_merged_is_counted_too() -> None:
    found = verbs.info("yolov7_tiny")
    assert (found["params"], found["fused"]["params"]) == (6_227_101, 6_219_709)
    assert found["resolution"] == [640, 640] and found["fused"]["macs"] <= found["macs"]


@pytest.mark.slow
def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from featherweight import cli

    torch.manual_seed(0)
    model = zoo.create("yolov7_tiny", num_classes=10)
    classes = [str(i) for i in range(10)]
    artifact.save(model, tmp_path / "model", task="object-detection", classes=classes, preprocess=LETTERBOX)
    out = tmp_path / "files"
    told = ["export", str(tmp_path / "model"), "--data", "digits-det", "--images", "4", "--out", str(out)]
    assert cli.main([*told, "--format", "onnx,openvino", "--quantize", "int8"]) == 0
    for file in ("model.onnx", "openvino_model.xml"):
        assert cli.main(["val", str(out / file), "--data", "digits-det", "--limit", "4"]) == 0
    said = capsys.readouterr().out
    assert said.count("Average Precision") == 12 and said.count("in float") == 2
    assert cli.main([*told, "--form", "end2end", "--imgsz", "100", "--exist-ok"]) == 2
    assert "128 is" in capsys.readouterr().err
