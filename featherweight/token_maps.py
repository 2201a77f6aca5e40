# SPDX-License-Identifier: Apache-2.0
"""What a transformer made of a picture, drawn over it: the patches it kept, stage by stage, or where attention went.

Pixels in, a file out: .png, or .svg with a caption under each panel. Which patches and which weights is asked
elsewhere (`verbs.draw`), so that an exported file can be drawn without torch. Nothing depends on the reader's theme.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .errors import OptionError, shown
from .files import publish

Pixels = NDArray[np.uint8]  # (H, W, 3)
SIDE = 224  # panels smaller than this are enlarged by a whole factor
GAP, LINE = 8, 22  # between panels, and for a caption, in pixels
FADED = 0.16  # what is left of a dropped patch's picture ...
DULL = np.array([203.0, 213.0, 225.0])  # ... and the color that the rest becomes
WARM = np.array([215.0, 48.0, 31.0])  # the color of the largest weight
SUFFIXES = (".svg", ".png")


@dataclass(frozen=True)
class Panel:
    """One picture of a row, and what it shows."""

    caption: str
    pixels: Pixels


def grid_of(count: int, size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of so many patches of an input (height, width); OptionError where they fill no rectangle."""
    fits = [rows for rows in range(1, count + 1) if count % rows == 0]
    rows = min(fits, key=lambda rows: abs(np.log(rows / (count // rows) * size[1] / size[0])))
    if abs(np.log(rows / (count // rows) * size[1] / size[0])) > 0.2:
        raise OptionError("model", f"its {count} patches fill no grid over an input of {size[0]} x {size[1]}")
    return rows, count // rows


def kept_over(picture: Pixels, kept: Sequence[bool]) -> Pixels:
    """The input's picture with the dropped patches faded; `kept` is row by row."""
    mask = np.asarray(kept, bool).reshape(grid_of(len(kept), picture.shape[:2]))
    large = enlarged(picture)
    strength = np.where(_spread(mask, large.shape[:2]), 1.0, FADED)[..., None]
    return np.round(large * strength + DULL * (1 - strength)).astype(np.uint8)


def heat_over(picture: Pixels, weights: Sequence[float]) -> Pixels:
    """The input's picture in gray, redder where the weight of a patch is nearer to the largest; row by row."""
    values = np.asarray(weights, float).reshape(grid_of(len(weights), picture.shape[:2]))
    values = values / max(values.max(), np.finfo(float).tiny)
    large = enlarged(picture)
    small = Image.fromarray(values.astype(np.float32))
    heat = small.resize((large.shape[1], large.shape[0]), Image.Resampling.BILINEAR)
    strength = np.asarray(heat).clip(0, 1)[..., None] * 0.75
    gray = large.mean(axis=2, keepdims=True).repeat(3, axis=2)
    return np.round(gray * (1 - strength) + WARM * strength).astype(np.uint8)


def enlarged(picture: Pixels) -> Pixels:
    """A picture of at least SIDE pixels a side, each pixel a whole square."""
    factor = max(1, -(-SIDE // min(picture.shape[:2])))
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)


def save(panels: Sequence[Panel], path: str | Path) -> Path:
    """Panels side by side as .png, or as .svg with their captions. Returns the path; OptionError for another suffix."""
    path = Path(path)
    check_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    publish(path, _png(_row(panels)) if path.suffix == ".png" else _svg(panels).encode())
    return path


def check_path(path: Path) -> None:
    """OptionError unless the file's name ends in a format that can be written."""
    if path.suffix not in SUFFIXES:
        raise OptionError("path", f"{shown(path)} does not end in {' or '.join(SUFFIXES)}")


def _spread(mask: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.bool_]:
    """A mask of patches -> one of pixels."""
    rows = np.arange(size[0]) * mask.shape[0] // size[0]
    columns = np.arange(size[1]) * mask.shape[1] // size[1]
    return mask[rows[:, None], columns[None, :]]


def _row(panels: Sequence[Panel]) -> Pixels:
    height = max(panel.pixels.shape[0] for panel in panels)
    gap = np.full((height, GAP, 3), 255, np.uint8)
    parts: list[Pixels] = []
    for panel in panels:
        below = np.full((height - panel.pixels.shape[0], panel.pixels.shape[1], 3), 255, np.uint8)
        parts += [np.concatenate([panel.pixels, below]), gap]
    return np.concatenate(parts[:-1], axis=1)


def _svg(panels: Sequence[Panel]) -> str:
    x, parts = GAP, []
    for panel in panels:
        height, width = panel.pixels.shape[:2]
        data = base64.b64encode(_png(panel.pixels)).decode()
        text = html.escape(panel.caption)
        place = f'x="{x}" y="{GAP}" width="{width}" height="{height}"'
        parts.append(f'<image {place} href="data:image/png;base64,{data}"/>')
        parts.append(f'<text x="{x}" y="{GAP + height + LINE - 6}">{text}</text>')
        x += width + GAP
    height = 2 * GAP + LINE + max(panel.pixels.shape[0] for panel in panels)
    said = html.escape("; ".join(panel.caption for panel in panels))
    style = "text { font: 13px system-ui, sans-serif; fill: #1c2127; }"
    size = f'width="{x}" height="{height}" viewBox="0 0 {x} {height}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" role="img" {size}>'
    background = f'<rect width="{x}" height="{height}" fill="#ffffff"/>'
    return "\n".join([head, f"<title>{said}</title>", f"<style>{style}</style>", background, *parts, "</svg>", ""])


def _png(pixels: Pixels) -> bytes:
    stored = io.BytesIO()
    Image.fromarray(pixels).save(stored, format="PNG")
    return stored.getvalue()
