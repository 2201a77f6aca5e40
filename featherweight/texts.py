# SPDX-License-Identifier: Apache-2.0
"""What the text pipelines take, and how one, a list or a stream of inputs is answered."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from featherweight.errors import InputError, OptionError, closest

Stream = Callable[[Iterable[Any]], Iterator[Any]]
TEXT_KEYS, QUESTION_KEYS = ("text", "text_pair"), ("question", "context")


class Text(NamedTuple):
    """A text, and the second one of a pair."""

    text: str
    pair: str | None = None


class Question(NamedTuple):
    """A question and the text that its answer is in."""

    question: str
    context: str


def each(inputs: Any, stream: Stream, *, single: Callable[[Any], bool]) -> Any:
    """What `stream` makes of the inputs: one answer for one, a list for a list, a generator for what else yields."""
    if isinstance(inputs, list):
        return list(stream(inputs))
    if single(inputs):
        return next(stream([inputs]))
    try:
        waiting = iter(inputs)
    except TypeError:
        raise _no_text(inputs) from None
    return stream(waiting)


def is_single(value: Any) -> bool:
    """Whether this is one input and not something that yields inputs."""
    alone = (str, bytes, bytearray, memoryview, os.PathLike, Mapping, tuple, set, frozenset)
    return value is None or isinstance(value, (*alone, Question)) or hasattr(value, "__array__")


def text_of(value: Any) -> Text:
    """A str, or {"text", "text_pair"}, as a `Text`. InputError for what is none."""
    if isinstance(value, str):
        return Text(value)
    if not isinstance(value, Mapping):
        raise _no_text(value)
    _only(value, TEXT_KEYS)
    if "text" not in value:
        raise InputError("text", "missing_key", "a dict must have 'text', and 'text_pair' if there is a second text")
    for key in TEXT_KEYS:
        if not isinstance(value.get(key, ""), str) and not (key == "text_pair" and value[key] is None):
            raise _no_text(value[key], key)
    return Text(value["text"], value.get("text_pair"))


def question_of(value: Any) -> Question:
    """{"question", "context"}, or an object with `question_text` and `context_text`, as a `Question`."""
    if isinstance(value, Question):
        return value
    if hasattr(value, "question_text") and hasattr(value, "context_text"):
        value = {"question": value.question_text, "context": value.context_text}
    if not isinstance(value, Mapping):
        kind = type(value).__name__
        raise InputError("question", "bad_type", f"{kind} is no question; give {{'question': ..., 'context': ...}}")
    _only(value, QUESTION_KEYS)
    for key in QUESTION_KEYS:
        if key not in value or value[key] is None:
            raise InputError(key, "missing_key", f"is missing; a question needs {' and '.join(QUESTION_KEYS)}")
        if not isinstance(value[key], str):
            raise _no_text(value[key], key)
        if not value[key].strip():
            raise InputError(key, "empty", "has no text; there is nothing to ask, or to answer from")
    return Question(value["question"], value["context"])


def questions(args: tuple[Any, ...], given: Mapping[str, Any]) -> Any:
    """The questions of a call in any of its forms: one, a list, or what yields them.

    Forms: a dict, a list of dicts, (question, context), question= and context= (of lists of one length, or many
    questions with one context), data=, or anything that yields dicts.
    """
    if len(args) == 2 and all(isinstance(arg, str) for arg in args):
        return {"question": args[0], "context": args[1]}
    if len(args) > 1:
        return list(args)
    if args or given.get("data") is not None:
        return args[0] if args else given["data"]
    question, context = given.get("question"), given.get("context")
    for key in QUESTION_KEYS:
        if given.get(key) is None:
            raise InputError(key, "missing_key", f"is missing; a question needs {' and '.join(QUESTION_KEYS)}")
    if not isinstance(question, list) and not isinstance(context, list):
        return {"question": question, "context": context}
    if not isinstance(question, list):
        raise OptionError("context", "is a list, but there is one question; give as many questions")
    contexts = context if isinstance(context, list) else [context] * len(question)
    if len(contexts) != len(question):
        raise OptionError("context", f"{len(contexts)} for {len(question)} questions; give as many, or a single text")
    return [{"question": one, "context": other} for one, other in zip(question, contexts, strict=True)]


def _only(value: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for key in value:
        if key not in known:
            raise InputError("text", "unknown_key", f"no {key!r}; {closest(str(key), known)}Known: {', '.join(known)}")


def _no_text(value: Any, name: str = "text") -> InputError:
    kind = "None" if value is None else type(value).__name__
    known = "a str, or {'text': ..., 'text_pair': ...}, or a list of them" if name == "text" else "a str"
    picture = " (a picture? this model reads text)" if hasattr(value, "__array__") or hasattr(value, "getpixel") else ""
    return InputError(name, "bad_type", f"{kind} is no text{picture}; give {known}")
