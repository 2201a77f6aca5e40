# SPDX-License-Identifier: Apache-2.0
"""BERT's tokenizer in plain Python, so that an exported text model answers where no tokenizers package is installed.

Text is cleaned, lower-cased, split at white space and punctuation, and each word is cut into the longest pieces that
the vocabulary has (Wu et al. 2016, arXiv 1609.08144; Devlin et al. 2018, arXiv 1810.04805). Offsets point into the text
as it was given. Read from a tokenizer.json; of other kinds of tokenizers (byte-level BPE, unigram) nothing is here.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from featherweight.errors import InputError, OptionError, missing_extra

# Blocks of Chinese characters, each a word of its own.
CHINESE = (
    (0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F), (0x2B920, 0x2CEAF),
    (0xF900, 0xFAFF), (0x2F800, 0x2FA1F),
)  # fmt: skip
SPACES = "\t\n\r"
STRATEGIES = ("longest_first", "only_first", "only_second")


class Piece(NamedTuple):
    """One token of a text: its number, where it stands in the text, and the number of its word."""

    id: int
    start: int
    end: int
    word: int | None


class Encoding(NamedTuple):
    """What a model is fed for one text or pair: five lists of one length."""

    ids: list[int]
    type_ids: list[int]
    offsets: list[tuple[int, int]]  # characters of its own text
    sequences: list[int | None]  # 0 the text, 1 the pair, None what the tokenizer added
    words: list[int | None]  # counted within its own text


class WordPiece:
    """The tokenizer that a tokenizer.json with BERT's parts describes; MissingExtra for one with others."""

    def __init__(self, description: Mapping[str, Any], name: object) -> None:
        self._check(description)
        normalizer, model = description["normalizer"], description["model"]
        self.vocab: dict[str, int] = dict(model["vocab"])
        self.added = {str(token["content"]): int(token["id"]) for token in description.get("added_tokens") or ()}
        self.special = {t["id"] for t in description.get("added_tokens") or () if t.get("special")}
        self.by_id = {number: word for word, number in (self.vocab | self.added).items()}
        self.unknown, self.prefix = model["unk_token"], model.get("continuing_subword_prefix", "##")
        self.longest = int(model.get("max_input_chars_per_word", 100))
        if self.unknown not in self.vocab:
            raise InputError(name, "bad_schema", f"its unknown token {self.unknown!r} is not in its vocabulary")
        self.lowercase, self.clean = normalizer["lowercase"], normalizer["clean_text"]
        self.chinese = normalizer["handle_chinese_chars"]
        strips = normalizer.get("strip_accents")
        self.strips = self.lowercase if strips is None else strips
        self.single, self.pair = _templates(description["post_processor"], name)
        names = sorted(self.added, key=len, reverse=True)
        self.split = re.compile("|".join(map(re.escape, names))) if names else None

    @staticmethod
    def _check(description: Mapping[str, Any]) -> None:
        """MissingExtra for parts that only the tokenizers package has."""
        kinds = {part: (description.get(part) or {}).get("type") for part in ("normalizer", "pre_tokenizer", "model")}
        known = {"normalizer": "BertNormalizer", "pre_tokenizer": "BertPreTokenizer", "model": "WordPiece"}
        odd = any(
            token.get(flag)
            for token in description.get("added_tokens") or ()
            for flag in ("lstrip", "rstrip", "single_word", "normalized")
        )
        ends = (description.get("post_processor") or {}).get("type") in ("TemplateProcessing", "BertProcessing")
        if kinds != known or odd or not ends:
            raise missing_extra(f"a tokenizer of kind {kinds['model']}", "tokenizers", "text")

    def encode(
        self, text: str, pair: str | None = None, *, specials: bool = True, max_length: int | None = None,
        stride: int = 0, strategy: str = "longest_first", side: str = "right",
    ) -> list[Encoding]:  # fmt: skip
        """The text, cut to `max_length` tokens if one is given: first what is kept, then the windows that overlap."""
        first = self.pieces(text)
        second = None if pair is None else self.pieces(pair)
        template = (self.single if pair is None else self.pair) if specials else _BARE[pair is not None]
        if max_length is None:
            return [_filled(template, first, second)]
        room = max_length - sum(1 for kind, _, _ in template if kind is None)
        windows = _windows(first, second, room, stride, strategy, side)
        return [_filled(template, one, other) for one, other in windows]

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """Numbers -> text: pieces joined, without a space before punctuation and the ends of English contractions."""
        kept = [i for i in ids if not (skip_special_tokens and i in self.special)]
        words = [self.by_id.get(int(i), self.unknown) for i in kept]
        inside = [i > 0 and word.startswith(self.prefix) for i, word in enumerate(words)]
        return "".join(
            word.removeprefix(self.prefix) if joined else word if i == 0 or word in _TIGHT else f" {word}"
            for i, (word, joined) in enumerate(zip(words, inside, strict=True))
        )

    def pieces(self, text: str) -> list[Piece]:
        """The tokens of a text, without those that stand around it."""
        found: list[Piece] = []
        count = 0
        for part, start in self._parts(text):
            if part in self.added:
                found.append(Piece(self.added[part], start, start + len(part), count))
                count += 1
                continue
            for word in _words(self._normal(part, start)):
                found += [Piece(number, begin, end, count) for number, begin, end in self._cut(word)]
                count += 1
        return found

    def _parts(self, text: str) -> Iterator[tuple[str, int]]:
        """The text split at tokens that are written out in it, such as [SEP]."""
        last = 0
        for match in self.split.finditer(text) if self.split else ():
            if match.start() > last:
                yield text[last : match.start()], last
            yield match.group(), match.start()
            last = match.end()
        if last < len(text):
            yield text[last:], last

    def _normal(self, text: str, start: int) -> Iterator[tuple[str, int]]:
        """Characters after cleaning, each with the place it came from."""
        for place, char in enumerate(text, start):
            if self.clean:
                if char in "\0\ufffd" or (char not in SPACES and unicodedata.category(char)[0] == "C"):
                    continue
                char = " " if char in SPACES or char.isspace() else char
            lone = self.chinese and _is_chinese(ord(char))
            if lone:
                yield " ", place
            shown = unicodedata.normalize("NFD", char) if self.strips else char
            for one in shown:
                if not (self.strips and unicodedata.category(one) == "Mn"):
                    yield from ((low, place) for low in (one.lower() if self.lowercase else one))
            if lone:
                yield " ", place

    def _cut(self, word: list[tuple[str, int]]) -> list[tuple[int, int, int]]:
        """The pieces of a word, greedy from its start: (number, from, to)."""
        text, places = "".join(char for char, _ in word), [place for _, place in word]
        whole = [(self.vocab[self.unknown], places[0], places[-1] + 1)]
        if len(text) > self.longest:
            return whole
        found, start = [], 0
        while start < len(text):
            for end in range(len(text), start, -1):
                piece = (self.prefix if start else "") + text[start:end]
                if piece in self.vocab:
                    found.append((self.vocab[piece], places[start], places[end - 1] + 1))
                    break
            else:
                return whole
            start = end
        return found


