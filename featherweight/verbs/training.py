# SPDX-License-Identifier: Apache-2.0
"""Options of `train` as a recipe, so that a training gets the same run folder, resume and report as everything else."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from featherweight import sources
from featherweight.errors import InputError, OptionError, closest, shown

DISTILL = {  # what is said -> the options of the recipe's step `distill`
    "hard": {"how": "logits", "distance": "hard"},
    "soft": {"how": "logits", "distance": "soft"},
    "token": {"how": "token", "distance": "hard"},
    "token-soft": {"how": "token", "distance": "soft"},
    "mse": {"how": "logits", "distance": "mse"},
}
MEASURED_WITH = ("onnx", "onnxruntime", "openvino")


def training_recipe(
    model: str | os.PathLike[str],
    data: str | os.PathLike[str],
    *,
    task: str | None = None,
    teacher: str | os.PathLike[str] | None = None,
    distill: str | None = None,
    alpha: float | None = None,
    temperature: float | None = None,
    weights: str | None = None,
    reset_head: bool = False,
    arch: str | None = None,
    max_bad: float | None = None,
    image_size: int | None = None,
    aux_heads: bool = False,
    **train: Any,
) -> dict[str, Any]:
    """A recipe that trains a model, taught by `teacher` if there is one; `train` are fields of `recipe.Train`.

    task: what the model is for unless given; of a detector the model decides loss and heads.

    distill: hard, soft, token, token-soft or mse; hard where only a teacher is named. What is None is left to the
    recipe's own defaults.
    """
    wanted = distill if distill is not None else "hard" if teacher else "none"
    spec = model_spec(model, arch=arch, weights=weights, reset_head=reset_head)
    recipe: dict[str, Any] = {
        "model": {**spec, **({"config": {"image_size": image_size}} if image_size is not None else {})},
        "data": _set(source=os.fspath(data), max_bad=max_bad),
        "train": _set(**train),
    }
    if _detects(task, spec["name"]):
        refused = _set(distill=distill, alpha=alpha, temperature=temperature)
        if refused:
            text = "is of classifiers; of detectors there are distill_detection.outputs and distill_detection.features"
            raise OptionError(f"--{next(iter(refused))}", text)
        taught = {} if teacher is None else {"teacher": model_spec(teacher)}
        parts = [*(["aux_heads"] if aux_heads else []), *(["teacher", "distill_detection"] if taught else ["train"])]
        return {**recipe, "task": "object-detection", **taught, "steps": [*parts, "evaluate"]}
    if aux_heads:
        raise OptionError("--aux-heads", "is of detectors: featherweight train detect")
    if (reads := _reads(task, spec["name"])) != "":
        recipe["task"] = reads
        if teacher is not None and (distill or "soft").startswith("token"):
            raise OptionError(
                "--distill", f"{distill} is for models of pictures; of texts there are soft, hard and mse"
            )
        wanted = distill or ("soft" if teacher else "none")
    if wanted == "none":
        if teacher is not None or alpha is not None or temperature is not None:
            raise OptionError("--distill", "is none, so teacher, alpha and temperature have nothing to do")
        return {**recipe, "steps": ["train", *_measuring()]}
    if wanted not in DISTILL:
        known = (*DISTILL, "none")
        raise OptionError("--distill", f"no {wanted!r}; {closest(wanted, known)}Known: {', '.join(known)}")
    if teacher is None:
        raise OptionError("--distill", f"{wanted} needs a teacher: add --teacher with a model folder or a name")
    how = {**DISTILL[wanted], **_set(alpha=alpha, temperature=temperature)}
    steps = ["load", "teacher", {"distill": how}, *_measuring()]
    return {**recipe, "teacher": _shipped(model_spec(teacher)), "steps": steps}


def model_spec(
    model: str | os.PathLike[str], *, arch: str | None = None, weights: str | None = None, reset_head: bool = False
) -> dict[str, Any]:
    """The recipe's way to say a MODEL: a name or folder, and where its weights are."""
    if _is_text(model):
        return {"name": os.fspath(model), **({"reset_head": True} if reset_head else {})}
    found = sources.find(model, backend="torch", arch=arch)
    spec: dict[str, Any] = {"name": found.name}
    if found.path is not None and found.path.is_dir():
        spec["name"] = str(found.path)
    elif found.path is not None and arch is not None:
        spec |= {"name": arch, "weights": str(found.path)}
    elif found.path is not None:
        spec |= {"name": _told(found.path), "weights": str(found.path)}
    if weights is not None:
        if "weights" in spec or found.path is not None:
            raise OptionError("--weights", f"the weights are those of {shown(os.fspath(model))} already")
        spec["weights"] = weights
    return {**spec, **({"reset_head": True} if reset_head else {})}


def _told(path: Path) -> str:
    """The name of the model whose weights a file holds, which only a detector's own file tells."""
    from featherweight import official
    from featherweight.models import zoo

    try:
        detector = official.read(path).detector
    except InputError:
        detector = None
    if detector is None:
        text = f"is missing: {shown(path)} holds weights; say whose, or name the model's folder"
        raise OptionError("--arch", text)
    if zoo.find(variant := str(detector.config["variant"])) is None:
        text = f"{shown(path)} holds {detector.says}: featherweight convert makes a folder of it, to train from"
        raise OptionError("model", text)
    return variant


def _detects(task: str | None, name: str) -> bool:
    """Whether boxes are what is trained for: as told, or as the model is for."""
    from featherweight.detecting import TASK, task_of_model
    from featherweight.recipe import TASKS

    if task is not None and task not in TASKS:
        raise OptionError("--task", f"no {task!r}; {closest(task, TASKS)}Known: {', '.join(TASKS)}")
    return (TASKS[task] if task is not None else task_of_model(name)) == TASK


def _is_text(model: str | os.PathLike[str]) -> bool:
    """Whether this is a folder of the transformers library, with a text model or an encoder of texts."""
    from featherweight.texting import is_folder

    path = os.fspath(model)
    return is_folder(path) and not sources.is_picture_model(Path(path))


def _reads(task: str | None, name: str) -> str:
    """The task of a text model, as told or as the model is for; "" of any other."""
    from featherweight import texting
    from featherweight.recipe import TASKS

    told = TASKS.get(task or "", "") or texting.task_of_model(name)
    return told if told in texting.TASKS else ""


def _shipped(spec: dict[str, Any]) -> dict[str, Any]:
    """A teacher that comes with the package comes trained."""
    from featherweight.models import zoo

    ready = "weights" not in spec and spec["name"] in zoo.known() and zoo.entry(spec["name"]).shipped
    return {**spec, "weights": "shipped"} if ready else spec


def _measuring() -> list[Any]:
    """Numbers and a page at the end of a training, where what they need is installed."""
    return [{"measure": {"part": "val", "budget_s": 1.0}}, "report"] if can_measure() else []


def can_measure() -> bool:
    """Whether the runtimes that a report compares are installed."""
    return all(find_spec(package) for package in MEASURED_WITH)


def _set(**known: Any) -> dict[str, Any]:
    return {key: value for key, value in known.items() if value is not None}
