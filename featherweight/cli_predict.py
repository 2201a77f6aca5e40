# SPDX-License-Identifier: Apache-2.0
"""The verb predict: what is in a picture, or where. Argument parsing and printing; the work is in `pipelines`."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from featherweight import cli_options as options
from featherweight.console import current, line
from featherweight.errors import InputError, OptionError, clean, shown

WHATS = ("tokens", "attention", "boxes")  # what can be drawn over a picture
MAX_STDIN = 512 << 20


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Detecting:
    """What a detector is asked; what is not given is left to the pipeline's defaults."""

    threshold: Annotated[float | None, Parameter(name=("--threshold", "--conf"), help="least score of a detection")] = (
        None
    )
    iou: Annotated[float | None, Parameter(help="what overlaps a better box by more is dropped")] = None
    max_detections: Annotated[int | None, Parameter(name=("--max-detections", "--max-det"), help="of one picture")] = (
        None
    )
    multi_label: Annotated[bool | None, Parameter(help="several classes for one box")] = None
    agnostic: Annotated[bool | None, Parameter(help="a box drops those of other classes too")] = None
    augment: Annotated[bool | None, Parameter(help="each picture at three sizes, one mirrored")] = None
    tile: Annotated[int | None, Parameter(help="look at large pictures in tiles of this side, too")] = None
    overlap: Annotated[float | None, Parameter(help="of neighboring tiles, a share of their side")] = None


DETECTING = Detecting()


def predict(
    model: options.Model,
    *,
    source: options.Pictures,
    top_k: Annotated[int | None, Parameter(help="how many labels to show; 5 unless given")] = None,
    show_tokens: Annotated[bool, Parameter(help="draw which patches the model kept")] = False,
    draw: Annotated[
        str | None,
        Parameter(help="over each picture, into a run folder: boxes of a detector; else tokens, attention, or both"),
    ] = None,
    save_txt: Annotated[bool, Parameter(help="write one text file per picture into a run folder")] = False,
    save_json: Annotated[bool, Parameter(name=("--save-json", "--save-coco"), help="write COCO results")] = False,
    detecting: Detecting = DETECTING,
    batch: options.Batch = None,
    backend: options.Backend = "auto",
    device: options.Device = None,
    threads: options.Threads = None,
    arch: options.Arch = None,
    project: options.Project = "runs",
    name: options.Name = None,
) -> int:
    """What is in a picture, or where; of folders, patterns, and for detectors videos and cameras too."""
    from featherweight.pipelines import pipeline
    from featherweight.runtime.record import TASKS, TEXT_TASKS

    whats = options.words("--draw", draw, WHATS) if draw else ()
    backend = "torch" if backend == "auto" and "attention" in whats else backend
    asked = {"backend": backend, "device": device, "threads": threads, "arch": arch, "batch_size": batch}
    pipe = pipeline(model=model, **options.given(asked))
    if pipe.task in TEXT_TASKS:
        raise OptionError("--model", f"{shown(model)} reads text: featherweight ask {shown(model)} --text ...")
    if pipe.task == TASKS[1]:
        _refuse({"--top-k": top_k, "--show-tokens": show_tokens}, whats, {"tokens", "attention"}, "are of classifiers")
        wanted: dict[str, Any] = {"draw": "boxes" in whats, "text": save_txt, "coco": save_json}
        folder = options.new_folder(project, name, "predict") if any(wanted.values()) else None
        _find(pipe, source, folder, wanted, options.given(vars(detecting)))
    else:
        _refuse({"--save-json": save_json, **vars(detecting)}, whats, {"boxes"}, "are of detectors")
        folder = options.new_folder(project, name, "predict") if save_txt or whats else None
        _classify(pipe, source, folder, whats, top_k or 5, show_tokens, save_txt)
    current().next(f"featherweight val {shown(model)} --data YOUR_DATA", f"featherweight bench {shown(model)}")
    return 0


def _refuse(given: dict[str, Any], whats: tuple[str, ...], others: set[str], why: str) -> None:
    """OptionError for what this kind of model has not."""
    wrong = [name for name, value in given.items() if value] + [f"--draw {what}" for what in whats if what in others]
    if wrong:
        option = wrong[0] if wrong[0].startswith("--") else f"--{wrong[0].replace('_', '-')}"
        raise OptionError(option, f"{why}, which this model is not")


