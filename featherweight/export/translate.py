# SPDX-License-Identifier: Apache-2.0
"""A PyTorch model -> an ONNX graph, in about a second: torch.export's program, one operator after the other.

Operators on constants alone are computed now and not written. Not covered: control flow that depends on the data, and
operators without an entry in `aten.py`, `products.py`, `layout.py` or `reductions.py`: `Unsupported`, and `onnx.py`
then asks PyTorch's own exporter.
"""

from __future__ import annotations

import operator as python
from collections.abc import Mapping, Sequence
from typing import Any

import onnx
import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from featherweight.export import codebooks, layout, products, reductions  # noqa: F401  they register their operators
from featherweight.export.aten import OPERATORS, SAME
from featherweight.export.graph import Graph, Ref, Unsupported

STORED = {"quantize", "dequantize", "unpack", "widen", "lookup"}  # weights that the file is to hold in few bits
FOLD_LIMIT = 1 << 16  # elements a computed constant may have more than what it is computed from


def translate(program: ExportedProgram, inputs: Sequence[str], outputs: Sequence[str]) -> onnx.ModelProto:
    """The graph of a program whose inputs and outputs get these names."""
    graph, values = Graph(), _placeholders(program)
    names = iter(inputs)
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name not in values:
            values[node.name] = graph.add_input(next(names), node.meta["val"])
        elif node.op == "call_function":
            _step(graph, values, node)
        elif node.op not in ("placeholder", "output", "get_attr"):
            raise Unsupported(f"a node of kind {node.op}")
    results = list(program.graph.output_node().args[0])
    if len(results) != len(outputs):
        raise Unsupported(f"{len(results)} outputs where {len(outputs)} are named")
    named = zip(outputs, results, strict=True)
    return graph.to_model([(name, graph.read(values[node.name]), node.meta["val"]) for name, node in named])


def _placeholders(program: ExportedProgram) -> dict[str, Any]:
    """Node name -> the tensor behind it, for parameters, buffers and constants."""
    values: dict[str, Any] = {}
    for spec in program.graph_signature.input_specs:
        if spec.target is None:
            continue
        found = program.state_dict.get(spec.target)
        values[spec.arg.name] = (program.constants[spec.target] if found is None else found).detach()
    if program.graph_signature.buffers_to_mutate:
        raise Unsupported("a model that changes its buffers")
    return values


def _step(graph: Graph, values: dict[str, Any], node: fx.Node) -> None:
    """Write one operator and remember its result."""
    result = node.meta.get("val")
    if isinstance(result, (int, float, bool, torch.SymInt, torch.SymBool, torch.SymFloat)) or result is None:
        values[node.name] = result  # sizes and assertions about them: PyTorch has worked them out
        return
    if node.target is python.getitem:
        values[node.name] = values[node.args[0].name][node.args[1]]  # type: ignore[union-attr, index]
        return
    if not isinstance(node.target, torch._ops.OpOverload):
        raise Unsupported(f"{node.target}")
    schema = node.target._schema
    given = dict(zip((a.name for a in schema.arguments), node.args, strict=False)) | dict(node.kwargs)
    arguments = {name: fx.node.map_arg(value, lambda n: values[n.name]) for name, value in given.items()}
    values[node.name] = _result(graph, node, result, arguments)
    if schema.is_mutable:
        _rebind(values, node)


def _result(graph: Graph, node: fx.Node, result: Any, arguments: Mapping[str, Any]) -> Any:
    target = node.target
    name = target._schema.name.split("::")[1]  # type: ignore[union-attr]
    varies = any(isinstance(leaf, (Ref, torch.SymInt)) for leaf in _leaves(arguments))
    if not varies and name not in STORED:
        folded = _computed(target, arguments)
        if folded is not None:
            return folded
    name = name if name in OPERATORS or name in SAME else name.rstrip("_")
    if name in SAME:
        return arguments.get("self", arguments.get("input"))
    if name not in OPERATORS:
        raise Unsupported(f"the operator {target}")
    understood = _understood(OPERATORS[name], target._schema, arguments)  # type: ignore[union-attr]
    made = OPERATORS[name](graph, result, **understood)
    if isinstance(made, Ref):
        return made
    if isinstance(made, str):
        return Ref(made, tuple(result.shape), result.dtype)
    return [Ref(part, tuple(like.shape), like.dtype) for part, like in zip(made, result, strict=True)]


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return [leaf for item in value.values() for leaf in _leaves(item)]
    if isinstance(value, (list, tuple)):
        return [leaf for item in value for leaf in _leaves(item)]
    return [value]


def _computed(target: Any, arguments: Mapping[str, Any]) -> Any:
    """The result of an operator on constants; None when it would make the file much larger."""
    with torch.no_grad():
        copies = {name: value.clone() if isinstance(value, Tensor) else value for name, value in arguments.items()}
        found = target(**copies)
    before = sum(leaf.numel() for leaf in _leaves(arguments) if isinstance(leaf, Tensor))
    after = sum(leaf.numel() for leaf in _leaves(found) if isinstance(leaf, Tensor))
    return found if after <= before + FOLD_LIMIT else None


def _understood(function: Any, schema: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments the function takes. One that it does not take and that is not at its default stops the export."""
    code = function.__code__
    takes = set(code.co_varnames[code.co_argcount : code.co_argcount + code.co_kwonlyargcount])
    takes_any = bool(code.co_flags & 0x08)  # has **kwargs
    defaults = {argument.name: argument.default_value for argument in schema.arguments}
    kept = {}
    for name, value in arguments.items():
        if name in takes or takes_any:
            kept[name] = value
        elif not _is_default(value, defaults[name]):
            raise Unsupported(f"{schema.name} with {name}={value}")
    return kept


def _is_default(value: Any, default: Any) -> bool:
    return isinstance(value, type(default)) and bool(value == default)


def _rebind(values: dict[str, Any], node: fx.Node) -> None:
    """An operator that wrote into its first argument: from here on that name means the result."""
    changed = node.args[0]
    if not isinstance(changed, fx.Node):
        raise Unsupported(f"{node.target} in place")
    for other in (changed, *changed.users):
        if isinstance(other.target, torch._ops.OpOverload) and other.target.is_view:
            raise Unsupported(f"{node.target} in place on a view")
    values[changed.name] = values[node.name]


def program_of(model: nn.Module, example: tuple[Tensor, ...], *, dynamic_batch: bool = True) -> ExportedProgram:
    """torch.export with the first axis of every input free."""
    shapes = tuple({0: torch.export.Dim("batch")} if dynamic_batch else {} for _ in example)
    with torch.no_grad():
        return torch.export.export(model, example, dynamic_shapes=shapes)
