# SPDX-License-Identifier: Apache-2.0
"""The verbs for text models and the hub: ask, push."""

from __future__ import annotations

import os
from typing import Annotated, Any

from cyclopts import Parameter

from featherweight import cli_options as options
from featherweight.console import current, line
from featherweight.errors import InputError, OptionError, clean, shown

MAX_BYTES = 1 << 30  # of a file with texts


def ask(
    model: options.Model,
    *,
    text: Annotated[list[str] | None, Parameter(name=("--text", "-t"), help="a text; repeat it for more")] = None,
    question: Annotated[list[str] | None, Parameter(help="what to look for in --context; repeat it for more")] = None,
    context: Annotated[str | None, Parameter(help="a text that holds the answer, or the UTF-8 file it is in")] = None,
    source: Annotated[str | None, Parameter(name=("--source", "--file"), help="a UTF-8 file, one text a line")] = None,
    top_k: Annotated[int, Parameter(help="how many labels or answers")] = 1,
    tokenizer: Annotated[str | None, Parameter(help="a folder, for a model that comes without its own")] = None,
    batch: options.Batch = None,
    backend: options.Backend = "auto",
    device: options.Device = None,
    threads: options.Threads = None,
) -> int:
    """What a text model says of a text, or where in a text an answer stands."""
    from featherweight.pipelines import pipeline

    screen = current()
    task = "question-answering" if question else "text-classification"
    if bool(question) != bool(context) or (question and (text or source)):
        raise OptionError("--question", "goes with --context, and with neither --text nor --source")
    if not question and not text and not source:
        raise OptionError("--text", "is missing: give --text, --source, or --question with --context")
    if not os.path.lexists(model):
        raise InputError(model, "missing", "does not exist; name a folder or an exported file, nothing is fetched")
    asked = {"backend": backend, "device": device, "threads": threads, "tokenizer": tokenizer, "batch_size": batch}
    pipe: Any = pipeline(task, model, **options.given(asked))
    if question:
        told = _content(context or "")
        given: list[Any] = [{"question": one, "context": told} for one in question]
    else:
        given = [*(text or ()), *(_lines(source) if source else ())]
    found = []
    for one, answer in zip(given, pipe(iter(given), top_k=top_k), strict=True):
        name = one["question"] if question else one
        best = answer if isinstance(answer, list) else [answer]
        screen.answer(f"{clean(name, limit=60)}   {'   '.join(_said(item) for item in best)}")
        found.append({"question" if question else "text": name, "answers": best})
    screen.emit(found)
    return 0


def _said(answer: dict[str, Any]) -> str:
    score = f"{100 * answer['score']:.1f} %"
    if "label" in answer:
        return f"{clean(answer['label'], limit=40)} {score}"
    return f"{clean(answer['answer'], limit=120) or '(no answer)'} {score} [{answer['start']}:{answer['end']}]"


def _content(context: str) -> str:
    """The context itself, or what is in the file of that name."""
    from featherweight.doors import read_input, text_of

    if len(context) < 1024 and os.path.isfile(context):
        return text_of(read_input(context, max_bytes=MAX_BYTES), context)
    return context


def _lines(source: str) -> list[str]:
    from featherweight.doors import read_input, text_of

    return [text for text in text_of(read_input(source, max_bytes=MAX_BYTES), source).splitlines() if text.strip()]


def push(
    folder: Annotated[str, Parameter(name=("--folder", "--model", "-m"), help="of a model of ours or of transformers")],
    name: Annotated[str, Parameter(name=("--name", "--repo"), help="OWNER/NAME on the hub")],
    *,
    private: Annotated[bool, Parameter(help="visible to the owner alone")] = False,
    message: Annotated[str, Parameter(help="of the commit there")] = "",
) -> int:
    """Upload a model's folder to the Hugging Face hub."""
    from featherweight import hub

    screen = current()
    address = hub.push(folder, name, private=private, message=message)
    screen.answer(line("pushed", f"{shown(folder)} to {shown(address)}"))
    screen.emit({"folder": folder, "name": name, "address": address})
    return 0


VERBS = (ask, push)
