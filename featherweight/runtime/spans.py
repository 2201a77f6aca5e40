# SPDX-License-Identifier: Apache-2.0
"""Where in a context the answer is: from the scores of its first and last token to spans of characters, in NumPy.

The probability of a span is that of its first token times that of its last one, each a softmax over the context
(Devlin et al. 2018, arXiv 1810.04805, section 4.2). Of a long context each window is asked by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from featherweight.runtime.wordpiece import Encoding

HIDDEN = -10000.0  # the logit of a token that cannot be in an answer
Scores = NDArray[np.floating]


class Span(NamedTuple):
    """First and last token of a window, and the probability of the two together."""

    first: int
    last: int
    score: float


class Found(NamedTuple):
    """An answer: characters start to end of the context."""

    score: float
    start: int
    end: int


def probabilities(logits: Scores, allowed: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Logits (N,) -> a softmax over what is allowed."""
    values = np.where(allowed, logits.astype(np.float64), HIDDEN)
    powers = np.exp(values - values.max())
    return np.asarray(powers / powers.sum())


def best_spans(
    start: Scores, end: Scores, window: Encoding, *, count: int, longest: int, cls_id: int | None, context: int = 1
) -> tuple[list[Span], float]:
    """The `count` best spans of at most `longest` tokens in one window, and the probability that it holds none.

    start, end: logits (N,). The first token, where models are taught to point to for "no answer", counts in the
    softmax and is never part of a span. context: which of the two texts it is.
    """
    inside = np.array([sequence == context for sequence in window.sequences])
    allowed = inside | (np.array(window.ids) == (-1 if cls_id is None else cls_id))
    first, last = probabilities(start, allowed), probabilities(end, allowed)
    none = float(first[0] * last[0])
    places = np.flatnonzero(inside)
    if not len(places):
        return [], none
    begin, stop = int(places[0]), int(places[-1]) + 1
    scores = np.outer(first[begin:stop], last[begin:stop])
    rows, columns = np.indices(scores.shape)
    possible = np.flatnonzero(((columns >= rows) & (columns - rows < longest)).ravel())
    flat = scores.ravel()[possible]
    order = possible[np.argsort(-flat, kind="stable")[:count]]
    where = np.stack(np.unravel_index(order, scores.shape), axis=1) + begin
    return [Span(int(i), int(j), float(first[i] * last[j])) for i, j in where], none


def characters(window: Encoding, first: int, last: int, *, whole_words: bool) -> tuple[int, int]:
    """The characters that some tokens cover; with `whole_words` to the ends of the words they lie in."""
    start, end = window.offsets[first][0], window.offsets[last][1]
    words = (window.words[first], window.words[last])
    if not whole_words or None in words:
        return start, end
    sequence = window.sequences[first]
    here = [
        (offsets, word)
        for offsets, word, owner in zip(window.offsets, window.words, window.sequences, strict=True)
        if owner == sequence and word in words
    ]
    start = min((offsets[0] for offsets, word in here if word == words[0]), default=start)
    end = max((offsets[1] for offsets, word in here if word == words[1]), default=end)
    return start, end


def merged(found: Iterable[Found], context: str) -> list[Found]:
    """One of each answer that reads the same, upper and lower case alike: the first place, the scores added."""
    kept: dict[str, Found] = {}
    for one in found:
        words = context[one.start : one.end].lower()
        before = kept.get(words)
        kept[words] = one if before is None else before._replace(score=before.score + one.score)
    return list(kept.values())


def best(found: Sequence[Found], count: int) -> list[Found]:
    """The best of them, of equal ones the earlier."""
    return sorted(found, key=lambda one: -one.score)[:count]
