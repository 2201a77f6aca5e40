# SPDX-License-Identifier: Apache-2.0
"""Sessions of OpenVINO: hints, answers without copies, several in flight, what was compiled."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import cache
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from featherweight.errors import InputError, OptionError, closest, missing_extra, shown
from featherweight.runtime import session as sessions
from featherweight.runtime import warm as store
from featherweight.runtime.lacking import refusal
from featherweight.runtime.profiling import LayerTime
from featherweight.runtime.session import GRAPHS, Arrays, How, Port, Session

MAX_XML_BYTES = 64 << 20  # the graph of an OpenVINO model; its weights are in the .bin beside it
TYPES = {"boolean": "bool"}


def open_file(path: Path, how: How, data: bytes | None = None) -> Session:
    """A session on a .onnx, .fwz or .xml file, or on `data`, an ONNX graph that stands for it."""
    options = _options(how)
    if how.cache is None or data is not None:
        return _session(*_compiled(path, options, how, data), how, warm=False)
    compiled, told, kept = _cached(path, options, how, how.cache)
    return _session(compiled, told, how, warm=kept)


def of_model(model: Any, path: Path, how: How) -> Session:
    """A session on a model that OpenVINO has read and we have changed."""
    try:
        compiled = core().compile_model(model, "CPU", _options(how))
    except RuntimeError as error:
        raise refusal(path, "OpenVINO", error) from None
    return _session(compiled, _told(model), how, warm=False)


def _session(compiled: Any, told: dict[str, Any], how: How, *, warm: bool) -> Session:
    throughput = how.mode == "throughput"
    in_flight = compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS") if throughput else 1
    request = compiled.create_infer_request()
    outputs = tuple(_port(port) for port in compiled.outputs)

    def lend(arrays: Arrays) -> Arrays:
        found = request.infer(arrays, share_inputs=True, share_outputs=True)
        return {port.name: found[i] for i, port in enumerate(outputs)}

    hint = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    rest = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}.get(hint, hint)
    return Session(
        lambda arrays: {name: np.array(value) for name, value in lend(arrays).items()},  # its memory is used again
        inputs=tuple(_port(port) for port in compiled.inputs),
        outputs=outputs,
        metadata=told["metadata"],
        backend="openvino",
        dtype=("int8" if rest == "float32" else f"int8+{rest}") if told["int8"] else rest,
        threads=compiled.get_property("INFERENCE_NUM_THREADS"),
        mode=how.mode,
        in_flight=in_flight,
        warm=warm,
        lend=lend,
        submit=_submit(compiled, in_flight, [port.name for port in outputs]) if throughput else None,
        layers=(lambda arrays: _profiled(request, arrays)) if how.profile else None,
    )


def _options(how: How) -> dict[str, Any]:
    options: dict[str, Any] = {"PERFORMANCE_HINT": how.mode.upper(), "INFERENCE_NUM_THREADS": how.threads}
    if how.precision != "auto":
        options["INFERENCE_PRECISION_HINT"] = how.precision
    if how.streams is not None:
        options["NUM_STREAMS"] = how.streams
    if how.profile:
        options["PERF_COUNT"] = True
    return options


def _compiled(path: Path, options: dict[str, Any], how: How, data: bytes | None = None) -> tuple[Any, dict[str, Any]]:
    """OpenVINO's model, and what is told of it."""
    source, weights = graph_of(path) if data is None else (data, None)
    try:
        model = core().read_model(source, weights or b"")
        _fix(model, how, path)
        compiled = core().compile_model(model, "CPU", options)
    except RuntimeError as error:
        raise refusal(path, "OpenVINO", error, source if weights is None else None) from None
    return compiled, _told(model)


