# SPDX-License-Identifier: Apache-2.0
"""Weights come through exactly or not at all: safetensors, our seal over it, and the check against a model."""

import hashlib
import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from door_files import W, entry, safetensors

from featherweight.doors import checkpoint as door
from featherweight.doors.checkpoint import Stored
from featherweight.errors import InputError, OptionError

SPEC = {"w": {"shape": (2, 2), "dtype": "float32"}}
GOOD = {"w": entry()}


def reason(read: Any, *args: Any, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        read(*args, **options)
    return caught.value.reason


def saved(folder: Path, header: Any, data: bytes = W.tobytes(), name: str = "a.safetensors") -> Path:
    path = folder / name
    path.write_bytes(safetensors(header, data))
    return path


def test_values_come_through_to_the_bit(tmp_path: Path) -> None:
    found = door.read(saved(tmp_path, GOOD))
    door.check(found, SPEC)
    assert np.array_equal(found["w"].numpy(), W)
    found["w"].numpy()[0, 0] = 7  # a model may be trained on these bytes
    assert list(door.read(saved(tmp_path, {"b": entry(offsets=[16, 32]), "a": entry()}, W.tobytes() * 2))) == ["b", "a"]
    assert np.array_equal(door.read(saved(tmp_path, GOOD, name="weights.bin"))["w"].numpy(), W)


HEADERS = {
    "a list": [1],
    "not json": b"{nope}",
    "not text": b'{"\xff": 1}',
    "spaces first": b" " + json.dumps(GOOD).encode(),
    "a byte-order mark": b"\xef\xbb\xbf" + json.dumps(GOOD).encode(),
    "zeros after it": json.dumps(GOOD).encode() + b"\0\0",
    "one name twice": b'{"w":' + json.dumps(entry()).encode() + b',"w":' + json.dumps(entry()).encode() + b"}",
    "one field twice": b'{"w":{"dtype":"F32","dtype":"F32","shape":[2,2],"data_offsets":[0,16]}}',
    "a field too many": {"w": {**entry(), "x": 1}},
    "a field too few": {"w": {"dtype": "F32", "shape": [2, 2]}},
    "an entry that is a list": {"w": [1]},
    "an unknown dtype": {"w": entry("F33")},
    "a dtype that is a list": {"w": entry(["F32"])},
    "a shape of fractions": {"w": entry(shape=[2.0, 2])},
    "a shape of truth": {"w": entry(shape=[True, 4])},
    "a negative shape": {"w": entry(shape=[-2, -2])},
    "a shape that is a number": {"w": entry(shape=4)},
    "a shape beyond 64 bits": {"w": entry(shape=[1 << 64, 0])},
    "a shape that wraps round": {"w": entry(shape=[1 << 32, 1 << 32, 0], offsets=[0, 4])},
    "65 dimensions": {"w": entry(shape=[1] * 63 + [2, 2])},
    "a shape that lies": {"w": entry(shape=[3, 3])},
    "offsets in reverse": {"w": entry(offsets=[16, 0])},
    "one offset": {"w": entry(offsets=[16])},
    "three offsets": {"w": entry(offsets=[0, 16, 32])},
    "an overlap": {"a": entry(), "b": entry(offsets=[8, 24])},
    "the same place twice": {"a": entry(), "b": entry()},
    "a hole": {"a": entry(shape=[1], offsets=[0, 4]), "b": entry(shape=[2], offsets=[8, 16])},
    "a late start": {"w": entry(shape=[3], offsets=[4, 16])},
    "bytes behind": {"w": entry(shape=[3], offsets=[0, 12])},
    "past the end": {"w": entry(shape=[5], offsets=[0, 20])},
    "no tensor for the bytes": {},
    "metadata of numbers": {"__metadata__": {"a": 1}, **GOOD},
    "metadata that is a text": {"__metadata__": "a", **GOOD},
    "NaN": b'{"w":NaN}',
    "a number of 5000 digits": b'{"w":' + b"9" * 5000 + b"}",
    "deep lists": b'{"w":' + b"[" * 9000 + b"]" * 9000 + b"}",
    "half a surrogate pair": b'{"__metadata__":{"\\ud800":"x"},"w":[]}',
}


@pytest.mark.parametrize("fault", HEADERS)
def test_a_fault_in_the_header_is_refused(tmp_path: Path, fault: str) -> None:
    assert reason(door.read, saved(tmp_path, HEADERS[fault])) == "bad_header"


def test_a_length_is_compared_with_the_file_before_it_is_used(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    for length in (0, 1, 10**6, 2**31, 2**63, 2**64 - 1):
        path.write_bytes(struct.pack("<Q", length) + b"{}" * 40)
        assert reason(door.read, path) == "bad_header"
    path.write_bytes(b"1234567")
    assert reason(door.read, path) == "bad_header"
    path.write_bytes(b"")
    assert reason(door.read, path) == "empty"


def test_a_truth_value_is_0_or_1(tmp_path: Path) -> None:
    header = {"w": entry("BOOL", [4], [0, 4])}
    assert door.read(saved(tmp_path, header, b"\0\1\1\0"))["w"].numpy().tolist() == [False, True, True, False]
    assert reason(door.read, saved(tmp_path, header, b"\0\1\2\0")) == "corrupt"


def test_the_usual_wrong_downloads_are_told_apart(tmp_path: Path) -> None:
    for name in ("a.safetensors", "a.pt"):
        path = tmp_path / name
        path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n")
        with pytest.raises(InputError, match="git lfs pull"):
            door.read(path)
        path.write_bytes(b"\n <!DOCTYPE html><title>404</title>")
        assert reason(door.read, path) == "not_a_checkpoint"


def test_a_limit_of_bytes_is_an_option(tmp_path: Path) -> None:
    path = saved(tmp_path, GOOD)
    assert reason(door.read, path, max_bytes=20) == "too_large"


@pytest.mark.parametrize(
    ("tensors", "wanted"),
    [
        ({}, "missing_key"),
        ({"w": W, "x": W}, "unexpected_key"),
        ({"v": W}, "missing_key"),
        ({"w": W.reshape(4)}, "shape_mismatch"),
        ({"w": W.astype(np.float64)}, "dtype_mismatch"),
        ({"w": np.full_like(W, np.nan)}, "non_finite"),
        ({"w": np.full_like(W, -np.inf)}, "non_finite"),
    ],
)
def test_tensors_that_do_not_fit_the_model_are_refused(tensors: dict[str, np.ndarray], wanted: str) -> None:
    stored = {name: Stored.of(value) for name, value in tensors.items()}
    assert reason(door.check, stored, SPEC) == wanted
    with pytest.raises(InputError, match=r"model\.bin"):
        door.check(stored, SPEC, name="model.bin")


def test_a_spec_may_be_tensors_of_any_kind() -> None:
    stored = {"w": Stored.of(W)}
    for want in (W, Stored.of(W), {"shape": [2, 2], "dtype": "float32"}):
        door.check(stored, {"w": want})
        assert reason(door.check, {"w": Stored.of(W.reshape(4))}, {"w": want}) == "shape_mismatch"
        assert reason(door.check, {"w": Stored.of(W.astype(np.float64))}, {"w": want}) == "dtype_mismatch"


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "complex64"])
def test_one_number_among_millions_that_is_not_finite_is_seen(dtype: str) -> None:
    values = np.zeros(2_100_000, dtype=dtype)
    assert Stored.of(values).is_finite()
    for place in (0, 1 << 20, values.size - 1):
        for bad in (np.nan, np.inf, -np.inf):
            values[place] = bad
            assert not Stored.of(values).is_finite()
            values[place] = 0


