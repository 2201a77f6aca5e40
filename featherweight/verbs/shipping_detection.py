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

    from featherweight.data.scenes import Scenery, Scenes
    from featherweight.export.check import Exported

OPTIONS = ("form", "multi_label", "max_detections", "dynamic", "image_size")
CALIBRATION_IMAGES = 128
AT_ONCE = 8


def check_options(given: Mapping[str, Any]) -> None:
    """OptionError for what no detector can be exported with."""
    for name in given:
        if name not in OPTIONS:
            raise OptionError(name, f"no such option here; {closest(name, OPTIONS)}Known: {', '.join(OPTIONS)}")
    if (side := given.get("image_size")) is not None and side < 32:
        raise OptionError("imgsz", f"must be 32 or more, not {side!r}")


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
    dynamic: bool = True,
    limits: Mapping[str, Any],
    names: Mapping[str, str],
    form: str = "decoded",
    **suppression: Any,
) -> list[tuple[Exported, dict[str, Any]]]:
    """Write the files, each after its check on pictures of the data, or on those that come with scikit-learn.

    Beside each what else is known of it: what its numbers are of, and in 8 bits the AP it has and had before.
    """
    from featherweight.deploy_detection import described, prepared
    from featherweight.export import detector, openvino
    from featherweight.methods.fuse import fuse

    asked, scenes, made = detector.Form(form, **suppression), scenes_of(data), model
    seen = prepared(pictures_of(None if scenes is None else scenes.val, images), preprocess)
    if quantize and scenes is not None:
        calibration = prepared(pictures_of(scenes.train, CALIBRATION_IMAGES), preprocess)
        made = quantized(fuse(model, seen[:1]), calibration)
    folder.mkdir(parents=True, exist_ok=True)
    about = described(made, classes, preprocess)
    target = folder / names["onnx"]
    found = [detector.export(made, target, seen, form=asked, dynamic=dynamic, metadata=about, **limits)]
    if "openvino" in formats:
        xml = folder / names["openvino"]
        found.append(openvino.export_detector(target, xml, model=made, images=seen, form=asked, half=half, **limits))
    lost = {} if made is model else _average_precision(model, found, scenes, preprocess, classes, images)
    if "onnx" not in formats:
        target.unlink()
    return [(one, {"of": "predictions", **lost.get(one.path, {})}) for one in found]


def _average_precision(
    model: nn.Module,
    files: Sequence[Exported],
    scenes: Scenery,
    preprocess: Preprocess,
    classes: Sequence[str],
    images: int,
) -> dict[Path, dict[str, float]]:
    """AP of each file and of the model before 8 bits, on the same validation pictures."""
    from featherweight.runners import open_runner
    from featherweight.verbs.accuracy_detection import val

    asked: dict[str, Any] = {"part": "val", "limit": images, "batch_size": AT_ONCE}
    runner = open_runner(model, classes=classes, preprocess=preprocess)
    before = val(runner, scenes, **asked)["AP"]
    return {one.path: {"AP": val(open_runner(one.path), scenes, **asked)["AP"], "AP_float": before} for one in files}


def quantized(model: nn.Module, images: Tensor, *, skip: Sequence[str] | None = None) -> nn.Module:
    """A detector in 8 bits, its head in float unless `skip` says otherwise; calibrated on prepared images (N, 3, H, W).

    The head's outputs are squared and multiplied by anchors of hundreds of pixels, which one step of 8 bits moves far.
    """
    from featherweight.methods.quantize import quantize
    from featherweight.tasks.detection.answers import Answers, head_paths

    batches = [{"image": images[i : i + AT_ONCE]} for i in range(0, len(images), AT_ONCE)]
    kept = head_paths(model) if skip is None else tuple(skip)
    return quantize(model, batches, Answers(), calibration_images=len(images), skip=kept)


def scenes_of(data: Any) -> Any:
    """A detection set, from its name or path where it is not one already; None stays None."""
    if data is None:
        return None
    from featherweight.data import detection

    return detection.load(os.fspath(data)) if isinstance(data, (str, os.PathLike)) else data


def pictures_of(scenes: Scenes | None, limit: int) -> Iterator[NDArray[np.uint8]]:
    """Evenly spaced pictures of a part; without one, photographs that another library brings, or noise."""
    if scenes is not None:
        from featherweight.deploy_detection import spaced

        yield from spaced(scenes, limit)
        return
    try:
        from sklearn.datasets import load_sample_images  # type: ignore[import-untyped]
    except ImportError:
        random = np.random.default_rng(0)
        yield from (random.integers(0, 256, (480, 640, 3), np.uint8) for _ in range(2))
        return
    yield from load_sample_images().images
