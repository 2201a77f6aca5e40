# SPDX-License-Identifier: Apache-2.0
"""A data set of texts in parts: one file that is split, or a folder with a file for each part.

Labelled sentences and questions in SQuAD's form, as `text` reads them. In a folder a part's file has the part's name in
its own, between dots, dashes or underscores: sst2.train.txt, dev.tsv, train-v1.1.json; what names no part is not read.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featherweight.data.text import Asked, questions, rows_of
from featherweight.errors import InputError, OptionError, shown
from featherweight.runtime.record import TEXT_TASKS

PARTS = {"train": ("train", "training"), "val": ("val", "dev", "valid", "validation"), "test": ("test", "testing")}
SUFFIXES = {TEXT_TASKS[0]: (".txt", ".csv", ".tsv", ".jsonl", ".parquet"), TEXT_TASKS[1]: (".json",)}
Sentence = tuple[str, int]
Part = tuple[Any, ...]  # of Sentence or Asked


@dataclass(frozen=True)
class Corpus:
    """Texts for training, for choosing and for judging; what stands in for `Data` where a recipe reads texts."""

    name: str
    format: str
    classes: tuple[str, ...]  # none of questions
    train: Part
    val: Part
    test: Part | None
    fingerprint: str
    note: str = ""
    skipped: tuple[Any, ...] = ()


def load(
    source: str | Path,
    *,
    task: str = TEXT_TASKS[0],
    text: str | None = None,
    label: str | None = None,
    classes: Sequence[str] | None = None,
    val: float = 0.1,
    test: float = 0.1,
    seed: int = 0,
) -> Corpus:
    """The data set in a file or folder. InputError where it is not one, or labels of parts differ.

    text, label: names of the columns of a table; by default those that `text` knows. classes: names of the labels in
    the model's order, also of labels that are numbers. val, test: their shares where parts are to be split off.
    """
    source = Path(source)
    for name, share in (("val", val), ("test", test)):
        if not 0 <= share < 1:
            raise OptionError(name, f"{share!r} is not a share, from 0 to below 1")
    if not source.exists():
        raise InputError(source, "missing", "does not exist; give a file of texts, or a folder of them")
    files = _files(source, task) if source.is_dir() else {"train": source}
    if task == TEXT_TASKS[1]:
        read: dict[str, Part] = {part: tuple(questions(path)) for part, path in files.items()}
        names: tuple[str, ...] = ()
    else:
        rows = {part: rows_of(path, text=text, label=label) for part, path in files.items()}
        names = _names(rows, files, classes)
        read = {
            part: tuple((one, names.index(_called(its, names))) for one, its in some) for part, some in rows.items()
        }
    note = "" if set(read) == set(PARTS) else f"split by seed {seed}: what has no file of its own"
    whole = _split(read, val=val, test=test, seed=seed, path=source)
    return Corpus(source.name, task, names, whole["train"], whole["val"], whole.get("test"), _fingerprint(whole), note)


def _files(folder: Path, task: str) -> dict[str, Path]:
    """The file of each part."""
    found: dict[str, Path] = {}
    for path in sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES[task] and path.is_file()):
        words = set(re.split(r"[._\-\s]", path.stem.lower()))
        for part, called in PARTS.items():
            if words & set(called):
                if part in found:
                    text = f"has two files of the part {part}: {shown(found[part].name)} and {shown(path.name)}"
                    raise InputError(folder, "bad_schema", text)
                found[part] = path
    if "train" not in found:
        kinds = ", ".join(SUFFIXES[task])
        raise InputError(
            folder, "missing", f"has no file of the part train ({kinds}), such as train{SUFFIXES[task][0]}"
        )
    return found


def _names(
    rows: dict[str, list[tuple[str, str]]], files: dict[str, Path], classes: Sequence[str] | None
) -> tuple[str, ...]:
    """Names of the labels: as told, or those of the training part."""
    seen = {label for _, label in rows["train"]}
    found = tuple(classes) if classes else tuple(sorted(seen, key=lambda name: (len(name), name)))
    if len(found) < 2:
        raise InputError(
            files["train"], "unknown_name", f"has one label alone, {shown(', '.join(found))}; two are needed"
        )
    for part, some in rows.items():
        for number, (_, label) in enumerate(some):
            if _called(label, found) not in found:
                text = f"text {number + 1} has the label {shown(label, limit=40)!r}; known: {shown(', '.join(found))}"
                raise InputError(files[part], "unknown_name", text)
    return found


def _called(label: str, names: Sequence[str]) -> str:
    """The name of a label, which may be its number."""
    if label not in names and label.isdigit() and int(label) < len(names):
        return names[int(label)]
    return label


def _split(read: dict[str, Part], *, val: float, test: float, seed: int, path: Path) -> dict[str, Part]:
    """All three parts; of questions whole paragraphs go to one part."""
    found, rest = dict(read), list(read["train"])
    groups = [one.context if isinstance(one, Asked) else number for number, one in enumerate(rest)]
    each = list(dict.fromkeys(groups))
    order = [each[i] for i in np.random.default_rng(seed).permutation(len(each))]
    for part, share in (("test", test), ("val", val)):
        if part in found or (part == "test" and share == 0):
            continue
        count = max(1, round(share * len(each)))
        taken, order = set(order[:count]), order[count:]
        found[part] = tuple(one for one, group in zip(rest, groups, strict=True) if group in taken)
    left = set(order)
    found["train"] = tuple(one for one, group in zip(rest, groups, strict=True) if group in left)
    if not found["train"]:
        raise InputError(path, "empty", f"{len(rest)} texts are too few to be split")
    return found


def _fingerprint(parts: dict[str, Part]) -> str:
    """A digest of all texts and their labels."""
    total = hashlib.sha256()
    for name in sorted(parts):
        plain = [asdict(one) if isinstance(one, Asked) else one for one in parts[name]]
        total.update(json.dumps([name, plain], ensure_ascii=True).encode())
    return total.hexdigest()
