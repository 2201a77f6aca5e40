# SPDX-License-Identifier: Apache-2.0
"""Detectors as files: every form answers as the model does, at other batches and sizes too; a wrong one is refused."""

from __future__ import annotations

from pathlib import Path

import fill
import numpy as np
import pytest
import torch
from tiny_detector import small
from torch import nn

from featherweight.errors import CheckFailed, InputError, OptionError
from featherweight.models import zoo
from featherweight.runners import open_runner
from featherweight.runtime.maps import maps_in
from featherweight.runtime.nms import Nms
from featherweight.runtime.preprocess import Preprocess
from featherweight.runtime.session import Session, open_session

pytest.importorskip("onnx")

import onnx

from featherweight.export import detector, suppression
from featherweight.export.check import describe
from featherweight.export.detector import Form

IMAGES = fill.image("a detector's images", (3, 3, 32, 48))
ABOUT = describe(task="object-detection", preprocess=Preprocess((32, 48)))


def opened(path: Path, backend: str = "onnxruntime") -> Session:
    return open_session(path, backend=backend)


@pytest.mark.parametrize("form", ["raw", "decoded"])
def test_predictions_at_any_batch_and_size(form: str, tmp_path: Path) -> None:
    model = small()
    exported = detector.export(model, tmp_path / "d.onnx", IMAGES, form=form)
    assert exported.parity.snr_db > 100
    told = opened(exported.path).metadata
    assert (told["task"], told["form"], told["stride"]) == ("object-detection", form, "8")
    for backend in ("onnxruntime", "openvino"):
        session = opened(exported.path, backend)
        assert session.inputs[0].shape == (None, 3, None, None)
        for shape in ((1, 3, 64, 24), (2, 3, 8, 40)):
            images = fill.image("others", shape)
            expected = detector.answers(model, images, raw=form == "raw")
            got = list(session.run({"images": images.numpy()}).values())
            assert [g.shape for g in got] == [e.shape for e in expected]
            for ours, theirs in zip(expected, got, strict=True):
                np.testing.assert_allclose(theirs, ours, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("confidence", [0.0, 0.2, 0.5, 1.0])
def test_raw_maps_are_decoded_where_a_box_can_be(confidence: float, tmp_path: Path) -> None:
    """What the threshold lets through is what decoding everything gives, and so are the detections of a runner."""
    model = small()
    with torch.no_grad():
        for layer in model.head.modules():
            if isinstance(layer, nn.Conv2d):
                layer.weight.mul_(4.0)  # objectness on both sides of the threshold
    exported = detector.export(model, tmp_path / "raw.onnx", IMAGES, form="raw", metadata=ABOUT)
    session, everything = opened(exported.path), detector.answers(model, IMAGES)[0]
    maps = maps_in(session.metadata, [output.name for output in session.outputs], exported.path)
    answers = session.run({"images": IMAGES.numpy()})
    counts = []
    for i, whole in enumerate(everything):
        found = maps.predictions([answers[name][i] for name in maps.names], confidence)
        wanted = whole[whole[:, 4] >= confidence]
        np.testing.assert_allclose(found[found[:, 4] >= confidence], wanted, atol=1e-3, rtol=1e-5)
        counts.append((len(found), len(whole)))
    assert confidence != 0.0 or all(few == all_of_them for few, all_of_them in counts)
    assert confidence == 0.0 or all(few < all_of_them for few, all_of_them in counts)
    nms = Nms(confidence)
    detected = open_runner(exported.path).detect(IMAGES.numpy(), nms)
    for ours, theirs in zip(detected, nms.batch(everything), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-3, rtol=1e-5)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("anchors", None, "lack anchors or strides"),
        ("anchors", "[[1, 2]]", "do not fit its outputs"),
        ("anchors", "[[[1, 2], [3]]]", "do not fit its outputs"),
        ("strides", '["a"]', "do not fit its outputs"),
        ("strides", "[8", "bad_json"),
    ],
)
def test_raw_maps_that_are_not_explained_are_refused(key: str, value: str | None, says: str) -> None:
    told = {"anchors": "[[[1, 2], [3, 4]]]", "strides": "[8]"}
    assert maps_in(told, ["level0"], "d.onnx") is not None
    assert maps_in(told, ["predictions"], "d.onnx") is None
    told = {name: text for name, text in (told | {key: value}).items() if text is not None}
    with pytest.raises(InputError, match=says):
        maps_in(told, ["level0"], "d.onnx")


