# SPDX-License-Identifier: Apache-2.0
"""TinyBERT (Jiao 2020, 1909.10351): a transformer with fewer, narrower blocks learns its teacher's inner life.

Each of the student's blocks is given one of the teacher's, evenly spaced, and learns its attention scores before the
softmax and, through a learned projection, the tokens it puts out; the tokens that enter the first block are learned the
same way. First that alone, then the teacher's answer (Hinton, T = 1). Works on every described transformer, of pictures
and of text; padding (`attention_mask` of the batch) does not count. With stage 1 it is the general distillation on text
without labels that the paper puts before; its augmentation is `data.text_augment`. Not here: teachers of another number
of heads (minilm).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..anatomy import anatomy_of, blocks_of, embed_dim
from ..errors import OptionError
from ..method import Method, Pass
from ..surgery import submodule
from .distill import Distance, share, soft_cross_entropy
from .features import Ears, asked, entering, listened
from .listening import without

NAME = "tinybert"


class Projections(Ears):
    """What was heard, and how tokens of the student become as wide as the teacher's."""

    def __init__(self, student: int, teacher: int) -> None:
        super().__init__()
        self.hidden = nn.Identity() if student == teacher else nn.Linear(student, teacher)
        self.embedding = nn.Identity() if student == teacher else nn.Linear(student, teacher)


def layers_of(block: str, anatomy: Any) -> list[str]:
    """Paths of the projections to queries, keys and values: one layer or three."""
    return [f"{block}.{path}" for path in anatomy.qkv]


def parts_of(found: Mapping[str, Tensor], layers: list[str]) -> tuple[Tensor, ...]:
    """What they put out, as queries, keys and values (B, N, C)."""
    return found[layers[0]].chunk(3, -1) if len(layers) == 1 else tuple(found[layer] for layer in layers)


def heads_of(model: nn.Module, block: str) -> int:
    """How many attention heads the block at a path has."""
    anatomy = anatomy_of(model)
    return int(getattr(submodule(model, f"{block}.{anatomy.attention}"), anatomy.num_heads))


def scores(queries: Tensor, keys: Tensor, heads: int) -> Tensor:
    """Queries and keys (B, N, C) -> attention scores before the softmax (B, h, N, N)."""
    q, k = (x.float().unflatten(-1, (heads, -1)).transpose(1, 2) for x in (queries, keys))  # (B, h, N, d)
    return q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])


