# SPDX-License-Identifier: Apache-2.0
"""Weights, or weights and activations, of one bit: BinaryConnect, XNOR-Net and Bi-Real Net, on any model.

connect   weights -1 and +1; the real ones are kept in training and clipped to [-1, 1] (Courbariaux 2015, 1511.00363)
weights   weights -a and +a, a the mean magnitude of each output channel (BWN: Rastegari 2016, 1603.05279)
xnor      inputs binary too: norm, sign, convolution, times K, the mean magnitude around each place (same paper)
bireal    norm, sign, convolution, the batch norm behind it, and the real input added past it all, with a gradient of
          the sign that is nearer to the truth (Liu 2018, 1808.00278)

The norm before the sign is new (XNOR-Net's order; behind a ReLU every sign would be +1). First and last layers stay in
float. One bit per weight is stored, with 16 bits per channel for a; no runtime here has kernels for bits, so the file
is smaller and nothing is faster. Not here: learned thresholds beyond the norm's (ReActNet), training in two stages.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import OptionError, closest
from ..modes import evaluating
from ..surgery import Edit, all_of, apply, edit_kind, edits_of, put, record, submodule
from ..train import Method
from .calibration import Calls, selected
from .flow import look
from .int8 import padded, same_padding
from .rounding_layers import BinaryRounding, Rounded
from .stored import PackedStore, StoredConv2d, StoredLinear, with_store

How = Literal["connect", "weights", "xnor", "bireal"]


def signs(x: Tensor) -> Tensor:
    """-1 or +1, and +1 for 0."""
    return torch.where(x >= 0, 1.0, -1.0)


def sign(x: Tensor) -> Tensor:
    """The signs, with a gradient that passes where |x| <= 1 (straight-through)."""
    through = x.clamp(-1, 1)
    return signs(x) + (through - through.detach())


def polynomial_sign(x: Tensor) -> Tensor:
    """The signs, with the gradient 2 - 2|x| inside [-1, 1]: that of a curve nearer to them (Bi-Real Net)."""
    inside = x.clamp(-1, 1)
    through = 2 * inside - inside * inside.abs()
    return signs(x) + (through - through.detach())


class ConnectRounding(nn.Module):
    """A weight as -1 and +1; the gradient passes straight through.

    stochastic: +1 with probability clip((w + 1) / 2, 0, 1) in training.
    """

    levels = 2

    def __init__(self, *, stochastic: bool = False) -> None:
        super().__init__()
        self.stochastic = stochastic

    def forward(self, weight: Tensor) -> Tensor:
        threshold = 2 * torch.rand_like(weight) - 1 if self.stochastic and self.training else 0.0
        return signs(weight - threshold) + (weight - weight.detach())

    def codes(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Codes (rows, n), uint8, and steps (rows, 1): 2, so that they are -1 and +1."""
        rows = weight.detach().flatten(1)
        return (rows >= 0).to(torch.uint8), torch.full_like(rows[:, :1], 2.0)


class BinaryInputs(nn.Module):
    """A layer of binary weights that gets the signs of its input, with what its kind puts around it.

    inner: the layer, (B, C, H, W) or (..., C) -> its output. norm: the batch norm behind it, where it belongs in here.
    """

    def __init__(self, inner: nn.Module, how: str, norm: nn.Module | None = None, *, norm_path: str = "") -> None:
        super().__init__()
        self.how, self.inner, self.norm_path = how, inner, norm_path
        self.linear = not hasattr(layer_of(inner), "kernel_size")
        width = layer_of(inner).in_features if self.linear else layer_of(inner).in_channels
        self.before = nn.BatchNorm1d(width) if self.linear else nn.BatchNorm2d(width)
        self.norm = nn.Identity() if norm is None else norm

    @property
    def weight(self) -> Tensor:
        """Hosts look at its type to know what to feed in."""
        return layer_of(self.inner).weight

    def forward(self, x: Tensor) -> Tensor:
        if self.linear:
            flat = x.flatten(0, -2)
            real = self.before(flat).reshape(x.shape)
        else:
            real = self.before(x)
        to_signs = signs if not self.training else polynomial_sign if self.how == "bireal" else sign
        y = self.inner(to_signs(real))
        if self.how == "xnor":
            return self.norm(y + (self.magnitude(real) - 1) * self.product(y))
        return self.norm(y) + shortcut(x, y)

    def product(self, y: Tensor) -> Tensor:
        """The layer's output without its bias, which no magnitude multiplies."""
        bias = layer_of(self.inner).bias
        return y if bias is None else y - (bias if self.linear else bias[:, None, None])

    def magnitude(self, x: Tensor) -> Tensor:
        """K: the mean magnitude of what each output place looks at, (B, 1, H', W') or (..., 1)."""
        if self.linear:
            return x.abs().mean(-1, keepdim=True)
        layer = layer_of(self.inner)
        box = torch.full((1, 1, *layer.kernel_size), 1 / (layer.kernel_size[0] * layer.kernel_size[1]), device=x.device)
        mean = x.abs().mean(1, keepdim=True)
        mean = padded(layer, mean) if same_padding(layer) or getattr(layer, "same", False) else mean
        return F.conv2d(mean, box.to(x.dtype), None, layer.stride, layer.padding, layer.dilation)


