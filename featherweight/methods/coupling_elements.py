# SPDX-License-Identifier: Apache-2.0
"""The elements of channel coupling, what is tied and what is locked, and the table of the operators' rules.

A value is a list with an entry for each dimension of a tensor: an array with one element for each index, or None where
nothing may be cut (pictures, positions, batches). A rule ties elements, locks those that its operator needs all of, and
returns the value of its output. Operators without a rule lock all they touch. The rules stand in `coupling_rules`
(layers, sums) and `coupling_shapes` (views, parts, reductions).
"""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import fx

Ids = np.ndarray
Value = list[Ids | None]
Values = dict[fx.Node, Any]  # a Value each, or a list of them
Rule = Callable[["Elements", fx.Node, Values], Any]
FIXED = "it meets a tensor that cannot be cut"


class Elements:
    """All elements, what is tied to what, and what is locked."""

    def __init__(self) -> None:
        self.count = 0
        self.ties: list[tuple[Ids, Ids]] = []
        self.locks: list[tuple[Ids, str]] = []

    def fresh(self, count: int) -> Ids:
        self.count += count
        return np.arange(self.count - count, self.count)

    def tie(self, left: Ids | None, right: Ids | None) -> Ids | None:
        """Both go together; where one side cannot be cut the other is locked."""
        if left is None or right is None or len(left) != len(right):
            self.lock(left, FIXED)
            self.lock(right, FIXED)
            return None
        self.ties.append((left, right))
        return left

    def lock(self, ids: Ids | None, why: str) -> None:
        if ids is not None:
            self.locks.append((ids, why))

    def lock_all(self, value: Value | None, why: str) -> None:
        for ids in value or ():
            self.lock(ids, why)

    def roots(self) -> Ids:
        """For each element the smallest one that it is tied to."""
        label = np.arange(self.count)
        if not self.ties:
            return label
        left, right = (np.concatenate([pair[side] for pair in self.ties]) for side in (0, 1))
        while True:
            new = label.copy()
            low = np.minimum(label[left], label[right])
            np.minimum.at(new, left, low)
            np.minimum.at(new, right, low)
            np.minimum.at(new, label[left], low)  # what the sides were tied to before follows
            np.minimum.at(new, label[right], low)
            new = new[new]
            if np.array_equal(new, label):
                return label
            label = new

    def reasons(self, roots: Ids) -> dict[int, str]:
        """Root -> why it is locked."""
        found: dict[int, str] = {}
        for ids, why in self.locks:
            for root in np.unique(roots[ids]).tolist():
                found.setdefault(root, why)
        return found


def kind(node: fx.Node) -> str:
    """conv2d, add, ... whichever overload, in place or not; getitem."""
    if node.target is operator.getitem:
        return "getitem"
    schema = getattr(node.target, "_schema", None)
    return schema.name.split("::")[1].rstrip("_") if schema else str(node.target)


def arguments(node: fx.Node) -> dict[str, Any]:
    """Name -> argument, with defaults."""
    schema = node.target._schema.arguments  # type: ignore[union-attr]
    found = {a.name: a.default_value for a in schema}
    found |= {a.name: value for a, value in zip(schema, node.args, strict=False)}
    return found | dict(node.kwargs)


def shape_of(node: fx.Node) -> tuple[int, ...]:
    return tuple(int(size) for size in getattr(node.meta.get("val"), "shape", ()))


def nothing(node: fx.Node) -> Any:
    """A value in which nothing may be cut, for one tensor or several."""
    value = node.meta.get("val")
    if isinstance(value, (list, tuple)):
        return [[None] * getattr(one, "ndim", 0) for one in value]
    return [None] * len(shape_of(node))


def unknown(elements: Elements, node: fx.Node, values: Values) -> Any:
    """An operator nobody described: all that it touches stays."""
    for source in node.all_input_nodes:
        value = values.get(source) or []
        for one in value if value and isinstance(value[0], list) else [value]:
            elements.lock_all(one, f"operator {kind(node)}")
    return nothing(node)


def free(elements: Elements, node: fx.Node, values: Values) -> Any:
    """An operator that asks something of a tensor and leaves it alone."""
    return nothing(node)


RULES: dict[str, Rule] = defaultdict(lambda: unknown)
RULES |= dict.fromkeys(("_assert_tensor_metadata", "_assert_scalar", "sym_size", "size", "_assert_async"), free)


def rule(*names: str) -> Callable[[Rule], Rule]:
    def add(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return add
