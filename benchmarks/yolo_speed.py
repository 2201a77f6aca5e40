# SPDX-License-Identifier: Apache-2.0
"""How fast yolov7_tiny is on this machine: a naive graph, ours, and its files in ONNX Runtime and OpenVINO.

    python benchmarks/yolo_speed.py                              640 x 640, batch 1 and 8
    python benchmarks/yolo_speed.py --data FOLDER                calibrated and checked on a detection set's pictures
    python benchmarks/yolo_speed.py --also "YOLO11n=yolo11n.onnx"  another detector's file, raced beside them
    python benchmarks/yolo_speed.py --model FOLDER --data FOLDER a trained model finds the boxes of the end-to-end rows
    python benchmarks/yolo_speed.py --table                      no measuring: the tables alone

All runners of a batch take turns; a ratio is the median over the turns of two times that stand beside each other, with
its 95 % interval. Weights are random: they change no time but that of suppression, for which the end-to-end
rows can take a trained model. Results are kept in docs/measured/yolo_speed.json, and the
tables of docs/studies/yolo_speed.md are written from there. About ten minutes, with nothing else running.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import re
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from featherweight import artifact, files, measure
from featherweight.convs import ConvNorm
from featherweight.export import detector
from featherweight.export.check import describe
from featherweight.latency import Times, race
from featherweight.methods.fuse import fuse
from featherweight.models import zoo
from featherweight.models.yolov7 import YOLOv7
from featherweight.pictures import load
from featherweight.runners_file import FileRunner
from featherweight.runtime.nms import Nms
from featherweight.runtime.session import open_session
from featherweight.sources import Source
from featherweight.verbs.shipping_detection import pictures_of, quantized, scenes_of

ROOT = Path(__file__).resolve().parents[1]
RESULTS, PAGE = ROOT / "docs" / "measured" / "yolo_speed.json", ROOT / "docs" / "studies" / "yolo_speed.md"
BLOCK = re.compile(r"(<!-- speed:begin (\w+) -->\n)(.*?)(<!-- speed:end -->)", re.DOTALL)
SIZE = 640
NAIVE, PLAIN, FUSED, ORT = "naive graph, torch", "ours, torch", "ours fused, torch", "ONNX Runtime, fp32"
CALIBRATION = 32
FRAMES = 60


class Naive(nn.Module):
    """The graph as it stands in the table, one plain layer after the other, pools beside each other; all outputs kept.

    What anyone would write first. Its answers are those of the model it is made of.
    """

    def __init__(self, model: YOLOv7) -> None:
        super().__init__()
        self.rows, self.head = model.graph.rows, model.head
        self.lead = model.graph.lead
        self.layers = nn.ModuleList(
            nn.Sequential(m.conv, m.bn, m.act) if isinstance(m, ConvNorm) else _plain(row, m)
            for row, m in zip(self.rows, model.model, strict=False)
        )

    def forward(self, x: Tensor) -> Any:
        outputs: list[Tensor] = []
        for row, layer in zip(self.rows, self.layers, strict=True):
            given = [x if source < 0 else outputs[source] for source in row.sources]
            outputs.append(torch.cat(given, 1) if row.block == "cat" else layer(*given))
        return self.head([outputs[row] for row in self.lead])


def _plain(row: Any, module: nn.Module) -> nn.Module:
    if row.block == "sp":
        return nn.MaxPool2d(row.kernel, 1, row.kernel // 2)
    if row.block == "up":
        return nn.Upsample(scale_factor=2.0)
    return module


def models(image: Tensor) -> dict[str, nn.Module]:
    """Naive, plain and fused, which answer alike."""
    torch.manual_seed(0)
    plain = zoo.create("yolov7_tiny").eval()
    naive, merged = Naive(plain).eval(), fuse(plain, image)
    with torch.inference_mode():
        for other in (naive, merged):
            for ours, theirs in zip(plain(image), other(image), strict=True):
                torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)
    return {NAIVE: naive, PLAIN: plain, FUSED: merged}


def written(merged: nn.Module, images: Tensor, folder: Path) -> dict[str, tuple[Path, str, str]]:
    """Runner's name -> file, backend, precision."""
    folder.mkdir(parents=True, exist_ok=True)
    about = describe(task="object-detection", preprocess=zoo.entry("yolov7_tiny").preprocess)
    detector.export(merged, folder / "float.onnx", images[:2], dynamic=False, metadata=about)
    int8 = quantized(merged, images[:CALIBRATION])
    detector.export(int8, folder / "int8.onnx", images[:2], dynamic=False, metadata=about)
    return {
        ORT: (folder / "float.onnx", "onnxruntime", "f32"),
        "ONNX Runtime, int8": (folder / "int8.onnx", "onnxruntime", "f32"),
        "OpenVINO, fp32": (folder / "float.onnx", "openvino", "f32"),
        "OpenVINO, bf16": (folder / "float.onnx", "openvino", "bf16"),
        "OpenVINO, int8": (folder / "int8.onnx", "openvino", "f32"),
        "OpenVINO, int8 and bf16": (folder / "int8.onnx", "openvino", "bf16"),
    }


