# SPDX-License-Identifier: Apache-2.0
"""What deployed models take on this machine: DeiT-S and yolov7_tiny against others, start, size, decoding, preparing.

    python benchmarks/device.py                             what is missing; started again, it goes on
    python benchmarks/device.py --part deit,yolo            some of the parts
    python benchmarks/device.py --data FOLDER               pictures of a detection set for yolov7_tiny
    python benchmarks/device.py --also YOLO11n=yolo11n.onnx another detector's file, raced beside them
    python benchmarks/device.py --tiny --results FILE       small models, to see that it runs; docs are left alone
    python benchmarks/device.py --table                     no measuring: the page alone

Runners of a race take turns; a ratio is the median over the turns of two times that stand beside each other, with its
95 % interval. Weights are random. Rows are kept in docs/measured/device.json as they come, and docs/device.md is
written from there. About twenty minutes on an idle machine; on a busy one the rows say so (`load`).
"""

from __future__ import annotations

import argparse
import itertools
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import device_models as models
import device_page
import numpy as np
import torch
from results import ROOT, Rows

from featherweight import floors, fresh, measure, roofline, sources
from featherweight.latency import Times, race
from featherweight.pictures import load
from featherweight.runtime.pictures import open_pictures
from featherweight.runtime.preprocess import Preprocess
from featherweight.runtime.session import open_session

RESULTS = ROOT / "docs" / "measured" / "device.json"
PARTS = ("machine", "size", "jpeg", "prepare", "deit", "yolo", "start", "streams", "copies")
Row = tuple[str, Callable[[], dict[str, Any]]]


