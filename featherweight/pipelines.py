# SPDX-License-Identifier: Apache-2.0
"""`pipeline(task, model)`: a picture or a text in, an answer out, shaped as the transformers library shapes it.

One picture gives a list of {"label", "score"}, best first, and of a detector {"score", "label", "box"}; a list gives a
list of such lists, a list of one too; a generator gives a generator, read ahead by one batch and no more. Everything
runs through the three stages `preprocess`, `forward` and `postprocess`, and an exported file is run without torch.
Addresses are refused: nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featherweight import hub, sources
from featherweight.doors import image
from featherweight.errors import OptionError, closest, shown
from featherweight.pictures import check_batch_size, each, load
from featherweight.pipelines_detection import ObjectDetection
from featherweight.pipelines_detection_usual import UsualDetection
from featherweight.pipelines_questions import QuestionAnswering
from featherweight.pipelines_text import TextClassification
from featherweight.pipelines_usual import of_call, of_pipeline
from featherweight.runners import Answer, Runner, open_runner
from featherweight.runners_text import open_text
from featherweight.runners_transformers import DetectorRunner, open_detector
from featherweight.runtime.activations import FUNCTIONS
from featherweight.runtime.record import TEXT_TASKS

DEFAULT_TOP_K = 5
Labels = list[dict[str, Any]]


def pipeline(
    task: str | None = None,
    model: Any = None,
    *,
    tokenizer: Any = None,
    device: Any = None,
    batch_size: int = 1,
    backend: str = "auto",
    threads: int | None = None,
    **kwargs: Any,
) -> Pipeline:
    """A callable that answers for pictures or texts; the task is taken from the model where it is not named.

    model: a folder of ours, a run (`runs/latest`), a .onnx or .xml file that we exported, a folder of the transformers
    library with a text model, an image classifier or a detector, a torch module, or with a task OWNER/NAME of the hub.
    tokenizer: of a text model that comes without one: a folder, or one of transformers. backend: "torch",
    "onnxruntime", "openvino", or what the model comes with. kwargs: `classes`, `preprocess` (or transformers'
    `image_processor`), `arch` and `max_pixels` for the model, `revision` and `token` for the hub, `precision` and
    `cache` of `runtime.session.open_session` for an exported file, and defaults for the call (the task's `OPTIONS`).
    """
    kwargs = of_pipeline(kwargs)
    named = ALIASES.get(task, task) if isinstance(task, str) else task
    if named is not None:
        _check_task(named)
    if model is None:
        raise OptionError("model", "is missing: name a folder, a run or an exported file; nothing is downloaded")
    opening: dict[str, Any] = {key: kwargs.pop(key) for key in ("classes", "preprocess", "arch") if key in kwargs}
    running = {key: kwargs.pop(key) for key in ("precision", "cache") if key in kwargs}
    fetching = {key: kwargs.pop(key) for key in ("revision", "token") if key in kwargs}
    _check_options(kwargs, [TASKS[named]] if named else list(TASKS.values()))
    check_batch_size(batch_size)
    opening |= {"backend": backend, "device": device, "threads": threads, "running": running}
    if named is not None and (named in TEXT_TASKS or sources.is_hub_like(model)) and hub.is_name(model):
        model = hub.fetched(model, **fetching)
    runner = _opened(named, model, tokenizer, opening)
    if running and runner.backend == "torch":
        raise OptionError(next(iter(running)), "goes with exported files; export the model, or give it in that type")
    _check_task(runner.task)
    if named is not None and runner.task != named:
        raise OptionError("task", f"is {task!r}, but this model was made for {runner.task!r}")
    kind = UsualDetection if isinstance(runner, DetectorRunner) else TASKS[runner.task]
    _check_options(kwargs, [kind])
    made: Pipeline = kind(runner, batch_size=batch_size, **kwargs)
    made.task = task or runner.task
    return made


def _opened(task: str | None, model: Any, tokenizer: Any, opening: Mapping[str, Any]) -> Any:
    """The runner of a model, text or picture, whatever task was asked for: what is wrong with it is told later."""
    pictures = {key: opening[key] for key in ("preprocess", "arch") if opening.get(key) is not None}
    rest = {key: value for key, value in opening.items() if key not in ("preprocess", "arch")}
    if pictures and (task in TEXT_TASKS or tokenizer is not None):
        raise OptionError(next(iter(pictures)), "goes with pictures, and this is a text pipeline")
    detector = open_detector(model, **opening)
    if detector is None and not pictures:
        text = open_text(model, task=task, tokenizer=tokenizer, **rest)
        if text is not None:
            return text
    if tokenizer is not None:
        raise OptionError("tokenizer", "goes with a text model, and this model reads pictures")
    return detector or open_runner(model, **opening)


def _check_options(given: Mapping[str, Any], kinds: list[Any]) -> None:
    """OptionError for what none of these kinds of pipeline takes."""
    pictures = ["max_pixels"] if any(kind.task not in TEXT_TASKS for kind in kinds) else []
    options = dict.fromkeys([*(name for kind in kinds for name in kind.OPTIONS), *pictures])
    known = (*options, "classes", "preprocess", "arch", "tokenizer", "device", "batch_size", "backend", "threads")
    known += ("precision", "cache", "revision", "token")
    for key in given:
        if key not in options:
            raise OptionError(key, f"no such option of a pipeline; {closest(key, known)}Known: {', '.join(known)}")


def _check_task(task: object) -> None:
    if task not in TASKS:
        known = (*TASKS, *ALIASES)
        raise OptionError("task", f"no {shown(task)!r} here; {closest(str(task), known)}Known: {', '.join(known)}")


class ImageClassification:
    """Pictures to labels. `runner`, `classes` and the image processing can be looked at; call it with pictures."""

    OPTIONS = ("top_k", "function_to_apply", "return_tokens")
    task = "image-classification"

    def __init__(
        self, runner: Runner, *, batch_size: int = 1, max_pixels: int = image.MAX_PIXELS, **options: Any
    ) -> None:
        self.runner, self.batch_size, self.max_pixels, self.options = runner, batch_size, max_pixels, options
        self.classes = runner.classes
        _options(**options)

    def __call__(self, inputs: Any, *, batch_size: int | None = None, **options: Any) -> Any:
        """The answer for one picture, a list of answers for a list, a generator of answers for whatever else yields.

        A picture is a path, bytes, a PIL image, a uint8 array (H, W, 3) or (H, W), or a tensor (3, H, W). top_k: 5
        where it is None. function_to_apply: softmax, sigmoid or none. return_tokens: each answer also has "kept", for
        every stage that dropped tokens a list of bools over the patches, where the model tells.
        """
        size = self.batch_size if batch_size is None else batch_size
        check_batch_size(size)
        chosen = _options(**{**self.options, **of_call(options)})
        return each(inputs, lambda pictures: self._stream(pictures, size, chosen))

    def preprocess(self, picture: Any) -> NDArray[np.float32]:
        """One picture -> the model's input (3, h, w)."""
        return self.runner.preprocess(load(picture, max_pixels=self.max_pixels))

    def forward(self, images: NDArray[np.float32], *, return_tokens: bool = False) -> Answer:
        """Inputs (B, 3, h, w) -> logits (B, K), and the patches kept if they are asked for."""
        answer = self.runner.run(images, tokens=return_tokens)
        if answer.logits.ndim != 2 or len(answer.logits) != len(images):
            text = (
                f"answers with {answer.logits.shape} to {len(images)} pictures; a classifier answers with (B, classes)"
            )
            raise OptionError("model", text)
        if self.classes and answer.logits.shape[1] != len(self.classes):
            text = f"there are {len(self.classes)} names, but the model answers with {answer.logits.shape[1]} values"
            raise OptionError("classes", text)
        return answer

    def postprocess(
        self, logits: NDArray[np.float32], *, top_k: int | None = None, function_to_apply: str | None = None
    ) -> Labels:
        """Logits (K,) of one picture -> [{"label", "score"}, ...], best first."""
        told = getattr(self.runner, "function", None)  # of a model that says that several classes may be right
        name = function_to_apply or told or ("softmax" if len(logits) > 1 else "sigmoid")
        scores = FUNCTIONS[name](logits.astype(np.float64))
        order = np.argsort(-scores, kind="stable")[: top_k or DEFAULT_TOP_K]
        return [{"label": self.label(int(i)), "score": float(scores[i])} for i in order]

    def label(self, number: int) -> str:
        """The name of a class; its number where the model has no names."""
        return self.classes[number] if self.classes else str(number)

    def _stream(self, pictures: Iterable[Any], size: int, options: Mapping[str, Any]) -> Iterator[Labels]:
        """Answers in order, a batch at a time."""
        tokens, waiting = bool(options["return_tokens"]), iter(pictures)
        wording = {key: options[key] for key in ("top_k", "function_to_apply")}
        while batch := list(islice(waiting, size)):
            answer = self.forward(np.stack([self.preprocess(picture) for picture in batch]), return_tokens=tokens)
            for i, logits in enumerate(answer.logits):
                kept = {"kept": [stage[i].tolist() for stage in answer.kept]} if answer.kept else {}
                yield [{**found, **kept} for found in self.postprocess(logits, **wording)]


Pipeline = ImageClassification | ObjectDetection | UsualDetection | TextClassification | QuestionAnswering
TASKS: dict[str, Any] = {
    "image-classification": ImageClassification,
    "object-detection": ObjectDetection,
    "text-classification": TextClassification,
    "question-answering": QuestionAnswering,
}
ALIASES = {"sentiment-analysis": "text-classification"}


def _options(
    *, top_k: int | None = None, function_to_apply: str | None = None, return_tokens: bool = False, **unknown: Any
) -> dict[str, Any]:
    """The options of a call, checked."""
    for key in unknown:
        known = ImageClassification.OPTIONS
        raise OptionError(key, f"no such option of a call; {closest(key, known)}Known: {', '.join(known)}, batch_size")
    if top_k is not None and (isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1):
        raise OptionError("top_k", f"must be 1 or more, or None for {DEFAULT_TOP_K}, not {top_k!r}")
    name = function_to_apply.lower() if isinstance(function_to_apply, str) else function_to_apply
    if name is not None and name not in FUNCTIONS:
        text = f"no {shown(name)!r}; {closest(str(name), FUNCTIONS)}Known: {', '.join(FUNCTIONS)}"
        raise OptionError("function_to_apply", text)
    return {"top_k": top_k, "function_to_apply": name, "return_tokens": return_tokens}
