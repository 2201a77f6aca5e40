# SPDX-License-Identifier: Apache-2.0
"""YOLOv7's own `.pt` files: a live model pickled whole, read as data (fact sheet 12), and built anew from our blocks.

Variant, form, classes, names, anchors and activation are taken from the file; a graph of the user's own is rebuilt
where it is made of known blocks. Nothing of the file is run: its classes are names, and its description of the graph in
words, which the original evaluates, is not even looked at. Plain state dicts are read too; their tensors tell form and
classes.
`official.create` and `featherweight convert` are the front doors.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import nn

from . import artifact, official_names
from .checkpoint import tensors_of, unpack
from .doors import checkpoint as door
from .doors import modules
from .doors.modules import Module
from .doors.stored import Stored
from .errors import InputError, OptionError, shown
from .models import yolov7_forms, yolov7_graph, yolov7_text, zoo
from .models.table import DETECTOR
from .models.yolov7 import CUSTOM, YOLOv7, shapes
from .models.yolov7_graph import Graph
from .official_yolo_rows import graph_of
from .surgery import edits_of

Tell = Callable[[str], None]
HEADS = {"Detect": "deploy", "IDetect": "training", "IAuxDetect": "training"}
_OFFICIAL = re.compile(r"model\.\d{1,4}\.")
KEYS = ("ema", "model")  # where a file keeps modules; a moving average is what its run would evaluate


class File(Protocol):
    """What `official.read` returns."""

    @property
    def path(self) -> str | Path: ...
    @property
    def tensors(self) -> Mapping[str, Stored]: ...
    @property
    def detector(self) -> Detector | None: ...


@dataclass(frozen=True, eq=False)
class Detector:
    """What a file holds: weights by their official names, and the configuration they belong to."""

    path: Path
    tensors: Mapping[str, Stored]
    config: Mapping[str, Any]  # fields of YOLOv7Config
    names: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())

    @property
    def says(self) -> str:
        """The file in a few words."""
        variant = "a graph of its own" if self.config["variant"] == CUSTOM else self.config["variant"]
        return f"{variant} ({self.config['form']} form, {self.config['num_classes']} classes)"


def of(tree: Any, path: Path) -> Detector | None:
    """The detector pickled in what `read_tree` found; None where there is no module, such as in a plain state dict.

    Raises InputError for a model that is none of ours, or numbers that do not fit together.
    """
    if modules.is_module(tree):
        tree = {"model": tree}
    found = [key for key in KEYS if isinstance(tree, dict) and modules.is_module(tree.get(key))]
    if not found:
        return None
    notes = [f"took its moving average ({found[0]!r})"] if found[0] == "ema" else []
    models = [modules.module(tree[key], path) for key in found]
    named = next((model.facts["names"] for model in models if model.facts.get("names")), None)
    return _detector(models[0], named, path, notes)


def flat(tensors: Mapping[str, Stored], path: Path, variant: str, **config: Any) -> Detector:
    """The detector in a state dict, which does not name its variant: form, classes and anchors as the tensors tell."""
    found = {"variant": variant, **config}
    last = max((int(key.split(".")[1]) for key in tensors if _OFFICIAL.match(key)), default=-1)
    grid, weight = (tensors.get(f"model.{last}.{name}") for name in ("anchor_grid", "m.0.weight"))
    found["form"] = "training" if f"model.{last}.ia.0.implicit" in tensors else "deploy"
    if grid is not None and weight is not None and len(grid.shape) == 6 and len(weight.shape) == 4:
        found["num_classes"] = weight.shape[0] // max(1, grid.shape[2]) - 5
        found["anchors"] = _array(grid).reshape(grid.shape[0], -1).tolist()
    return Detector(path, tensors, found)


def knows(name: str) -> bool:
    """Whether a name of the table, or of a family, is a detector's."""
    line = zoo.find(name)
    return (line.family if line else name) == "yolov7"


def takes(model: nn.Module, file: File, strict: bool = True) -> bool:
    """Whether the weights of this file for this model are read here."""
    return file.detector is not None or (isinstance(model, YOLOv7) and strict and not edits_of(model))


def named(name: str, file: File, tell: Tell, config: Mapping[str, Any]) -> nn.Module:
    """The detector of a name of the table, or of the family, with a file's weights; see `create`."""
    line = zoo.find(name)
    asked = {**(line.config if line else {}), **config}
    asked.setdefault("variant", "yolov7")
    return create(_held(file, asked), asked.pop("variant"), tell=tell, **asked)