class Bench:
    """The parts; each yields the rows it has, to be measured when asked for."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self.folder, self.options = folder, options
        self.scale = models.TINY if options.tiny else models.Scale()
        self.made: dict[str, Any] = {}

    def deit_models(self) -> dict[str, models.Racer]:
        if "deit" not in self.made:
            deit = models.Deit(self.folder, self.scale)
            self.made["deit"], self.made["deit shares"] = deit.racers(), deit.shares
        found: dict[str, models.Racer] = self.made["deit"]
        return found

    def yolo_models(self) -> models.Yolo:
        if "yolo" not in self.made:
            self.made["yolo"] = models.Yolo(self.folder, self.scale, self.options.data)
        found: models.Yolo = self.made["yolo"]
        return found

    def raced(self, runs: Mapping[str, Any], baseline: str, *others: str) -> dict[str, Any]:
        torch.set_num_threads(self.options.threads)
        times = race(runs, baseline=baseline, repeats=40, warmup=2, budget_s=self.options.seconds)
        return kept(times, [baseline, *others])

    def machine(self) -> Iterator[Row]:
        def peaks() -> dict[str, Any]:
            return roofline.measured(threads=self.options.threads).to_dict()

        def empty() -> dict[str, Any]:
            return {name: one.median_ms for name, one in floors.floors(threads=self.options.threads).items()}

        yield "roofline", peaks
        yield "floor", empty

    def deit(self) -> Iterator[Row]:
        for batch in self.options.batch:

            def measured(batch: int = batch) -> dict[str, Any]:
                known: dict[str, Any] = {"batch": batch, "resolution": (self.scale.side,) * 2}
                known |= {"threads": self.options.threads, "fixed": True}
                runs = {
                    name: measure.runnable(one.source, backend=one.backend, precision=one.precision, **known)
                    for name, one in self.deit_models().items()
                }
                return {**self.raced(runs, models.EAGER, models.NNCF), "macs": self.made["deit shares"]}

            yield f"deit batch {batch}", measured

    def yolo(self) -> Iterator[Row]:
        def measured() -> dict[str, Any]:
            yolo = self.yolo_models()
            calls = yolo.racers(models.also_files(self.options.also), self.options.threads)
            runs = {name: _over(call, yolo.jpegs) for name, call in calls.items()}
            about = {"macs": yolo.shares, "picture": list(yolo.pictures[0].shape[:2]), "side": yolo.side}
            return {**self.raced(runs, models.EAGER_YOLO, models.QUICK_YOLO), **about}

        others = " ".join(pair.partition("=")[0] for pair in self.options.also)
        yield "yolo end to end" + (f" with {others}" if others else ""), measured

    def start(self) -> Iterator[Row]:
        for backend, warm in (("onnxruntime", False), ("openvino", False), ("onnxruntime", True), ("openvino", True)):

            def measured(backend: str = backend, warm: bool = warm) -> dict[str, Any]:
                source = sources.find(self.deit_models()[models.COMPOSED].source, backend=backend)
                cache = str(self.folder / "cache") if warm else None
                known: dict[str, Any] = {"threads": self.options.threads, "cache": cache}
                tries = [fresh.started(source, **known)._asdict() for _ in range(6)][1:]
                return {key: float(np.median([one[key] for one in tries])) for key in fresh.Start._fields}

            yield f"start {backend}{', compiled before' if warm else ''}", measured

    def size(self) -> Iterator[Row]:
        yield "size", installed

    def jpeg(self) -> Iterator[Row]:
        sizes = ((480, 640), (1080, 1920)) if not self.options.tiny else ((96, 128),)
        for height, width in sizes:
            yield f"jpeg {width}x{height}", lambda h=height, w=width: self.decoded(h, w)

    def decoded(self, height: int, width: int) -> dict[str, Any]:
        data = models._coded(_photograph(height, width))
        return self.raced({name: lambda f=f: f(data) for name, f in decoders().items()}, "Pillow")

    def prepare(self) -> Iterator[Row]:
        yield "prepare 1080x1920", lambda: self.prepared(1080, 1920)

    def prepared(self, height: int, width: int) -> dict[str, Any]:
        """From pixels to the answer of yolov7_tiny's first layers: prepared in NumPy, normalized, all in the graph."""
        yolo, picture = self.yolo_models(), _photograph(height, width)
        path = yolo.file("dense", yolo.model)
        known: dict[str, Any] = {"threads": self.options.threads, "backend": "openvino"}
        plain, prepare = open_session(path, **known), yolo.preprocess
        inside = open_pictures(path, preprocess=prepare, **known)
        quick = open_pictures(path, preprocess=prepare, quick=True, **known)
        frame = open_pictures(path, preprocess=prepare, frame=(height, width), **known)
        name = plain.inputs[0].name
        ready = prepare(picture)[None]
        return self.raced(
            {
                "prepared in NumPy": lambda: plain.run({name: prepare(picture)[None]}),
                "normalized in the graph": lambda: inside.run([picture]),
                "resized by OpenCV, normalized in the graph": lambda: quick.run([picture]),
                "resized and normalized in the graph": lambda: frame.run([picture]),
                "the model alone": lambda: plain.run({name: ready}),
            },
            "prepared in NumPy",
        )

    def streams(self) -> Iterator[Row]:
        for backend in ("openvino", "onnxruntime"):

            def measured(backend: str = backend) -> dict[str, Any]:
                path = self.deit_models()[models.COMPOSED].source
                known: dict[str, Any] = {"threads": self.options.threads, "backend": backend, "calls": 16}
                runs = {mode: measure.runnable(path, mode=mode, **known) for mode in ("latency", "throughput")}
                runs["one batch of 16"] = measure.runnable(path, batch=16, **{**known, "calls": 1})
                return self.raced(runs, "latency")

            yield f"streams {backend}, 16 pictures", measured

    def copies(self) -> Iterator[Row]:
        for backend in ("openvino", "onnxruntime"):

            def measured(backend: str = backend) -> dict[str, Any]:
                yolo = self.yolo_models()
                path = yolo.file("dense", yolo.model).with_suffix(".xml" if backend == "openvino" else ".onnx")
                opened = open_session(path, backend=backend, threads=self.options.threads)
                feed = {opened.inputs[0].name: yolo.images[:1].numpy()}
                copied = {opened.inputs[0].name: yolo.images[:1].numpy()}
                return self.raced(
                    {
                        "copied in and out": lambda: opened.run({k: v.copy() for k, v in copied.items()}),
                        "answers copied": lambda: opened.run(feed),
                        "nothing copied": lambda: opened.run(feed, copy=False),
                    },
                    "copied in and out",
                )

            yield f"copies {backend}", measured


