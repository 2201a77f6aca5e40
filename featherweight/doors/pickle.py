# SPDX-License-Identifier: Apache-2.0
"""Reads the pickle inside a PyTorch file as data: a small machine that knows lists, dicts, numbers, texts and tensors.

It imports nothing, calls nothing but the few functions of the table below, and refuses every other name. Classes that
only hold things may be let through as `Inert` stand-ins: a name, the arguments and the state, never the class.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Callable
from typing import Any

from featherweight.doors.pickled import HARMLESS, STORAGES, TYPES, Inert, Name, Storage, View
from featherweight.errors import InputError, shown

MAX_STEPS = 2_000_000  # a state dict needs about 30 a tensor, a whole pickled YOLOv7 some 300 000


def load(stream: io.BytesIO, path: object, *, tensor: Callable[[View], Any], inert: tuple[str, ...] = ()) -> Any:
    """The object of one pickle; `tensor` turns each View into what shall stand for it. The stream is left behind it."""
    return _Machine(path, tensor, inert).run(stream)


class _Machine:
    """A stack, a memo, and one method for each instruction that is understood."""

    def __init__(self, path: object, tensor: Callable[[View], Any], inert: tuple[str, ...]) -> None:
        self.path = path
        self.tensor = tensor
        self.inert = inert
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self, stream: io.BytesIO) -> Any:
        for step, (opcode, arg, _) in enumerate(pickletools.genops(stream)):
            if opcode.name == "STOP":
                return self.stack.pop()
            if step > MAX_STEPS:
                raise InputError(self.path, "too_large", f"the pickle has more than {MAX_STEPS} instructions")
            if opcode.name in _CONSTANTS:
                self.stack.append(arg)
            elif (handler := _HANDLERS.get(opcode.name)) is not None:
                handler(self, arg)
            else:
                raise self.unsafe(f"uses the instruction {opcode.name}")
        raise InputError(self.path, "truncated", "the pickle has no end")

    def unsafe(self, what: str) -> InputError:
        text = f"{what}, which could run code; nothing was run. Ask for safetensors"
        return InputError(self.path, "unsafe_pickle", text)

    def since_mark(self) -> list[Any]:
        found, self.stack = self.stack, self.marked.pop()
        return found

    # names and calls -----------------------------------------------------------------------------------------------
    def name(self, module: Any, name: Any) -> Name:
        dotted = f"{module}.{name}"
        known = dotted in _CALLS or dotted in STORAGES or dotted in TYPES or self.is_inert(dotted)
        if not (isinstance(module, str) and isinstance(name, str) and known) or "." in name:
            raise self.unsafe(f"names {shown(dotted, limit=100)}")
        return Name(dotted)

    def is_inert(self, dotted: str) -> bool:
        return dotted in HARMLESS or dotted.startswith(self.inert)

    def call(self, target: Any, args: Any) -> Any:
        if not isinstance(target, Name) or not isinstance(args, tuple):
            raise self.unsafe(f"calls a {type(target).__name__}")
        if target.dotted in _CALLS:
            return _CALLS[target.dotted](self, *args)
        if self.is_inert(target.dotted) and (target.dotted in HARMLESS or not args):  # a module is made without any
            return Inert(target.dotted, args)
        raise self.unsafe(f"calls {shown(target.dotted, limit=100)}")

    def view(self, storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Any:
        return self.view_of(storage, offset, size, stride, None)

    def view_typed(self, storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Any:
        _grad, _hooks, dtype = rest[:3]
        if not isinstance(dtype, Name) or dtype.dotted not in TYPES:
            raise InputError(self.path, "corrupt", "a tensor has no known dtype")
        return self.view_of(storage, offset, size, stride, dtype.dotted.removeprefix("torch."))

    def view_of(self, storage: Any, offset: Any, size: Any, stride: Any, dtype: str | None) -> Any:
        if not isinstance(storage, Storage) or not isinstance(size, tuple) or not isinstance(stride, tuple):
            raise InputError(self.path, "corrupt", "a tensor is not made of a storage, a shape and strides")
        dtype = dtype or storage.dtype
        if dtype is None or not all(type(n) is int for n in (offset, *size, *stride)):
            raise InputError(self.path, "corrupt", "a tensor's offset, shape or strides are not whole numbers")
        return self.tensor(View(storage, dtype, offset, size, stride))

    def persistent(self, what: Any) -> Storage:
        if not isinstance(what, tuple) or len(what) not in (5, 6) or what[0] != "storage":
            raise InputError(self.path, "corrupt", "refers to something that is not a tensor's storage")
        _, kind, key, _, count = what[:5]
        known = isinstance(kind, Name) and kind.dotted in STORAGES
        if not known or type(key) is not str or type(count) is not int or count < 0:
            raise InputError(self.path, "corrupt", "a storage has no known type, name or length")
        return Storage(key, STORAGES[kind.dotted], count)

    # containers ----------------------------------------------------------------------------------------------------
    def extend(self, target: Any, values: list[Any]) -> None:
        if isinstance(target, Inert):
            target = target.entries
        if isinstance(target, set):
            target.update(self.key(value) for value in values)
        elif isinstance(target, list):
            target.extend(values)
        else:
            raise InputError(self.path, "corrupt", f"adds to a {type(target).__name__}")

    def fill(self, target: Any, values: list[Any]) -> Any:
        into = target.items if isinstance(target, Inert) else target
        if not isinstance(into, dict) or len(values) % 2:
            raise InputError(self.path, "corrupt", f"sets items of a {type(target).__name__}")
        into.update((self.key(key), value) for key, value in zip(values[::2], values[1::2], strict=True))
        return target

    def key(self, value: Any) -> Any:
        simple = isinstance(value, (str, bytes, type(None))) or (isinstance(value, int) and abs(value) < 1 << 60)
        if not simple:  # hashing a nested tuple, or many numbers made to collide, could take for ever
            raise InputError(self.path, "bad_schema", f"uses a {type(value).__name__} as a key")
        return value

    def ordered(self, pairs: Any = ()) -> Any:
        return self.fill({}, [part for key, value in pairs for part in (key, value)])

    def set_of(self, values: Any = ()) -> set[Any]:
        return {self.key(value) for value in values}

    def build(self, _: Any) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, Inert):
            target.state = state
        elif not isinstance(target, dict):  # a state dict's state is the version numbers of its modules
            raise self.unsafe(f"sets the inside of a {type(target).__name__}")


def _push(make: Callable[[_Machine, Any], Any]) -> Callable[[_Machine, Any], None]:
    def handle(m: _Machine, arg: Any) -> None:
        value = make(m, arg)  # first: it may exchange the stack
        m.stack.append(value)

    return handle


def _pop(m: _Machine, count: int) -> list[Any]:
    if len(m.stack) < count:
        raise InputError(m.path, "corrupt", "the pickle takes more than it put")
    found = m.stack[len(m.stack) - count :]
    del m.stack[len(m.stack) - count :]
    return found


def _mark(m: _Machine, _: Any) -> None:
    m.marked.append(m.stack)
    m.stack = []


def _unmark(m: _Machine, _: Any) -> None:
    if m.stack:
        m.stack.pop()
    else:
        m.stack = m.marked.pop()


def _drop(m: _Machine, _: Any) -> None:
    m.since_mark()


def _put(m: _Machine, arg: Any) -> None:
    m.memo[len(m.memo) if arg is None else arg] = m.stack[-1]


def _obj(m: _Machine, _: Any) -> Any:
    target, *args = m.since_mark()
    return m.call(target, tuple(args))


def _new_with_keywords(m: _Machine, _: Any) -> Any:
    target, args, keywords = _pop(m, 3)
    if keywords:
        raise m.unsafe("makes an object with keywords")
    return m.call(target, args)


def _into(method: Callable[[_Machine, Any, list[Any]], Any], count: int = 0) -> Callable[[_Machine, Any], None]:
    """Hand the last `count` values, or those since the mark, to a method of what lies below them."""

    def handle(m: _Machine, _: Any) -> None:
        values = _pop(m, count) if count else m.since_mark()
        method(m, m.stack[-1], values)

    return handle


_CALLS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _Machine.ordered,
    "builtins.set": _Machine.set_of,
    "__builtin__.set": _Machine.set_of,
    "torch.Size": lambda m, values: tuple(values),
    "torch._utils._rebuild_tensor": _Machine.view,
    "torch._utils._rebuild_tensor_v2": _Machine.view,
    "torch._utils._rebuild_tensor_v3": _Machine.view_typed,
    "torch._utils._rebuild_parameter": lambda m, data, grad=None, hooks=None: data,
}
_CONSTANTS = frozenset(
    {
        "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
        "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
        "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
    }
)  # fmt: skip
_HANDLERS: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(("PROTO", "FRAME"), lambda m, arg: None),
    "MARK": _mark,
    "POP": _unmark,
    "POP_MARK": _drop,
    "DUP": _push(lambda m, arg: m.stack[-1]),
    "NONE": _push(lambda m, arg: None),
    "NEWTRUE": _push(lambda m, arg: True),
    "NEWFALSE": _push(lambda m, arg: False),
    "EMPTY_LIST": _push(lambda m, arg: []),
    "EMPTY_TUPLE": _push(lambda m, arg: ()),
    "EMPTY_DICT": _push(lambda m, arg: {}),
    "EMPTY_SET": _push(lambda m, arg: set()),
    "LIST": _push(lambda m, arg: m.since_mark()),
    "TUPLE": _push(lambda m, arg: tuple(m.since_mark())),
    "DICT": _push(lambda m, arg: m.fill({}, m.since_mark())),
    "FROZENSET": _push(lambda m, arg: frozenset(m.set_of(m.since_mark()))),
    "TUPLE1": _push(lambda m, arg: tuple(_pop(m, 1))),
    "TUPLE2": _push(lambda m, arg: tuple(_pop(m, 2))),
    "TUPLE3": _push(lambda m, arg: tuple(_pop(m, 3))),
    "APPEND": _into(_Machine.extend, 1),
    **dict.fromkeys(("APPENDS", "ADDITEMS"), _into(_Machine.extend)),
    "SETITEM": _into(_Machine.fill, 2),
    "SETITEMS": _into(_Machine.fill),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _push(lambda m, arg: m.memo[arg])),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), _put),
    "GLOBAL": _push(lambda m, arg: m.name(*arg.split(" ", 1))),
    "STACK_GLOBAL": _push(lambda m, arg: m.name(*_pop(m, 2))),
    "INST": _push(lambda m, arg: m.call(m.name(*arg.split(" ", 1)), tuple(m.since_mark()))),
    "OBJ": _push(_obj),
    **dict.fromkeys(("REDUCE", "NEWOBJ"), _push(lambda m, arg: m.call(*_pop(m, 2)))),
    "NEWOBJ_EX": _push(_new_with_keywords),
    "BUILD": _Machine.build,
    "BINPERSID": _push(lambda m, arg: m.persistent(m.stack.pop())),
}
