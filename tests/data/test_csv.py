# SPDX-License-Identifier: Apache-2.0
"""CSV files of paths: found out, split, and refused in one clear line."""

import io

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


def put(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def one_line(error):
    text = str(error.value)
    assert "\n" not in text and len(text) <= 500 and error.value.exit_code == 2
    return text


def table(root, rows, name="labels.csv", header="path,label", mark=b""):
    for i in range(8):
        put(root / f"images/{i}.png", picture(i))
    put(root / name, mark + "\n".join([header, *rows]).encode())
    return root / name


ROWS = [f"images/{i}.png,{'cat' if i < 4 else 'dog'}" for i in range(8)]


@pytest.mark.parametrize("column", ["path", "image", "file"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_csv(tmp_path, column, mark):
    path = table(tmp_path, [*ROWS, ""], header=f"Label_x,{column},label"[8:], mark=mark)
    data = load(path)
    assert data.format == "csv" and data.classes == CLASSES and (len(data.train), len(data.val)) == (6, 2)
    assert load(tmp_path).fingerprint == data.fingerprint  # found in its folder, too


def test_numbers_sort_as_numbers_and_a_split_column_is_obeyed(tmp_path):
    parts = ["train", "train", "train", "validation", "val", "val", "TEST", "test"]
    rows = [f"images/{i}.png,{[2, 10, 1][i % 3]},{part}" for i, part in enumerate(parts)]
    data = load(table(tmp_path, rows, header="path,label,split"))
    assert data.classes == ("1", "2", "10") and (len(data.train), len(data.val), len(data.test)) == (3, 3, 2)
    assert data.train.labels.tolist() == [1, 2, 0]
    assert "test has no image of 1 of 3 classes: 10" in data.note or "test has no image" in data.note


def test_a_csv_per_part(tmp_path):
    table(tmp_path, ROWS[:2] + ROWS[4:6], "train.csv")
    table(tmp_path, ROWS[2:3] + ROWS[6:7], "valid.csv")
    table(tmp_path, ROWS[3:4] + ROWS[7:], "test.csv")
    table(tmp_path, ["1,2"], "submission.csv", header="id,answer")
    data = load(tmp_path)
    assert (len(data.train), len(data.val), len(data.test)) == (4, 2, 2) and not data.note


def test_a_missing_file_of_a_csv_is_skipped(tmp_path):
    (only,) = load(table(tmp_path, [*ROWS, "images/gone.png,cat"]), max_bad=0.2).skipped
    assert (only.path, only.reason) == ("images/gone.png", "missing")


CSV_ERRORS = [
    (["images/0.png"], "path,label", "bad_row", "line 2: 1 fields, not 2"),
    (["images/0.png,"], "path,label", "bad_row", "line 2: no label"),
    ([",cat"], "path,label", "bad_row", "line 2: no path"),
    (["/etc/passwd,cat"], "path,label", "unsafe_path", "line 2: '/etc/passwd' must be relative"),
    (["a/../../b.png,cat"], "path,label", "unsafe_path", "must be relative"),
    (["C:\\x.png,cat"], "path,label", "unsafe_path", "must be relative"),
    (["http://x/y.png,cat"], "path,label", "unsafe_path", "must be relative"),
    ([], "path,label", "empty", "has no rows"),
    (ROWS, "path,lable", "missing_key", "needs a first line with one of path, image, file, and label"),
    (ROWS, "path,image,label", "missing_key", "needs a first line"),
    ([f"{row},{'train' if i < 8 else 'x'}" for i, row in enumerate([*ROWS, ROWS[0]])], "path,label,split",
     "unknown_name", "line 10: no part 'x'"),
    ([f"{row},{'train' if i != 3 else 'val'}".replace("3.png,cat", "3.png,cats") for i, row in enumerate(ROWS)],
     "path,label,split", "unknown_name", "labels.csv line 5: unknown label 'cats'; did you mean 'cat'? Known: cat,"),
    ([*ROWS, ROWS[1]], "path,label", "duplicate_name", "line 10: images/1.png is already in labels.csv line 3"),
    (['"images/0.png,cat'], "path,label", "bad_row", "not a CSV file"),
]  # fmt: skip


@pytest.mark.parametrize(("rows", "header", "reason", "told"), CSV_ERRORS, ids=[told for *_, told in CSV_ERRORS])
def test_csv_files_that_cannot_be_used(tmp_path, rows, header, reason, told):
    path = table(tmp_path, rows, header=header)
    with pytest.raises(InputError) as error:
        load(path)
    assert told in one_line(error) and error.value.reason == reason and "labels.csv" in str(error.value)


def test_other_encodings_are_refused(tmp_path):
    path = table(tmp_path, [])
    for data in ("path,label\nimages/café.png,cat".encode("latin-1"), "path,label\na.png,cat".encode("utf-16")):
        path.write_bytes(data)
        with pytest.raises(InputError, match="encoding") as error:
            load(path)
        assert "save it as UTF-8" in one_line(error)