_TIGHT = {".", "?", "!", ",", "n't", "'m", "'s", "'ve", "'re"}  # no space before them
Template = list[tuple[int | None, int, int]]  # (0 text, 1 pair, None a token), the token's number, type
_BARE: dict[bool, Template] = {False: [(0, 0, 0)], True: [(0, 0, 0), (1, 0, 1)]}


def _templates(processor: Mapping[str, Any], name: object) -> tuple[Template, Template]:
    """What stands around one text, and around two."""
    if processor["type"] == "BertProcessing":
        end, start = int(processor["sep"][1]), int(processor["cls"][1])
        single: Template = [(None, start, 0), (0, 0, 0), (None, end, 0)]
        return single, [*single, (1, 0, 1), (None, end, 1)]

    def read(parts: Sequence[Mapping[str, Any]]) -> Template:
        made: Template = []
        for part in parts:
            if "Sequence" in part:
                made.append((int(part["Sequence"]["id"] == "B"), 0, int(part["Sequence"]["type_id"])))
                continue
            token = processor["special_tokens"].get(part["SpecialToken"]["id"])
            if token is None:
                raise InputError(
                    name, "bad_schema", f"its template names {part['SpecialToken']['id']!r}, not described"
                )
            made += [(None, int(number), int(part["SpecialToken"]["type_id"])) for number in token["ids"]]
        return made

    return read(processor["single"]), read(processor["pair"])


