# SPDX-License-Identifier: Apache-2.0
"""Model or exported file -> numbers, each with the conditions under which it was taken.

A measurement is a value: it can be stored, compared and printed by `report`. Torch is imported only where a torch model
is measured; exported files are measured without it. How MACs are counted: `counting`. How latencies are compared:
`latency`.
"""

from __future__ import annotations

import os
import platform
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featherweight import sessions
from featherweight.errors import OptionError, closest, shown
from featherweight.latency import Conditions, Latency, faster, load_average, median_interval, race, verdict
from featherweight.runtime import feeds
from featherweight.runtime.session import available_threads, open_session

if TYPE_CHECKING:
    from torch import nn

    from featherweight.counting import Layer

__all__ = [
    "Conditions", "Latency", "Measurement", "Runnable", "faster", "layers", "machine", "macs", "median_interval",
    "parameters", "peak_memory_bytes", "race", "runnable", "size", "verdict",
]  # fmt: skip

SCHEMA = 1
FLAGS = (  # instruction sets that decide how fast small types are; the last two are those of ARM
    "avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimddp", "i8mm",
)  # fmt: skip
PACKAGES = ("featherweight", "numpy", "torch", "onnxruntime", "openvino", "onnx", "timm", "transformers")


@dataclass(frozen=True)
class Measurement:
    """One model's numbers; None where not measured. `accuracy` is {"top1", "interval", "n"} as fractions.

    Of a detector it is {"AP", "AP50", "interval", "n"}, whose interval may be None.
    """

    name: str
    params: int | None = None
    macs: int | None = None  # per image
    size_bytes: int | None = None  # of the file or folder on disk
    accuracy: Mapping[str, Any] | None = None
    latencies: tuple[Latency, ...] = ()
    conditions: Conditions = field(default_factory=Conditions)
    schema: int = SCHEMA

    def latency(self, *, batch: int = 1, runtime: str | None = None) -> Latency | None:
        """The first latency at that batch (and runtime)."""
        for found in self.latencies:
            if found.conditions.batch == batch and runtime in (None, found.conditions.runtime):
                return found
        return None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Measurement:
        """The value back from JSON; ValueError for another schema or a key nobody wrote."""
        if data.get("schema") != SCHEMA:
            raise ValueError(f"measurement has schema {data.get('schema')!r}; this version reads {SCHEMA}")
        latencies = tuple(_latency(item) for item in data.get("latencies", ()))
        conditions = _conditions(data.get("conditions", {}))
        return build(cls, {**data, "latencies": latencies, "conditions": conditions})


def _latency(data: Mapping[str, Any]) -> Latency:
    interval = data.get("ratio_interval")
    tupled = {
        "samples_ms": tuple(float(s) for s in data.get("samples_ms", ())),
        "ratio_interval": (float(interval[0]), float(interval[1])) if interval else None,
        "conditions": _conditions(data.get("conditions", {})),
    }
    return build(Latency, {**data, **tupled})


def _conditions(data: Mapping[str, Any]) -> Conditions:
    tupled = {"flags": tuple(data.get("flags", ())), "resolution": tuple(data.get("resolution", ()))}
    return build(Conditions, {**data, **tupled})


def build(kind: Any, data: Mapping[str, Any]) -> Any:
    """A dataclass from what JSON held; ValueError names a key that is unknown or missing."""
    known = [f.name for f in fields(kind)]
    for key in data:
        if key not in known:
            raise ValueError(f"{kind.__name__}: no {key!r} here; {closest(str(key), known)}Known: {', '.join(known)}.")
    try:
        return kind(**data)
    except TypeError as error:
        raise ValueError(f"{kind.__name__}: {error}") from error


def parameters(model: nn.Module) -> int:
    """Weights of a torch model, integers included."""
    from featherweight import counting

    return counting.parameters(model)


def macs(model: nn.Module, example: Any) -> int:
    """Multiply-adds per image of `example`, attention's products included, as the model runs in eval mode."""
    from featherweight import counting

    return counting.macs(model, example)


def layers(model: nn.Module, example: Any) -> list[Layer]:
    """Parameters and MACs of each module that has any."""
    from featherweight import counting

    return counting.layers(model, example)


def size(*paths: str | os.PathLike[str]) -> int:
    """Bytes on disk of files and of everything in folders; a model in two files is named by both."""
    total = 0
    for path in map(Path, paths):
        if not path.exists():
            raise OptionError("size", f"{shown(path)} does not exist; nothing to weigh")
        total += sum(f.stat().st_size for f in path.rglob("*") if f.is_file()) if path.is_dir() else path.stat().st_size
    return total


