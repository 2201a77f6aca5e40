# SPDX-License-Identifier: Apache-2.0
"""SReT: three stages of blocks that run several times over, with attention in groups (Shen 2022, 2111.05297).

A block is followed by itself, and each pass by a non-linear projection of its own. Names and layouts are the authors',
but a shared tensor is here once, under the first of its names; `aliases` has the others. Two things differ from the
authors' code on purpose: evaluation uses fixed permutations, so that it gives one answer and exports, and any number of
passes is allowed. Not here: distillation (a loss, `methods.distill`), other depths per step (`methods.mixed_depth`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..convs import folded_pairs, fused
from ..errors import OptionError
from ..layers import DropPath
from ..recurrence import Coefficient, Mlp, NonLinearProjection, Permutation, Recurrent, in_groups

STRIDE = 8  # of the stem
PERMUTATIONS = ("redrawn", "fixed", "none")


@dataclass(frozen=True)
class SReTConfig:
    image_size: tuple[int, int] = (224, 224)  # (H, W), multiples of 8
    num_classes: int = 1000
    base_dim: int = 32  # width of a head, in every stage
    depths: tuple[int, ...] = (4, 10, 6)  # passes through blocks in each stage
    unique_blocks: tuple[int, ...] = (2, 5, 3)  # blocks of each stage; depths / unique_blocks passes through each
    num_heads: tuple[int, ...] = (2, 4, 8)  # a stage is base_dim x num_heads wide
    mlp_ratio: float = 3.6
    nll_ratio: float = 1.0  # hidden width of the non-linear projections
    groups: tuple[int, ...] = (8, 4, 1)  # of attention in a stage's first, third, ... pass
    groups_recursive: tuple[int, ...] = (2, 1, 1)  # in its second, fourth, ..., of permuted tokens
    permutation: str = "redrawn"  # in training, as the authors do; "fixed": as in evaluation; "none": tokens in order
    permutation_seed: int = 1  # of the fixed permutations
    in_chans: int = 3
    norm_eps: float = 1e-6  # of layer norms
    drop_path_rate: float = 0.0  # the authors' schedule, whose largest rate stays below this

    def __post_init__(self) -> None:
        size = (self.image_size, self.image_size) if isinstance(self.image_size, int) else tuple(self.image_size)
        object.__setattr__(self, "image_size", size)
        if len(size) != 2 or min(size) < STRIDE or any(s % STRIDE for s in size):
            raise OptionError("image_size", f"{size} is not a pair of multiples of {STRIDE}")
        for name in (field.name for field in fields(self) if isinstance(field.default, tuple)):
            object.__setattr__(self, name, tuple(getattr(self, name)))
            if name != "image_size" and not 1 <= len(getattr(self, name)) == len(self.depths):
                raise OptionError(name, f"{getattr(self, name)} and depths {self.depths} must name the same stages")
        if self.permutation not in PERMUTATIONS:
            raise OptionError("permutation", f"{self.permutation!r} is not one of {', '.join(PERMUTATIONS)}")
        if not 0 <= self.drop_path_rate < 1:
            raise OptionError("drop_path_rate", f"{self.drop_path_rate!r} is not from 0 to below 1")
        for stage in range(len(self.depths)):
            self._check_stage(stage)

    def _check_stage(self, stage: int) -> None:
        depth, unique, dims = self.depths[stage], self.unique_blocks[stage], self.dims
        if depth % unique:
            raise OptionError("unique_blocks", f"{unique} blocks do not divide depth {depth} of stage {stage + 1}")
        if stage and dims[stage] % dims[stage - 1]:
            text = f"stage {stage + 1} is {dims[stage]} wide, which is no multiple of the {dims[stage - 1]} before it"
            raise OptionError("num_heads", text)
        tokens = self.tokens(stage)
        for name in ("groups", "groups_recursive"):
            groups = getattr(self, name)[stage]
            if tokens % groups and (name == "groups" or depth > 1):
                where = "{} tokens ({} x {}) of stage {}".format(tokens, *self.grids[stage], stage + 1)
                raise OptionError(name, f"{groups} does not divide the {where}")

    @property
    def dims(self) -> tuple[int, ...]:
        """Width of each stage."""
        return tuple(self.base_dim * heads for heads in self.num_heads)

    @property
    def grid(self) -> tuple[int, int]:
        """(H, W) of the tokens of the first stage, which the positions are for."""
        return self.grids[0]

    @property
    def grids(self) -> tuple[tuple[int, int], ...]:
        """(H, W) of the tokens of each stage: half of the one before, rounded up."""
        found = [(self.image_size[0] // STRIDE, self.image_size[1] // STRIDE)]
        for _ in self.depths[1:]:
            found.append((-(-found[-1][0] // 2), -(-found[-1][1] // 2)))
        return tuple(found)

    def tokens(self, stage: int) -> int:
        return self.grids[stage][0] * self.grids[stage][1]

    def loops(self, stage: int) -> int:
        """Passes through each block of a stage."""
        return self.depths[stage] // self.unique_blocks[stage]


class Stem(nn.Module):
    """Image (B, 3, H, W) -> map (B, C, H / 8, W / 8)."""

    def __init__(self, in_chans: int, dim: int) -> None:
        super().__init__()
        widths = (in_chans, max(1, dim // 2), dim, dim)
        for i in (1, 2, 3):
            self.add_module(f"conv{i}", nn.Conv2d(widths[i - 1], widths[i], 3, 2, 1))
            self.add_module(f"bn{i}", nn.BatchNorm2d(widths[i]))

    def forward(self, x: Tensor) -> Tensor:
        for i in (1, 2, 3):
            x = F.relu(self.get_submodule(f"bn{i}")(self.get_submodule(f"conv{i}")(x)))
        return x


fused.register(Stem)(folded_pairs)


class Attention(nn.Module):
    """Tokens (B, N, C) -> (B, N, C), in groups that do not see each other."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, groups: int = 1, order: tuple[Tensor, Tensor] | None = None) -> Tensor:
        return in_groups(self._attend, x, groups, order=order)

    def _attend(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)  # (B, h, N, d)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(b, n, self.num_heads * self.head_dim))


