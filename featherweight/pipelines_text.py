# SPDX-License-Identifier: Apache-2.0
"""`pipeline("text-classification")`, also called sentiment-analysis: a text in, its labels out, shaped as the
transformers library shapes them.

One text gives a list of one {"label", "score"}, a list of texts a flat list of them, and with `top_k` each text has a
list of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featherweight.errors import InputError, OptionError, closest, shown
from featherweight.pictures import check_batch_size
from featherweight.pipelines_usual import of_call
from featherweight.runners_text import TextRunner
from featherweight.runtime.activations import FUNCTIONS
from featherweight.runtime.wordpiece import Encoding
from featherweight.texts import Text, each, is_single, text_of
from featherweight.tokenizer import padding_of, truncation_of

UNSET: Any = object()


@dataclass(frozen=True)
class Call:
    """The options of a call, checked."""

    top_k: int | None = UNSET  # labels of a text, None for all; left out, one label and one list less
    function_to_apply: str | None = None  # softmax, sigmoid or none; None: what the model was made for
    truncation: bool | str = False  # whether a text that is too long is cut
    max_length: int | None = None  # tokens of the longest text; None: what the model takes
    padding: bool | str = True
    return_all_scores: bool = False  # version 4's word for top_k=None, whose answers have one list more
    add_special_tokens: bool = True

    def __post_init__(self) -> None:
        count = self.top_k
        if count is not UNSET and count is not None and (isinstance(count, bool) or not isinstance(count, int)):
            raise OptionError("top_k", f"must be a number of labels, or None for all, not {count!r}")
        if count is not UNSET and count is not None and count < 1:
            raise OptionError("top_k", f"must be 1 or more, or None for all, not {count!r}")
        name = self.function_to_apply
        if name is not None and str(name).lower() not in FUNCTIONS:
            text = f"no {shown(name)!r}; {closest(str(name), FUNCTIONS)}Known: {', '.join(FUNCTIONS)}"
            raise OptionError("function_to_apply", text)
        longest = self.max_length
        if longest is not None and (isinstance(longest, bool) or not isinstance(longest, int) or longest < 1):
            raise OptionError("max_length", f"must be 1 or more, not {longest!r}")
        truncation_of(self.truncation)
        padding_of(self.padding)

    @property
    def listed(self) -> bool:
        """Whether each text has a list of labels."""
        return self.top_k is not UNSET or self.return_all_scores

    @property
    def count(self) -> int | None:
        return None if self.return_all_scores else 1 if self.top_k is UNSET else self.top_k


class TextClassification:
    """Texts to labels. `runner`, `tokens` and `classes` can be looked at; call it with texts."""

    OPTIONS = tuple(field.name for field in fields(Call))
    task = "text-classification"

    def __init__(self, runner: TextRunner, *, batch_size: int = 1, **options: Any) -> None:
        self.runner, self.batch_size, self.options = runner, batch_size, options
        self.classes, self.tokens = runner.classes, runner.tokens
        _call(options)

    def __call__(self, inputs: Any, *, batch_size: int | None = None, **options: Any) -> Any:
        """The answer for one text, a list of answers for a list, a generator of answers for whatever else yields.

        A text is a str, or {"text", "text_pair"} for two. The options are those of `Call`. InputError for what is no
        text, and for one longer than the model takes unless `truncation` is asked for.
        """
        options = of_call(options)
        size, call = self.batch_size if batch_size is None else batch_size, _call({**self.options, **options})
        check_batch_size(size)
        answer = each(inputs, lambda texts: self._stream(texts, size, call), single=is_single)
        return [answer] if isinstance(inputs, str) and "top_k" not in options else answer

    def preprocess(self, text: Any, call: Call | None = None) -> Encoding:
        """One text -> its tokens."""
        call, longest = call or Call(), self.tokens.settings.max_length
        one: Text = text_of(text)
        cut = truncation_of(call.truncation)
        limit = min((n for n in (call.max_length, longest) if n is not None), default=None)
        how: dict[str, Any] = {"max_length": limit if cut else None, "strategy": cut or "longest_first"}
        encoding, *_ = self.tokens.encode(one.text, one.pair, specials=call.add_special_tokens, **how)
        if longest is not None and len(encoding.ids) > longest:
            count = f"has {len(encoding.ids)} tokens, the model takes {longest}"
            raise InputError("text", "too_large", f"{count}; truncation=True cuts it")
        return encoding

    def forward(self, encodings: list[Encoding], call: Call | None = None) -> NDArray[np.float32]:
        """Encodings of B texts -> logits (B, K)."""
        call = call or Call()
        padded = padding_of(call.padding) == "max_length"
        length = (call.max_length or self.tokens.settings.max_length) if padded else None
        logits = self.runner.run(self.tokens.batch(encodings, length=length))["logits"]
        if logits.ndim != 2 or len(logits) != len(encodings):
            text = f"answers with {logits.shape} to {len(encodings)} texts; a classifier answers with (B, classes)"
            raise OptionError("model", text)
        if self.classes and logits.shape[1] != len(self.classes):
            text = f"there are {len(self.classes)} names, but the model answers with {logits.shape[1]} values"
            raise OptionError("classes", text)
        return logits

    def postprocess(self, logits: NDArray[np.float32], call: Call | None = None) -> Any:
        """Logits (K,) of one text -> {"label", "score"}, or with top_k a list of them, best first."""
        call = call or Call()
        name = call.function_to_apply or self.runner.function or ("softmax" if len(logits) > 1 else "sigmoid")
        scores = FUNCTIONS[name.lower()](logits.astype(np.float64))
        order = np.argsort(-scores, kind="stable")[: call.count]
        found = [{"label": self.label(int(i)), "score": float(scores[i])} for i in order]
        return found if call.listed else found[0]

    def label(self, number: int) -> str:
        """The name of a class; where the model has no names, LABEL_ and its number."""
        return self.classes[number] if self.classes else f"LABEL_{number}"

    def _stream(self, texts: Iterable[Any], size: int, call: Call) -> Iterator[Any]:
        """Answers in order, a batch at a time."""
        waiting = iter(texts)
        while batch := list(islice(waiting, size)):
            for logits in self.forward([self.preprocess(text, call) for text in batch], call):
                yield self.postprocess(logits, call)


def _call(options: Mapping[str, Any]) -> Call:
    known = [field.name for field in fields(Call)]
    for key in options:
        if key not in known:
            text = f"no such option of a call; {closest(key, known)}Known: {', '.join(known)}, batch_size"
            raise OptionError(key, text)
    return Call(**options)
