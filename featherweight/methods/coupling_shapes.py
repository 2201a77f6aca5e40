# SPDX-License-Identifier: Apache-2.0
"""What views, parts and reductions say about channels: where each index is afterwards."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch import fx

from .coupling_elements import Elements, Ids, Value, Values, arguments, kind, rule, shape_of, unknown


@rule("view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as", "ravel")
def reshape(elements: Elements, node: fx.Node, values: Values) -> Any:
    """Channels survive on their own or merged with positions, as before a classifier; one that is split is locked."""
    source: fx.Node = node.args[0]  # type: ignore[assignment]
    value, old, new = values[source], shape_of(source), shape_of(node)
    found: Value = [None] * len(new)
    for before, after in _runs(old, new):
        labelled = [dim for dim in before if value[dim] is not None]
        if len(labelled) == 1 and len(after) == 1:
            found[after[0]] = _merged(value[labelled[0]], [old[dim] for dim in before], before.index(labelled[0]))
        else:
            for dim in labelled:
                elements.lock(value[dim], "its channels are split into several dimensions")
    return found


def _runs(old: Sequence[int], new: Sequence[int]) -> Iterator[tuple[list[int], list[int]]]:
    """Dimensions of both shapes that hold the same numbers, in the smallest parts; those of size 1 left out."""
    sides = [[dim for dim, size in enumerate(shape) if size > 1] for shape in (old, new)]
    while sides[0] and sides[1]:
        before, after = [sides[0].pop(0)], [sides[1].pop(0)]
        while (left := math.prod(old[d] for d in before)) != (right := math.prod(new[d] for d in after)):
            if left < right:
                before.append(sides[0].pop(0))
            else:
                after.append(sides[1].pop(0))
        yield before, after


def _merged(ids: Ids, sizes: Sequence[int], at: int) -> Ids:
    """The elements of dimensions laid out as one, where only one of them has any."""
    shape = [1] * len(sizes)
    shape[at] = -1
    return np.broadcast_to(ids.reshape(shape), sizes).ravel()


@rule("permute", "transpose", "t", "swapaxes", "swapdims", "mT", "numpy_T")
def permute(elements: Elements, node: fx.Node, values: Values) -> Any:
    options, value = arguments(node), values[node.args[0]]  # type: ignore[index]
    order = list(range(len(value)))
    if "dims" in options:
        order = [dim % len(value) for dim in options["dims"]]
    else:
        pair = [v for name, v in options.items() if name not in ("self", "input")] or [-1, -2]
        if len(value) > 1:
            order[pair[0]], order[pair[1]] = order[pair[1]], order[pair[0]]
    return [value[dim] for dim in order]


@rule("cat", "concat", "concatenate")
def cat(elements: Elements, node: fx.Node, values: Values) -> Any:
    """Each part keeps its own channels; the other dimensions go together."""
    sources, dim = list(node.args[0]), int(arguments(node)["dim"]) % len(shape_of(node))  # type: ignore[arg-type]
    parts = [values[source] for source in sources]
    found: Value = []
    for place in range(len(shape_of(node))):
        column = [part[place] for part in parts]
        if place != dim:
            first = column[0]
            for other in column[1:]:
                first = elements.tie(first, other) if shape_of(node)[place] > 1 else None
            found.append(first)
        elif all(ids is None for ids in column):
            found.append(None)
        else:
            found.append(np.concatenate([_whole(elements, ids, shape_of(s)[dim]) for ids, s in zip(column, sources)]))  # noqa: B905
    return found


def _whole(elements: Elements, ids: Ids | None, size: int) -> Ids:
    """The elements of a part, new ones that stay where it has none."""
    if ids is None:
        ids = elements.fresh(size)
        elements.lock(ids, "part of a concatenation that cannot be cut")
    return ids


@rule("stack")
def stack(elements: Elements, node: fx.Node, values: Values) -> Any:
    sources, dim = list(node.args[0]), int(arguments(node)["dim"]) % len(shape_of(node))  # type: ignore[arg-type]
    found = list(values[sources[0]])
    for other in sources[1:]:
        found = [elements.tie(left, right) for left, right in zip(found, values[other], strict=True)]
    return [*found[:dim], None, *found[dim:]]


@rule("chunk")
def chunk(elements: Elements, node: fx.Node, values: Values) -> Any:
    """Equal parts stay equal: the same places go from each."""
    options, value = arguments(node), list(values[node.args[0]])  # type: ignore[index]
    dim, count = options["dim"], int(options["chunks"])
    ids = value[dim]
    if ids is None:
        return [list(value) for _ in range(count)]
    if len(ids) % count:
        return unknown(elements, node, values)
    parts = ids.reshape(count, -1)
    for part in parts[1:]:
        elements.tie(parts[0], part)
    found = []
    for part in parts:
        value[dim] = part
        found.append(list(value))
    return found


@rule("split", "split_with_sizes", "unbind", "tensor_split")
def parts(elements: Elements, node: fx.Node, values: Values) -> Any:
    """Parts whose sizes stand in the code need all their channels."""
    options, value = arguments(node), list(values[node.args[0]])  # type: ignore[index]
    dim = options["dim"]
    elements.lock(value[dim], f"operator {kind(node)}")
    value[dim] = None
    if kind(node) == "unbind":
        value.pop(dim)
    return [list(value) for _ in node.meta["val"]]


@rule("slice", "select", "index_select", "narrow")
def piece(elements: Elements, node: fx.Node, values: Values) -> Any:
    options, value = arguments(node), list(values[node.args[0]])  # type: ignore[index]
    dim = options["dim"]
    whole = kind(node) == "slice" and shape_of(node) == shape_of(node.args[0]) and options["step"] == 1  # type: ignore[arg-type]
    if not whole:
        elements.lock(value[dim], f"operator {kind(node)}")
        value[dim] = None
    if kind(node) == "select":
        value.pop(dim)
    return value


@rule("expand", "expand_as", "repeat", "broadcast_to")
def expand(elements: Elements, node: fx.Node, values: Values) -> Any:
    """Aligned from the right; what had one index and now has more is not a channel."""
    source: fx.Node = node.args[0]  # type: ignore[assignment]
    value, old, new = values[source], shape_of(source), shape_of(node)
    found: Value = [None] * len(new)
    for back in range(-len(old), 0):
        if old[back] == new[back]:
            found[back] = value[back]
        else:
            elements.lock(value[back], f"operator {kind(node)}")
    return found


@rule("mean", "sum", "amax", "amin", "var", "std", "logsumexp", "linalg_vector_norm")
def reduce(elements: Elements, node: fx.Node, values: Values) -> Any:
    """What is summed over positions keeps its channels; a mean over channels needs all of them."""
    options, value = arguments(node), list(values[node.args[0]])  # type: ignore[index]
    dims = options.get("dim")
    dims = range(len(value)) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
    gone = {dim % len(value) for dim in dims} if value else set()
    for dim in gone:
        elements.lock(value[dim], f"operator {kind(node)}")
    if len(shape_of(node)) == len(value):
        return [None if dim in gone else ids for dim, ids in enumerate(value)]
    return [ids for dim, ids in enumerate(value) if dim not in gone]


POOLS = [f"{how}_pool{n}d" for how in ("max", "avg", "adaptive_avg", "lp") for n in (1, 2, 3)]
UPSAMPLED = ["upsample_nearest1d", "upsample_linear1d", "upsample_nearest3d", "upsample_trilinear3d"]
UPSAMPLED += [f"{exact}upsample_{how}" for exact in ("", "_") for how in ("nearest2d", "bilinear2d", "bicubic2d")]
UPSAMPLED += ["_upsample_nearest_exact2d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa"]


@rule(*POOLS, *UPSAMPLED)
def resample(elements: Elements, node: fx.Node, values: Values) -> Any:
    """Windows over the last dimensions, channel by channel."""
    value = values[node.args[0]]  # type: ignore[index]
    positions = next(int(letter) for letter in kind(node) if letter.isdigit())
    elements.lock_all(value[-positions:], f"operator {kind(node)}")
    return [*value[:-positions], *[None] * positions]


@rule("pad", "constant_pad_nd", "reflection_pad2d", "replication_pad2d")
def pad(elements: Elements, node: fx.Node, values: Values) -> Any:
    value = list(values[node.args[0]])  # type: ignore[index]
    sizes = zip(value, shape_of(node.args[0]), shape_of(node), strict=True)  # type: ignore[arg-type]
    for dim, (ids, old, new) in enumerate(list(sizes)):
        if old != new:
            elements.lock(ids, f"operator {kind(node)}")
            value[dim] = None
    return value


@rule("getitem")
def getitem(elements: Elements, node: fx.Node, values: Values) -> Any:
    return values[node.args[0]][node.args[1]]  # type: ignore[index]
