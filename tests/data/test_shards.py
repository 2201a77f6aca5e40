# SPDX-License-Identifier: Apache-2.0
"""WebDataset shards: read in place, the same pictures as in a folder, damage and tricks refused in one line."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featherweight.data import Batches, load, shards
from featherweight.errors import InputError, OptionError
from featherweight.runtime.preprocess import Preprocess


def picture(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((6, 9, 3), number, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def shard(path: Path, members: Sequence[tuple[str, bytes]], **kinds: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def samples(numbers: range, *, form: str = "cls") -> list[tuple[str, bytes]]:
    """Picture `number` of class number % 3, in the form the name says."""
    found = []
    for n in numbers:
        label = {"cls": str(n % 3), "json": json.dumps({"label": n % 3, "more": [1]}), "json-number": str(n % 3)}[form]
        found += [(f"dir/{n:04d}.png", picture(n)), (f"dir/{n:04d}.{form.partition('-')[0]}", label.encode())]
    return found


@pytest.mark.parametrize("form", ["cls", "json", "json-number"])
def test_a_folder_of_shards(tmp_path: Path, form: str) -> None:
    for k in range(2):
        shard(tmp_path / f"train-{k:04d}.tar", samples(range(30 * k, 30 * k + 30), form=form))
    shard(tmp_path / "val-0000.tar", samples(range(60, 72), form=form))
    data = load(tmp_path)
    assert data.format == "webdataset"
    assert data.classes == ("0", "1", "2")
    assert (len(data.train), len(data.val)) == (60, 12)
    for images in (data.train, data.val):
        for i in range(len(images)):
            pixels, label = images[i]
            number = int(pixels[0, 0, 0])
            assert label == number % 3
            assert images.names(i).endswith(f"dir/{number:04d}.png")


def test_the_same_batches_as_from_a_folder(tmp_path: Path) -> None:
    shard(tmp_path / "shards" / "train-0.tar", samples(range(24)))
    shard(tmp_path / "shards" / "val-0.tar", samples(range(24, 30)))
    for n in range(30):
        place = tmp_path / "folder" / ("train" if n < 24 else "val") / str(n % 3)
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{n:04d}.png").write_bytes(picture(n))
    tar, folder = load(tmp_path / "shards"), load(tmp_path / "folder")
    assert tar.classes == folder.classes
    seen = [
        sorted(zip(b["label"].tolist(), b["image"].flatten(1).mean(1).tolist(), strict=True))
        for b in (next(iter(Batches(d.train, Preprocess(size=(6, 6)), batch_size=24))) for d in (tar, folder))
    ]
    assert seen[0] == seen[1]


def test_patterns_of_braces(tmp_path: Path) -> None:
    for k in range(8, 12):
        shard(tmp_path / f"data-{k:03d}.tar", samples(range(12 * k, 12 * k + 12)))
    data = load(f"{tmp_path}/data-{{008..010}}.tar")
    assert len(data.train) + len(data.val) == 36
    assert "split off train" in data.note
    for part, count in (("train", 24), ("val", 12)):
        shard(tmp_path / part / f"{part}.tar", samples(range(count)))
    both = load(f"{tmp_path}/{{train/train,val/val}}.tar")
    assert (len(both.train), len(both.val)) == (24, 12)
    assert shards.expanded("a{b,c{1..3}}d") == ["abd", "ac1d", "ac2d", "ac3d"]
    with pytest.raises(InputError, match=r"data-012\.tar: missing"):
        load(f"{tmp_path}/data-{{008..012}}.tar")
    for pattern, told in (("data-{1..3.tar", "not closed"), ("data-{9..3}.tar", "does not count up")):
        with pytest.raises(OptionError, match=told):
            load(f"{tmp_path}/{pattern}")
    with pytest.raises(OptionError, match="names more than"):
        load(f"{tmp_path}/{{0..9}}{{0..50000}}.tar")


def test_named_classes_and_what_is_no_picture(tmp_path: Path) -> None:
    members = [("README.txt", b"hello"), ("1.png", picture(1)), ("1.cls", b"dog\n"), ("1.txt", b"a dog")]
    members += [("2.jpg", picture(2)), ("2.json", b'{"cls": "cat"}'), ("2.json.bak", b"?"), ("3.PNG", picture(3))]
    members += [("3.cls", b"cat"), ("4.png", picture(4)), ("4.cls", b"dog"), ("4.json", b'"dog"')]
    data = load(shard(tmp_path / "x.tar", members), val_share=0.5)
    assert data.classes == ("cat", "dog")
    assert len(data.train) + len(data.val) == 4


BAD: Mapping[str, tuple[list[tuple[str, bytes]], str]] = {
    "no label": ([("1.png", picture(1)), ("2.png", picture(2)), ("2.cls", b"1")], r"missing: /1 has a picture, but"),
    "two pictures": ([("1.png", picture(1)), ("1.jpg", picture(1)), ("1.cls", b"1")], "duplicate_name: 1.jpg"),
    "two labels": ([("1.png", picture(1)), ("1.cls", b"1"), ("1.cls", b"2")], "duplicate_name: 1.cls"),
    "labels differ": ([("1.png", picture(1)), ("1.cls", b"1"), ("1.json", b"2")], "bad_row: /1: .cls and .json"),
    "no text": ([("1.png", picture(1)), ("1.cls", b"\xff\xfe")], "encoding"),
    "empty label": ([("1.png", picture(1)), ("1.cls", b" \n")], "bad_name"),
    "a list": ([("1.png", picture(1)), ("1.json", b"[1]")], "bad_type: needs a field 'label'"),
    "a flag": ([("1.png", picture(1)), ("1.json", b'{"label": true}')], "bad_type"),
    "broken JSON": ([("1.png", picture(1)), ("1.json", b'{"label": 1')], "bad_json"),
    "nothing": ([("1.txt", b"hello")], "empty"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_used_is_said_in_one_line(tmp_path: Path, case: str) -> None:
    members, told = BAD[case]
    with pytest.raises(InputError, match=told) as caught:
        load(shard(tmp_path / "bad.tar", members))
    assert "\n" not in str(caught.value)


def good(path: Path) -> bytes:
    return shard(path, samples(range(9))).read_bytes()


@pytest.mark.parametrize("where", ["inside a picture", "between members", "without its end", "a flipped header"])
def test_a_damaged_shard_is_refused_and_loses_nothing_silently(tmp_path: Path, where: str) -> None:
    path = tmp_path / "x.tar"
    data = bytearray(good(path))
    assert load(path).train is not None
    if where == "a flipped header":
        data[4 * 1024 + 3] ^= 1  # the name of a later member: its checksum is wrong, and tarfile would end there
    cuts = {"inside a picture": 4 * 1024 + 530, "between members": 4 * 1024, "without its end": 18 * 1024}
    path.write_bytes(bytes(data[: cuts.get(where, len(data))]))
    with pytest.raises(InputError, match=r"x\.tar: (truncated|corrupt)"):
        load(path)


def test_compressed_shards_links_and_sizes_that_lie(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "z.tar", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("1.png"))
    with pytest.raises(InputError, match=r"z\.tar: corrupt: is not a plain tar file"):
        load(tmp_path / "z.tar")
    secret = tmp_path / "secret.png"
    secret.write_bytes(picture(200))
    with tarfile.open(tmp_path / "link.tar", "w") as tar:
        for name, data in samples(range(12)):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("dir/9999.png")
        link.type, link.linkname = tarfile.SYMTYPE, str(secret)
        tar.addfile(link)
    data = load(tmp_path / "link.tar")
    assert len(data.train) + len(data.val) == 12, "the link was followed"
    with pytest.raises(InputError, match=r"bad_header|corrupt|truncated"):
        load(_oversized(tmp_path / "pax.tar"))


def _oversized(path: Path) -> Path:
    """A header of further headers that says it has a gigabyte."""
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 1 << 30
    path.write_bytes(info.tobuf(tarfile.USTAR_FORMAT) + b"\0" * 4096)
    return path


def test_a_shard_that_changes_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    good(path)
    data = load(path)
    shard(path, samples(range(8)))
    with pytest.raises(InputError, match="changed"):
        data.train[0]
