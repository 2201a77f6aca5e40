# SPDX-License-Identifier: Apache-2.0
"""The verbs that use a model: val, export, and bench of `cli_bench`. Argument parsing and printing; no work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from featherweight import cli_options as options
from featherweight.cli_bench import bench
from featherweight.console import current, line
from featherweight.errors import OptionError, shown

FORMATS = ("onnx", "openvino")


def val(
    model: options.Model,
    *,
    data: options.Data,
    part: Annotated[
        str, Parameter(name=("--part", "--split"), help="val, test or train; test is for the very end")
    ] = "val",
    batch: options.Batch = None,
    backend: options.Backend = "auto",
    device: options.Device = None,
    threads: options.Threads = None,
    limit: options.Limit = None,
    arch: options.Arch = None,
    max_bad: options.MaxBad = 0.01,
    seed: options.Seed = None,
) -> int:
    """Accuracy of a model on a data set, with its interval."""
    from featherweight import verbs

    screen = current()
    known = {"batch_size": batch, "device": device, "threads": threads, "limit": limit, "arch": arch, "seed": seed}
    found = verbs.val(model, data, part=part, backend=backend, max_bad=max_bad, **options.given(known))
    screen.say(line("model", f"{shown(model)}: {found['backend']}, {found['dtype']}"))
    screen.say(line("data", f"{shown(found['data'])}: {part}, {found['n']} {found.get('of', 'images')}"))
    screen.answer(found.pop("text") if "text" in found else _accuracy(found))
    screen.detail(line("speed", f"{found['images_per_s']:.0f} {found.get('of', 'images')}/s with preparing them"))
    screen.emit({"model": model, **found})
    again = f"featherweight compress {shown(model)} --data {shown(data)} --max-drop 1%"
    screen.next(f"featherweight bench {shown(model)}", again)
    return 0


def _accuracy(found: dict[str, Any]) -> str:
    low, high = found["interval"]
    correct = f"{found['correct']} of {found['n']}, 95 % interval {100 * low:.1f} to {100 * high:.1f} %"
    top1 = line("top-1", f"{100 * found['top1']:.1f} %   {correct}")
    return top1 + ("\n" + line("top-5", f"{100 * found['top5']:.1f} %") if "top5" in found else "")


def export(
    model: options.Model,
    *,
    formats: Annotated[str, Parameter(name=("--format", "-f"), help="onnx, openvino, or both with a comma")] = "onnx",
    data: Annotated[
        str | None,
        Parameter(name=("--data", "--data-dir", "--dataset", "-d"), help="images to compare on; noise without"),
    ] = None,
    quantize: Annotated[str | None, Parameter(help="int8, calibrated on the training images of --data")] = None,
    images: Annotated[int, Parameter(help="how many are compared")] = 64,
    half: Annotated[bool, Parameter(help="16 bits for OpenVINO's float weights")] = False,
    form: Annotated[
        str | None, Parameter(help="of a detector's answers: decoded, raw, or end2end with suppression in the graph")
    ] = None,
    multi_label: Annotated[
        bool | None, Parameter(negative="--no-multi-label", help="end2end: several classes for one box; the default")
    ] = None,
    max_detections: Annotated[int | None, Parameter(name=("--max-detections", "--max-det"), help="end2end")] = None,
    dynamic: Annotated[
        bool | None, Parameter(negative="--no-dynamic", help="of a detector: sizes may vary; the default")
    ] = None,
    imgsz: Annotated[int | None, Parameter(name=("--imgsz", "--img-size"), help="side of a detector's input")] = None,
    no_verify: Annotated[bool, Parameter(help="keep the files even if they answer differently")] = False,
    out: Annotated[str | None, Parameter(help="the folder; export/ of a run, else a new run folder")] = None,
    exist_ok: Annotated[bool, Parameter(help="write over files that are there")] = False,
    arch: options.Arch = None,
    seed: options.Seed = None,
    project: options.Project = "runs",
    name: options.Name = None,
) -> int:
    """A model as .onnx and OpenVINO files, each compared with the model."""
    from featherweight import sources, verbs

    screen = current()
    chosen = options.words("--format", formats, FORMATS)
    source = sources.find(model, backend="torch", arch=arch)
    folder = Path(out) if out else source.run / "export" if source.run else None
    folder = folder or Path(project) / (name or options.fresh_name(project, "export", "")) / "export"
    if not exist_ok and any((folder / file).exists() for file in verbs.shipping.NAMES.values()):
        text = f"{shown(folder)} holds exported files already; add --exist-ok, or choose another folder"
        raise OptionError("--out", text)
    asked = {"data": data, "quantize": quantize, "images": images, "half": half, "arch": arch, "seed": seed}
    detection = {"form": form, "multi_label": multi_label, "max_detections": max_detections, "dynamic": dynamic}
    asked |= {**detection, "image_size": imgsz}
    rows = verbs.export(model, folder, formats=chosen, verify=not no_verify, **options.given(asked))
    for row in rows:
        screen.answer(_parity(folder, row, row.get("of") or ("images" if data else "pictures of noise")))
    screen.emit([{**row, "file": str(folder / row["file"])} for row in rows])
    first = shown(folder / rows[0]["file"])
    screen.next(f"featherweight predict {first} --source PICTURE", f"featherweight bench {shown(model)} {first}")
    return 0


def _parity(folder: Path, row: dict[str, Any], what: str) -> str:
    ratio = "equal" if row["sqnr_db"] is None else f"{row['sqnr_db']:.0f} dB"
    parity = f"{100 * row['agreement']:.1f} % same answers, {ratio}, max |Δ| {row['max_abs']:.1e}"
    size = f"{row['size_bytes'] / 1e6:.2f} MB"
    lost = f"  AP {100 * row['AP']:.1f} %, in float {100 * row['AP_float']:.1f} %" if "AP" in row else ""
    return f"✓ {shown(folder / row['file'])}  {size}  {row['dtype']}  {parity} on {row['images']} {what}{lost}"


VERBS = (val, export, bench)
