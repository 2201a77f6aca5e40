# SPDX-License-Identifier: Apache-2.0
"""A text model that is ready to answer: numbers of tokens in, logits out, alike for torch, ONNX Runtime and OpenVINO.

A runner knows its tokenizer, its class names and how long a text may be, from the model's own record, the file's
metadata, or what lies beside it. Torch is imported for torch models only.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from featherweight import sources
from featherweight.coding import SUFFIX
from featherweight.doors import json as strict_json
from featherweight.errors import InputError, OptionError
from featherweight.runtime.metadata import names_in
from featherweight.runtime.record import TEXT_TASKS
from featherweight.runtime.session import Port, Session, open_session
from featherweight.runtime.tokens import FILE, INPUTS, METADATA, VOCABULARY, Tokens, missing_tokenizer
from featherweight.tokenizer import open_tokens

if TYPE_CHECKING:
    from torch import nn

Feeds = Mapping[str, NDArray[np.int64]]  # (B, N) by the name of the input
Answers = dict[str, NDArray[np.float32]]
OUTPUTS = {"text-classification": ("logits",), "question-answering": ("start_logits", "end_logits")}
OTHER_VOCABULARIES = ("vocab.json", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model")
FUNCTION = "function"  # the key in a file's metadata


class TextRunner(Protocol):
    """What a text pipeline asks of a model."""

    task: str
    backend: str
    dtype: str
    threads: int
    classes: tuple[str, ...]
    tokens: Tokens
    function: str | None  # what is applied to the logits; None: by their number

    def run(self, feeds: Feeds) -> Answers:
        """Tokens (B, N) -> logits (B, K), or of a model for questions start_logits and end_logits (B, N)."""
        ...


class TextFileRunner:
    """An exported file with its tokenizer."""

    def __init__(
        self, session: Session, path: Path, *, task: str | None, tokens: Tokens | None, classes: tuple[str, ...] = ()
    ) -> None:
        told = session.metadata
        self.session, self.path = session, path
        self.backend, self.dtype, self.threads = session.backend, session.dtype, session.threads
        outputs = [port.name for port in session.outputs]
        by_outputs = next((name for name, wanted in OUTPUTS.items() if set(wanted) <= set(outputs)), None)
        self.task = told.get("task") or task or by_outputs or TEXT_TASKS[0]
        if self.task not in OUTPUTS or not set(OUTPUTS[self.task]) <= set(outputs):
            text = f"answers with {', '.join(outputs)}, which is not what {self.task} needs"
            raise InputError(path, "bad_schema", text)
        self.classes = classes or names_in(told, path) or _labels_beside(path)
        self.function = told.get(FUNCTION)
        ports = {port.name: port for port in session.inputs}
        if unknown := set(ports) - set(INPUTS):
            raise InputError(path, "bad_schema", f"wants {', '.join(sorted(unknown))}, which no tokenizer gives")
        self.ports = ports
        self.tokens = tokens or _tokens_of(told, path)
        self.length = _fixed(ports.values(), 1)  # None where a text of any length goes in
        self.size = _fixed(ports.values(), 0)

    def run(self, feeds: Feeds) -> Answers:
        """Tokens (B, N) -> the answers. A file made for a fixed batch or length gets it filled up."""
        rows, length = next(iter(feeds.values())).shape
        if self.length is not None and length > self.length:
            raise InputError(self.path, "bad_shape", f"takes texts of {self.length} tokens, not {length}")
        wide = (self.length or length) - length
        given = {name: np.pad(feeds[name], ((0, 0), (0, wide))) if wide else feeds[name] for name in self.ports}
        size = self.size or rows
        parts = [self._part({n: v[i : i + size] for n, v in given.items()}, size) for i in range(0, rows, size)]
        whole = {name: np.concatenate([part[name] for part in parts]) for name in OUTPUTS[self.task]}
        cut = {name: value[:, :length] if value.ndim == 2 and wide else value for name, value in whole.items()}
        return whole if self.task == TEXT_TASKS[0] else cut

    def _part(self, feeds: Feeds, size: int) -> Answers:
        rows = len(next(iter(feeds.values())))
        filled = {name: np.concatenate([value, *[value[-1:]] * (size - rows)]) for name, value in feeds.items()}
        found = self.session.run({name: value.astype(self.ports[name].dtype) for name, value in filled.items()})
        return {name: found[name][:rows].astype(np.float32) for name in OUTPUTS[self.task]}


class TextTorchRunner:
    """A torch module as it is; its mode and weights are left alone."""

    backend = "torch"

    def __init__(
        self,
        model: nn.Module,
        *,
        task: str | None,
        tokens: Tokens | None,
        device: Any = None,
        threads: int | None = None,
        classes: tuple[str, ...] = (),
    ) -> None:
        import torch

        from featherweight import artifact
        from featherweight.models import pretrained
        from featherweight.runners_torch import first_weight, placed

        record = artifact.record_of(model)
        told = pretrained.tokens_of(model)
        self.task = (record.task if record else None) or pretrained.task_of(model) or task or TEXT_TASKS[0]
        found = tokens or (Tokens.from_metadata(told, type(model).__name__) if told else None)
        if found is None:
            raise missing_tokenizer(type(model).__name__)
        self.tokens = found.with_longest(pretrained.longest_of(model))
        self.classes = classes or (record.classes if record else ()) or pretrained.labels_of(model)
        self.function = pretrained.function_of(model)
        self.threads = threads or torch.get_num_threads()
        self.model = placed(model, device)
        self.dtype = str(first_weight(self.model).dtype).removeprefix("torch.")
        self.inputs = _named_inputs(self.model)

    def run(self, feeds: Feeds) -> Answers:
        """Tokens (B, N) -> the answers."""
        import torch

        from featherweight.modes import evaluating
        from featherweight.runners_torch import first_weight, threads_of_torch

        device = first_weight(self.model).device
        given = {name: torch.from_numpy(feeds[name]).to(device) for name in feeds if name in self.inputs}
        with threads_of_torch(self.threads), evaluating(self.model), torch.inference_mode():
            output = self.model(**given)
        names = OUTPUTS[self.task]
        if isinstance(output, torch.Tensor):
            output = {names[0]: output}
        elif isinstance(output, tuple) and not hasattr(output, "keys"):
            output = dict(zip(names, output, strict=False))
        if lacking := [name for name in names if name not in output]:
            raise OptionError("model", f"its answer lacks {', '.join(lacking)}, which {self.task} needs")
        return {name: np.asarray(output[name].float().cpu(), np.float32) for name in names}


def open_text(
    model: Any,
    *,
    task: str | None = None,
    tokenizer: Any = None,
    backend: str = "auto",
    device: Any = None,
    threads: int | None = None,
    classes: Sequence[str] = (),
    running: Mapping[str, Any] | None = None,
) -> TextRunner | None:
    """A runner for a text model; None where the model is not one, and no text task was asked for.

    running: how an exported file is run: options of `open_session`.
    """
    tokens = None if tokenizer is None else open_tokens(tokenizer)
    given: dict[str, Any] = {"task": task, "tokens": tokens, "classes": tuple(classes)}
    if not isinstance(model, (str, os.PathLike)):
        return _of_module(model, device=device, threads=threads, backend=backend, **given)
    if (folder := _folder_of_transformers(model, backend)) is not None:
        return _of_folder(folder, device=device, threads=threads, **given)
    source = sources.find(model, backend=backend)
    if source.path is None or not _mentions_text(source.path):
        return None
    if source.backend == "torch":
        built = sources.module(source)
        return _of_module(built, device=device, threads=threads, backend="auto", **{**given, "task": None})
    if str(device) not in ("None", "-1", "cpu", "auto"):
        raise OptionError("device", f"{source.backend} runs on the cpu here, not on {device!r}")
    session = open_session(source.path, backend=source.backend, threads=threads, **(running or {}))
    is_text = session.metadata.get("task") in TEXT_TASKS or any(port.name in INPUTS for port in session.inputs)
    return TextFileRunner(session, source.path, **given) if is_text else None


def _of_module(model: Any, *, backend: str, **given: Any) -> TextRunner | None:
    """A runner for a module in memory, if it is a text model."""
    import sys

    torch = sys.modules.get("torch")
    if torch is None or not isinstance(model, torch.nn.Module):
        return None
    from featherweight import artifact
    from featherweight.models import pretrained

    record = artifact.record_of(model)
    known = pretrained.task_of(model) or (record.task if record and record.task in TEXT_TASKS else None)
    if known is None and given["task"] not in TEXT_TASKS:
        return None
    if backend not in ("auto", "torch"):
        text = f"{backend} runs exported files; this model is in memory: export it first, or use torch"
        raise OptionError("backend", text)
    return TextTorchRunner(model, **given)


def _folder_of_transformers(model: str | os.PathLike[str], backend: str) -> Path | None:
    """The folder of the transformers library with a text model that is meant; None where another thing is."""
    path = Path(model)
    if not (path / "config.json").is_file() or (path / sources.RECORD).exists():
        return None
    if backend != "torch" and any((path / name).is_file() for name in ("model.onnx", "openvino_model.xml")):
        return None
    from featherweight.models import pretrained

    return path if pretrained.task_in(path) is not None else None


def _of_folder(folder: Path, *, task: str | None, tokens: Tokens | None, **given: Any) -> TextRunner:
    from featherweight.models import pretrained

    known = pretrained.task_in(folder) or TEXT_TASKS[0]
    model = pretrained.load(folder, task=known)
    return TextTorchRunner(model, task=known, tokens=tokens or tokens_in(folder), **given)


def tokens_in(folder: Path) -> Tokens:
    """The tokenizer beside a model; of kinds without a tokenizer.json transformers makes one."""
    if (folder / FILE).is_file() or (folder / VOCABULARY).is_file():
        return Tokens.from_folder(folder)
    if not any((folder / name).is_file() for name in OTHER_VOCABULARIES):
        raise missing_tokenizer(folder)
    from transformers import AutoTokenizer

    return open_tokens(AutoTokenizer.from_pretrained(str(folder), local_files_only=True))


def _tokens_of(told: Mapping[str, str], path: Path) -> Tokens:
    """The tokenizer in a file's metadata, or else beside the file."""
    if METADATA in told:
        return Tokens.from_metadata(told[METADATA], path)
    for folder in (path.parent, path.parent.parent):
        if (folder / FILE).is_file() or (folder / VOCABULARY).is_file():
            return Tokens.from_folder(folder)
    raise missing_tokenizer(path)


