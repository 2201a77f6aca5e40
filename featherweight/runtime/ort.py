# SPDX-License-Identifier: Apache-2.0
"""Sessions of ONNX Runtime: options, answers into memory that is used again, several in flight, what was compiled."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from featherweight.errors import OptionError, missing_extra
from featherweight.runtime import session as sessions
from featherweight.runtime import warm
from featherweight.runtime.lacking import refusal
from featherweight.runtime.profiling import LayerTime
from featherweight.runtime.session import Arrays, How, Port, Session

TYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
}
INT8 = (b"DequantizeLinear", b"MatMulInteger", b"ConvInteger", b"QLinearMatMul", b"QLinearConv")


def open_file(path: Path, how: How, data: bytes | None = None) -> Session:
    """A session on a .onnx or .fwz file, or on `data` that stands for it."""
    if how.precision != "f32":
        text = f"onnxruntime computes in f32 here; {how.precision!r} needs the openvino backend"
        raise OptionError("precision", text)
    if how.shapes:
        raise OptionError("shapes", "onnxruntime compiles for any size; the openvino backend can be told the one")
    if data is None and how.cache is None:
        data = sessions.graph_bytes(path)  # a damaged file is the nearer mistake
    runtime = _runtime()
    streams = (how.streams or how.threads) if how.mode == "throughput" else 1
    found, told, kept = _compiled(path, how, data, runtime, max(1, how.threads // streams))
    run, lend = _runs(found, runtime)
    return Session(
        run,
        inputs=tuple(Port(p.name, _sizes(p.shape), TYPES.get(p.type, p.type)) for p in found.get_inputs()),
        outputs=tuple(Port(p.name, _sizes(p.shape), TYPES.get(p.type, p.type)) for p in found.get_outputs()),
        metadata=told["metadata"],
        backend="onnxruntime",
        dtype="int8" if told["int8"] else "float32",
        threads=how.threads,
        mode=how.mode,
        in_flight=streams,
        warm=kept,
        lend=lend,
        submit=_submit(run, streams) if how.mode == "throughput" else None,
        layers=(lambda arrays: _profiled(data or b"", path, how, arrays)) if how.profile else None,
    )


def _runtime() -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise missing_extra("running a .onnx file", "onnxruntime", "onnx") from None
    return onnxruntime


def _options(runtime: Any, threads: int) -> Any:
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.execution_mode = runtime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 4  # it reports by exceptions; its log goes to stderr
    return options


def _compiled(path: Path, how: How, data: bytes | None, runtime: Any, threads: int) -> tuple[Any, dict[str, Any], bool]:
    """ONNX Runtime's session, what is told of the model, and whether it came from the cache."""
    options = _options(runtime, threads)
    if how.cache is None or data is not None:
        data = sessions.graph_bytes(path) if data is None else data
        found = _session(path, data, options, runtime)
        return found, _told(found, data), False
    file = warm.place(how.cache, path, "onnxruntime", runtime.__version__, {})  # threads change nothing that is kept
    if (kept := warm.read(file)) is not None:
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL  # it has been through them
        try:
            return _open(kept.blob, options, runtime), kept.told, True
        except Exception:  # noqa: BLE001  whatever it says, the model itself is at hand
            options = _options(runtime, threads)
    data = sessions.graph_bytes(path)
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder, "model.onnx"))
        found = _session(path, data, options, runtime)
        told = _told(found, data)
        warm.write(file, warm.Kept(Path(folder, "model.onnx").read_bytes(), told))
    return found, told, False


def _told(found: Any, data: bytes) -> dict[str, Any]:
    return {"metadata": dict(found.get_modelmeta().custom_metadata_map), "int8": any(word in data for word in INT8)}


def _open(data: bytes, options: Any, runtime: Any) -> Any:
    return runtime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def _session(path: Path, data: bytes, options: Any, runtime: Any) -> Any:
    try:
        return _open(data, options, runtime)
    except Exception as error:  # noqa: BLE001  its classes are made in C++ and have no common base of their own
        raise refusal(path, "ONNX Runtime", error, data) from None


def _runs(found: Any, runtime: Any) -> tuple[Callable[[Arrays], Arrays], Callable[[Arrays], Arrays]]:
    """One answer in memory of its own; and one in memory that the next of the same input shapes writes over."""
    names = [port.name for port in found.get_outputs()]
    bound: dict[tuple[Any, ...], tuple[Any, Arrays] | None] = {}

    def run(arrays: Arrays) -> Arrays:
        return dict(zip(names, found.run(names, arrays), strict=True))

    def lend(arrays: Arrays) -> Arrays:
        key = tuple(sorted((name, array.shape) for name, array in arrays.items()))
        if key not in bound:
            bound.clear()  # of one set of shapes at a time, so that memory stays bounded
            first = run(arrays)  # tells the shapes, where the file does not
            binding = found.io_binding()
            for name, array in first.items():
                binding.bind_ortvalue_output(name, runtime.OrtValue.ortvalue_from_numpy(array))
            bound[key] = (binding, first)
            return first
        if (ready := bound[key]) is None:
            return run(arrays)
        binding, outputs = ready
        for name, array in arrays.items():
            binding.bind_cpu_input(name, array)
        try:
            found.run_with_iobinding(binding)
        except Exception:  # noqa: BLE001  outputs whose shape follows from the values, as those of suppression
            bound[key] = None
            return run(arrays)
        return outputs

    return run, lend


def _submit(run: Callable[[Arrays], Arrays], streams: int) -> Callable[[Arrays], Callable[[], Arrays]]:
    from concurrent.futures import ThreadPoolExecutor

    pool = ThreadPoolExecutor(streams, thread_name_prefix="onnxruntime")
    return lambda arrays: pool.submit(run, arrays).result


def _profiled(data: bytes, path: Path, how: How, arrays: Arrays) -> list[LayerTime]:
    """The kernels of one answer after one that is not counted; profiles are written by the session that ran."""
    runtime = _runtime()
    with tempfile.TemporaryDirectory() as folder:
        options = _options(runtime, how.threads)
        options.enable_profiling, options.profile_file_prefix = True, str(Path(folder, "profile"))
        found = _session(path, data or sessions.graph_bytes(path), options, runtime)
        found.run(None, arrays)
        found.run(None, arrays)
        events = json.loads(Path(found.end_profiling()).read_text(encoding="utf-8"))
    kernels = [e for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")]
    last = kernels[len(kernels) // 2 :]
    return [
        LayerTime(e["name"].removesuffix("_kernel_time"), str(e["args"].get("op_name", "")), "", e["dur"] / 1000)
        for e in last
    ]


def _sizes(shape: list[int | str | None]) -> tuple[int | None, ...]:
    return tuple(n if isinstance(n, int) else None for n in shape)
