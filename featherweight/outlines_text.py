# SPDX-License-Identifier: Apache-2.0
"""What the steps of texts make of a model's structure, for `explain`: like those of `outlines`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from . import texting
from .data.corpus import Corpus
from .data.text import words_of
from .methods import share, vocabulary
from .models import pretrained
from .runtime.tokens import Tokens
from .surgery import apply, replaying
from .tasks.text import QuestionAnswering, TextClassification

if TYPE_CHECKING:
    from .explain import Outline
    from .recipe import Recipe

Options = Mapping[str, Any]


@dataclass(frozen=True)
class Reading:
    """How the texts of a recipe are read on their way through it."""

    plan: Recipe
    tokens: Tokens
    corpus: Corpus | None  # None where the data is not there

    def example(self) -> dict[str, Tensor]:
        """A validation text of middling length, (1, N) each; without data one as long as the recipe allows."""
        if self.corpus is not None:
            some = self.corpus.val[: texting.AT_ONCE]
            return texting.middling(texting.read(some, self.tokens, self.plan, batch_size=1, shuffle=False))
        settings, longest = self.tokens.settings, self.plan.text.max_length
        shape = (1, min(longest, settings.max_length or longest))
        values = {"input_ids": settings.cls_id or 0, "token_type_ids": 0, "attention_mask": 1}
        return {name: torch.full(shape, values[name]) for name in settings.inputs}

    @property
    def task(self) -> TextClassification | QuestionAnswering:
        """How the model is called."""
        return QuestionAnswering() if self.plan.task == texting.ASK else TextClassification(2)


def reading(plan: Recipe, model: nn.Module, corpus: Corpus | None) -> Reading:
    """How a recipe's model reads its texts. OptionError for a model without a tokenizer."""
    return Reading(plan, texting.tokens_of(model).with_longest(pretrained.longest_of(model)), corpus)


def fewer_words(outline: Outline, options: Options) -> Outline:
    """With the tokens of the training texts, where those are there."""
    read = outline.reading
    if read is None or read.corpus is None:
        raise LookupError("it depends on the training texts, which are not here")
    texts = [text for one in read.corpus.train for text in words_of(one)]
    keep = vocabulary.kept(read.tokens, texts, least=options["least"])
    new = outline.changed(lambda model: apply(model, vocabulary.plan(model, keep=keep)))
    return dataclasses.replace(new, reading=dataclasses.replace(read, tokens=vocabulary.narrowed(read.tokens, keep)))


def embeddings(outline: Outline, options: Options) -> Outline:
    """With codes for embeddings; k-means may find that fewer values do."""

    def change(model: nn.Module) -> nn.Module:
        paths = [path for path, layer in model.named_modules() if type(layer) is nn.Embedding]
        edits = share.plan(model, bits=dict.fromkeys(paths, options["bits"]))
        with replaying():
            return apply(model, edits)

    return outline.changed(change, estimated=True)
