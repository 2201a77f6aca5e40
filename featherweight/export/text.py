# SPDX-License-Identifier: Apache-2.0
"""A text model as one .onnx file: any batch and any length, its tokenizer inside, checked on real sentences.

Inputs `input_ids`, `token_type_ids` and `attention_mask` (those the model takes), int64 (batch, length); outputs
`logits` (batch, K), or of a model for questions `start_logits` and `end_logits` (batch, length). For OpenVINO see
`openvino.export_text`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

import featherweight
from featherweight.errors import FeatherweightError, OptionError
from featherweight.export.check import Exported, describe, floor, least_snr_db
from featherweight.export.graph import OPSET
from featherweight.export.onnx import graph_of
from featherweight.files import publish
from featherweight.methods.dynamic_int8 import DynamicLinear
from featherweight.models import pretrained
from featherweight.modes import evaluating
from featherweight.runtime.parity import LIMITS, Parity, check, compare
from featherweight.runtime.session import Session, open_session
from featherweight.runtime.tokens import METADATA, Tokens, missing_tokenizer

OUTPUTS = {"text-classification": ("logits",), "question-answering": ("start_logits", "end_logits")}
SENTENCES = (  # what is compared where nothing else is given
    "A warm and funny film, and not a minute too long.",
    "I waited an hour for cold soup; never again.",
    "The plot is thin, but the actors carry it.",
    "It works.",
    "The battery lasted two days, the charger one, and the shop that sold them to me no longer answers its telephone.",
    "这部电影很好看。",
    "服务太慢了,我不会再来。",
    "Who built the old bridge, and when was it opened?",
)


class Call:
    """How a text model is called: a batch of arrays by name in, one tensor of rows to compare out."""

    def __init__(self, inputs: Sequence[str], outputs: Sequence[str], *, length: int = 0) -> None:
        self.inputs, self.outputs, self.length = tuple(inputs), tuple(outputs), length

    def raw(self, model: nn.Module, *arrays: Tensor) -> tuple[Tensor, ...]:
        """The outputs by the order of their names."""
        found = model(**dict(zip(self.inputs, arrays, strict=True)))
        if isinstance(found, Tensor):
            return (found,)
        return tuple(found[i] if isinstance(found, tuple) else found[name] for i, name in enumerate(self.outputs))

    def forward(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Rows (B, K), or (2 B, `length`) of start and end, where a shorter batch is filled up with zeros."""
        found = self.raw(model, *(batch[name] for name in self.inputs))
        return torch.cat([F.pad(one, (0, max(0, self.length - one.shape[1]))) for one in found])


class _Called(nn.Module):
    """Arrays in, a tuple of tensors out."""

    def __init__(self, model: nn.Module, call: Call) -> None:
        super().__init__()
        self.model, self.call = model, call

    def forward(self, *arrays: Tensor) -> tuple[Tensor, ...]:
        return self.call.raw(self.model, *arrays)


def export(
    model: nn.Module,
    path: str | Path,
    *,
    tokenizer: Tokens | None = None,
    task: str | None = None,
    classes: Sequence[str] = (),
    texts: Sequence[Any] = SENTENCES,
    metadata: Mapping[str, str] | None = None,
    min_agreement: float | None = None,
    min_snr_db: float | None = None,
) -> Exported:
    """Write the model with its tokenizer to `path`; ONNX Runtime must answer to `texts` as the model does.

    tokenizer: `tokenizer.open_tokens` makes one; where left out, what the model carries. task: of a module that is not
    of the transformers library. texts: sentences, or pairs (question, context). metadata: more of it, as of
    `check.describe`. OptionError for a model without a tokenizer, CheckFailed (and no file) for other answers.
    """
    path = Path(path)
    tokens, task = _tokens(model, tokenizer), task or pretrained.task_of(model)
    if task not in OUTPUTS:
        raise OptionError("task", f"of {type(model).__name__} is not known; give one of {', '.join(OUTPUTS)}")
    labels = () if task != "text-classification" else tuple(classes) or pretrained.labels_of(model)
    function = pretrained.function_of(model)
    told = {**describe(task=task, classes=labels), **({"function": function} if function else {}), **(metadata or {})}
    data = to_bytes(model, tokens, task=task, metadata={**told, METADATA: tokens.to_metadata()})
    with tempfile.TemporaryDirectory() as folder:
        unchecked = Path(folder, "model.onnx")
        unchecked.write_bytes(data)
        session = open_session(unchecked, backend="onnxruntime")
        found = checked(model, session, tokens, texts, min_agreement=min_agreement, min_snr_db=min_snr_db)
    path.parent.mkdir(parents=True, exist_ok=True)
    publish(path, data)
    return Exported(path, found.max_abs_difference, OPSET, len(data), found)