def kept(times: Times, baselines: Sequence[str]) -> dict[str, Any]:
    """What is kept of a race: times, and ratios over each baseline."""
    rows = {}
    for name, found in times.items():
        over = {base: [ratio, *interval] for base in baselines for ratio, interval in [times.ratio(name, base)]}
        times_of = {key: getattr(found, key) for key in ("median_ms", "p10_ms", "p90_ms", "cpu_ms")}
        rows[name] = {**times_of, "dtype": found.conditions.dtype, "over": over}
    return {"load": max(found.conditions.load for found in times.values()), "rows": rows}


def _over(call: Callable[[bytes], Any], jpegs: Sequence[bytes]) -> Callable[[], Any]:
    """Each call takes the next picture."""
    turn = itertools.cycle(jpegs)
    return lambda: call(next(turn))


def decoders() -> dict[str, Callable[[bytes], Any]]:
    """From bytes to RGB, by what is installed."""
    import io

    from PIL import Image

    found: dict[str, Callable[[bytes], Any]] = {
        "Pillow": lambda data: np.array(Image.open(io.BytesIO(data)).convert("RGB")),
        "featherweight": load,
    }
    try:
        import simplejpeg

        found["simplejpeg"] = lambda data: simplejpeg.decode_jpeg(data, "RGB")
    except ImportError:
        pass
    try:
        import cv2

        found["OpenCV"] = lambda data: cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), 1), cv2.COLOR_BGR2RGB)
    except ImportError:
        pass
    return found


def _photograph(height: int, width: int) -> np.ndarray:
    """Something as smooth as a photograph."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return Preprocess(size=(height, width), resize="exact").fit(small)


def installed() -> dict[str, Any]:
    """Bytes of every distribution that `pip install featherweight` brings, and of torch beside them."""
    from packaging.requirements import Requirement

    queue, sizes = ["featherweight", "torch"], dict[str, int]()
    wanted: dict[str, int] = {}
    while queue:
        name = re.sub(r"[-_.]+", "-", queue.pop(0)).lower()
        if name in sizes:
            continue
        found = metadata.distribution(name)
        sizes[name] = sum(Path(str(file.locate())).stat().st_size for file in found.files or () if _there(file))
        if name != "torch":
            wanted[name] = sizes[name]
            needed = [Requirement(text) for text in found.requires or ()]
            queue += [one.name for one in needed if one.marker is None or one.marker.evaluate({"extra": ""})]
    wanted["featherweight"] = measure.size(Path(sys.modules["featherweight"].__file__ or "").parent)
    return {"total": sum(wanted.values()), "packages": wanted, "torch alone": sizes["torch"]}


def _there(file: metadata.PackagePath) -> bool:
    return Path(str(file.locate())).is_file()


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--part", type=lambda text: text.split(","), default=list(PARTS), help=", ".join(PARTS))
    parser.add_argument("--batch", type=lambda text: [int(word) for word in text.split(",")], default=[1, 16])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each race")
    parser.add_argument("--data", help="a detection set; photographs of scikit-learn without")
    parser.add_argument("--also", action="append", default=[], help="NAME=FILE of another detector")
    parser.add_argument("--tiny", action="store_true", help="small models and pictures")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="no row begins after so many")
    parser.add_argument("--again", action="store_true", help="rows that are there already, too")
    parser.add_argument("--table", action="store_true", help="measure nothing")
    options = parser.parse_args(argv)
    if unknown := set(options.part) - set(PARTS):
        parser.error(f"--part: no {sorted(unknown)}; known: {', '.join(PARTS)}")
    if options.tiny and options.results == RESULTS:
        parser.error("--tiny goes with --results FILE: what it measures is not for the docs")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    options, began = parsed(argv), time.monotonic()
    rows = Rows(options.results)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), options)
        for part in [] if options.table else options.part:
            for key, measured in getattr(bench, part)():
                if key in rows and not options.again:
                    continue
                if time.monotonic() - began > 60 * options.minutes:
                    print("the time is up; started again, it goes on from here")
                    return 0
                rows.add(key, {"when": time.strftime("%Y-%m-%d"), "threads": options.threads, **measured()})
    if options.results == RESULTS:
        device_page.write(rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
