# SPDX-License-Identifier: Apache-2.0
"""A detector as files for ONNX Runtime and OpenVINO, in 8 bits if that is asked for, each compared with the model."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featherweight.errors import OptionError, closest
from featherweight.runtime.preprocess import Preprocess

if TYPE_CHECKING:
    from torch import Tensor, nn

    from featherweight.data.scenes import Scenes

FORMS = ("raw", "decoded", "end2end")
CALIBRATION_IMAGES = 128
AT_ONCE = 8


def check_options(form: str, max_detections: int, image_size: int | None) -> None:
    """OptionError for what no detector can be exported with."""
    if form not in FORMS:
        raise OptionError("form", f"no {form!r}; {closest(form, FORMS)}Known: {', '.join(FORMS)}")
    if max_detections < 1:
        raise OptionError("max_detections", f"must be 1 or more, not {max_detections!r}")
    if image_size is not None and image_size < 32:
        raise OptionError("imgsz", f"must be 32 or more, not {image_size!r}")


def files(
    model: nn.Module,
    folder: Path,
    formats: Sequence[str],
    *,
    data: Any,
    classes: Sequence[str],
    preprocess: Preprocess,
    quantize: bool = False,
    images: int = 64,
    half: bool = False,
    form: str = "decoded",
    multi_label: bool = True,
    max_detections: int = 300,
    dynamic: bool = True,
    limits: Mapping[str, Any],
    names: Mapping[str, str],
) -> list[Any]:
    """Write the files, each after its check on pictures of the data, or on those that come with scikit-learn."""
    from featherweight.export import detector, openvino
    from featherweight.export.check import describe
    from featherweight.methods.fuse import fuse
    from featherweight.surgery import edits_of

    scenes = scenes_of(data)
    seen = _inputs(pictures_of(None if scenes is None else scenes.val, images), preprocess)
    if quantize and scenes is not None:
        calibration = _inputs(pictures_of(scenes.train, CALIBRATION_IMAGES), preprocess)
        model = quantized(fuse(model, seen[:1]), calibration)
    folder.mkdir(parents=True, exist_ok=True)
    kinds = [{"kind": kind} for kind in dict.fromkeys(edit.kind for edit in edits_of(model))]
    about = describe(task="object-detection", classes=classes, preprocess=preprocess, compression=kinds)
    asked = detector.Form(form, multi_label=multi_label, max_detections=max_detections)
    target = folder / names["onnx"]
    found = [detector.export(model, target, seen, form=asked, dynamic=dynamic, metadata=about, **limits)]
    if "openvino" in formats:
        xml = folder / names["openvino"]
        found.append(openvino.export_detector(target, xml, model=model, images=seen, form=asked, half=half, **limits))
    if "onnx" not in formats:
        target.unlink()
    return found


def quantized(model: nn.Module, images: Tensor, *, skip: Sequence[str] | None = None) -> nn.Module:
    """A detector in 8 bits, its head in float unless `skip` says otherwise; calibrated on prepared images (N, 3, H, W).

    The head's outputs are squared and multiplied by anchors of hundreds of pixels, which one step of 8 bits moves far.
    """
    from featherweight.methods.quantize import quantize
    from featherweight.tasks.detection.answers import Answers

    batches = [{"image": images[i : i + AT_ONCE]} for i in range(0, len(images), AT_ONCE)]
    kept = head_paths(model) if skip is None else tuple(skip)
    return quantize(model, batches, Answers(), calibration_images=len(images), skip=kept)


def head_paths(model: nn.Module) -> tuple[str, ...]:
    """The dotted path of a detector's head."""
    head = getattr(model, "head", None)
    return tuple(path for path, module in model.named_modules() if module is head)


def scenes_of(data: Any) -> Any:
    """A detection set, from its name or path where it is not one already; None stays None."""
    if data is None:
        return None
    from featherweight.data import detection

    return detection.load(os.fspath(data)) if isinstance(data, (str, os.PathLike)) else data


def pictures_of(scenes: Scenes | None, limit: int) -> Iterator[NDArray[np.uint8]]:
    """Evenly spaced pictures of a part; without one, photographs that another library brings, or noise."""
    if scenes is not None:
        count = min(limit, len(scenes))
        yield from (scenes.picture(i * len(scenes) // count) for i in range(count))
        return
    try:
        from sklearn.datasets import load_sample_images  # type: ignore[import-untyped]
    except ImportError:
        random = np.random.default_rng(0)
        yield from (random.integers(0, 256, (480, 640, 3), np.uint8) for _ in range(2))
        return
    yield from load_sample_images().images


def _inputs(pictures: Iterator[NDArray[np.uint8]], preprocess: Preprocess) -> Tensor:
    import torch

    return torch.from_numpy(np.stack([preprocess(picture) for picture in pictures]))
