# SPDX-License-Identifier: Apache-2.0
"""Modules that a `.pt` file pickled alive, taken as data: class names, plain attributes, tensors, parts.

YOLOv7's releases are such files; PyTorch itself opens them only with its protection switched off. Here the classes stay
names (`pickled.Inert`): nothing of them is imported or run, and whatever is not a module's state is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from featherweight.doors.pickled import Inert
from featherweight.doors.stored import Stored
from featherweight.errors import InputError, shown

_TORCH = ("activation", "batchnorm", "container", "conv", "linear", "pooling", "upsampling")
CLASSES = (  # whose modules are let through as names; the layers of other programs are refused by name later
    "models.yolo.", "models.common.", "models.experimental.", *(f"torch.nn.modules.{name}." for name in _TORCH),
)  # fmt: skip
MAX_DEPTH, MAX_MODULES = 16, 20_000


@dataclass(frozen=True, eq=False)
class Module:
    """One module of a file: the class it names, what it remembers, its own tensors and its parts."""

    kind: str  # without the class's module: "Conv"
    facts: Mapping[str, Any]
    tensors: Mapping[str, Stored]  # parameters and buffers that a state dict has
    parts: Mapping[str, Module]

    def state_dict(self, prefix: str = "") -> dict[str, Stored]:
        """All tensors by their dotted names."""
        found = {f"{prefix}{name}": tensor for name, tensor in self.tensors.items()}
        for name, part in self.parts.items():
            found |= part.state_dict(f"{prefix}{name}.")
        return found


def is_module(value: Any) -> bool:
    """Whether a value of `read_tree` stands for a module of one of CLASSES."""
    return isinstance(value, Inert) and value.name.startswith(CLASSES)


def module(value: Any, path: object) -> Module:
    """The module that a stand-in describes; InputError where its state is not that of a module."""
    return _module(value, path, "model", iter(range(MAX_MODULES)), 0)


def _module(value: Any, path: object, place: str, count: Iterator[int], depth: int) -> Module:
    if depth > MAX_DEPTH or next(count, None) is None:
        raise InputError(path, "corrupt", f"its modules lie more than {MAX_DEPTH} deep, or are above {MAX_MODULES}")
    if not is_module(value) or value.args or value.items or value.entries:
        raise InputError(path, "bad_schema", f"'{shown(place, limit=80)}' is not a module as torch saves it")
    state = value.state
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise InputError(path, "bad_schema", f"the state of '{shown(place, limit=80)}' is not a dictionary of names")
    hidden = state.get("_non_persistent_buffers_set", set())
    tensors = _table(state, "_parameters", path, place)
    buffers = _table(state, "_buffers", path, place)
    tensors |= {name: t for name, t in buffers.items() if not isinstance(hidden, set) or name not in hidden}
    parts = _table(state, "_modules", path, place)
    for name, tensor in tensors.items():
        if tensor is not None and not isinstance(tensor, Stored):
            raise InputError(path, "bad_schema", f"'{shown(f'{place}.{name}', limit=80)}' is not a tensor")
    return Module(
        value.name.rpartition(".")[2],
        {key: item for key, item in state.items() if not key.startswith("_")},
        {name: tensor for name, tensor in tensors.items() if tensor is not None},
        {
            name: _module(part, path, f"{place}.{name}", count, depth + 1)
            for name, part in parts.items()
            if part is not None
        },
    )


def _table(state: Mapping[str, Any], key: str, path: object, place: str) -> dict[str, Any]:
    table = state.get(key, {})
    if not isinstance(table, dict) or not all(isinstance(name, str) and "." not in name for name in table):
        raise InputError(path, "bad_schema", f"{key} of '{shown(place, limit=80)}' is not a dictionary of names")
    return dict(table)