def _find(pipe: Any, source: list[str], folder: Path | None, wanted: dict[str, Any], asked: dict[str, Any]) -> None:
    """A detector on every picture and frame."""
    from featherweight.verbs import finding

    screen, found = current(), []
    skipped: list[InputError] = []
    keeper = finding.Keeper(folder, pipe, **wanted) if folder is not None else None

    def stdin() -> bytes:
        return sys.stdin.buffer.read(MAX_STDIN)

    seen = finding.pictures(source, max_pixels=pipe.max_pixels, skipped=skipped, stdin=stdin)
    try:
        for one in finding.find(pipe, seen, **asked):
            place = one.seen.file if one.seen.frame is None else f"{one.seen.file} frame {one.seen.frame}"
            screen.answer(f"{shown(place)}   {clean(finding.summary(one, pipe), limit=200)}")
            drawn = keeper.keep(one) if keeper else None
            if screen.json:
                frame = {} if one.seen.frame is None else {"frame": one.seen.frame}
                objects = pipe.postprocess(one.rows)
                found.append({"file": one.seen.file, **frame, "objects": objects, "drawn": drawn and str(drawn)})
    finally:
        if keeper is not None:
            keeper.close()
    for error in skipped:
        screen.warn(f"skipped {error}")
    screen.emit(found)
    if folder is not None:
        screen.say(line("saved", shown(folder)))


def _classify(
    pipe: Any, source: list[str], folder: Path | None, whats: tuple[str, ...], top_k: int, tokens: bool, text: bool
) -> None:
    """A classifier on every picture."""
    from featherweight.verbs.showing import draw_all

    screen, found = current(), []
    skipped: list[InputError] = []
    named, drawn = deque[str](), deque[Any]()
    pictures = _pictures(source, pipe.max_pixels, named, skipped)
    pictures = _remembered(pictures, drawn) if whats else pictures
    for answer in pipe(pictures, top_k=top_k, return_tokens=tokens):
        one = _one(named.popleft(), answer, tokens=tokens)
        screen.answer(_answer(one["file"], one["answers"]))
        if tokens:
            screen.answer(_tokens(one["kept"], pipe.runner.preprocess.size))
        if folder is not None and whats:
            one["drawn"] = draw_all(pipe.runner, drawn.popleft(), whats, folder / "drawn", one["file"])
        if folder is not None and text:
            _save(folder, one["file"], one["answers"])
        found += [one] if screen.json else []
    for error in skipped:
        screen.warn(f"skipped {error}")
    screen.emit(found)
    if folder is not None:
        screen.say(line("saved", f"{shown(folder)}/{'labels' if text else 'drawn'}"))


def _one(file: str, answer: list[dict[str, Any]], *, tokens: bool) -> dict[str, Any]:
    """A pipeline's answer as one row, with the kept tokens once."""
    labels = [{"label": one["label"], "score": one["score"]} for one in answer]
    return {"file": file, "answers": labels, **({"kept": answer[0].get("kept")} if tokens else {})}


def _pictures(sources: list[str], max_pixels: int, named: deque[str], skipped: list[InputError]) -> Iterator[Any]:
    """Pictures in order, each name put down before. A named file that is none stops; one in a folder is skipped."""
    from featherweight.verbs import finding

    def stdin() -> bytes:
        return sys.stdin.buffer.read(MAX_STDIN)

    for seen in finding.pictures(sources, max_pixels=max_pixels, skipped=skipped, stdin=stdin):
        named.append(seen.file)
        yield seen.pixels


def _answer(file: str, labels: list[dict[str, Any]]) -> str:
    words = [f"{clean(one['label'], limit=40)} {100 * one['score']:.1f} %" for one in labels]
    return f"{shown(file)}   " + "   ".join(words)


def _tokens(kept: list[list[bool]] | None, size: tuple[int, int]) -> str:
    """Each stage's patches side by side, a full block for one that was kept."""
    if not kept:
        return "  this model keeps all of its tokens"
    count = len(kept[0])
    across = max(1, round((count * size[1] / size[0]) ** 0.5))
    rows = [
        ["".join("██" if k else "··" for k in stage[i : i + across]) for i in range(0, count, across)] for stage in kept
    ]
    heads = [f"{sum(stage)} of {count}".ljust(2 * across) for stage in kept]
    return "\n".join(("  " + "   ".join(parts)).rstrip() for parts in [heads, *zip(*rows, strict=True)])


def _remembered(pictures: Iterator[Any], aside: deque[Any]) -> Iterator[Any]:
    """The same pictures, each put aside to be drawn over."""
    for picture in pictures:
        aside.append(picture)
        yield picture


def _save(folder: Path, file: str, labels: list[dict[str, Any]]) -> None:
    from featherweight.files import publish

    name = (
        "stdin"
        if file == "-"
        else "_".join(part for part in Path(file).with_suffix("").parts if part not in ("/", ".", ".."))
    )
    (folder / "labels").mkdir(exist_ok=True)
    text = "".join(f"{one['score']:.4f} {clean(one['label'])}\n" for one in labels)
    publish(folder / "labels" / f"{name[-150:]}.txt", text.encode("utf-8", "backslashreplace"))


VERBS = (predict,)
