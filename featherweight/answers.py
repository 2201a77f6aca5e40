# SPDX-License-Identifier: Apache-2.0
"""A teacher's answers kept on the disk, so that it is asked once for each augmented picture and not in every epoch.

The augmentation then has so many epochs as `Batches.cycle` says, which come again and again. What is given back is what
the teacher answered to that very batch, to the bit. A folder of answers belongs to one teacher, one set of pictures and
one augmentation; any other is refused. Parts of it are published whole, so a killed run goes on with the next part.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from featherweight import distributed, files
from featherweight.data.batches import Batches
from featherweight.doors import checkpoint as door
from featherweight.doors import json as strict_json
from featherweight.errors import InputError, OptionError
from featherweight.method import Batch, Task, answer
from featherweight.options import differences, facts_of
from featherweight.packing import pack, unpack

PART = 4096  # samples of one file, or one batch if that is more
FACTS = "facts.json"


@dataclass(frozen=True)
class Layout:
    """Where the answer to a place of `Batches.cycle` lies."""

    folder: Path
    rank: int
    world: int
    batch_size: int
    rows: int  # of an epoch, over all processes
    steps: int  # of an epoch

    @property
    def steps_per_part(self) -> int:
        return max(1, PART // self.batch_size)

    @property
    def parts(self) -> int:
        return -(-self.steps // self.steps_per_part)

    def path(self, variant: int, part: int) -> Path:
        """The file of so many batches."""
        return self.folder / f"answers-{variant:04d}-{self.rank:04d}-{part:06d}.safetensors"

    def find(self, place: int) -> tuple[Path, int, int]:
        """The file, the first row and the batch in it of a batch that begins at `place`."""
        variant, row = divmod(place, self.rows)
        step = (row - self.rank) // self.world // self.batch_size
        part, inside = divmod(step, self.steps_per_part)
        return self.path(variant, part), inside * self.batch_size, inside


class Remembered(nn.Module):
    """A teacher that is asked no more: `fit` takes its answers from the disk. Called by itself, it answers afresh."""

    def __init__(self, teacher: nn.Module, layout: Layout) -> None:
        super().__init__()
        self.teacher = teacher
        self._layout = layout
        self._open: tuple[Path, dict[str, Tensor]] | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.teacher(*args, **kwargs)

    def recall(self, batch: Batch) -> Tensor:
        """The answers (B, K) to this batch. OptionError for one that was not remembered."""
        if "place" not in batch:
            raise OptionError("cycle", "answers are remembered for Batches(..., cycle=N) only, and these come but once")
        path, row, step = self._layout.find(int(batch["place"][0]))
        if self._open is None or self._open[0] != path:
            self._open = path, _read(path)
        stored, count = self._open[1], len(batch["place"])
        index = batch["index"].cpu()
        if not torch.equal(stored["index"][row : row + count], index) or int(stored["mark"][step]) != mark(batch):
            raise OptionError("cycle", "these batches are others than those whose answers were remembered")
        return stored["logits"][row : row + count].to(batch["image"].device)


def remember(
    teacher: nn.Module,
    batches: Batches,
    task: Task,
    *,
    folder: str | os.PathLike[str],
    precision: torch.dtype = torch.float32,
    fingerprint: str = "",
) -> Remembered:
    """The teacher with its answers to `batches` in `folder`: those that are not there yet are asked for now.

    fingerprint: of the data. precision: that of the training. Under `torchrun` each process keeps its own. OptionError
    for batches without `cycle`, InputError for a folder with other answers.
    """
    variants = batches.cycle
    if variants is None:
        raise OptionError("cycle", "say how many epochs of augmentation there are: Batches(..., cycle=10)")
    device = next((p.device for p in teacher.parameters()), torch.device("cpu"))
    team = distributed.join(device)
    batches = batches.shard(team.rank, team.world)
    known = SimpleNamespace(teacher=teacher, built=_digest(repr(teacher)), precision=str(precision))
    facts = facts_of(known, batches, team.world) | {"pictures": _pictures(batches), "fingerprint": fingerprint}
    _claim(Path(folder), facts, team)
    rows = len(batches.order(0))
    layout = Layout(Path(folder), team.rank, team.world, batches.batch_size, rows, batches.steps_per_epoch)
    for variant in range(variants):
        missing = [part for part in range(layout.parts) if not layout.path(variant, part).is_file()]
        if not missing:
            continue
        stream = batches.epoch(variant, missing[0] * layout.steps_per_part)
        for part in range(missing[0], layout.parts):
            found = _asked(teacher, islice(stream, layout.steps_per_part), task, device, precision)
            if part in missing:
                door.write(layout.path(variant, part), pack(found), {"answers": "1"})
    return Remembered(teacher, layout)


def _asked(
    teacher: nn.Module, batches: Iterator[Batch], task: Task, device: torch.device, precision: torch.dtype
) -> dict[str, Tensor]:
    """Logits (N, K) and index (N,) of some batches, and what each is recognized by."""
    logits, index, marks = [], [], []
    for batch in batches:
        here = {name: value.to(device) for name, value in batch.items()}
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            logits.append(answer(task, here, None, teacher).cpu())
        index.append(batch["index"])
        marks.append(mark(batch))
    return {"logits": torch.cat(logits), "index": torch.cat(index), "mark": torch.tensor(marks)}


def mark(batch: Batch) -> int:
    """What a batch is recognized by beside its indices: a checksum of its first picture."""
    return zlib.crc32(batch["image"][0].detach().cpu().contiguous().numpy().data)


def _claim(folder: Path, facts: dict[str, Any], team: distributed.Team) -> None:
    """Make the folder ours, or see that it is. All processes wait for the leading one."""
    failure: InputError | None = None
    if team.leads:
        folder.mkdir(parents=True, exist_ok=True)
        files.clean_stale(folder)
        path = folder / FACTS
        if not path.is_file():
            files.publish_json(path, facts)
        then = strict_json.read(path)
        if not isinstance(then, dict) or (changes := differences(then, facts)):
            what = changes if isinstance(then, dict) else "it is no list of facts"
            failure = InputError(path, "changed", f"{what}; take another folder for these answers, or delete this one")
    if team.any(failure is not None):
        raise failure or InputError(folder / FACTS, "changed", "belongs to other answers")


def _read(path: Path) -> dict[str, Tensor]:
    stored, metadata = door.read_sealed(path)
    if "answers" not in metadata or set(stored) != {"logits", "index", "mark"}:
        raise InputError(path, "bad_schema", "holds no answers of a teacher")
    return unpack(stored)


def _pictures(batches: Batches) -> str:
    """A digest of the names and labels of all pictures."""
    total = sha256()
    images = batches.images
    for i in range(len(images)):
        total.update(f"{int(images.labels[i])} {images.names(i)}\n".encode("utf-8", "surrogateescape"))
    return total.hexdigest()[:16]


def _digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()[:16]
