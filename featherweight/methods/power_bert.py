# SPDX-License-Identifier: Apache-2.0
"""PoWER-BERT (Goyal 2020, 2001.08950): a text classifier drops the tokens that matter least, block by block.

A token matters as much as the first one, whose vector is classified, attends to it in the block that follows. Each text
keeps a share of its own tokens, whatever else is in the batch: rows are cut to the longest that is left, and what is
too much in the shorter ones is masked, so a batch of one answers as a batch of many. Padding goes first. There is
nothing to train for it, but training on repairs what it costs. The choice and the cut are those of images
(`token_scores`). Works on BERT, RoBERTa, ELECTRA and DistilBERT of transformers. Not here: models that need every token
in the end, as for questions; learning how many stay (the paper's soft extraction).
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from ..anatomy import Anatomy, Around, anatomy_of, blocks_of, wrap_blocks
from ..errors import OptionError
from ..surgery import Edit, all_of, apply, edit_kind, submodule
from .token_scores import Keep, check_shares, shares_at, take

FINEST = 1000  # shares are told apart to a thousandth


class NarrowingBlocks(Around):
    """Runs the host's blocks on fewer and fewer tokens. `keep`: pairs (before which block, share of a text left)."""

    counts = True

    def __init__(self, blocks: nn.ModuleList, anatomy: Anatomy, keep: Sequence[tuple[int, float]]) -> None:
        super().__init__()
        self.blocks, self.anatomy = blocks, anatomy
        self.keep = tuple((int(place), float(share)) for place, share in keep)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        mask = kwargs.get("attention_mask", args[0] if args else None)
        alive = real_tokens(x, mask)  # (B, N)
        total, lengths = x.shape[1], alive.sum(1, keepdim=True)  # of each text (B, 1)
        shares = dict(self.keep)
        for place, block in enumerate(self.blocks):
            if place in shares:
                share = Fraction(shares[place]).limit_denominator(FINEST)
                wide, counts = ceil_share(total, share), ceil_share(lengths, share)
                score = first_attention(block, self.anatomy, x, alive)
                chosen = score.topk(wide, dim=1).indices  # the first token has the highest score, so stays first
                x, alive = take(x, chosen), torch.arange(wide, device=x.device) < counts
                mask = torch.zeros_like(alive, dtype=x.dtype).masked_fill(~alive, torch.finfo(x.dtype).min)
                mask = mask[:, None, None, :]  # (B, 1, 1, n)
            x = self.anatomy.run(block, x, mask)
        return x


def real_tokens(x: Tensor, mask: Tensor | None) -> Tensor:
    """Which tokens of x (B, N, C) are no padding (B, N), from a mask (B, 1, 1 or N, N), bool or added to the scores."""
    if mask is None:
        return torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
    row = mask[:, 0, 0]
    real = row if row.dtype == torch.bool else row > -1
    return real.expand(x.shape[0], -1)


def ceil_share(count: Any, share: Fraction) -> Any:
    """The share of a number of tokens, or of a tensor of them, in whole tokens, rounded up: never none."""
    return (count * share.numerator + share.denominator - 1) // share.denominator


@torch.no_grad()
def first_attention(block: nn.Module, anatomy: Anatomy, x: Tensor, alive: Tensor) -> Tensor:
    """How much the first token of x (B, N, C) attends to each, mean over heads (B, N); itself most, padding least."""
    heads = int(getattr(submodule(block, anatomy.attention), anatomy.num_heads))
    query, key = (submodule(block, path) for path in anatomy.qkv[:2])
    q, k = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (query(x[:, :1]), key(x)))  # (B, h, ., d)
    scores = (q @ k.transpose(-2, -1))[:, :, 0] * q.shape[-1] ** -0.5  # (B, h, N)
    found = scores.float().masked_fill(~alive[:, None], -torch.inf).softmax(-1).mean(1)
    found = found.masked_fill(~alive, -1.0)
    first = torch.arange(x.shape[1], device=x.device) == 0
    return found.masked_fill(first, 2.0)


@edit_kind
def eliminate_tokens(model: nn.Module, keep: Sequence[tuple[int, float]]) -> nn.Module:
    """The host with its blocks inside `NarrowingBlocks`; no weights are added."""
    if all_of(model, NarrowingBlocks):
        raise OptionError("eliminate_tokens", "this model drops tokens already")
    anatomy = _text_anatomy(model)
    chosen = list(check_shares(dict(keep), len(blocks_of(model)), falling=True).items())
    return wrap_blocks(model, lambda blocks: NarrowingBlocks(blocks, anatomy, chosen))


def plan(model: nn.Module, *, keep: Keep = 0.7, at: Sequence[int] | None = None) -> list[Edit]:
    """The edit that drops tokens; nothing is touched.

    keep: the share of a text's tokens that stays: r, which becomes r, r^2, r^3 at `at` (a quarter, a half and three
    quarters of the depth), a list for `at`, or {before which block: share}; 1 is the model as it is. TypeError for a
    model that nobody described, OptionError for one that is no text classifier, or for shares that do not fit.
    """
    _text_anatomy(model)
    depth = len(blocks_of(model))
    found = check_shares(shares_at(keep, at, depth, lambda rate, k: rate ** (k + 1)), depth, falling=True)
    pairs = [[place, share] for place, share in found.items() if share < 1]
    return [Edit("", "eliminate_tokens", {"keep": pairs})] if pairs else []


def narrowing(model: nn.Module, **options: Any) -> nn.Module:
    """A copy of the model that drops tokens; the options are those of `plan`."""
    return apply(model, plan(model, **options))


def _text_anatomy(model: nn.Module) -> Anatomy:
    anatomy = anatomy_of(model)
    if anatomy.norm or anatomy.head != "classifier" or len(anatomy.qkv) != 3:
        name = type(model).__name__
        raise OptionError("power_bert", f"{name} is no text classifier; for pictures see dynamicvit and tome")
    return anatomy
