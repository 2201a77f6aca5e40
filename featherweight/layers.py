# SPDX-License-Identifier: Apache-2.0
"""Modules that both models and methods make."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

from .surgery import Aside, all_of, put

M = TypeVar("M", bound=nn.Module)
SIZES = (
    "in_features", "out_features", "in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation",
    "groups",
)  # fmt: skip


class DropPath(nn.Module):
    """Stochastic depth: in training a sample's branch is dropped with probability `rate` (Huang 2016, 1603.09382)."""

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0.0:
            return x
        keep = 1.0 - self.rate
        mask = torch.rand((x.shape[0],) + (1,) * (x.ndim - 1), device=x.device, dtype=torch.float32) < keep
        return x * (mask.to(x.dtype) / keep)

    def extra_repr(self) -> str:
        return f"rate={self.rate}"


class Factors(nn.Sequential):
    """Layers in a row that stand for one: factors of its weight. It tells the sizes of the one to hosts that ask."""

    def __init__(self, stands_for: nn.Module, *factors: nn.Module) -> None:
        super().__init__()
        for number, factor in enumerate(factors):
            self.add_module(str(number), factor)
        for name in SIZES:
            if hasattr(stands_for, name):
                setattr(self, name, getattr(stands_for, name))

    @property
    def weight(self) -> Tensor:
        """The first factor's: hosts look at its type and place to know what to feed in."""
        return self[0].weight  # type: ignore[return-value]

    @property
    def bias(self) -> Tensor | None:
        """The last factor's, which is the one that has it."""
        return self[-1].bias  # type: ignore[return-value]


class Compact(nn.Module):
    """A layer that stores fewer numbers than it computes with; what a runtime gets is `expanded`."""

    def expanded(self) -> nn.Module:
        """The equal plain layer, with every number written out."""
        raise TypeError(f"{type(self).__name__} has no expanded form")


def expanded(model: M) -> M:
    """The model with each compact layer written out, for a file of a runtime; itself where there is none."""
    if not any(isinstance(module, Compact) for module in model.modules()):
        return model
    new: nn.Module = copy.deepcopy(model)
    for path, module in all_of(new, Compact).items():
        made = module.expanded().train(module.training)
        new = made if path == "" else put(new, path, made)
    return new  # type: ignore[return-value]


class TwoHeads(nn.Module):
    """Class logits and distillation logits (B, K) -> one tensor (B, K).

    Training returns the class logits and puts the distillation logits aside for the loss; evaluation returns the
    mean of the two logits (Touvron 2021, 2012.12877).
    """

    def __init__(self) -> None:
        super().__init__()
        self.aside = Aside()

    def forward(self, logits: Tensor, dist_logits: Tensor) -> Tensor:
        if self.training:
            self.aside.dist_logits = dist_logits
            return logits
        return (logits + dist_logits) / 2

    def answer(self, logits: Tensor) -> Tensor:
        """In training: what evaluation would have answered to the batch whose class logits these are."""
        return (logits + self.aside.dist_logits) / 2


class AuxLogits(nn.Module):
    """Class logits (B, K) and one set of logits per token (B, N, K) -> one tensor (B, K), as LV-ViT answers.

    Training returns the class logits and puts `aux_logits` and the mix-token `box` (or None) aside for the loss;
    evaluation adds half of each class's largest token logit (Jiang 2021, 2104.10858). With `mix_token`, the model it is
    part of mixes each batch in training.
    """

    def __init__(self, mix_token: bool = False) -> None:
        super().__init__()
        self.mix_token = mix_token
        self.aside = Aside()

    def forward(self, logits: Tensor, aux_logits: Tensor, box: Tensor | None = None) -> Tensor:
        if self.training:
            self.aside.aux_logits, self.aside.box = aux_logits, box
            return logits + 0.0 * aux_logits.mean()  # several processes want every parameter used, by any loss
        return self.fused(logits, aux_logits)

    def fused(self, logits: Tensor, aux_logits: Tensor) -> Tensor:
        """What evaluation answers."""
        return logits + 0.5 * aux_logits.amax(dim=1)

    def answer(self, logits: Tensor) -> Tensor:
        """In training: what evaluation would have answered to the batch whose class logits these are."""
        return self.fused(logits, self.aside.aux_logits)


def draw_box(grid: tuple[int, int], device: torch.device | None = None) -> Tensor:
    """A random part of a grid (H, W): (top, left, bottom, right), int64, with the grid's shape.

    Its share of the area is uniform in 0..1 where it fits; around any place, cut off at the border.
    """
    size = torch.tensor(grid, device=device)
    sides = (size * torch.rand((), device=device).sqrt()).long()
    middle = (size * torch.rand(2, device=device)).long()
    first = middle - sides // 2
    return torch.cat([first.clamp(min=0), torch.minimum(first + sides // 2 * 2, size)])


def swap_box(tokens: Tensor, box: Tensor, grid: tuple[int, int]) -> Tensor:
    """Tokens (B, N, C) of a grid, row by row; those in the box come from the batch in reverse order."""
    rows, columns = torch.arange(grid[0], device=tokens.device), torch.arange(grid[1], device=tokens.device)
    inside = ((rows >= box[0]) & (rows < box[2]))[:, None] & ((columns >= box[1]) & (columns < box[3]))  # (H, W)
    return torch.where(inside.flatten()[None, :, None], tokens.flip(0), tokens)
