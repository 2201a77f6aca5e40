# SPDX-License-Identifier: Apache-2.0
"""How much each layer minds being pruned, as a picture and as JSON beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .drawing import MUTED, SERIES, Drawing, canvas, svg
from .errors import OptionError, clean
from .files import publish, publish_json

if TYPE_CHECKING:
    from .methods.sensitivity import Row

NAMED = 5  # layers with a color and a name: those that mind most


def draw(rows: Sequence[Row], *, title: str = "") -> Drawing:
    """A line for each layer, worth over the share removed; the most sensitive ones by name."""
    if not rows:
        raise OptionError("rows", "there are none to draw")
    layers = list(dict.fromkeys(row.layer for row in rows))
    worst = sorted(layers, key=lambda layer: min(row.worth for row in rows if row.layer == layer))[:NAMED]
    with canvas(6.0, 3.9) as (figure, (axes,)):
        for layer in sorted(layers, key=worst.__contains__):
            mine = sorted((row.ratio, row.worth) for row in rows if row.layer == layer)
            color = SERIES[worst.index(layer) % len(SERIES)] if layer in worst else MUTED
            known: Any = {"label": clean(layer, limit=34), "linewidth": 1.8} if layer in worst else {"linewidth": 0.8}
            axes.plot(*zip(*mine, strict=True), color=color, marker="o", markersize=3, **known)
        axes.set(xlabel="share removed of this layer alone", ylabel="what the model is worth")
        axes.set_title(clean(title, limit=60) if title else f"{len(layers)} layers, one at a time")
        axes.legend(loc="lower left", fontsize=8)
        lowest = min(rows, key=lambda row: row.worth)
        text = f"{lowest.layer} minds most: {lowest.worth:.3g} without {lowest.ratio:.0%} of it"
        return svg("prune-sensitivity", figure, f"Worth of the model over the share pruned, layer by layer; {text}")


def save(rows: Sequence[Row], path: Path, *, title: str = "") -> Path:
    """The drawing as .svg, and the rows beside it as .json; OptionError for another ending."""
    if path.suffix != ".svg":
        raise OptionError("out", f"{path.name!r} does not end in .svg")
    publish_json(path.with_suffix(".json"), [row.to_dict() for row in rows])
    publish(path, draw(rows, title=title).file().encode())
    return path
