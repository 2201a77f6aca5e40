# SPDX-License-Identifier: Apache-2.0
"""What the Hugging Face library saves, and its objects; written here with pyarrow alone, as the library writes it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from featherweight.data import load
from featherweight.errors import InputError, OptionError

pa = pytest.importorskip("pyarrow")
NAMES = ["cat", "dog"]


def picture(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((6, 9, 3), number, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def table(count: int, first: int = 0) -> Any:
    numbers = range(first, first + count)
    found = pa.table(
        {"image": [{"bytes": picture(n), "path": f"{n}.png"} for n in numbers], "label": [n % 2 for n in numbers]}
    )
    features = {"image": {"_type": "Image"}, "label": {"names": NAMES, "_type": "ClassLabel"}}
    return found.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def save(folder: Path, count: int, *, first: int = 0, files: int = 2, **state: Any) -> Path:
    """One split, in several files."""
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for k in range(files):
        name = f"data-{k:05d}-of-{files:05d}.arrow"
        some = table(count // files, first + k * (count // files))
        with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_stream(sink, some.schema) as writer:
            writer.write_table(some)
        names.append({"filename": name})
    (folder / "state.json").write_text(json.dumps({"_data_files": names, "_fingerprint": "x", **state}))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def saved(folder: Path) -> Path:
    save(folder / "train", 20)
    save(folder / "validation", 8, first=20)
    (folder / "dataset_dict.json").write_text('{"splits": ["train", "validation"]}')
    return folder


def check(data: Any) -> None:
    for images in (data.train, data.val):
        for i in range(len(images)):
            pixels, label = images[i]
            assert label == int(pixels[0, 0, 0]) % 2


def test_a_saved_set_with_splits(tmp_path: Path) -> None:
    data = load(saved(tmp_path))
    assert (data.format, data.classes) == ("huggingface", ("cat", "dog"))
    assert (len(data.train), len(data.val), data.test) == (20, 8, None)
    check(data)


def test_a_saved_set_without_splits(tmp_path: Path) -> None:
    data = load(save(tmp_path, 20))
    assert (len(data.train), len(data.val)) == (16, 4)
    check(data)


class Dataset:
    """What is asked of the library's class."""

    __module__ = "datasets.arrow_dataset"

    def __init__(self, rows: Any) -> None:
        self.rows, self.form = rows, ""

    def with_format(self, form: str) -> Dataset:
        new = Dataset(self.rows)
        new.form = form
        return new

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: slice) -> Any:
        assert self.form == "arrow"
        return self.rows


class DatasetDict(dict[str, Any]):
    __module__ = "datasets.dataset_dict"


class IterableDataset:
    __module__ = "datasets.iterable_dataset"


def test_objects_of_the_library() -> None:
    alone = load(Dataset(table(20)))
    assert (alone.format, alone.classes, len(alone.train), len(alone.val)) == ("huggingface", ("cat", "dog"), 16, 4)
    both = load(DatasetDict(train=Dataset(table(20)), test=Dataset(table(6, 20)), validation=Dataset(table(4, 26))))
    assert both.test is not None
    assert (len(both.train), len(both.val), len(both.test)) == (20, 4, 6)
    check(both)
    with pytest.raises(OptionError, match="IterableDataset has no length and no places"):
        load(IterableDataset())
    with pytest.raises(InputError, match="the split 'extra' is neither"):
        load(DatasetDict(train=Dataset(table(4)), extra=Dataset(table(4))))


def test_what_cannot_be_used_is_said_in_one_line(tmp_path: Path) -> None:
    broken = saved(tmp_path / "broken")
    (broken / "train" / "data-00001-of-00002.arrow").unlink()
    cases: dict[str, tuple[Path, str]] = {
        "a file is gone": (broken, "data-00001-of-00002.arrow: missing"),
        "a way out": (save(tmp_path / "out", 4, _data_files=[{"filename": "../secret.arrow"}]), "bad_schema"),
        "a selection": (save(tmp_path / "rows", 4, _indices_data_files=[{"filename": "x"}]), "flatten_indices"),
        "no files": (save(tmp_path / "none", 4, _data_files=[]), "bad_schema"),
    }
    cut = save(tmp_path / "cut", 4, files=1)
    file = cut / "data-00000-of-00001.arrow"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    cases["cut"] = cut, "corrupt"
    splits = tmp_path / "splits"
    splits.mkdir()
    (splits / "dataset_dict.json").write_text('{"splits": ["../train"]}')
    cases["a split outside"] = splits, "bad_schema"
    for path, told in cases.values():
        with pytest.raises(InputError, match=told) as caught:
            load(path)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="has no column 'img'"):
        load(saved(tmp_path / "good"), image_column="img")
