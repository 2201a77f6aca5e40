# SPDX-License-Identifier: Apache-2.0
"""The models of benchmarks/device.py as files, made once: DeiT-S in compositions, yolov7_tiny with its pictures."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from featherweight import counting
from featherweight.export import detector, nncf, onnx, openvino
from featherweight.export.check import describe
from featherweight.methods import dynamicvit, prune
from featherweight.methods.channels import prune_channels
from featherweight.methods.fuse import fuse
from featherweight.methods.quantize import quantize
from featherweight.models import zoo
from featherweight.models.vit import VisionTransformer
from featherweight.pictures import load
from featherweight.runners_torch import TorchRunner
from featherweight.runtime.maps import maps_in
from featherweight.runtime.nms import Nms
from featherweight.runtime.pictures import fitting, open_pictures
from featherweight.runtime.preprocess import Preprocess
from featherweight.runtime.session import open_session
from featherweight.surgery import apply
from featherweight.tasks.classification import Classification
from featherweight.verbs.shipping_detection import pictures_of, quantized, scenes_of

KEEP, AT = 0.7, (3, 6, 9)
MLP, HEADS = 0.3, 0.34  # cut: two of six heads, three tenths of the neurons
YOLO_CUT = 0.16  # of the channels, which leaves about 0.7 of the multiply-adds
CALIBRATION = 32
COMPOSED = "tokens 0.7, MLP and heads cut, int8"
NNCF = "dense, int8 of NNCF"
EAGER = "dense, torch eager fp32"
EAGER_YOLO, QUICK_YOLO = "torch eager fp32", "torch eager fp32, resized by OpenCV"


class Scale(NamedTuple):
    """How large everything is: the real sizes, or those that only show that it runs."""

    deit: str = "deit_small_patch16_224"
    side: int = 224
    yolo_side: int = 640
    images: int = CALIBRATION


TINY = Scale("deit_tiny_patch16_224", 64, 128, 8)


class Racer(NamedTuple):
    """A file in a runtime; `source` may be a module."""

    source: Any
    backend: str | None = None
    precision: str | None = None


class Deit:
    """DeiT-S and what is made of it, exported into a folder."""

    def __init__(self, folder: Path, scale: Scale) -> None:
        self.folder, self.scale = folder, scale
        torch.manual_seed(0)
        self.dense: VisionTransformer = zoo.create(scale.deit, image_size=(scale.side, scale.side)).eval()
        self.images = torch.randn(scale.images, 3, scale.side, scale.side)
        self.batches = [{"image": self.images[i : i + 8]} for i in range(0, len(self.images), 8)]
        self.shares: dict[str, float] = {}

    def racers(self) -> dict[str, Racer]:
        """By name; the first is what all are compared with."""
        cut = prune.prune(self.dense, mlp=MLP, heads=HEADS).eval()
        dropping: Callable[[nn.Module], nn.Module] = lambda m: apply(m, dynamicvit.plan(m, keep=KEEP, at=AT)).eval()  # noqa: E731
        models = {"dense": self.dense, "tokens": dropping(self.dense), "cut": cut, "composed": dropping(cut)}
        whole = counting.macs(self.dense, self.images[:1])
        self.shares = {name: counting.macs(m, self.images[:1]) / whole for name, m in models.items()}
        ov = "openvino"
        return {
            EAGER: Racer(self.dense, "torch", "f32"),
            "dense, torch eager bf16": Racer(self.dense, "torch", "bf16"),
            "dense, OpenVINO fp32": Racer(self.file("dense", models["dense"]), ov, "f32"),
            "dense, OpenVINO bf16": Racer(self.file("dense", models["dense"]), ov, "bf16"),
            NNCF: Racer(self.of_nncf("dense", models["dense"]), ov, "f32"),
            "dense, int8 of NNCF, the rest bf16": Racer(self.of_nncf("dense", models["dense"]), ov, "bf16"),
            "dense, int8": Racer(self.int8("dense", models["dense"]), ov, "f32"),
            "tokens 0.7, int8": Racer(self.int8("tokens", models["tokens"]), ov, "f32"),
            "MLP and heads cut, int8": Racer(self.int8("cut", models["cut"]), ov, "f32"),
            "tokens 0.7, MLP and heads cut, bf16": Racer(self.file("composed", models["composed"]), ov, "bf16"),
            COMPOSED: Racer(self.int8("composed", models["composed"]), ov, "f32"),
            COMPOSED + ", the rest bf16": Racer(self.int8("composed", models["composed"]), ov, "bf16"),
            COMPOSED + ", ONNX Runtime": Racer(self.int8("composed", models["composed"]), "onnxruntime", "f32"),
        }

    def file(self, name: str, model: nn.Module) -> Path:
        path = self.folder / f"{self.scale.deit}-{name}.onnx"
        if not path.exists():
            about = describe(preprocess=self.preprocess, classes=tuple(f"class {i}" for i in range(1000)))
            path.write_bytes(onnx.to_bytes(model, self.images[:2], metadata=about))
        return path

    def int8(self, name: str, model: nn.Module) -> Path:
        path = self.folder / f"{self.scale.deit}-{name}-int8.onnx"
        if not path.exists():
            small = quantize(model, self.batches, Classification(1000), calibration_images=len(self.images))
            return self.file(f"{name}-int8", small)
        return path

    def of_nncf(self, name: str, model: nn.Module) -> Path:
        path = self.folder / f"{self.scale.deit}-{name}-nncf.xml"
        if not path.exists():
            given: dict[str, Any] = {"model": model, "calibration": self.batches, "batches": self.batches[:1]}
            nncf.export(self.file(name, model), path, calibration_images=len(self.images), **given)
        return path

    @property
    def preprocess(self) -> Preprocess:
        entry = zoo.entry(self.scale.deit).preprocess
        return Preprocess(**{**entry.to_dict(), "size": (self.scale.side,) * 2, "mean": entry.mean, "std": entry.std})


class Yolo:
    """yolov7_tiny, its files, and JPEG files for it."""

    def __init__(self, folder: Path, scale: Scale, data: str | None) -> None:
        self.folder, self.side = folder, scale.yolo_side
        scenes = scenes_of(data)
        self.pictures = enough(list(pictures_of(None if scenes is None else scenes.train, scale.images)), scale.images)
        self.jpegs = [_coded(picture) for picture in self.pictures]
        self.preprocess = Preprocess(**{**_fields(zoo.entry("yolov7_tiny").preprocess), "size": (self.side,) * 2})
        self.images = torch.from_numpy(np.stack([self.preprocess(picture) for picture in self.pictures]))
        torch.manual_seed(0)
        self.model: nn.Module = zoo.create("yolov7_tiny").eval()
        self.shares: dict[str, float] = {}

    def racers(self, also: Mapping[str, Path], threads: int) -> dict[str, Callable[[bytes], Any]]:
        """Name -> from the bytes of a JPEG file to boxes in its pixels."""
        small = prune_channels(self.model, self.images[:1], ratio=YOLO_CUT).eval()
        whole = counting.macs(self.model, self.images[:1])
        self.shares = {"pruned": counting.macs(small, self.images[:1]) / whole}
        plain, int8 = self.file("dense", self.model), self.file("int8", self.model, rounded=True)
        cut, cut8 = self.file("pruned", small), self.file("pruned-int8", small, rounded=True)
        maps8, all8 = (
            self.file("int8-raw", self.model, rounded=True, form="raw"),
            self.file("all-int8-raw", self.model, head=True, form="raw"),
        )
        cut_all8 = self.file("pruned-all-int8-raw", small, head=True, form="raw")
        found: dict[str, Callable[[bytes], Any]] = {EAGER_YOLO: self.eager(threads)}
        found[QUICK_YOLO] = self.eager(threads, quick=True)
        for name, path, precision in (
            ("OpenVINO fp32", plain, "f32"), ("OpenVINO bf16", plain, "bf16"), ("OpenVINO int8", int8, "f32"),
            ("OpenVINO int8, the rest bf16", int8, "bf16"), ("OpenVINO int8, raw maps", maps8, "f32"),
            ("OpenVINO int8, its head too, raw maps", all8, "f32"), ("pruned, OpenVINO bf16", cut, "bf16"),
            ("pruned, OpenVINO int8", cut8, "f32"), ("pruned, OpenVINO int8, its head too, raw maps", cut_all8, "f32"),
        ):  # fmt: skip
            found[name] = self.deployed(path, precision, threads)
        for name, path in also.items():
            for precision in ("f32", "bf16"):
                found[f"{name}, OpenVINO {precision}"] = self.deployed(path, precision, threads)
        return found

    def file(
        self, name: str, model: nn.Module, *, rounded: bool = False, head: bool = False, form: str = "decoded"
    ) -> Path:
        """rounded: in 8 bits but for its head; head: that, too."""
        path = self.folder / f"yolov7_tiny-{self.side}-{name}.onnx"
        if not path.exists():
            merged = fuse(model, self.images[:1])
            if rounded or head:
                merged = quantized(merged, self.images, skip=() if head else None)
            about = describe(task="object-detection", preprocess=self.preprocess)
            detector.export(merged, path, self.images[:1], form=form, dynamic=False, metadata=about)
            openvino.convert(path, path.with_suffix(".xml"))
        return path.with_suffix(".xml")

    def eager(self, threads: int, *, quick: bool = False) -> Callable[[bytes], Any]:
        """As torch users have it: the model as trained, prepared in NumPy or by OpenCV, decoded by torch."""
        runner = TorchRunner(self.model, threads=threads, preprocess=self.preprocess)
        fit = fitting(self.preprocess, quick=quick)

        def call(data: bytes) -> Any:
            pixels = load(data)
            rows = runner.detect(self.preprocess.normalize(fit(pixels))[None], Nms())[0]
            return self.preprocess.place(*pixels.shape[:2]).detections(rows)

        return call

    def deployed(self, path: Path, precision: str, threads: int) -> Callable[[bytes], Any]:
        """Resized by OpenCV, normalized in the graph, answers in the runtime's own memory."""
        known: dict[str, Any] = {"backend": "openvino", "precision": precision, "threads": threads}
        size = open_session(path, backend="openvino", threads=1).inputs[0].shape[2:]
        sides = (int(size[0] or self.side), int(size[1] or self.side))
        prepare = Preprocess(**{**_fields(self.preprocess), "size": sides})
        opened = open_pictures(path, preprocess=prepare, quick=True, **known)
        maps = maps_in(opened.session.metadata, [one.name for one in opened.session.outputs], path)

        def call(data: bytes) -> Any:
            pixels = load(data)
            answers, nms = opened.run([pixels], copy=False), Nms()
            if maps is not None:
                answer = maps.predictions([answers[name][0] for name in maps.names], nms.confidence)
            else:
                answer = next(iter(answers.values()))[0]
                answer = answer if answer.shape[0] > answer.shape[1] else _without_objectness(answer)
            rows = nms(answer)
            return prepare.place(*pixels.shape[:2]).detections(rows)

        return call


