# SPDX-License-Identifier: Apache-2.0
"""The zip around a `.pt`: exactly what torch writes, explained to the last byte, its tensors equal to the bit."""

import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from door_files import W, archive, state, tensor

from featherweight.doors import checkpoint as door
from featherweight.errors import InputError


def reason(folder: Path, data: bytes, name: str = "a.pt") -> str:
    path = folder / name
    path.write_bytes(data)
    with pytest.raises(InputError) as caught:
        door.read(path)
    assert "\n" not in str(caught.value)
    return caught.value.reason


# the archive ----------------------------------------------------------------------------------------------------------
def test_the_archive_must_be_what_torch_writes(tmp_path: Path) -> None:
    good = archive(state(w=tensor()))
    assert reason(tmp_path, good[:-1]) == "truncated"
    assert reason(tmp_path, good[: len(good) // 2]) == "truncated"
    assert reason(tmp_path, good + b"x") == "truncated"
    assert reason(tmp_path, archive(state(w=tensor()), compression=zipfile.ZIP_DEFLATED)) == "corrupt"
    assert reason(tmp_path, archive(state(w=tensor()), {"../evil": b"x"})) == "corrupt"
    assert reason(tmp_path, archive(state(w=tensor()), {"notes.txt": b"x"})) == "corrupt"
    assert reason(tmp_path, archive(state(w=tensor()), {"byteorder": b"big"})) == "unsupported_format"
    assert reason(tmp_path, archive(state(w=tensor()), {"code/__torch__.py": b"x"})) == "unsupported_format"
    changed = good.replace(W.tobytes(), W[::-1].tobytes())
    assert reason(tmp_path, changed) == "corrupt"
    assert reason(tmp_path, good.replace(b"3\n", b"4\n")) == "corrupt", "members nobody uses are checked too"


def test_hidden_bytes_in_an_archive_are_refused(tmp_path: Path) -> None:
    good = archive(state(w=tensor()))
    start = struct.unpack("<I", good[-6:-2])[0]  # of the directory
    hidden = good[:start] + b"hidden" * 10 + good[start:-6] + struct.pack("<I", start + 60) + good[-2:]
    with zipfile.ZipFile(io.BytesIO(hidden)) as opened:
        assert opened.testzip() is None, "the usual reader sees nothing"
    assert reason(tmp_path, hidden) == "corrupt"
    assert reason(tmp_path, b"PK\x03\x04 and more in front" + good) == "corrupt"


def test_two_members_of_one_name_are_refused(tmp_path: Path) -> None:
    stream = io.BytesIO(archive(state(w=tensor())))
    with zipfile.ZipFile(stream, "a") as out, pytest.warns(UserWarning, match="Duplicate"):
        out.writestr("archive/data.pkl", b"cos\nsystem\n.")
    assert reason(tmp_path, stream.getvalue()) == "corrupt"


def test_the_directory_must_agree_with_the_members(tmp_path: Path) -> None:
    good = archive(state(w=tensor()))
    name = b"archive/data/0"
    first, second = good.index(name), good.rindex(name)
    for place in (first, second):
        other = good[:place] + b"archive/data/1" + good[place + len(name) :]
        assert reason(tmp_path, other) == "corrupt"
    size = good.index(b"PK\x03\x04archive"[:4], first - 40) + 22
    assert reason(tmp_path, good[: size - 14] + b"\x08" + good[size - 13 :]) == "corrupt"  # a method of its own


@pytest.mark.parametrize("end", range(1, 640, 13))
def test_damage_anywhere_is_refused_or_changes_nothing(tmp_path: Path, end: int) -> None:
    good = archive(state(w=tensor()))
    broken = bytearray(good)
    broken[end % len(good)] ^= 0x55
    path = tmp_path / "a.pt"
    path.write_bytes(broken)
    said = ""
    try:
        found = door.read(path)
    except InputError as error:
        said = str(error)
    if said:
        assert "a.pt" in said and "\n" not in said
        return
    assert np.array_equal(found["w"].numpy(), W)


def test_other_archives_and_arrays_are_called_what_they_are(tmp_path: Path) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("word/document.xml", b"x" * 1000)
    assert reason(tmp_path, stream.getvalue()) == "not_a_checkpoint"
    array = io.BytesIO()
    np.save(array, W)
    assert reason(tmp_path, array.getvalue(), "a.npy") == "not_a_checkpoint"
    assert reason(tmp_path, b"hello, world") == "not_a_checkpoint"
    assert reason(tmp_path, b"\x1f\x8b\x08\0" + bytes(40)) == "not_a_checkpoint"
    assert reason(tmp_path, archive(state(w=tensor())), "a.safetensors") == "bad_header"


# with torch -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_what_torch_writes_is_read_to_the_bit(tmp_path: Path, protocol: int) -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    whole = {
        "plain": torch.randn(3, 4),
        "turned": torch.randn(4, 3).T,
        "scalar": torch.tensor(3.5),
        "nothing": torch.zeros(0, 3),
        "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "part": torch.randn(10)[3:7],
        "steps": torch.randn(10)[::2],
        "parameter": torch.nn.Parameter(torch.randn(3)),
        "bool": torch.tensor([True, False]),
    }
    kinds = "bfloat16 float16 float64 int8 uint8 int16 int32 int64 uint16 uint32 uint64 complex64"
    whole |= {kind: torch.arange(5).to(getattr(torch, kind)) for kind in kinds.split()}
    whole["shared"] = whole["plain"]
    torch.save(whole, tmp_path / "a.pt", pickle_protocol=protocol)
    found = door.read(tmp_path / "a.pt")
    assert list(found) == list(whole)
    door.check(found, whole)
    for name, value in whole.items():
        plain = value.detach().contiguous()
        plain = plain.view(torch.int16) if plain.dtype == torch.bfloat16 else plain
        assert bytes(found[name].data) == plain.numpy().tobytes(), name


def test_a_model_s_state_dict_with_its_version_numbers(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    torch.save(model.state_dict(), tmp_path / "a.pt")
    found, wanted = door.read(tmp_path / "a.pt"), model.state_dict()
    door.check(found, wanted)
    assert list(found) == list(wanted) and found["1.num_batches_tracked"].shape == ()
    assert bytes(found["0.weight"].data) == wanted["0.weight"].numpy().tobytes()


def test_a_training_file_is_read_as_a_tree_of_data(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    import argparse

    model = torch.nn.Linear(2, 3)
    note = argparse.Namespace(lr=1.0, out=Path("x"))
    whole = {"model": model.state_dict(), "args": note, "epoch": 3, "best": np.float64(3.2), "net": model}
    torch.save(whole, tmp_path / "a.pt")
    with pytest.raises(InputError, match=r"torch\.nn\.modules\.linear\.Linear"):
        door.read_tree(tmp_path / "a.pt")
    tree = door.read_tree(tmp_path / "a.pt", inert=("torch.nn.modules.",))
    assert tree["epoch"] == 3
    assert tree["model"]["weight"].numpy().tolist() == model.weight.tolist()
    assert (tree["args"].name, tree["args"].state["lr"]) == ("argparse.Namespace", 1.0)
    assert tree["net"].name == "torch.nn.modules.linear.Linear"
    assert tree["net"].state["_parameters"]["bias"].shape == (3,)
    torch.save({"model": model.state_dict()}, tmp_path / "a.pt")
    with pytest.raises(InputError, match="'model' is a dict"):
        door.read(tmp_path / "a.pt")


def test_the_older_layout_is_refused_by_name(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.save({"w": torch.zeros(2)}, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(InputError, match=r"before 1\.6"):
        door.read(tmp_path / "a.pt")
