# SPDX-License-Identifier: Apache-2.0
"""Which model is a detector: one with a `head` that has `anchors` (L, A, 2), `strides` and `num_classes`."""

from __future__ import annotations

from typing import Any

PARTS = ("anchors", "strides", "num_classes")


def detector_in(model: Any) -> Any:
    """The detector that a model is, or wraps to train on several processes; None for any other model."""
    found = model
    while not hasattr(found, "head") and callable(getattr(found, "module", None)):
        found = found.module
    head = getattr(found, "head", None)
    return found if all(hasattr(head, part) for part in PARTS) else None


def detector_of(model: Any) -> Any:
    """The same; TypeError for a model that is no detector."""
    found = detector_in(model)
    if found is None:
        text = f"it has no head with {', '.join(PARTS[:-1])} and {PARTS[-1]}"
        raise TypeError(f"{type(model).__name__} is no detector: {text}")
    return found
