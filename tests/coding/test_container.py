# SPDX-License-Identifier: Apache-2.0
"""The compact file: bit for bit, lazily, and every kind of damage is one clean error that names the tensor."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from featherweight.coding import container, opened, tensors, write
from featherweight.coding.container import MAGIC
from featherweight.doors.stored import DTYPES, Stored
from featherweight.errors import InputError

RNG = np.random.default_rng(0)


def weights(shape: tuple[int, ...] = (64, 48)) -> np.ndarray:
    return np.random.default_rng(1).normal(0, 0.05, shape).astype(np.float32)


def pruned(shape: tuple[int, ...], density: float) -> np.ndarray:
    found = weights(shape)
    return np.where(np.random.default_rng(2).random(shape) < density, found, 0).astype(np.float32)


def clustered(shape: tuple[int, ...], density: float = 1.0) -> np.ndarray:
    values = np.random.default_rng(3).normal(size=32).astype(np.float32)
    codes = np.random.default_rng(4).integers(0, 32, shape)
    return np.where(np.random.default_rng(2).random(shape) < density, values[codes], 0).astype(np.float32)


TENSORS = {
    "float": Stored.of(weights()),
    "pruned": Stored.of(pruned((64, 480), 0.1)),
    "very pruned": Stored.of(pruned((30, 5000), 0.001)),
    "shared": Stored.of(clustered((64, 480))),
    "pruned and shared": Stored.of(clustered((64, 480), 0.08)),
    "columns": Stored.of(clustered((60, 400), 0.5) * (np.arange(400) % 10 == 0).astype(np.float32)),
    "half": Stored.of(weights().astype(np.float16).astype(np.float32)),
    "conv": Stored.of(pruned((8, 4, 3, 3), 0.3)),
    "codes": Stored.of(RNG.integers(0, 31, (40, 50)).astype(np.uint8)),
    "int8": Stored.of(np.round(RNG.normal(0, 20, (40, 50))).clip(-127, 127).astype(np.int8)),
    "zeros": Stored.of(np.zeros((100, 10), np.float32)),
    "count": Stored.of(np.int64(7)),
    "empty": Stored.of(np.zeros((0, 4), np.float32)),
    "mask": Stored.of(RNG.random((30, 30)) < 0.1),
    "float64": Stored.of(RNG.normal(size=33)),
    "odd floats": Stored.of(np.array([0.0, -0.0, np.nan, np.inf, -np.inf, 1e-45, 3.0], np.float32)),
    "bfloat16": Stored("bfloat16", (3, 5), RNG.integers(0, 1 << 16, 15).astype("<u2").tobytes()),
    "complex": Stored.of((RNG.normal(size=9) + 1j).astype(np.complex64)),
}


def equal(a: Stored, b: Stored) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and bytes(a.data) == bytes(b.data)


@pytest.mark.parametrize("name", list(TENSORS))
@pytest.mark.parametrize("coder", ["auto", "raw", "huffman"])
def test_every_tensor_comes_back_bit_for_bit(name: str, coder: str, tmp_path: Path) -> None:
    write(tmp_path / "a.fwz", {name: TENSORS[name]}, coder=coder)
    with opened(tmp_path / "a.fwz") as file:
        assert equal(file.tensor(name), TENSORS[name])


@pytest.mark.parametrize("seed", range(8))
def test_random_tensors_come_back_bit_for_bit(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    found = {}
    for number in range(8):
        shape = tuple(int(n) for n in rng.integers(0, 9, rng.integers(0, 4)))
        dtype = str(rng.choice([name for name in DTYPES if name != "bool"]))
        count = int(np.prod(shape)) * DTYPES[dtype][2]
        data = rng.integers(0, rng.choice([2, 5, 256]), count) * (rng.random(count) < rng.random())
        found[f"t{number}"] = Stored(dtype, shape, data.astype(np.uint8).tobytes())
    write(tmp_path / "a.fwz", found)
    with opened(tmp_path / "a.fwz") as file:
        assert all(equal(file.tensors()[name], tensor) for name, tensor in found.items())


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("float", "planes"), ("pruned", "sparse planes"), ("shared", "codes"), ("pruned and shared", "sparse codes"),
        ("half", "half"), ("codes", "planes"), ("columns", "sparse codes"),
    ],
)  # fmt: skip
def test_the_form_is_found(name: str, kind: str) -> None:
    packed = tensors.pack(TENSORS[name])
    assert packed.kind == kind
    if name == "columns":
        assert packed.order == "columns"


def test_shared_and_pruned_weights_are_near_the_entropy_of_their_streams() -> None:
    packed = tensors.pack(Stored.of(clustered((500, 800), 0.08)))
    assert packed.nbytes <= 1.02 * tensors.least_bytes(packed)
    assert packed.nbytes < 400_000 * 4 / 30


@pytest.mark.parametrize("zeros", [0, 1, 253, 254, 255, 256, 509, 510, 511, 5000])
def test_gaps_of_every_length(zeros: int) -> None:
    numbers = np.zeros(3 * zeros + 3, np.float32)
    numbers[[zeros, 2 * zeros + 1, 2 * zeros + 2]] = 1, 2, 3
    packed = tensors.pack(Stored.of(numbers))
    assert equal(tensors.unpack(packed), Stored.of(numbers))


def test_equal_input_gives_equal_bytes_and_the_record_is_there(tmp_path: Path) -> None:
    few = {name: TENSORS[name] for name in ("pruned and shared", "half", "count")}
    for name in ("a", "b"):
        write(tmp_path / f"{name}.fwz", few, record="of this model")
    assert (tmp_path / "a.fwz").read_bytes() == (tmp_path / "b.fwz").read_bytes()
    with opened(tmp_path / "a.fwz") as file:
        assert file.record == "of this model"
        assert list(file.entries) == list(few)


def test_tensors_are_read_when_asked_for(tmp_path: Path) -> None:
    write(tmp_path / "a.fwz", {"first": TENSORS["float"], "second": TENSORS["pruned"]})
    data = bytearray((tmp_path / "a.fwz").read_bytes())
    data[-1] ^= 1  # damages the second
    (tmp_path / "a.fwz").write_bytes(data)
    with opened(tmp_path / "a.fwz") as file:
        assert equal(file.tensor("first"), TENSORS["float"])
        with pytest.raises(InputError, match="tensor 'second'") as caught:
            file.tensor("second")
    assert caught.value.reason == "checksum"


SMALL = {"layer.weight": Stored.of(clustered((10, 30), 0.2)), "layer.bias": Stored.of(weights((10,)))}


def test_a_flipped_bit_is_noticed_wherever_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a.fwz"
    write(path, SMALL, record="of this model")
    whole = path.read_bytes()
    with opened(path) as file:
        begins = {name: entry.begin for name, entry in file.entries.items()}
    for place in range(len(whole)):
        broken = bytearray(whole)
        broken[place] ^= 1 << place * 5 % 8
        path.write_bytes(broken)
        with pytest.raises(InputError) as caught, opened(path) as file:
            file.tensors()
        inside = [name for name, begin in begins.items() if begin <= place]
        if inside:
            assert caught.value.reason == "checksum"
            assert repr(inside[-1]) in str(caught.value)


def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.fwz"
    write(path, SMALL)
    whole = path.read_bytes()
    for length in range(1, len(whole), 3):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError) as caught, opened(path):
            pass
        assert caught.value.reason == "truncated"
    path.write_bytes(whole + b"\0")
    with pytest.raises(InputError, match="trailing"), opened(path):
        pass


def test_an_unknown_format_says_which_version_reads_it(tmp_path: Path) -> None:
    body = zlib.compress(json.dumps({"writer": "7.1.0", "something": "new"}).encode())
    start = struct.pack("<8sII", MAGIC, 9, len(body))
    path = tmp_path / "a.fwz"
    path.write_bytes(start + struct.pack("<I", zlib.crc32(body, zlib.crc32(start))) + body)
    with (
        pytest.raises(InputError, match=r"format 9, this version reads 1; featherweight 7\.1\.0 wrote it"),
        opened(path),
    ):
        pass


def sealed(head: object, streams: bytes = b"") -> bytes:
    body = zlib.compress(json.dumps(head).encode())
    start = struct.pack("<8sII", MAGIC, 1, len(body))
    return start + struct.pack("<I", zlib.crc32(body, zlib.crc32(start))) + body + streams


ROW = ["w", "float32", [2], [2, 0], [[0, 4, 4], [0, 2, 2]], 0]


@pytest.mark.parametrize(
    "row",
    [
        None, [], ["w"], [*ROW[:5], -1], [*ROW[:5], "0"], ["w", "float33", *ROW[2:]], [3, *ROW[1:]],
        ["w", "float32", [-2], *ROW[3:]], ["w", "float32", [1 << 20, 1 << 20], *ROW[3:]], ["w", "float32", 2, *ROW[3:]],
        [*ROW[:3], [9, 0], *ROW[4:]], [*ROW[:3], [2, 1], *ROW[4:]], [*ROW[:3], [2, 7], *ROW[4:]],
        [*ROW[:4], [[0, 3, 4], [0, 2, 2]], 0], [*ROW[:4], [[0, 4, 4], [0, 3, 2]], 0], [*ROW[:4], [], 0],
        [*ROW[:4], [[77, 4, 4], [0, 2, 2]], 0], [*ROW[:4], [[0, 4, 4]], 0], [*ROW[:4], [[0, 4, 1 << 50], [0, 2, 2]], 0],
        [*ROW[:4], [[0, True, 4], [0, 2, 2]], 0], [*ROW[:3], [3, 0], [[0, 9, 9], *[[0, 2, 2]] * 4], 0],
    ],
)  # fmt: skip
def test_a_header_that_does_not_fit_itself_is_refused(row: object, tmp_path: Path) -> None:
    path = tmp_path / "a.fwz"
    path.write_bytes(sealed({"writer": "1", "record": "", "tensors": [row], "graph": None}, bytes(60)))
    with pytest.raises(InputError) as caught, opened(path):
        pass
    assert caught.value.reason in ("bad_header", "truncated", "trailing")


def test_streams_that_make_no_tensor_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "a.fwz"
    streams = bytes([0, 0, 0, 0]) + bytes([0, 5])  # code 5 of a table of one
    row = [*ROW[:5], zlib.crc32(streams)]
    path.write_bytes(sealed({"writer": "1", "record": "", "tensors": [row], "graph": None}, streams))
    with (
        pytest.raises(InputError, match=r"tensor 'w' cannot be decoded .*codes beyond their table"),
        opened(path) as file,
    ):
        file.tensor("w")
    again = sealed({"writer": "1", "record": "", "tensors": [row, row], "graph": None}, 2 * streams)
    path.write_bytes(again)
    with pytest.raises(InputError, match="comes twice"), opened(path):
        pass


@pytest.mark.parametrize("data", [b"", b"{}", b"PK\x03\x04" + bytes(40), MAGIC[:5], MAGIC + bytes(3)])
def test_other_files_are_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.fwz").write_bytes(data)
    with pytest.raises(InputError), opened(tmp_path / "a.fwz"):
        pass


def test_a_header_that_would_fill_the_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container, "MAX_HEADER", 1000)
    (tmp_path / "a.fwz").write_bytes(sealed({"writer": "1", "record": " " * 5000, "tensors": [], "graph": None}))
    with pytest.raises(InputError, match="no deflated text of at most 1000"), opened(tmp_path / "a.fwz"):
        pass


def test_random_damage_never_crashes(tmp_path: Path) -> None:
    """Also where the checksum agrees: whatever the streams say, it ends in a tensor or in an InputError."""
    path = tmp_path / "a.fwz"
    write(path, {name: TENSORS[name] for name in ("pruned and shared", "conv", "codes", "half", "mask")})
    with opened(path) as file:
        entries = dict(file.entries)
        whole = path.read_bytes()
    rng = np.random.default_rng(5)
    for _ in range(150):
        name = str(rng.choice(list(entries)))
        entry = entries[name]
        data = bytearray(whole[entry.begin : entry.begin + entry.nbytes])
        for _ in range(int(rng.integers(1, 4))):
            data[rng.integers(len(data))] = rng.integers(256)
        with opened(path) as file:
            broken = container.Entry(entry.packed, entry.sizes, entry.begin, zlib.crc32(bytes(data)))
            file.entries[name] = broken
            file._stream.close()
            file._stream = _Replaced(bytes(data))  # type: ignore[assignment]
            try:
                assert file.tensor(name).shape == entry.packed.shape
            except InputError as error:
                assert error.reason == "corrupt"  # noqa: PT017


class _Replaced:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def seek(self, place: int) -> None:
        pass

    def read(self, count: int) -> bytes:
        return self.data

    def close(self) -> None:
        pass
