# SPDX-License-Identifier: Apache-2.0
"""MiniLM's self-attention relations (Wang 2021, 2012.15828): how a block's tokens are alike, not what they are.

Queries, keys and values of one block, each split into relation heads, are compared among themselves: the softmax of
Q Qᵀ, K Kᵀ and V Vᵀ, and a KL from the teacher's to the student's. Student and teacher may differ in width, depth and
number of heads, and nothing is projected. Works on every described transformer, of pictures and of text; padding
(`attention_mask` of the batch) does not count. Not here: unlabelled text, on which the paper trains.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..anatomy import anatomy_of, blocks_of
from ..errors import OptionError
from ..method import Method, Pass
from ..surgery import submodule
from .features import Ears, asked, listened
from .listening import without
from .tinybert import heads_of, layers_of, parts_of

NAME = "minilm"


def relation(x: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """Vectors (B, N, C) -> log-probabilities (B, R, N, N) of how each is alike to the others; mask (B, N) of those."""
    x = x.float().unflatten(-1, (heads, -1)).transpose(1, 2)  # (B, R, N, C / R)
    found = x @ x.transpose(-2, -1) / math.sqrt(x.shape[-1])
    if mask is not None:
        found = found.masked_fill(mask[:, None, None, :] == 0, -1e4)
    return found.log_softmax(-1)


def relation_distance(student: Tensor, teacher: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """KL(teacher || student) of the relations, mean over samples, relation heads and the tokens that count."""
    mine, theirs = relation(student, heads, mask), relation(teacher, heads, mask)
    rows = F.kl_div(mine, theirs, reduction="none", log_target=True).sum(-1)  # (B, R, N)
    if mask is None:
        return rows.mean()
    weights = mask[:, None].to(rows).expand_as(rows)
    return (rows * weights).sum() / weights.sum().clamp(min=1)


@dataclass(frozen=True)
class MiniLM(Method):
    """The task's loss + weight * the distances of queries', keys' and values' relations. weight 0 is plain training.

    student, teacher_block: which blocks, counted from 0 or, with -1, from the end; the paper takes a block before the
    last of large teachers. relation_heads: R, which divides both widths; the student's heads unless given.
    """

    teacher: nn.Module
    weight: float = 1.0
    student_block: int = -1
    teacher_block: int = -1
    relation_heads: int | None = None

    def __post_init__(self) -> None:
        if not self.weight >= 0:
            raise OptionError("weight", f"{self.weight!r} is not 0 or more")
        _block(self.teacher, self.teacher_block, "teacher_block")

    def prepare(self, model: nn.Module) -> nn.Module:
        block, anatomy = _block(model, self.student_block, "student_block"), anatomy_of(model)
        heads = self._relation_heads(model)
        other = _block(self.teacher, self.teacher_block, "teacher_block")
        for owner, path in ((model, block), (self.teacher, other)):
            width = _width(owner, path)
            if width % heads:
                text = f"{heads} does not divide the width {width} of {path} in {type(owner).__name__}"
                raise OptionError("relation_heads", text)
        return listened(model, NAME, Ears(), layers_of(block, anatomy))

    def loss(self, terms: dict[str, Tensor], run: Pass) -> dict[str, Tensor]:
        ears: Any = getattr(run.model, NAME)
        mine = layers_of(_block(run.model, self.student_block, "student_block"), anatomy_of(run.model))
        like = layers_of(_block(self.teacher, self.teacher_block, "teacher_block"), anatomy_of(self.teacher))
        _, found = asked(run, self.teacher, like)
        ours = parts_of({layer: ears.take(layer) for layer in mine}, mine)
        theirs = parts_of(found, like)
        if ours[0].shape[:2] != theirs[0].shape[:2]:
            text = f"has {theirs[0].shape[1]} tokens, the student {ours[0].shape[1]}; as many are needed"
            raise OptionError("teacher", text)
        heads, mask = self._relation_heads(run.model), run.batch.get("attention_mask")
        apart = [relation_distance(a, b, heads, mask) for a, b in zip(ours, theirs, strict=True)]
        return {**terms, "relations": self.weight * torch.stack(apart).sum()}

    def finish(self, model: nn.Module) -> nn.Module:
        return without(model, NAME)

    def _relation_heads(self, model: nn.Module) -> int:
        if self.relation_heads is not None:
            return self.relation_heads
        return heads_of(model, _block(model, self.student_block, "student_block"))


def _block(model: nn.Module, number: int, where: str) -> str:
    """The path of a block."""
    paths = list(blocks_of(model))
    if not -len(paths) <= number < len(paths):
        raise OptionError(where, f"no block {number}: {type(model).__name__} has {len(paths)}")
    return paths[number]


def _width(model: nn.Module, block: str) -> int:
    """Of a block's queries."""
    anatomy = anatomy_of(model)
    layer: Any = submodule(model, layers_of(block, anatomy)[0])
    return int(layer.out_features) // (1 if len(anatomy.qkv) == 3 else 3)
