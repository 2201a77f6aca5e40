# SPDX-License-Identifier: Apache-2.0
"""Opening and running exported files, without torch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx_model import WEIGHT, write

from featherweight.errors import InputError, OptionError
from featherweight.runtime.session import available_threads, open_session

pytest.importorskip("onnxruntime")
openvino = pytest.importorskip("openvino")
X = np.array([[1.0, 2.0, 3.0], [0.1, -0.2, 0.3]], np.float32)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write(tmp_path / "m.onnx")


@pytest.fixture
def xml(model: Path) -> Path:
    path = model.with_suffix(".xml")
    openvino.save_model(openvino.convert_model(str(model)), str(path), compress_to_fp16=False)
    return path


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_runs_and_describes_itself(model: Path, backend: str) -> None:
    session = open_session(model, backend=backend, threads=1)
    found = session.run({"x": X})
    np.testing.assert_allclose(found["logits"], X @ WEIGHT, rtol=1e-6)  # sums of three products in another order
    np.testing.assert_allclose(found["twice"], 2 * (X @ WEIGHT), rtol=1e-6)
    assert (session.backend, session.dtype, session.threads) == (backend, "float32", 1)
    assert session.inputs[0] == ("x", (None, 3), "float32")
    assert [port.name for port in session.outputs] == ["logits", "twice"]
    assert session.metadata == {"task": "image-classification", "names": '{"0": "a b"}'}


def test_xml_equals_onnx(model: Path, xml: Path) -> None:
    expected = open_session(model, backend="openvino").run({"x": X})
    np.testing.assert_array_equal(open_session(xml).run({"x": X})["logits"], expected["logits"])


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_answers_stay_what_they_were(model: Path, backend: str) -> None:
    session = open_session(model, backend=backend)
    first = session.run({"x": X})["logits"]
    before = first.copy()
    session.run({"x": -X})
    np.testing.assert_array_equal(first, before)


SIGNALLED = """
import os, signal, sys
{open}
first, second = open(sys.argv[1]), open(sys.argv[1])
del first
del second
signal.signal(signal.SIGINT, lambda *_: print("heard"))
os.kill(os.getpid(), signal.SIGINT)
"""
OURS = """
from featherweight.runtime.session import open_session as new
def open(path): return new(path, backend="openvino")
"""
PLAIN = "import openvino\ndef open(path): core = openvino.Core(); return core, core.compile_model(path, 'CPU')"


@pytest.mark.parametrize("kind", ["ours", "a plain core for each"])
def test_a_signal_after_sessions_came_and_went(model: Path, kind: str) -> None:
    """OpenVINO's plugin takes the stack for signals away when it goes: with one for each session Ctrl-C crashes."""
    code = SIGNALLED.replace("{open}", OURS if kind == "ours" else PLAIN)
    done = subprocess.run([sys.executable, "-c", code, str(model)], capture_output=True, text=True, timeout=120)
    if kind == "ours":
        assert (done.returncode, done.stdout) == (0, "heard\n"), done.stderr
    elif done.returncode == 0:
        pytest.skip("this version of OpenVINO does not need the care")


def test_threads_come_from_affinity(model: Path) -> None:
    if hasattr(os, "sched_getaffinity"):
        assert available_threads() == len(os.sched_getaffinity(0))
    assert open_session(model).threads == available_threads()


def test_bf16_only_when_asked_and_named(model: Path) -> None:
    assert open_session(model, backend="openvino").dtype == "float32"
    assert open_session(model, backend="openvino", precision="bf16").dtype in ("bfloat16", "float32")  # by processor


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        ({}, "'x' is missing"),
        ({"y": X}, "no input 'y'"),
        ({"x": X.astype(np.float64)}, "must be float32, not float64"),
        ({"x": X[:, :2]}, r"must have the shape \(any, 3\), not \(2, 2\)"),
        ({"x": X[0]}, r"must have the shape \(any, 3\)"),
    ],
)
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_wrong_inputs_are_named(model: Path, backend: str, inputs: dict[str, np.ndarray], text: str) -> None:
    with pytest.raises(OptionError, match=text):
        open_session(model, backend=backend).run(inputs)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"backend": "onnxruntme"}, "did you mean 'onnxruntime'"),
        ({"threads": 0}, "at least 1"),
        ({"precision": "fp16"}, "Known: f32, bf16, auto"),
        ({"backend": "onnxruntime", "precision": "bf16"}, "openvino"),
    ],
)
def test_wrong_options_are_named(model: Path, options: dict[str, object], text: str) -> None:
    with pytest.raises(OptionError, match=text):
        open_session(model, **options)  # type: ignore[arg-type]


def test_files_that_are_no_models(tmp_path: Path, model: Path, xml: Path) -> None:
    with pytest.raises(InputError, match="unsupported_format"):
        open_session(tmp_path / "m.pt")
    with pytest.raises(OptionError, match="does not read"):
        open_session(xml, backend="onnxruntime")
    model.write_bytes(model.read_bytes()[:-40])
    with pytest.raises(InputError):
        open_session(model)
    graph = xml.read_bytes()
    xml.write_bytes(graph.replace(b"<net ", b'<!DOCTYPE net [<!ENTITY a "b">]><net ', 1))
    with pytest.raises(InputError, match="without declarations"):
        open_session(xml)
    xml.write_bytes(graph[:200])
    with pytest.raises(InputError, match="does not accept"):
        open_session(xml)
    xml.with_suffix(".bin").unlink()
    with pytest.raises(InputError, match="missing"):
        open_session(xml)
