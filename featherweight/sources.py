# SPDX-License-Identifier: Apache-2.0
"""What a MODEL is, wherever one is named: a name, a folder, a run, an exported file, a weights file with `arch`.

`find` looks at names and folders only, so that a mistake is told before anything heavy is imported; `module` builds the
torch model. Torch is reached in `module` alone. Of folders of the transformers library those of image classifiers are
found here; text models are found before (`runners_text`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featherweight.coding import SUFFIX
from featherweight.coding.graph import is_graph
from featherweight.doors import json as strict_json
from featherweight.errors import InputError, OptionError, closest, shown
from featherweight.files import pointed
from featherweight.runtime.preprocess import FILTERS, Preprocess
from featherweight.runtime.record import RECORD

if TYPE_CHECKING:
    from torch import nn

BACKENDS = ("auto", "torch", "onnxruntime", "openvino")
EXPORTS = {".onnx": "onnxruntime", ".xml": "openvino"}
WEIGHT_FILES = (".safetensors", SUFFIX, ".pt", ".pth")
RUN_EXPORTS = ("export/model.onnx", "export/openvino_model.xml")
NEEDS_TORCH = "torch"
THEIR_DETECTOR = "is a detector of transformers: pipeline and predict run it, as it is; this takes detectors of ours"


@dataclass(frozen=True)
class Source:
    """A model that was named and not yet opened; `path` is None for a name of the zoo or of timm."""

    name: str  # as it was typed
    backend: str  # torch, onnxruntime or openvino
    path: Path | None = None
    arch: str | None = None  # whose weights a plain weights file holds
    run: Path | None = None  # the run folder it was found in


def find(model: str | os.PathLike[str], *, backend: str = "auto", arch: str | None = None) -> Source:
    """The file, folder or name behind `model`; of a run the exported files come first. Nothing is opened yet."""
    if backend not in BACKENDS:
        raise OptionError("backend", f"no {backend!r}; {closest(backend, BACKENDS)}Known: {', '.join(BACKENDS)}")
    name = os.fspath(model)
    if "://" in name:
        raise OptionError("model", f"{shown(name)} is an address; nothing is downloaded: save it and name the file")
    path = Path(name)
    if not (path.exists() or path.is_symlink()):
        return _named(name, backend, arch)
    if path.is_symlink() or (path.is_file() and path.name == "latest"):
        path = pointed(path)
    found = _folder(path, backend) if path.is_dir() else _file(path, backend, arch)
    return replace(found, name=name)


def is_hub_like(model: object) -> bool:
    """Whether this may be OWNER/NAME of the hub: our own names have no owner, and timm/NAME is one of timm."""
    return isinstance(model, str) and "/" in model and not model.startswith("timm/")


def is_run(folder: Path) -> bool:
    """Whether this is the folder of a run: a model, exported files or a recipe inside."""
    inside = (f"model/{RECORD}", *RUN_EXPORTS, "config.yaml")
    return not (folder / RECORD).exists() and any((folder / name).exists() for name in inside)


def _named(name: str, backend: str, arch: str | None) -> Source:
    if name.startswith("timm/"):
        name = "timm:" + name.removeprefix("timm/")
    looks_like_a_path = Path(name).suffix in (*EXPORTS, *WEIGHT_FILES) or os.sep in name or name in (".", "..")
    if looks_like_a_path and not name.startswith("timm:"):
        text = "does not exist; a model is a name, a model or run folder, or a .onnx, .xml, .fwz or weights file"
        raise InputError(name, "missing", text)
    if backend not in ("auto", NEEDS_TORCH):
        text = f"{backend} runs exported files; {shown(name)} is a name: export it first, or use torch"
        raise OptionError("backend", text)
    if arch is not None:
        raise OptionError("arch", f"goes with a weights file; {shown(name)} is a name")
    return Source(name, NEEDS_TORCH)


def _file(path: Path, backend: str, arch: str | None) -> Source:
    if path.suffix in EXPORTS or (path.suffix == SUFFIX and is_graph(path)):
        if backend == NEEDS_TORCH:
            what = "files" if path.suffix in EXPORTS else "files that hold a graph"
            raise OptionError("backend", f"torch does not run {path.suffix} {what}; use onnxruntime or openvino")
        if backend == "auto":
            usual = path.suffix != ".xml" and (_installed("onnxruntime") or not _installed("openvino"))
            backend = "onnxruntime" if usual else "openvino"
        return Source("", backend, path)
    if path.suffix not in WEIGHT_FILES:
        known = ", ".join((*EXPORTS, *WEIGHT_FILES))
        raise InputError(path, "unsupported_format", f"is not a model; a model file ends in {known}")
    _only_torch(path, backend)
    return Source("", NEEDS_TORCH, path, arch)


def _folder(folder: Path, backend: str) -> Source:
    if (folder / RECORD).exists():
        _only_torch(folder, backend)
        return Source("", NEEDS_TORCH, folder)
    places = [folder / name for name in (*RUN_EXPORTS, "model.onnx", "openvino_model.xml")]
    for path in places:
        if path.is_file() and _runs(path, backend):
            return replace(_file(path, backend, None), run=folder if is_run(folder) else None)
    if (folder / "model" / RECORD).exists() and backend in ("auto", NEEDS_TORCH):
        return Source("", NEEDS_TORCH, folder / "model", run=folder)
    if (folder / "config.json").exists():
        if is_picture_model(folder):
            _only_torch(folder, backend)
            return Source("", NEEDS_TORCH, folder)
        if is_detector_folder(folder):
            raise InputError(folder, "unsupported_format", THEIR_DETECTOR)
        text = "holds a model of another library; give one of ours, or its weights file with --arch"
        raise InputError(folder, "unsupported_format", text)
    if is_run(folder):
        what = "no finished model yet: let it finish" if backend == "auto" else f"nothing for {backend}"
        raise InputError(folder, "missing", f"is a run with {what}")
    text = f"holds no model: looked for {RECORD}, model.onnx, openvino_model.xml, and those of a run"
    raise InputError(folder, "not_an_artifact", text)


def is_picture_model(folder: str | os.PathLike[str]) -> bool:
    """Whether this is a folder of the transformers library with an image classifier."""
    return _is_for(folder, "ForImageClassification")


def is_detector_folder(folder: str | os.PathLike[str]) -> bool:
    """Whether this is a folder of the transformers library with a detector."""
    return _is_for(folder, "ForObjectDetection")


def _is_for(folder: str | os.PathLike[str], head: str) -> bool:
    folder = Path(folder)
    if not os.path.isfile(folder / "config.json") or os.path.lexists(folder / RECORD):  # also of names no disk can have
        return False
    config = strict_json.read(folder / "config.json", allow_nan=True)
    names = config.get("architectures") if isinstance(config, dict) else None
    return isinstance(names, list) and any(str(name).endswith(head) for name in names)


def _runs(path: Path, backend: str) -> bool:
    """Whether this backend (of those installed, when it may choose) runs the file."""
    if backend == "auto":
        return _installed("openvino") or (path.suffix == ".onnx" and _installed("onnxruntime"))
    return backend == "openvino" or (path.suffix == ".onnx" and backend == "onnxruntime")


def _only_torch(path: Path, backend: str) -> None:
    if backend not in ("auto", NEEDS_TORCH):
        raise OptionError("backend", f"{backend} runs exported files; export {shown(path)} first, or use torch")


def _installed(package: str) -> bool:
    return find_spec(package) is not None


def module(source: Source, *, untrained: bool = False, **config: Any) -> nn.Module:
    """The torch model of a source, in evaluation mode, with the record of its classes and preprocessing.

    untrained: whether a name may stand for random weights. config: overrides for a name (`num_classes`).
    """
    from featherweight import artifact, official
    from featherweight.models import zoo

    if source.backend != NEEDS_TORCH:
        raise OptionError("model", f"{shown(source.path)} is an exported file; this needs the model it came from")
    if source.path is not None:
        return _loaded(source)
    if not source.name.startswith("timm:") and zoo.entry(source.name).shipped and not config:
        return artifact.load(zoo.shipped_weights(source.name))
    if not untrained:
        official.create(source.name, **config)  # an unknown name is the nearer mistake
        name = shown(source.name)
        text = f"{name} is a name without weights; train it first, or give its weights file with --arch {name}"
        raise OptionError("model", text)
    return official.create(source.name, **config)


def _loaded(source: Source) -> nn.Module:
    import torch

    from featherweight import artifact, official, official_yolo

    path = source.path
    if path is not None and is_picture_model(path):
        return picture_model(path)
    if path is None or path.is_dir() or (path.suffix in (".safetensors", SUFFIX) and source.arch is None):
        return artifact.load(path or "")
    file = official.read(path)
    if source.arch is None and file.detector is not None:  # YOLOv7's own files say what they are
        return official_yolo.create(file.detector, file.detector.config["variant"], tell=official.note)
    if source.arch is None:
        text = f"is missing: {shown(path)} holds weights only; say whose, for instance --arch deit_tiny"
        raise OptionError("arch", text)
    with torch.device("meta"):
        theirs = official.classes_of(file, official.create(source.arch))
    classes: dict[str, Any] = {} if theirs is None else {"num_classes": theirs}
    return official.load(official.create(source.arch, **classes), file).eval()


def picture_model(folder: str | os.PathLike[str]) -> nn.Module:
    """The image classifier in a folder of the transformers library, which knows its classes and pictures."""
    from featherweight import artifact
    from featherweight.models import pretrained, pretrained_images

    folder = Path(folder)
    preprocess = pretrained_images.preprocess_in(folder)
    model = pretrained_images.load(folder)
    artifact.remember(model, classes=pretrained.labels_of(model), preprocess=preprocess)
    return model


def load(path: str | os.PathLike[str], base: nn.Module | None = None) -> nn.Module:
    """The model in a folder or file of ours, or in a folder of the transformers library, in evaluation mode.

    base: as of `artifact.load`. A text model carries its tokenizer, an image classifier how its pictures are prepared,
    a detector its image processor.
    """
    from featherweight import artifact
    from featherweight.models import pretrained, pretrained_detectors
    from featherweight.runners_text import tokens_in

    folder = Path(path)
    if base is None and is_picture_model(folder):
        return picture_model(folder)
    if base is None and is_detector_folder(folder):
        return pretrained_detectors.load(folder)
    if base is None and not (folder / RECORD).exists() and (task := pretrained.task_in(folder)) is not None:
        return pretrained.with_tokens(pretrained.load(folder, task=task), tokens_in(folder))
    return artifact.load(folder, base)


def check_module(model: object) -> None:
    """OptionError for what is no module, and for a detector of the transformers library, which only pipelines take."""
    from torch import nn

    from featherweight.models import pretrained_detectors

    kind = type(model).__name__
    if not isinstance(model, nn.Module):
        raise OptionError("model", f"is a {kind}; it must be a name, a path or a module")
    if pretrained_detectors.is_detector(model):
        raise OptionError("model", f"{kind} {THEIR_DETECTOR}")


def preprocess_of(source: Source, model: nn.Module) -> Preprocess | None:
    """How this model's pictures are prepared: its record's word, the zoo's, or timm's."""
    from featherweight import artifact
    from featherweight.models import zoo

    record = artifact.record_of(model)
    if record is not None and record.preprocess is not None:
        return record.preprocess
    name = source.arch or source.name
    if name in zoo.known():
        return zoo.entry(name).preprocess
    return from_timm(getattr(model, "pretrained_cfg", None))


def from_timm(config: Mapping[str, Any] | None) -> Preprocess | None:
    """timm's description of a model's input, where it is one we can follow."""
    if not config or config.get("interpolation") not in FILTERS or len(config.get("input_size", ())) != 3:
        return None
    return Preprocess(
        size=(int(config["input_size"][1]), int(config["input_size"][2])),
        crop_pct=float(config.get("crop_pct") or 1.0),
        interpolation=str(config["interpolation"]),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )
