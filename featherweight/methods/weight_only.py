# SPDX-License-Identifier: Apache-2.0
"""Weights in few bits, activations in float: 8, 4 or 2 bits, ternary or binary, with one step for a group of weights.

Each group of weights along the input takes the grid with the least squared error; no images are looked at. What is
gained is the size of the file. It is not faster: runtimes unpack the weights when they load them. 4 bits are usually
near the float model for transformers; a small convolutional net needs `adaround` or `qat` at 4 bits, and both need
training below (Li 2016, 1605.04711, for ternary; Rastegari 2016, 1603.05279, for binary). Not here: activations
(`quantize`, `dynamic_int8`, `qat`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from ..errors import OptionError, closest
from ..surgery import Edit, apply
from .calibration import selected
from .rounding import LEVELS, levels_of

GROUP = 64  # weights that share a step where the grid has several levels: 16 bits more for each 64 x 4
GRIDS = (*LEVELS, "uint4")  # uint4: 16 levels that need not be symmetric


def plan(
    model: nn.Module,
    *,
    weights: str = "int4",
    group: int | None = None,
    ends: str | None = "int8",
    skip: Sequence[str] = (),
) -> list[Edit]:
    """One edit for each linear and 2d convolution layer that is not skipped; weights "float32" leaves all as they are.

    weights: int8, int4, uint4 (not symmetric: a zero point for each group), int2, ternary or binary. group: weights
    that share a step; 64 for 4 and 2 bits unless given, else those of an output channel. ends: the grid of the first
    and the last layer, which suffer most; None: as the others.
    """
    if weights == "float32":
        return []
    for where, name in (("weights", weights), ("ends", ends)):
        if name is not None and name not in GRIDS:
            raise OptionError(where, f"no {name!r}; {closest(str(name), GRIDS)}Known: {', '.join(GRIDS)}, float32")
    if group is not None and (group < 8 or group % 8):
        raise OptionError("group", f"{group} is not a multiple of 8; 32, 64 and 128 are usual")
    paths = list(selected(model, skip))
    at_ends = {paths[0], paths[-1]} if ends is not None and len(paths) > 2 else set()
    return [Edit(path, "packed", spec(ends if path in at_ends and ends else weights, group)) for path in paths]


def spec(weights: str, group: int | None = None) -> dict[str, Any]:
    """What the edit `packed` is told of this grid."""
    if weights == "uint4":
        return {"levels": 16, "symmetric": False, "group": group or GROUP}
    several = weights in ("int4", "int2")
    if several or (group is not None and weights != "int8"):
        return {"levels": levels_of(weights), "group": group or GROUP}
    return {"levels": levels_of(weights)}


def weight_only(model: nn.Module, **options: Any) -> nn.Module:
    """A copy with its weights in few bits; the options are those of `plan`."""
    return apply(model, plan(model, **options))
