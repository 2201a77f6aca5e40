# SPDX-License-Identifier: Apache-2.0
"""`.pt` files: what torch writes is read to the bit, and nothing that a file names is ever imported or called."""

import io
import os
import pickle
import struct
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from door_files import W, archive, number, numbers, state, tensor, text

from featherweight.doors import checkpoint as door
from featherweight.errors import InputError


def reason(folder: Path, data: bytes, name: str = "a.pt", **options: Any) -> str:
    path = folder / name
    path.write_bytes(data)
    with pytest.raises(InputError) as caught:
        door.read_tree(path, **options) if options else door.read(path)
    assert "\n" not in str(caught.value)
    return caught.value.reason


def read(folder: Path, data: bytes, **options: Any) -> Any:
    path = folder / "a.pt"
    path.write_bytes(data)
    return door.read_tree(path, **options) if options else door.read(path)


def test_a_state_dict_is_read(tmp_path: Path) -> None:
    assert np.array_equal(read(tmp_path, archive(state(w=tensor())))["w"].numpy(), W)
    turned = read(tmp_path, archive(state(w=tensor(stride=(1, 2)), row=tensor(offset=2, size=(2,), stride=(1,)))))
    assert np.array_equal(turned["w"].numpy(), W.T)
    assert turned["row"].numpy().tolist() == [2, 3]
    assert read(tmp_path, archive(state(w=tensor(size=(0, 9), stride=(9, 1)))))["w"].shape == (0, 9)
    assert read(tmp_path, archive(state(w=tensor(size=(), stride=()))))["w"].numpy().shape == ()


# what a file may try --------------------------------------------------------------------------------------------------
class Touch:
    """Pickles to a call that would leave a file behind."""

    def __init__(self, call: Any, *args: Any) -> None:
        self.call, self.args = call, args

    def __reduce__(self) -> Any:
        return self.call, self.args


NAMES = [
    ("os", "system"), ("posix", "system"), ("builtins", "eval"), ("__builtin__", "eval"), ("builtins", "exec"),
    ("builtins", "getattr"), ("builtins", "__import__"), ("importlib", "import_module"), ("subprocess", "Popen"),
    ("runpy", "run_path"), ("torch", "load"), ("torch.hub", "load"), ("torch.storage", "_load_from_bytes"),
    ("torch.jit", "load"), ("numpy", "load"), ("numpy.testing._private.utils", "runstring"), ("webbrowser", "open"),
    ("code", "interact"), ("ctypes", "CDLL"), ("functools", "partial"), ("operator", "attrgetter"), ("pickle", "loads"),
    ("collections", "OrderedDict.fromkeys"), ("torch._utils", "_rebuild_tensor_v2.__globals__"), ("shutil", "rmtree"),
    ("torch", "FloatStorage.x"), ("types", "FunctionType"), ("socket", "create_connection"), ("models.yolo", "Model"),
]  # fmt: skip


@pytest.mark.parametrize(("module", "name"), NAMES)
def test_every_name_but_a_few_is_refused_however_it_is_spelled(tmp_path: Path, module: str, name: str) -> None:
    call = {
        "GLOBAL": f"c{module}\n{name}\n".encode() + b"(" + text("x") + b"tR",
        "STACK_GLOBAL": text(module) + text(name) + b"\x93(" + text("x") + b"tR",
        "INST": b"(" + text("x") + f"i{module}\n{name}\n".encode(),
        "OBJ": b"(" + f"c{module}\n{name}\n".encode() + text("x") + b"o",
        "NEWOBJ": f"c{module}\n{name}\n".encode() + b")\x81",
        "only named": f"c{module}\n{name}\n".encode(),
    }
    for spelled, code in call.items():
        path = tmp_path / f"{spelled.replace(' ', '_')}.pt"
        path.write_bytes(archive(state(w=tensor(), evil=code)))
        with pytest.raises(InputError) as caught:
            door.read(path)
        assert caught.value.reason == "unsafe_pickle"
        assert name in str(caught.value), "the forbidden name must be shown"


