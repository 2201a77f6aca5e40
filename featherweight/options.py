# SPDX-License-Identifier: Apache-2.0
"""Options as data: write down what a run was asked to do, and say where another run was asked differently."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

DEPTH = 6  # of options inside options
NOT_DATA = ("images", "rank", "world", "workers")  # of batches: described otherwise, or without a part in the result


def facts_of(plan: object, batches: Any, world: int) -> dict[str, Any]:
    """What must be the same when a training run is taken up again: its plan, its data, its processes, its torch."""
    data = {k: v for k, v in getattr(batches, "__dict__", {}).items() if k not in NOT_DATA}
    data["samples"] = len(getattr(batches, "images", ()))
    return {
        **{name: describe(value) for name, value in vars(plan).items()},
        "data": describe(data),
        "steps_per_epoch": batches.steps_per_epoch,
        "world": world,
        "torch": str(torch.__version__),
    }


def describe(value: Any, depth: int = DEPTH) -> Any:
    """An option as JSON that is equal exactly when the option is: modules and arrays by digest, functions by name."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if depth == 0:
        return type(value).__qualname__
    if isinstance(value, Mapping):
        return {str(k): describe(v, depth - 1) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [describe(v, depth - 1) for v in value]
    if isinstance(value, nn.Module):
        return f"{type(value).__qualname__} {_digest(value.state_dict().values())}"
    if isinstance(value, (Tensor, np.ndarray)):
        return f"{tuple(value.shape)} {_digest([torch.as_tensor(value)])}"
    if isinstance(value, functools.partial):
        return {
            "is": describe(value.func),
            "args": describe(value.args, depth - 1),
            **describe(value.keywords, depth - 1),
        }
    if hasattr(value, "__qualname__"):
        return str(value.__qualname__)
    name = type(value).__qualname__
    if hasattr(value, "__len__"):  # data
        return f"{name} of {len(value)}"
    fields = (
        {f.name: getattr(value, f.name) for f in dataclasses.fields(value)} if dataclasses.is_dataclass(value) else {}
    )
    fields = {k: v for k, v in {**fields, **getattr(value, "__dict__", {})}.items() if not k.startswith("_")}
    return {"is": name, **describe(fields, depth)}


def _digest(tensors: Iterable[Any]) -> str:
    total = hashlib.sha256()
    for tensor in tensors:
        if isinstance(tensor, Tensor):
            total.update(str(tensor.dtype).encode())
            total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()[:16]


def differences(then: Mapping[str, Any], now: Mapping[str, Any], *, allow: Sequence[str] = (), shown: int = 6) -> str:
    """Where two descriptions of a run differ: "clip was 1.0, is 2.0; …", or "" where they do not.

    More epochs are no difference, nor is what `allow` names: an option, or one inside it ("data.seed", "methods[0]").
    """
    found = []
    for key, was, is_ in _changes("", then, now):
        longer = key == "epochs" and isinstance(was, int) and isinstance(is_, int) and is_ > was
        if not longer and not any(key == a or key.startswith((f"{a}.", f"{a}[")) for a in allow):
            found.append(f"{key} was {_brief(was)}, is {_brief(is_)}")
    more = f" and {len(found) - shown} more" if len(found) > shown else ""
    return "; ".join(found[:shown]) + more


def _changes(key: str, old: Any, new: Any) -> Iterator[tuple[str, Any, Any]]:
    """(place, then, now) of the smallest parts that differ."""
    if isinstance(old, Mapping) and isinstance(new, Mapping) and old.get("is") == new.get("is"):
        for name in sorted(old.keys() | new.keys()):
            yield from _changes(f"{key}.{name}" if key else name, old.get(name), new.get(name))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for place, (was, is_) in enumerate(zip(old, new, strict=True)):
            yield from _changes(f"{key}[{place}]", was, is_)
    elif old != new:
        yield key, old, new


def _brief(value: Any) -> str:
    if isinstance(value, Mapping):
        return str(value.get("is", "other options"))
    return "[" + ", ".join(_brief(item) for item in value) + "]" if isinstance(value, list) else str(value)
