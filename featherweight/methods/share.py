# SPDX-License-Identifier: Apache-2.0
"""Weight sharing: a layer's weights become codes of a few bits into a codebook of values that they share.

k-means finds the values, then they are trained: a value's gradient is the sum of the gradients of the weights that have
it, and which weights these are stays (Han 2016, Deep Compression, arXiv 1510.00149). Zeros stay zero, so that it comes
after pruning. With `scaled` each output channel is divided by a scale of its own and all channels share one codebook:
depthwise and batch-normalized networks, whose channels differ in size, need that. Works on every linear,
convolution and embedding layer, also a subclass: only where its weight comes from is changed. Not here: weights that
are no layer's `weight` (nn.MultiheadAttention's `in_proj_weight`), which stay as they are.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..convs import shell
from ..errors import InputError, OptionError
from ..modes import BATCH_NORMS
from ..surgery import Edit, apply, edit_kind, submodule
from .kmeans import cluster, nearest

MOST_BITS = 8  # a code is a byte
ROUNDS = 3  # of k-means and scales in turn; further ones gain next to nothing
SIGNIFICANT = 11  # bits of a number in half precision
HOSTS = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Embedding
)  # fmt: skip
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)  # their output channels are axis 1
Bits = int | Mapping[str, int]
Scaled = bool | Literal["energy"]


# Arithmetic: an operator of its own, so that an export keeps the codes ----------------------------------------------
@torch.library.custom_op("featherweight::lookup", mutates_args=())
def lookup(table: Tensor, codes: Tensor, scale: Tensor | None = None) -> Tensor:
    """Weights of the shape of `codes` (uint8) from a table (k,), times a scale that broadcasts to them."""
    found = table.index_select(0, codes.flatten().int()).reshape(codes.shape)
    return found if scale is None else found.mul_(scale)


@lookup.register_fake
def _(table: Tensor, codes: Tensor, scale: Tensor | None = None) -> Tensor:
    return table.new_empty(codes.shape)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
    """The gradient of a shared value is the sum over the weights that share it."""
    codes, scale = ctx.saved_tensors
    each = gradient if scale is None else gradient * scale
    summed = torch.bincount(codes.flatten().int(), each.flatten(), minlength=ctx.size)
    return summed.to(gradient.dtype), None, None


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    table, codes, scale = inputs
    ctx.size = len(table)
    ctx.save_for_backward(codes, scale)


lookup.register_autograd(_backward, setup_context=_remember)


# Layers ---------------------------------------------------------------------------------------------------------------
class Shared(nn.Module):
    """What a layer's class gets in front of it: `weight` is looked up. `_shared` makes the class."""

    codes: Tensor  # uint8, of the weight's shape; where zeros are kept, 0 means zero and the first value is code 1
    centroids: Tensor
    scale: Tensor | None
    zero: bool

    @property
    def weight(self) -> Tensor:
        """The weights as floats; a new tensor each time, so writing into it changes nothing."""
        table = F.pad(self.centroids, (1, 0)) if self.zero else self.centroids
        found: Tensor = torch.ops.featherweight.lookup(table, self.codes, self.scale)
        return found

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {len(self.centroids)} shared values"


class SharedRows(Shared):
    """The same of an embedding, which in evaluation looks up only the rows that are asked for."""

    def forward(self, rows: Tensor) -> Tensor:
        host: Any = self
        if self.training or host.max_norm is not None:
            found: Tensor = F.embedding(rows, self.weight, host.padding_idx, host.max_norm)
            return found
        table = F.pad(self.centroids, (1, 0)) if self.zero else self.centroids
        scale = None if self.scale is None else F.embedding(rows, self.scale)
        looked: Tensor = torch.ops.featherweight.lookup(table, F.embedding(rows, self.codes), scale)
        return looked


@functools.cache
def _shared(host: type[nn.Module]) -> type[nn.Module]:
    kind = SharedRows if host.forward is nn.Embedding.forward else Shared
    return type(f"Shared{host.__name__}", (kind, host), {"__module__": host.__module__})


