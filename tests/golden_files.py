# SPDX-License-Identifier: Apache-2.0
"""Numbers of the reference code, and whether a tensor of ours is the one they were taken from.

The files were made with the authors' own code on stand-in weights (`fill`); sources are named inside.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import fill
import torch
from torch import Tensor, nn

FOLDER = Path(__file__).parent / "golden"


def golden(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.json").read_text())


def agrees(tensor: Tensor, digest: dict[str, Any], *, atol: float, rtol: float = 0.0) -> None:
    """Shape, the values at fixed places, and the norm are those of the digest."""
    assert list(tensor.shape) == digest["shape"]
    flat = tensor.detach().double().flatten()
    torch.testing.assert_close(flat[digest["at"]].tolist(), digest["values"], atol=atol, rtol=rtol)
    size = flat.numel() ** 0.5
    assert abs(float(flat.norm()) - digest["l2"]) <= size * atol + rtol * digest["l2"]


def filled(model: nn.Module, *, scaled: Iterable[str] = ()) -> nn.Module:
    """The model with stand-in weights, in evaluation mode; those named in `scaled` are a thousandth."""
    state = fill.fill_(model.state_dict())
    model.load_state_dict({key: t * 1e-3 if key in scaled else t for key, t in state.items()})
    return model.eval()
