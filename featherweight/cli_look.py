# SPDX-License-Identifier: Apache-2.0
"""The verbs that only look: report, list, info, doctor, data check."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from featherweight import __version__
from featherweight import cli_options as options
from featherweight.cli_data import check as check
from featherweight.console import bar, columns, current, line
from featherweight.errors import InputError, OptionError, clean, closest, shown

KINDS = ("models", "methods", "data")
OPTIONAL = (  # package, its extra, what it is for
    ("torch", "torch", "train, compress, demo"),
    ("onnxruntime", "", "run .onnx files"),
    ("onnx", "onnx", "export"),
    ("openvino", "openvino", "run and export .xml files"),
    ("timm", "timm", "timm:NAME models"),
    ("transformers", "text", "models of the transformers library"),
    ("pyarrow", "parquet", "parquet data"),
    ("uvicorn", "serve", "featherweight serve"),
    ("scikit-learn", "demo", "the digits of the demo"),
    ("scikit-image", "demo", "the photographs of the demo"),
)
LONGEST = 12  # classes that data check and info list by name


def report(
    *runs: Annotated[str, Parameter(name="RUN", help="a run folder, such as runs/latest")],
    out: Annotated[str | None, Parameter(help="where to write; for one run its own folder")] = None,
) -> int:
    """Build a run's page again, or lay several runs side by side."""
    from featherweight import report as reports

    screen = current()
    if not runs:
        raise OptionError("report", "needs a RUN, such as runs/latest")
    folders = [_run_folder(run) for run in runs]
    found = {run: reports.load(folder) for run, folder in zip(runs, folders, strict=True)}
    if len(runs) == 1:
        page = reports.write(found[runs[0]], out or folders[0])
        if not screen.quiet:
            reports.show(found[runs[0]].stages, file=screen.stream)
    else:
        from featherweight.compare import compare

        place = Path(out) if out else options.new_folder("runs", None, "report")
        page = place / "compare.html"
        for finding in compare(folders, folder=place).findings:
            screen.answer(line("", finding))
    screen.answer(line("report", shown(page)))
    screen.emit({"report": str(page), "runs": {run: value.to_dict() for run, value in found.items()}})
    screen.next(f"featherweight bench {' '.join(shown(run) for run in runs)}")
    return 0


def _run_folder(run: str) -> Path:
    from featherweight.files import pointed

    path = Path(run)
    path = pointed(path) if path.is_symlink() or (path.is_file() and path.name == "latest") else path
    if not path.exists():
        raise InputError(run, "missing", "no such run; runs are folders such as runs/latest")
    return path


def list_(
    what: Annotated[str, Parameter(name=("--what",), help="models, methods or data")] = "models",
) -> int:
    """What there is: models, methods or data."""
    screen = current()
    if what not in KINDS:
        raise OptionError("list", f"no {what!r}; {closest(what, KINDS)}Known: {', '.join(KINDS)}")
    rows = {"models": _models, "methods": _methods, "data": _data}[what]()
    screen.answer(columns(rows, left=len(rows[0])))
    screen.emit([dict(zip(rows[0], row, strict=True)) for row in rows[1:]])
    nexts = {
        "models": ("featherweight info vit_digits", "featherweight train vit_digits --data digits"),
        "methods": ("featherweight compress MODEL --data DATA",),
        "data": ("featherweight data check YOUR_FOLDER",),
    }
    screen.next(*nexts[what])
    return 0


def _models() -> list[tuple[str, ...]]:
    from featherweight.models import zoo
    from featherweight.tables import millions

    rows = [("name", "family", "input", "M params", "MMACs", "weights", "what", "as reported")]
    counts = zoo.counts()
    for name, entry in zoo.ZOO.items():
        size = " x ".join(map(str, entry.preprocess.size))
        found = ("top-1", entry.reported_top1) if entry.reported_ap is None else ("AP", entry.reported_ap)
        reported = f"{found[0]} {found[1]} % ({entry.source})" if found[1] else ""
        params, macs = f"{counts[name]['params'] / 1e6:.2f}", millions(counts[name]["macs"])
        family = entry.family.partition(":")[0]
        rows.append((name, family, size, params, macs, "shipped" if entry.shipped else "", entry.says, reported))
    return [*rows, ("timm:NAME", "timm", "", "", "", "", "any model of timm's, where it is installed", "")]


def _methods() -> list[tuple[str, ...]]:
    from featherweight.steps import STEPS

    return [
        ("step", "what"),
        *((name, (step.__doc__ or "").strip().partition("\n")[0]) for name, step in STEPS.items()),
    ]


def _data() -> list[tuple[str, ...]]:
    return [
        ("data", "what"),
        ("digits", "1,797 real handwritten digits on photographs; made on the spot, offline"),
        ("FOLDER", "train/CLASS/*.jpg and val/CLASS/*.jpg, or CLASS/*.jpg alone"),
        ("FILE.parquet", "columns image and label, or a folder of such files"),
        ("FILE.csv", "columns path and label"),
        ("train-{0000..0099}.tar", "WebDataset shards with .jpg or .png and .cls or .json, or a folder of them"),
        ("FOLDER", "what save_to_disk of the Hugging Face datasets library wrote"),
        ("digits-det", "1 to 4 of these digits on a photograph, with boxes; for detectors"),
        ("data.yaml", "YOLO: pictures and text files of boxes or outlines; for detectors"),
        ("FOLDER or FILE.json", "COCO: annotations/instances_train*.json and pictures; for detectors"),
        ("FOLDER", "Pascal VOC: Annotations/*.xml and JPEGImages/; for detectors"),
    ]


