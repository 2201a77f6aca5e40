# SPDX-License-Identifier: Apache-2.0
"""One interface over torch (eager, compiled, bf16), ONNX Runtime and OpenVINO: `open_model` gives a `Session` of each.

Exported files are run by `runtime.session` without torch; here torch modules get the same form. Torch is imported for
them only.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from featherweight.errors import OptionError, closest, missing_extra
from featherweight.runtime.profiling import LayerTime
from featherweight.runtime.session import Arrays, Port, Session, available_threads, open_session

if TYPE_CHECKING:
    from torch import Tensor, nn

TORCH = ("torch", "torch-compiled")
TORCH_PRECISIONS = ("f32", "bf16", "autocast", "auto")


def open_model(
    model: Any,
    *,
    example: Mapping[str, np.ndarray] | np.ndarray | None = None,
    backend: str | None = None,
    threads: int | None = None,
    precision: str | None = None,
    **options: Any,
) -> Session:
    """A session on an exported file or a torch module, with threads, precision and mode as they are asked for.

    example: the input (or inputs by name, in the order of `forward`) of a torch module, which does not say what it
    takes. backend: of a module "torch" or "torch-compiled", of a file "onnxruntime" or "openvino". precision: "f32",
    "bf16" (torch: the model cast), "autocast" (torch), "auto" (a file: the runtime's choice; a module: as it is).
    options: `mode` and the rest of `runtime.session.open_session`, for a file. What it came to is `Session.dtype`.
    """
    known: dict[str, Any] = {"backend": backend, "threads": threads, "precision": precision}
    if isinstance(model, (str, os.PathLike)):
        return open_session(Path(model), **known, **options)
    for name, value in options.items():
        if (name, value) != ("mode", "latency") and name != "profile":
            text = "goes with exported files; torch answers one batch at a time: give a larger one, or export the model"
            raise OptionError(name, text)
    if example is None:
        raise OptionError("example", "is missing: a torch module does not say what it takes; give an array of it")
    given = dict(example) if isinstance(example, Mapping) else {"input": example}
    return torch_session(model, given, **{**known, "backend": backend or "torch"})


class Prepared(NamedTuple):
    """A module that is ready: `call` takes tensors; what it computes in, and where."""

    call: Callable[..., Any]
    dtype: str
    device: str
    inputs: Any  # the type of its floating point inputs
    model: Any


def prepared(
    model: nn.Module, *, backend: str = "torch", threads: int | None = None, precision: str | None = None
) -> Prepared:
    """The module in evaluation mode and of that precision; yours is copied where it has to change."""
    import copy

    torch = _torch()
    precision = precision or "auto"
    for name, word, known in (("backend", backend, TORCH), ("precision", precision, TORCH_PRECISIONS)):
        if word not in known:
            raise OptionError(name, f"no {word!r} of torch; {closest(word, known)}Known: {', '.join(known)}")
    if not isinstance(model, torch.nn.Module):
        text = f"{type(model).__name__} cannot be timed; give a torch module or the path of an .onnx or .xml file"
        raise TypeError(text)
    if any(m.training for m in model.modules()):
        model = copy.deepcopy(model).eval()
    weight = next(model.parameters(), torch.empty(0))
    kind = {"f32": torch.float32, "bf16": torch.bfloat16}.get(precision)
    if kind is not None and weight.is_floating_point() and weight.dtype != kind:
        model = copy.deepcopy(model).to(kind)
        weight = next(model.parameters(), torch.empty(0, dtype=kind))
    runs = torch.compile(model) if backend == "torch-compiled" else model
    number = threads or available_threads()
    cast = precision == "autocast"

    def call(*tensors: Tensor) -> Any:
        if torch.get_num_threads() != number:  # the number belongs to the process, and neighbors may want another
            torch.set_num_threads(number)
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=cast):
            return runs(*tensors)

    return Prepared(call, _dtype(torch, weight, cast), weight.device.type, weight.dtype, model)


def _dtype(torch: Any, weight: Tensor, cast: bool) -> str:
    """What it really computes in: torch may be told, for the whole process, to multiply float32 in bfloat16."""
    name = str(weight.dtype).removeprefix("torch.")
    if cast:
        return "autocast bfloat16"
    loose = torch.get_float32_matmul_precision() == "medium"
    return f"{name}, products in bfloat16" if name == "float32" and loose else name


def torch_session(
    model: nn.Module | None,
    example: Mapping[str, np.ndarray],
    *,
    backend: str = "torch",
    threads: int | None = None,
    precision: str | None = None,
) -> Session:
    """A torch module as a session; None is the module that does nothing."""
    torch = _torch()
    ready = prepared(model or torch.nn.Identity(), backend=backend, threads=threads, precision=precision)
    names = list(example)

    def tensors(arrays: Arrays) -> list[Tensor]:
        found = [torch.from_numpy(arrays[name]) for name in names]
        return [t.to(ready.device, ready.inputs if t.is_floating_point() else t.dtype) for t in found]

    def run(arrays: Arrays) -> Arrays:
        return _arrays(ready.call(*tensors(arrays)))

    first = run({name: np.ascontiguousarray(array) for name, array in example.items()})
    return Session(
        run,
        inputs=tuple(Port(name, (None,) * array.ndim, array.dtype.name) for name, array in example.items()),
        outputs=tuple(Port(name, (None,) * array.ndim, array.dtype.name) for name, array in first.items()),
        metadata={},
        backend=backend,
        dtype=ready.dtype,
        threads=threads or available_threads(),
        layers=lambda arrays: module_times(ready, tensors(arrays)),
    )


def module_times(ready: Prepared, tensors: list[Tensor]) -> list[LayerTime]:
    """What each module without modules inside took in one call; compiled ones are seen as a whole."""
    import time

    found: list[LayerTime] = []
    began: dict[str, float] = {}

    def before(name: str) -> Callable[..., None]:
        return lambda *_: began.update({name: time.perf_counter()})

    def after(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, *_: Any) -> None:
            took = 1000 * (time.perf_counter() - began[name])
            found.append(LayerTime(name, type(module).__name__, "", took))

        return hook

    handles = []
    for name, module in ready.model.named_modules():
        if next(module.children(), None) is None:
            handles += [module.register_forward_pre_hook(before(name)), module.register_forward_hook(after(name))]
    try:
        ready.call(*tensors)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _arrays(output: Any) -> Arrays:
    """Outputs by name: those of a model that names them, else output, or output0, output1, ..."""
    torch = _torch()
    if isinstance(output, torch.Tensor):
        return {"output": _array(output)}
    if isinstance(output, Mapping):
        return {str(key): _array(value) for key, value in output.items() if isinstance(value, torch.Tensor)}
    found = [value for value in output if isinstance(value, torch.Tensor)]
    return {f"output{i}": _array(value) for i, value in enumerate(found)}


def _array(tensor: Tensor) -> np.ndarray:
    import torch

    return np.asarray((tensor.float() if tensor.dtype == torch.bfloat16 else tensor).cpu())


def _torch() -> Any:
    try:
        import torch
    except ImportError:
        raise missing_extra("running a torch module", "torch", "torch") from None
    return torch
