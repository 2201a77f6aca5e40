# SPDX-License-Identifier: Apache-2.0
"""What a classifier says of each place of a picture, not only of the whole: the teacher's side of token labelling.

A convolutional network's classifier is applied to each place of the last map in place of its mean (Yun 2021, ReLabel,
2101.05022); a transformer's to each token. Not here: networks whose classifier reads the places in order (VGG's), which
have no answer for one place alone.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from ..anatomy import Anatomy, anatomy_of, prefix_of
from ..errors import OptionError
from ..surgery import submodule, watching

CLOSE = 1e-3  # of the largest number, between a pooled map and what the classifier was given


def dense_logits(teacher: nn.Module, images: Tensor) -> Tensor:
    """Images (B, 3, H, W) -> logits of each place (B, K, h, w), by the teacher in the mode it is in.

    Raises OptionError for a teacher that cannot be asked about a place.
    """
    try:
        anatomy = anatomy_of(teacher)
    except TypeError:
        anatomy = None
    if anatomy is not None and anatomy.aux_head:
        with watching(teacher, anatomy.aux_head) as seen:
            teacher(images)
        return as_map(seen[-1], images)
    if callable(getattr(teacher, "forward_features", None)) and callable(getattr(teacher, "forward_head", None)):
        return _by_head(teacher, images)
    return _by_token(teacher, anatomy, images) if anatomy is not None else _by_pooling(teacher, images)


def as_map(logits: Tensor, images: Tensor) -> Tensor:
    """Logits of tokens (B, N, K), row by row -> (B, K, h, w)."""
    return logits.transpose(1, 2).unflatten(2, grid_of(logits.shape[1], images))


def grid_of(count: int, images: Tensor) -> tuple[int, int]:
    """The grid (h, w) of square patches that so many tokens of these images (B, 3, H, W) make; OptionError if none."""
    height, width = images.shape[-2:]
    rows = round(math.sqrt(count * height / width))
    columns = count // max(1, rows)
    if rows * columns != count or height * columns != width * rows:
        text = f"{count} tokens of a picture of {height} x {width} are no grid; were some dropped or merged?"
        raise OptionError("token_labelling", text)
    return rows, columns


def _by_head(teacher: Any, images: Tensor) -> Tensor:
    """timm's two halves: the second is given each place as if it were the whole map."""
    features = teacher.forward_features(images)
    if features.ndim == 3:
        prefix = int(getattr(teacher, "num_prefix_tokens", 0))
        tokens = features[:, prefix:]  # (B, N, C)
        alone = tokens.flatten(0, 1)[:, None].expand(
            -1, prefix + 1, -1
        )  # whichever token the head reads, it is this one
        return as_map(teacher.forward_head(alone).unflatten(0, tokens.shape[:2]), images)
    first = features.shape[1] == teacher.num_features  # channels first, or last as in Swin
    places = features.permute(0, 2, 3, 1) if first else features  # (B, h, w, C)
    alone = places.flatten(0, 2)
    alone = alone[:, :, None, None] if first else alone[:, None, None]
    return teacher.forward_head(alone).unflatten(0, places.shape[:3]).permute(0, 3, 1, 2)


def _by_token(teacher: nn.Module, anatomy: Anatomy, images: Tensor) -> Tensor:
    """The classifier of a described transformer, on every token behind the prefix."""
    head = submodule(teacher, anatomy.head)
    head = getattr(head, "head", head)  # of a model that was given a distillation token: the class token's
    with watching(teacher, anatomy.norm) as seen:
        teacher(images)
    return as_map(head(seen[-1][:, prefix_of(teacher) :]), images)


def _by_pooling(teacher: nn.Module, images: Tensor) -> Tensor:
    """Of any other network: the last layer, where what it gets is the mean of a map, on that map."""
    maps: list[Tensor] = []
    layers: list[tuple[nn.Linear, Tensor, Tensor]] = []

    def note(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if isinstance(module, nn.Linear):
            layers.append((module, args[0], output))
        elif isinstance(output, Tensor) and output.ndim == 4 and output.shape[2] * output.shape[3] > 1:
            maps[:] = [*maps[-3:], output]

    hooks = [module.register_forward_hook(note) for module in teacher.modules()]
    try:
        answer = teacher(images)
    finally:
        for hook in hooks:
            hook.remove()
    if layers and isinstance(answer, Tensor) and _same(layers[-1][2], answer):
        layer, pooled, _ = layers[-1]
        for features in reversed(maps):
            if _same(features.mean((2, 3)), pooled):
                return layer(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    text = f"{type(teacher).__name__} has no last map whose mean the classifier reads"
    raise OptionError("teacher", f"{text}; give `dense`, a function of your own")


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(((a - b).abs() <= CLOSE * b.abs().amax() + 1e-6).all())