def enough(pictures: Sequence[NDArray[np.uint8]], count: int) -> list[NDArray[np.uint8]]:
    """So many: crops of the same where there are fewer."""
    rng = np.random.default_rng(0)
    found = list(pictures)
    while len(found) < count:
        one = pictures[len(found) % len(pictures)]
        high, wide = (3 * side // 4 for side in one.shape[:2])
        top, left = (int(rng.integers(0, side - part)) for side, part in zip(one.shape, (high, wide), strict=False))
        found.append(np.ascontiguousarray(one[top : top + high, left : left + wide]))
    return found[:count]


def _without_objectness(answer: NDArray[np.float32]) -> NDArray[np.float32]:
    """Of the later YOLOs, (4 + K, N), as (N, 5 + K) with an objectness of one."""
    rows = answer.T
    return np.concatenate([rows[:, :4], np.ones_like(rows[:, :1]), rows[:, 4:]], axis=1)


def _fields(preprocess: Preprocess) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in preprocess.to_dict().items()}


def _coded(picture: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def example(images: Tensor, batch: int) -> NDArray[np.float32]:
    """So many of the images, repeated as needed."""
    return np.resize(images.numpy(), (batch, *images.shape[1:]))


def also_files(pairs: Sequence[str]) -> dict[str, Path]:
    """ "YOLO11n=yolo11n.onnx" -> name and file."""
    found = {}
    for pair in pairs:
        name, _, path = pair.partition("=")
        if not path or not Path(path).is_file():
            raise SystemExit(f"--also {pair}: give NAME=FILE of a .onnx or .xml file that is there")
        found[name] = Path(path)
    return found
