# SPDX-License-Identifier: Apache-2.0
"""What follows what in a model: which batch norm belongs to which convolution, and whose output is a picture still.

Read off torch.export's graph, where a layer is known by the weights it uses. A model that torch.export cannot follow
has no answers here, which costs speed and never correctness.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..errors import OptionError
from ..surgery import edit_kind, put, submodule

Example = Tensor | Mapping[str, Tensor]  # pictures, or a batch as the task takes it
# Operators that leave a picture a picture, in place or not
# fmt: off
_THROUGH = {
    "batch_norm", "relu", "relu6", "hardtanh", "clamp", "hardswish", "silu", "sigmoid", "hardsigmoid", "leaky_relu",
    "gelu", "add", "mul", "cat", "max_pool2d", "avg_pool2d", "pad", "constant_pad_nd", "dropout", "upsample_nearest2d",
    "contiguous", "clone", "adaptive_avg_pool2d", "mean", "minimum",
}
# fmt: on
_CUTS = {"relu", "relu6", "hardtanh"}  # both runtimes make them part of the rounding that follows
_PADS = {"pad", "constant_pad_nd"}
_SILENT = {*_PADS, "dropout", "contiguous", "clone", "detach", "alias"}  # what leaves each channel to itself


@dataclass
class Flow:
    """What was found; paths of modules."""

    norms: dict[str, str] = field(default_factory=dict)  # convolution -> the batch norm that alone uses its output
    rounded: set[str] = field(default_factory=set)  # convolutions whose output should be rounded too


def look(model: nn.Module, images: Example, task: Any) -> Flow:
    """The flow of a model in evaluation mode. Nothing is found where torch.export gives up."""

    traced = _traced(model, images, task)
    found = Flow()
    if traced is not None:
        for node, path in _once(*traced, "conv2d"):
            _follow(node, path, traced[1], found)
    return found


@dataclass(frozen=True)
class Link:
    """Two convolutions of which the first feeds only the second, channel by channel; paths of modules."""

    first: str
    second: str
    clip: str = ""  # the ReLU6 between them, where there is one


def links(model: nn.Module, images: Example, task: Any) -> list[Link]:
    """Pairs of convolutions with nothing, ReLU or ReLU6 between them; batch norms must have been folded before."""
    traced = _traced(model, images, task)
    if traced is None:
        return []
    uses, found = dict(_once(*traced, "conv2d")), list[Link]()
    modules = dict(model.named_modules(remove_duplicate=False))
    called = [modules.get(_home(node)) for node in traced[0].nodes if node.op == "call_function"]
    for node, path in uses.items():
        after, clip = _alone(node, _SILENT), ""
        if _kind(after) in ("relu6", "hardtanh"):
            clip = _home(after) if _kind(after) == "relu6" or list(after.args[1:3]) == [0.0, 6.0] else ""
            after = _alone(after, _SILENT) if clip and called.count(modules.get(clip)) == 1 else None
        elif _kind(after) == "relu":
            after = _alone(after, _SILENT)
        if after in uses:
            found.append(Link(path, uses[after], clip))
    return found


def readers(model: nn.Module, images: Example, task: Any) -> dict[str, list[str]]:
    """Layer norm -> the linear layers that read its output, where nothing else does."""
    traced = _traced(model, images, task)
    if traced is None:
        return {}
    linear, found = dict(_once(*traced, "linear")), {}
    for node, path in _once(*traced, "layer_norm", 2):
        users = list(node.users)
        if users and all(user in linear and user.args[0] is node for user in users):
            found[path] = [linear[user] for user in users]
    return found


def _traced(model: nn.Module, example: Example, task: Any) -> tuple[fx.Graph, dict[str, str]] | None:
    """The graph of the model in evaluation mode, and what each of its inputs is; None where torch.export gives up."""

    class Called(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, batch: dict[str, Tensor]) -> Any:
            return task.forward(self.model, batch)

    batch = {"image": example} if isinstance(example, Tensor) else dict(example)
    try:
        with torch.no_grad():
            program = torch.export.export(Called().eval(), (batch,))
    except Exception:  # noqa: BLE001  it has no common base for what stops it
        return None
    names = {spec.arg.name: spec.target or "" for spec in program.graph_signature.input_specs}
    return program.graph, names


def _once(graph: fx.Graph, names: dict[str, str], kind: str, weight: int = 1) -> list[tuple[fx.Node, str]]:
    """Every operator of the kind with the path of the layer that holds its weight, if it runs once."""
    uses = [(node, _owner(node.args[weight], names)) for node in graph.nodes if _weighted(node, kind, weight)]
    paths = [path for _, path in uses]
    return [(node, path) for node, path in uses if path and paths.count(path) == 1]


def _weighted(node: fx.Node, kind: str, weight: int) -> bool:
    return _kind(node) == kind and len(node.args) > weight


def _alone(node: fx.Node, through: set[str]) -> Any:
    """What reads this value, if it is one operator alone; what leaves channels to themselves is passed over."""
    users = list(node.users)
    if len(users) != 1:
        return None
    return _alone(users[0], through) if _kind(users[0]) in through else users[0]


def _home(node: fx.Node) -> str:
    """Path of the module in which an operator was called."""
    stack = list((node.meta.get("nn_module_stack") or {"": ("", None)}).values())
    return str(stack[-1][0]).removeprefix("L['self'].").removeprefix("model").removeprefix(".")


def _follow(node: fx.Node, path: str, names: dict[str, str], found: Flow) -> None:
    users = list(node.users)
    if len(users) == 1 and _kind(users[0]) == "batch_norm":
        norm = _owner(users[0].args[3], names)
        if norm:
            found.norms[path] = norm
            users = list(users[0].users)
    cut = len(users) == 1 and _kind(users[0]) in _CUTS
    if cut and all(_kind(after) == "conv2d" for after in _past(users[0], _PADS)):
        return  # the rounding of the next layer's input is enough
    if any(_kind(after) in ("conv2d", "adaptive_avg_pool2d", "mean") for after in _reached(users)):
        found.rounded.add(path)


def _past(node: fx.Node, kinds: set[str]) -> Iterator[fx.Node]:
    for user in node.users:
        yield from _past(user, kinds) if _kind(user) in kinds else (user,)


def _reached(nodes: list[fx.Node]) -> set[fx.Node]:
    seen: set[fx.Node] = set()
    while nodes:
        node = nodes.pop()
        if node not in seen:
            seen.add(node)
            if _kind(node) in _THROUGH:
                nodes.extend(node.users)
    return seen


def _kind(node: Any) -> str:
    schema = getattr(getattr(node, "target", None), "_schema", None)
    return schema.name.split("::")[1].rstrip("_") if schema else ""


def _owner(node: Any, names: dict[str, str]) -> str:
    """Path of the module whose tensor a placeholder is; "" if it is none."""
    target = names.get(getattr(node, "name", ""), "")
    return target.removeprefix("model.").rpartition(".")[0]


def foldable(norm: nn.Module) -> bool:
    """A batch norm that does nothing else, or one of timm's that carries its activation along."""
    return type(norm) in (nn.BatchNorm2d, nn.SyncBatchNorm) or type(norm).__name__ == "BatchNormAct2d"


@edit_kind
def fold_norm(model: nn.Module, conv: str, norm: str) -> nn.Module:
    """The batch norm as part of the convolution before it: W γ/√(σ²+ε), (b − μ) γ/√(σ²+ε) + β. Equal in evaluation."""
    layer, after = submodule(model, conv), submodule(model, norm)
    if not (isinstance(layer, nn.Conv2d) and foldable(after)):
        raise OptionError("fold_norm", f"{conv!r} and {norm!r} are not a convolution and a batch norm")
    mean, var = after.running_mean, after.running_var
    factor = torch.rsqrt(var + after.eps) * (1 if after.weight is None else after.weight)  # type: ignore[operator]
    bias = (0 if layer.bias is None else layer.bias) - mean  # type: ignore[operator]
    bias = bias * factor + (0 if after.bias is None else after.bias)  # type: ignore[operator]
    layer.weight = nn.Parameter((layer.weight * factor.reshape(-1, 1, 1, 1)).detach())
    layer.bias = nn.Parameter(bias.detach())
    rest = nn.Sequential(after.drop, after.act) if hasattr(after, "act") else nn.Identity()  # type: ignore[arg-type]
    put(model, norm, rest.train(after.training))
    return model