def raced(
    torch_models: Mapping[str, nn.Module], exported: Mapping[str, tuple[Path, str, str]], batch: int, options: Any
) -> dict[str, Any]:
    """One race of everything at one batch."""
    known: dict[str, Any] = {"batch": batch, "resolution": (SIZE, SIZE), "threads": options.threads}
    runs = {name: measure.runnable(model, **known) for name, model in torch_models.items()}
    for name, (path, backend, precision) in exported.items():
        runs[name] = measure.runnable(path, backend=backend, precision=precision, **known)
    times = race(runs, repeats=options.turns, warmup=2, budget_s=options.seconds)
    return kept(times)


def kept(times: Times) -> dict[str, Any]:
    over = {name: times.ratio(name, NAIVE) for name in times}
    to_ort = {name: times.ratio(name, ORT) for name in times}
    return {
        name: {
            "median_ms": found.median_ms, "p10_ms": found.p10_ms, "p90_ms": found.p90_ms,
            "dtype": found.conditions.dtype, "load": found.conditions.load, "turns": found.conditions.repeats,
            "over_naive": [over[name][0], *over[name][1]], "over_ort": [to_ort[name][0], *to_ort[name][1]],
        }
        for name, found in times.items()
    }  # fmt: skip


def end_to_end(
    exported: Mapping[str, tuple[Path, str, str]], pictures: Sequence[NDArray[np.uint8]], threads: int
) -> dict[str, Any]:
    """Milliseconds from a JPEG file's bytes to boxes in its pixels: decoded, prepared, answered, suppressed."""
    coded = []
    for picture in pictures:
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "JPEG", quality=90)
        coded.append(buffer.getvalue())
    rows = {}
    for name, (path, backend, precision) in exported.items():
        runner = FileRunner(Source(str(path), backend, path), threads=threads)
        runner.session = open_session(path, backend=backend, threads=threads, precision=precision)
        parts: list[list[float]] = []
        boxes: list[int] = []
        for i in range(FRAMES + 3):
            marks = [time.perf_counter()]
            pixels = load(coded[i % len(coded)])
            marks.append(time.perf_counter())
            prepared = runner.preprocess(pixels)[None]
            placement = runner.preprocess.place(*pixels.shape[:2])
            marks.append(time.perf_counter())
            answer = runner.session.run({"images": prepared})["predictions"]
            marks.append(time.perf_counter())
            found = placement.detections(Nms()(answer[0]))
            boxes.append(len(found))
            marks.append(time.perf_counter())
            parts.append([1000 * (b - a) for a, b in itertools.pairwise(marks)])
        medians = [statistics.median(column) for column in zip(*parts[3:], strict=True)]
        total = statistics.median(sum(row) for row in parts[3:])
        rows[name] = {
            "decode_ms": medians[0], "prepare_ms": medians[1], "model_ms": medians[2], "suppress_ms": medians[3],
            "total_ms": total, "around_share": 1 - medians[2] / sum(medians), "boxes": statistics.median(boxes),
            "picture": list(pictures[0].shape[:2]),
        }  # fmt: skip
    return rows


