# SPDX-License-Identifier: Apache-2.0
"""The OpenVINO model made of an exported .onnx file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from featherweight.errors import CheckFailed, OptionError
from featherweight.methods.quantize import quantize
from featherweight.models.vit import VisionTransformer, ViTConfig
from featherweight.runtime.session import open_session
from featherweight.tasks.classification import Classification

pytest.importorskip("onnx")
openvino = pytest.importorskip("openvino")

from featherweight.export import onnx as to_onnx  # noqa: E402
from featherweight.export import openvino as to_openvino  # noqa: E402
from featherweight.export.check import describe  # noqa: E402

TASK = Classification(5)


def batches(n: int = 16) -> list[dict[str, Tensor]]:
    return [{"image": torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(n))}]


@pytest.fixture(scope="module")
def vit() -> nn.Module:
    torch.manual_seed(0)
    config = ViTConfig(image_size=(16, 16), patch_size=4, num_classes=5, embed_dim=32, depth=2, num_heads=2)
    model = VisionTransformer(config)
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture(scope="module")
def file(vit: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    about = describe(classes=["a b", "c", "d", "e", "f"], license="MIT")
    return to_onnx.export(vit, batches()[0]["image"][:2], path, metadata=about).path


def test_it_answers_like_the_model_and_says_what_it_is(vit: nn.Module, file: Path, tmp_path: Path) -> None:
    done = to_openvino.export(file, tmp_path / "openvino_model.xml", model=vit, batches=batches(), task=TASK)
    assert done.size_bytes == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert (done.parity.backend, done.parity.dtype, done.parity.n) == ("openvino", "float32", 16)
    assert done.max_abs_difference < 1e-5  # float32, logits of size 1
    session = open_session(done.path)
    assert session.metadata["labels"] == "a_b c d e f"
    assert session.metadata["names"].startswith('{"0":"a b"')
    assert (session.metadata["task"], session.metadata["license"]) == ("image-classification", "MIT")
    assert session.outputs == (("logits", (None, 5), "float32"),)


def test_equal_files_give_equal_bytes(file: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        to_openvino.convert(file, tmp_path / f"{name}.xml")
    assert (tmp_path / "a.xml").read_bytes() == (tmp_path / "b.xml").read_bytes()
    assert (tmp_path / "a.bin").read_bytes() == (tmp_path / "b.bin").read_bytes()
    assert str(file.parent).encode() not in (tmp_path / "a.xml").read_bytes()


def test_half_is_half_and_not_the_default(vit: nn.Module, file: Path, tmp_path: Path) -> None:
    full = to_openvino.export(file, tmp_path / "full.xml", model=vit, batches=batches())
    half = to_openvino.export(file, tmp_path / "half.xml", model=vit, batches=batches(), half=True)
    sizes = [(tmp_path / f"{name}.bin").stat().st_size for name in ("full", "half")]
    assert sizes[1] < 0.55 * sizes[0]
    assert half.parity.snr_db < 90 < full.parity.snr_db


def test_int8_stays_int8(vit: nn.Module, tmp_path: Path) -> None:
    small = quantize(vit, batches(8), TASK)
    source = to_onnx.export(small, batches()[0]["image"][:2], tmp_path / "q.onnx", batches=batches()).path
    done = to_openvino.export(source, tmp_path / "q.xml", model=small, batches=batches())
    assert done.parity.dtype == "int8"
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(done.path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    ran = [op.get_rt_info()["runtimePrecision"].astype(str) for op in compiled.get_runtime_model().get_ops()
           if op.get_rt_info()["layerType"].astype(str) in ("FullyConnected", "MatMul")]  # fmt: skip
    assert sum(kind in ("u8", "i8") for kind in ran) >= 8, "qkv, proj, fc1 and fc2 of two blocks, in integers"


def test_a_leaky_activation_is_computed_with_its_convolution(tmp_path: Path) -> None:
    """The rounding that ONNX Runtime needs between them is in the .onnx file, and not in OpenVINO's."""
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 3, 2), nn.LeakyReLU(0.1), nn.Conv2d(8, 8, 3), nn.LeakyReLU(0.1), nn.Conv2d(8, 4, 3))
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(36, 5)).eval()
    small = quantize(model, batches(8), TASK)
    source = to_onnx.export(small, batches()[0]["image"][:2], tmp_path / "q.onnx", batches=batches()).path
    done = to_openvino.export(source, tmp_path / "q.xml", model=small, batches=batches())
    assert done.parity.dtype == "int8"
    found = []
    for path in (source, done.path):
        ops = [op for op in openvino.Core().read_model(path).get_ops() if op.get_type_name() == "PRelu"]
        found.append([op.input_value(0).get_node().get_type_name() in ("Add", "Convolution") for op in ops])
    assert found == [[False, False], [True, True]]


def test_another_models_file_fails_and_leaves_nothing(vit: nn.Module, file: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    other = VisionTransformer(vit.config).eval()  # type: ignore[arg-type]
    with pytest.raises(CheckFailed, match="does not answer like the model: openvino"):
        to_openvino.export(file, tmp_path / "m.xml", model=other, batches=batches())
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OptionError, match=r"is an \.xml file"):
        to_openvino.export(file, tmp_path / "m.bin", model=vit, batches=batches())


def test_numbers_in_a_report_are_finite() -> None:
    from featherweight.runtime.parity import compare

    same = np.eye(3, dtype=np.float32)
    assert compare(same, same, backend="x", dtype="float32").to_dict()["snr_db"] is None
