# SPDX-License-Identifier: Apache-2.0
"""Detectors of the transformers library: found in a folder, loaded, and their image processors.

The processor prepares the pictures and says what the answers mean, so that both are the library's own: DETR and its
descendants, RT-DETR, YOLOS and whatever else `AutoModelForObjectDetection` loads. Not here: detectors that are asked
with words, and compressing or exporting any of these.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from ..doors import json as strict_json
from ..errors import InputError, OptionError
from .pretrained import CONFIG
from .pretrained_images import PROCESSORS, processor_in
from .pretrained_images import load as load_headed

HEAD = "ObjectDetection"
FINDS = "post_process_object_detection"  # what an image processor of a detector can do
_PROCESSOR = "_featherweight_image_processor"


def is_detector(model: object) -> bool:
    """Whether a module is a detector of the transformers library, or made from the class of one."""
    known = (one for one in type(model).__mro__ if one.__module__.startswith("transformers.models."))
    return any(one.__name__.endswith(f"For{HEAD}") for one in known)


def load(folder: Path, *, processor: Any = None) -> nn.Module:
    """The detector in a folder, in evaluation mode, with its image processor; safetensors only, no code is run.

    processor: instead of the folder's own. Raises InputError.
    """
    _check_backbone(folder)
    found = checked(processor_in(folder), folder / PROCESSORS[0]) if processor is None else processor
    return with_processor(load_headed(folder, head=HEAD), found)


def checked(processor: Any, path: Path | None = None) -> Any:
    """An image processor that says where objects are. InputError about `path`, or OptionError, for any other."""
    if hasattr(processor, FINDS):
        return processor
    text = f"{type(processor).__name__} is no image processor of a detector: it has no {FINDS}"
    raise OptionError("image_processor", text) if path is None else InputError(path, "unsupported_format", text)


def with_processor(model: nn.Module, processor: Any) -> nn.Module:
    """Let this very model carry its image processor. Copies of it carry it too."""
    object.__setattr__(model, _PROCESSOR, processor)
    return model


def processor_of(model: nn.Module) -> Any:
    """The image processor that a model carries; None where it has none."""
    return getattr(model, _PROCESSOR, None)


def _check_backbone(folder: Path) -> None:
    """InputError where the library would look for the backbone's shape on the hub: nothing is downloaded."""
    config = strict_json.read(folder / CONFIG, allow_nan=True)
    known = config if isinstance(config, dict) else {}
    by_name = known.get("backbone") is not None and known.get("backbone_config") is None
    if by_name and (not known.get("use_timm_backbone", True) or known.get("backbone_kwargs")):
        text = "names a backbone of the hub, and nothing is downloaded: save it again, so that it has a backbone_config"
        raise InputError(folder / CONFIG, "unsupported_format", text)
