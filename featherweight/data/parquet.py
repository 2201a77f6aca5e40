# SPDX-License-Identifier: Apache-2.0
"""Parquet as the datasets library writes it, read with pyarrow.

A column `image` of bytes or {bytes, path}, a column `label` of numbers (their names from the ClassLabel in the file's
metadata, if there) or of text. The encoded pictures are held in memory.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featherweight.data import tables
from featherweight.data.parts import PARTS, Encoded, Listing, Names
from featherweight.doors import door, json, read_input
from featherweight.errors import InputError, closest, missing_extra, shown

MAX_BYTES = 2 << 30  # of all files of a data set


class Rows(Encoded):
    """Pictures in a column of encoded bytes."""

    def __init__(self, column: Any, names: Names, labels: NDArray[np.int64], rows: NDArray[np.int64]) -> None:
        self._column, self._names, self._rows = column, names, rows
        self.labels = labels

    def source(self, i: int) -> bytes:
        """The encoded picture; empty where the table has none."""
        found: bytes | None = self._column[int(self._rows[i])].as_py()
        return found or b""

    def take(self, which: NDArray[np.int64]) -> Rows:
        """Some of them."""
        return Rows(self._column, Names([self._names[int(i)] for i in which]), self.labels[which], self._rows[which])


def listing(root: Path, paths: Sequence[Path], *, image_column: str, label_column: str) -> Listing:
    """The data set in one parquet file or several, grouped by part."""
    total = sum(path.stat().st_size for path in paths)
    if total > MAX_BYTES:
        text = f"has {total} bytes of parquet, which are held in memory; the limit is {MAX_BYTES}: use a folder"
        raise InputError(root, "too_large", text)
    read = {
        part: [(path, table_of(path, image_column, label_column)) for path in group]
        for part, group in tables.by_part(root, paths).items()
    }
    return assembled(root, read, label_column=label_column, kind="parquet")


def assembled(root: Path, read: dict[str, list[tuple[Path, Any]]], *, label_column: str, kind: str) -> Listing:
    """The data set in tables of two columns, by part; `kind` is what it is called."""
    names = same_names(
        [(path, label_names(path, t.schema, label_column)) for group in read.values() for path, t in group]
    )
    texts = {part: [label_texts(path, t, names) for path, t in group] for part, group in read.items()}
    notes = []
    if "test" in texts and all(label is None for some in texts["test"] for label in some):
        del read["test"], texts["test"]
        notes.append("the test part has no labels and is not used")
    given = {label for some in texts["train"] for label in some if label is not None}
    classes = names or tables.class_names(given)
    parts = {}
    for part in (part for part in PARTS if part in read):
        parts[part] = rows_of(root, read[part], texts[part], classes)
    if not len(parts["train"]):
        raise InputError(root, "empty", "has no rows of the train part")
    return Listing(root, kind, classes, parts, tuple(notes))


def table_of(path: Path, image_column: str, label_column: str) -> Any:
    """The two columns as `bytes`, `path` and `label`, with the file's metadata."""
    try:
        pa = importlib.import_module("pyarrow")
        reader = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise missing_extra("reading parquet", "pyarrow", "parquet") from error
    with door(path, "corrupt", "is not a parquet file that can be read"):
        data = read_input(path, max_bytes=MAX_BYTES)
        file = reader.ParquetFile(pa.BufferReader(data))
        check_columns(path, file.schema_arrow, image_column, label_column)
        check_unpacked(path, file.metadata)
        return two_columns(path, file.read(columns=[image_column, label_column]), image_column, label_column)


def check_columns(path: Path, schema: Any, *columns: str) -> None:
    """Refuse a table without one of the columns."""
    for column in columns:
        if schema.names.count(column) != 1:
            some = ", ".join(shown(name, limit=40) for name in schema.names[:8])
            text = f"has no column {column!r}; {closest(column, schema.names)}it has {some}"
            raise InputError(path, "missing_key", text)