def test_bfloat16_is_read_as_equal_float32() -> None:
    bits = np.arange(1 << 16, dtype=np.uint32)
    values = Stored("bfloat16", (256, 256), bits.astype("<u2").tobytes()).numpy()
    assert np.array_equal(values.view(np.uint32).ravel(), bits << 16)
    for value, finite in ((0x7F7F, True), (0x7F80, False), (0xFF80, False), (0x7FC0, False), (0x0001, True)):
        assert Stored("bfloat16", (), struct.pack("<H", value)).is_finite() == finite


def test_a_stored_tensor_is_checked_when_it_is_made() -> None:
    with pytest.raises(TypeError, match="float33"):
        Stored("float33", (1,), b"1234")
    with pytest.raises(ValueError, match="needs 16 bytes"):
        Stored("float32", (2, 2), b"1234")
    with pytest.raises(ValueError, match="-2"):
        Stored("float32", (-2, -2), bytes(16))
    big_endian = np.arange(6, dtype=">f4").reshape(2, 3).T
    assert np.array_equal(Stored.of(big_endian).numpy(), big_endian)
    with pytest.raises(TypeError, match="object"):
        Stored.of(np.array([None]))


# our own file ---------------------------------------------------------------------------------------------------------
def sealed(folder: Path, **metadata: str) -> Path:
    path = folder / "sealed.safetensors"
    tensors = {"w": Stored.of(W), "empty": Stored("float32", (0, 3), b""), "n": Stored.of(np.array(5))}
    tensors |= {"b": Stored("bfloat16", (3,), b"123456"), "i": Stored.of(np.int8([1, 2, 3]))}
    door.write(path, tensors, metadata)
    return path