def _fix(model: Any, how: How, path: Path) -> None:
    """Give the inputs the shapes that were asked for; OptionError for one that the model does not have or take."""
    names = [port.any_name for port in model.inputs]
    for name, _ in how.shapes:
        if name not in names:
            text = f"{shown(path)} has no input {name!r}; {closest(name, names)}Known: {', '.join(names)}"
            raise OptionError("shapes", text)
    if how.shapes:
        try:
            model.reshape({name: list(shape) for name, shape in how.shapes})
        except RuntimeError:
            wanted = ", ".join(f"{name} {shape}" for name, shape in how.shapes)
            raise OptionError("shapes", f"{shown(path)} does not run with {wanted}") from None


def read(path: Path) -> Any:
    """OpenVINO's model of a checked file."""
    source, weights = graph_of(path)
    try:
        return core().read_model(source, weights or b"")
    except RuntimeError as error:
        raise refusal(path, "OpenVINO", error, source if weights is None else None) from None


def _told(model: Any) -> dict[str, Any]:
    int8 = any(op.get_type_name() in ("FakeQuantize", "FakeConvert") for op in model.get_ops())
    return {"metadata": metadata(model), "int8": int8}


def _cached(path: Path, options: dict[str, Any], how: How, folder: Path) -> tuple[Any, dict[str, Any], bool]:
    """The same from the cache, or put into it; and whether it came from there."""
    version = core().get_versions("CPU")["CPU"].build_number
    if not path.is_file() or (path.suffix == ".xml" and not path.with_suffix(".bin").is_file()):
        graph_of(path)  # says what is wrong
    file = store.place(folder, path, "openvino", version, {**options, "shapes": how.shapes})
    if (kept := store.read(file)) is not None:
        try:
            return core().import_model(kept.blob, "CPU", options), kept.told, True
        except RuntimeError:  # of another build after all; the model itself is at hand
            pass
    compiled, told = _compiled(path, options, how)
    exported = compiled.export_model()
    blob = exported.getvalue() if isinstance(exported, io.BytesIO) else bytes(exported)
    store.write(file, store.Kept(blob, told))
    return compiled, told, False


def _submit(compiled: Any, count: int, names: list[str]) -> Callable[[Arrays], Callable[[], Arrays]]:
    """Requests taken in turns; the answer of one is fetched before it is given the next."""
    requests = cycle([compiled.create_infer_request() for _ in range(count)])

    def submit(arrays: Arrays) -> Callable[[], Arrays]:
        request = next(requests)
        request.start_async(arrays, share_inputs=True)

        def fetch() -> Arrays:
            request.wait()
            return {name: np.array(request.get_output_tensor(i).data) for i, name in enumerate(names)}

        return fetch

    return submit


def _profiled(request: Any, arrays: Arrays) -> list[LayerTime]:
    request.infer(arrays)
    ran = [info for info in request.get_profiling_info() if str(info.status).endswith("EXECUTED")]
    return [LayerTime(i.node_name, i.node_type, i.exec_type, i.real_time.total_seconds() * 1000) for i in ran]


@cache
def core() -> Any:
    """One for the process, for ever: each gives this thread a stack for signals and takes it away at its end, and of
    two that end in the order they began the second leaves a stack that is gone: Ctrl-C would then be a crash."""
    sessions.silence()
    try:
        import openvino
    except ImportError:
        raise missing_extra("running a model with OpenVINO", "openvino", "openvino") from None
    return openvino.Core()


def graph_of(path: Path) -> tuple[bytes, bytes | None]:
    """The checked bytes of a .onnx or .fwz, or of an .xml and the .bin beside it."""
    if path.suffix in GRAPHS:
        return sessions.graph_bytes(path), None
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


def _port(port: Any) -> Port:
    kind = port.element_type.to_dtype().name
    shape = tuple(None if n.is_dynamic else n.get_length() for n in port.partial_shape)
    return Port(port.any_name, shape, TYPES.get(kind, kind))


def metadata(model: Any) -> dict[str, str]:
    """What an .xml carries under model_info; for a .onnx its metadata_props, which OpenVINO files under framework."""
    for place in ("model_info", "framework"):
        if model.has_rt_info(place):
            found = model.get_rt_info(place).astype(dict)
            return {str(key): str(getattr(value, "value", value)) for key, value in found.items()}
    return {}
