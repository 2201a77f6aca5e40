# SPDX-License-Identifier: Apache-2.0
"""Which channels live and die together: the dependency graph behind channel pruning (Fang 2023, 2301.12900).

Every index of every dimension of every weight is an element. The model is exported (torch.export), and each operator
says which elements must go together: a convolution's inputs with the outputs before it, both sides of an addition, the
parts of a concatenation each with its own. What hangs together is one channel; channels that cut the same tensors form
a `Group`. Where an operator is not known to let channels go, all that reaches it is locked, with the reason.

Works on any model that torch.export can follow; what each operator says stands in `coupling_rules`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind

from ..errors import OptionError
from ..modes import evaluating
from . import coupling_rules, coupling_shapes  # noqa: F401  (they fill the table)
from .coupling_elements import RULES, Elements, Value, arguments, kind, shape_of

Slot = tuple[str, int]  # name of a tensor of the model, dimension
OWNERS_LOCKED = (nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase)  # read their weights in ways of their own


@dataclass(frozen=True)
class Group:
    """Channels that cut the same tensors: one row of each index table (C, k) for each of the C channels."""

    name: str  # the first layer that makes them
    members: Mapping[Slot, Tensor]  # int64 (C, k): where channel c is in this dimension of this tensor
    makers: tuple[Slot, ...]  # of the members, the weights whose outputs these are

    @property
    def channels(self) -> int:
        return len(next(iter(self.members.values())))


@dataclass(frozen=True)
class Coupling:
    """The groups that may be cut, and why other layers' outputs may not."""

    groups: tuple[Group, ...]
    locked: Mapping[str, str]  # layer -> reason


def couple(model: nn.Module, example: Any) -> Coupling:
    """The channels of a model, found by running it once on an example (a batch, or a tuple of arguments).

    Raises OptionError where torch.export cannot follow the model.
    """
    args = example if isinstance(example, tuple) else (example,)
    with evaluating(model), torch.no_grad():
        try:
            program = torch.export.export(model, args)
        except Exception as error:  # noqa: BLE001  it has no common base for what stops it
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            raise OptionError("model", f"torch.export cannot follow this {type(model).__name__}: {reason}") from None
    elements = Elements()
    slots, makers = _walk(program, model, elements)
    roots = elements.roots()
    return _grouped(slots, makers, roots, elements)


def _walk(program: Any, model: nn.Module, elements: Elements) -> tuple[dict[Slot, np.ndarray], dict[Slot, str]]:
    """Run every operator's rule. The elements of each tensor's dimensions, and which of them are outputs of layers."""
    sources = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    values: dict[fx.Node, Any] = {}
    slots: dict[Slot, np.ndarray] = {}
    weights: dict[fx.Node, str] = {}
    makers: dict[Slot, str] = {}
    for node in program.graph.nodes:
        if node.op == "placeholder":
            spec = sources[node.name]
            known = spec.kind in (InputKind.PARAMETER, InputKind.BUFFER)
            values[node] = _labelled(spec.target, node, elements, slots) if known else [None] * len(shape_of(node))
            if known:
                weights[node] = spec.target
        elif node.op == "output":
            for value in _leaves([values.get(arg) for arg in node.all_input_nodes]):
                elements.lock_all(value, "the model's output")
        elif node.op == "call_function":
            values[node] = RULES[kind(node)](elements, node, values)
            _note_maker(node, weights, makers)
    _lock_owners(model, slots, elements)
    return slots, makers


def _labelled(name: str, node: fx.Node, elements: Elements, slots: dict[Slot, np.ndarray]) -> Value:
    value: Value = []
    for dim, size in enumerate(shape_of(node)):
        value.append(elements.fresh(size) if size > 1 else None)
        if size > 1:
            slots[name, dim] = value[-1]  # type: ignore[assignment]
    return value


def _note_maker(node: fx.Node, weights: Mapping[fx.Node, str], makers: dict[Slot, str]) -> None:
    """Remember the weight of a linear layer or convolution, whose outputs are channels."""
    if not ("conv" in kind(node) or kind(node) == "linear"):
        return
    options = arguments(node)
    name = weights.get(options.get("weight"))  # type: ignore[arg-type]
    if name is not None:
        turned = "transpose" in kind(node) and options["groups"] == 1
        makers[name, int(turned)] = name.rpartition(".")[0]


def _lock_owners(model: nn.Module, slots: Mapping[Slot, np.ndarray], elements: Elements) -> None:
    """Lock what cannot be cut although the operators would allow it."""
    names: dict[int, list[str]] = {}
    for name, tensor in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(tensor), []).append(name)
    shared = {name: every for every in names.values() if len(every) > 1 for name in every}
    hosts = [module for module in model.modules() if isinstance(module, OWNERS_LOCKED)]
    inside = {part: host for host in hosts for part in host.modules()}
    for (name, _), found in slots.items():
        owner = model.get_submodule(name.rpartition(".")[0])
        if owner in inside:
            elements.lock(found, f"{type(inside[owner]).__name__} reads its weights in a way of its own")
        elif name in shared:
            elements.lock(found, f"a weight that {' and '.join(shared[name][:2])} share")


def _leaves(values: Any) -> Iterator[Value]:
    """The values of tensors in what may be lists of them."""
    for value in values:
        if isinstance(value, list) and value and isinstance(value[0], list):
            yield from _leaves(value)
        elif value is not None:
            yield value


def _grouped(
    slots: Mapping[Slot, np.ndarray], makers: Mapping[Slot, str], roots: np.ndarray, elements: Elements
) -> Coupling:
    """Channels by what they cut, and the reasons of those that stay."""
    reasons = elements.reasons(roots)
    cuts: dict[int, dict[Slot, list[int]]] = {}
    for slot, found in slots.items():
        for place, root in enumerate(roots[found].tolist()):
            cuts.setdefault(root, {}).setdefault(slot, []).append(place)
    alike: dict[tuple[tuple[Slot, int], ...], list[int]] = {}
    locked: dict[str, str] = {}
    for root, cut in cuts.items():
        made = [slot for slot in cut if slot in makers]
        if root in reasons:
            locked |= {makers[slot]: reasons[root] for slot in made}
        elif made:
            alike.setdefault(tuple((slot, len(places)) for slot, places in cut.items()), []).append(root)
    groups = []
    for key, found_roots in alike.items():
        members = {slot: torch.tensor([cuts[root][slot] for root in found_roots]) for slot, _ in key}
        outputs = tuple(slot for slot in members if slot in makers)
        groups.append(Group(makers[outputs[0]], members, outputs))
    whole = {makers[slot] for group in groups for slot in group.makers}
    return Coupling(tuple(groups), {layer: reason for layer, reason in locked.items() if layer not in whole})
