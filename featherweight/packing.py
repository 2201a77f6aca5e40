# SPDX-License-Identifier: Apache-2.0
"""Tensors as bytes of a file, and back."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from featherweight.doors import checkpoint as door


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """The tensors of a state_dict, which may hold other things."""
    return {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}


def pack(tensors: Mapping[str, Tensor]) -> dict[str, door.Stored]:
    """Tensors as a file stores them."""
    found = {}
    for name, tensor in tensors.items():
        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        found[name] = door.Stored(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), data.data)
    return found


def unpack(stored: Mapping[str, door.Stored]) -> dict[str, Tensor]:
    """What `pack` made, as tensors with memory of their own."""
    found = {}
    for name, item in stored.items():
        flat = torch.from_numpy(np.frombuffer(item.data, dtype=np.uint8).copy())
        found[name] = flat.view(getattr(torch, item.dtype)).reshape(item.shape)
    return found
