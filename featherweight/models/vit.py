# SPDX-License-Identifier: Apache-2.0
"""Vision Transformer, plain and distilled (Dosovitskiy 2020, 2010.11929; Touvron 2021, 2012.12877).

Parameter names, layouts and initialization are those of DeiT and timm, so their checkpoints load by name. Not here:
token sparsification and merging (methods), the convolutional stem (LV-ViT).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import OptionError
from ..layers import DropPath, TwoHeads


@dataclass(frozen=True)
class ViTConfig:
    image_size: tuple[int, int] = (224, 224)  # (H, W), multiples of patch_size
    patch_size: int = 16
    in_chans: int = 3
    num_classes: int = 1000
    embed_dim: int = 192
    depth: int = 12
    num_heads: int = 3
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    norm_eps: float = 1e-6  # DeiT's, not PyTorch's 1e-5
    stem: str = "patch"  # one convolution per patch; "conv": 3x3 convolutions of stride 2 up to the patch size
    distilled: bool = False  # a distillation token after the class token, and a second head
    init: str = "deit"  # linear layers: normal 0.02; "xavier": learns much sooner where embed_dim is small
    position: str = "learned"  # or "sinusoidal": fixed, 2-D; or "none"
    drop_rate: float = 0.0
    drop_path_rate: float = 0.0  # of the last block; the others on a line from 0

    def __post_init__(self) -> None:
        size = (self.image_size, self.image_size) if isinstance(self.image_size, int) else tuple(self.image_size)
        object.__setattr__(self, "image_size", size)
        if len(size) != 2 or min(size) < self.patch_size or any(s % self.patch_size for s in size):
            raise OptionError("image_size", f"{size} is not a pair of multiples of patch_size {self.patch_size}")
        if self.embed_dim % self.num_heads:
            raise OptionError("num_heads", f"{self.num_heads} does not divide embed_dim {self.embed_dim}")
        if self.position not in ("learned", "sinusoidal", "none"):
            raise OptionError("position", f"{self.position!r} is not one of learned, sinusoidal, none")
        if self.init not in ("deit", "xavier"):
            raise OptionError("init", f"{self.init!r} is not one of deit, xavier")
        if self.stem not in ("patch", "conv"):
            raise OptionError("stem", f"{self.stem!r} is not one of patch, conv")
        if self.stem == "conv" and (self.patch_size < 2 or self.patch_size & (self.patch_size - 1)):
            raise OptionError("stem", f"conv needs a patch_size that is a power of 2, not {self.patch_size}")

    @property
    def grid(self) -> tuple[int, int]:
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size


class PatchEmbed(nn.Module):
    """Image (B, 3, H, W) -> tokens (B, N, C), row by row."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        patch, dim = config.patch_size, config.embed_dim
        self.stem: nn.Module | None = None
        if config.stem == "conv":
            self.stem = conv_stem(config.in_chans, dim, halvings=patch.bit_length() - 1)
        self.proj = nn.Conv2d(dim, dim, 1) if self.stem else nn.Conv2d(config.in_chans, dim, patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        if self.stem is not None:
            x = self.stem(x)
        return self.proj(x).flatten(2).transpose(1, 2)


def conv_stem(in_chans: int, dim: int, *, halvings: int) -> nn.Sequential:
    """3x3 convolutions of stride 2, widths doubling to `dim`: learns sooner than one per patch (Xiao 2021, 2106.14881).

    Without the paper's batch norm, so that nothing waits to be folded away.
    """
    widths = [in_chans, *(max(8, dim >> (halvings - 1 - i)) for i in range(halvings))]
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Conv2d(inputs, outputs, 3, 2, 1), nn.ReLU()]
    return nn.Sequential(*layers)