def table(found: Mapping[str, Any]) -> str:
    """A row for each runner, a column pair for each batch."""
    batches = sorted(found["races"], key=int)
    heads = [f"batch {b}, ms | over the naive graph | over ONNX Runtime fp32" for b in batches]
    lines = [f"| | {' | '.join(heads)} |", f"| --- |{' ---: | ---: | ---: |' * len(batches)}"]
    for name in found["races"][batches[0]]:
        cells = []
        for b in batches:
            row = found["races"][b][name]
            cells += [f"{row['median_ms']:.1f}", _ratio(row["over_naive"]), _ratio(row["over_ort"])]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _ratio(found: Sequence[float]) -> str:
    return f"{found[0]:.2f}× ({found[1]:.2f}–{found[2]:.2f})"


def frames(found: Mapping[str, Any]) -> str:
    """The end-to-end rows."""
    heads = "| | decode | prepare | model | suppress | boxes | frames/s | around the model |"
    lines = [heads, "| --- |" + " ---: |" * 7]
    for name, row in found["frames"].items():
        parts = [f"{row[key]:.1f}" for key in ("decode_ms", "prepare_ms", "model_ms", "suppress_ms")]
        parts.append(f"{row['boxes']:.0f}")
        share = f"{100 * row['around_share']:.0f} %"
        lines.append(f"| {name} | {' | '.join(parts)} | {1000 / row['total_ms']:.1f} | {share} |")
    return "\n".join(lines)


def filled(text: str, found: Mapping[str, Any]) -> str:
    """The page with its blocks written anew."""
    here = found["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in here["versions"].items())
    load = max(row["load"] for rows in found["races"].values() for row in rows.values())
    what = f"{here['cpu']}, {here['cores']} cores, {found['threads']} threads, {', '.join(here['flags'])}; {versions}."
    blocks = {"table": table(found), "frames": frames(found), "machine": f"{what} Largest load before a race: {load}."}
    return BLOCK.sub(lambda m: f"{m[1]}{blocks[m[2]]}\n{m[4]}", text)


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", help="a detection set; photographs of scikit-learn without")
    parser.add_argument("--model", type=Path, help="a trained YOLOv7, in our folder form, for the end-to-end rows")
    parser.add_argument("--batch", type=lambda text: [int(word) for word in text.split(",")], default=[1, 8])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=150.0, help="of each race")
    parser.add_argument("--also", action="append", default=[], help="NAME=FILE.onnx, raced in both runtimes")
    parser.add_argument("--frames", action="store_true", help="measure the end-to-end rows alone, keep the races")
    parser.add_argument("--table", action="store_true", help="measure nothing")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    options = parsed(argv)
    if not options.table:
        files.publish(RESULTS, (json.dumps(measured(options), indent=1, ensure_ascii=False) + "\n").encode())
    found = json.loads(RESULTS.read_text(encoding="utf-8"))
    files.publish(PAGE, filled(PAGE.read_text(encoding="utf-8"), found).encode())
    print(table(found), frames(found), sep="\n\n")
    return 0


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """Everything, once."""
    torch.set_num_threads(options.threads)
    scenes = scenes_of(options.data)
    pictures = list(pictures_of(None if scenes is None else scenes.train, CALIBRATION))
    preprocess = zoo.entry("yolov7_tiny").preprocess
    images = torch.from_numpy(np.stack([preprocess(picture) for picture in pictures]))
    with tempfile.TemporaryDirectory() as folder:
        torch_models = models(images[:1])
        exported = written(torch_models[FUSED], images, Path(folder))
        shown = exported
        if options.model is not None:
            trained = fuse(artifact.load(options.model).eval(), images[:1])
            shown = written(trained, images, Path(folder) / "trained")
        frame_rows = end_to_end(shown, pictures, options.threads)
        if options.frames:
            return {**json.loads(RESULTS.read_text(encoding="utf-8")), "frames": frame_rows}
        for pair in options.also:
            name, _, path = pair.partition("=")
            for backend, precision in (("onnxruntime", "f32"), ("openvino", "f32"), ("openvino", "bf16")):
                exported[f"{name}, {backend}, {precision}"] = (Path(path), backend, precision)
        races = {str(batch): raced(torch_models, exported, batch, options) for batch in options.batch}
    when = {"format": 1, "when": time.strftime("%Y-%m-%d"), "threads": options.threads, "machine": measure.machine()}
    return {**when, "races": races, "frames": frame_rows}


if __name__ == "__main__":
    raise SystemExit(main())
