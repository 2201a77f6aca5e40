# SPDX-License-Identifier: Apache-2.0
"""Whether a well-formed recipe makes sense: models that exist, options their sources know, an order that can work.

All of it is asked when a recipe is read, so that nothing of this kind stops a run after an hour.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .binding import bind
from .composition import NORMS, WrongOrder, walk
from .detecting import STEPS as DETECTION_STEPS
from .detecting import TASK, task_of_model
from .errors import InputError, OptionError, closest, shown
from .modes import BATCH_NORMS
from .runtime import record
from .sources import THEIR_DETECTOR, is_detector_folder, is_picture_model
from .surgery import edits_of
from .texting import TASKS as TEXT_TASKS
from .texting import is_folder, recognized
from .texting import problem as text_problem

if TYPE_CHECKING:
    from torch import nn

    from .recipe import DataSpec, ModelSpec, Recipe, Step

# steps that leave the number of blocks
SAME_BLOCKS = {"teacher", "baseline", "load", "train", "distill", "token_labelling", "prune"}
OTHER_BLOCKS = {"tokens", "recursion", "grouping", "mixed_depth", "depth"}  # steps that change them
OTHER_LAYERS = {"lowrank", "structured", "crelu", "equivariant", "overparameterize"}  # that change layers in them
TRAINED = {"restart", "epochs", "images", "lr"}  # options of a step that are about its training
LONGEST_NAME = 200  # bytes of a folder's name


def vet(recipe: Recipe, path: str | Path, *, partial: bool = False) -> None:
    """Raises InputError about `path`. partial: the model is its caller's to say."""
    from .budget import goal

    if problem := name_problem(recipe.name):
        raise InputError(path, "bad_name", f"name: {problem}")
    for where in ("model", "teacher"):
        spec: ModelSpec | None = getattr(recipe, where)
        if spec is not None:
            _model(spec, where, path, recipe.task)
    if recipe.model is None and not partial:
        raise InputError(path, "missing_key", "top level: needs 'model', such as `model: vit_digits`")
    if recipe.data is not None:
        _data(recipe.data, path, recipe.task)
    _detection(recipe, path)
    if recipe.train.augment:
        _augment(recipe, path)
    if recipe.budget is not None:
        try:
            goal(recipe.budget)
        except OptionError as error:
            raise InputError(path, "out_of_range", f"budget.{error}") from None
    _order(recipe, path)
    _blocks(recipe, path)


def name_problem(name: str) -> str:
    """What is wrong with the name of a run, which names a folder; nothing if nothing is."""
    fits = re.fullmatch(r"\w[\w .@+-]*", name) and not name.endswith((" ", "."))
    if name == "latest":
        return "'latest' is what points to the last run; choose another name"
    if fits and len(name.encode("utf-8", "replace")) <= LONGEST_NAME:
        return ""
    return f"{shown(name, limit=60)!r} must be up to {LONGEST_NAME} bytes of letters, digits, space and . _ - + @"


def _model(spec: ModelSpec, where: str, path: str | Path, task: str) -> None:
    """A name of the table with fields it has, timm's, or a folder of ours: its own weights and fields, at any size."""
    from . import artifact
    from .models import zoo

    if artifact.is_artifact(spec.name):
        if spec.weights or set(spec.config) - {"image_size"}:
            key = "weights" if spec.weights else "config"
            raise InputError(path, "bad_schema", f"{where}.{key}: {shown(spec.name)} has its own; leave it out")
        return
    if task in TEXT_TASKS or is_picture_model(spec.name):
        if task in TEXT_TASKS:
            recognized(spec.name, path, where)
        if spec.weights or spec.config:
            raise InputError(path, "bad_schema", f"{where}: {shown(spec.name)} has its own weights and config")
        return
    if is_detector_folder(spec.name):
        raise InputError(path, "unsupported_format", f"{where}: {shown(spec.name)} {THEIR_DETECTOR}")
    try:
        zoo.check(spec.name)
    except OptionError as error:
        raise InputError(path, "unknown_name", f"{where}: {error.text}, or the folder of a model") from None
    try:
        zoo.check(spec.name, **spec.config)
    except OptionError as error:
        reason = "unknown_key" if error.text.startswith("no such field") else "out_of_range"
        raise InputError(path, reason, f"{where}.config: {error}") from None
    if spec.weights != "shipped":
        return
    if spec.config:
        raise InputError(
            path, "bad_schema", f"{where}.config: shipped weights fit their own only; leave one of them out"
        )
    try:
        zoo.shipped_weights(spec.name)
    except OptionError as error:
        raise InputError(path, "unknown_name", f"{where}.{error}") from None


