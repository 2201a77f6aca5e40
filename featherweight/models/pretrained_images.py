# SPDX-License-Identifier: Apache-2.0
"""Image classifiers of the transformers library: found in a folder, loaded, and how their pictures are prepared.

The folder's own `preprocessor_config.json` says how, read by transformers itself, for the kinds of preparation that
`Preprocess` can do as well: resize and crop by Pillow's filters, values 0..1, mean and standard deviation. Not here:
text models (`pretrained`), detectors of that library (`pretrained_detectors`), and preparing that flips channels or
keeps the picture's size.
"""

from __future__ import annotations

from math import floor
from pathlib import Path
from typing import Any

from torch import nn

from ..doors import door
from ..errors import InputError, OptionError
from ..runtime.preprocess import Preprocess
from .pretrained import gist, library, quiet

PROCESSORS = ("preprocessor_config.json", "processor_config.json")
PLAIN = ("Beit", "Bit", "Blip", "CLIP", "DeiT", "MobileNetV1", "MobileNetV2", "Pvt", "Siglip", "ViT")
CONVNEXT, WHOLE = "ConvNext", 384  # from this size on ConvNeXt's are stretched, below it they are cropped
FILTERS = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers
KIND = "ImageProcessor"


def load(folder: Path, *, head: str = "ImageClassification") -> nn.Module:
    """The model in a folder, in evaluation mode; safetensors only, no code is run. Raises InputError.

    head: what it is for, as the library names it: a classifier, or "ObjectDetection".
    """
    transformers = library("a folder of transformers")
    if not any(folder.glob("*.safetensors")):
        text = "has no weights as .safetensors; pickled ones are not read: save it again with transformers"
        raise InputError(folder, "missing", text)
    known: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False, "output_loading_info": True}
    with door(folder, "corrupt", "transformers cannot load it"), quiet(transformers):
        made = getattr(transformers, f"AutoModelFor{head}")
        model, told = made.from_pretrained(str(folder), use_safetensors=True, dtype="auto", **known)
    if lacking := sorted(set(told["missing_keys"]) & {name for name, _ in model.named_parameters()}):
        raise InputError(folder, "corrupt", f"its weights lack {lacking[0]}" + (" and others" * (len(lacking) > 1)))
    return model.eval()  # type: ignore[no-any-return]


def processor_in(folder: Path) -> Any:
    """The image processor of the transformers library that a folder describes. InputError where it has none."""
    if not any((folder / name).is_file() for name in PROCESSORS):
        raise InputError(folder, "missing", f"does not say how pictures are prepared: it has no {PROCESSORS[0]}")
    transformers = library("a folder of transformers")
    try:
        with quiet(transformers):
            return transformers.AutoImageProcessor.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False
            )
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        text = f"transformers cannot read how pictures are prepared: {gist(error)}"
        raise InputError(folder / PROCESSORS[0], "corrupt", text) from None


def preprocess_in(folder: Path) -> Preprocess:
    """How the pictures of the model in a folder are prepared. InputError where it does not say, or where we cannot."""
    try:
        return described(processor_in(folder))
    except OptionError as error:
        raise InputError(folder / PROCESSORS[0], "unsupported_format", error.text) from None


def described(processor: Any) -> Preprocess:
    """What an image processor of the transformers library does. OptionError where `Preprocess` cannot do the same."""
    name = type(processor).__name__
    kind = name.split(KIND)[0]
    if KIND not in name or kind not in (*PLAIN, CONVNEXT):
        known = ", ".join(f"{one}{KIND}" for one in sorted((*PLAIN, CONVNEXT)))
        raise OptionError("preprocess", f"pictures are prepared by {name}; known: {known}")
    if (processor.do_rescale and abs(processor.rescale_factor * 255 - 1) > 1e-6) or not processor.do_rescale:
        raise OptionError("preprocess", f"{name} does not bring values to 0..1")
    if not processor.do_resize or processor.resample not in FILTERS:
        text = f"{name} must resize, bilinear (2) or bicubic (3), not by filter {processor.resample!r}"
        raise OptionError("preprocess", text)
    shape = _convnext(processor) if kind == CONVNEXT else _plain(processor, name)
    normal = bool(processor.do_normalize)
    mean, std = (_three(getattr(processor, key)) for key in ("image_mean", "image_std"))
    known_values: dict[str, Any] = {"mean": mean, "std": std} if normal else {"mean": (0.0,) * 3, "std": (1.0,) * 3}
    return Preprocess(**shape, interpolation=FILTERS[processor.resample], **known_values)


def told(preprocess: Preprocess | None) -> dict[str, Any] | None:
    """The preprocessor_config.json by which transformers prepares pictures so; None where it has no such words."""
    if preprocess is None or preprocess.resize not in ("exact", "shorter"):
        return None
    height, width = preprocess.size
    tall, wide = (floor(side / preprocess.crop_pct) for side in preprocess.size)
    cropped = preprocess.resize == "shorter" or (tall, wide) != preprocess.size
    if preprocess.resize == "shorter" and tall != wide:
        return None
    size = {"shortest_edge": tall} if preprocess.resize == "shorter" else {"height": tall, "width": wide}
    kind = "Bit" if preprocess.resize == "shorter" else "DeiT" if cropped else "ViT"
    return {
        "image_processor_type": f"{kind}{KIND}",
        "do_resize": True,
        "size": size,
        "resample": next(number for number, name in FILTERS.items() if name == preprocess.interpolation),
        **({"do_center_crop": True, "crop_size": {"height": height, "width": width}} if cropped else {}),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocess.mean),
        "image_std": list(preprocess.std),
        "do_convert_rgb": True,
    }


def _plain(processor: Any, name: str) -> dict[str, Any]:
    """Size, how to resize and the share of the crop."""
    sizes, crop = dict(processor.size), getattr(processor, "crop_size", None)
    cropped = bool(getattr(processor, "do_center_crop", False)) and crop is not None
    edge = sizes.get("shortest_edge")
    if edge is None and not {"height", "width"} <= {key for key, value in sizes.items() if value}:
        raise OptionError("preprocess", f"{name} resizes to {sizes}, which is neither height and width nor an edge")
    wide = (edge, edge) if edge else (sizes["height"], sizes["width"])
    if not cropped or crop is None:
        if edge:
            raise OptionError("preprocess", f"{name} keeps the picture's shape and does not crop it: no fixed size")
        return {"size": wide, "resize": "exact", "crop_pct": 1.0}
    size = (int(crop["height"]), int(crop["width"]))
    share = size[0] / wide[0]
    if share > 1 or tuple(floor(n / share) for n in size) != wide:
        raise OptionError("preprocess", f"{name} crops {size} out of {wide}; the share must be the same of both sides")
    return {"size": size, "resize": "shorter" if edge else "exact", "crop_pct": share}


def _convnext(processor: Any) -> dict[str, Any]:
    edge = int(dict(processor.size)["shortest_edge"])
    if edge >= WHOLE:
        return {"size": (edge, edge), "resize": "exact", "crop_pct": 1.0}
    return {"size": (edge, edge), "resize": "shorter", "crop_pct": float(processor.crop_pct)}


def _three(values: Any) -> tuple[float, ...]:
    return tuple(float(value) for value in (values if isinstance(values, (list, tuple)) else (values,) * 3))