def test_suppression_in_the_file(tmp_path: Path) -> None:
    model = small()
    exported = detector.export(model, tmp_path / "d.onnx", IMAGES, form=Form("end2end", max_detections=7))
    predictions = detector.answers(model, IMAGES)[0]
    given = {"confidence": np.float32([0.002]), "iou": np.float32([0.6])}
    rows = opened(exported.path).run({"images": IMAGES.numpy(), **given})["detections"]
    expected = Nms(0.002, 0.6, multi_label=True, max_kept=7).batch(predictions)
    assert rows[:, 0].tolist() == [image for image, found in enumerate(expected) for _ in found]
    np.testing.assert_allclose(rows[:, 1:], np.concatenate(expected)[:, [0, 1, 2, 3, 5, 4]], atol=1e-3)


def test_a_file_of_one_size_refuses_another(tmp_path: Path) -> None:
    exported = detector.export(small(), tmp_path / "d.onnx", IMAGES, dynamic=False)
    assert opened(exported.path).inputs[0].shape == (None, 3, 32, 48)
    with pytest.raises(OptionError, match="images"):
        opened(exported.path).run({"images": np.zeros((1, 3, 64, 48), np.float32)})


@pytest.fixture(scope="module")
def wrong(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of a model that is another one by one class of one anchor."""
    model, path = small(), tmp_path_factory.mktemp("wrong") / "d.onnx"
    with torch.no_grad():
        model.head.m[0].bias[5] += 3.0  # type: ignore[index, operator, union-attr]
    path.write_bytes(detector.to_bytes(model, IMAGES, form=Form()))
    return path


@pytest.mark.parametrize("form", ["decoded", "end2end"])
def test_a_file_of_another_model_fails_the_check(form: str, wrong: Path, tmp_path: Path) -> None:
    path = tmp_path / "d.onnx"
    proto = onnx.load(wrong)
    known = {"num_classes": 3, "multi_label": True, "max_detections": 300}
    onnx.save(suppression.added(proto, **known) if form == "end2end" else proto, path)
    found = detector.parity(small(), opened(path), IMAGES, Form(form))
    with pytest.raises(CheckFailed):
        detector.check(found, min_snr_db=detector.CURVE_DB if form == "end2end" else None)


def test_a_suppression_that_keeps_all_fails_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suppression, "_GRAPH", suppression._GRAPH.replace("most, iou,", "most, one_iou,").replace(
        "half = Constant", "one_iou = Constant <value_floats = [1.0]> ()\n    half = Constant"))  # fmt: skip
    with pytest.raises(CheckFailed):
        detector.export(small(), tmp_path / "d.onnx", IMAGES, form="end2end", dynamic=False)
    assert not (tmp_path / "d.onnx").exists()


def test_what_is_no_detector_and_what_is_no_form(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="Conv2d is no detector: it has no head with anchors"):
        detector.export(nn.Conv2d(3, 3, 1), tmp_path / "d.onnx", IMAGES)
    with pytest.raises(OptionError, match="did you mean 'decoded'"):
        detector.export(small(), tmp_path / "d.onnx", IMAGES, form="decode")
    with pytest.raises(OptionError, match="max_detections"):
        Form("end2end", max_detections=0)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["yolov7_tiny", "yolov7", "yolov7_w6"])
def test_the_real_ones(variant: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = zoo.create("yolov7", variant=variant, form="training", num_classes=2)
    images = fill.image("real", (2, 3, 128, 192))
    exported = detector.export(model, tmp_path / "d.onnx", images)
    assert exported.parity.snr_db > 80
    other = fill.image("real", (1, 3, 256, 64))
    got = opened(exported.path).run({"images": other.numpy()})["predictions"]
    np.testing.assert_allclose(got, detector.answers(model, other)[0], atol=1e-3, rtol=1e-4)
