# SPDX-License-Identifier: Apache-2.0
"""Smaller models of the same family, which learn from the start with random weights."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

from featherweight.errors import FeatherweightError
from featherweight.explain import Outline
from featherweight.models import zoo
from featherweight.runtime.preprocess import Preprocess


def students_of(start: Outline, preprocess: Preprocess) -> dict[str, dict[str, Any]]:
    """Smaller models of the same family, by what their configuration says: fewer blocks, narrower."""
    base = zoo.base_of(start.model)
    if base is None:
        return {}
    config, found = copy.deepcopy(dict(base["config"])), {}
    for name, share in (("half as deep", 0.5), ("half as wide", 0.5)):
        smaller = _smaller(config, name, share)
        if smaller is None:
            continue
        with contextlib.suppress(FeatherweightError, ValueError, TypeError):
            zoo.check(base["name"], **smaller)
            if family := _called(base["name"], smaller, preprocess):
                found[name] = {**smaller, "family": family}
    return found


def _called(family: str, config: Mapping[str, Any], preprocess: Preprocess) -> str | None:
    """The name of the table for the family whose pictures are prepared as the start's are, which teaches on them."""
    names = [family, *(name for name in zoo.known() if zoo.entry(name).family == family)]
    return next((name for name in names if zoo.preprocess_of(name, None, config) == preprocess), None)


def _smaller(config: Mapping[str, Any], name: str, share: float) -> dict[str, Any] | None:
    depth, width = config.get("depth"), config.get("embed_dim")
    if name == "half as deep" and isinstance(depth, int) and depth > 1:
        return {**config, "depth": math.ceil(depth * share)}
    heads = config.get("num_heads")
    if name == "half as wide" and isinstance(width, int) and isinstance(heads, int) and heads > 1:
        less = max(1, round(heads * share))
        return {**config, "embed_dim": width // heads * less, "num_heads": less}
    if name == "half as wide" and isinstance(config.get("widths"), Sequence):
        return {**config, "widths": [max(8, round(w * share / 8) * 8) for w in config["widths"]]}
    return None
