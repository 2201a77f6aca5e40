# SPDX-License-Identifier: Apache-2.0
"""A model as files for ONNX Runtime and OpenVINO, each compared with the model before it is kept."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featherweight import sources
from featherweight.errors import OptionError, closest, shown
from featherweight.files import publish
from featherweight.verbs import shipping_detection

if TYPE_CHECKING:
    from torch import Tensor, nn

    from featherweight.data import Data
    from featherweight.runtime.preprocess import Preprocess

FORMATS = ("onnx", "openvino")
NAMES = {"onnx": "model.onnx", "openvino": "openvino_model.xml"}
NEAR_TIES_DB = 35.0  # two tokens whose scores differ in the last bit may change places
UNCHECKED = {"min_agreement": 0.0, "min_snr_db": -1e9}


def export(
    model: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    formats: Sequence[str] = ("onnx",),
    data: str | os.PathLike[str] | Data | None = None,
    quantize: str | None = None,
    images: int = 64,
    half: bool = False,
    verify: bool = True,
    arch: str | None = None,
    seed: int = 0,
    **detection: Any,
) -> list[dict[str, Any]]:
    """Write the files and parity.json into `folder`; a row for each file with how it answers beside the model.

    data: its validation images are what is compared, noise without it; its training images calibrate `quantize="int8"`.
    half: 16 bits for OpenVINO's float weights. detection: for detectors `form` (decoded, raw, end2end), `multi_label`,
    `max_detections`, `dynamic` (sizes may vary) and `image_size`. Raises CheckFailed, and leaves no file, where the
    answers differ.
    """
    check_options(formats, quantize, data)
    from featherweight import artifact
    from featherweight.tasks.detection.detectors import detector_in

    source = sources.find(model, backend="torch", arch=arch)
    built = sources.module(source)
    told, record = sources.preprocess_of(source, built), artifact.record_of(built)
    if told is None:
        raise OptionError("preprocess", f"{shown(source.name)} does not say how its pictures are prepared")
    classes = record.classes if record else ()
    if detector_in(built) is not None:
        shipping_detection.check_options(detection)
        told = _of_size(told, built, detection.pop("image_size", None))
        known = {"classes": classes, "preprocess": told, "quantize": quantize is not None, "half": half, "names": NAMES}
        asked = {**known, "data": data, "images": images, "limits": {} if verify else UNCHECKED, **detection}
        found = shipping_detection.files(built, Path(folder), formats, **asked)
    else:
        for name, value in detection.items():
            raise OptionError(name, f"is for detectors; {shown(source.name)} is none (it was {value!r})")
        batches, calibration = _batches(data, told, images, seed)
        if quantize is not None:
            built = _quantized(built, calibration)
        files = _files(built, Path(folder), formats, batches, (classes, told), half=half, verify=verify)
        found = [(one, {}) for one in files]
    rows = [{**_row(one), **about} for one, about in found if one.path.exists()]
    publish(Path(folder) / "parity.json", (json.dumps(rows, indent=1) + "\n").encode())
    return rows


def _of_size(told: Preprocess, model: Any, side: int | None) -> Preprocess:
    """For pictures of another size, which the strides must divide."""
    if side is None:
        return told
    if side % (stride := max(model.head.strides)):
        raise OptionError("imgsz", f"{side} is no multiple of {stride}; {-(-side // stride) * stride} is")
    return replace(told, size=(side, side))


def _files(
    model: nn.Module,
    folder: Path,
    formats: Sequence[str],
    batches: Sequence[Mapping[str, Tensor]],
    known: tuple[Sequence[str], Preprocess],
    *,
    half: bool,
    verify: bool,
) -> list[Any]:
    """Write the files, each after its check."""
    from featherweight.export import onnx, openvino
    from featherweight.export.check import describe
    from featherweight.surgery import edits_of

    folder.mkdir(parents=True, exist_ok=True)
    kinds = dict.fromkeys(edit.kind for edit in edits_of(model))
    about = describe(classes=known[0], preprocess=known[1], compression=[{"kind": kind} for kind in kinds])
    limits = _limits(model, verify)
    extra = ("kept_tokens",) if _drops_tokens(model) else ()
    target = folder / NAMES["onnx"]
    example = batches[0]["image"][:2]
    found = [onnx.export(model, example, target, metadata=about, extra=extra, batches=batches, **limits)]
    if "openvino" in formats:
        xml = folder / NAMES["openvino"]
        found.append(openvino.export(target, xml, model=model, batches=batches, half=half, **limits))
    if "onnx" not in formats:
        target.unlink()
    return found


def check_options(formats: Sequence[str], quantize: str | None, data: Any) -> None:
    """Raises OptionError for what `export` could not do, before anything is imported or written."""
    for name in formats:
        if name not in FORMATS:
            raise OptionError("format", f"no {name!r}; {closest(name, FORMATS)}Known: {', '.join(FORMATS)}")
    if not formats:
        raise OptionError("format", f"is empty; give some of {', '.join(FORMATS)}")
    if quantize not in (None, "int8", "8"):
        raise OptionError("quantize", f"no {quantize!r}; {closest(str(quantize), ['int8'])}Known: int8")
    if quantize is not None and data is None:
        raise OptionError("quantize", "needs --data: its training images say how large the values get")


def _batches(
    data: Any, told: Preprocess, images: int, seed: int
) -> tuple[list[Mapping[str, Tensor]], Iterable[Mapping[str, Tensor]]]:
    """Images to compare on, and others to calibrate on."""
    import torch

    if data is None:
        noise = torch.randn(images, 3, *told.size, generator=torch.Generator().manual_seed(seed))
        return [{"image": noise}], ()
    from featherweight.data import Batches, load

    found = load(os.fspath(data), seed=seed) if isinstance(data, (str, os.PathLike)) else data
    seen = Batches(found.val, told, batch_size=32, limit=images)
    return list(seen.epoch(0)), Batches(found.train, told, batch_size=32, shuffle=True, seed=seed, limit=128).epoch(0)


def _quantized(model: nn.Module, batches: Iterable[Mapping[str, Tensor]]) -> nn.Module:
    from featherweight.methods.quantize import quantize
    from featherweight.tasks.classification import Classification

    return quantize(model, batches, Classification())


def _drops_tokens(model: nn.Module) -> bool:
    from featherweight.methods.dynamicvit import all_sparse

    return len(all_sparse(model)) == 1


def _limits(model: nn.Module, verify: bool) -> dict[str, Any]:
    if not verify:
        return UNCHECKED
    from featherweight.surgery import edits_of

    int8 = any("int8" in edit.kind or "quant" in edit.kind for edit in edits_of(model))
    return {"min_snr_db": NEAR_TIES_DB} if _drops_tokens(model) and not int8 else {}


def _row(item: Any) -> dict[str, Any]:
    p = item.parity
    return {
        "file": item.path.name,
        "format": "openvino" if item.path.suffix == ".xml" else "onnx",
        "size_bytes": item.size_bytes,
        "opset": item.opset,
        "dtype": p.dtype,
        "backend": p.backend,
        "agreement": p.top1_agreement,
        "sqnr_db": p.snr_db if math.isfinite(p.snr_db) else None,
        "max_abs": p.max_abs_difference,
        "images": p.n,
    }