def info(
    model: options.Model,
    *,
    arch: options.Arch = None,
    backend: options.Backend = "auto",
    all_layers: Annotated[bool, Parameter(name="--all", help="every layer, not only the largest")] = False,
) -> int:
    """Layers, parameters, multiply-adds; inputs and outputs of a file."""
    from featherweight import verbs

    screen = current()
    found = verbs.info(model, arch=arch, backend=backend)
    untrained = ", untrained" if found.get("trained") is False else ""
    screen.say(line("model", f"{shown(model)}: {clean(found['kind'])}, {found['backend']}{untrained}"))
    for word, text in _facts(found):
        screen.answer(line(word, text))
    screen.answer("\n" + (_layers(found, all_layers) if "layers" in found else _ports(found)))
    screen.emit(found)
    again = f"featherweight compress {shown(model)} --data YOUR_DATA --max-drop 1%"
    screen.next(f"featherweight bench {shown(model)}", again)
    return 0


def _facts(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """A word and what belongs to it."""
    from featherweight.tables import millions, size

    if "params" in found:
        inputs = " x ".join(map(str, found["resolution"]))
        macs = f"{millions(found['macs'])} M multiply-adds at {inputs}"
        yield "size", f"{found['params'] / 1e6:.2f} M parameters, {macs}"
    if fused := found.get("fused"):
        yield "fused", f"{fused['params'] / 1e6:.2f} M parameters, {millions(fused['macs'])} M multiply-adds"
    if found["size_bytes"]:
        yield "file", size(found["size_bytes"])
    if found.get("edits"):
        runs = [(kind, len(list(same))) for kind, same in groupby(found["edits"])]
        yield "edits", ", ".join(kind if count == 1 else f"{count} x {kind}" for kind, count in runs)
    if found["classes"]:
        names = ", ".join(shown(name, limit=30) for name in found["classes"][:LONGEST])
        yield "classes", f"{len(found['classes'])}: {names}" + (" ..." if len(found["classes"]) > LONGEST else "")


def _ports(found: dict[str, Any]) -> str:
    """Inputs and outputs of a file."""
    kinds = {"input": found["inputs"], "output": found["outputs"]}
    ports = [(kind, p["name"], p["dtype"], str(p["shape"])) for kind, many in kinds.items() for p in many]
    return columns(ports, left=4)


def _layers(found: dict[str, Any], everything: bool) -> str:
    """The layers with bars of their share of the multiply-adds; the largest dozen unless everything is wanted."""
    from featherweight.tables import millions

    layers = found["layers"]
    largest = sorted(layers, key=lambda layer: (layer["macs"], layer["params"]), reverse=True)
    chosen = layers if everything or len(layers) <= 16 else [layer for layer in layers if layer in largest[:12]]
    most = max((layer["macs"] for layer in layers), default=0) or 1
    rows = [("layer", "kind", "params", "M macs", "")]
    rows += [
        (
            shown(one["path"] or "(model)", limit=50),
            one["kind"],
            f"{one['params']:,}",
            millions(one["macs"]),
            bar(one["macs"] / most),
        )
        for one in chosen
    ]
    text = columns([row[:4] for row in rows], left=2).split("\n")
    drawn = "\n".join(f"{left}  {row[4]}".rstrip() for left, row in zip(text, rows, strict=True))
    return drawn if len(chosen) == len(layers) else f"{drawn}\n  and {len(layers) - len(chosen)} smaller ones (--all)"


def doctor() -> int:
    """What this machine and installation can do."""
    from importlib.util import find_spec

    from featherweight import measure
    from featherweight.runtime.session import available_threads

    screen = current()
    machine = measure.machine()
    packages = [(name, _version(name) or "not installed", _remedy(name, extra, use)) for name, extra, use in OPTIONAL]
    screen.answer(
        line("cpu", f"{machine['cpu']}, {available_threads()} threads for this process, load {machine['load']}")
    )
    flags = machine["flags"]
    fast = (
        "int8 is fast here"
        if any("vnni" in f or "amx_int8" in f or f in ("i8mm", "asimddp") for f in flags)
        else "int8 may not be faster here"
    )
    screen.answer(line("flags", f"{' '.join(flags) or 'none that matter'} ({fast})"))
    screen.answer(line("python", f"{machine['python']} on {machine['system']}, featherweight {__version__}"))
    screen.answer(
        line(
            "offline",
            "nothing is downloaded and nothing is sent: telemetry of ONNX Runtime and OpenVINO is switched off",
        )
    )
    screen.answer("\n" + columns([("package", "version", "for"), *packages], left=3))
    lacking = [name for name, version, _ in packages if version == "not installed"]
    screen.emit(
        {
            **machine,
            "packages": {name: _version(name) or None for name, _, _ in OPTIONAL},
            "telemetry": "off",
            "missing": lacking,
        }
    )
    screen.next("featherweight demo" if find_spec("torch") else "featherweight predict MODEL.onnx --source PICTURE")
    return 0


def _version(package: str) -> str:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _remedy(package: str, extra: str, use: str) -> str:
    if _version(package):
        return use
    return f"{use}: pip install " + (f"'featherweight[{extra}]'" if extra else package)


VERBS = (report, list_, info, doctor)
