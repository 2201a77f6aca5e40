# SPDX-License-Identifier: Apache-2.0
"""Where pictures and labels come from: the digits that need no file, a folder of class folders, tables, shards."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from featherweight.data import digits, folder, huggingface, parquet, shards, tables
from featherweight.data.batches import Batches
from featherweight.data.memory import Held
from featherweight.data.parts import Data, Images, Listing, Skipped, TooManyBad, assemble
from featherweight.data.transforms import Augment
from featherweight.errors import InputError, OptionError, closest, shown

__all__ = ["Augment", "Batches", "Data", "Images", "Skipped", "TooManyBad", "describe", "load"]

BUILT_IN = ("digits",)


def load(source: Any, *, max_bad: float = 0.01, seed: int = 0, **options: Any) -> Data:
    """The data set behind a built-in name ("digits"), a path or pattern, or a Dataset of the Hugging Face library.

    A path is a folder of class folders, a parquet, a CSV, tar shards (data-{0000..0009}.tar) or what `save_to_disk`
    wrote; which it is, is found out.
    max_bad: largest share of unreadable files that is skipped over rather than refused. seed: of the built-in sets.
    options: those of `load_digits` or `load_files`.
    """
    if not 0 <= max_bad <= 1:
        raise OptionError("max_bad", f"must be 0..1, not {max_bad!r}")
    if isinstance(source, str) and source in BUILT_IN:
        known_options("data.digits", load_digits, options)
        data = load_digits(seed=seed, **options)
        return replace(data, note=f"the built-in set; your own is ./{source}") if Path(source).exists() else data
    known_options("data", load_files, options)
    if huggingface.is_dataset(source):
        return load_huggingface(source, max_bad=max_bad, **options)
    return load_files(Path(source), max_bad=max_bad, **options)


def known_options(where: str, build: Callable[..., Data], options: Mapping[str, Any]) -> None:
    """Refuse an option that `build` has not."""
    known = [name for name, p in inspect.signature(build).parameters.items() if p.kind is p.KEYWORD_ONLY]
    for name in options:
        if name not in known or name in ("seed", "max_bad"):
            text = f"no {name!r} here; {closest(name, known)}Known: {', '.join(known)}"
            raise OptionError(where, text)


def load_digits(
    *,
    seed: int = 0,
    n_train: int = 6000,
    n_val: int = 720,
    n_test: int = 1200,
    size: int = 48,
    glyph_min: int = 16,
    glyph_max: int = 28,
    background: float = 0.45,
    color_min: float = 0.7,
    rotation: float = 12.0,
    digits_per_image: int = 1,
) -> Data:
    """Handwritten digits on photographs; the look is that of `digits.Look`."""
    look = digits.Look(size, glyph_min, glyph_max, background, color_min, rotation, digits_per_image)
    counts = {"train": n_train, "val": n_val, "test": n_test}
    for name, value in {"seed": seed, **{f"n_{part}": n - 1 for part, n in counts.items()}}.items():
        if not isinstance(value, int) or not 0 <= value < 2**31:
            raise OptionError(f"data.digits.{name}", "must be a whole number, 0 or more for seed, 1 or more for n_")
    parts = {part: digits.Digits(part, n, seed=seed, look=look) for part, n in counts.items()}
    mark = digits.fingerprint(seed, counts, look)
    return Data("digits", "digits", digits.CLASSES, parts["train"], parts["val"], parts["test"], mark)


def load_files(
    root: Path,
    *,
    max_bad: float = 0.01,
    val_share: float = 0.2,
    image_column: str = "image",
    label_column: str = "label",
    in_memory: bool = False,
) -> Data:
    """Pictures on disk; every file is decoded once. val_share: what is split off train where there is no validation.

    in_memory: keep the pictures decoded, which saves most of the time of reading where they are small.
    """
    if not 0 < val_share < 1:
        raise OptionError("data.val_share", f"must be between 0 and 1, not {val_share!r}")
    found = recognize(root, image_column=image_column, label_column=label_column)
    data = assemble(found, max_bad=max_bad, val_share=val_share)
    if not in_memory:
        return data
    test = None if data.test is None else Held(data.test)
    return replace(data, train=Held(data.train), val=Held(data.val), test=test)


def load_huggingface(
    source: Any,
    *,
    max_bad: float = 0.01,
    val_share: float = 0.2,
    image_column: str = "image",
    label_column: str = "label",
) -> Data:
    """A Dataset or DatasetDict of the Hugging Face library; the options are those of `load_files`."""
    found = huggingface.given(source, image_column=image_column, label_column=label_column)
    return assemble(found, max_bad=max_bad, val_share=val_share)


def recognize(root: Path, *, image_column: str, label_column: str) -> Listing:
    """Which kind of data set this is, and its files."""
    columns = {"image_column": image_column, "label_column": label_column}
    if "{" in str(root) and not root.exists():
        paths = [Path(name) for name in shards.expanded(str(root))]
        base = Path(os.path.commonpath([path.parent for path in paths]))
        return shards.listing(base, paths, label_column=label_column)
    if root.is_file():
        if root.suffix.lower() == ".parquet":
            return parquet.listing(root, [root], **columns)
        if root.suffix.lower() == ".csv":
            return tables.csv_listing(root, [root])
        if root.suffix.lower() == ".tar":
            return shards.listing(root, [root], label_column=label_column)
        raise InputError(root, "unsupported_format", "a data set is a folder, a .parquet, .csv or .tar file")
    if not root.is_dir():
        text = f"no such file or folder; {closest(str(root), BUILT_IN)}Built in: {', '.join(BUILT_IN)}"
        raise InputError(root, "missing", text)
    if huggingface.is_saved(root):
        return huggingface.saved(root, **columns)
    places = [root, *(root / name for name in ("data", *folder.SPLITS) if (root / name).is_dir())]
    if parquets := sorted(path for place in places for path in place.glob("*.parquet")):
        return parquet.listing(root, parquets, **columns)
    if csvs := sorted(path for path in root.glob("*.csv") if tables.is_listing(path)):
        return tables.csv_listing(root, csvs)
    if tars := shards.shards_in(root):
        return shards.listing(root, tars, label_column=label_column)
    return folder.listing(root)


def describe(data: Data) -> dict[str, Any]:
    """What `data check` shows: format, counts, class histogram, what was left out. Plain values."""
    parts = {"train": data.train, "val": data.val, "test": data.test}
    present = {part: images for part, images in parts.items() if images is not None}
    counts = {part: np.bincount(i.labels, minlength=len(data.classes)).tolist() for part, i in present.items()}
    return {
        "name": shown(data.name),
        "format": data.format,
        "fingerprint": data.fingerprint,
        "note": data.note,
        "counts": {part: len(images) for part, images in present.items()},
        "classes": {name: {p: counts[p][k] for p in present} for k, name in enumerate(data.classes)},
        "skipped": [{"path": shown(s.path), "reason": s.reason, "text": s.text} for s in data.skipped],
    }