def _data(spec: DataSpec, path: str | Path, task: str) -> None:
    from . import data
    from .data import corpus
    from .data import detection as boxes

    load: Any = data.load_digits if spec.source in data.BUILT_IN else data.load_files
    if task in TEXT_TASKS:
        load = corpus.load
    elif task == TASK:
        load = boxes.load_digits if spec.source in boxes.BUILT_IN else boxes.load_files
    own = [*(field.name for field in dataclasses.fields(spec)), *(["task"] if task in TEXT_TASKS else [])]
    bind(load, spec.options, "data", path, skip=own, also=[name for name in own if name != "options"])


def _detection(recipe: Recipe, path: str | Path) -> None:
    """Steps and schedules that go with the task."""
    detects = recipe.task == TASK
    yolo = recipe.train.schedule in ("yolo", "yolo_linear")
    if recipe.train.nominal_batch is not None and not yolo:
        raise InputError(path, "bad_schema", "train.nominal_batch: goes with `schedule: yolo`")
    if not detects and recipe.train.freeze:
        raise InputError(path, "bad_schema", "train.freeze: counts the layers of a detector")
    for where in ("model", "teacher"):
        spec: ModelSpec | None = getattr(recipe, where)
        task = task_of_model(spec.name) if spec is not None else ""
        if spec is not None and task and task != recipe.task:
            text = f"{where}: {shown(spec.name)} is for {task}, the recipe for {recipe.task}"
            raise InputError(path, "unknown_name", text)
    for number, step in enumerate(recipe.steps):
        if detects and step.name not in DETECTION_STEPS:
            text = f"a detector cannot have it; known with this task: {', '.join(DETECTION_STEPS)}"
            raise InputError(path, "unknown_name", f"steps[{number}].{step.name}: {text}")
        if found := text_problem(step, recipe.task):
            raise InputError(path, found[0], f"steps[{number}].{step.name}: {found[1]}")
        if not detects and step.name in ("aux_heads", "distill_detection", "evaluate"):
            raise InputError(path, "unknown_name", f"steps[{number}].{step.name}: goes with `task: {TASK}`")


def _augment(recipe: Recipe, path: str | Path) -> None:
    from .data.detection_augment import DetectionAugment
    from .data.presets import expanded
    from .data.transforms import Augment

    if recipe.task == TASK:
        try:
            DetectionAugment.of(recipe.train.augment)
        except OptionError as error:
            raise InputError(path, "unknown_key", f"train.{error}") from None
        return
    try:
        wanted: dict[str, Any] = {**expanded(recipe.train.augment), "num_classes": 2}  # the data's, later
    except OptionError as error:
        raise InputError(path, "unknown_name", f"train.{error}") from None
    bind(Augment, wanted, "train.augment", path, also=("preset",))


def _order(recipe: Recipe, path: str | Path) -> None:
    """Each step finds what it needs, and undoes nothing that one before it worked for."""
    from .recipe import defaults

    for number, step in enumerate(recipe.steps):
        if step.name == "teacher" and recipe.teacher is None:
            text = "the recipe does not say which model teaches: add `teacher: resnet_digits`, say"
            raise InputError(path, "missing_key", f"steps[{number}].teacher: {text}")
    steps = [(step.name, {**defaults(step.name), **step.options}) for step in recipe.steps]
    done = _edits(recipe.model)
    try:
        try:
            walk(steps, done=done)
        except WrongOrder as error:
            if error.fact is not NORMS or _has_norms(recipe.model):
                raise
            walk(steps, done=done, lasting=[NORMS])
    except WrongOrder as error:
        raise InputError(path, error.reason, f"{error.where}: {error.text}") from None


