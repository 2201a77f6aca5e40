# SPDX-License-Identifier: Apache-2.0
"""Counting what a model does to one image: multiply-adds and parameters, in total and layer by layer.

The count is taken where torch dispatches its operators, while the model runs in eval mode, so it holds for any module:
matrix products written out, `scaled_dot_product_attention`, functional calls, quantized layers that compute in float,
and tokens that are really dropped. One MAC is one multiplication with its addition, in convolutions, linear layers and
matrix products. Norms, softmax, activations and additions count 0 (fvcore adds 5 per element of every LayerNorm and
1-2 per element of BatchNorm: DeiT-tiny is 1.2537 G products here, 1.2584 G there). MACs are not FLOPs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
PACKED = (torch.int8, torch.uint8)  # matrices of these types are weights that quantization has stored as integers


@dataclass(frozen=True)
class Layer:
    """One module that has parameters of its own or multiplies: its path, class, parameters and MACs per image."""

    path: str
    kind: str
    params: int
    macs: int


def parameters(model: nn.Module) -> int:
    """Weights of the model, each tensor once; weights that are stored as integers count like any other."""
    return sum({id(tensor): count for m in model.modules() for tensor, count in _own(m)}.values())


def macs(model: nn.Module, example: Any) -> int:
    """Multiply-adds of one image of `example` (a batch; also a tuple of arguments or a dict of keyword arguments)."""
    return sum(_count(model, example).values())


def layers(model: nn.Module, example: Any) -> list[Layer]:
    """Where parameters and MACs are, in the order of `named_modules`; the sums are those of the whole model."""
    counted, seen, rows = _count(model, example), set[int](), []
    for path, module in model.named_modules():
        mine = {id(tensor): count for tensor, count in _own(module) if id(tensor) not in seen}
        seen |= mine.keys()
        if mine or counted.get(path):
            rows.append(Layer(path, type(module).__name__, sum(mine.values()), counted.get(path, 0)))
    return rows


def _own(module: nn.Module) -> Iterator[tuple[Tensor, int]]:
    """Each tensor that holds weights, and how many; a module that packs them says so in `stands_for`, by buffer."""
    yield from ((p, p.numel()) for p in module.parameters(recurse=False))
    packed: Mapping[str, int] = getattr(module, "stands_for", {})
    for name, buffer in module.named_buffers(recurse=False):
        if name in packed:
            yield buffer, packed[name]
        elif not packed and buffer.dtype in PACKED and buffer.ndim > 1:
            yield buffer, buffer.numel()


def _count(model: nn.Module, example: Any) -> dict[str, int]:
    """MACs per image by the path of the innermost module that was running."""
    counter = _Counter()
    with torch.no_grad(), _evaluating(model), _followed(model, counter.stack), counter:
        if isinstance(example, Mapping):
            model(**example)
        elif isinstance(example, tuple):
            model(*example)
        else:
            model(example)
    batch = _batch(example)
    return {path: round(total / batch) for path, total in counter.totals.items()}


def _batch(example: Any) -> int:
    values = example.values() if isinstance(example, Mapping) else example if isinstance(example, tuple) else (example,)
    sizes = [v.shape[0] for v in values if isinstance(v, Tensor) and v.ndim]
    if not sizes or not sizes[0]:
        raise ValueError("the example needs a tensor whose first dimension is the batch, for instance (1, 3, 224, 224)")
    return sizes[0]


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode, and no fused encoder layer that would hide its products; both as before afterwards."""
    training = [m for m in model.modules() if m.training]
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    model.eval()
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for module in training:
            module.training = True


@contextmanager
def _followed(model: nn.Module, stack: list[str]) -> Iterator[None]:
    """Keep the path of the running module on top of `stack`."""
    handles = []
    for path, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(lambda *_, path=path: stack.append(path)))
        handles.append(module.register_forward_hook(lambda *_: stack.pop() and None, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.totals: dict[str, int] = {}
        self.stack: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        rule = RULES.get(func.overloadpacket)
        if rule is None:  # an operator made of others (seen in inference mode) is counted by its parts
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        out = func(*args, **kwargs)
        if rule is not None:
            where = self.stack[-1] if self.stack else ""
            self.totals[where] = self.totals.get(where, 0) + rule(args, out)
        return out


def _product(at: int) -> Callable[[Any, Any], int]:
    """(..., N, K) x (K, M) or (B, K, M): every element of the result sums K products."""
    return lambda args, out: out.numel() * args[at].shape[-1]


def _dot(args: Any, out: Tensor) -> int:
    return int(args[0].numel())


def _convolution(args: Any, out: Tensor) -> int:
    """(B, C, H, W) with weight (O, C / groups, h, w); transposed: each input element meets (C, O / groups, h, w)."""
    source, weight, transposed = args[0], args[1], args[6]
    positions = source if transposed else out
    return int(positions.shape[0] * math.prod(positions.shape[2:]) * weight.numel())


def _attention(args: Any, out: Any) -> int:
    """q (B, h, N, d), k (B, h, M, d), v (B, h, M, e): N * M * (d + e) for each head, masked or not."""
    query, key, value = args[:3]
    return int(math.prod(query.shape[:-1]) * key.shape[-2] * (query.shape[-1] + value.shape[-1]))


# fmt: off
RULES: dict[Any, Callable[[Any, Any], int]] = {
    aten.mm: _product(0), aten.addmm: _product(1), aten.bmm: _product(0), aten.baddbmm: _product(1),
    aten.linear: _product(0), aten._int_mm: _product(0), aten.mv: _product(0), aten.addmv: _product(1),
    aten.dot: _dot, aten.vdot: _dot,
    aten.convolution: _convolution, aten._convolution: _convolution,
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten._scaled_dot_product_flash_attention: _attention,
    aten._scaled_dot_product_efficient_attention: _attention,
    aten._scaled_dot_product_cudnn_attention: _attention,
    aten._scaled_dot_product_fused_attention_overrideable: _attention,
}
# fmt: on
