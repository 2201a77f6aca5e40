# SPDX-License-Identifier: Apache-2.0
"""Sentences with labels and questions with answers, from the files they come in, as batches that `fit` takes.

Sentences: "label sentence" or "sentence<tab>label" a line, .tsv and .csv with a header, .jsonl, .parquet. Questions:
JSON as of SQuAD.
Batches are padded to their longest text; the order is a function of the seed and the epoch alone.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from featherweight.doors import json as strict_json
from featherweight.doors import read_input, text_of
from featherweight.errors import InputError, OptionError, missing_extra
from featherweight.runtime.tokens import Tokens
from featherweight.runtime.wordpiece import Encoding

MAX_BYTES = 1 << 30
ALIKE = 32  # so many batches are sorted by length together
TEXTS, LABELS = ("text", "sentence", "review"), ("label", "labels", "sentiment")
Vary = Callable[[Encoding, int], Encoding]
Columns = tuple[tuple[str, ...], tuple[str, ...]]


@dataclass(frozen=True)
class Labelled:
    """Texts and the numbers of their labels."""

    texts: tuple[str, ...]
    labels: tuple[int, ...]
    names: tuple[str, ...]


@dataclass(frozen=True)
class Asked:
    """A question on a paragraph, with its right answers and where in the paragraph each begins."""

    question: str
    context: str
    answers: tuple[str, ...]
    starts: tuple[int, ...]


def words_of(one: Asked | tuple[str, int]) -> tuple[str, ...]:
    """What is read of a question, or of a labelled sentence."""
    return (one.question, one.context) if isinstance(one, Asked) else (one[0],)


def sentences(path: str | Path, *, text: str | None = None, label: str | None = None) -> Labelled:
    """The labelled texts of a file. InputError for a file that is not UTF-8, has no labels or none of these forms."""
    rows = rows_of(path, text=text, label=label)
    names = sorted({label for _, label in rows}, key=lambda name: (len(name), name))
    return Labelled(tuple(text for text, _ in rows), tuple(names.index(label) for _, label in rows), tuple(names))


def rows_of(path: str | Path, *, text: str | None = None, label: str | None = None) -> list[tuple[str, str]]:
    """(text, label) of each line or row; text, label: names of a table's columns where they are others than usual."""
    path = Path(path)
    columns = ((text,) if text else TEXTS, (label,) if label else LABELS)
    if path.suffix == ".parquet":
        rows = [_named(row, path, number, columns) for number, row in enumerate(_parquet(path), 1)]
    else:
        rows = _lines(text_of(read_input(path, max_bytes=MAX_BYTES), path), path, columns)
    if not rows:
        raise InputError(path, "empty", "has no labelled texts")
    return rows


def lines_of(path: str | Path) -> list[str]:
    """The texts of a file without labels, one a line. InputError for a file that is not UTF-8."""
    return [line for line in text_of(read_input(path, max_bytes=MAX_BYTES), path).splitlines() if line.strip()]


def _lines(content: str, path: Path, columns: Columns) -> list[tuple[str, str]]:
    """(text, label) of each line."""
    lines = [(number, line) for number, line in enumerate(content.split("\n"), 1) if line.strip()]
    if path.suffix == ".jsonl":
        rows = ((number, strict_json.parse(line, f"{path} line {number}")) for number, line in lines)
        return [_named(row, path, number, columns) for number, row in rows]
    if path.suffix in (".csv", ".tsv"):
        table = csv.DictReader(io.StringIO(content), delimiter="," if path.suffix == ".csv" else "\t")
        return [_named(row, path, number, columns) for number, row in enumerate(table, 2)]
    return [_plain(line.strip("\r"), path, number) for number, line in lines]


def _parquet(path: Path) -> list[dict[str, Any]]:
    """The rows of a parquet file."""
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise missing_extra("reading parquet", "pyarrow", "parquet") from None
    content = read_input(path, max_bytes=MAX_BYTES)
    try:
        rows: list[dict[str, Any]] = parquet.read_table(io.BytesIO(content)).to_pylist()
    except (ArrowException, OSError, ValueError) as error:
        raise InputError(path, "corrupt", f"is no parquet that can be read: {str(error).splitlines()[0]}") from None
    return rows


def _named(row: Any, path: Path, number: int, columns: Columns) -> tuple[str, str]:
    texts, labels = columns
    text = next((row[key] for key in texts if key in row), None) if isinstance(row, dict) else None
    label = next((row[key] for key in labels if key in row), None) if isinstance(row, dict) else None
    if not isinstance(text, str) or label is None or label == "":
        wanted = f"a text ({', '.join(texts)}) and a label ({', '.join(labels)})"
        raise InputError(path, "bad_row", f"line {number} needs {wanted}")
    return text, str(label)


def _plain(line: str, path: Path, number: int) -> tuple[str, str]:
    before, tab, after = line.rpartition("\t")
    label, space, rest = line.partition(" ")
    if tab and after.strip().isdigit():
        return before.strip(), after.strip()
    if not space or not label.isdigit():
        raise InputError(path, "bad_row", f"line {number} is neither 'label sentence' nor 'sentence<tab>label'")
    return rest.strip(), label


def questions(path: str | Path) -> list[Asked]:
    """The questions of a file in SQuAD's form, 1.1 or 2.0. InputError for any other."""
    data = strict_json.read(path)
    found: list[Asked] = []
    try:
        for paragraph in (paragraph for article in data["data"] for paragraph in article["paragraphs"]):
            for one in paragraph["qas"]:
                answers = one.get("answers", [])
                texts, starts = ([answer[key] for answer in answers] for key in ("text", "answer_start"))
                found.append(Asked(one["question"], paragraph["context"], tuple(texts), tuple(starts)))
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(path, "bad_schema", f"is not in SQuAD's form: {error!r}") from None
    return found


