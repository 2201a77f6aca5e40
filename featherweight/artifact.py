# SPDX-License-Identifier: Apache-2.0
"""A model as a folder: `model.json` (base, edits, classes, preprocessing) and `model.safetensors`. Save and load.

Loading builds the base afresh, replays the edits and loads the weights strictly: no pickle, no eval, no import path. A
module of the user's own is saved the same way and loaded with `base=`, a fresh instance of it. The weights file holds
the record too and a digest over all its bytes, so it can travel alone. A path that ends in .fwz is one compact file
instead, its tensors coded without loss (`coding`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import methods as _methods  # noqa: F401  (registers the edit kinds a file may name)
from .checkpoint import pack, unpack
from .coding import SUFFIX, opened
from .coding import write as write_compact
from .coding.tensors import Packed
from .doors import checkpoint, door
from .errors import FeatherweightError, InputError, OptionError
from .files import publish
from .interchange import write_beside
from .models import pretrained, yolov7_forms, zoo
from .models.yolov7 import YOLOv7
from .runtime.preprocess import Preprocess
from .runtime.record import RECORD, TASKS, WEIGHTS, Record
from .surgery import Edit, apply, edits_of, replaying

_RECORD = "_featherweight_record"
FLOATS = {"float32", "float16", "bfloat16", "float64"}
Tensors = Mapping[str, checkpoint.Stored] | Mapping[str, Packed]  # what has a shape and a dtype
Values = Callable[[], Mapping[str, checkpoint.Stored]]


def save(
    model: nn.Module,
    folder: str | Path,
    *,
    task: str | None = None,
    classes: Sequence[str] = (),
    preprocess: Preprocess | None = None,
    note: Mapping[str, Any] | None = None,
    coder: str = "auto",
) -> Path:
    """Write the model's folder, or the compact file of a path that ends in .fwz; equal models give equal bytes.

    coder: of a compact file's streams, see `coding.streams`. Returns the path. Raises InputError for weights that are
    not finite: such a model is never saved.
    """
    folder = Path(folder)
    old = record_of(model)
    record = Record(
        base=zoo.base_of(model),
        edits=tuple(edit.to_dict() for edit in edits_of(model)),
        task=task or (old.task if old else _task_of(zoo.base_of(model))),
        classes=tuple(classes) or (old.classes if old else ()),
        preprocess=preprocess or (old.preprocess if old else None),
        note={**(note if note is not None else old.note if old else {}), **pretrained.noted(model)},
    )
    text = record.to_text()
    Record.from_text(text, folder / RECORD)  # what cannot be read back is not written
    tensors, compact = pack(_state(model)), folder.suffix == SUFFIX
    checkpoint.check_finite(tensors, name=folder if compact else folder / WEIGHTS)
    (folder.parent if compact else folder).mkdir(parents=True, exist_ok=True)
    if compact:
        write_compact(folder, tensors, record=text, coder=coder)
        return folder
    checkpoint.write(folder / WEIGHTS, tensors, {"record": text})
    publish(folder / RECORD, text.encode())
    write_beside(model, folder, record)
    return folder


def load(path: str | Path, base: nn.Module | None = None) -> nn.Module:
    """The saved model, in evaluation mode: from its folder, from its weights file alone, or from a compact file.

    `base` is a fresh, untouched instance for models that only their maker can build. Raises InputError for a file that
    does not fit, OptionError where a base is needed and none was given.
    """
    path = Path(path)
    if path.suffix == SUFFIX and not path.is_dir():
        return _load_compact(path, base)
    weights = path / WEIGHTS if path.is_dir() else path
    tensors, metadata = checkpoint.read_sealed(weights)
    if "record" not in metadata:
        raise InputError(
            weights, "not_an_artifact", "holds weights but no record of the model; was it a training checkpoint?"
        )
    record = Record.from_text(metadata["record"], weights)
    if path.is_dir() and (path / RECORD).read_bytes() != metadata["record"].encode():
        raise InputError(
            path / RECORD,
            "changed",
            f"does not say what {WEIGHTS} beside it says; restore it, or load the weights file alone",
        )
    return _loaded(record, base, tensors, lambda: tensors, weights)


def _load_compact(path: Path, base: nn.Module | None) -> nn.Module:
    with opened(path) as file:
        if not file.record:
            text = "holds a graph for ONNX Runtime, not a model for PyTorch: give it to featherweight.pipeline"
            raise InputError(path, "unsupported_format", text)
        record = Record.from_text(file.record, path)
        outline = {name: entry.packed for name, entry in file.entries.items()}
        return _loaded(record, base, outline, file.tensors, path)


def _loaded(record: Record, base: nn.Module | None, outline: Tensors, values: Values, weights: Path) -> nn.Module:
    """The model of a record; `values` are asked for when their names, shapes and types have been found to fit."""
    if base is None and record.base is None:
        raise OptionError(
            "base", f"{weights.name} was made from a module of your own; load it with base=, a fresh instance of it"
        )
    with door(weights, "bad_schema"):
        model = _built(record, base, outline, values, weights)
    object.__setattr__(model, _RECORD, record)
    pretrained.take_note(model, record.note)
    return model.eval()


def is_artifact(path: str | Path) -> bool:
    """Whether a folder with our record, or a weights file of ours by its name, stands at this path."""
    path = Path(path)  # os.path, because a text too long for a file's name is a no, too
    return os.path.isfile(path / RECORD) or (path.suffix in (".safetensors", SUFFIX) and os.path.isfile(path))


def record_of(model: nn.Module) -> Record | None:
    """What the file said that this model was loaded from."""
    return getattr(model, _RECORD, None)


def remember(model: nn.Module, *, classes: Sequence[str] = (), preprocess: Preprocess | None = None) -> None:
    """Let a model that was not loaded from a folder of ours know its classes and pictures, for when it is saved."""
    base = zoo.base_of(model)
    record = Record(base=base, task=_task_of(base), classes=tuple(classes), preprocess=preprocess)
    object.__setattr__(model, _RECORD, record)


def _task_of(base: Mapping[str, Any] | None) -> str:
    if base is not None and (text := pretrained.task_named(base["name"].removeprefix(pretrained.PREFIX))):
        return text
    return TASKS[1] if base is not None and base["name"] == "yolov7" else TASKS[0]


def with_classes(
    model: nn.Module, classes: Sequence[str], *, tell: Callable[[str], None] = lambda text: None
) -> nn.Module:
    """The same untouched model with a new classifier of these classes. OptionError for an edited or unknown one.

    Of a detector only the classes are new, and of those the ones whose names its record does not have; it is told.
    """
    base = zoo.base_of(model)
    if base is None or edits_of(model):
        raise OptionError(
            "reset_head", "only a model of the table, before any compression, can be given a new classifier"
        )
    record = record_of(model)
    if isinstance(model, YOLOv7):
        known: dict[str, Any] = {"names": record.classes if record else (), "wanted": classes}
        return yolov7_forms.changed(model, tell=tell, num_classes=len(classes), **known)
    theirs = base["name"].startswith(pretrained.PREFIX)  # a model of transformers counts the names
    head = {"id2label": {str(i): name for i, name in enumerate(classes)}} if theirs else {"num_classes": len(classes)}
    new = zoo.build({"name": base["name"], "config": {**base["config"], **head}})
    state = new.state_dict()
    fits = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if name in state and state[name].shape == tensor.shape
    }
    new.load_state_dict({**state, **fits})
    return new


def _state(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict with each tensor once, contiguous."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(model.state_dict().items())}


def _built(record: Record, base: nn.Module | None, tensors: Tensors, values: Values, weights: Path) -> nn.Module:
    edits = [_edit(edit, weights) for edit in record.edits]
    try:
        if base is None:
            _check_size(record.base, edits, tensors, weights)  # type: ignore[arg-type]
            with torch.device("meta"), replaying():  # names and shapes, before a byte is allocated
                outline = apply(zoo.build(record.base), edits)  # type: ignore[arg-type]
        else:
            with replaying():
                outline = apply(base, edits)
    except (OptionError, LookupError, TypeError, ValueError) as error:
        if isinstance(error, FeatherweightError) and error.exit_code != 2:
            raise
        raise InputError(weights, "unknown_name" if "no " in str(error) else "bad_schema", str(error)) from None
    spec = outline.state_dict()
    wanted = {name: {"shape": tuple(t.shape), "dtype": _dtype(t, tensors.get(name))} for name, t in spec.items()}
    checkpoint.check_outline(tensors, wanted, name=weights)
    found = values()
    checkpoint.check_finite(found, name=weights)
    with replaying():
        model = outline if base is not None else apply(zoo.build(record.base), edits)  # type: ignore[arg-type]
    model.load_state_dict(unpack(found), assign=True)
    return model


def _dtype(tensor: torch.Tensor, stored: checkpoint.Stored | Packed | None) -> str:
    """Floating weights may be stored in any floating type; everything else must be what the model has."""
    mine = str(tensor.dtype).removeprefix("torch.")
    return stored.dtype if stored is not None and {mine, stored.dtype} <= FLOATS else mine


def _edit(data: Any, weights: Path) -> Edit:
    try:
        return Edit.from_dict(data)
    except OptionError as error:
        raise InputError(weights, "bad_schema", str(error)) from None


def _check_size(base: Mapping[str, Any], edits: Sequence[Edit], tensors: Tensors, weights: Path) -> None:
    """A model has at least one tensor per block: a depth beyond that is a lie, found before anything is built."""
    depths = base["config"].get("depth", base["config"].get("depths", 0))
    shared = 64 if any(edit.kind == "share_blocks" for edit in edits) else 1  # blocks that one may stand for
    for depth in depths if isinstance(depths, list) else [depths]:
        if isinstance(depth, int) and depth > len(tensors) * shared:
            raise InputError(weights, "out_of_range", f"asks for {depth} blocks, but holds {len(tensors)} tensors")
