# SPDX-License-Identifier: Apache-2.0
"""What was verified of a detection set, remembered under a hash of everything it depends on: tensors and JSON, sealed.

The key covers the rows as they were read from the annotation files and each picture's name, size and time of change, so
a file that changed is verified again and a cache copied with other data is never taken. Nothing is written beside data.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featherweight.data.objects import Finding, Findings, Table
from featherweight.data.parts import Names
from featherweight.data.scenes import Part, Pictures, Settled
from featherweight.doors import checkpoint, door
from featherweight.doors import json as strict_json
from featherweight.doors.stored import Stored
from featherweight.errors import InputError

VERSION = 1
FORMAT = f"detection cache {VERSION}"


def settled(
    part: Part,
    classes: int,
    findings: Findings,
    cache: str | Path | None,
    *,
    settle: Callable[[Part, int, Findings], Settled],
) -> Settled:
    """What `settle` makes of a part, from the cache where it is there."""
    if cache is None:
        return settle(part, classes, findings)
    folder = Path(cache)
    path = folder / f"{key(part, classes, findings)}.safetensors"
    if path.exists():
        with contextlib.suppress(InputError), door(path, "corrupt"):  # if damaged or of another version: made again
            return _read(path, part, findings)
    mine = Findings(findings.on_bad, tainted=set(findings.tainted))
    found = settle(part, classes, mine)
    folder.mkdir(parents=True, exist_ok=True)
    _write(path, found, mine)
    _merge(findings, mine)
    return found


def key(part: Part, classes: int, findings: Findings) -> str:
    """sha256 over what the result depends on."""
    total = hashlib.sha256(json.dumps([VERSION, classes, findings.on_bad, len(part.names)]).encode("ascii"))
    for i, name in enumerate(part.names):
        try:
            status = os.stat(part.root / name)
            mark = (status.st_size, status.st_mtime_ns)
        except OSError:
            mark = (-1, -1)
        declared = part.declared[i] if part.declared else None
        number = part.ids[i] if part.ids else i
        row = [name, *mark, declared, number, name in findings.tainted]
        total.update(json.dumps(row, ensure_ascii=True).encode("ascii"))
        for raw in part.raws[i]:
            told = [raw.where, raw.label, *map(repr, raw.box), raw.crowd, repr(raw.area), raw.share]
            total.update(json.dumps(told).encode("ascii"))
            for ring in raw.rings:
                total.update(np.ascontiguousarray(ring).tobytes())
    return total.hexdigest()


def _write(path: Path, found: Settled, findings: Findings) -> None:
    pictures = found.pictures
    arrays: dict[str, NDArray[np.generic]] = {name: pictures.table.arrays[name] for name in Table.FIELDS}
    arrays |= {"sizes": pictures.sizes, "ids": pictures.ids}
    arrays["digests"] = np.frombuffer(b"".join(found.digests), np.uint8).reshape(-1, 32)
    note = {
        "names": [pictures.names(i) for i in range(len(pictures))],
        "left_out": [[path, *why] for path, why in findings.left_out.items()],
        "examples": [[one.path, one.reason, one.text, one.done] for one in findings.examples],
        "counts": [[reason, done, count] for (reason, done), count in findings.counts.items()],
        "tainted": sorted(findings.tainted),
    }
    try:
        text = json.dumps(note)
        text.encode("utf-8")
    except UnicodeEncodeError:
        return  # a name that no text can hold: not remembered
    tensors = {name: Stored.of(np.asarray(array)) for name, array in arrays.items()}
    checkpoint.write(path, tensors, {"note": text, "format": FORMAT})


def _read(path: Path, part: Part, findings: Findings) -> Settled:
    tensors, metadata = checkpoint.read_sealed(path)
    if metadata.get("format") != FORMAT:
        raise InputError(path, "version", f"is not what this version remembers ({FORMAT})")
    note = strict_json.parse(metadata["note"], path)
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    table = Table({name: arrays[name] for name in Table.FIELDS})
    pictures = Pictures(part.root, Names(note["names"]), arrays["sizes"], arrays["ids"], table)
    mine = Findings(findings.on_bad)
    mine.examples = [Finding(*one) for one in note["examples"]]
    mine.counts.update({(reason, done): count for reason, done, count in note["counts"]})
    mine.tainted = set(note["tainted"])
    mine.left_out = {path: (reason, text) for path, reason, text in note["left_out"]}
    _merge(findings, mine)
    return Settled(pictures, [row.tobytes() for row in arrays["digests"]])


def _merge(findings: Findings, more: Findings) -> None:
    findings.counts.update(more.counts)
    findings.examples += more.examples
    findings.tainted |= more.tainted
    findings.left_out |= more.left_out