def two_columns(path: Path, table: Any, image_column: str, label_column: str) -> Any:
    """The columns of a table as `bytes`, `path` and `label`, with its metadata."""
    pa = importlib.import_module("pyarrow")
    check_columns(path, table.schema, image_column, label_column)
    kind = table.schema.field(image_column).type
    pictures, paths = table[image_column], None
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        pictures, paths = (struct_field(table[image_column], name) for name in ("bytes", "path"))
        kind = pictures.type
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise InputError(path, "bad_type", f"column {image_column!r} is {kind}, not bytes or {{bytes, path}}")
    pictures = pictures.cast(pa.large_binary()) if pa.types.is_binary(kind) else pictures
    columns = {"bytes": pictures, "label": table[label_column], **({"path": paths} if paths is not None else {})}
    return pa.table(columns).replace_schema_metadata(table.schema.metadata)


def check_unpacked(path: Path, metadata: Any) -> None:
    """Refuse a file that unpacks to more than is held in memory."""
    total = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
    if total > MAX_BYTES:
        raise InputError(path, "too_large", f"unpacks to {total} bytes, the limit is {MAX_BYTES}: use a folder")


def struct_field(column: Any, name: str) -> Any:
    """One field of a column of structs, or None where there is no such field."""
    pa = importlib.import_module("pyarrow")
    place = column.type.get_field_index(name)
    if place < 0:
        return None
    return pa.chunked_array([chunk.field(place) for chunk in column.chunks], type=column.type.field(place).type)


def label_names(path: Path, schema: Any, column: str) -> tuple[str, ...]:
    """The names of the classes as the datasets library keeps them, or none."""
    stored = (schema.metadata or {}).get(b"huggingface")
    if stored is None:
        return ()
    found = json.parse(stored, path)
    for key in ("info", "features", column):
        found = found.get(key) if isinstance(found, dict) else None
    names = found.get("names") if isinstance(found, dict) else None
    if names is None:
        return ()
    if not isinstance(names, list) or not names or not all(isinstance(n, str) and n for n in names):
        raise InputError(path, "bad_schema", f"the names of {column!r} in the metadata must be a list of texts")
    if len(set(names)) != len(names):
        raise InputError(path, "duplicate_name", f"two classes of {column!r} have the same name")
    return tuple(names)


def same_names(found: list[tuple[Path, tuple[str, ...]]]) -> tuple[str, ...]:
    """The class names that all files agree on."""
    for path, names in found:
        if names != found[0][1]:
            raise InputError(path, "bad_schema", f"has other class names than {shown(found[0][0].name, limit=60)}")
    return found[0][1]


def label_texts(path: Path, table: Any, names: tuple[str, ...]) -> list[str | None]:
    """Labels as class names; None for none or -1."""
    values = table["label"].to_pylist()
    found: list[str | None] = []
    for row, value in enumerate(values):
        if value is None or (value == -1 and names):
            found.append(None)
        elif names and type(value) is int:
            if not 0 <= value < len(names):
                text = f"row {row}: label {value} is outside 0..{len(names) - 1}"
                raise InputError(path, "out_of_range", text)
            found.append(names[value])
        elif isinstance(value, (str, int)) and not isinstance(value, bool):
            found.append(str(value))
        else:
            raise InputError(path, "bad_type", f"row {row}: a label must be a whole number or text, not {value!r:.60}")
    return found


def rows_of(root: Path, read: list[tuple[Path, Any]], texts: list[list[str | None]], classes: tuple[str, ...]) -> Rows:
    """The pictures of one part over all its files."""
    pa = importlib.import_module("pyarrow")
    names: list[str] = []
    labels: list[str] = []
    places: list[str] = []
    for (path, table), some in zip(read, texts, strict=True):
        paths = table["path"].to_pylist() if "path" in table.column_names else [None] * len(some)
        for row, (label, given) in enumerate(zip(some, paths, strict=True)):
            if label is None:
                raise InputError(path, "bad_row", f"row {row}: no label")
            labels.append(label)
            places.append(f"{shown(path.name, limit=60)} row {row}")
            names.append(f"{path.name}/{row}" + (f"/{PurePosixPath(given).name}" if given else ""))
    column = pa.chunked_array([chunk for _, table in read for chunk in table["bytes"].chunks])
    numbers = np.array(tables.numbered(root, labels, classes, places), dtype=np.int64)
    return Rows(column, Names(names), numbers, np.arange(len(labels)))
