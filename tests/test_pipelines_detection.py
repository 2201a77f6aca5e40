# SPDX-License-Identifier: Apache-2.0
"""`pipeline("object-detection")`: the shape transformers gives, boxes in pixels of the picture, whatever runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_detector import Told, small

from featherweight import pipeline
from featherweight.errors import InputError, OptionError
from featherweight.export.check import describe
from featherweight.runners_detection import of_file
from featherweight.runtime.nms import PREDICTIONS, Nms
from featherweight.runtime.preprocess import Preprocess
from featherweight.runtime.tiles import tiles

LETTERBOX = Preprocess(
    size=(64, 64), resize="letterbox", interpolation="bilinear", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)
)
CLASSES = ("cat", "dog", "kite")
PICTURE = np.random.default_rng(0).integers(0, 256, (64, 128, 3), np.uint8)  # goes to rows 16..48 of the input
SEEN = [  # corners that lie between pixels; the first two overlap
    (10.25, 20.25, 40.25, 44.25, 0.75, 1),
    (14.25, 21.25, 44.25, 45.25, 0.625, 1),
    (4.25, 18.25, 20.25, 30.25, 0.375, 2),
]


def finder(rows: Any = SEEN, **options: Any) -> Any:
    return pipeline("object-detection", Told(rows), preprocess=LETTERBOX, classes=CLASSES, **options)


def test_answers_as_transformers_does() -> None:
    box = {"xmin": 20, "ymin": 8, "xmax": 80, "ymax": 56}
    (found,) = finder()(PICTURE)
    assert list(found) == ["score", "label", "box"] and list(found["box"].items()) == list(box.items())
    assert found["score"] == pytest.approx(0.75) and found["label"] == "dog"
    assert all(type(side) is int for side in found["box"].values())


def test_one_a_list_and_a_generator() -> None:
    pipe = finder(threshold=0.1)
    one = pipe(PICTURE)
    assert [found["label"] for found in one] == ["dog", "kite"]
    assert pipe([PICTURE]) == [one] and pipe([PICTURE, PICTURE], batch_size=2) == [one, one]
    stream = pipe(PICTURE for _ in range(3))
    assert next(stream) == one and len(list(stream)) == 2
    assert pipe(PICTURE, threshold=0.9) == []


def test_options() -> None:
    pipe = finder()
    assert len(pipe(PICTURE, iou=0.99)) == 2  # the overlapping one stays
    assert len(pipe(PICTURE, threshold=0.1, max_detections=1)) == 1
    crossing = [(10, 20, 40, 44, 0.75, 1), (13, 20, 43, 44, 0.625, 2)]
    assert len(finder(crossing)(PICTURE)) == 2
    assert len(finder(crossing)(PICTURE, agnostic=True)) == 1


def test_a_box_that_leaves_the_picture_is_clipped() -> None:
    (found,) = finder([(2.25, 2.25, 61.75, 61.75, 0.75, 0)])(PICTURE)
    assert found["box"] == {"xmin": 4, "ymin": 0, "xmax": 123, "ymax": 64}


def test_tiles_find_what_lies_in_each() -> None:
    wide = np.zeros((64, 192, 3), np.uint8)
    pipe = finder([(10.25, 20.25, 30.25, 40.25, 0.75, 1)])
    found = pipe(wide, tile=64, overlap=0.0)
    assert sorted(one["box"]["xmin"] for one in found) == [10, 30, 74, 138]  # the whole picture's is at 30
    assert {one["box"]["ymax"] - one["box"]["ymin"] for one in found if one["box"]["xmin"] != 30} == {20}


@pytest.mark.parametrize(("height", "width"), [(64, 64), (10, 300), (201, 130)])
def test_tiles_cover_the_picture(height: int, width: int) -> None:
    seen = np.zeros((height, width), bool)
    for left, top, right, bottom in tiles(height, width, size=64, overlap=0.25):
        assert 0 <= left < right <= width and 0 <= top < bottom <= height and max(right - left, bottom - top) <= 64
        seen[top:bottom, left:right] = True
    assert seen.all()


@pytest.mark.parametrize("form", ["decoded", "end2end"])
def test_exported_files_answer_alike(form: str, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    from featherweight.export import detector

    model = small()
    pipe = pipeline("object-detection", model, preprocess=LETTERBOX, classes=CLASSES, threshold=0.02)
    about = describe(task="object-detection", classes=CLASSES, preprocess=LETTERBOX)
    picture = np.random.default_rng(1).integers(0, 256, (128, 128, 3), np.uint8)  # no gray edge of equal scores
    images = torch.from_numpy(pipe.preprocess(picture)[0][None])
    asked = detector.Form(form, multi_label=False)
    detector.export(model, tmp_path / "d.onnx", images, form=asked, dynamic=False, metadata=about)
    ours = pipe(picture)
    assert len(ours) > 3
    for backend in ("onnxruntime", "openvino"):
        theirs = pipeline(model=tmp_path / "d.onnx", backend=backend, threshold=0.02)
        assert theirs.task == "object-detection"
        assert len(theirs([picture] * 3, batch_size=2)) == 3
        for a, b in zip(ours, theirs(picture), strict=True):
            assert a["label"] == b["label"] and a["score"] == pytest.approx(b["score"], abs=1e-5)
            assert all(abs(a["box"][side] - b["box"][side]) <= 1 for side in a["box"])
        with pytest.raises(OptionError, match="augment"):
            theirs(picture, augment=True)


def test_half_precision_that_overflows_is_computed_again() -> None:
    class Overflowing(Told):
        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
            factor = torch.tensor(1e30).to(images.dtype) / torch.tensor(1e30).to(images.dtype)
            return tuple(found * factor for found in super().forward(images.float()))

    pipe = pipeline("object-detection", Overflowing(SEEN).half(), preprocess=LETTERBOX, classes=CLASSES)
    assert [one["label"] for one in pipe(PICTURE)] == ["dog"]


def test_a_file_that_answers_nan_is_no_empty_picture() -> None:
    answer = np.zeros((2, 4, 7), np.float32)
    assert [len(rows) for rows in of_file([{PREDICTIONS: answer}], [2], Nms(), "d.onnx")] == [0, 0]
    for place, bad in (((0, 1, 4), np.nan), ((1, 3, 0), np.inf)):
        broken = answer.copy()
        broken[place] = bad
        with pytest.raises(InputError, match=r"d\.onnx: non_finite: answers with numbers that are not finite"):
            of_file([{PREDICTIONS: broken}], [2], Nms(), "d.onnx")


def test_augmented_finds_each_object_once_more_or_less() -> None:
    pipe = pipeline("object-detection", small(), preprocess=LETTERBOX, classes=CLASSES, threshold=0.02)
    assert pipe(PICTURE, augment=True) != pipe(PICTURE)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"threshold": 1.5}, "threshold"),
        ({"treshold": 0.5}, "did you mean 'threshold'"),
        ({"top_k": 3}, "top_k"),
        ({"tile": 8}, "tile"),
        ({"overlap": 1}, "overlap"),
        ({"max_detections": 0}, "max_detections"),
    ],
)
def test_wrong_options(options: dict[str, Any], says: str) -> None:
    with pytest.raises(OptionError, match=says):
        finder(**options)
    with pytest.raises(OptionError, match=says):
        finder()(PICTURE, **options)


def test_a_classifier_is_no_detector() -> None:
    with pytest.raises(OptionError, match="image-classification"):
        pipeline("object-detection", "vit_digits")
    with pytest.raises(InputError, match="does not exist"):
        finder()("nope.png")
