# SPDX-License-Identifier: Apache-2.0
"""Open an exported file and run it with ONNX Runtime or OpenVINO. No torch, no network, nothing written unasked.

Both runtimes look up foreign hosts and write to the home folder when they are imported; `silence` prevents that and
must have run before the first import of either, which is why every session is opened here. What each needs: `ort`,
`ov`. Torch modules under the same interface: `featherweight.sessions`.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from featherweight.coding import SUFFIX
from featherweight.errors import InputError, OptionError, closest

if TYPE_CHECKING:
    from featherweight.runtime.profiling import LayerTime

Array = NDArray[Any]
Arrays = dict[str, Array]
BACKENDS = ("onnxruntime", "openvino")
PRECISIONS = ("f32", "bf16", "auto")
MODES = ("latency", "throughput")
GRAPHS = (".onnx", SUFFIX)


class Port(NamedTuple):
    """An input or output: None in the shape is a size that may vary."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str  # NumPy's name


class How(NamedTuple):
    """How a file is to be run; every field has been checked."""

    threads: int
    precision: str = "f32"
    mode: str = "latency"
    streams: int | None = None  # throughput: answers worked on at once; the runtime's own choice unless given
    cache: Path | None = None  # where what was compiled is kept for the next process
    profile: bool = False
    shapes: tuple[tuple[str, tuple[int, ...]], ...] = ()  # of inputs: compiled for these alone


class Session:
    """A compiled model with the conditions it runs under: `run` for one answer, `stream` for many."""

    def __init__(
        self,
        run: Callable[[Arrays], Arrays],
        *,
        inputs: tuple[Port, ...],
        outputs: tuple[Port, ...],
        metadata: dict[str, str],
        backend: str,
        dtype: str,
        threads: int,
        mode: str = "latency",
        in_flight: int = 1,
        warm: bool = False,
        lend: Callable[[Arrays], Arrays] | None = None,
        submit: Callable[[Arrays], Callable[[], Arrays]] | None = None,
        layers: Callable[[Arrays], list[LayerTime]] | None = None,
    ) -> None:
        self._run, self._lend, self._submit, self._layers = run, lend or run, submit, layers
        self.inputs, self.outputs, self.metadata = inputs, outputs, metadata
        self.backend, self.dtype, self.threads = backend, dtype, threads
        self.mode, self.in_flight = mode, in_flight
        self.warm = warm  # whether it came compiled from the cache

    def run(self, arrays: Mapping[str, Array], *, copy: bool = True) -> Arrays:
        """Outputs by name. An OptionError names the input that is missing, too much, or of a wrong type or shape.

        copy=False: the outputs are the runtime's own memory, written over by the next call.
        """
        checked = self._checked(arrays)
        return self._run(checked) if copy else self._lend(checked)

    def stream(self, feeds: Iterable[Mapping[str, Array]]) -> Iterator[Arrays]:
        """The answers in order, `in_flight` of them worked on at once where it was opened for throughput.

        The arrays of a feed must stay as they are until its answer has come.
        """
        waiting: deque[Callable[[], Arrays]] = deque()
        try:
            for arrays in feeds:
                checked = self._checked(arrays)
                if self._submit is None:
                    yield self._run(checked)
                    continue
                if len(waiting) == self.in_flight:
                    yield waiting.popleft()()
                waiting.append(self._submit(checked))
            while waiting:
                yield waiting.popleft()()
        finally:  # whoever stops early leaves nothing running
            for fetch in waiting:
                fetch()

    def layers(self, arrays: Mapping[str, Array]) -> list[LayerTime]:
        """What each operator of one answer took; OptionError unless it was opened with profile=True."""
        if self._layers is None:
            raise OptionError("profile", "open the model with profile=True to see what its layers take")
        return self._layers(self._checked(arrays))

    def _checked(self, arrays: Mapping[str, Array]) -> Arrays:
        ports = {port.name: port for port in self.inputs}
        for name in arrays:
            if name not in ports:
                raise OptionError("inputs", f"no input {name!r}; {closest(name, ports)}Known: {', '.join(ports)}")
        for port in self.inputs:
            if port.name not in arrays:
                raise OptionError("inputs", f"{port.name!r} is missing")
            _fits(port, arrays[port.name])
        return {name: np.ascontiguousarray(array) for name, array in arrays.items()}

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
    path: str | Path,
    *,
    backend: str | None = None,
    threads: int | None = None,
    precision: str | None = None,
    mode: str = "latency",
    streams: int | None = None,
    cache: str | Path | bool | None = None,
    profile: bool = False,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> Session:
    """Check the file, compile it and return a `Session`.

    backend: "onnxruntime" or "openvino"; by default ONNX Runtime for .onnx where installed, OpenVINO for .xml.
    threads: by default all processors this process may use.
    precision: of the arithmetic that is not int8. "f32" by default, so that results compare; OpenVINO also takes
    "bf16" and "auto" (what it thinks fastest). What it came to is `Session.dtype`.
    mode: "latency" for one answer at a time, "throughput" for `Session.stream` with several in flight, as many as
    `streams` says or the runtime thinks best.
    cache: a folder that keeps what was compiled for the next process; True is the user's cache folder.
    profile: measure what each layer takes, which slows the whole; for `Session.layers`.
    shapes: of inputs by name, for which alone OpenVINO then compiles: quicker, above all for single pictures.
    """
    path = Path(path)
    backend = backend_of(path, backend)
    known: dict[str, Any] = {"threads": threads, "precision": precision, "mode": mode, "streams": streams}
    return opened(path, backend, checked(**known, cache=cache, profile=profile, shapes=shapes))


def opened(path: Path, backend: str, how: How, data: bytes | None = None) -> Session:
    """A session on a file, or on the bytes of an ONNX graph that stand for it."""
    silence()
    if backend == "onnxruntime":
        from featherweight.runtime import ort

        return ort.open_file(path, how, data)
    from featherweight.runtime import ov

    return ov.open_file(path, how, data)


def checked(
    *,
    threads: int | None = None,
    precision: str | None = None,
    mode: str = "latency",
    streams: int | None = None,
    cache: str | Path | bool | None = None,
    profile: bool = False,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> How:
    """The options of `open_session` as a value; OptionError names the one that is wrong."""
    threads = available_threads() if threads is None else threads
    for name, number in (("threads", threads), ("streams", streams)):
        if number is not None and number < 1:
            raise OptionError(name, f"must be at least 1, not {number}")
    for name, word, known in (("precision", precision or "f32", PRECISIONS), ("mode", mode, MODES)):
        if word not in known:
            raise OptionError(name, f"no {word!r}; {closest(str(word), known)}Known: {', '.join(known)}")
    if streams is not None and mode != "throughput":
        raise OptionError("streams", "goes with mode throughput; one answer at a time has one stream")
    folder = cache_folder() if cache is True else Path(cache) if cache else None
    fixed = tuple((name, tuple(int(n) for n in shape)) for name, shape in (shapes or {}).items())
    return How(threads, precision or "f32", mode, streams, folder, profile, fixed)


def cache_folder() -> Path:
    """Where compiled models are kept when a cache is asked for and no folder is named."""
    told = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(told) if os.path.isabs(told) else Path.home() / ".cache") / "featherweight" / "compiled"


def backend_of(path: Path, backend: str | None) -> str:
    """The runtime for a file; OptionError or InputError where there is none."""
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


def graph_bytes(path: Path) -> bytes:
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
