# SPDX-License-Identifier: Apache-2.0
"""Weights in 16 bits, float16 or bfloat16: half the file, no images needed.

float16 keeps 11 bits of each weight and bfloat16 keeps 8, with the range of float32. Layers compute in float32 with
them. Arithmetic in 16 bits is the runtime's choice when it opens a file (`open_session(..., precision="bf16")` for
OpenVINO) or `torch.autocast`'s, and needs nothing here. Biases, norms and positions stay as they are: they are few.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ..errors import OptionError, closest
from ..surgery import Edit, apply
from .calibration import selected
from .stored import HALVES


def plan(model: nn.Module, *, dtype: str = "float16", skip: Sequence[str] = ()) -> list[Edit]:
    """One edit for each linear and 2d convolution layer that is not skipped; dtype "float32" leaves all as they are.

    Raises OptionError for an unknown type, or where a weight is too large for float16 (the largest is 65504).
    """
    if dtype == "float32":
        return []
    if dtype not in HALVES:
        known = (*HALVES, "float32")
        raise OptionError("dtype", f"no {dtype!r}; {closest(str(dtype), known)}Known: {', '.join(known)}")
    layers = selected(model, skip)
    largest = torch.finfo(HALVES[dtype]).max
    for path, layer in layers.items():
        if float(layer.weight.detach().abs().max()) > largest:
            raise OptionError("dtype", f"{path} has a weight beyond {largest:g}, the largest {dtype}; use bfloat16")
    return [Edit(path, "half", {"dtype": dtype}) for path in layers]


def to_half(model: nn.Module, *, dtype: str = "float16", skip: Sequence[str] = ()) -> nn.Module:
    """A copy with its weights in 16 bits; the options are those of `plan`."""
    return apply(model, plan(model, dtype=dtype, skip=skip))
