# SPDX-License-Identifier: Apache-2.0
"""What TinyBERT's step adds for texts: a first distillation on text without labels, and variants of the sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from . import texting
from .beginning import check_teacher, start
from .data.text import TextBatches, lines_of
from .data.text_augment import embedding_of, word_swaps
from .errors import InputError, OptionError
from .fitting import trained
from .methods.tinybert import TinyBERT
from .work import Work


def generally(
    work: Work, model: nn.Module, file: str, options: Mapping[str, Any], *, epochs: int, lr: float | None
) -> nn.Module:
    """The model after learning the inner life of the teacher as it came, on texts without labels (TinyBERT, 3.2)."""
    spec = work.recipe.teacher
    if spec is None:
        raise OptionError("general", "the recipe does not name the teacher whose first form teaches")

    def make() -> nn.Module:
        teacher = start(spec, work).eval()
        check_teacher(work, teacher)
        method = TinyBERT(teacher, stage=1.0, **options)
        return trained(work, model, (method,), epochs, None, lr, texts=_unlabelled(work, model, file))

    return work.once("general", make)


def _unlabelled(work: Work, model: nn.Module, file: str) -> TextBatches:
    """Batches of a file's lines, with targets that nobody looks at."""
    lines = lines_of(file)
    if not lines:
        raise InputError(file, "empty", "has no texts; give one a line")
    plan, tokens = work.recipe, texting.tokens_of(model)
    longest = min(n for n in (plan.text.max_length, tokens.settings.max_length) if n is not None)
    rows = [tokens.encode(line, max_length=longest)[0] for line in lines]
    names = ("start", "end") if plan.task == texting.ASK else ("label",)
    targets: dict[str, Sequence[int]] = {name: [0] * len(rows) for name in names}
    known: dict[str, Any] = {"batch_size": plan.train.batch_size, "seed": plan.seed, "alike": plan.text.alike}
    return TextBatches(tokens, rows, targets, **known)


def with_variants(work: Work, model: nn.Module, count: int, limit: int | None) -> TextBatches:
    """The training sentences, and of each so many with words swapped for their neighbors in the teacher's embedding."""
    plan, tokens = work.recipe, texting.tokens_of(model)
    known: dict[str, Any] = {"shuffle": True, "alike": plan.text.alike}
    plain = texting.read(work.data.train[: limit or plan.train.images], tokens, plan, **known)
    vary = word_swaps(tokens, embedding_of(work.teacher or model), plain.encodings, seed=plan.seed)
    known |= {"batch_size": plan.train.batch_size, "seed": plan.seed, "variants": count, "vary": vary}
    return TextBatches(tokens, plain.encodings, plain.targets, **known)