def into(model: nn.Module, file: File, *, tell: Tell) -> nn.Module:
    """The file's weights in the model's form and with its classes; the anchors are the file's.

    A model that knows its classes by name (`artifact.remember`) keeps of the file those of the same names.
    """
    if not isinstance(model, YOLOv7):
        says = file.detector.says if file.detector else "a detector"
        raise InputError(file.path, "shape_mismatch", f"holds {says}, not a {type(model).__name__}")
    if edits_of(model):
        raise InputError(file.path, "shape_mismatch", "belongs to a detector without edits; load it, then edit it")
    mine = model.config
    found = _held(file, asdict(mine))
    record = artifact.record_of(model)
    wanted = record.classes if record else ()
    return create(found, mine.variant, tell=tell, wanted=wanted, form=mine.form, num_classes=mine.num_classes)


def classes_of(model: nn.Module, file: File) -> int:
    """How many classes the detector in a file has."""
    config = asdict(model.config) if isinstance(model, YOLOv7) else {}
    return int(_held(file, config).config["num_classes"])


def _held(file: File, config: Mapping[str, Any]) -> Detector:
    """What a file tells; of a plain state dict what its tensors tell, where they fit the variant that is asked for."""
    if file.detector is not None:
        return file.detector
    found = flat(file.tensors, Path(file.path), **config)
    try:
        check(found)
    except InputError as error:
        fits = official_names.detector_of(file.tensors)
        if not fits or error.reason == "non_finite":
            raise
        text = f"its tensors are those of {fits}, not of {found.config['variant']}"
        raise InputError(file.path, error.reason, text) from None
    return found


def check(found: Detector) -> None:
    """InputError where a tensor is missing, too much, of another shape or not finite; nothing is allocated."""
    try:
        with torch.device("meta"):
            own = tensors_of(zoo.build({"name": "yolov7", "config": dict(found.config)}))
    except OptionError as error:
        raise InputError(found.path, "bad_schema", str(error)) from None
    wanted = {key: {"shape": tuple(t.shape), "dtype": _dtype(t, found.tensors.get(key))} for key, t in own.items()}
    door.check(found.tensors, wanted, name=found.path)


def build(found: Detector) -> YOLOv7:
    """The model in the file, in evaluation mode; InputError where it does not fit."""
    check(found)
    model = cast(YOLOv7, zoo.build({"name": "yolov7", "config": dict(found.config)}))
    own = tensors_of(model)
    with torch.no_grad():
        for key, tensor in unpack(dict(found.tensors)).items():
            own[key].copy_(tensor)
    return model.eval()


def create(found: Detector, variant: str, *, tell: Tell, wanted: Sequence[str] = (), **config: Any) -> nn.Module:
    """The model of a file as `variant` with these fields of its configuration; what had to be adapted is told.

    wanted: the names of its classes, where they are not those of the file.
    InputError where the file holds another variant.
    """
    held = found.config
    if not _same(variant, held, config.get("activation")):
        name = held["variant"]
        hint = f"variant={CUSTOM!r} takes it" if name == CUSTOM else f"create({name!r}, weights=...) takes it"
        raise InputError(found.path, "shape_mismatch", f"holds {found.says}, not {variant}; {hint}")
    for note in found.notes:
        tell(f"{shown(found.path)}: {note}")
    zoo.check("yolov7", **{**held, **config})
    model = build(found)
    differs = {key: value for key, value in config.items() if key != "variant" and held.get(key) != value}
    known: dict[str, Any] = {"names": found.names, "wanted": wanted}
    new = yolov7_forms.changed(model, tell=lambda text: tell(f"{shown(found.path)}: {text}"), **known, **differs).eval()
    names = tuple(wanted) or (found.names if new.head.num_classes == held.get("num_classes") else ())
    height, width = new.config.image_size
    artifact.remember(new, classes=names, preprocess=replace(DETECTOR, size=(height, width)))
    return new


def _same(variant: str, held: Mapping[str, Any], activation: str | None) -> bool:
    """Whether a file's variant is the one asked for; tiny and tiny_silu differ in the activation alone."""
    name = held["variant"]
    if CUSTOM in (variant, name):
        return variant == name
    tiny = yolov7_graph.find(variant)[0] is yolov7_graph.TINY and yolov7_graph.find(name)[0] is yolov7_graph.TINY
    return variant == name or (tiny and (activation or yolov7_graph.find(variant)[1]) == held.get("activation"))


