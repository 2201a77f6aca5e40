# SPDX-License-Identifier: Apache-2.0
"""More training texts out of the given ones: words swapped for words that stand near them in an embedding.

TinyBERT's augmentation (Jiao 2020, 1909.10351, algorithm 1), in which a word is replaced with probability p_t by one of
K candidates, N_a times for each text. Candidates are the nearest words in the teacher's own embedding, where the paper
takes GloVe's and, of words that are one token, those that a masked language model proposes. Only whole words of one
token are swapped, so that a text keeps its length; what a variant is follows from the seed and its number alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from featherweight.errors import OptionError
from featherweight.runtime.tokens import Tokens
from featherweight.runtime.wordpiece import Encoding

CANDIDATES, SHARE = 15, 0.4  # K and p_t of the paper
AT_ONCE = 512  # tokens whose neighbors are looked for together


@dataclass(frozen=True)
class WordSwaps:
    """Encoding and number of the variant -> the variant. `near`: token -> the tokens that may stand in its place."""

    near: dict[int, tuple[int, ...]]
    share: float = SHARE
    seed: int = field(default=0, kw_only=True)

    def __call__(self, one: Encoding, number: int) -> Encoding:
        random = np.random.default_rng((self.seed, number))
        draws, picks = random.random(len(one.ids)), random.integers(0, 1 << 30, len(one.ids))
        ids = list(one.ids)
        for place, (token, sequence, word) in enumerate(zip(one.ids, one.sequences, one.words, strict=True)):
            alone = [w for w in one.words[max(0, place - 1) : place + 2] if w == word] == [word]
            near = self.near.get(token, ())
            if sequence is not None and alone and near and draws[place] < self.share:
                ids[place] = near[int(picks[place]) % len(near)]
        return one._replace(ids=ids)


def word_swaps(
    tokens: Tokens, embedding: Tensor, used: Iterable[Encoding], *, count: int = CANDIDATES, seed: int = 0
) -> WordSwaps:
    """Swaps of the words that stand in `used`, by the cosine of their rows (V, C) in the embedding.

    OptionError for an embedding of another vocabulary.
    """
    if len(embedding) < len(tokens):
        raise OptionError("augment", f"the embedding has {len(embedding)} rows, the tokenizer {len(tokens)} tokens")
    whole = [number for number in range(len(tokens)) if _is_word(tokens.token(number) or "")]
    known = set(whole)
    asked = sorted({number for one in used for number in one.ids} & known)
    rows = F.normalize(embedding.detach().float(), dim=1)
    others = rows[whole]
    near: dict[int, tuple[int, ...]] = {}
    for start in range(0, len(asked), AT_ONCE):
        some = asked[start : start + AT_ONCE]
        best = (rows[some] @ others.T).topk(min(count + 1, len(whole)), dim=1).indices
        for number, row in zip(some, best.tolist(), strict=True):
            near[number] = tuple(whole[i] for i in row if whole[i] != number)[:count]
    return WordSwaps(near, seed=seed)


def _is_word(token: str) -> bool:
    """Whether a token is a word, or begins one in byte-level and unigram vocabularies; single letters are none."""
    bare = token.lstrip("Ġ▁")
    return len(bare) > 1 and bare.isalpha()


def embedding_of(model: torch.nn.Module) -> Tensor:
    """The rows (V, C) of a model's tokens: those of its largest embedding. OptionError where none is in float."""
    found = [layer.weight for layer in model.modules() if isinstance(layer, torch.nn.Embedding)]
    if not found:
        raise OptionError("augment", f"{type(model).__name__} has no embedding whose neighbors could be looked at")
    return max(found, key=len)
