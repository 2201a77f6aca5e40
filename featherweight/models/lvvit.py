# SPDX-License-Identifier: Apache-2.0
"""LV-ViT: a convolutional stem, scaled residuals and a head on every token (Jiang 2021, 2104.10858).

Parameter names and layouts are those of the authors' code, so their checkpoints load by name. The loss that teaches the
tokens, and the label maps it needs, are a method (`methods.token_labelling`). Not here: the blocks of attention or MLP
alone and the grouped layers that their code offers and no released model uses.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..convs import folded_pairs, fused
from ..errors import OptionError
from ..layers import AuxLogits, draw_box, swap_box
from ..surgery import Aside
from . import vit


@dataclass(frozen=True)
class LVViTConfig:
    image_size: tuple[int, int] = (224, 224)  # (H, W), multiples of patch_size
    patch_size: int = 16  # even: the stem halves the resolution, one convolution does the rest
    in_chans: int = 3
    num_classes: int = 1000
    embed_dim: int = 384
    depth: int = 16
    num_heads: int = 6
    mlp_ratio: float = 3.0
    stem_width: int = 64
    skip_lam: float = 2.0  # what the residual branches are divided by
    qkv_bias: bool = False
    norm_eps: float = 1e-5  # PyTorch's, not DeiT's 1e-6
    init: str = "deit"  # as ViTConfig's; "xavier" begins with a silent auxiliary head
    position: str = "learned"  # as ViTConfig's
    drop_rate: float = 0.0
    drop_path_rate: float = 0.0  # of the last block; the others on a line from 0
    mix_token: bool = False  # training mixes each batch, which only the loss of token labelling knows of

    def __post_init__(self) -> None:
        if self.patch_size < 2 or self.patch_size % 2:
            raise OptionError("patch_size", f"{self.patch_size} is not an even number: the stem halves the resolution")
        object.__setattr__(self, "image_size", self.transformer.image_size)
        for name in ("stem_width", "skip_lam"):
            if not getattr(self, name) > 0:
                raise OptionError(name, f"{getattr(self, name)!r} is not above 0")

    @property
    def transformer(self) -> vit.ViTConfig:
        """What the blocks and the grid have in common with a ViT's."""
        shared = {name: getattr(self, name) for name in vit.ViTConfig.__dataclass_fields__ if hasattr(self, name)}
        return vit.ViTConfig(**shared)

    @property
    def grid(self) -> tuple[int, int]:
        return self.transformer.grid


class PatchEmbed(nn.Module):
    """Image (B, 3, H, W) -> map of patches (B, C, H / patch, W / patch)."""

    def __init__(self, config: LVViTConfig) -> None:
        super().__init__()
        width, rest = config.stem_width, config.patch_size // 2
        self.conv1 = nn.Conv2d(config.in_chans, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.proj = nn.Conv2d(width, config.embed_dim, rest, stride=rest)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        x = F.relu(self.bn3(self.conv3(x)))
        return self.proj(x)


fused.register(PatchEmbed)(folded_pairs)


class Block(vit.Block):
    """A ViT's block whose residual branches are divided by `skip_lam`."""

    def __init__(self, config: LVViTConfig, drop_path: float) -> None:
        super().__init__(config.transformer, drop_path)
        self.skip_lam = config.skip_lam

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x), mask)) / self.skip_lam
        return x + self.drop_path(self.mlp(self.norm2(x))) / self.skip_lam


class LVViT(nn.Module):
    """Image (B, 3, H, W) -> logits (B, K): the class token's, in evaluation with half the largest of the tokens'."""

    num_prefix_tokens = 1

    def __init__(self, config: LVViTConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.embed_dim
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        if config.position == "none":
            self.pos_embed = None
        elif config.position == "learned":
            self.pos_embed = nn.Parameter(torch.zeros(1, 1 + math.prod(config.grid), dim))
        else:
            self.register_buffer("pos_embed", vit.sinusoidal(config.grid, dim, 1), persistent=False)
        self.patch_embed = PatchEmbed(config)
        self.pos_drop = nn.Dropout(config.drop_rate)
        last = max(1, config.depth - 1)
        self.blocks = nn.ModuleList([Block(config, config.drop_path_rate * i / last) for i in range(config.depth)])
        self.norm = nn.LayerNorm(dim, eps=config.norm_eps)
        self.head = nn.Linear(dim, config.num_classes)
        self.aux_head = nn.Linear(dim, config.num_classes)
        self.aux_logits = AuxLogits(config.mix_token)
        vit.init_weights(self, config.init)
        if config.init == "xavier":  # larger than 0.02: what no loss teaches must not speak in evaluation
            nn.init.zeros_(self.aux_head.weight)

    @property
    def aside(self) -> Aside:
        """After a step of training: `aux_logits` (B, N, K) and the `box` of mix-token, or None."""
        return self.aux_logits.aside

    def forward(self, x: Tensor, box: Sequence[int] | None = None) -> Tensor:
        """`box`, for training: mix-token's (top, left, bottom, right) in tokens, in place of one drawn at random."""
        if tuple(x.shape[-2:]) != self.config.image_size:
            raise ValueError(f"image of {tuple(x.shape[-2:])} given to a model for {self.config.image_size}")
        x = self.patch_embed(x).flatten(2).transpose(1, 2)  # (B, N, C)
        mixed = self._box(box, x)
        if mixed is not None:
            x = swap_box(x, mixed, self.config.grid)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)  # (B, 1 + N, C)
        x = self.pos_drop(x if self.pos_embed is None else x + self.pos_embed)  # type: ignore[operator]
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        logits, aux = self.head(x[:, 0]), self.aux_head(x[:, 1:])  # (B, K), (B, N, K); N: the tokens that are left
        if mixed is not None:
            if aux.shape[1] != math.prod(self.config.grid):
                raise ValueError(f"mix-token needs all tokens in training; {aux.shape[1]} are left: turn mix_token off")
            aux = swap_box(aux, mixed, self.config.grid)
        return self.aux_logits(logits, aux, mixed)

    def _box(self, given: Sequence[int] | None, x: Tensor) -> Tensor | None:
        """The part of the grid that this batch takes from its reverse."""
        if not self.training or (given is None and not self.aux_logits.mix_token):
            return None
        return draw_box(self.config.grid, x.device) if given is None else torch.tensor(given, device=x.device)