class Block(nn.Module):
    """Pre-norm attention and MLP, the branches and what they are added to each scaled by a learned factor."""

    def __init__(self, dim: int, num_heads: int, config: SReTConfig, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=config.norm_eps)
        self.attn = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=config.norm_eps)
        self.mlp = Mlp(dim, int(dim * config.mlp_ratio))
        self.drop_path = DropPath(drop_path)
        self.coefficient1 = Coefficient()
        self.coefficient2 = Coefficient()
        self.coefficient3 = Coefficient()
        self.coefficient4 = Coefficient()

    def forward(self, x: Tensor, groups: int = 1, order: tuple[Tensor, Tensor] | None = None) -> Tensor:
        x = self.coefficient1(x) + self.coefficient2(self.drop_path(self.attn(self.norm1(x), groups, order)))
        return self.coefficient3(x) + self.coefficient4(self.drop_path(self.mlp(self.norm2(x))))


class Stage(Recurrent):
    """Map (B, C, H, W) -> (B, C, H, W): block 0 and a projection, `loops` times over, then block 1, and so on.

    `blocks` has the authors' numbers: pass p is block 2 * p (there once, at its first pass) and projection 2 * p + 1.
    Passes attend in contiguous and in permuted groups by turns, which for two loops is each block's second pass.
    """

    def __init__(self, config: SReTConfig, stage: int) -> None:
        super().__init__(config.loops(stage))
        dim, depth, total = config.dims[stage], config.depths[stage], sum(config.depths)
        self.passes = self.loops  # between the first passes of two blocks, also when later rounds are cut
        self.groups = (config.groups[stage], config.groups_recursive[stage])
        self.blocks = nn.ModuleDict()
        self.orders = nn.ModuleDict()
        for number in range(depth):
            place, turn = divmod(number, self.passes)
            if turn == 0:
                rate = config.drop_path_rate * (sum(config.depths[:stage]) + place) / total
                self.blocks[str(2 * number)] = Block(dim, config.num_heads[stage], config, rate)
            self.blocks[str(2 * number + 1)] = NonLinearProjection(dim, config.nll_ratio, norm_eps=config.norm_eps)
            if number % 2 and self.groups[1] > 1 and config.permutation != "none":
                seed, redraw = config.permutation_seed + 1_000_003 * stage + number, config.permutation == "redrawn"
                self.orders[str(number)] = Permutation(config.tokens(stage), seed=seed, redraw=redraw)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        x, rounds = x.flatten(2).transpose(1, 2).contiguous(), self.rounds()  # (B, N, C)
        for number in self._numbers():
            turn = number % self.passes
            if turn < rounds:
                order = self.orders[str(number)]() if str(number) in self.orders else None
                x = self.blocks[str(2 * (number - turn))](x, self.groups[number % 2], order)
                x = self.blocks[str(2 * number + 1)](x)
        return self.with_gradients(x, rounds).reshape(b, h, w, c).permute(0, 3, 1, 2)

    def owned(self, first: int) -> Iterator[nn.Module]:
        return (self.blocks[str(2 * n + 1)] for n in self._numbers() if n % self.passes >= first)

    def forget(self, first: int) -> None:
        for number in [n for n in self._numbers() if n % self.passes >= first]:
            del self.blocks[str(2 * number + 1)]
            if str(number) in self.orders:
                del self.orders[str(number)]
        self.loops = first

    def _numbers(self) -> list[int]:
        """Numbers of the passes that are there, in order."""
        return [int(name) // 2 for name in self.blocks if int(name) % 2]


class Pool(nn.Module):
    """Map (B, C, H, W) -> (B, C', H / 2, W / 2), C' a multiple of C, each channel by itself."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, 2, 1, groups=inputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class SReT(nn.Module):
    """Image (B, 3, H, W) -> logits (B, K)."""

    def __init__(self, config: SReTConfig) -> None:
        super().__init__()
        self.config = config
        dims = config.dims
        self.pos_embed = nn.Parameter(nn.init.trunc_normal_(torch.zeros(1, dims[0], *config.grid), std=0.02))
        self.patch_embed = Stem(config.in_chans, dims[0])
        self.transformers = nn.ModuleList([Stage(config, stage) for stage in range(len(dims))])
        self.pools = nn.ModuleList([Pool(*widths) for widths in pairwise(dims)])
        self.norm = nn.LayerNorm(dims[-1], eps=config.norm_eps)
        self.head = nn.Linear(dims[-1], config.num_classes)

    def forward(self, x: Tensor) -> Tensor:
        if tuple(x.shape[-2:]) != self.config.image_size:
            raise ValueError(f"image of {tuple(x.shape[-2:])} given to a model for {self.config.image_size}")
        x = self.patch_embed(x) + self.pos_embed  # (B, C, H / 8, W / 8)
        for number, stage in enumerate(self.transformers):
            x = stage(self.pools[number - 1](x) if number else x)
        return self.head(self.norm(x.mean((2, 3))))

    def permutations(self) -> list[Permutation]:
        """Those of one forward pass, in the order in which they are used; each knows its number of tokens."""
        return [module for module in self.modules() if isinstance(module, Permutation)]

    def set_permutations(self, orders: Sequence[Tensor]) -> None:
        """Use these orders (N,) in evaluation from now on: number k is that of the k-th permuting pass.

        A pass permutes where it has more than one recursive group: it attends to x[:, order], in contiguous groups, and
        undoes the order. They are not saved. OptionError for another number of them, or what is no permutation.
        """
        own = self.permutations()
        if len(orders) != len(own):
            raise OptionError("orders", f"{len(orders)} given; this model uses {len(own)} in one forward pass")
        for module, order in zip(own, orders, strict=True):
            module.set(order)


def aliases(config: SReTConfig) -> dict[str, str]:
    """Further names of shared modules in the authors' files -> the one they have here, both without trailing dot."""
    found = {}
    for stage, depth in enumerate(config.depths):
        for number in range(depth):
            if turn := number % config.loops(stage):
                place = f"transformers.{stage}.blocks"
                found[f"{place}.{2 * number}"] = f"{place}.{2 * (number - turn)}"
    return found