def to_bytes(
    model: nn.Module, tokens: Tokens, *, task: str = "text-classification", metadata: Mapping[str, str] | None = None
) -> bytes:
    """The file's bytes, not yet compared with the model."""
    call = Call(_inputs(model, tokens), OUTPUTS[task])
    batch = _feeds(tokens, SENTENCES[:3])
    called = _Called(model, call)
    with evaluating(called), torch.no_grad():
        program = _followed(called, tuple(batch[name] for name in call.inputs), tokens.settings.max_length)
    proto = graph_of(program, call.outputs, inputs=call.inputs)
    for port in (*proto.graph.input, *proto.graph.output):
        for axis, name in zip(port.type.tensor_type.shape.dim, ("batch", "length"), strict=False):
            if axis.dim_param:
                axis.dim_param = name
    proto.producer_name, proto.producer_version = "featherweight", featherweight.__version__
    onnx.helper.set_model_props(proto, dict(metadata or {}))
    data: bytes = proto.SerializeToString(deterministic=True)
    return data


def _followed(called: _Called, arrays: tuple[Tensor, ...], longest: int | None) -> torch.export.ExportedProgram:
    """The model as a graph for any batch and length.

    Sizes are named first; where shares of a length make torch ask for more than that, it finds them itself.
    """
    named = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", max=longest or 1 << 20)}
    found: Exception | None = None
    for sizes in (named, dict.fromkeys(named, torch.export.Dim.DYNAMIC)):
        try:
            return torch.export.export(
                called,
                arrays,
                dynamic_shapes=(tuple(sizes for _ in arrays),),
                prefer_deferred_runtime_asserts_over_guards=True,  # of shares of a length, which it cannot prove
            )
        except Exception as error:  # noqa: BLE001  (torch.export has no common base for what stops it)
            found = found or error
    said = next((line.strip() for line in str(found).splitlines() if line.strip()), type(found).__name__)
    text = f"export: torch.export cannot follow {type(called.model).__name__}: {said}"
    raise FeatherweightError(text) from found


def checked(
    model: nn.Module,
    session: Session,
    tokens: Tokens,
    texts: Sequence[Any],
    *,
    min_agreement: float | None = None,
    min_snr_db: float | None = None,
) -> Parity:
    """How the file answers to all texts at once and to some of them alone; CheckFailed where that is too far off."""
    if not texts:
        raise OptionError("texts", "there are none to compare the exported file on")
    outputs = [port.name for port in session.outputs]
    whole = _feeds(tokens, texts)
    batches = [whole, *(_feeds(tokens, [one]) for one in texts[:4])]
    length = next(iter(whole.values())).shape[1] if len(outputs) > 1 else 0
    call = Call([port.name for port in session.inputs], outputs, length=length)
    with evaluating(model), torch.inference_mode():
        expected = np.concatenate([call.forward(model, batch).float().cpu().numpy() for batch in batches])
    got = np.concatenate([_answers(session, call, batch) for batch in batches])
    found = compare(expected, got, backend=session.backend, dtype=session.dtype)
    least = _least(model) if min_snr_db is None else min_snr_db
    return check(found, floor=floor(model, batches, call), min_agreement=min_agreement, min_snr_db=least)


def _least(model: nn.Module) -> float | None:
    """The limit of a model that rounds by the range of the moment: a value may fall to either side of a step."""
    rounds = any(isinstance(layer, DynamicLinear) for layer in model.modules())
    return LIMITS["int8"][1] if rounds else least_snr_db(model)


def _answers(session: Session, call: Call, batch: Mapping[str, Tensor]) -> NDArray[np.float32]:
    found = session.run({name: batch[name].numpy() for name in call.inputs})
    rows = [found[name].astype(np.float32) for name in call.outputs]
    return np.concatenate([np.pad(one, ((0, 0), (0, max(0, call.length - one.shape[1])))) for one in rows])


def _feeds(tokens: Tokens, texts: Sequence[Any]) -> dict[str, Tensor]:
    """Sentences or pairs of texts as one padded batch, cut to what the model takes."""
    pairs = [(text, None) if isinstance(text, str) else tuple(text) for text in texts]
    longest = tokens.settings.max_length
    rows = [tokens.encode(*pair, max_length=longest)[0] for pair in pairs]
    return {name: torch.from_numpy(array) for name, array in tokens.batch(rows).items()}


def _inputs(model: nn.Module, tokens: Tokens) -> list[str]:
    """What of the tokenizer's arrays the model takes, in the tokenizer's order."""
    from inspect import signature

    known = signature(model.forward).parameters
    found = [name for name in tokens.settings.inputs if name in known]
    if not found:
        raise OptionError("model", f"{type(model).__name__} takes none of {', '.join(tokens.settings.inputs)}")
    return found


def _tokens(model: nn.Module, given: Tokens | None) -> Tokens:
    told = pretrained.tokens_of(model)
    if given is None and told is None:
        raise missing_tokenizer(type(model).__name__)
    found = given if given is not None else Tokens.from_metadata(told or "", type(model).__name__)
    return found.with_longest(pretrained.longest_of(model))