class TextBatches:
    """Encodings with their targets, in batches; what `fit` takes."""

    def __init__(
        self,
        tokens: Tokens,
        encodings: Sequence[Encoding],
        targets: dict[str, Sequence[int]],
        *,
        batch_size: int = 32,
        shuffle: bool = True,
        seed: int = 0,
        rows: Sequence[int] | None = None,
        alike: bool = False,
        variants: int = 0,
        vary: Vary | None = None,
    ) -> None:
        """alike: texts of like lengths share a batch, so that there is less padding.

        variants: so many of each text follow it in an epoch, as `vary` makes them of its encoding and their number.
        """
        if batch_size < 1:
            raise OptionError("batch_size", f"must be 1 or more, not {batch_size!r}")
        self.tokens, self.encodings, self.targets = tokens, list(encodings), targets
        self.batch_size, self.shuffle, self.seed, self.alike = batch_size, shuffle, seed, alike
        self.vary: Vary | None = vary
        self.variants = variants if vary is not None else 0
        self.rows = list(range(len(self.encodings) * (1 + self.variants)) if rows is None else rows)
        if not self.rows:
            raise OptionError("data", "there are no texts")

    @property
    def samples_per_epoch(self) -> int:
        """Texts, or windows of texts, in an epoch."""
        return len(self.rows)

    @property
    def steps_per_epoch(self) -> int:
        """The last batch of an epoch may be smaller."""
        return -(-len(self.rows) // self.batch_size)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[dict[str, Tensor]]:
        """The batches of an epoch, from batch `start` on."""
        for some in self._parts(epoch)[start:]:
            batch = {k: torch.from_numpy(v) for k, v in self.tokens.batch([self._row(i) for i in some]).items()}
            texts = [i % len(self.encodings) for i in some]
            yield {**batch, **{name: torch.tensor([of[i] for i in texts]) for name, of in self.targets.items()}}

    def _row(self, number: int) -> Encoding:
        """A text, or beyond the last one a variant."""
        one = self.encodings[number % len(self.encodings)]
        return one if self.vary is None or number < len(self.encodings) else self.vary(one, number)

    def _parts(self, epoch: int) -> list[list[int]]:
        """The texts of each batch."""
        random, size = np.random.default_rng((self.seed, epoch)), self.batch_size
        order = random.permutation(self.rows) if self.shuffle else np.array(self.rows)
        if self.alike:  # sorted within every few batches: the order stays a matter of chance
            about = random.uniform(0.9, 1.1, len(self.encodings)) if self.shuffle else 1.0
            lengths = about * np.array([len(one.ids) for one in self.encodings])
            lengths = np.tile(lengths, 1 + self.variants)
            spans = [order[i : i + ALIKE * size] for i in range(0, len(order), ALIKE * size)]
            order = np.concatenate([span[np.argsort(lengths[span], kind="stable")] for span in spans])
        parts = [order[i : i + size].tolist() for i in range(0, len(order), size)]
        return [parts[i] for i in random.permutation(len(parts))] if self.alike and self.shuffle else parts

    def shard(self, rank: int, world: int) -> TextBatches:
        """Every `world`-th text, as many for each process."""
        share = self.rows[rank : len(self.rows) - len(self.rows) % world : world]
        known = {"batch_size": self.batch_size, "shuffle": self.shuffle, "seed": self.seed, "alike": self.alike}
        known |= {"rows": share, "variants": self.variants, "vary": self.vary}  # type: ignore[dict-item]
        return TextBatches(self.tokens, self.encodings, self.targets, **known)  # type: ignore[arg-type]


def classified(tokens: Tokens, data: Labelled, *, max_length: int | None = None, **options: Any) -> TextBatches:
    """Batches of labelled texts, cut to `max_length` tokens, or to what the tokenizer says."""
    limit = max_length or tokens.settings.max_length
    rows = [tokens.encode(text, max_length=limit)[0] for text in data.texts]
    return TextBatches(tokens, rows, {"label": data.labels}, **options)


def located(
    tokens: Tokens, asked: Sequence[Asked], *, max_length: int = 384, stride: int | None = None, **options: Any
) -> TextBatches:
    """Batches of windows with the places of the answer; in a window without it both point to the first token.

    stride: tokens that neighboring windows share; None: a third of a window.
    """
    shared = max_length // 3 if stride is None else stride
    rows: list[Encoding] = []
    starts: list[int] = []
    ends: list[int] = []
    for one in asked:
        for window in tokens.encode(
            one.question, one.context, max_length=max_length, stride=shared, strategy="only_second"
        ):
            first, last = _place(window, one)
            rows.append(window)
            starts.append(first)
            ends.append(last)
    return TextBatches(tokens, rows, {"start": starts, "end": ends}, **options)


def _place(window: Encoding, asked: Asked) -> tuple[int, int]:
    """First and last token of the first right answer, (0, 0) where the window does not hold all of it."""
    if not asked.answers:
        return 0, 0
    begin, end = asked.starts[0], asked.starts[0] + len(asked.answers[0])
    inside = [i for i, sequence in enumerate(window.sequences) if sequence == 1]
    if not inside or window.offsets[inside[0]][0] > begin or window.offsets[inside[-1]][1] < end:
        return 0, 0
    first = max(i for i in inside if window.offsets[i][0] <= begin)
    last = min(i for i in inside if window.offsets[i][1] >= end)
    return first, max(first, last)
