# SPDX-License-Identifier: Apache-2.0
"""Where the tiles of a large picture lie."""

from __future__ import annotations

from featherweight.errors import OptionError

MOST = 10_000  # tiles of one picture


def tiles(height: int, width: int, *, size: int, overlap: float = 0.2) -> list[tuple[int, int, int, int]]:
    """Left, top, right, bottom of square tiles that cover a picture, row by row; neighbors share at least `overlap`.

    The last of a row or column ends at the picture's edge; where the picture is smaller than a tile, so is the tile.
    OptionError for more than 10,000 tiles.
    """
    rows, columns = _starts(height, size, overlap), _starts(width, size, overlap)
    if len(rows) * len(columns) > MOST:
        raise OptionError("tile", f"{size} pixels cut a picture of {height} x {width} into more than {MOST} tiles")
    return [(left, top, min(left + size, width), min(top + size, height)) for top in rows for left in columns]


def _starts(length: int, size: int, overlap: float) -> list[int]:
    if length <= size:
        return [0]
    step = max(1, int(size * (1 - overlap)))
    starts = list(range(0, length - size, step))
    return [*starts, length - size]
