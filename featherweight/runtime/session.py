# SPDX-License-Identifier: Apache-2.0
"""Open an exported file and run it with ONNX Runtime or OpenVINO. No torch, no network, nothing written to disk.

Both runtimes look up foreign hosts and write to the home folder when they are imported; `silence` prevents that and
must have run before the first import of either, which is why every session is opened here.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from featherweight.coding import SUFFIX
from featherweight.errors import InputError, OptionError, closest, missing_extra

Array = NDArray[Any]
BACKENDS = ("onnxruntime", "openvino")
PRECISIONS = ("f32", "bf16", "auto")
GRAPHS = (".onnx", SUFFIX)
MAX_XML_BYTES = 64 << 20  # the graph of an OpenVINO model; its weights are in the .bin beside it


class Port(NamedTuple):
    """An input or output: None in the shape is a size that may vary."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str  # NumPy's name


class Session:
    """A compiled model with the conditions it runs under; `run` is the only thing it does."""

    def __init__(
        self,
        run: Callable[[dict[str, Array]], dict[str, Array]],
        *,
        inputs: tuple[Port, ...],
        outputs: tuple[Port, ...],
        metadata: dict[str, str],
        backend: str,
        dtype: str,
        threads: int,
    ) -> None:
        self._run = run
        self.inputs, self.outputs, self.metadata = inputs, outputs, metadata
        self.backend, self.dtype, self.threads = backend, dtype, threads

    def run(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name. An OptionError names the input that is missing, too much, or of a wrong type or shape."""
        ports = {port.name: port for port in self.inputs}
        for name in arrays:
            if name not in ports:
                raise OptionError("inputs", f"no input {name!r}; {closest(name, ports)}Known: {', '.join(ports)}")
        for port in self.inputs:
            if port.name not in arrays:
                raise OptionError("inputs", f"{port.name!r} is missing")
            _fits(port, arrays[port.name])
        return self._run({name: np.ascontiguousarray(array) for name, array in arrays.items()})

    def __repr__(self) -> str:
        return f"Session({self.backend}, {self.dtype}, {self.threads} threads)"


def silence() -> None:
    """Keep ONNX Runtime and OpenVINO from calling home. Works only before they are imported."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]


def available_threads() -> int:
    """The processors this process may use, which is not the number the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


def open_session(
    path: str | Path, *, backend: str | None = None, threads: int | None = None, precision: str | None = None
) -> Session:
    """Check the file, compile it and return a `Session`.

    backend: "onnxruntime" or "openvino"; by default ONNX Runtime for .onnx where installed, OpenVINO for .xml.
    threads: by default all processors this process may use.
    precision: of the arithmetic that is not int8. "f32" by default, so that results compare; OpenVINO also takes
    "bf16" and "auto" (what it thinks fastest). What it came to is `Session.dtype`.
    """
    path = Path(path)
    backend = _backend(path, backend)
    threads = available_threads() if threads is None else threads
    if threads < 1:
        raise OptionError("threads", f"must be at least 1, not {threads}")
    if precision not in (None, *PRECISIONS):
        known = ", ".join(PRECISIONS)
        raise OptionError("precision", f"no {precision!r}; {closest(str(precision), PRECISIONS)}Known: {known}")
    silence()
    return (_onnxruntime if backend == "onnxruntime" else _openvino)(path, threads, precision or "f32")


def _backend(path: Path, backend: str | None) -> str:
    if backend is not None and backend not in BACKENDS:
        raise OptionError("backend", f"no {backend!r}; {closest(backend, BACKENDS)}Known: {', '.join(BACKENDS)}")
    if path.suffix not in (*GRAPHS, ".xml"):
        text = "a model to run is a .onnx, a compact .fwz or an OpenVINO .xml file"
        raise InputError(path, "unsupported_format", text)
    if path.suffix == ".xml" and backend == "onnxruntime":
        raise OptionError("backend", "onnxruntime does not read .xml files: use openvino, or export to .onnx")
    if backend is None and path.suffix in GRAPHS:
        return "onnxruntime" if _installed("onnxruntime") or not _installed("openvino") else "openvino"
    return backend or "openvino"


def _graph(path: Path) -> bytes:
    """The checked bytes of an ONNX file, which a compact file is made into."""
    from featherweight.coding.graph import read_graph
    from featherweight.doors import onnx as door

    return read_graph(path) if path.suffix == SUFFIX else door.read(path)


def _installed(package: str) -> bool:
    from importlib.util import find_spec

    return package in sys.modules or find_spec(package) is not None


def _fits(port: Port, array: Array) -> None:
    if array.dtype != np.dtype(port.dtype):
        raise OptionError("inputs", f"{port.name!r} must be {port.dtype}, not {array.dtype}")
    if len(port.shape) != array.ndim or any(w not in (None, n) for w, n in zip(port.shape, array.shape, strict=True)):
        wanted = ", ".join("any" if n is None else str(n) for n in port.shape)
        raise OptionError("inputs", f"{port.name!r} must have the shape ({wanted}), not {array.shape}")


def _onnxruntime(path: Path, threads: int, precision: str) -> Session:
    if precision != "f32":
        raise OptionError("precision", f"onnxruntime computes in f32 here; {precision!r} needs the openvino backend")
    data = _graph(path)
    try:
        import onnxruntime
    except ImportError:
        raise missing_extra("running a .onnx file", "onnxruntime", "onnx") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 4  # it reports by exceptions; its log goes to stderr
    try:
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001  its classes are made in C++ and have no common base of their own
        raise InputError(path, "corrupt", f"ONNX Runtime does not accept it: {_first_line(error)}") from None
    outputs = tuple(Port(p.name, _sizes(p.shape), _ORT_TYPES.get(p.type, p.type)) for p in session.get_outputs())
    names = [port.name for port in outputs]
    return Session(
        lambda arrays: dict(zip(names, session.run(names, arrays), strict=True)),
        inputs=tuple(Port(p.name, _sizes(p.shape), _ORT_TYPES.get(p.type, p.type)) for p in session.get_inputs()),
        outputs=outputs,
        metadata=dict(session.get_modelmeta().custom_metadata_map),
        backend="onnxruntime",
        dtype="int8" if b"DequantizeLinear" in data or b"MatMulInteger" in data else "float32",
        threads=threads,
    )


_ORT_TYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
}
_OV_TYPES = {"boolean": "bool"}


def _sizes(shape: list[int | str | None]) -> tuple[int | None, ...]:
    return tuple(n if isinstance(n, int) else None for n in shape)


def _openvino(path: Path, threads: int, precision: str) -> Session:
    source, weights = _openvino_bytes(path)
    core = _core()
    options: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
    if precision != "auto":
        options["INFERENCE_PRECISION_HINT"] = precision
    try:
        model = core.read_model(source, weights or b"")
        compiled = core.compile_model(model, "CPU", options)
    except RuntimeError as error:
        raise InputError(path, "corrupt", f"OpenVINO does not accept it: {_first_line(error)}") from None
    request = compiled.create_infer_request()
    outputs = tuple(_openvino_port(port) for port in compiled.outputs)

    def run(arrays: dict[str, Array]) -> dict[str, Array]:
        found = request.infer(arrays)
        return {port.name: np.array(found[i]) for i, port in enumerate(outputs)}  # copies: the memory is used again

    hint = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    rest = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}.get(hint, hint)
    int8 = any(op.get_type_name() in ("FakeQuantize", "FakeConvert") for op in model.get_ops())
    return Session(
        run,
        inputs=tuple(_openvino_port(port) for port in compiled.inputs),
        outputs=outputs,
        metadata=_openvino_metadata(model),
        backend="openvino",
        dtype=("int8" if rest == "float32" else f"int8+{rest}") if int8 else rest,
        threads=compiled.get_property("INFERENCE_NUM_THREADS"),
    )


@cache
def _core() -> Any:
    """One for the process, for ever: each gives this thread a stack for signals and takes it away at its end, and of
    two that end in the order they began the second leaves a stack that is gone: Ctrl-C would then be a crash."""
    try:
        import openvino
    except ImportError:
        raise missing_extra("running a model with OpenVINO", "openvino", "openvino") from None
    return openvino.Core()


def _openvino_bytes(path: Path) -> tuple[bytes, bytes | None]:
    """The checked bytes of a .onnx or .fwz, or of an .xml and the .bin beside it."""
    if path.suffix in GRAPHS:
        return _graph(path), None
    weights = path.with_suffix(".bin")
    for file in (path, weights):
        if not file.exists():
            raise InputError(file, "missing", "an OpenVINO model is an .xml and a .bin of the same name beside it")
        if not file.is_file():
            raise InputError(file, "not_regular_file", "an OpenVINO model is two regular files")
    if path.stat().st_size > MAX_XML_BYTES:
        raise InputError(path, "too_large", f"{path.stat().st_size} bytes; at most {MAX_XML_BYTES}")
    source = path.read_bytes()
    if b"<!" in source or not source.lstrip().startswith((b"<?xml", b"<net")):
        raise InputError(path, "corrupt", "not an OpenVINO graph: it must be plain XML without declarations")
    return source, weights.read_bytes()


def _openvino_port(port: Any) -> Port:
    kind = port.element_type.to_dtype().name
    shape = tuple(None if n.is_dynamic else n.get_length() for n in port.partial_shape)
    return Port(port.any_name, shape, _OV_TYPES.get(kind, kind))


def _openvino_metadata(model: Any) -> dict[str, str]:
    """What an .xml carries under model_info; for a .onnx its metadata_props, which OpenVINO files under framework."""
    for place in ("model_info", "framework"):
        if model.has_rt_info(place):
            found = model.get_rt_info(place).astype(dict)
            return {str(key): str(getattr(value, "value", value)) for key, value in found.items()}
    return {}


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
