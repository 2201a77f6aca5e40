# SPDX-License-Identifier: Apache-2.0
"""Class folders: found out, verified, split, and refused in one clear line."""

import io
import json
import os
import random
import shutil

import numpy as np
import pytest
from PIL import Image

from featherweight.data import TooManyBad, describe, load
from featherweight.data.parts import Names, hashed
from featherweight.errors import InputError, OptionError

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


def folder(root, parts=("train", "val", "test"), each=4):
    number = 0
    for part in parts:
        for name in CLASSES:
            for i in range(each):
                put(root / part / name / f"{i}.png", picture(number))
                number += 1
    return root


def one_line(error):
    text = str(error.value)
    assert "\n" not in text and len(text) <= 500 and error.value.exit_code == 2
    return text


@pytest.mark.parametrize("val", ["val", "valid", "validation"])
def test_a_folder_with_its_parts(tmp_path, val):
    data = load(folder(tmp_path / "pets", ("train", val, "test")))
    assert (data.name, data.format, data.classes) == ("pets", "folder", CLASSES)
    assert (len(data.train), len(data.val), len(data.test)) == (8, 8, 8) and not data.skipped and not data.note
    assert data.train.labels.tolist() == [0] * 4 + [1] * 4
    pixels, label = data.val[5]
    assert label == 1 and pixels[0, 0].tolist() == [13, 0, 50] and data.val.names(5) == f"{val}/dog/1.png"


def test_without_validation_some_is_split_off_by_content(tmp_path):
    data = load(folder(tmp_path / "a", [""], each=30))
    assert (len(data.train), len(data.val), data.test) == (48, 12, None) and "split off train" in data.note
    assert np.bincount(data.val.labels).tolist() == [6, 6]
    mine = {data.val[i][0].tobytes() for i in range(12)}
    assert not mine & {data.train[i][0].tobytes() for i in range(48)}
    # other names, the same bytes: the same pictures are split off
    for path in sorted((tmp_path / "a").rglob("*.png")):
        path.rename(path.with_name("x" + path.name))
    again = load(tmp_path / "a")
    assert {again.val[i][0].tobytes() for i in range(12)} == mine
    half = load(tmp_path / "a", val_share=0.5)
    assert len(half.val) == 30
    assert mine <= {half.val[i][0].tobytes() for i in range(30)}


def test_copies_of_a_picture_are_not_torn_apart():
    labels = np.zeros(40, np.int64)
    digests = np.repeat(np.arange(20, dtype=np.uint8), 2)[:, None].repeat(32, 1)
    chosen = hashed(labels, digests, 0.25)
    assert np.array_equal(chosen[::2], chosen[1::2]) and 0 < chosen.sum() < 20


def test_neither_place_nor_order_of_listing_matters(tmp_path, monkeypatch):
    first = load(folder(tmp_path / "one"))
    shutil.copytree(tmp_path / "one", tmp_path / "far" / "two")
    real = os.scandir

    class Shuffled(list):
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def close(self):
            pass

        def __next__(self):
            if not self:
                raise StopIteration
            return self.pop(0)

        def __iter__(self):
            return self

    def shuffled(place="."):
        with real(place) as entries:
            found = list(entries)
        random.shuffle(found)
        return Shuffled(found)

    monkeypatch.setattr(os, "scandir", shuffled)
    for _ in range(3):
        second = load(tmp_path / "far" / "two")
        assert second.fingerprint == first.fingerprint
        assert [second.train.names(i) for i in range(8)] == [first.train.names(i) for i in range(8)]


def test_pictures_of_train_in_validation_are_noted(tmp_path):
    folder(tmp_path)
    shutil.copy(tmp_path / "train/cat/0.png", tmp_path / "val/cat/copy.png")
    assert load(tmp_path).note == "1 of 9 val pictures are in train, too"


def test_the_built_in_name_wins_and_says_so(tmp_path, monkeypatch):
    folder(tmp_path / "digits")
    monkeypatch.chdir(tmp_path)
    data = load("digits", n_train=1, n_val=1, n_test=1)
    assert data.format == "digits" and "your own is ./digits" in data.note
    assert load("./digits").format == "folder"


