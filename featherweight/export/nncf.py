# SPDX-License-Identifier: Apache-2.0
"""8 bits by OpenVINO's own tool: NNCF quantizes the exported float graph, with its own observers and bias correction.

An alternative to `methods.quantize` for OpenVINO alone. NNCF also rounds additions and products of attention, where the
runtime has kernels for them. It works on the OpenVINO graph, so neither a compiler nor the model's source is needed.
What it makes cannot go back to torch or ONNX.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from featherweight.errors import CheckFailed, OptionError, missing_extra
from featherweight.export.check import Calls, Exported, parity
from featherweight.export.graph import OPSET
from featherweight.export.openvino import NAME, convert
from featherweight.files import publish
from featherweight.methods.calibration import enough, makes_tokens
from featherweight.runtime.session import open_session, silence

Preset = Literal["performance", "mixed"]


def export(
    onnx_file: str | Path,
    path: str | Path,
    *,
    model: nn.Module,
    calibration: Iterable[Mapping[str, Tensor]],
    batches: Iterable[Mapping[str, Tensor]],
    task: Calls | None = None,
    preset: Preset = "mixed",
    fast_bias_correction: bool = True,
    calibration_images: int = 128,
    min_agreement: float = 0.0,
    min_snr_db: float | None = None,
) -> Exported:
    """Quantize the .onnx file that was made of the float `model`; `path` is an .xml file, its .bin goes beside it.

    calibration: images that give the ranges; batches: others, on which the answers are compared with the model's.
    preset: "performance" rounds symmetrically, "mixed" gives activations a zero point. Raises CheckFailed below
    `min_agreement` or `min_snr_db`, MissingExtra without nncf, OptionError for too few images.
    """
    path = Path(path)
    if path.suffix != ".xml":
        raise OptionError("path", f"an OpenVINO model is an .xml file, not {path.name!r}")
    if preset not in ("performance", "mixed"):
        raise OptionError("preset", f"{preset!r} is not one of performance, mixed")
    images = enough(calibration, calibration_images)
    with tempfile.TemporaryDirectory() as folder:
        plain, file = Path(folder, "float.xml"), Path(folder, NAME)
        convert(onnx_file, plain)
        arrays = [row[None] for batch in images for row in batch["image"].cpu().numpy()]
        _quantize(plain, file, arrays, preset, fast_bias_correction, transformer=makes_tokens(model))
        found = parity(model, open_session(file, backend="openvino"), batches, task)
        if found.top1_agreement < min_agreement or found.snr_db < (min_snr_db or -float("inf")):
            wanted = f"{min_agreement:.0%} and {min_snr_db or 0:g} dB are asked for"
            raise CheckFailed(f"the quantized file does not answer like the model: {found}; {wanted}")
        weights, graph = file.with_suffix(".bin").read_bytes(), file.read_bytes()
    publish(path.with_suffix(".bin"), weights)
    publish(path, graph)
    return Exported(path, found.max_abs_difference, OPSET, len(weights) + len(graph), found)


def _quantize(source: Path, target: Path, arrays: list[Any], preset: Preset, fast: bool, *, transformer: bool) -> None:
    """Read, quantize, write; NNCF's bars and notes are kept from the console."""
    silence()
    try:
        import nncf
        import openvino
    except ImportError:
        raise missing_extra("quantizing with NNCF", "nncf", "nncf") from None
    nncf.set_log_level(logging.ERROR)
    model = openvino.Core().read_model(str(source))
    options: dict[str, Any] = {"preset": nncf.QuantizationPreset(preset), "fast_bias_correction": fast}
    if transformer:
        options["model_type"] = nncf.ModelType.TRANSFORMER
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        made = nncf.quantize(model, nncf.Dataset(arrays), subset_size=len(arrays), **options)
    openvino.save_model(made, str(target), compress_to_fp16=False)
