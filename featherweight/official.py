# SPDX-License-Identifier: Apache-2.0
"""Weights in the layouts of their authors' files: DeiT, timm, LV-ViT, DynamicViT, SReT. `create` is the front door.

A file may wrap its state dict (`model`, `state_dict`, with or without EMA), prefix its names (`module.`), hold an
`argparse.Namespace` and an optimizer beside it, or list a shared tensor twice. All is read by the allow-list reader,
which runs nothing. Another class count or size is adapted with a note; everything else that does not fit is an error
that names the keys. Not here: downloads (`featherweight get`).
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import official_names, official_yolo
from .artifact import FLOATS
from .checkpoint import pack, tensors_of, unpack
from .doors import checkpoint as door
from .doors import modules
from .doors.stored import Stored
from .errors import InputError, OptionError, shown
from .methods import dynamicvit
from .models import positions, zoo
from .official_yolo import Detector
from .surgery import apply, edits_of

Tell = Callable[[str], None]
WRAPPED = ("model", "state_dict")  # where training scripts keep the weights ...
AVERAGED = ("model_ema", "state_dict_ema", "ema")  # ... and their moving average
HEADS = ("head", "head_dist", "aux_head", "fc", "classifier")
POSITIONS = "pos_embed"


@dataclass(frozen=True)
class File:
    """The state dict of a file, by the names the file gives."""

    path: str | Path
    tensors: dict[str, Stored]
    where: str  # the key it was under; "" for a flat file
    also: tuple[str, ...] = field(default=())  # further state dicts in the file
    detector: Detector | None = None  # what YOLOv7's files tell besides: variant, form, classes, names, anchors


def note(text: str) -> None:
    """Where notes go unless a caller wants them: the error stream."""
    print(f"note: {text}", file=sys.stderr)


def create(
    name: str,
    *,
    weights: str | Path | File | None = None,
    keep: float | Sequence[float] | None = None,
    ema: bool = False,
    resize: str = "auto",
    strict: bool = True,
    tell: Tell = note,
    **config: Any,
) -> nn.Module:
    """A model by its name (`deit_small_patch16_224`), family (`vit`) or source (`timm:NAME`), in evaluation mode.

    config: fields of the family's configuration, such as num_classes and image_size. keep: the rate of a DynamicViT,
    which files do not tell; the one in the table unless given. weights: a file of ours or of the authors; `ema`,
    `resize` and `strict` as in `load`. Raises OptionError for an unknown name or field, InputError for a file that does
    not fit.
    """
    line = zoo.find(name)
    if weights is not None and official_yolo.knows(name) and keep is None and strict:
        return official_yolo.named(name, weights if isinstance(weights, File) else read(weights, ema=ema), tell, config)
    model = zoo.create(name, **config)
    if line is not None and line.keep is not None:
        share = line.keep if keep is None else keep
        model = apply(model, dynamicvit.plan(model, keep=share, at=line.places, stage=line.stage))
    elif keep is not None:
        raise OptionError("keep", f"is for a DynamicViT, such as dynamicvit_deit_small; {shown(name)} keeps all tokens")
    if weights is not None:
        model = load(model, weights, ema=ema, resize=resize, strict=strict, tell=tell)
    return model.eval()


def load(
    model: nn.Module,
    file: str | Path | File,
    *,
    ema: bool = False,
    resize: str = "auto",
    strict: bool = True,
    tell: Tell = note,
) -> nn.Module:
    """A copy of the model with the weights of a file in any of the official layouts.

    ema: the moving average, where the file has one. resize: the rule for positions on another grid, one of
    `positions.KERNELS`; "auto" is the one of the file's family. Classifiers of another class count stay as they are.
    strict=False lets missing keys keep the model's values. Each adaptation is told. InputError names what does not fit.
    """
    if resize != "auto":
        positions.check_kernel(resize)
    file = file if isinstance(file, File) else read(file, ema=ema)
    path = file.path
    if official_yolo.takes(model, file, strict):
        return official_yolo.into(model, file, tell=tell)
    if file.also:
        tell(f"{shown(path)}: took {file.where!r}; it holds {', '.join(file.also)} too (ema={not ema} takes the other)")
    new = copy.deepcopy(model)
    own = tensors_of(new)
    tensors = _named(file, new, path)
    missing = [] if strict else [key for key in own if key not in tensors]
    if missing:
        tell(f"{shown(path)}: has no {_listed(missing)}; kept as made")
    wanted = {key: tensor for key, tensor in own.items() if key not in missing}
    if wanted.keys() != tensors.keys():
        _check(tensors, wanted, path, new)
    tensors, heads = _adapted(tensors, own, new, file, resize, path, tell)
    _check(tensors, {key: tensor for key, tensor in wanted.items() if key not in heads}, path, new)
    with torch.no_grad():
        for key, tensor in unpack(tensors).items():
            own[key].copy_(tensor)
    return new


def read(path: str | Path, *, ema: bool = False) -> File:
    """The weights in a file of one of the known layouts; InputError says what it holds instead."""
    tree = door.read_tree(Path(path), inert=modules.CLASSES)
    detector = official_yolo.of(tree, Path(path))
    if detector is not None:
        return File(path, dict(detector.tensors), "", detector=detector)
    if not isinstance(tree, Mapping):
        raise InputError(path, "bad_schema", f"holds a {type(tree).__name__}, not a state dict of named tensors")
    if _is_state_dict(tree):
        if ema:
            raise InputError(path, "missing_key", "holds one flat state dict and no moving average; leave ema out")
        return File(path, official_names.stripped(tree), "")
    found = {key: tree[key] for key in (*WRAPPED, *AVERAGED) if _is_state_dict(tree.get(key))}
    wanted = [key for key in found if (key in AVERAGED) == ema]
    if not wanted:
        keys = ", ".join(shown(str(key), limit=30) for key in list(tree)[:8])
        what = "moving average" if ema else "state dict"
        where = " or ".join(AVERAGED if ema else WRAPPED)
        raise InputError(path, "bad_schema", f"has no {what} under {where}; it holds: {keys}")
    other = tuple(key for key in found if (key in AVERAGED) != ema)
    return File(path, official_names.stripped(found[wanted[0]]), wanted[0], other)


def classes_of(file: File, model: nn.Module) -> int | None:
    """How many classes the classifier in a file has, where it is named like the model's."""
    if official_yolo.takes(model, file):
        return official_yolo.classes_of(model, file)
    own, names = tensors_of(model), official_names.of(model)
    counts = {
        tensor.shape[0]
        for key, tensor in file.tensors.items()
        if (mine := official_names.ours(key, names)) in own and _is_head(mine) and len(tensor.shape) > 0
    }
    return counts.pop() if len(counts) == 1 else None


