# SPDX-License-Identifier: Apache-2.0
"""What each layer of a model takes on this machine: OpenVINO's and ONNX Runtime's own counts, hooks in torch."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from featherweight import sessions
from featherweight.errors import OptionError
from featherweight.runtime import feeds, profiling
from featherweight.runtime.profiling import LayerTime
from featherweight.runtime.session import open_session

RUNS = 7  # answers whose median is told, after two that are not counted


def layer_times(
    model: Any,
    *,
    batch: int = 1,
    resolution: tuple[int, int] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    threads: int | None = None,
    backend: str | None = None,
    precision: str | None = None,
    runs: int = RUNS,
) -> list[LayerTime]:
    """The operators of an exported file, or the innermost modules of a torch model, the slowest first.

    Measuring adds to what small layers take, so the sum is more than an answer takes: read shares, not sums.
    """
    if isinstance(model, (str, os.PathLike)):
        path = Path(model)
        session = open_session(path, backend=backend, threads=threads, precision=precision, profile=True)
        known: dict[str, Any] = {"batch": batch, "resolution": resolution, "shapes": shapes}
        feed = feeds.made(session.inputs, session.metadata, path, **known)
    else:
        if resolution is None:
            raise OptionError("resolution", "unknown for this model; give (height, width), for instance (224, 224)")
        images = np.random.default_rng(0).standard_normal((batch, 3, *resolution), dtype=np.float32)
        feed = {"input": images}
        session = sessions.open_model(model, example=feed, threads=threads, precision=precision)
    return profiling.median([session.layers(feed) for _ in range(runs + 2)][2:])