def _detector(model: Module, named: Any, path: Path, notes: list[str]) -> Detector:
    layers = model.parts.get("model")
    if model.kind != "Model" or layers is None or not layers.parts:
        raise InputError(path, "bad_schema", f"holds a {shown(model.kind, limit=60)}, not a detector of YOLOv7's")
    *_, head = layers.parts.values()
    if head.kind not in HEADS:
        known = ", ".join(HEADS)
        raise InputError(path, "bad_schema", f"ends with {shown(head.kind, limit=60)}; heads known here: {known}")
    graph, act = graph_of(list(layers.parts.values()), path)
    tensors = model.state_dict()
    classes = head.facts.get("nc")
    if type(classes) is not int or not 1 <= classes <= zoo.LIMITS["num_classes"]:
        raise InputError(path, "out_of_range", f"its head has {str(classes)[:40]!r} classes")
    where = f"model.{len(layers.parts) - 1}."
    anchors, tensors, odd = _anchors(tensors, where, head, graph, path)
    form = HEADS[head.kind]
    variant = _variant(graph, act, form)
    config = {"variant": variant, "form": form, "num_classes": classes, "activation": act, "anchors": anchors}
    if variant == CUSTOM:
        config["graph"] = yolov7_text.write(graph)
    names, unnamed = _names(named, classes)
    return Detector(path, tensors, config, names, (*notes, *odd, *unnamed))


def _variant(graph: Graph, act: str, form: str) -> str:
    """The variant whose rows these are; of tiny the one with this activation."""
    found = []
    for name, (design, own) in yolov7_graph.VARIANTS.items():
        wired = yolov7_graph.wire(design, aux=form == "training" and design.reorg)
        if (graph.rows, graph.lead, graph.aux) == (wired.rows, wired.lead, wired.aux):
            found.append((own != act, name))
    return min(found)[1] if found else CUSTOM


def _anchors(
    tensors: dict[str, Stored], where: str, head: Module, graph: Graph, path: Path
) -> tuple[list[list[float]], dict[str, Stored], list[str]]:
    """Anchors in pixels, a row a level; `anchors` made to agree with `anchor_grid`, by which the file's boxes are."""
    units, grid = (tensors.get(f"{where}{name}") for name in ("anchors", "anchor_grid"))
    levels, stride = graph.levels, head.facts.get("stride")
    if units is None or grid is None or len(units.shape) != 3 or units.shape[0] != levels or units.shape[2] != 2:
        raise InputError(path, "bad_shape", f"its head has no anchors of {levels} levels")
    if grid.shape != (levels, 1, units.shape[1], 1, 1, 2) or not (units.is_finite() and grid.is_finite()):
        raise InputError(path, "bad_shape", f"anchor_grid {grid.shape} does not belong to anchors {units.shape}")
    pixels = _array(grid).reshape(levels, -1, 2)
    if pixels.min() <= 0 or pixels.max() >= 1e5:
        raise InputError(path, "out_of_range", "its anchors are not widths and heights in pixels")
    strides = _strides(graph)
    told = _array(stride).tolist() if isinstance(stride, Stored) else None
    if told is not None and told != strides:
        raise InputError(path, "bad_schema", f"says its strides are {str(told)[:60]}, but its layers make {strides}")
    right = (pixels / np.array(strides)[:, None, None]).astype(np.float32)
    notes = []
    if not np.allclose(_array(units), right, rtol=2e-3):
        notes.append("anchors and anchor_grid disagree; took anchor_grid, by which its boxes are decoded")
        tensors = {**tensors, f"{where}anchors": Stored.of(right)}
    return pixels.reshape(levels, -1).tolist(), tensors, notes


def _strides(graph: Graph) -> list[float]:
    return [float(shapes(graph.rows)[1][row]) for row in graph.lead]


def _names(told: Any, classes: int) -> tuple[tuple[str, ...], list[str]]:
    """Class names, from a list or a mapping of numbers; without them a note."""
    if isinstance(told, dict) and all(type(key) is int for key in told):
        told = [told[key] for key in sorted(told)]
    fit = isinstance(told, list) and len(told) == classes
    if fit and all(isinstance(name, (str, int)) and 0 < len(str(name)) <= 1000 for name in told):
        return tuple(map(str, told)), []
    return (), [f"does not name its {classes} classes"]


def _array(tensor: Stored) -> np.ndarray[Any, Any]:
    (values,) = unpack({"x": tensor}).values()
    found: np.ndarray[Any, Any] = values.double().numpy()
    return found


def _dtype(tensor: torch.Tensor, stored: Stored | None) -> str:
    mine = str(tensor.dtype).removeprefix("torch.")
    return stored.dtype if stored is not None and {mine, stored.dtype} <= artifact.FLOATS else mine