class Attention(nn.Module):
    """Tokens (B, N, C) -> (B, N, C). The mask is added to the scores and broadcast to (B, h, N, N)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.head_dim = config.embed_dim // config.num_heads
        self.qkv = nn.Linear(config.embed_dim, 3 * config.embed_dim, bias=config.qkv_bias)
        self.proj = nn.Linear(config.embed_dim, config.embed_dim)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        b, n, _ = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)  # (B, h, N, d)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.proj(x.transpose(1, 2).reshape(b, n, self.num_heads * self.head_dim))


class Mlp(nn.Module):
    """Tokens (B, N, C) -> (B, N, C)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        hidden = int(config.embed_dim * config.mlp_ratio)
        self.fc1 = nn.Linear(config.embed_dim, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, config.embed_dim)
        self.drop = nn.Dropout(config.drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))


class Block(nn.Module):
    """Pre-norm attention and MLP, each on a residual branch."""

    def __init__(self, config: ViTConfig, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.embed_dim, eps=config.norm_eps)
        self.attn = Attention(config)
        self.norm2 = nn.LayerNorm(config.embed_dim, eps=config.norm_eps)
        self.mlp = Mlp(config)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x), mask))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class VisionTransformer(nn.Module):
    """Image (B, 3, H, W) -> logits (B, K)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.embed_dim
        self.num_prefix_tokens = 2 if config.distilled else 1
        self.patch_embed = PatchEmbed(config)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        if config.distilled:
            self.dist_token = nn.Parameter(torch.zeros(1, 1, dim))
        if config.position == "none":
            self.pos_embed = None
        elif config.position == "learned":
            self.pos_embed = nn.Parameter(torch.zeros(1, self.num_prefix_tokens + math.prod(config.grid), dim))
        else:
            self.register_buffer("pos_embed", sinusoidal(config.grid, dim, self.num_prefix_tokens), persistent=False)
        self.pos_drop = nn.Dropout(config.drop_rate)
        last = max(1, config.depth - 1)
        self.blocks = nn.ModuleList([Block(config, config.drop_path_rate * i / last) for i in range(config.depth)])
        self.norm = nn.LayerNorm(dim, eps=config.norm_eps)
        self.head = nn.Linear(dim, config.num_classes)
        if config.distilled:
            self.head_dist = nn.Linear(dim, config.num_classes)
            self.two_heads = TwoHeads()
        init_weights(self, config.init)

    def forward(self, x: Tensor) -> Tensor:
        if tuple(x.shape[-2:]) != self.config.image_size:
            raise ValueError(f"image of {tuple(x.shape[-2:])} given to a model for {self.config.image_size}")
        x = self.patch_embed(x)  # (B, N, C)
        prefix = [self.cls_token] + ([self.dist_token] if self.config.distilled else [])
        x = torch.cat([token.expand(x.shape[0], -1, -1) for token in prefix] + [x], dim=1)  # (B, P + N, C)
        x = self.pos_drop(x if self.pos_embed is None else x + self.pos_embed)  # type: ignore[operator]
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        logits = self.head(x[:, 0])
        return self.two_heads(logits, self.head_dist(x[:, 1])) if self.config.distilled else logits


@torch.no_grad()
def init_weights(model: nn.Module, how: str) -> None:
    """Linear, tokens, positions: normal 0.02 cut at 2; biases 0; convolutions keep PyTorch's default."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            if how == "xavier":
                nn.init.xavier_uniform_(module.weight)
            else:
                nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for name, parameter in model.named_parameters(recurse=False):
        if name in ("cls_token", "dist_token", "pos_embed"):
            nn.init.trunc_normal_(parameter, std=0.02)


def sinusoidal(grid: tuple[int, int], dim: int, prefix: int) -> Tensor:
    """Fixed 2-D positions (1, prefix + N, C): a quarter of the channels each for sine and cosine of row and column.

    Prefix tokens get zeros. Raises OptionError where 4 does not divide `dim`.
    """
    if dim % 4:
        raise OptionError("embed_dim", f"{dim} is not a multiple of 4, which sinusoidal positions need")
    omega = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    angles = [axis.flatten()[:, None] * omega[None] for axis in (rows, columns)]  # 2 x (N, C / 4)
    table = torch.cat([f(angle) for angle in angles for f in (torch.sin, torch.cos)], dim=1).float()
    return torch.cat([torch.zeros(prefix, dim), table])[None]
