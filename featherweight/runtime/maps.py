# SPDX-License-Identifier: Apache-2.0
"""A detector's raw maps to predictions, in NumPy, and only those that a threshold lets through.

Of the 25,200 places of a picture of 640 x 640 a few hundred are worth a box: a file in the form raw saves the graph the
decoding of the others. The formulas are those of `tasks.detection.decode`, in float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featherweight.doors import json as strict_json
from featherweight.errors import InputError

LEVEL = "level"  # outputs of a file in the form raw: level0, level1, ...
NEAR = 1e-3  # of a logit: what rounding may move; suppression compares the probability itself


@dataclass(frozen=True)
class Maps:
    """What a file says of its maps: anchors (L, A, 2) in units of the stride, and strides (L,) in pixels."""

    anchors: NDArray[np.float32]
    strides: tuple[float, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"{LEVEL}{i}" for i in range(len(self.strides)))

    def predictions(self, levels: Sequence[NDArray[Any]], confidence: float) -> NDArray[np.float32]:
        """Maps (A, H, W, 5 + K) of one picture -> (n, 5 + K) as `Nms` takes them: objectness at or above confidence.

        Level by level, each in (anchor, row, column) order, as decoded all at once.
        """
        found = [self._level(raw, i, confidence) for i, raw in enumerate(levels)]
        return np.concatenate(found)

    def _level(self, raw: NDArray[Any], level: int, confidence: float) -> NDArray[np.float32]:
        with np.errstate(divide="ignore"):
            floor = np.log(confidence) - np.log1p(-confidence) - NEAR
        anchor, row, column = np.nonzero(raw[..., 4] >= floor)
        rows: NDArray[Any] = raw[anchor, row, column].astype(np.float32)
        with np.errstate(over="ignore"):
            rows = 1 / (1 + np.exp(-rows))
        cells, stride = np.stack([column, row], 1).astype(np.float32), np.float32(self.strides[level])
        rows[:, :2] = (rows[:, :2] * 2 - 0.5 + cells) * stride
        rows[:, 2:4] = np.square(rows[:, 2:4] * 2) * self.anchors[level][anchor] * stride
        return rows


def maps_in(told: Mapping[str, str], outputs: Sequence[str], path: object) -> Maps | None:
    """What a file's metadata say of its maps; None for one that answers with something else."""
    if f"{LEVEL}0" not in outputs:
        return None
    if not {"anchors", "strides"} <= set(told):
        raise InputError(path, "missing_key", "its metadata lack anchors or strides; export it with featherweight")
    read = [strict_json.parse(told[key], path) for key in ("anchors", "strides")]
    try:
        anchors, strides = (np.array(values, np.float32) for values in read)
    except (TypeError, ValueError):
        anchors, strides = np.zeros(0, np.float32), np.zeros(0, np.float32)
    found = Maps(anchors, tuple(strides.reshape(-1).tolist()))
    shaped = anchors.ndim == 3 and anchors.shape[2] == 2 and len(anchors) == len(found.strides) > 0
    if not shaped or not np.isfinite(anchors).all() or set(found.names) - set(outputs):
        text = f"its anchors {anchors.shape} and strides {strides.shape} do not fit its outputs {', '.join(outputs)}"
        raise InputError(path, "bad_schema", text)
    return found
