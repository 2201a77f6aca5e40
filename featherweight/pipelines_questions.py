# SPDX-License-Identifier: Apache-2.0
"""`pipeline("question-answering")`: a question and a context in, where in it the answer stands out.

The answers are those that the transformers library gave until version 4 (5 removed the task): {"score", "start", "end",
"answer"} with `context[start:end] == answer`. A context longer than the model takes is read in windows that overlap.
Other than there, `top_k` never counts answers of score 0 that are no spans, and a question is cut only when
`max_question_len` is given.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from featherweight.errors import OptionError, closest
from featherweight.pictures import check_batch_size
from featherweight.pipelines_usual import of_call
from featherweight.runners_text import TextRunner
from featherweight.runtime.spans import Found, best, best_spans, characters, merged
from featherweight.runtime.wordpiece import Encoding
from featherweight.texts import Question, each, is_single, question_of, questions
from featherweight.tokenizer import padding_of

WINDOW, STRIDE = 384, 128  # tokens, where nothing else is said
AliasTopK = ("topk", "top_k")


@dataclass(frozen=True)
class Call:
    """The options of a call, checked."""

    top_k: int = 1  # answers of a question
    doc_stride: int | None = None  # tokens that neighboring windows share; None: 128, or half a window
    max_answer_len: int = 15  # tokens
    max_seq_len: int | None = None  # tokens of a window with its question; None: 384, or what the model takes
    max_question_len: int | None = None  # tokens that a longer question is cut to; None: it is kept whole
    handle_impossible_answer: bool = False  # an empty answer may be the best one
    align_to_words: bool = True  # answers begin and end with whole words
    padding: bool | str = False

    def __post_init__(self) -> None:
        for name in ("top_k", "max_answer_len", "doc_stride", "max_seq_len", "max_question_len"):
            value, least = getattr(self, name), 0 if name == "doc_stride" else 1
            if value is None and name not in ("top_k", "max_answer_len"):
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise OptionError(name, f"must be {least} or more, not {value!r}")
        if self.doc_stride is not None and self.max_seq_len is not None and self.doc_stride > self.max_seq_len:
            raise OptionError("doc_stride", f"{self.doc_stride} is larger than max_seq_len {self.max_seq_len}")
        padding_of(self.padding)


class Asked(NamedTuple):
    """A question with the windows of its context."""

    context: str
    windows: list[Encoding]


class QuestionAnswering:
    """Questions to answers. `runner` and `tokens` can be looked at; call it with questions."""

    OPTIONS = ("topk", *(field.name for field in fields(Call)))
    task = "question-answering"

    def __init__(self, runner: TextRunner, *, batch_size: int = 1, **options: Any) -> None:
        self.runner, self.batch_size, self.options = runner, batch_size, options
        self.classes: tuple[str, ...] = ()
        self.tokens = runner.tokens
        _call(options)

    def __call__(
        self,
        *args: Any,
        question: str | list[str] | None = None,
        context: str | list[str] | None = None,
        data: Any = None,
        batch_size: int | None = None,
        **options: Any,
    ) -> Any:
        """The answer to one question, a list of answers for a list of several, a generator for whatever else yields.

        A question is {"question", "context"}; see `texts.questions` for the other forms. The options are those of
        `Call`; with top_k above 1 an answer is a list. InputError for a question or a context that is missing or empty.
        """
        size, call = self.batch_size if batch_size is None else batch_size, _call({**self.options, **of_call(options)})
        check_batch_size(size)
        inputs = questions(args, {"question": question, "context": context, "data": data})
        if isinstance(inputs, list) and len(inputs) == 1:
            inputs = inputs[0]
        if hasattr(inputs, "question_text"):
            inputs = question_of(inputs)
        return each(inputs, lambda asked: self._stream(asked, size, call), single=is_single)

    def preprocess(self, asked: Any, call: Call | None = None) -> Asked:
        """One question -> the windows that are looked at."""
        call = call or Call()
        one: Question = question_of(asked)
        length = self._window(call)
        stride = min(length // 2, STRIDE) if call.doc_stride is None else call.doc_stride
        text = one.question
        if call.max_question_len is not None:
            (short, *_) = self.tokens.encode(text, specials=False, max_length=call.max_question_len)
            text = text[: max((end for _, end in short.offsets), default=0)]
        pair, strategy = (text, one.context), "only_second"
        if self.tokens.settings.padding_side == "left":
            pair, strategy = (one.context, text), "only_first"
        return Asked(one.context, self.tokens.encode(*pair, max_length=length, stride=stride, strategy=strategy))

    def forward(
        self, windows: list[Encoding], call: Call | None = None
    ) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """Windows -> for each the logits of its tokens as the first and the last of the answer."""
        call = call or Call()
        length = self._window(call) if padding_of(call.padding) == "max_length" else None
        found = self.runner.run(self.tokens.batch(windows, length=length))
        start, end = found["start_logits"], found["end_logits"]
        left, wide = self.tokens.settings.padding_side == "left", start.shape[1]
        sides = [slice(wide - len(w.ids), wide) if left else slice(0, len(w.ids)) for w in windows]
        return [(start[i, side], end[i, side]) for i, side in enumerate(sides)]

    def postprocess(
        self, asked: Asked, logits: list[tuple[NDArray[np.float32], NDArray[np.float32]]], call: Call | None = None
    ) -> Any:
        """The windows of a question and their logits -> its answer, or answers."""
        call = call or Call()
        context = 0 if self.tokens.settings.padding_side == "left" else 1
        count = 2 * call.top_k + 10 if call.align_to_words else call.top_k  # some become one when words are whole
        found: list[Found] = []
        least = float("inf")
        for window, (start, end) in zip(asked.windows, logits, strict=True):
            known = {"longest": call.max_answer_len, "cls_id": self.tokens.settings.cls_id, "context": context}
            spans, none = best_spans(start, end, window, count=count, **known)  # type: ignore[arg-type]
            least = min(least, none)
            for span in spans:
                where = characters(window, span.first, span.last, whole_words=call.align_to_words)
                found.append(Found(span.score, *where))
        answers = merged(found, asked.context)
        if call.handle_impossible_answer:
            answers.append(Found(least, 0, 0))
        made = [{**one._asdict(), "answer": asked.context[one.start : one.end]} for one in best(answers, call.top_k)]
        return made[0] if len(made) == 1 else made

    def _window(self, call: Call) -> int:
        """Tokens of a window with its question."""
        longest = self.tokens.settings.max_length
        if call.max_seq_len is None:
            return min(longest or WINDOW, WINDOW)
        if longest is not None and call.max_seq_len > longest:
            raise OptionError("max_seq_len", f"is {call.max_seq_len}, but the model takes {longest} tokens")
        return call.max_seq_len

    def _stream(self, asked: Iterable[Any], size: int, call: Call) -> Iterator[Any]:
        """Answers in order; the windows of `size` questions are run in batches of `size`."""
        waiting = iter(asked)
        while batch := [self.preprocess(one, call) for one in islice(waiting, size)]:
            windows = [window for one in batch for window in one.windows]
            parts = [self.forward(windows[i : i + size], call) for i in range(0, len(windows), size)]
            logits = iter([pair for part in parts for pair in part])
            for one in batch:
                yield self.postprocess(one, list(islice(logits, len(one.windows))), call)


def _call(options: Mapping[str, Any]) -> Call:
    known = [field.name for field in fields(Call)]
    given = dict(options)
    if "topk" in given:
        if "top_k" in given:
            raise OptionError("topk", "is the old name of top_k; give one of the two")
        given["top_k"] = given.pop("topk")
    for key in given:
        if key not in known:
            text = f"no such option of a call; {closest(key, known)}Known: {', '.join(known)}, batch_size"
            raise OptionError(key, text)
    return Call(**given)
