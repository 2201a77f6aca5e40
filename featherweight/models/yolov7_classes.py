# SPDX-License-Identifier: Apache-2.0
"""The head of a detector for other classes: what says where objects are stays, and classes that both know stay."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .yolov7_head import Detect

BOXES = 5  # rows of an anchor before those of its classes: x, y, w, h, objectness
ROWS = ("m.", "m2.", "im.")  # parts of a head that have rows; what its maps are read with has none


def same_classes(names: Sequence[str], theirs: Sequence[str]) -> list[tuple[int, int]]:
    """(here, there) of the classes that two lists have under one name, whatever its case."""
    places = {name.strip().casefold(): place for place, name in reversed(list(enumerate(theirs)))}
    found = ((here, places.get(name.strip().casefold())) for here, name in enumerate(names))
    return [(here, there) for here, there in found if there is not None]


@torch.no_grad()
def carried(
    fresh: Detect, state: dict[str, Tensor], classes: int, pairs: Sequence[tuple[int, int]]
) -> dict[str, Tensor]:
    """A head's `state` of so many classes in the shapes of `fresh`; rows of classes that are in no pair are the fresh
    ones, whose biases say that each class is rare. What does not fit (another number of anchors) is left out."""
    found = {}
    for key, own in fresh.state_dict().items():
        theirs = state.get(key)
        if theirs is None or not key.startswith(ROWS):
            continue
        anchors, rest = fresh.num_anchors, own.numel() // (fresh.num_anchors * (BOXES + fresh.num_classes))
        if theirs.numel() != anchors * (BOXES + classes) * rest:
            continue
        new, old = own.clone(), theirs.reshape(anchors, BOXES + classes, rest)
        rows = new.view(anchors, BOXES + fresh.num_classes, rest)
        rows[:, :BOXES] = old[:, :BOXES]
        for here, there in pairs:
            rows[:, BOXES + here] = old[:, BOXES + there]
        found[key] = new
    return found
