# SPDX-License-Identifier: Apache-2.0
"""Preparing pictures as part of the graph: the same input as `Preprocess` makes in NumPy, within what is stated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

from featherweight.doors import onnx as door
from featherweight.errors import InputError, OptionError
from featherweight.runtime.pictures import fitting, open_pictures, with_pixels
from featherweight.runtime.preprocess import Preprocess

pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")
IMAGENET: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
PLAIN: dict[str, Any] = {"mean": (0.0,) * 3, "std": (1.0,) * 3, "interpolation": "bilinear"}
SIZE = (32, 48)
LEVEL = 1 / 255


def model(path: Path, preprocess: Preprocess | None = None, size: tuple[int, int] | None = SIZE) -> Path:
    """Gives its input back, so that a test sees what the graph has prepared."""
    import json

    sides = list(size) if size else ["height", "width"]
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 3, *sides]) for n in ("images", "answer")]
    graph = helper.make_graph([helper.make_node("Identity", ["images"], ["answer"])], "g", ports[:1], ports[1:])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    if preprocess is not None:
        helper.set_model_props(made, {"preprocess": json.dumps(preprocess.to_dict())})
    onnx.save(made, str(path))
    return path


def picture(height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(height)
    small = Image.fromarray(rng.integers(0, 256, (max(2, height // 6), max(2, width // 6), 3), np.uint8))
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_normalized_in_the_graph(tmp_path: Path, backend: str) -> None:
    prepare = Preprocess(size=SIZE, resize="exact", **IMAGENET)
    opened = open_pictures(model(tmp_path / "m.onnx", prepare), backend=backend, threads=1)
    pictures = [picture(50, 60), picture(*SIZE)]
    found = opened.run(pictures)["answer"]
    np.testing.assert_allclose(found, np.stack([prepare(one) for one in pictures]), atol=1e-5)
    assert opened.session.inputs[0].dtype == "uint8" and opened.session.backend == backend


def test_the_graph_stays_one_that_is_checked(tmp_path: Path) -> None:
    prepare = Preprocess(size=SIZE, **IMAGENET)
    path = model(tmp_path / "m.onnx", prepare)
    data = with_pixels(path.read_bytes(), prepare, path)
    onnx.checker.check_model(onnx.load_from_string(data), full_check=True)
    assert door.checked(data, path) == data


CASES = (
    (Preprocess(size=SIZE, resize="letterbox", **PLAIN), (64, 96), 1.01),  # halved
    (Preprocess(size=SIZE, resize="letterbox", **PLAIN), (50, 60), 1.01),
    (Preprocess(size=SIZE, resize="letterbox", **PLAIN), (20, 100), 1.01),
    (Preprocess(size=SIZE, resize="letterbox", **PLAIN), (32, 40), 0.01),  # padded only
    (Preprocess(size=SIZE, resize="exact", **{**PLAIN, "interpolation": "bicubic"}), (50, 60), 1.01),
    (Preprocess(size=SIZE, resize="exact", **PLAIN), (97, 61), 1.01),
    (Preprocess(size=SIZE, crop_pct=0.9, **IMAGENET), (70, 80), 1.01),
    (Preprocess(size=SIZE, crop_pct=0.9, **IMAGENET), (45, 31), 1.01),
)


@pytest.mark.parametrize(("prepare", "frame", "levels"), CASES)
def test_everything_in_the_graph_for_frames_of_one_size(
    tmp_path: Path, prepare: Preprocess, frame: tuple[int, int], levels: float
) -> None:
    path = model(tmp_path / "m.onnx", prepare, None if prepare.resize == "letterbox" else SIZE)
    opened = open_pictures(path, frame=frame, threads=1)
    given = picture(*frame)
    found, expected = opened.run([given])["answer"][0], prepare(given)
    apart = np.abs(found - expected) * np.array(prepare.std).reshape(3, 1, 1) / LEVEL
    assert apart.max() <= levels
    assert apart.mean() <= 0.3
    with pytest.raises(InputError, match="made for frames of"):
        opened.run([picture(10, 10)])


@pytest.mark.parametrize("frame", [(64, 96), (50, 60), (20, 100), (32, 40), (5, 3)])
def test_a_quicker_letterbox(tmp_path: Path, frame: tuple[int, int]) -> None:
    pytest.importorskip("cv2")
    prepare = Preprocess(size=SIZE, resize="letterbox", **PLAIN)
    given = picture(*frame)
    apart = np.abs(fitting(prepare, quick=True)(given).astype(int) - prepare.fit(given))
    assert apart.max() <= 1 and apart.mean() < 0.05
    opened = open_pictures(model(tmp_path / "m.onnx", prepare, None), backend="openvino", threads=1, quick=True)
    np.testing.assert_allclose(opened.run([given])["answer"][0], prepare(given), atol=1.01 * LEVEL)
    exact = Preprocess(size=SIZE, resize="exact", **PLAIN)
    assert fitting(exact, quick=True) == exact.fit  # Pillow's filters are Pillow's


def test_what_cannot_be_is_said(tmp_path: Path) -> None:
    path = model(tmp_path / "m.onnx")
    with pytest.raises(InputError, match="metadata lack"):
        open_pictures(path, backend="openvino")
    with pytest.raises(OptionError, match="frame: needs the openvino backend"):
        open_pictures(path, backend="onnxruntime", frame=(64, 64))
    with pytest.raises(OptionError, match="cache"):
        open_pictures(path, cache=tmp_path)
    assert open_pictures(path, preprocess=Preprocess(size=SIZE)).run([picture(*SIZE)])["answer"].shape == (1, 3, *SIZE)