def resized(model: nn.Module, image_size: int | tuple[int, int], *, kernel: str = "bicubic") -> nn.Module:
    """A copy for pictures of another size: the same edits and weights, positions resized (Touvron 2021, 2012.12877).

    OptionError for a model that is not of the table, or a size its patches do not divide.
    """
    base = zoo.base_of(model)
    size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if base is None or base["name"].startswith("timm:") or "image_size" not in base["config"]:
        raise OptionError("image_size", f"{type(model).__name__} is not of the table, so it cannot be built anew")
    new = zoo.build({"name": base["name"], "config": {**base["config"], "image_size": list(size)}})
    grid, old = _grid(new), _grid(model)
    new = apply(new, edits_of(model))
    state = {}
    for key, tensor in tensors_of(model).items():
        fits = _last(key) != POSITIONS
        state[key] = tensor if fits else _moved(tensor, grid, getattr(model, "num_prefix_tokens", 0), old, kernel)
    new.load_state_dict(state)
    return new.train(model.training)


def _named(file: File, model: nn.Module, path: str | Path) -> dict[str, Stored]:
    """The tensors under our names; copies of a shared tensor must agree."""
    names, own, found = official_names.of(model), tensors_of(model), dict[str, Stored]()
    for key, tensor in file.tensors.items():
        mine = official_names.ours(key, names)
        if mine not in own and _last(mine) in official_names.COMPUTED:
            continue
        if mine in own:
            tensor = official_names.as_linear(tensor, own[mine].ndim)
        if mine in found and bytes(found[mine].data) != bytes(tensor.data):
            text = f"'{shown(key, limit=80)}' and '{shown(mine, limit=80)}' are one shared tensor, but differ"
            raise InputError(path, "changed", text)
        found[mine] = tensor
    return found


