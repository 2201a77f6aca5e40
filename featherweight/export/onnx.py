# SPDX-License-Identifier: Apache-2.0
"""A model as one .onnx file: any batch size, int8 weights stored as int8, checked against the model before it is kept.

`translate` writes the graph; a model with operators it has no words for goes through PyTorch's own exporter, which
takes several times as long and needs onnxscript. The same model gives the same bytes; no path and no time is in them.
"""

from __future__ import annotations

import contextlib
import tempfile
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

import featherweight
from featherweight.errors import FeatherweightError, OptionError, closest, missing_extra
from featherweight.export.check import Calls, Exported, Plain, floor, least_snr_db, parity
from featherweight.export.graph import OPSET, Unsupported
from featherweight.export.translate import program_of, translate
from featherweight.files import publish
from featherweight.layers import expanded
from featherweight.methods.dynamicvit import recording
from featherweight.modes import evaluating
from featherweight.runtime.parity import check
from featherweight.runtime.session import open_session

INPUT, OUTPUT = "pixel_values", "logits"
EXTRA = ("kept_tokens",)


class _Called(nn.Module):
    """Images in, a tuple of tensors out, the way the task calls the model."""

    def __init__(self, model: nn.Module, task: Calls, extra: Sequence[str]) -> None:
        super().__init__()
        self.model, self.task, self.extra = model, task, tuple(extra)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        with recording(self.model) if "kept_tokens" in self.extra else contextlib.nullcontext() as sparse:
            logits = self.task.forward(self.model, {"image": images})
            return (logits,) if sparse is None else (logits, sparse.aside.places[-1])


def export(
    model: nn.Module,
    example: Tensor,
    path: str | Path,
    *,
    task: Calls | None = None,
    metadata: Mapping[str, str] | None = None,
    extra: Sequence[str] = (),
    batches: Iterable[Mapping[str, Tensor]] | None = None,
    min_agreement: float | None = None,
    min_snr_db: float | None = None,
) -> Exported:
    """Write the model to `path` with input `pixel_values` (batch, 3, H, W) and output `logits`.

    example: images of the right size; the batch size of the file stays free. metadata: see `check.describe`.
    extra: further outputs, "kept_tokens" (batch, n): the positions a token-dropping model keeps to the end.
    batches: real images; on them ONNX Runtime must answer like the model, else CheckFailed and no file. Without, the
    example is what is compared. The limits of the check are those of `runtime.parity` unless given; a model that drops
    or merges tokens has to reach 35 dB, as of two tokens that are nearly equal a runtime may choose the other.
    """
    path, task = Path(path), task or Plain()
    for name in extra:
        if name not in EXTRA:
            raise OptionError("extra", f"no {name!r}; {closest(name, EXTRA)}Known: {', '.join(EXTRA)}")
    data = to_bytes(model, example, task=task, metadata=metadata, extra=extra)
    with tempfile.TemporaryDirectory() as folder:
        unchecked = Path(folder, "model.onnx")
        unchecked.write_bytes(data)
        session = open_session(unchecked, backend="onnxruntime")
        seen = tuple([{"image": example}] if batches is None else batches)
        found = parity(model, session, seen, task)
    least = least_snr_db(model) if min_snr_db is None else min_snr_db
    check(found, floor=floor(model, seen, task), min_agreement=min_agreement, min_snr_db=least)
    publish(path, data)
    return Exported(path, found.max_abs_difference, OPSET, len(data), found)


def to_bytes(
    model: nn.Module,
    example: Tensor,
    *,
    task: Calls | None = None,
    metadata: Mapping[str, str] | None = None,
    extra: Sequence[str] = (),
) -> bytes:
    """The file's bytes, not yet compared with the model; layers that store fewer numbers are written out."""
    images = example if len(example) > 1 else torch.cat([example, example])  # of size 1, torch would take it for fixed
    called = _Called(expanded(model), task or Plain(), extra)
    with evaluating(called):
        try:
            program = program_of(called, (images,))
        except Exception as error:  # torch.export has no common base for what stops it
            name = type(model).__name__
            raise FeatherweightError(f"export: torch.export cannot follow {name}: {_gist(error)}") from error
        proto = graph_of(program, [OUTPUT, *extra])
    proto.producer_name, proto.producer_version = "featherweight", featherweight.__version__
    told = {"patches": str(_patches(model, images, task or Plain()))} if "kept_tokens" in extra else {}
    onnx.helper.set_model_props(proto, {**told, **(metadata or {})})
    data: bytes = proto.SerializeToString(deterministic=True)
    return data


def _patches(model: nn.Module, images: Tensor, task: Calls) -> int:
    """How many positions `kept_tokens` counts from, so that a reader can make a mask of them."""
    with recording(model) as sparse, evaluating(model), torch.inference_mode():
        task.forward(model, {"image": images})
        return int(sparse.aside.count)


def graph_of(
    program: torch.export.ExportedProgram, outputs: Sequence[str], *, inputs: Sequence[str] = (INPUT,)
) -> onnx.ModelProto:
    """Our translation where it has words for everything, else PyTorch's."""
    try:
        return translate(program, inputs, outputs)
    except Unsupported as reason:
        return _by_torch(program, inputs, outputs, reason)


def _by_torch(
    program: torch.export.ExportedProgram, inputs: Sequence[str], outputs: Sequence[str], reason: Unsupported
) -> onnx.ModelProto:
    try:
        from onnxscript import opset20 as op
    except ImportError:
        raise missing_extra(f"exporting a model with {reason}", "onnxscript", "onnx") from None

    def quantize(x: Any, scale: Any, zero_point: Any) -> Any:
        return op.QuantizeLinear(x, scale, zero_point)

    def dequantize(q: Any, scale: Any, zero_point: Any = None, axis: int = 0) -> Any:
        return op.DequantizeLinear(q, scale, zero_point, axis=axis)

    ours = torch.ops.featherweight
    table: dict[Any, Any] = {ours.quantize.default: quantize, ours.dequantize.default: dequantize}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about its own internals
        made = torch.onnx.export(
            program, dynamo=True, opset_version=OPSET, input_names=list(inputs), output_names=list(outputs),
            custom_translation_table=table, verbose=False,
        )  # fmt: skip
    return _bare(made.model_proto)  # type: ignore[union-attr]


def _bare(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Without what only says where a node came from: names, inner shapes, traces with paths of this machine."""
    del proto.graph.value_info[:]
    del proto.metadata_props[:]
    for node in proto.graph.node:
        node.ClearField("name")
        node.ClearField("doc_string")
        del node.metadata_props[:]
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.initializer):
        value.ClearField("doc_string")
        del value.metadata_props[:]
    proto.ClearField("doc_string")
    proto.graph.ClearField("doc_string")
    del proto.graph.metadata_props[:]
    return proto


def _gist(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
