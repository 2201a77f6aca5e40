# SPDX-License-Identifier: Apache-2.0
"""A detector's graph as one line of text, so that graphs of users' own files stand in `model.json` as data.

Words are rows in order: `C64/3s2` a 3x3 convolution of 64 channels and stride 2, `C64/1<3` one that reads row 3 instead
of the row before, `C64/3:relu` one with an activation of its own; `MP`, `SP5`, `UP`, `ReOrg`, `DownC256`, `SPPCSPC512`,
`Rep256`; `cat<5,4`, `add<9,7`. The last word is the head: `Detect<74,75,76`, auxiliary rows after a plus sign.
"""

from __future__ import annotations

import re

from ..errors import OptionError, shown
from .yolov7_graph import Graph, Row

MAX_ROWS, MAX_CHANNELS = 2000, 16384
WORDS = {
    "C": "conv", "MP": "mp", "SP": "sp", "UP": "up", "ReOrg": "reorg", "DownC": "downc", "SPPCSPC": "sppcspc",
    "Rep": "rep", "cat": "cat", "add": "add",
}  # fmt: skip
NAMES = {block: word for word, block in WORDS.items()}
WIDE = ("conv", "downc", "sppcspc", "rep")  # blocks that say their channels
MANY = ("cat", "add")
_WORD = re.compile(r"([A-Za-z]+)(\d{1,5})?(?:/(\d{1,2})(?:s(\d))?)?(?::([a-z_]+))?(?:<(-?\d[\d,-]*)(?:\+(\d[\d,]*))?)?")


def write(graph: Graph) -> str:
    """The graph as text; `parse` reads it."""
    words = []
    for number, row in enumerate(graph.rows):
        word = NAMES[row.block]
        if row.block in WIDE:
            word += str(row.channels)
        if row.block == "sp":
            word += str(row.kernel)
        if row.block == "conv":
            word += f"/{row.kernel}" + (f"s{row.stride}" if row.stride > 1 else "") + (f":{row.act}" if row.act else "")
        plain = row.sources == (number - 1,) and row.block not in MANY
        words.append(word if plain else f"{word}<{','.join(map(str, row.sources))}")
    aux = f"+{','.join(map(str, graph.aux))}" if graph.aux else ""
    return " ".join([*words, f"Detect<{','.join(map(str, graph.lead))}{aux}"])


def parse(text: str) -> Graph:
    """The graph that a text describes; OptionError names the word that cannot be understood."""
    words = text.split()
    if not 2 <= len(words) <= MAX_ROWS:
        raise OptionError("graph", f"must have 2 to {MAX_ROWS} words, not {len(words)}")
    rows = tuple(_row(word, number) for number, word in enumerate(words[:-1]))
    found = _WORD.fullmatch(words[-1])
    if found is None or found[1] != "Detect" or not found[6]:
        raise OptionError("graph", f"ends with {shown(words[-1], limit=40)!r}, not with Detect<ROW,ROW,...")
    lead, aux = (_numbers(part or "", len(rows), words[-1]) for part in (found[6], found[7]))
    if len(lead) > 8 or min(lead) < 0 or len(aux) not in (0, len(lead)):
        raise OptionError("graph", f"{shown(words[-1], limit=40)!r}: 1 to 8 lead rows, and as many auxiliary ones")
    return Graph(rows, lead, aux)


def _row(word: str, number: int) -> Row:
    found = _WORD.fullmatch(word)
    if found is None or found[1] not in WORDS or found[7]:
        raise OptionError("graph", f"row {number}: {shown(word, limit=40)!r} is no row; known: {', '.join(WORDS)}")
    block = WORDS[found[1]]
    size, kernel, stride = (int(part or 0) for part in found.groups()[1:4])
    sources = _numbers(found[6], number, word) if found[6] else (number - 1,)
    right = (len(sources) > 1) == (block in MANY) and (kernel > 0) == (block == "conv") and not (stride > 2)
    right = right and (1 <= size <= MAX_CHANNELS if block in (*WIDE, "sp") else not found[2])
    right = right and not (block == "conv" and kernel % 2 == 0) and not (block == "sp" and size % 2 == 0)
    right = right and (block == "conv" or not found[5]) and not (block == "downc" and size % 2)
    if not right:
        raise OptionError("graph", f"row {number}: {shown(word, limit=40)!r} does not say what {block} needs")
    if block == "sp":
        return Row(block, sources, kernel=size)
    kernel = 3 if block == "rep" else kernel or 1
    return Row(block, sources, size if block in WIDE else 0, kernel, stride or 1, found[5] or "")


def _numbers(text: str, rows: int, word: str) -> tuple[int, ...]:
    """The rows in a list, each of which stands before row `rows`."""
    parts = text.split(",") if text else []
    if not all(re.fullmatch(r"-?\d{1,4}", part) and -1 <= int(part) < rows for part in parts):
        raise OptionError("graph", f"{shown(word, limit=40)!r} reads a row that does not stand before it")
    return tuple(map(int, parts))