def _adapted(
    tensors: dict[str, Stored],
    own: Mapping[str, torch.Tensor],
    model: nn.Module,
    file: File,
    resize: str,
    path: str | Path,
    tell: Tell,
) -> tuple[dict[str, Stored], set[str]]:
    """Positions on the model's grid, and the names of the classifiers that the file knows for other classes."""
    found, heads = dict(tensors), set[str]()
    for key, tensor in tensors.items():
        if tensor.shape == tuple(own[key].shape) and not _another_grid(key, tensor, model):
            continue
        if _last(key) == POSITIONS:
            kernel = _kernel(file) if resize == "auto" else resize
            found[key] = _resized(tensor, model, kernel, path)
            tell(f"{shown(path)}: {key} {tensor.shape} resized to {found[key].shape} ({kernel})")
        elif _is_head(key) and tensor.shape[1:] == tuple(own[key].shape[1:]):
            heads.add(key)
    if heads:
        counts = {found.pop(key).shape[0] for key in heads}, {own[key].shape[0] for key in heads}
        theirs, ours = (", ".join(map(str, sorted(count))) for count in counts)
        names = ", ".join(sorted({key.rpartition(".")[0] for key in heads}))
        tell(f"{shown(path)}: {names}: {theirs} classes in the file, {ours} here; starts untrained")
    return found, heads


def _check(tensors: dict[str, Stored], own: Mapping[str, torch.Tensor], path: str | Path, model: nn.Module) -> None:
    wanted = {}
    for key, tensor in own.items():
        mine, theirs = str(tensor.dtype).removeprefix("torch."), getattr(tensors.get(key), "dtype", "")
        wanted[key] = {"shape": tuple(tensor.shape), "dtype": theirs if {mine, theirs} <= FLOATS else mine}
    try:
        door.check(tensors, wanted, name=path)
    except InputError as error:
        hint = official_names.hint(tensors, model)
        if not hint or error.reason == "non_finite":
            raise
        raise InputError(path, error.reason, f"{error.text}; {hint}") from None


def _is_state_dict(value: Any) -> bool:
    named = isinstance(value, Mapping) and len(value) > 0
    return named and all(isinstance(key, str) and isinstance(item, Stored) for key, item in value.items())


def _kernel(file: File) -> str:
    """The rule of the file's family: DynamicViT's, DeiT's and LV-ViT's, or timm's for a flat file of a plain ViT."""
    if any(".score_predictor." in f".{key}" for key in file.tensors):
        return "bilinear"
    lvvit = any(key.startswith("aux_head.") for key in file.tensors)
    maps = any(key.startswith("transformers.") for key in file.tensors)
    return "bicubic" if file.where or lvvit or maps else "bicubic-antialias"


def _another_grid(key: str, tensor: Stored, model: nn.Module) -> bool:
    """Whether as many positions were learned on a square that the model does not have."""
    grid = _grid(model)
    if _last(key) != POSITIONS or len(tensor.shape) != 3 or grid is None:
        return False
    square = positions.square(tensor.shape[1] - getattr(model, "num_prefix_tokens", 0))
    return square is not None and square != grid


def _resized(tensor: Stored, model: nn.Module, kernel: str, path: str | Path) -> Stored:
    grid = _grid(model)
    if grid is None:
        raise InputError(path, "shape_mismatch", f"{POSITIONS} has shape {tensor.shape}, which this model cannot take")
    (old,) = unpack({"x": tensor}).values()
    try:
        return pack({"x": _moved(old, grid, getattr(model, "num_prefix_tokens", 0), None, kernel)})["x"]
    except OptionError as error:
        raise InputError(path, "shape_mismatch", str(error)) from None


def _moved(old: torch.Tensor, grid: Any, prefix: int, source: Any, kernel: str) -> torch.Tensor:
    if old.ndim == 4:  # SReT's map
        return positions.resize_map(old, grid, kernel=kernel)
    return positions.resize(old, grid, prefix=prefix, source=source, kernel=kernel)


def _grid(model: nn.Module) -> tuple[int, int] | None:
    grid = getattr(getattr(model, "config", None), "grid", None)
    if grid is None and (embed := getattr(model, "patch_embed", None)) is not None:
        grid = getattr(embed, "grid_size", None)  # timm's
    return None if grid is None else (int(grid[0]), int(grid[1]))


def _is_head(key: str) -> bool:
    parts = key.split(".")
    return any(part in HEADS for part in parts[:-1])


def _last(key: str) -> str:
    return key.rsplit(".", 1)[-1]


def _listed(names: list[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