@edit_kind
def codebook(module: nn.Module, *, centroids: int, zero: bool, scaled: bool) -> nn.Module:
    """The layer with codes for weights; codes and values come with the state dict, or from `share`."""
    weight = getattr(module, "weight", None)
    if not isinstance(module, HOSTS) or not isinstance(weight, nn.Parameter):
        kind = type(module).__name__
        raise OptionError(
            "codebook", f"a {kind} has no weights to share; linear, convolution and embedding layers have"
        )
    if not (type(centroids) is int and 1 <= centroids + zero <= 1 << MOST_BITS):
        raise OptionError("codebook", f"{centroids!r} values; from 1 to {(1 << MOST_BITS) - bool(zero)} have a code")
    new: Any = shell(module)
    object.__setattr__(new, "__class__", _shared(type(module)))  # type: ignore[arg-type]
    del new._parameters["weight"]
    new.centroids = nn.Parameter(weight.new_zeros(centroids), requires_grad=weight.requires_grad)
    new.register_buffer("codes", torch.zeros(weight.shape, dtype=torch.uint8, device=weight.device))
    new.register_buffer("scale", torch.ones_like(_spread(module, weight)) if scaled else None)
    new.zero = zero
    made: nn.Module = new
    return made


def _spread(layer: nn.Module, weight: Tensor, scaled: Scaled = True) -> Tensor:
    """The largest weight of each output channel, or row of an embedding, in a shape that broadcasts; or its energy."""
    axis = 1 if isinstance(layer, TRANSPOSED) else 0
    others = [i for i in range(weight.ndim) if i != axis]
    if scaled == "energy":
        return weight.detach().square().mean(others, keepdim=True).sqrt()
    return weight.detach().abs().amax(others, keepdim=True)


# Sharing --------------------------------------------------------------------------------------------------------------
def plan(
    model: nn.Module,
    *,
    bits: Bits = 5,
    scaled: Scaled | None = None,
    skip: Sequence[str] = (),
) -> list[Edit]:
    """One edit for each layer whose weights are to be shared; bits=32 leaves all as they are.

    bits: of a code, 1 to 8; or patterns of paths with theirs, {"*": 5, "features.*": 8}, the last that fits counts and
    a layer that none fits stays as it is. scaled: one scale per output channel, by default where the model has batch
    norms; it begins with the channel's largest weight, or with its root mean square by "energy": smaller files, farther
    from the weights. skip: patterns of layers that stay. A layer of fewer weights than twice its values stays, as do
    two layers that have one weight together. LookupError where nothing is left.
    """
    wanted = dict(bits) if isinstance(bits, Mapping) else {"*": bits}
    for pattern, each in wanted.items():
        if isinstance(each, bool) or not isinstance(each, int) or not (1 <= each <= MOST_BITS or each == 32):
            raise OptionError("bits", f"{pattern}: {each!r} is not one of 1 to {MOST_BITS}, or 32 (no change)")
    found = _hosts(model)
    for pattern in [*skip, *(wanted if isinstance(bits, Mapping) else ())]:
        if not any(_covers(pattern, path) for path in found):
            raise LookupError(f"{pattern!r} matches no layer of {type(model).__name__} that can be shared")
    scaled = any(isinstance(m, BATCH_NORMS) for m in model.modules()) if scaled is None else scaled
    if scaled not in (True, False, "energy"):
        raise OptionError("scaled", f"{scaled!r} is not one of true, false, energy")
    edits = []
    for path, layer in found.items():
        each = [32, *(number for pattern, number in wanted.items() if _covers(pattern, path))][-1]
        if each == 32 or any(_covers(pattern, path) for pattern in skip):
            continue
        zero = bool((layer.weight == 0).any())
        values = min(1 << each, (1 << MOST_BITS) - zero)
        if layer.weight.numel() >= 2 * values:
            edits.append(Edit(path, "codebook", {"centroids": values, "zero": zero, "scaled": bool(scaled)}))
    if not edits and any(each != 32 for each in wanted.values()):
        raise LookupError(f"{type(model).__name__} has no float linear, convolution or embedding layer left to share")
    return edits


def _hosts(model: nn.Module) -> dict[str, Any]:
    """Layers with a float weight of their own, by path."""
    found: dict[str, Any] = {}
    owners: dict[int, int] = {}
    for path, module in model.named_modules():
        weight = module._parameters.get("weight")
        if weight is not None:
            owners[id(weight)] = owners.get(id(weight), 0) + 1
            if isinstance(module, HOSTS) and weight.is_floating_point():
                found[path] = module
    return {path: module for path, module in found.items() if owners[id(module.weight)] == 1}


def _covers(pattern: str, path: str) -> bool:
    return fnmatchcase(path, pattern) or fnmatchcase(path, pattern + ".*")


