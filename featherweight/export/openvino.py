# SPDX-License-Identifier: Apache-2.0
"""An exported .onnx file as an OpenVINO model: openvino_model.xml with its .bin, checked against the same model.

int8 weights stay int8. Metadata goes to `rt_info` under `model_info`, with `labels` separated by spaces as Open Model
Zoo has them. The same .onnx file gives the same bytes.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from featherweight.doors import onnx as door
from featherweight.errors import OptionError, missing_extra
from featherweight.export import detector, text
from featherweight.export.check import HALF_DB, Calls, Exported, floor, least_snr_db, parity
from featherweight.export.graph import OPSET
from featherweight.files import publish
from featherweight.runtime.parity import Parity, check
from featherweight.runtime.session import Session, open_session, silence
from featherweight.runtime.tokens import METADATA, Tokens

NAME = "openvino_model.xml"  # the name optimum-intel looks for
ACTIVATIONS = ("PRelu",)  # those it fuses with a convolution where no rounding stands between; leaky ReLU is one


def export(
    onnx_file: str | Path,
    path: str | Path,
    *,
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    task: Calls | None = None,
    half: bool = False,
    min_agreement: float | None = None,
    min_snr_db: float | None = None,
) -> Exported:
    """Convert a .onnx file that was made of `model`; `path` is the .xml file, its .bin goes beside it.

    half: store the weights that are not int8 in 16 bits (OpenVINO's own default); half the size, and about 1e-3 of each
    weight lost. batches: images on which OpenVINO must answer like the model, computing in float32; else CheckFailed.
    """
    batches = tuple(batches)

    def compared(session: Session) -> Parity:
        found = parity(model, session, batches, task)
        lowest = least_snr_db(model)
        if lowest is None and half and found.dtype == "float32":
            lowest = HALF_DB
        limits = {"min_agreement": min_agreement, "min_snr_db": lowest if min_snr_db is None else min_snr_db}
        check(found, floor=floor(model, batches, task), **limits)
        return found

    return _written(onnx_file, path, half, compared)


def export_detector(
    onnx_file: str | Path,
    path: str | Path,
    *,
    model: nn.Module,
    images: Tensor,
    form: detector.Form,
    half: bool = False,
    min_agreement: float | None = None,
    min_snr_db: float | None = None,
) -> Exported:
    """The same of a file that `export.detector` made; images: prepared for the model, (B, 3, H, W)."""

    def compared(session: Session) -> Parity:
        found = detector.parity(model, session, images, form)
        detector.checked(found, model, images, form, half=half, min_agreement=min_agreement, min_snr_db=min_snr_db)
        return found

    return _written(onnx_file, path, half, compared)


def export_text(
    onnx_file: str | Path,
    path: str | Path,
    *,
    model: nn.Module,
    texts: Sequence[Any] = text.SENTENCES,
    half: bool = False,
    min_agreement: float | None = None,
    min_snr_db: float | None = None,
) -> Exported:
    """The same of a file that `export.text` made, with the tokenizer that is in it; texts: what is compared."""

    def compared(session: Session) -> Parity:
        tokens = Tokens.from_metadata(session.metadata.get(METADATA, ""), onnx_file)
        lowest = HALF_DB if half and min_snr_db is None else min_snr_db
        return text.checked(model, session, tokens, texts, min_agreement=min_agreement, min_snr_db=lowest)

    return _written(onnx_file, path, half, compared)


def _written(onnx_file: str | Path, path: str | Path, half: bool, compared: Callable[[Session], Parity]) -> Exported:
    """Convert, compare, and only then publish; `compared` raises CheckFailed where the answers differ too much."""
    path = Path(path)
    if path.suffix != ".xml":
        raise OptionError("path", f"an OpenVINO model is an .xml file, not {path.name!r}")
    with tempfile.TemporaryDirectory() as folder:
        unchecked = Path(folder, NAME)
        convert(onnx_file, unchecked, half=half)
        found = compared(open_session(unchecked, backend="openvino"))
        weights, graph = unchecked.with_suffix(".bin").read_bytes(), unchecked.read_bytes()
    publish(path.with_suffix(".bin"), weights)
    publish(path, graph)
    return Exported(path, found.max_abs_difference, OPSET, len(weights) + len(graph), found)


def convert(onnx_file: str | Path, path: Path, *, half: bool = False) -> None:
    """Write the .xml and the .bin, nothing compared."""
    data = door.read(Path(onnx_file))
    silence()
    try:
        import openvino
    except ImportError:
        raise missing_extra("exporting to OpenVINO", "openvino", "openvino") from None
    model = openvino.Core().read_model(data, b"")
    metadata = _metadata(model)
    _merge_rounding(model)
    _free_activations(model)
    for number, op in enumerate(model.get_ordered_ops()):
        if re.search(r"_\d+$", op.get_friendly_name()):  # numbered by a counter of the process
            op.set_friendly_name(f"{op.get_type_name()}_{number}")
    for key, value in metadata.items():
        model.set_rt_info(value, ["model_info", key])
    openvino.save_model(model, str(path), compress_to_fp16=half)


def _merge_rounding(model: Any) -> None:
    """Rounding and what undoes it, which the reader writes as four operators each, as one: half the graph's text."""
    if not any(op.get_type_name() == "FakeQuantize" for op in model.get_ops()):
        return
    try:
        from openvino._offline_transformations import apply_moc_transformations
    except ImportError:  # what OpenVINO's own converter calls; without it the file is larger, and computes the same
        return
    apply_moc_transformations(model, cf=False)


def _free_activations(model: Any) -> None:
    """Take out the rounding between a convolution and its activation, which keeps OpenVINO from computing them as one.

    ONNX Runtime needs it, as its activation works on integers. What the activation gives is rounded where the next
    layer takes it in. yolov7_tiny in 8 bits: docs/device.md.
    """
    for op in model.get_ordered_ops():
        if op.get_type_name() != "FakeQuantize" or not _convolved(op.input_value(0).get_node()):
            continue
        readers = list(op.output(0).get_target_inputs())
        if readers and all(reader.get_node().get_type_name() in ACTIVATIONS for reader in readers):
            for reader in readers:
                reader.replace_source_output(op.input_value(0))


def _convolved(node: Any) -> bool:
    """Whether this is a convolution, or one with its bias."""
    if node.get_type_name() == "Add":
        node = node.input_value(0).get_node()
    return node.get_type_name() in ("Convolution", "GroupConvolution")


def _metadata(model: Any) -> dict[str, str]:
    """What the .onnx file says about itself, and the class names in the form OpenVINO's tools read."""
    if not model.has_rt_info("framework"):
        return {}
    found = {key: str(value.value) for key, value in model.get_rt_info("framework").astype(dict).items()}
    if "names" in found:
        names = json.loads(found["names"])
        found["labels"] = " ".join(names[str(i)].replace(" ", "_") for i in range(len(names)))
    return found
