# SPDX-License-Identifier: Apache-2.0
"""A golden file while it is checked: what was compared, and what was found wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ATOL = 2e-5  # right and wrong differ by 2.8e-4 and more, two right ones by 3e-6
DIGEST = {"shape", "at", "values", "l2"}


@dataclass
class Case:
    """One file while it is checked: what was found wrong, and which digests were looked at."""

    name: str
    reference: dict[str, Any]
    compiled: bool = False  # whether evaluation goes through torch.compile, without a break in the graph
    wrong: list[str] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)
    path: Path = Path()  # the file, for what lies beside it
    told: list[str] = field(default_factory=list)  # what to say of a file that agrees

    def compare(self, place: str, found: Tensor, *, atol: float = ATOL) -> None:
        """A tensor of ours against the digest at a dotted place of the file.

        `atol` is for numbers of standard deviation 1, as logits are; the rounding of larger ones is larger: of a stage
        of SReT with 10.6, the authors' own float32 is 1.7e-5 off their float64.
        """
        digest = at(self.reference, place)
        self.seen.add(place)
        if list(found.shape) != digest["shape"]:
            self.wrong.append(f"{place}: shape {list(found.shape)}, not {digest['shape']}")
            return
        flat = found.detach().double().flatten()
        values = torch.tensor(digest["values"], dtype=torch.float64)
        off = float((flat[digest["at"]] - values).abs().max())
        size = flat.numel() ** 0.5
        norm = abs(float(flat.norm()) - digest["l2"]) / size
        atol *= max(1.0, digest.get("std", 1.0))
        if not (off <= atol and norm <= atol):  # NaN is wrong too
            self.wrong.append(f"{place}: off by {off:.1e}, norm by {norm:.1e} (allowed {atol:.0e})")

    def equal(self, place: str, found: Any) -> None:
        """A plain value of ours against the one at this place, where the file has one."""
        wanted = at(self.reference, place)
        if wanted is not None and found != wanted:
            self.wrong.append(f"{place}: {str(found)[:80]}, not {str(wanted)[:80]}")

    def inside(self, place: str, names: Mapping[str, Tensor]) -> None:
        """Those of the tensors that have a digest below this place."""
        for name in at(self.reference, place) or {}:
            if name in names and f"{place}.{name}" not in self.seen:
                self.compare(f"{place}.{name}", names[name])


def at(tree: Any, place: str) -> Any:
    """The value at a dotted place, or None; a part of the place may hold a dot of its own (a rate such as 0.7)."""
    parts = place.split(".")
    for end in range(len(parts), 0, -1):
        key = ".".join(parts[:end])
        step = tree.get(key) if isinstance(tree, dict) else None
        if isinstance(tree, list) and end == 1 and key.isdigit() and int(key) < len(tree):
            step = tree[int(key)]
        if step is not None:
            return step if end == len(parts) else at(step, ".".join(parts[end:]))
    return None


def digests(tree: Any, place: str = "") -> Iterator[str]:
    """The places of all digests."""
    if isinstance(tree, dict) and tree.keys() >= DIGEST:
        yield place
    elif isinstance(tree, (dict, list)):
        items = tree.items() if isinstance(tree, dict) else enumerate(tree)
        for key, value in items:
            yield from digests(value, f"{place}.{key}".lstrip("."))