def peak_memory_bytes() -> int | None:
    """The most memory this process has held so far; None where the system does not say."""
    try:  # what `resource` tells of a child begins with what its parent had
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])
    except (OSError, IndexError, ValueError):
        pass
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def machine() -> dict[str, Any]:
    """What a sceptic wants to know of this machine; no host name, no user, no path."""
    cpu, flags = _cpu()
    return {
        "cpu": cpu,
        "flags": list(flags),
        "cores": available_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
        "load": load_average(),
    }


@cache
def _cpu() -> tuple[str, tuple[str, ...]]:
    """Model name and those of its instruction sets that are in FLAGS."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor() or platform.machine(), ()
    found = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}
    present = set((found.get("flags") or found.get("Features") or "").split())
    return found.get("model name") or platform.machine(), tuple(flag for flag in FLAGS if flag in present)


@cache
def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


@dataclass(frozen=True)
class Runnable:
    """One model with its input, ready to be raced: call it, and it answers that input once more."""

    call: Callable[[], Any]
    conditions: Conditions

    def __call__(self) -> Any:
        return self.call()


def runnable(
    source: Any,
    *,
    batch: int = 1,
    resolution: tuple[int, int] | None = None,
    images: np.ndarray | None = None,
    threads: int | None = None,
    backend: str | None = None,
    precision: str | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    mode: str = "latency",
    calls: int = 1,
    fixed: bool = False,
) -> Runnable:
    """A torch module or an exported file, ours or not, with a fixed batch in front of it.

    `images` (N, 3, H, W) are repeated to fill the batch; without them it is seeded noise of the shape that a file says,
    of `resolution`, or of `shapes` by the inputs' names. `backend`, `precision` and `mode` are those of
    `sessions.open_model`; a timed call answers the batch `calls` times. fixed: OpenVINO compiles for that shape alone.
    """
    if batch < 1:
        raise OptionError("batch", f"{batch} images are no batch; give 1 or more")
    threads = threads or available_threads()
    if not isinstance(source, (str, os.PathLike)):
        values = _input(batch, resolution, images)
        return _module_runnable(source, values, threads, backend or "torch", precision, calls)
    path = Path(source)
    session = open_session(path, backend=backend, threads=threads, precision=precision, mode=mode)
    known: dict[str, Any] = {"batch": batch, "resolution": resolution, "images": images, "shapes": shapes}
    feed = feeds.made(session.inputs, session.metadata, path, **known)
    if fixed and session.backend == "openvino":
        alone = {name: array.shape for name, array in feed.items()}
        session = open_session(path, backend=backend, threads=threads, precision=precision, mode=mode, shapes=alone)
    done = {"dtype": session.dtype, "runtime": session.backend, "version": _version(session.backend)}
    here = _here(next(iter(feed.values())), threads=session.threads, mode=mode, calls=calls, **done)
    if mode == "latency" and calls == 1:
        return Runnable(lambda: session.run(feed), here)
    return Runnable(lambda: deque(session.stream([feed] * calls), maxlen=0), here)


def _input(batch: int, resolution: tuple[int, int] | None, images: np.ndarray | None) -> np.ndarray:
    if images is not None:
        return np.resize(images, (batch, *images.shape[1:])).astype(np.float32)
    if resolution is None:
        raise OptionError(
            "resolution", "unknown for this model; give (height, width), for instance (224, 224), or images"
        )
    return np.random.default_rng(0).standard_normal((batch, 3, *resolution), dtype=np.float32)


def _here(values: np.ndarray, **known: Any) -> Conditions:
    cpu, flags = _cpu()
    batch = int(values.shape[0]) if values.ndim else 1
    size = feeds.size_of(values)
    return Conditions(cpu=cpu, flags=flags, cores=available_threads(), batch=batch, resolution=size, **known)


def _module_runnable(
    model: nn.Module, values: np.ndarray, threads: int, backend: str, precision: str | None, calls: int
) -> Runnable:
    import torch

    ready = sessions.prepared(model, backend=backend, threads=threads, precision=precision)
    inputs = torch.from_numpy(values).to(ready.device, ready.inputs)

    def call() -> object:
        for _ in range(calls - 1):
            ready.call(inputs)
        return ready.call(inputs)

    runtime = "torch eager" if backend == "torch" else "torch compiled"
    known: dict[str, Any] = {"dtype": ready.dtype, "runtime": runtime, "version": _version("torch"), "calls": calls}
    return Runnable(call, replace(_here(values, threads=threads, **known), device=ready.device))
