# SPDX-License-Identifier: Apache-2.0
"""Star-shaped attention (Star-Transformer, Guo 2019, 1902.09113): each token sees its neighbors and one relay.

The first token (of pictures all prefix tokens) is the relay: it sees every token and every token sees it; the others
see those at most `radius` places away. So two tokens are never more than two steps apart, and a block needs
N (2 radius + 2) scores in place of N squared. Padding stays hidden. Works on every described transformer, of text and
of pictures.

What it does not do: save time where attention is computed densely, as torch, ONNX Runtime and OpenVINO do; it is the
pattern, for models that are trained with it. Not here: the paper's own relay update, which is a second attention.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..anatomy import Anatomy, Around, anatomy_of, prefix_of, wrap_blocks
from ..errors import OptionError
from ..surgery import Edit, all_of, apply, edit_kind


class StarBlocks(Around):
    """Runs the host's blocks under a mask of the shape of a star. relays: tokens before the others."""

    def __init__(self, blocks: nn.ModuleList, anatomy: Anatomy, radius: int, relays: int) -> None:
        super().__init__()
        self.blocks, self.anatomy = blocks, anatomy
        self.radius, self.relays = radius, relays

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        given = kwargs.get("attention_mask", args[0] if args else None)
        mask = additive(star(x.shape[1], self.radius, self.relays, x.device), x.dtype)
        if given is not None:
            mask = mask + (additive(given, x.dtype) if given.dtype == torch.bool else given)
            mask = mask.clamp(min=torch.finfo(x.dtype).min)
        for block in self.blocks:
            x = self.anatomy.run(block, x, mask)
        return x


def star(count: int, radius: int, relays: int, device: torch.device | None = None) -> Tensor:
    """Which of `count` tokens sees which (1, 1, N, N)."""
    places = torch.arange(count, device=device)
    near = (places[:, None] - places[None]).abs() <= radius
    relay = places < relays
    return (near | relay[:, None] | relay[None])[None, None]


def additive(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask that is added to the scores: 0 where allowed."""
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(~allowed, torch.finfo(dtype).min)


@edit_kind
def star_attention(model: nn.Module, radius: int) -> nn.Module:
    """The host with its blocks inside `StarBlocks`; no weights are added."""
    if all_of(model, StarBlocks):
        raise OptionError("star_attention", "this model attends in a star already")
    if isinstance(radius, bool) or not isinstance(radius, int) or radius < 1:
        raise OptionError("radius", f"must be 1 or more neighbors on each side, not {radius!r}")
    anatomy, relays = anatomy_of(model), _relays(model)
    return wrap_blocks(model, lambda blocks: StarBlocks(blocks, anatomy, radius, relays))


def _relays(model: nn.Module) -> int:
    """The prefix tokens of a picture; of a text its first token."""
    try:
        return max(1, prefix_of(model))
    except LookupError:
        return 1


def plan(model: nn.Module, *, radius: int | None = 1) -> list[Edit]:
    """The edit that lets tokens see `radius` neighbors on each side and the relay; nothing is touched.

    radius: None leaves the attention whole. TypeError for a model that nobody described, OptionError for a radius that
    is none.
    """
    anatomy_of(model)
    return [] if radius is None else [Edit("", "star_attention", {"radius": radius})]


def starred(model: nn.Module, *, radius: int | None = 1) -> nn.Module:
    """A copy of the model that attends in a star; the options are those of `plan`."""
    return apply(model, plan(model, radius=radius))