def test_a_sealed_file_comes_back_and_its_bytes_do_not_depend_on_the_order(tmp_path: Path) -> None:
    metadata = {"record": '{"a": "ü \\" sha256"}', "b": ""}
    path = sealed(tmp_path, **metadata)
    data = path.read_bytes()
    tensors, found = door.read_sealed(path)
    assert found == metadata
    assert np.array_equal(tensors["w"].numpy(), W)
    assert tensors["n"].numpy().shape == ()
    door.write(path, dict(reversed(tensors.items())), dict(reversed(found.items())))
    assert path.read_bytes() == data
    assert door.read(path).keys() == tensors.keys()


def test_the_digest_is_what_it_is_said_to_be(tmp_path: Path) -> None:
    data = sealed(tmp_path).read_bytes()
    header = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
    digest = header["__metadata__"]["sha256"]
    assert header["__metadata__"]["format"] == "pt"
    assert hashlib.sha256(data.replace(digest.encode(), b"0" * 64)).hexdigest() == digest


def test_any_reader_of_the_format_can_load_it_and_wide_numbers_lie_aligned(tmp_path: Path) -> None:
    numpy = pytest.importorskip("safetensors")
    with numpy.safe_open(sealed(tmp_path), framework="np") as opened:
        assert np.array_equal(opened.get_tensor("w"), W)
    data = (tmp_path / "sealed.safetensors").read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    assert (8 + length) % 8 == 0
    assert header["n"]["data_offsets"] == [0, 8]


def test_every_single_bit_is_under_the_seal(tmp_path: Path) -> None:
    path = sealed(tmp_path)
    data = path.read_bytes()
    for bit in range(0, len(data) * 8, 5):  # each byte, and each place in a byte
        broken = bytearray(data)
        broken[bit // 8] ^= 1 << bit % 8
        path.write_bytes(broken)
        with pytest.raises(InputError):
            door.read_sealed(path)
    path.write_bytes(data)
    door.read_sealed(path)


def test_cut_and_lengthened_files_say_so(tmp_path: Path) -> None:
    path = sealed(tmp_path)
    data = path.read_bytes()
    for end in (1, 7, 8, 9, 100, len(data) - 1):
        path.write_bytes(data[:end])
        assert reason(door.read_sealed, path) == "truncated"
    for tail in (b"\0", b"PK\5\6" + bytes(18), data):
        path.write_bytes(data + tail)
        assert reason(door.read_sealed, path) == "trailing"


def test_a_file_of_others_is_not_sealed_and_a_damaged_one_of_ours_is_not_read_loosely(tmp_path: Path) -> None:
    assert reason(door.read_sealed, saved(tmp_path, GOOD)) == "not_an_artifact"
    path = sealed(tmp_path)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert reason(door.read, path) == "checksum"


def test_what_cannot_be_written_is_said_before_anything_is(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="__metadata__"):
        door.write(tmp_path / "a", {"__metadata__": Stored.of(W)}, {})
    with pytest.raises(OptionError, match="epoch"):
        door.write(tmp_path / "a", {}, {"epoch": 3})  # type: ignore[dict-item]
    assert not list(tmp_path.iterdir())
    door.write(tmp_path / "a", {}, {})
    assert door.read_sealed(tmp_path / "a") == ({}, {})


def test_reading_takes_the_size_of_the_file_and_refusing_takes_nothing(tmp_path: Path) -> None:
    size = 100 << 20
    path = saved(tmp_path, {"w": entry("U8", [size], [0, size])}, b"")
    with open(path, "ab") as stream:
        stream.truncate(path.stat().st_size + size)
    bad = saved(tmp_path, {"w": entry("U8", [size + 1], [0, size + 1])}, b"", "bad.safetensors")
    with open(bad, "ab") as stream:
        stream.truncate(bad.stat().st_size + size)
    code = """
import resource, sys
from featherweight.doors import checkpoint
from featherweight.errors import InputError
assert "torch" not in sys.modules
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
start = peak()
try:
    checkpoint.read(sys.argv[1])
except InputError:
    print(peak() - start)
checkpoint.check_finite(checkpoint.read(sys.argv[2]))
print(peak() - start)
"""
    pytest.importorskip("resource")
    done = subprocess.run([sys.executable, "-c", code, bad, path], capture_output=True, text=True, check=True)
    refused, read = map(int, done.stdout.split())
    assert refused < 10
    assert read < 1.2 * 100 + 60
