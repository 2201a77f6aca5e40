# SPDX-License-Identifier: Apache-2.0
"""Cross-layer equalization: the channels between two convolutions get equal ranges, and the answer stays (Nagel 2019,
1906.04721).

Where a convolution feeds only one other, with nothing or ReLU between them, a channel may be divided by s in the first
and multiplied by s in the second. s makes both ranges the root of their product. Batch norms are folded before; where
ReLU6 stands between, its limit of 6 becomes 6 / s for each channel, which keeps the answer exact. It helps most where
one step is shared by a whole layer; with a step for each channel (`quantize`) little is left to gain. Not here: the
absorption of high biases, and pairs with an addition between them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..errors import OptionError
from ..modes import evaluating
from ..surgery import Edit, apply, edit_kind, submodule
from .calibration import Calls, first, quantizable
from .flow import Link, foldable, links, look

SWEEPS, CLOSE = 50, 1e-4  # over all pairs, until no factor changes by more


class ChannelClip(nn.Module):
    """max(0, min(x, limit)) with a limit for each channel (C,): what ReLU6 becomes when its channels are scaled."""

    limit: Tensor

    def __init__(self, channels: int, limit: float) -> None:
        super().__init__()
        self.register_buffer("limit", torch.full((channels,), limit))

    def forward(self, x: Tensor) -> Tensor:
        return torch.minimum(torch.relu(x), self.limit[:, None, None])

    def extra_repr(self) -> str:
        return f"{len(self.limit)}"


@edit_kind
def clip_channels(module: nn.Module, channels: int, limit: float = 6.0) -> nn.Module:
    """In place of a ReLU6: a limit for each channel. The limits come with the state dict, or from `equalize`."""
    return ChannelClip(channels, limit)


def folded(model: nn.Module, batches: Iterable[Mapping[str, Any]], task: Calls) -> nn.Module:
    """A copy in which every batch norm that alone follows a convolution is part of it; the answers stay.

    It works on any model that torch.export can follow, where `fuse` knows blocks by their class.
    """
    images = _pictures(batches)
    with evaluating(model):
        norms = look(model, images, task).norms
    layers = dict(model.named_modules())
    pairs = [(c, n) for c, n in norms.items() if foldable(layers[n]) and quantizable(layers[c])]
    return apply(model, [Edit("", "fold_norm", {"conv": conv, "norm": norm}) for conv, norm in pairs])


def equalize(
    model: nn.Module, batches: Iterable[Mapping[str, Any]], task: Calls, *, relu6: Literal["clip", "leave"] = "clip"
) -> nn.Module:
    """A copy with batch norms folded and channels equalized, which answers the same up to rounding.

    batches: two pictures of the first are looked at, for their size. relu6: give each channel a limit of its own, or
    leave pairs with a ReLU6 between them as they are. Raises LookupError where no two convolutions can be equalized.
    """
    if relu6 not in ("clip", "leave"):
        raise OptionError("relu6", f"{relu6!r} is not one of clip, leave")
    batches = list(first(batches, 2))
    images, new = _pictures(batches), folded(model, batches, task)
    with evaluating(new):
        pairs = [pair for pair in links(new, images, task) if _fits(new, pair) and (relu6 == "clip" or not pair.clip)]
    if not pairs:
        raise LookupError(f"{type(model).__name__} has no two convolutions with nothing but ReLU between them")
    clips = [
        Edit(pair.clip, "clip_channels", {"channels": submodule(new, pair.first).out_channels})
        for pair in pairs
        if pair.clip
    ]
    new = apply(new, clips)
    with torch.no_grad():
        _balance(new, pairs)
    return new


def _pictures(batches: Iterable[Mapping[str, Any]]) -> Tensor:
    for batch in batches:
        images: Tensor = batch["image"][:2]
        return images
    raise LookupError("equalize: there are no batches to look at the model with")


def _fits(model: nn.Module, pair: Link) -> bool:
    """Plain layers; the second one reads each channel alone, or all of them."""
    first, second = submodule(model, pair.first), submodule(model, pair.second)
    if not (isinstance(first, nn.Conv2d) and isinstance(second, nn.Conv2d)):
        return False
    if pair.clip and not isinstance(submodule(model, pair.clip), (nn.ReLU6, nn.Hardtanh)):
        return False
    depthwise = second.groups == second.in_channels == second.out_channels
    return quantizable(first) and quantizable(second) and (second.groups == 1 or depthwise)


def _balance(model: nn.Module, pairs: Sequence[Link]) -> None:
    """Scale the pairs in turn until their ranges agree."""
    for _ in range(SWEEPS):
        largest = 0.0
        for pair in pairs:
            factor = _scale(submodule(model, pair.first), submodule(model, pair.second))
            if pair.clip:
                submodule(model, pair.clip).limit.div_(factor)  # type: ignore[operator, union-attr]
            largest = max(largest, float(factor.log().abs().max()))
        if largest < CLOSE:
            return


def _scale(first: Any, second: Any) -> Tensor:
    """Divide each channel of the first by a factor and multiply it in the second; the factors (C,)."""
    made, read = first.weight.detach(), second.weight.detach()
    depthwise = second.groups > 1
    by_channel = read if depthwise else read.transpose(0, 1)  # (C, ...)
    ranges = made.abs().flatten(1).amax(1), by_channel.abs().flatten(1).amax(1)
    alive = (ranges[0] > 0) & (ranges[1] > 0)
    factor = torch.where(alive, ranges[0] / ranges[1].clamp(min=1e-30), torch.ones_like(ranges[0])).sqrt()
    made.div_(factor[:, None, None, None])
    if first.bias is not None:
        first.bias.detach().div_(factor)
    by_channel.mul_(factor[:, None, None, None])
    return factor
