# SPDX-License-Identifier: Apache-2.0
"""What the authors' files call the tensors of our models, and which model a stranger's file would fit.

Our plain models have the official names already. What a method puts around the blocks is taken away from a name: the
authors of a method put its parts beside the list of blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from .anatomy import Around
from .doors.stored import Stored
from .methods import dynamicvit_names
from .methods.dynamicvit_names import COMPUTED
from .models import sret, zoo
from .models.yolov7 import FORMS
from .surgery import all_of

__all__ = ["COMPUTED", "as_linear", "detector_of", "hint", "of", "ours", "stripped"]

PREFIXES = ("module.", "_orig_mod.")


def stripped(tensors: Mapping[str, Stored]) -> dict[str, Stored]:
    """Without what wrappers put before every name."""
    for prefix in PREFIXES:
        if all(key.startswith(prefix) for key in tensors):
            return stripped({key.removeprefix(prefix): tensor for key, tensor in tensors.items()})
    return dict(tensors)


def of(model: nn.Module) -> dict[str, str]:
    """Official name -> our name, for each tensor of the state dict; shared tensors have several."""
    if found := dynamicvit_names.official_names(model):
        return found
    around = sorted(all_of(model, Around), key=len, reverse=True)
    found = {_plain(key, around): key for key in model.state_dict()}
    for alias, first in (sret.aliases(model.config) if isinstance(model, sret.SReT) else {}).items():
        found |= {alias + k.removeprefix(first): k for k in model.state_dict() if k.startswith(f"{first}.")}
    return found


def ours(key: str, names: Mapping[str, str]) -> str:
    """Our name of a tensor, which may have our name already."""
    return names.get(key, key)


def as_linear(tensor: Stored, ndim: int) -> Stored:
    """A 1x1 convolution's weight (O, I, 1, 1) as a linear layer's, where the model has `ndim` 2."""
    flat = len(tensor.shape) == 4 and ndim == 2 and tensor.shape[2:] == (1, 1)
    return replace(tensor, shape=tensor.shape[:2]) if flat else tensor


def hint(tensors: Mapping[str, Any], model: nn.Module) -> str:
    """What the file is instead, as far as its names and shapes tell; or nothing."""
    sparse = any("score_predictor." in key for key in tensors)
    plain = {key: tensor for key, tensor in tensors.items() if "score_predictor." not in key}
    fits = list(_fitting(plain, sparse=sparse))
    if sparse and not fits and not any("score_predictor" in name for name in of(model)):
        return "it is a DynamicViT's: sparsify the model first (methods.dynamicvit.plan), then load it"
    return f"it fits {', '.join(fits[:3])}" if fits else ""


def detector_of(tensors: Mapping[str, Any]) -> str:
    """Which YOLOv7 a state dict fits, but for the number of classes; or nothing."""
    for name, line in zoo.ZOO.items():
        for form in FORMS if line.family == "yolov7" else ():
            with torch.device("meta"):
                own = zoo.create(name, form=form).state_dict()
            kernels = [key for key, tensor in own.items() if tensor.ndim == 4 and key.endswith(".weight")]
            if tensors.keys() == own.keys() and all(
                tensors[key].shape[1:] == tuple(own[key].shape[1:]) for key in kernels
            ):
                return f"{name} ({form} form)"
    return ""


def _plain(key: str, around: list[str]) -> str:
    """The name without the modules that stand around the blocks, innermost first."""
    for path in around:
        blocks, _, _ = path.rpartition(".")
        if key.startswith(f"{path}.blocks."):
            key = f"{blocks}.{key.removeprefix(f'{path}.blocks.')}"
        elif key.startswith(f"{path}."):
            key = f"{blocks.rpartition('.')[0]}.{key.removeprefix(f'{path}.')}".lstrip(".")
    return key


def _fitting(tensors: Mapping[str, Any], *, sparse: bool) -> Iterator[str]:
    """Names of the table whose tensors, predictors apart, are these but for the number of classes; timm's are not."""
    for name, line in zoo.ZOO.items():
        if line.family.startswith(("timm:", "yolov7")) or (line.keep is not None) != sparse:
            continue
        with torch.device("meta"):
            model = zoo.create(name)
        own, names = model.state_dict(), of(model)
        mine = {ours(key, names): tensor.shape for key, tensor in tensors.items()}
        if mine.keys() == own.keys() and all(_alike(shape, own[key].shape) for key, shape in mine.items()):
            yield name


def _alike(one: Any, other: Any) -> bool:
    return tuple(one) == tuple(other) or (len(one) <= 2 and tuple(one)[1:] == tuple(other)[1:])