def _has_norms(spec: ModelSpec | None) -> bool:
    """Whether a model that can be built from its name has batch norms; of one that cannot, nothing is claimed."""
    import torch

    from . import artifact
    from .models import zoo

    if spec is None or is_folder(spec.name):
        return False
    if artifact.is_artifact(spec.name):
        model = artifact.load(spec.name)
    else:
        with torch.device("meta"):
            model = zoo.create(spec.name, **spec.config)
    return any(isinstance(module, BATCH_NORMS) for module in model.modules())


def _edits(spec: ModelSpec | None) -> list[str]:
    """Kinds of the edits of a saved model."""
    from . import artifact

    if spec is None or not artifact.is_artifact(spec.name):
        return []
    path = Path(spec.name)
    if path.is_dir():  # its record says it without the weights
        return [str(edit.get("kind")) for edit in record.read(path).edits if isinstance(edit, dict)]
    return [edit.kind for edit in edits_of(artifact.load(path))]


def _blocks(recipe: Recipe, path: str | Path) -> None:
    """What steps do to the blocks can be done to the model's, as far as that can be followed without its weights."""
    from . import artifact

    spec, names = recipe.model, {step.name for step in recipe.steps}
    if spec is None or artifact.is_artifact(spec.name) or not names & (OTHER_BLOCKS | OTHER_LAYERS):
        return
    if is_folder(spec.name):  # what becomes of them is found when the model is there
        return
    import torch

    from .models import zoo

    with torch.device("meta"):
        outline = origin = zoo.create(spec.name, **spec.config)
        for number, step in enumerate(recipe.steps):
            try:
                if step.name in OTHER_BLOCKS:
                    outline = _changed(step, origin if step.options.get("restart") else outline)
                elif step.name in OTHER_LAYERS:
                    _check_layers(step, outline)
                elif step.name not in SAME_BLOCKS:
                    return
            except (OptionError, LookupError, TypeError) as error:
                raise InputError(path, "out_of_range", f"steps[{number}].{step.name}: {error}") from None


def _changed(step: Step, outline: nn.Module) -> nn.Module:
    """The outline with what the step does to its blocks."""
    from .methods import dynamicvit, grouping, mixed_depth, recursion
    from .surgery import apply

    options = {key: value for key, value in step.options.items() if key not in TRAINED}
    if step.name == "mixed_depth":
        mixed_depth.MixedDepth(**options).prepare(outline)
        return outline
    if step.name == "tokens":
        wanted = ("keep", "at", "stage", "score", "seed", "threshold")
        options = {key: value for key, value in options.items() if key in wanted}
    plans = {"tokens": dynamicvit, "recursion": recursion, "grouping": grouping, "depth": mixed_depth}
    return apply(outline, plans[step.name].plan(outline, **options))


def _check_layers(step: Step, outline: nn.Module) -> None:
    """What a step does to single layers, as far as it does not depend on their weights."""
    from .methods import crelu, equivariant, lowrank, overparameterize, structured

    def some(*names: str) -> dict[str, Any]:
        return {name: step.options[name] for name in names if name in step.options}

    if step.name == "lowrank":
        lowrank.plan(outline, keep=1.0, **some("conv", "skip"))  # the ranks depend on the weights
    elif step.name == "structured":
        structured.plan(outline, **some("matrix", "keep", "convolutions", "relu", "skip"))
    elif step.name == "crelu":
        crelu.plan(outline, fresh=True, **some("first", "skip"))
    elif step.name == "equivariant":
        equivariant.plan(outline, **some("group", "pool", "symmetric"))
    else:
        overparameterize.plan(outline, **some("skip"))


def known_task(task: str, known: dict[str, str], path: str | Path) -> str:
    """The task's full name."""
    if task not in known:
        raise InputError(path, "unknown_name", f"task: no {task!r}; {closest(task, known)}Known: {', '.join(known)}")
    return known[task]