def masked_mse(student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
    """Mean squared difference; mask, broadcast to their shape, is 1 where it counts."""
    if student.shape != teacher.shape:
        shapes = f"{list(student.shape)} of the student and {list(teacher.shape)} of the teacher"
        raise OptionError("teacher", f"{shapes} cannot be compared: as many tokens are needed")
    squares = (student.float() - teacher.float()).square()
    if mask is None:
        return squares.mean()
    weights = mask.to(squares).expand_as(squares)
    return (squares * weights).sum() / weights.sum().clamp(min=1)


def evenly(student: int, teacher: int) -> list[int]:
    """For each of the student's blocks the teacher's, counted from 0: TinyBERT's g(m) = m N / M, ends together."""
    return [math.ceil((block + 1) * teacher / student) - 1 for block in range(student)]


@dataclass(frozen=True)
class TinyBERT(Method):
    """Attention, tokens and embeddings for the first `stage` of the run, then (1 - alpha) * task + alpha * distance.

    stage None: all of it, all the time. attention, hidden, embedding: weights of the parts, where 0 leaves one out; all
    0 with alpha 0 and no stage is plain training. Raises TypeError for a model that nobody described, OptionError for a
    teacher with another number of heads (attention) or fewer blocks. mapping: for each of the student's blocks the
    one of the teacher's that it learns from, counted from 0 or, with -1, from the end; evenly spaced unless given.
    """

    teacher: nn.Module
    attention: float = 1.0
    hidden: float = 1.0
    embedding: float = 1.0
    alpha: float = 1.0
    temperature: float = 1.0
    stage: float | None = 0.5
    distance: Distance = soft_cross_entropy
    mapping: Sequence[int] | None = None

    def __post_init__(self) -> None:
        for name in ("attention", "hidden", "embedding"):
            if not getattr(self, name) >= 0:
                raise OptionError(name, f"{getattr(self, name)!r} is not 0 or more")
        if not 0 <= self.alpha <= 1:
            raise OptionError("alpha", f"{self.alpha!r} is not in 0..1; it is the teacher's share of the loss")
        if not self.temperature > 0:
            raise OptionError("temperature", f"{self.temperature!r} is not above 0")
        if self.stage is not None and not 0 <= self.stage <= 1:
            raise OptionError("stage", f"{self.stage!r} is not a share of the run, 0..1; None is all the time")
        anatomy_of(self.teacher)

    def prepare(self, model: nn.Module) -> nn.Module:
        mine, theirs = list(blocks_of(model)), list(blocks_of(self.teacher))
        if self.mapping is not None and len(self.mapping) != len(mine):
            raise OptionError("mapping", f"has {len(self.mapping)} places for the student's {len(mine)} blocks")
        if self.mapping is not None and any(not -len(theirs) <= place < len(theirs) for place in self.mapping):
            raise OptionError("mapping", f"{list(self.mapping)}: the teacher has {len(theirs)} blocks, from 0 on")
        if self.mapping is None and len(theirs) < len(mine):
            raise OptionError("teacher", f"has {len(theirs)} blocks, the student {len(mine)}; it needs as many or more")
        for block, like in self._pairs(model) if self.attention else ():
            heads, wanted = heads_of(model, block), heads_of(self.teacher, like)
            if heads != wanted:
                text = f"has {wanted} heads in {like}, the student {heads} in {block}; say attention 0, or use minilm"
                raise OptionError("teacher", text)
        ears = Projections(embed_dim(model), embed_dim(self.teacher))
        anatomy = anatomy_of(model)
        paths = [*mine, *(layer for block in mine for layer in layers_of(block, anatomy))]
        return listened(model, NAME, ears, paths, inputs=mine[:1])

    def loss(self, terms: dict[str, Tensor], run: Pass) -> dict[str, Tensor]:
        ears: Any = getattr(run.model, NAME)
        answer, inner = self._inner(ears, run)
        if self.stage is not None and run.progress < self.stage:
            return {**{name: 0.0 * term for name, term in terms.items()}, **inner}
        if self.stage is not None:
            inner = {name: 0.0 * term for name, term in inner.items()}
        return {**share(terms, run, self.alpha, self.distance(run.output, answer, self.temperature)), **inner}

    def _inner(self, ears: Projections, run: Pass) -> tuple[Tensor, dict[str, Tensor]]:
        """The teacher's answer, and the weighted distances of what is inside the two."""
        pairs = self._pairs(run.model)
        mine, theirs = [block for block, _ in pairs], [like for _, like in pairs]
        one, other = anatomy_of(run.model), anatomy_of(self.teacher)
        paths = [*theirs, *(layer for block in theirs for layer in layers_of(block, other))]
        first = next(iter(blocks_of(self.teacher)))
        answer, found = asked(run, self.teacher, paths, inputs=[first])
        layers = [layer for block in mine for layer in layers_of(block, one)]
        heard = {name: ears.take(name) for name in (*mine, *layers, entering(mine[0]))}
        mask = run.batch.get("attention_mask")
        rows = None if mask is None else mask[:, :, None]  # (B, N, 1)
        attention, hidden = [], []
        for block, like in pairs:
            hidden.append(masked_mse(ears.hidden(heard[block]), found[like], rows))
            if self.attention:
                heads = heads_of(run.model, block)
                both = None if mask is None else (mask[:, None, :, None] * mask[:, None, None, :])
                mine_q, mine_k, _ = parts_of(heard, layers_of(block, one))
                their_q, their_k, _ = parts_of(found, layers_of(like, other))
                pair = scores(mine_q, mine_k, heads), scores(their_q, their_k, heads)
                attention.append(masked_mse(*pair, both))
        embedded = masked_mse(ears.embedding(heard[entering(mine[0])]), found[entering(first)], rows)
        inner = {"hidden": self.hidden * torch.stack(hidden).sum(), "embedding": self.embedding * embedded}
        return answer, {**inner, **({"attention": self.attention * torch.stack(attention).sum()} if attention else {})}

    def _pairs(self, model: nn.Module) -> list[tuple[str, str]]:
        """Paths of the student's blocks and of those they learn from."""
        mine, theirs = list(blocks_of(model)), list(blocks_of(self.teacher))
        places = evenly(len(mine), len(theirs)) if self.mapping is None else self.mapping
        return [(block, theirs[place]) for block, place in zip(mine, places, strict=True)]

    def finish(self, model: nn.Module) -> nn.Module:
        return without(model, NAME)