@torch.no_grad()
def share(
    model: nn.Module,
    *,
    bits: Bits = 5,
    init: str | None = None,
    scaled: Scaled | None = None,
    iterations: int = 50,
    skip: Sequence[str] = (),
    seed: int = 0,
) -> nn.Module:
    """A copy whose layers' weights are shared, by k-means; train it on and the shared values are trained.

    init: how k-means starts, "linear", "density", "random" or "mixed"; by default mixed for scaled layers, else linear.
    The other options are those of `plan`. Scales and values have as many significant bits as half precision.
    InputError for weights that are not finite.
    """
    edits = plan(model, bits=bits, scaled=scaled, skip=skip)
    found = {}
    for number, edit in enumerate(edits):
        layer, spec = submodule(model, edit.path), dict(edit.spec)
        start = init or ("mixed" if spec["scaled"] else "linear")
        found[edit.path] = _clustered(layer, edit.path, spec, scaled or True, start, iterations, seed)
        edits[number] = Edit(edit.path, edit.kind, {**spec, "centroids": len(found[edit.path][0])})
    new = apply(model, edits)
    for path, (centroids, codes, scale) in found.items():
        made = submodule(new, path)
        made.centroids.copy_(centroids)  # type: ignore[operator]
        made.codes.copy_(codes)  # type: ignore[operator]
        if scale is not None:
            made.scale.copy_(scale)  # type: ignore[operator]
    return new


def _clustered(
    layer: Any, path: str, spec: Mapping[str, Any], scaled: Scaled, start: str, iterations: int, seed: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Shared values (k,), codes and scale of one layer."""
    weight = layer.weight.detach().cpu().float()
    if not bool(weight.isfinite().all()):
        raise InputError(path, "non_finite", "its weights hold NaN or infinity; the training diverged")
    known: dict[str, Any] = {"start": start, "iterations": iterations, "seed": seed}
    if not spec["scaled"]:
        return *_coded(weight, spec, **known), None
    scale = _half(_spread(layer, weight, scaled))
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))  # of a channel that is all zero
    for _ in range(ROUNDS):
        centroids, codes = _coded(weight / scale, spec, **known)
        table = F.pad(centroids, (1, 0)) if spec["zero"] else centroids
        scale = _fitted(weight, table[codes.long()], scale)
    return centroids, codes, scale


def _coded(weight: Tensor, spec: Mapping[str, Any], **options: Any) -> tuple[Tensor, Tensor]:
    """Shared values (k,) and codes by k-means, whose options these are."""
    values = weight.numpy().ravel()
    kept = np.flatnonzero(values) if spec["zero"] else np.arange(len(values))
    if not len(kept):
        kept = np.arange(1)  # a layer of zeros has one value, which no weight has
    centroids = _half(torch.from_numpy(cluster(values[kept], spec["centroids"], **options)))
    codes = np.zeros(len(values), np.uint8)
    codes[kept] = nearest(values[kept], centroids.numpy()) + spec["zero"]
    if spec["zero"]:
        codes[values == 0] = 0
    return centroids.float(), torch.from_numpy(codes.reshape(weight.shape))


def _fitted(weight: Tensor, coded: Tensor, scale: Tensor) -> Tensor:
    """The scales with which coded weights are nearest to the weights, by least squares in each channel."""
    axes = [axis for axis in range(weight.ndim) if scale.shape[axis] == 1]
    found = _half((weight * coded).sum(axes, keepdim=True) / coded.square().sum(axes, keepdim=True).clamp_min(1e-12))
    return torch.where(found > 0, found, scale)


def _half(values: Tensor) -> Tensor:
    """The nearest values with as many significant bits as half precision has, of any size.

    Half precision itself has nothing below 6e-8, and networks have dead channels that are far smaller.
    """
    share_of_2, power = torch.frexp(values)
    return torch.ldexp((share_of_2 * 2**SIGNIFICANT).round() / 2**SIGNIFICANT, power)


@torch.no_grad()
def rounded(model: nn.Module) -> nn.Module:
    """A copy whose floats are rounded to the 11 bits that half precision has, at any size: about two bytes each.

    For what training left of a shared model: shared values, biases, norms. Weights that are not shared, too.
    """
    new = apply(model, [])
    for tensor in (*new.parameters(), *new.buffers()):
        if tensor.is_floating_point():
            tensor.copy_(_half(tensor.detach()))
    return new