def shortcut(x: Tensor, y: Tensor) -> Tensor:
    """The real input in the shape of the output: pooled to its size, its channels repeated; 0 where that cannot be."""
    if x.ndim == 4 and x.shape[2:] != y.shape[2:]:
        if x.shape[2] % y.shape[2] or x.shape[3] % y.shape[3]:
            return torch.zeros_like(y)
        x = F.avg_pool2d(x, (x.shape[2] // y.shape[2], x.shape[3] // y.shape[3]))
    axis = 1 if x.ndim == 4 else x.ndim - 1
    if y.shape[axis] % x.shape[axis]:
        return torch.zeros_like(y)
    return torch.cat([x] * (y.shape[axis] // x.shape[axis]), axis)


def layer_of(inner: Any) -> Any:
    """What knows the shape of the layer."""
    return inner.layer if isinstance(inner, Rounded) else inner


@edit_kind
def binary(model: nn.Module, layer: str, how: str, norm: str = "") -> nn.Module:
    """The model whose layer at that path has binary weights, for `how` xnor and bireal behind the signs of its input.

    norm: the batch norm that goes in with it. The numbers come with the state dict, or from `Binary`.
    """
    host: Any = submodule(model, layer)
    if how not in get_args(How):
        raise OptionError("binary", f"how: {how!r} is not one of {', '.join(get_args(How))}")
    made = with_store(host, PackedStore(host.weight, levels=2))
    if how in ("xnor", "bireal"):
        made = BinaryInputs(made, how, submodule(model, norm) if norm else None)
        if norm:
            put(model, norm, nn.Identity())
    return put(model, layer, made)


@dataclass(frozen=True)
class Binary(Method):
    """Train with binary weights, or weights and activations. `finish` returns the model with one bit for each weight.

    example: a picture batch (B, 3, H, W) with which bireal finds the batch norm behind each convolution; task: how the
    model is called. skip: as in `quantize`; first and last layers are left in any case. stochastic: connect draws -1 or
    +1 by chance in training, the more surely the further the weight is from 0. Use weight decay 0.
    """

    how: How = "weights"
    task: Calls | None = None
    example: Tensor | None = None
    skip: Sequence[str] = ()
    stochastic: bool = False

    def __post_init__(self) -> None:
        if self.how not in get_args(How):
            known = get_args(How)
            raise OptionError("how", f"no {self.how!r}; {closest(str(self.how), known)}Known: {', '.join(known)}")
        if self.how == "bireal" and (self.example is None or self.task is None):
            raise OptionError("example", "bireal needs one, and the task, to find the batch norms behind convolutions")

    def prepare(self, model: nn.Module) -> nn.Module:
        new = copy.deepcopy(model)
        record(new, edits_of(model))
        for path, norm in self._layers(model).items():
            host: Any = submodule(new, path)
            rounding = ConnectRounding(stochastic=self.stochastic) if self.how == "connect" else BinaryRounding()
            made: nn.Module = Rounded(host, rounding, nn.Identity())
            if self.how in ("xnor", "bireal"):
                made = BinaryInputs(made, self.how, submodule(new, norm) if norm else None, norm_path=norm)
                made.train(host.training).to(host.weight.device)
                if norm:
                    put(new, norm, nn.Identity())
            put(new, path, made)
        return new

    def _layers(self, model: nn.Module) -> dict[str, str]:
        """Path of each layer -> path of the batch norm that goes in with it, or ""."""
        paths = list(selected(model, self.skip))[1:-1]
        if not paths:
            raise LookupError(f"{type(model).__name__} has no layer between the first and the last to make binary")
        norms: Mapping[str, str] = {}
        if self.how == "bireal" and self.example is not None:
            with evaluating(model):
                norms = look(model, self.example[:2], self.task).norms
        return {path: norms.get(path, "") for path in paths}

    def after_step(self, model: nn.Module, progress: float) -> None:
        if self.how == "connect":
            with torch.no_grad():
                for layer in all_of(model, Rounded).values():
                    layer.layer.weight.clamp_(-1, 1)

    def finish(self, model: nn.Module) -> nn.Module:
        plain = copy.deepcopy(model)
        record(plain, edits_of(model))
        trained: dict[str, Any] = {**all_of(model, BinaryInputs)} or {
            **all_of(model, Rounded)
        }  # the former hold the latter
        edits = []
        for path, layer in trained.items():
            twin: Any = submodule(plain, path)
            put(plain, path, layer_of(twin.inner if isinstance(twin, BinaryInputs) else twin))
            norm = getattr(layer, "norm_path", "")
            if norm:
                put(plain, norm, twin.norm)
            edits.append(Edit("", "binary", {"layer": path, "how": self.how, **({"norm": norm} if norm else {})}))
        new = apply(plain, edits).eval()
        for path, layer in trained.items():
            _take(submodule(new, path), layer)
        return new


@torch.no_grad()
def _take(made: Any, trained: Any) -> None:
    """The codes and the norms of the training."""
    if isinstance(made, BinaryInputs):
        made.before.load_state_dict(trained.before.state_dict())
        made.norm = copy.deepcopy(trained.norm).eval()
        made, trained = made.inner, trained.inner
    codes, step = trained.rounding.codes(trained.layer.weight)
    if not isinstance(made, (StoredLinear, StoredConv2d)):
        raise TypeError(f"a {type(made).__name__} holds no bits")
    store: Any = made.store
    store.set(codes[:, None], step[:, None])