OTHER_WAYS = {
    "an extension code": b"\x82\x01",
    "a call of a text": text("os") + b")R",
    "a call of a tensor": tensor() + b")R",
    "a call of a call's result": b"ccollections\nOrderedDict\n)R)R",
    "a call of a storage type": b"ctorch\nFloatStorage\n(K\x05tR",
    "state for a list": b"]}b",
    "state for a name": b"ccollections\nOrderedDict\n}b",
    "arguments by keyword": b"ccollections\nOrderedDict\n)}" + text("a") + b"Ns\x92",
}


@pytest.mark.parametrize("way", OTHER_WAYS)
def test_there_is_no_other_way_to_a_call(tmp_path: Path, way: str) -> None:
    assert reason(tmp_path, archive(state(evil=OTHER_WAYS[way]))) == "unsafe_pickle"


def test_nothing_runs(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    gadget = Touch(os.system, f"touch '{canary}'")
    nested = pickle.dumps(gadget)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name in ("sys_info", "pickle", "storages"):
            member = tarfile.TarInfo(name)
            member.size = len(nested)
            tar.addfile(member, io.BytesIO(nested))
    array = io.BytesIO()
    np.save(array, np.array([gadget], dtype=object))
    arrays = io.BytesIO()
    np.savez(arrays, x=np.array([gadget], dtype=object))
    old = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}."
    files = {
        **{f"protocol{n}.pt": archive(pickle.dumps({"w": gadget}, n)) for n in range(6)},
        **{f"bare{n}.pth": pickle.dumps(gadget, n) for n in range(6)},
        "later.pt": archive(state(w=tensor())[:-2] + text("opt") + pickle.dumps(gadget, 2)[2:-1] + b"u."),
        "stacked.pt": old + nested,
        "tar.pt": buffer.getvalue(),
        "objects.npy": array.getvalue(),
        "objects.npz": arrays.getvalue(),
    }
    for name, data in files.items():
        path = tmp_path / name
        path.write_bytes(data)
        assert reason(tmp_path, data, name) == "unsafe_pickle", name
        assert not canary.exists(), name
    pickle.loads(nested)
    assert canary.exists(), "the gadget does not work, so this test proves nothing"


def test_reading_imports_nothing(tmp_path: Path) -> None:
    modules = set(sys.modules)
    names = "".join(f"c{module}\n{name}\n" for module, name in (("argparse", "Namespace"), ("torch", "device")))
    read(tmp_path, archive(state(w=tensor(), x=names.encode()[:-14] + b")R")), inert=("none",))
    assert not {name for name in set(sys.modules) - modules if name.startswith(("torch", "argparse"))}


