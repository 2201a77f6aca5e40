# SPDX-License-Identifier: Apache-2.0
"""Data sets of the Hugging Face library: folders that `save_to_disk` wrote, and the library's own objects.

The arrow files are mapped, not read, so a set may be larger than the memory. Splits named train, validation (or val,
dev) and test; the columns are those of `parquet`. The library itself is needed for its objects only.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from featherweight.data import parquet, tables
from featherweight.data.parts import PARTS, Listing
from featherweight.doors import door, json
from featherweight.errors import InputError, OptionError, missing_extra, shown

SPLITS_FILE, STATE_FILE = "dataset_dict.json", "state.json"
MAX_BYTES = 1 << 42
Read = dict[str, list[tuple[Path, Any]]]  # part -> tables and what they are called


def is_saved(root: Path) -> bool:
    """Whether `save_to_disk` wrote this folder."""
    return (root / SPLITS_FILE).is_file() or (root / STATE_FILE).is_file()


def is_dataset(source: object) -> bool:
    """Whether this is a Dataset or DatasetDict of the library, told without importing it."""
    return any(cls.__module__.partition(".")[0] == "datasets" for cls in type(source).__mro__)


def saved(root: Path, *, image_column: str, label_column: str) -> Listing:
    """The data set in such a folder."""
    folders = {"train": root}
    if (root / SPLITS_FILE).is_file():
        found = json.read(root / SPLITS_FILE)
        names = found.get("splits") if isinstance(found, dict) else None
        if not isinstance(names, list) or not all(isinstance(name, str) and _plain(name) for name in names):
            raise InputError(root / SPLITS_FILE, "bad_schema", "must list the names of the splits")
        folders = {part: root / name for part, name in _parts(root, names).items()}
    columns = (image_column, label_column)
    read = {part: [(path, _columns(path, *columns)) for path in _files(f)] for part, f in folders.items()}
    return parquet.assembled(root, read, label_column=label_column, kind="huggingface")


def given(source: Any, *, image_column: str, label_column: str) -> Listing:
    """The data set in a Dataset, or in a DatasetDict with its splits."""
    root = Path("datasets")
    splits = dict(source) if isinstance(source, Mapping) else {"train": source}
    read: Read = {}
    for part, name in _parts(root, list(splits)).items():
        if not hasattr(splits[name], "__len__"):
            kind = type(splits[name]).__name__
            text = f"{kind} has no length and no places: give a Dataset, or save it with save_to_disk"
            raise OptionError("data", text)
        with door(root / name, "bad_schema"):
            table = splits[name].with_format("arrow")[:]
            read[part] = [(root / name, parquet.two_columns(root / name, table, image_column, label_column))]
    return parquet.assembled(root, read, label_column=label_column, kind="huggingface")


def _parts(root: Path, names: list[str]) -> dict[str, str]:
    """Part -> split. Other splits than train, validation and test are refused by name."""
    parts: dict[str, str] = {}
    for name in names:
        part = tables.SPLITS.get(name.lower())
        if part is None:
            text = f"the split {shown(name, limit=60)!r} is neither train, validation nor test; leave it out"
            raise InputError(root, "unknown_name", text)
        if part in parts:
            raise InputError(root, "duplicate_name", f"the splits {parts[part]} and {name} mean the same part")
        parts[part] = name
    if "train" not in parts:
        raise InputError(root, "missing", f"has {', '.join(names) or 'no splits'} but no train split")
    return {part: parts[part] for part in PARTS if part in parts}


def _files(folder: Path) -> list[Path]:
    """The arrow files of one split, in order."""
    state = json.read(folder / STATE_FILE)
    listed = state.get("_data_files") if isinstance(state, dict) else None
    names = [one.get("filename") if isinstance(one, dict) else None for one in listed or []]
    if not isinstance(listed, list) or not names or not all(isinstance(n, str) and _plain(n) for n in names):
        raise InputError(folder / STATE_FILE, "bad_schema", "must list the arrow files of this folder by name")
    if state.get("_indices_data_files"):
        text = "is a selection of rows: save it again with flatten_indices().save_to_disk()"
        raise InputError(folder / STATE_FILE, "unsupported_format", text)
    return [folder / str(name) for name in names]


def _plain(name: str) -> bool:
    """Whether a name stays in its folder."""
    return bool(name) and name not in (".", "..") and not set(name) & {"/", "\\", "\0"}


def _columns(path: Path, image_column: str, label_column: str) -> Any:
    """The two columns of an arrow file that stays on the disk."""
    try:
        pa = importlib.import_module("pyarrow")
        ipc = importlib.import_module("pyarrow.ipc")
    except ImportError as error:
        raise missing_extra("reading a Hugging Face data set", "pyarrow", "parquet") from error
    if not path.is_file():
        raise InputError(path, "missing", "does not exist, but state.json lists it; copy the folder again")
    with door(path, "corrupt", "is not an arrow file that can be read"):
        table = ipc.open_stream(pa.memory_map(str(path), "r")).read_all()
        found = parquet.two_columns(path, table, image_column, label_column)
        found.validate(full=True)  # every offset, before anything is read by it
        return found
