# SPDX-License-Identifier: Apache-2.0
"""Parquet as the datasets library writes it: read, and refused in one clear line."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from featherweight.data import load
from featherweight.errors import InputError

CLASSES = ("cat", "dog")


def picture(number, form="PNG", **options):
    """The bytes of a small picture that differs from every other number's."""
    pixels = np.full((6, 9, 3), (number % 256, number // 256, 50), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form, **options)
    return buffer.getvalue()


def one_line(error):
    text = str(error.value)
    assert "\n" not in text and len(text) <= 500 and error.value.exit_code == 2
    return text


def parquet(path, labels, *, names=None, struct=True, numbers=None, image="image", label="label", broken=(), **write):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    data = [b"\x89PNG" if i in broken else picture(n) for i, n in enumerate(numbers or range(len(labels)))]
    pictures = [{"bytes": one, "path": f"{i}.png"} for i, one in enumerate(data)] if struct else data
    found = pa.table({image: pictures, label: labels})
    if names:
        feature = {"names": names, "_type": "ClassLabel"}
        info = {"info": {"features": {image: {"_type": "Image"}, label: feature}}}
        found = found.replace_schema_metadata({"huggingface": json.dumps(info)})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(found, path, **write)
    return path


@pytest.mark.parametrize("struct", [True, False])
def test_a_parquet_file(tmp_path, struct):
    path = parquet(tmp_path / "x.parquet", [i % 2 for i in range(20)], names=list(CLASSES), struct=struct)
    data = load(path)
    assert data.format == "parquet" and data.classes == CLASSES and (len(data.train), len(data.val)) == (16, 4)
    for images in (data.train, data.val):
        for i in range(len(images)):
            pixels, label = images[i]
            number = int(pixels[0, 0, 0])
            assert label == number % 2 and images.names(i).startswith(f"x.parquet/{number}")


def test_parts_and_shards_as_the_hub_has_them(tmp_path):
    for k in range(2):
        some = [f"{'ba'[i % 2]}" for i in range(6)]
        name = tmp_path / f"data/train-{k:05d}-of-00002.parquet"
        parquet(name, some, numbers=range(10 * k, 10 * k + 6), row_group_size=2)
    parquet(tmp_path / "data/validation-00000-of-00001.parquet", ["a", "b"], numbers=[50, 51])
    parquet(tmp_path / "data/test-00000-of-00001.parquet", [None, None], numbers=[60, 61])
    data = load(tmp_path)
    assert data.classes == ("a", "b") and (len(data.train), len(data.val), data.test) == (12, 2, None)
    assert "test part has no labels" in data.note
    assert [int(data.train[i][0][0, 0, 0]) for i in range(12)] == [0, 1, 2, 3, 4, 5, 10, 11, 12, 13, 14, 15]
    assert data.train.labels.tolist() == [1, 0] * 6


def test_broken_pictures_and_other_columns_in_parquet(tmp_path):
    path = parquet(tmp_path / "x.parquet", [0, 1] * 10, image="img", label="fine", broken=[3])
    data = load(path, image_column="img", label_column="fine", max_bad=0.05)
    assert [(one.path, one.reason) for one in data.skipped] == [("x.parquet/3/3.png", "corrupt")]
    assert data.classes == ("0", "1") and len(data.train) + len(data.val) == 19


def test_a_class_that_no_row_has_is_said(tmp_path):
    data = load(parquet(tmp_path / "x.parquet", [0, 1] * 5, names=["a", "b", "c"]))
    assert data.classes == ("a", "b", "c") and "train has no image of 1 of 3 classes: c" in data.note


PARQUET_ERRORS = [
    ({"labels": [0, 5], "names": ["a", "b"]}, "out_of_range", "row 1: label 5 is outside 0..1"),
    ({"labels": [0, None], "names": ["a", "b"]}, "bad_row", "row 1: no label"),
    ({"labels": [0, -1], "names": ["a", "b"]}, "bad_row", "row 1: no label"),
    ({"labels": [0.5, 1.0]}, "bad_type", "row 0: a label must be"),
    ({"labels": [0, 1], "names": ["a", "a"]}, "duplicate_name", "same name"),
    ({"labels": [0, 1], "names": [1, 2]}, "bad_schema", "must be a list of texts"),
    ({"labels": [0, 1], "image": "images"}, "missing_key", "no column 'image'; did you mean 'images'?"),
    ({"labels": [], "numbers": range(0), "struct": False}, "bad_type", "not bytes"),
]


@pytest.mark.parametrize(("made", "reason", "told"), PARQUET_ERRORS, ids=[told for *_, told in PARQUET_ERRORS])
def test_parquet_files_that_cannot_be_used(tmp_path, made, reason, told):
    path = parquet(tmp_path / "x.parquet", **made)
    with pytest.raises(InputError) as error:
        load(path)
    assert told in one_line(error) and error.value.reason == reason and "x.parquet" in str(error.value)


def test_damaged_parquet(tmp_path):
    whole = parquet(tmp_path / "x.parquet", [0, 1] * 5).read_bytes()
    for data in (whole[:100], b"PAR1" + bytes(50) + b"PAR1", whole[:-30] + whole[-25:], b"hello"):
        (tmp_path / "x.parquet").write_bytes(data)
        with pytest.raises(InputError, match="corrupt") as error:
            load(tmp_path / "x.parquet")
        one_line(error)


def test_what_it_unpacks_to_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("featherweight.data.parquet.MAX_BYTES", 4000)
    path = parquet(tmp_path / "x.parquet", [0, 1] * 200, numbers=[1] * 400, compression="zstd")
    assert path.stat().st_size < 4000
    with pytest.raises(InputError, match=r"too_large.*unpacks to"):
        load(path)


def test_without_pyarrow_the_message_says_what_to_install(tmp_path, monkeypatch):
    path = parquet(tmp_path / "x.parquet", [0, 1])
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"needs pyarrow: pip install 'featherweight\[parquet\]'"):
        load(path)