def _filled(template: Template, first: list[Piece], second: list[Piece] | None) -> Encoding:
    made = Encoding([], [], [], [], [])
    for kind, number, type_id in template:
        pieces = [Piece(number, 0, 0, None)] if kind is None else (second or []) if kind else first
        made.ids.extend(piece.id for piece in pieces)
        made.type_ids.extend([type_id] * len(pieces))
        made.offsets.extend((piece.start, piece.end) for piece in pieces)
        made.sequences.extend([kind] * len(pieces))
        made.words.extend(piece.word for piece in pieces)
    return made


def _windows(
    first: list[Piece], second: list[Piece] | None, room: int, stride: int, strategy: str, side: str
) -> list[tuple[list[Piece], list[Piece] | None]]:
    """The pairs of parts that fit into `room` tokens; with a stride neighbors share so many tokens."""
    one = strategy == "only_second"
    other = len(first if one else second or ()) if strategy != "longest_first" else 0
    check_room(room, stride, strategy, other=other, paired=second is not None)
    if len(first) + len(second or ()) <= room:
        return [(first, second)]
    if strategy == "longest_first" and second is not None:
        few, many = _shares(len(first), len(second), room)
        return [(_cuts(first, few, 0, side)[0], _cuts(second, many, 0, side)[0])]
    parts = _cuts((second or []) if one else first, room - other, stride, side)
    return [(first, part) if one else (part, second) for part in parts]


def check_room(room: int, stride: int, strategy: str, *, other: int, paired: bool) -> None:
    """OptionError where `room` tokens cannot be cut so; `other` of them are those of the text that is not cut."""
    if strategy == "only_second" and not paired:
        raise OptionError("truncation", "only_second needs a pair of texts")
    if stride and strategy == "longest_first" and paired:
        raise OptionError("stride", "of a pair needs truncation only_first or only_second, so that one text is cut")
    if room < 0 or (strategy != "longest_first" and room - other < 1):
        taken = f", of which the text that is not cut takes {other}" if other else ""
        raise OptionError("max_length", f"leaves no room: {max(room, 0)} tokens beside the special ones{taken}")
    if stride < 0 or (stride and stride >= room - other):
        raise OptionError("stride", f"is {stride}, but must be less than the {room - other} tokens of a window")


def _shares(one: int, two: int, room: int) -> tuple[int, int]:
    """How many tokens each of two texts keeps when the longer one is cut first."""
    short, long = min(one, two), max(one, two)
    long = min(long, max(short, room - short))
    if short + long > room:
        short, long = room // 2, room - room // 2
    return (short, long) if one <= two else (long, short)


def _cuts(pieces: list[Piece], size: int, stride: int, side: str) -> list[list[Piece]]:
    """Windows of at most `size`, from the left, or from the right when that is what is kept."""
    if len(pieces) <= size:
        return [pieces]
    if size == 0:
        return [[]]
    step, count = size - stride, len(pieces)
    if side == "left":
        ends = [end for end in range(count, 0, -step) if end == count or end + stride > 0]
        found = [pieces[max(0, end - size) : end] for end in ends]
        reached = next(i for i, end in enumerate(ends) if end - size <= 0)
        return found[: reached + 1]
    starts = list(range(0, count, step))
    reached = next(i for i, start in enumerate(starts) if start + size >= count)
    return [pieces[start : start + size] for start in starts[: reached + 1]]


def _words(chars: Iterator[tuple[str, int]]) -> Iterator[list[tuple[str, int]]]:
    """Split at white space, and at each punctuation mark, which is a word of its own."""
    word: list[tuple[str, int]] = []
    for char, place in chars:
        lone = _is_punctuation(char)
        if (lone or char.isspace()) and word:
            yield word
            word = []
        if lone:
            yield [(char, place)]
        elif not char.isspace():
            word.append((char, place))
    if word:
        yield word


def _is_punctuation(char: str) -> bool:
    return ("!" <= char <= "~" and not char.isalnum()) or unicodedata.category(char)[0] == "P"


def _is_chinese(code: int) -> bool:
    return any(low <= code <= high for low, high in CHINESE)
