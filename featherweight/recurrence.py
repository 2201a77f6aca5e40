# SPDX-License-Identifier: Apache-2.0
"""Modules that run the same weights several times over, and attention within groups of tokens (Shen 2022, 2111.05297).

What SReT, and the methods that give recursion and grouping to any transformer, are both made of. Not here: who decides
how often, and on which blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .errors import OptionError


class Mlp(nn.Module):
    """Tokens (B, N, C) -> (B, N, C), through `hidden` channels."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class Coefficient(nn.Module):
    """A learned factor (1,) that starts at 1: SReT's residual coefficient, whose parameter is named `bias` there."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.bias


class NonLinearProjection(nn.Module):
    """c1 * x + c2 * mlp(norm(x)) on tokens (B, N, C): what keeps two passes through one block apart (SReT's NLL)."""

    def __init__(self, dim: int, ratio: float, *, norm_eps: float = 1e-6) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = Mlp(dim, int(dim * ratio))
        self.coefficient1 = Coefficient()
        self.coefficient2 = Coefficient()

    def forward(self, x: Tensor) -> Tensor:
        return self.coefficient1(x) + self.coefficient2(self.mlp(self.norm1(x)))


class Recurrent(nn.Module):
    """What runs the blocks it holds several times over: `loops` times, in training `running` times where that is set.

    `running` () is empty but for a method that changes it from step to step and takes it away in the end.
    """

    running: Tensor | None

    def __init__(self, loops: int) -> None:
        super().__init__()
        self.loops = loops
        self.register_buffer("running", None)

    def rounds(self) -> int:
        """How many times it runs now."""
        if self.training and self.running is not None:
            return min(self.loops, int(self.running))
        return self.loops

    def owned(self, first: int) -> Iterator[nn.Module]:
        """The modules that only the rounds from number `first` on use."""
        raise TypeError(f"{type(self).__name__} does not say what its rounds own")

    def forget(self, first: int) -> None:
        """Run `first` rounds from now on, and drop what only the later ones used, in this very module."""
        raise TypeError(f"{type(self).__name__} cannot drop rounds")

    def with_gradients(self, x: Tensor, rounds: int) -> Tensor:
        """x, through which what only the rounds left out use gets a gradient of zeros, as several processes need."""
        if rounds == self.loops or not (self.training and torch.is_grad_enabled()):
            return x
        idle = [p.sum() for module in self.owned(rounds) for p in module.parameters() if p.requires_grad]
        return x + 0.0 * torch.stack(idle).sum().to(x.dtype) if idle else x

    def extra_repr(self) -> str:
        return f"loops={self.loops}"


class Looped(Recurrent):
    """A host's own block, run `loops` times in place of once, on tokens (B, N, C).

    nll_ratio: hidden width of a non-linear projection after each pass, which starts as the identity; 0 has none.
    coefficients: each pass becomes c1 * x + c2 * (block(x) - x), with two learned factors of its own that start at 1.
    """

    def __init__(self, block: nn.Module, loops: int, *, dim: int, nll_ratio: float, coefficients: bool) -> None:
        super().__init__(loops)
        self.block = block
        self.projections = nn.ModuleList(NonLinearProjection(dim, nll_ratio) for _ in range(loops if nll_ratio else 0))
        self.coefficient1 = nn.ModuleList(Coefficient() for _ in range(loops if coefficients else 0))
        self.coefficient2 = nn.ModuleList(Coefficient() for _ in range(loops if coefficients else 0))
        for projection in self.projections:
            nn.init.zeros_(projection.mlp.fc2.weight)  # type: ignore[union-attr, arg-type]
            nn.init.zeros_(projection.mlp.fc2.bias)  # type: ignore[union-attr, arg-type]
        like = next(block.parameters())
        for added in (self.projections, self.coefficient1, self.coefficient2):
            added.to(device=like.device, dtype=like.dtype)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        rounds = self.rounds()
        for turn in range(rounds):
            y = self.block(x, *args, **kwargs)
            if len(self.coefficient1):
                c1, c2 = self.coefficient1[turn].bias, self.coefficient2[turn].bias
                y = x * (c1 - c2) + y * c2  # type: ignore[operator]
            x = self.projections[turn](y) if len(self.projections) else y
        return self.with_gradients(x, rounds)

    def owned(self, first: int) -> Iterator[nn.Module]:
        for modules in (self.projections, self.coefficient1, self.coefficient2):
            yield from modules[first:]

    def forget(self, first: int) -> None:
        for modules in (self.projections, self.coefficient1, self.coefficient2):
            del modules[first:]
        self.loops = first


class Permutation(nn.Module):
    """An order of N tokens and its inverse, ready to gather by; in training, where it `redraws`, a new one each time.

    Not in the state dict: it is made again from its seed.
    """

    order: Tensor
    inverse: Tensor

    def __init__(self, tokens: int, *, seed: int, redraw: bool) -> None:
        super().__init__()
        self.seed, self.redraw = seed, redraw
        drawn = torch.empty(tokens, dtype=torch.int64)
        if not drawn.is_meta:  # of an outline the shapes are enough
            drawn = torch.randperm(tokens, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("order", drawn, persistent=False)
        self.register_buffer("inverse", inverted(drawn), persistent=False)

    def forward(self) -> tuple[Tensor, Tensor]:
        """order (N,) and inverse (N,): x[:, order][:, inverse] is x."""
        if not (self.training and self.redraw):
            return self.order, self.inverse
        drawn = torch.randperm(len(self.order), device=self.order.device)
        return drawn, inverted(drawn)

    def set(self, order: Tensor) -> None:
        """Use this order (N,) from now on. OptionError unless it holds 0 to N - 1 once each."""
        n = len(self.order)
        if order.dtype != torch.int64 or order.sort().values.tolist() != list(range(n)):
            raise OptionError("order", f"must hold the whole numbers 0 to {n - 1} once each")
        self.order.copy_(order)
        self.inverse.copy_(inverted(order))

    def extra_repr(self) -> str:
        return f"tokens={len(self.order)}, seed={self.seed}, redraw={self.redraw}"


def inverted(order: Tensor) -> Tensor:
    """The inverse (N,) of an order (N,)."""
    return torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))


def in_groups(
    run: Callable[[Tensor], Tensor],
    x: Tensor,
    groups: int,
    *,
    order: tuple[Tensor, Tensor] | None = None,
    prefix: int = 0,
) -> Tensor:
    """`run` on tokens (B, P + N, C), N in `groups` runs that do not see each other (Shen 2022, 2111.05297).

    Runs are contiguous, or contiguous in `order`, which is undone afterwards: attention of N x N becomes groups of
    N / groups x N / groups. Each group also sees the P prefix tokens; what these become is the mean over the groups.
    """
    if groups == 1:
        return run(x)
    patches = x[:, prefix:]
    if order is not None:
        patches = patches.index_select(1, order[0])
    parts = patches.unflatten(1, (groups, -1))  # (B, g, N / g, C)
    if prefix:
        parts = torch.cat([x[:, None, :prefix].expand(-1, groups, -1, -1), parts], dim=2)
    y = run(parts.flatten(0, 1)).unflatten(0, (-1, groups))  # (B, g, P + N / g, C)
    patches = y[:, :, prefix:].flatten(1, 2)
    if order is not None:
        patches = patches.index_select(1, order[1])
    return torch.cat([y[:, :, :prefix].mean(1), patches], dim=1) if prefix else patches
