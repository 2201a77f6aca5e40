# SPDX-License-Identifier: Apache-2.0
"""The verb that times models: bench. Argument parsing and printing; the work is in `verbs.racing`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from featherweight import cli_options as options
from featherweight.console import columns, current, line
from featherweight.errors import OptionError, shown

if TYPE_CHECKING:
    from featherweight.roofline import Roofline

BACKENDS = ("auto", "all", "torch", "torch-compiled", "onnxruntime", "openvino")
LAYERS = 15  # printed of a model


def bench(
    *models: Annotated[str, Parameter(name="MODEL", help="as for the other verbs, or anybody's .onnx or .xml file")],
    batch: Annotated[
        str, Parameter(name=("--batch", "--batch-size", "-b"), help="one race for each, such as 1,32")
    ] = "1,32",
    threads: Annotated[
        str | None, Parameter(help="one race for each, such as 1,2; all that this process may use unless given")
    ] = None,
    against: Annotated[
        str | None, Parameter(help="the model that the others are compared with; the first unless given")
    ] = None,
    backend: Annotated[str, Parameter(help="auto, all, or some of torch,torch-compiled,onnxruntime,openvino")] = "auto",
    precision: Annotated[
        str | None, Parameter(help="of what is not int8: some of f32,bf16,auto, and autocast of torch")
    ] = None,
    mode: Annotated[str, Parameter(help="latency, or throughput with several batches in flight")] = "latency",
    imgsz: Annotated[
        int | None, Parameter(name=("--imgsz", "--img-size"), help="side of the input, where the model does not say")
    ] = None,
    shape: Annotated[
        list[str] | None,
        Parameter(name="--shape", negative=(), help="NAME=1,3,224,224 of an input, where a file does not say"),
    ] = None,
    fixed: Annotated[bool, Parameter(help="OpenVINO compiles each for the batch alone")] = False,
    repeats: Annotated[int, Parameter(help="turns that each gets at most")] = 60,
    budget_s: Annotated[float, Parameter(name=("--budget-s", "--seconds"), help="of one race, about")] = 5.0,
    start: Annotated[
        bool, Parameter(help="also load time, first answer and peak memory, each in a new process")
    ] = False,
    roofline: Annotated[bool, Parameter(help="also how far from this machine's limit each is")] = False,
    layers: Annotated[bool, Parameter(help="also what each layer takes")] = False,
    floor: Annotated[bool, Parameter(help="also what an empty graph takes in each runtime")] = False,
    plot: Annotated[str | None, Parameter(help="draw the race as an .svg file")] = None,
    arch: options.Arch = None,
) -> int:
    """Latency and throughput of models, raced in turns."""
    from featherweight import verbs

    screen = current()
    if not models and not floor:
        raise OptionError("bench", "needs a MODEL, such as runs/latest")
    if plot is not None and Path(plot).suffix != ".svg":
        raise OptionError("--plot", f"draws .svg files, not {shown(plot)}")
    side = (imgsz, imgsz) if imgsz else None
    counts = options.numbers("--threads", threads) if threads else None
    given: dict[str, Any] = {"shapes": shapes("--shape", shape or []), "resolution": side, "arch": arch}
    wanted = options.words("--backend", backend, BACKENDS)
    rough = options.words("--precision", precision, ("f32", "bf16", "auto", "autocast")) if precision else None
    sizes = options.numbers("--batch", batch)
    found: dict[str, Any] = {}
    if floor:
        found["floor"] = _floors(counts)
    peaks = _peaks(counts) if roofline and models else None
    if peaks is not None:
        found["roofline"] = peaks.to_dict()
    rows: list[dict[str, Any]] = []
    if models:
        known: dict[str, Any] = {"batch": sizes, "threads": counts, "backend": wanted, "precision": rough, "mode": mode}
        known |= {"against": against, "fixed": fixed, "repeats": repeats, "budget_s": budget_s}
        known |= {"start": start, "roofline": peaks}
        rows = verbs.bench(list(models), **known, **given)
        _shown(rows)
    if layers:
        found["layers"] = [_layers(model, sizes[0], counts, wanted[0], given) for model in models]
    if plot is not None:
        _drawn(rows, Path(plot))
    screen.emit({"rows": rows, **found} if found else rows)
    if models:
        screen.next(f"featherweight val {shown(models[0])} --data YOUR_DATA", f"featherweight info {shown(models[0])}")
    return 0


def shapes(option: str, texts: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """ "x=1,3,224,224" -> {"x": (1, 3, 224, 224)}."""
    found = {}
    for text in texts:
        name, equals, sizes = text.rpartition("=")
        if not equals or not name:
            raise OptionError(option, f"{text!r} is not a name and a shape, such as images=1,3,224,224")
        found[name] = options.numbers(option, sizes)
    return found


def _shown(rows: Sequence[Mapping[str, Any]]) -> None:
    """The machine, the table of the races, and where it was measured that of the starts."""
    screen = current()
    if not rows:
        raise OptionError("bench", "no model runs at these batches; see the remarks above")
    for remark in dict.fromkeys(row["remark"] for row in rows if row["remark"]):
        screen.warn(remark)
    first = rows[0]["conditions"]
    screen.say(line("machine", f"{first['cpu']}, {rows[0]['threads']} threads, load {first['load']:.1f}"))
    head = ["model", "runtime", "dtype", "batch", "threads", "p50 ms", "p10 to p90", "cpu ms", "images/s"]
    limited = "limit_share" in rows[0]
    table = [(*head, *(["of the limit"] if limited else []), "against the first")]
    table += [_row(row, limited) for row in rows]
    screen.answer(columns(table))
    if rows[0].get("start"):
        heads = ("model", "import ms", "load ms", "first ms", "ready ms", "peak MB", "file MB")
        screen.answer("\n" + columns([heads, *(_start(row) for row in rows if row.get("start"))]))


def _row(row: Mapping[str, Any], limited: bool) -> tuple[str, ...]:
    digits = 2 if row["median_ms"] < 10 else 1
    spread = f"{row['p10_ms']:.{digits}f} to {row['p90_ms']:.{digits}f}"
    cpu = "-" if row["cpu_ms"] is None else f"{row['cpu_ms']:.{digits}f}"
    numbers = [str(row["batch"]), str(row["threads"]), f"{row['median_ms']:.{digits}f}", spread, cpu]
    numbers.append(f"{row['images_per_s']:.0f}")
    if limited:
        share = row["limit_share"]
        numbers.append("-" if share is None else f"{100 * share:.0f} % ({row['bound']})")
    return row["model"], row["runtime"], row["dtype"], *numbers, row["verdict"]


def _start(row: Mapping[str, Any]) -> tuple[str, ...]:
    start = row["start"]
    times = [f"{start[key]:.0f}" for key in ("import_ms", "load_ms", "first_ms", "ready_ms")]
    peak = "-" if start["peak_bytes"] is None else f"{start['peak_bytes'] / 1e6:.0f}"
    size = "-" if row["size_bytes"] is None else f"{row['size_bytes'] / 1e6:.2f}"
    return row["model"], *times, peak, size


def _floors(counts: Sequence[int] | None) -> dict[str, Any]:
    from featherweight.floors import floors

    found = floors(threads=counts[0] if counts else None)
    for name, one in found.items():
        text = f"{one.median_ms:.3f} ms for an empty graph; no model is quicker"
        current().answer(line("floor", f"{name:12} {text}"))
    return {name: one.to_dict() for name, one in found.items()}


def _peaks(counts: Sequence[int] | None) -> Roofline:
    from featherweight import roofline

    found = roofline.measured(threads=counts[0] if counts else None)
    for dtype in dict.fromkeys(product.dtype for product in found.products):
        small, large = (found.peak(dtype, size) or 0.0 for size in ("small", "large"))
        text = f"{dtype:9} {large / 1e9:.0f} GMAC/s, {small / 1e9:.0f} on a product that stays in the cache"
        current().answer(line("peak", text))
    speeds = f"{found.memory_bytes_per_s / 1e9:.1f} GB/s, {found.cached_bytes_per_s / 1e9:.1f} in the cache"
    current().answer(line("memory", f"{speeds}; {found.threads} threads"))
    return found


def _layers(
    model: str, batch: int, counts: Sequence[int] | None, backend: str, given: Mapping[str, Any]
) -> dict[str, Any]:
    from featherweight import verbs
    from featherweight.runtime.profiling import by_kind

    known = {"batch": batch, "threads": counts[0] if counts else None, **given}
    found = verbs.layers(model, backend="auto" if backend in ("all", "torch-compiled") else backend, **known)
    total = sum(layer.ms for layer in found) or 1.0
    rows = [
        (layer.name, layer.kind, layer.how, f"{layer.ms:.3f}", f"{100 * layer.ms / total:.0f} %") for layer in found
    ]
    screen = current()
    screen.answer(f"\n{shown(model)}, batch {batch}: {len(found)} layers, {total:.2f} ms while being watched")
    screen.answer(columns([("layer", "kind", "kernel", "ms", "share"), *rows[:LAYERS]]))
    kinds = ", ".join(f"{kind} {100 * ms / total:.0f} %" for kind, ms in list(by_kind(found).items())[:6])
    screen.answer(line("kinds", kinds))
    return {"model": model, "layers": [layer._asdict() for layer in found]}


def _drawn(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    from featherweight import bench_plot, files

    files.publish(path, bench_plot.drawn(rows).file().encode())
    current().say(line("plot", shown(path)))


VERBS = (bench,)
