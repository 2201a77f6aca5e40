# SPDX-License-Identifier: Apache-2.0
"""What a model consists of: layers with parameters and multiply-adds, or the inputs and outputs of an exported file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featherweight import measure, sources
from featherweight.errors import OptionError
from featherweight.runtime.metadata import names_in

if TYPE_CHECKING:
    from torch import Tensor, nn


def info(
    model: Any, *, arch: str | None = None, backend: str = "auto", resolution: tuple[int, int] | None = None
) -> dict[str, Any]:
    """What a model is: layers with parameters and MACs for a torch model, inputs and outputs for an exported file.

    model: a name, a folder, a file or a module, of which nobody knows whether it is trained. resolution: height and
    width of the pictures that MACs are counted for, by default those that the model is made for, else 224 x 224. Raises
    OptionError for a module that does not take them.
    """
    if not isinstance(model, (str, os.PathLike)):
        sources.check_module(model)
        return {**_module_info(sources.Source(type(model).__name__, "torch"), model, resolution), "trained": None}
    source = sources.find(model, backend=backend, arch=arch)
    if source.run is not None and backend == "auto" and (source.run / "model" / "model.json").exists():
        source = sources.find(model, backend="torch")
    if source.backend == "torch":
        return _module_info(source, sources.module(source, untrained=True), resolution)
    if resolution is not None:
        raise OptionError("resolution", "goes with models in torch; an exported file says what it takes")
    return _file_info(source)


def _module_info(source: sources.Source, model: nn.Module, resolution: tuple[int, int] | None) -> dict[str, Any]:
    import torch

    from featherweight import artifact
    from featherweight.surgery import edits_of

    record, told = artifact.record_of(model), sources.preprocess_of(source, model)
    size = resolution or (told.size if told else (224, 224))
    try:
        example = torch.zeros(1, 3, *size)
        layers = [asdict(layer) for layer in measure.layers(model, example)]
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
        text = f"{type(model).__name__} does not take pictures of {size[0]} x {size[1]}: {reason}"
        raise OptionError("resolution", text) from error
    return {
        "model": source.name,
        "kind": type(model).__name__,
        "backend": "torch",
        "trained": source.path is not None or record is not None,
        "params": measure.parameters(model),
        "macs": sum(layer["macs"] for layer in layers),
        "fused": _fused(model, example),
        "resolution": list(size),
        "size_bytes": measure.size(source.path) if source.path else None,
        "classes": list(record.classes) if record else [],
        "edits": [edit.kind for edit in edits_of(model)],
        "preprocess": told.to_dict() if told else None,
        "layers": layers,
    }


def _fused(model: nn.Module, example: Tensor) -> dict[str, int] | None:
    """Parameters and MACs after `methods.fuse`, which papers often quote; None where nothing can be merged."""
    from featherweight.methods.fuse import fuse, plan

    if not plan(model):
        return None
    merged = fuse(model, verify=False)
    return {"params": measure.parameters(merged), "macs": sum(layer.macs for layer in measure.layers(merged, example))}


def _file_info(source: sources.Source) -> dict[str, Any]:
    from featherweight.runtime.session import open_session

    path = source.path or Path()
    session = open_session(path, backend=source.backend)
    ports: Mapping[str, Any] = {"inputs": session.inputs, "outputs": session.outputs}
    return {
        "model": source.name,
        "kind": path.suffix.lstrip("."),
        "backend": session.backend,
        "dtype": session.dtype,
        "size_bytes": measure.size(path, *([path.with_suffix(".bin")] if path.suffix == ".xml" else [])),
        **{key: [port._asdict() for port in found] for key, found in ports.items()},
        "classes": list(names_in(session.metadata, path)),
        "metadata": session.metadata,
    }
