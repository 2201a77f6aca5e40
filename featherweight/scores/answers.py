# SPDX-License-Identifier: Apache-2.0
"""Answers against the right ones: exact match and F1 of SQuAD (Rajpurkar 2016, 1606.05250), Chinese by characters.

Upper case, punctuation, articles and runs of spaces do not count; F1 is over words, and each Chinese character is one.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

ARTICLES = re.compile(r"\b(a|an|the)\b")
CHINESE = re.compile(r"([\u3400-\u9fff\uf900-\ufaff])")


def words(text: str) -> list[str]:
    """The words that are compared."""
    plain = "".join(" " if unicodedata.category(char)[0] == "P" and ord(char) > 127 else char for char in text.lower())
    plain = "".join(char for char in plain if not (ord(char) < 128 and not (char.isalnum() or char.isspace())))
    return CHINESE.sub(r" \1 ", ARTICLES.sub(" ", plain)).split()


def exact(answer: str, right: Sequence[str]) -> float:
    """1 where the answer reads as one of the right ones, else 0."""
    return float(any(words(answer) == words(one) for one in right))


def f1(answer: str, right: Sequence[str]) -> float:
    """The best harmonic mean of precision and recall over the right answers."""
    return max((_f1(words(answer), words(one)) for one in right), default=0.0)


def _f1(mine: list[str], theirs: list[str]) -> float:
    if not mine or not theirs:
        return float(mine == theirs)
    same = sum((Counter(mine) & Counter(theirs)).values())
    return 2 * same / (len(mine) + len(theirs)) if same else 0.0
