# SPDX-License-Identifier: Apache-2.0
"""What layers, sums and activations say about channels: which elements go together, which the output has."""

from __future__ import annotations

from typing import Any

from torch import fx

from .coupling_elements import FIXED, Elements, Ids, Value, Values, arguments, kind, rule, shape_of, unknown

# fmt: off
ELEMENTWISE = (
    "relu", "relu6", "gelu", "silu", "sigmoid", "tanh", "hardtanh", "hardswish", "hardsigmoid", "leaky_relu", "elu",
    "selu", "celu", "mish", "softplus", "exp", "sqrt", "rsqrt", "neg", "abs", "square", "clamp", "clamp_min", "dropout",
    "clamp_max", "contiguous", "clone", "to", "_to_copy", "type_as", "detach", "alias", "lift_fresh_copy", "float",
    "half", "feature_dropout", "alpha_dropout", "native_dropout", "log_sigmoid", "erf", "reciprocal",
)
# fmt: on


@rule(*ELEMENTWISE)
def same(elements: Elements, node: fx.Node, values: Values) -> Any:
    return values[node.all_input_nodes[0]]


@rule("add", "sub", "mul", "div", "rsub", "maximum", "minimum", "pow", "where", "addcmul", "lerp")
def together(elements: Elements, node: fx.Node, values: Values) -> Any:
    """Both sides, aligned from the right as broadcasting does."""
    shape, found = shape_of(node), []
    sources = [(values[source], shape_of(source)) for source in node.all_input_nodes]
    for back in range(-len(shape), 0):
        sides = [value[back] for value, size in sources if len(size) >= -back and size[back] > 1]
        first = sides[0] if sides else None
        for other in sides[1:]:
            first = elements.tie(first, other)
        found.append(first)
    return found


@rule("softmax", "log_softmax", "cumsum", "flip", "roll")
def along(elements: Elements, node: fx.Node, values: Values) -> Any:
    """What mixes or moves the indices of a dimension needs all of them."""
    options, value = arguments(node), list(values[node.args[0]])  # type: ignore[index]
    dims = options["dim"] if "dim" in options else options["dims"] or range(len(value))
    for dim in [dims] if isinstance(dims, int) else dims:
        elements.lock(value[dim], f"operator {kind(node)}")
        value[dim] = None
    return value


@rule("linear")
def linear(elements: Elements, node: fx.Node, values: Values) -> Any:
    options = arguments(node)
    x, weight = values[options["input"]], values[options["weight"]]
    elements.tie(x[-1], weight[1])
    if options["bias"] is not None:
        elements.tie(weight[0], values[options["bias"]][0])
    return [*x[:-1], weight[0]]


@rule("matmul", "mm", "bmm")
def matmul(elements: Elements, node: fx.Node, values: Values) -> Any:
    left, right = (values[source] for source in node.args)  # type: ignore[index]
    if len(left) < 2 or len(right) < 2:
        return unknown(elements, node, values)
    elements.tie(left[-1], right[-2])
    for value in (left, right):
        elements.lock_all(value[:-2], f"operator {kind(node)}")
    return [*[None] * (len(shape_of(node)) - 2), left[-2], right[-1]]


@rule("conv1d", "conv2d", "conv3d", "convolution", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def convolution(elements: Elements, node: fx.Node, values: Values) -> Any:
    options = arguments(node)
    x, weight = values[options["input"]], values[options["weight"]]
    turned = "transpose" in kind(node) or bool(options.get("transposed"))
    for kernel in weight[2:]:
        elements.lock(kernel, "the kernel's size")
    outputs = (_turned if turned else _straight)(elements, x[1], weight, int(options["groups"]))
    if options["bias"] is not None:
        elements.tie(outputs, values[options["bias"]][0])
    return [x[0], outputs, *[None] * (len(x) - 2)]


def _straight(elements: Elements, inputs: Ids | None, weight: Value, groups: int) -> Ids | None:
    """Weight (O, I / groups, ...): the same places go from each group; of a depthwise one whole groups go."""
    outputs = weight[0]
    if groups == 1:
        elements.tie(inputs, weight[1])
        return outputs
    if inputs is None or outputs is None:
        elements.lock_all(weight, FIXED)
        return outputs
    by_group = inputs.reshape(groups, -1)
    made = outputs.reshape(groups, -1)
    if by_group.shape[1] == 1:
        for column in made.T:
            elements.tie(inputs, column)
        return outputs
    for row in by_group:
        elements.tie(row, weight[1])
    for row in made[1:]:
        elements.tie(row, made[0])
    return outputs


def _turned(elements: Elements, inputs: Ids | None, weight: Value, groups: int) -> Ids | None:
    """Weight (I, O / groups, ...)."""
    if groups == 1:
        elements.tie(inputs, weight[0])
        return weight[1]
    elements.lock(inputs, "a transposed convolution in groups")
    elements.lock_all(weight, "a transposed convolution in groups")
    return None


@rule("batch_norm", "instance_norm", "prelu")
def per_channel(elements: Elements, node: fx.Node, values: Values) -> Any:
    x, *others = node.all_input_nodes
    for other in others:
        if shape_of(other) != (1,) and values[other]:
            elements.tie(values[x][1], values[other][0])
    return values[x]


@rule("group_norm")
def group_norm(elements: Elements, node: fx.Node, values: Values) -> Any:
    """The same places go from each group."""
    value = per_channel(elements, node, values)
    if value[1] is not None:
        rows = value[1].reshape(int(arguments(node)["num_groups"]), -1)
        for row in rows[1:]:
            elements.tie(row, rows[0])
    return value


@rule("layer_norm", "rms_norm")
def layer_norm(elements: Elements, node: fx.Node, values: Values) -> Any:
    x, *weights = node.all_input_nodes
    value, dims = list(values[x]), len(arguments(node)["normalized_shape"])
    if not weights:
        elements.lock_all(value[-dims:], "a norm without weights, whose size stands in the code")
    for weight in weights:
        for back in range(-dims, 0):
            value[back] = elements.tie(value[back], values[weight][back])
    return value


@rule("scaled_dot_product_attention")
def attention(elements: Elements, node: fx.Node, values: Values) -> Any:
    """Queries and keys (..., N, d) go together, values (..., N, e) are the output's."""
    query, key, value = (values[source] for source in node.args[:3])  # type: ignore[index]
    elements.tie(query[-1], key[-1])
    for one in (query, key, value):
        elements.lock_all(one[:-1], f"operator {kind(node)}")
    return [*[None] * (len(query) - 1), value[-1]]


@rule("embedding")
def embedding(elements: Elements, node: fx.Node, values: Values) -> Any:
    weight = values[node.args[0]]  # type: ignore[index]
    elements.lock(weight[0], "the words of an embedding")
    return [*[None] * (len(shape_of(node)) - 1), weight[1]]