# tensors that lie -----------------------------------------------------------------------------------------------------
LIES = {
    "larger than its storage": (tensor(size=(1000, 1000), stride=(1000, 1)), "corrupt"),
    "behind its storage": (tensor(offset=1), "corrupt"),
    "a negative offset": (tensor(offset=-1), "corrupt"),
    "a negative size": (tensor(size=(-2, -2)), "corrupt"),
    "a negative stride": (tensor(offset=3, stride=(-2, -1)), "corrupt"),
    "stride 0": (tensor(size=(10**6, 10**6), stride=(0, 0)), "bad_shape"),
    "overlapping rows": (tensor(size=(3, 2), stride=(1, 1)), "bad_shape"),
    "sizes beyond 64 bits": (tensor(size=(1 << 64, 1 << 64), stride=(0, 0)), "bad_shape"),
    "a hundred dimensions": (tensor(size=(1,) * 100, stride=(1,) * 100), "bad_shape"),
    "more strides than sizes": (tensor(stride=(4, 2, 1)), "corrupt"),
    "a storage of another length": (tensor(count=400), "corrupt"),
    "a storage of another type": (tensor(kind="DoubleStorage"), "corrupt"),
    "a negative length": (tensor(count=-4), "corrupt"),
    "a storage that is missing": (tensor(key="7"), "corrupt"),
    "a storage outside": (tensor(key="../version"), "corrupt"),
    "an unknown storage": (tensor(kind="QUInt8Storage"), "unsafe_pickle"),
    "a size of truth": (tensor().replace(numbers((2, 2)), b"(\x88\x88t"), "corrupt"),
    "a size that is a list": (tensor().replace(numbers((2, 2)), b"]"), "corrupt"),
    "a reference to nothing": (tensor().replace(text("storage"), text("module")), "corrupt"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_tensor_that_lies_is_refused(tmp_path: Path, lie: str) -> None:
    code, wanted = LIES[lie]
    assert reason(tmp_path, archive(state(w=code))) == wanted


def test_views_cannot_be_multiplied_beyond_the_file(tmp_path: Path) -> None:
    many = {f"w{i}": tensor(stride=(1, 2)) for i in range(500)}
    plain = {f"w{i}": tensor() for i in range(500)}
    assert len(read(tmp_path, archive(state(**plain)))) == 500
    big = archive(state(**many), {"data/0": W.tobytes()})
    assert len(read(tmp_path, big)) == 500  # 16 bytes each: less than the file
    big_tensor = {f"w{i}": tensor(count=1 << 16, size=(256, 256), stride=(1, 256)) for i in range(20)}
    assert reason(tmp_path, archive(state(**big_tensor), {"data/0": bytes(4 << 16)})) == "too_large"


def test_a_truth_value_is_0_or_1(tmp_path: Path) -> None:
    code = state(w=tensor(kind="BoolStorage", count=3, size=(3,), stride=(1,)))
    assert read(tmp_path, archive(code, {"data/0": b"\0\1\1"}))["w"].numpy().tolist() == [False, True, True]
    assert reason(tmp_path, archive(code, {"data/0": b"\0\1\5"})) == "corrupt"


# the pickle as a program ----------------------------------------------------------------------------------------------
PROGRAMS = {
    "no end": (b"\x80\x02}", "corrupt"),
    "bytes behind the end": (state(w=tensor()) + b"x", "corrupt"),
    "nothing on the stack": (b".", "corrupt"),
    "a mark that is missing": (b"\x80\x02e.", "corrupt"),
    "a memo that is missing": (b"\x80\x02h\x07.", "corrupt"),
    "an unknown instruction": (b"\xff.", "corrupt"),
    "a text longer than the file": (b"X" + struct.pack("<I", 1 << 30) + b"a.", "corrupt"),
    "bytes longer than memory": (b"\x8e" + struct.pack("<Q", 1 << 62) + b"a.", "corrupt"),
    "a number of 5000 digits": (b"I" + b"9" * 5000 + b"\n.", "corrupt"),
    "items of a list": (b"]K\x01K\x02s.", "corrupt"),
    "an odd number of items": (b"}(K\x01u.", "corrupt"),
    "a tuple as a key": (b"})Ns.", "bad_schema"),
    "a fraction as a key": (b"}G" + bytes(8) + b"Ns.", "bad_schema"),
    "a number made to collide": (b"}" + number((1 << 61) - 1) + b"Ns.", "bad_schema"),
    "a list": (b"].", "bad_schema"),
    "a tensor": (tensor() + b".", "bad_schema"),
    "a number for a name": (b"}K\x01" + tensor() + b"s.", "bad_schema"),
    "a number for a tensor": (state(w=b"K\x01"), "bad_schema"),
    "an argparse.Namespace": (state(w=b"cargparse\nNamespace\n)R"), "bad_schema"),
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_broken_program_is_refused(tmp_path: Path, program: str) -> None:
    code, wanted = PROGRAMS[program]
    assert reason(tmp_path, archive(code)) == wanted


def test_shared_lists_and_shared_keys_do_not_grow(tmp_path: Path) -> None:
    laughs = b"".join(b"](" + b"h" + bytes([i]) * 1 + b"h" + bytes([i]) + b"eq" + bytes([i + 1]) for i in range(60))
    assert reason(tmp_path, archive(state(w=b"]q\0" + laughs))) == "bad_schema"
    tuples = b"".join(b"h" + bytes([i]) + b"h" + bytes([i]) + b"\x86q" + bytes([i + 1]) for i in range(60))
    assert reason(tmp_path, archive(b"}q\x7f)q\0" + tuples + b"0h\x7fh\x3cNs.")) == "bad_schema"


def test_a_program_without_end_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from featherweight.doors import pickle as restricted

    monkeypatch.setattr(restricted, "MAX_STEPS", 1000)
    assert reason(tmp_path, archive(b"]" * 2000 + b".")) == "too_large"
