# SPDX-License-Identifier: Apache-2.0
"""OpenVINO's own tool on our exported file: it answers nearly as the float model, in 8 bits, and is silent."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from families import PLAIN, Images
from torch import Tensor

from featherweight.errors import CheckFailed, OptionError

pytest.importorskip("onnx")
from featherweight.export import nncf, onnx


def batches() -> list[dict[str, Tensor]]:
    return list(Images(steps=4).epoch(0))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    images = torch.cat([batch["image"] for batch in batches()])
    return onnx.export(PLAIN.make(), images[:2], tmp_path / "model.onnx").path


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # about the tool's own internals
def test_a_float_file_becomes_8_bits(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("nncf")
    pytest.importorskip("openvino")
    known = {"model": PLAIN.make(), "calibration": batches(), "batches": batches()}
    made = nncf.export(file, tmp_path / "int8.xml", **known)
    assert made.parity.dtype == "int8"
    assert 20 < made.parity.snr_db < 70, "rounded, and not much else"
    assert made.path.with_suffix(".bin").is_file()
    assert capsys.readouterr().out == ""
    with pytest.raises(CheckFailed, match="does not answer like the model"):
        nncf.export(file, tmp_path / "other.xml", min_snr_db=200.0, **known)
    assert not (tmp_path / "other.xml").exists()


def test_options_are_checked_first(file: Path, tmp_path: Path) -> None:
    known = {"model": PLAIN.make(), "batches": batches()}
    with pytest.raises(OptionError, match=r"is an \.xml file"):
        nncf.export(file, tmp_path / "int8.onnx", calibration=batches(), **known)
    with pytest.raises(OptionError, match="'fast' is not one of performance, mixed"):
        nncf.export(file, tmp_path / "int8.xml", calibration=batches(), preset="fast", **known)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="too few"):
        nncf.export(file, tmp_path / "int8.xml", calibration=batches()[:1], calibration_images=2, **known)
