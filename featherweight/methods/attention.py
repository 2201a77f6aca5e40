# SPDX-License-Identifier: Apache-2.0
"""What a transformer's blocks attend to, and what of the picture its answer goes back to (Abnar 2020, 2005.00928).

Works on every described transformer whose record has halves (`anatomy`). Probabilities are computed from the block's
own norm and projections, so that no block has to hand them out. Not here: gradients, and models that merge tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..anatomy import Anatomy, EveryToken, anatomy_of, blocks_of, prefix_of
from ..errors import OptionError
from ..modes import evaluating
from ..surgery import all_of, submodule
from .token_scores import all_sparse


def queries_and_keys(block: nn.Module, anatomy: Anatomy, x: Tensor, first: int | None = None) -> tuple[Tensor, Tensor]:
    """A block's input (B, N, C) -> scaled queries and keys (B, h, N, d), or those of the `first` queries only.

    LookupError for a record without halves.
    """
    if anatomy.halves is None:
        raise LookupError("the family's record has no halves: Anatomy(..., halves=Halves(attend, mlp))")
    y = submodule(block, anatomy.halves.norm)(x)
    heads = int(getattr(submodule(block, anatomy.attention), anatomy.num_heads))
    layers = [submodule(block, path) for path in anatomy.qkv]
    if len(layers) == 3:
        q, k = layers[0](y[:, :first]), layers[1](y)
    elif type(layers[0]) is nn.Linear:  # without the values
        w, b = layers[0].weight.chunk(3), (None, None) if layers[0].bias is None else layers[0].bias.chunk(3)
        q, k = F.linear(y[:, :first], w[0], b[0]), F.linear(y, w[1], b[1])
    else:
        q, k, _ = layers[0](y).chunk(3, dim=-1)
        q = q[:, :first]
    q, k = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k))
    if path := anatomy.halves.key_norm:
        parent, _, name = path.rpartition(".")
        q = submodule(block, f"{parent}.{name.replace('k', 'q', 1)}")(q)
        k = submodule(block, path)(k)
    return q * q.shape[-1] ** -0.5, k


def attention_of(block: nn.Module, anatomy: Anatomy, x: Tensor) -> Tensor:
    """A block's input (B, N, C) -> its attention probabilities (B, h, N, N)."""
    q, k = queries_and_keys(block, anatomy, x)
    return (q @ k.transpose(-2, -1)).softmax(-1)


def class_attention(block: nn.Module, anatomy: Anatomy, x: Tensor, prefix: int) -> Tensor:
    """How much the class token attends to each patch in this block, mean over heads: (B, P + N, C) -> (B, N)."""
    q, k = queries_and_keys(block, anatomy, x, first=1)
    return (q @ k.transpose(-2, -1)).softmax(-1).mean(1)[:, 0, prefix:]


@torch.no_grad()
def rollout(model: nn.Module, images: Tensor, *, residual: float = 0.5) -> Tensor:
    """Attention rollout: how much of the class token's answer goes back to each patch, (B, 3, H, W) -> (B, N), sum 1.

    The blocks' mean attention, `residual` of it the token itself, multiplied from the first block to the last (Abnar
    2020, 2005.00928). Tokens that were dropped on the way keep what they gave before. OptionError for a model without a
    class token, or one that merges tokens or attends in groups.
    """
    if not 0 <= residual < 1:
        raise OptionError("residual", f"{residual!r} is not from 0 to below 1; it is the share of a token in itself")
    anatomy, prefix = anatomy_of(model), prefix_of(model)
    if prefix < 1:
        raise OptionError("rollout", f"needs a class token; {type(model).__name__} has none")
    if all_of(model, EveryToken):
        raise OptionError("rollout", f"{type(model).__name__} attends in groups, which rollout does not follow")
    blocks = list(blocks_of(model).values())
    with evaluating(model), _inputs(blocks) as seen, _survivors(model) as kept:
        model(images)
    if {number for number, _ in seen} != set(range(len(blocks))):
        raise OptionError("rollout", f"{type(model).__name__} runs its blocks in halves: it merges tokens on the way")
    total = kept.pop(-1).shape[1] if -1 in kept else seen[0][1].shape[1] - prefix
    flow, here = _start(seen[0][1], prefix, total)
    for number, x in seen:  # a block that runs several times is there several times
        block = blocks[number]
        if number in kept:
            flow, here = _rows(flow, here, kept.pop(number))
        mean = attention_of(block, anatomy, x).mean(1)  # (B, n, n)
        mixed = (1 - residual) * mean + residual * torch.eye(mean.shape[1], device=mean.device, dtype=mean.dtype)
        flow = mixed @ flow
    answer = flow[:, 0, prefix:]
    return answer / answer.sum(-1, keepdim=True).clamp(min=torch.finfo(answer.dtype).tiny)


def _start(x: Tensor, prefix: int, total: int) -> tuple[Tensor, Tensor]:
    """Every token is itself (B, P + N, P + N), and is where it began (B, N)."""
    flow = torch.eye(prefix + total, device=x.device, dtype=x.dtype).expand(len(x), -1, -1)
    return flow, torch.arange(total, device=x.device).expand(len(x), -1)


def _rows(flow: Tensor, here: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of those that stay, found by their first places (B, n)."""
    prefix = flow.shape[1] - here.shape[1]
    chosen = torch.searchsorted(here.contiguous(), places.contiguous())
    rows = torch.cat([torch.arange(prefix, device=flow.device).expand(len(flow), -1), chosen + prefix], dim=1)
    return flow.gather(1, rows[..., None].expand(-1, -1, flow.shape[2])), places


@contextmanager
def _inputs(blocks: Sequence[nn.Module]) -> Iterator[list[tuple[int, Tensor]]]:
    """While inside, a block's number and the tokens it gets are appended to the list, each time one runs."""
    seen: list[tuple[int, Tensor]] = []
    numbers = {block: number for number, block in enumerate(blocks)}

    def before(block: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        seen.append((numbers[block], args[0] if args else kwargs["hidden_states"]))

    handles = [block.register_forward_pre_hook(before, with_kwargs=True) for block in blocks]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _survivors(model: nn.Module) -> Iterator[dict[int, Tensor]]:
    """While inside, of a model that drops tokens: before which block which places (B, n) were left, and at -1 all."""
    found: dict[int, Tensor] = {}
    sparse = all_sparse(model)
    if not sparse:
        yield found
        return

    def after(*_: object) -> None:
        aside = sparse[0].aside
        found.update({place: seen for (place, _), seen in zip(sparse[0].keep, aside.places, strict=True)})
        found[-1] = torch.arange(int(aside.count))[None]

    handle = sparse[0].register_forward_hook(after)
    before, sparse[0].recording = sparse[0].recording, True
    try:
        yield found
    finally:
        sparse[0].recording = before
        handle.remove()
