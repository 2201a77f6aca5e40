# SPDX-License-Identifier: Apache-2.0
"""What the layers of one answer took, in the words of the runtime that ran them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple


class LayerTime(NamedTuple):
    """One operator as the runtime ran it: fused ones are one."""

    name: str
    kind: str  # Convolution, FullyConnected, MatMul, ...
    how: str  # the kernel, where the runtime says it: brgemm_avx512_amx_I8
    ms: float


def median(runs: Sequence[Sequence[LayerTime]]) -> list[LayerTime]:
    """The median over several answers, the slowest first; a layer that some answers lack counts as nothing there."""
    by_name: dict[str, list[LayerTime]] = {}
    for run in runs:
        for layer in run:
            by_name.setdefault(layer.name, []).append(layer)
    found = [
        many[0]._replace(ms=statistics.median([layer.ms for layer in many] + [0.0] * (len(runs) - len(many))))
        for many in by_name.values()
    ]
    return sorted(found, key=lambda layer: -layer.ms)


def by_kind(layers: Sequence[LayerTime]) -> Mapping[str, float]:
    """Milliseconds of each kind of operator, the largest first."""
    sums: dict[str, float] = {}
    for layer in layers:
        sums[layer.kind] = sums.get(layer.kind, 0.0) + layer.ms
    return dict(sorted(sums.items(), key=lambda item: -item[1]))
