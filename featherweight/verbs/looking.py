# SPDX-License-Identifier: Apache-2.0
"""What a model consists of: layers with parameters and multiply-adds, or the inputs and outputs of an exported file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featherweight import measure, sources
from featherweight.runtime.metadata import names_in

if TYPE_CHECKING:
    from torch import Tensor, nn


def info(model: Any, *, arch: str | None = None, backend: str = "auto") -> dict[str, Any]:
    """What a model is: layers with parameters and MACs for a torch model, inputs and outputs for an exported file."""
    source = sources.find(model, backend=backend, arch=arch)
    if source.run is not None and backend == "auto" and (source.run / "model" / "model.json").exists():
        source = sources.find(model, backend="torch")
    return _file_info(source) if source.backend != "torch" else _module_info(source)


def _module_info(source: sources.Source) -> dict[str, Any]:
    import torch

    from featherweight import artifact
    from featherweight.surgery import edits_of

    model = sources.module(source, untrained=True)
    record, told = artifact.record_of(model), sources.preprocess_of(source, model)
    size = told.size if told else (224, 224)
    example = torch.zeros(1, 3, *size)
    layers = [asdict(layer) for layer in measure.layers(model, example)]
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