def test_the_fingerprint_sees_a_byte_a_name_and_a_label(tmp_path):
    seen = {load(folder(tmp_path / "a")).fingerprint}
    (tmp_path / "a/train/cat/0.png").write_bytes(picture(999))
    seen.add(load(tmp_path / "a").fingerprint)
    (tmp_path / "a/train/cat/0.png").rename(tmp_path / "a/train/cat/9.png")
    seen.add(load(tmp_path / "a").fingerprint)
    (tmp_path / "a/train/cat/9.png").rename(tmp_path / "a/train/dog/9.png")
    seen.add(load(tmp_path / "a").fingerprint)
    assert len(seen) == 4


def test_pictures_are_read_through_the_one_door(tmp_path):
    folder(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6
    put(tmp_path / "train/cat/turned.jpg", picture(1, "JPEG", exif=exif))
    put(tmp_path / "train/cat/no_extension", picture(700))
    put(tmp_path / "train/cat/deep/er/gif.jpg", picture(3, "GIF"))
    data = load(tmp_path)
    names = [data.train.names(i) for i in range(len(data.train))]
    assert data.train[names.index("train/cat/turned.jpg")][0].shape == (9, 6, 3)
    assert "train/cat/no_extension" in names and "train/cat/deep/er/gif.jpg" in names


BAD = {
    "train/cat/empty.png": (b"", "empty"),
    "train/dog/page.jpg": (b"<!DOCTYPE html><p>404 not found, try again later", "not_an_image"),
    "val/dog/short.png": (picture(3)[:-20], "truncated"),
    "val/cat/half.jpg": (picture(3, "JPEG")[:300], "truncated"),
    "test/cat/wrong.png": (picture(3).replace(b"IDAT", b"IDAT\xff", 1), "corrupt"),
}


def test_bad_files_are_skipped_counted_and_named_once(tmp_path):
    folder(tmp_path)
    for name, (data, _) in BAD.items():
        put(tmp_path / name, data)
    put(tmp_path / "train/cat/.hidden", b"?")
    put(tmp_path / "train/cat/Thumbs.db", b"?")
    data = load(tmp_path, max_bad=0.2)
    assert (len(data.train), len(data.val), len(data.test)) == (8, 8, 8)
    found = {one.path: one.reason for one in data.skipped}
    assert len(data.skipped) == len(BAD) and set(found) == set(BAD)
    for name, (_, reason) in BAD.items():
        assert found[name] == reason or (reason in ("truncated", "corrupt") and found[name] in ("truncated", "corrupt"))
    assert data.fingerprint == load(folder(tmp_path / "clean")).fingerprint


def test_more_bad_files_than_allowed_stop_with_the_list(tmp_path):
    folder(tmp_path)
    for name, (data, _) in BAD.items():
        put(tmp_path / name, data)
    with pytest.raises(TooManyBad) as error:
        load(tmp_path)
    text = one_line(error)
    assert (
        "5 of 29 files cannot be used, more than max_bad=0.01 allows" in text and "train/cat/empty.png (empty)" in text
    )
    assert {one.path for one in error.value.skipped} == set(BAD)
    assert len(load(tmp_path, max_bad=5 / 29).skipped) == 5
    with pytest.raises(TooManyBad):
        load(tmp_path, max_bad=5 / 29 - 1e-9)


def test_a_text_beside_the_pictures_is_named_but_does_not_stop_the_run(tmp_path):
    put(folder(tmp_path) / "train/cat/notes.txt", b"taken in May")
    (only,) = load(tmp_path, max_bad=0).skipped
    assert (only.path, only.reason) == ("train/cat/notes.txt", "not_an_image")
    put(tmp_path / "train/cat/phone.heic", b"\0\0\0\x18ftypheic" + bytes(40))  # a picture, but not for us: counts
    with pytest.raises(TooManyBad, match=r"phone.heic \(unsupported_format\)"):
        load(tmp_path, max_bad=0)


def test_a_pipe_among_the_pictures_does_not_hang(tmp_path):
    os.mkfifo(folder(tmp_path) / "train/cat/pipe.png")
    (only,) = load(tmp_path, max_bad=0.5).skipped
    assert only.reason in ("not_regular_file", "unreadable")


def remove(name):
    return lambda root: shutil.rmtree(root / name)


FOLDER_ERRORS = [
    (remove("val/dog"), "missing", "has no folder 'dog', a class of train/"),
    (remove("test/cat"), "missing", "has no folder 'cat'"),
    (lambda r: put(r / "val/dgo/1.png", picture(1)), "unknown_name", "no class 'dgo' in train/; did you mean 'dog'?"),
    (lambda r: [p.unlink() for p in (r / "val/dog").iterdir()], "empty", "no images of class 'dog'"),
    (remove("train"), "missing", "has val/ but no train/"),
    (lambda r: [shutil.rmtree(r / p / "cat") for p in ("train", "val", "test")], "missing", "at least two classes"),
    (lambda r: put(r / "valid/dog/1.png", picture(1)), "duplicate_name", "val/ and valid/, which mean the same part"),
    (lambda r: put(r / "train/a\nb/1.png", picture(1)), "bad_name", "printable"),
    (lambda r: [p.write_bytes(b"") for p in r.glob("train/cat/*")], "empty", "no usable images of class 'cat'"),
]


@pytest.mark.parametrize(("spoil", "reason", "told"), FOLDER_ERRORS, ids=[told for _, _, told in FOLDER_ERRORS])
def test_folders_that_cannot_be_used(tmp_path, spoil, reason, told):
    spoil(folder(tmp_path / "pets"))
    with pytest.raises(InputError) as error:
        load(tmp_path / "pets", max_bad=1)
    assert told in one_line(error) and error.value.reason == reason and "pets" in str(error.value)


def test_nothing_to_be_found(tmp_path):
    with pytest.raises(InputError, match="empty") as error:
        load(tmp_path)
    assert "it holds nothing" in one_line(error)
    put(tmp_path / "readme.txt", b"hello")
    put(tmp_path / "pets/cat/notes.md", b"hello")
    with pytest.raises(InputError) as error:
        load(tmp_path)
    text = one_line(error)
    assert "no images found: looked for" in text and "jpeg" in text and "it holds pets, readme.txt" in text
    with pytest.raises(InputError, match=r"missing: no such file or folder; did you mean 'digits'\?"):
        load("digit")
    with pytest.raises(InputError, match="unsupported_format"):
        load(tmp_path / "readme.txt")


@pytest.mark.parametrize("options", [{"max_bad": 2}, {"val_share": 0}, {"val_shar": 0.1}, {"n_train": 3}])
def test_options(tmp_path, options):
    with pytest.raises(OptionError):
        load(folder(tmp_path), **options)


def test_describe_is_plain(tmp_path):
    put(folder(tmp_path / "pets") / "train/cat/bad.png", b"")
    found = describe(load(tmp_path / "pets", max_bad=0.5))
    assert json.loads(json.dumps(found)) == found
    assert found["counts"] == {"train": 8, "val": 8, "test": 8} and found["format"] == "folder"
    assert found["classes"]["dog"] == {"train": 4, "val": 4, "test": 4}
    assert found["skipped"][0]["path"] == "train/cat/bad.png" and found["skipped"][0]["reason"] == "empty"


def test_many_names_take_few_bytes():
    names = Names([f"train/{i % 10}/{i:09d}.jpg" for i in range(20_000)])
    assert len(names) == 20_000 and names[19_999] == "train/9/000019999.jpg"
    assert (len(names._block) + names._ends.nbytes) / len(names) < 40
    strange = os.fsdecode(b"caf\xe9.png")
    assert Names([strange])[0] == strange
    with pytest.raises(IndexError):
        names[20_000]
