# SPDX-License-Identifier: Apache-2.0
"""Weights as their authors publish them -> a folder of ours: safetensors, class names, where they came from."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from featherweight.errors import OptionError, shown


def convert(
    file: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    arch: str | None = None,
    form: str | None = None,
    fused: bool = False,
) -> dict[str, Any]:
    """Write a weights file as a model folder; what it held, as a mapping.

    arch: whose weights they are; YOLOv7's files tell it themselves. form: deploy or training, for detectors; the file's
    unless given. fused: merge batch norms and the like for deployment (`methods.fuse`), compared before it is written.
    InputError for a file that is not safe or does not fit, OptionError where `arch` is missing.
    """
    from featherweight import artifact, counting, official, official_names, official_yolo
    from featherweight.methods.fuse import fuse
    from featherweight.models import zoo

    path, target, notes = Path(file), Path(folder), list[str]()
    if target.is_file():
        raise OptionError("folder", f"{shown(target)} is a file; name a folder to write the model into")
    held = official.read(path)
    if arch is None:
        told = held.detector.config["variant"] if held.detector else official_names.detector_of(held.tensors)
        arch = str(told).partition(" ")[0]
    if not arch:
        raise OptionError("arch", f"is needed: {shown(path)} does not say whose weights it holds")
    config: dict[str, Any] = {} if form is None else {"form": form}
    if arch == official_yolo.CUSTOM:
        arch, config["variant"] = "yolov7", arch
    elif not official_yolo.knows(arch):
        classes = official.classes_of(held, official.create(arch))
        config |= {"num_classes": classes} if classes else {}
    model = official.create(arch, weights=held, tell=notes.append, **config)
    model = fuse(model) if fused else model
    record = artifact.record_of(model)
    names = record.classes if record else ()
    preprocess = (record.preprocess if record else None) or zoo.preprocess_of(arch, model)
    origin = {"file": path.name, "sha256": _digest(path)}
    artifact.save(model, target, classes=names, preprocess=preprocess, note={"converted_from": origin})
    return {
        "model": _says(model, arch),
        "params": counting.parameters(model),
        "classes": list(names),
        "notes": notes,
        "folder": os.fspath(target),
    }


def _says(model: Any, arch: str) -> str:
    """The name of a model, and of a detector its form."""
    config = model.config if hasattr(model, "config") and hasattr(model.config, "form") else None
    return arch if config is None else f"{config.variant} ({config.form} form, {config.num_classes} classes)"


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