def _labels_beside(path: Path) -> tuple[str, ...]:
    """The class names in a config.json beside a file that says none itself."""
    config = path.parent / "config.json"
    found = strict_json.read(config, allow_nan=True) if config.is_file() else {}
    labels = found.get("id2label") if isinstance(found, dict) else None
    named = [str(labels.get(str(i))) for i in range(len(labels))] if isinstance(labels, dict) else []
    return tuple(named)


def _mentions_text(path: Path) -> bool:
    """Whether a file or folder of ours may hold a text model, found without opening the model."""
    file = path / sources.RECORD if path.is_dir() else path
    if file.suffix == SUFFIX or not file.is_file() or not file.stat().st_size:
        return file.suffix == SUFFIX  # its record is coded
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return any(data.find(word.encode()) >= 0 for word in (*TEXT_TASKS, INPUTS[0]))


def _fixed(ports: Any, axis: int) -> int | None:
    """The one size that an axis must have; None where it may vary."""
    sizes = {port.shape[axis] for port in ports if isinstance(port, Port) and len(port.shape) == 2}
    return next((size for size in sizes if size is not None), None)


def _named_inputs(model: nn.Module) -> set[str]:
    """Which of a tokenizer's arrays a module's forward takes; all, where it takes any."""
    import inspect

    known = inspect.signature(model.forward).parameters
    if any(one.kind is inspect.Parameter.VAR_KEYWORD for one in known.values()) and "input_ids" not in known:
        return set(INPUTS)
    return {name for name in INPUTS if name in known}
