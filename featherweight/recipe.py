# SPDX-License-Identifier: Apache-2.0
"""A recipe: YAML text -> checked steps. A typo stops here, before any work, with the place and what would be right.

A default exists once, in a signature: every key is bound to the field of a dataclass below, or to the parameter of the
step's function in `steps`. What running a recipe means is in `runs`.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from .binding import Ratio, Within, bind
from .detecting import TASK, Detecting, with_published
from .doors import yaml
from .errors import InputError, OptionError, closest, shown
from .overrides import override
from .runtime.record import TEXT_TASKS
from .texting import Texting, with_usual
from .vetting import known_task, name_problem, vet

SCHEMA = 1
TASKS = {
    "image-classification": "image-classification",
    "classification": "image-classification",
    "classify": "image-classification",
    "object-detection": "object-detection",
    "detection": "object-detection",
    "detect": "object-detection",
    **{name: name for name in TEXT_TASKS},
    "sentiment-analysis": TEXT_TASKS[0],
    "text": TEXT_TASKS[0],
}
Epochs = Annotated[int, Within(1, 100_000)]
Count = Annotated[int, Within(1, 100_000_000)]
BatchSize = Annotated[int, Within(1, 65_536)]
Rate = Annotated[float, Within(0.0, 100.0, open_low=True)]
Seed = Annotated[int, Within(0, 2**32 - 1)]


@dataclass(frozen=True)
class Train:
    """How every training step of the recipe trains, unless the step says otherwise."""

    epochs: Epochs = 5
    images: Count | None = None  # per epoch; all of them unless given
    batch_size: BatchSize = 32
    lr: Rate = 5e-4
    lr_batch: Count | None = None  # the batch `lr` is meant for, such as 512: it grows with batch_size times processes
    optimizer: Literal["adamw", "sgd"] = "adamw"
    momentum: Annotated[float, Within(0.0, 1.0, open_high=True)] = 0.9  # of sgd
    nesterov: bool = False
    weight_decay: Annotated[float, Within(0.0, 10.0)] = 0.05
    decay: Literal["matrices", "official", "yolo"] = "matrices"  # official: DeiT's code, decays the distillation token
    schedule: Literal["cosine", "constant", "official", "yolo", "yolo_linear"] = "cosine"  # official: DeiT's code
    warmup: Annotated[float, Within(0.0, 1.0)] = 0.05  # share of the steps; of yolo, see warmup_epochs
    warmup_epochs: Annotated[float, Within(0.0, 1e5)] = 3.0  # of yolo, as the following
    warmup_steps: Annotated[int, Within(0, 10**8)] = 1000  # at least so many
    warmup_share: Ratio = 0.1  # at most this share of the training; 1 is the official rule
    warmup_bias_lr: Annotated[float, Within(0.0, 100.0)] = 0.1
    warmup_momentum: Ratio = 0.8
    nominal_batch: Count | None = None  # gradients add up until so many pictures were seen; their sum goes backward
    freeze: Annotated[int, Within(0, 10_000)] = 0  # layers of a detector that are not trained, from the first on
    min_ratio: Annotated[float, Within(0.0, 1.0)] = 0.01  # of lr, at the end of the cosine
    clip: Annotated[float, Within(0.0, 1e6, open_low=True)] | None = 1.0
    ema: Annotated[float, Within(0.0, 1.0, open_high=True)] | None = None
    ema_updates: Annotated[float, Within(0.0, 1e9, open_low=True)] | None = None  # over which its decay grows
    precision: Literal["float32", "bfloat16"] = "float32"
    channels_last: bool = False  # how a convolutional network's maps lie in memory: faster on most processors
    label_smoothing: Annotated[float, Within(0.0, 0.9)] = 0.0
    augment: Mapping[str, Any] = field(default_factory=dict)  # fields of data.transforms.Augment, or {preset: deit}
    repeats: Annotated[int, Within(1, 64)] = 1  # how often an epoch shows a picture, each time augmented anew
    sampler: Literal["full", "official"] = "full"  # official: DeiT's code, in whole runs of 256 pictures
    workers: Annotated[int, Within(0, 256)] = 0  # threads that decode and augment ahead; the pictures stay the same
    validate_images: Count | None = None  # of the validation part, after each epoch
    validate_every: Epochs = 1
    device: Literal["cpu", "cuda"] = "cpu"  # under torchrun each process takes a GPU of its own
    parallel: Literal["ddp", "fsdp"] = "ddp"  # under torchrun: each process has the whole model, or a share of it
    timeout: Annotated[float, Within(0.0, 1e6, open_low=True)] | None = None  # seconds until a hung process is given up


@dataclass(frozen=True)
class ModelSpec:
    """A model by name, folder or `timm:NAME`, its weights, and what differs from its configuration."""

    name: str
    weights: str | None = None  # "shipped", or the path of a file; none: random
    config: Mapping[str, Any] = field(default_factory=dict)
    reset_head: bool = False  # a new classifier where the weights' classes are not the data's


@dataclass(frozen=True)
class DataSpec:
    """Where the pictures come from; further keys are options of that source."""

    source: str
    max_bad: Ratio = 0.01
    seed: Seed = 0  # of what is generated or split: its own, so that runs of several seeds share one test part
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Budget:
    """What the result must keep to; a step that does not help within it is left out."""

    max_drop: str = "1%"  # points of top-1 that may be lost against the start
    target: str | None = None  # "2x" faster, "5ms" at batch 1, "1MB" on disk
    backend: Literal["onnxruntime", "openvino"] = "onnxruntime"


@dataclass(frozen=True)
class Step:
    """One step: its name in `steps.STEPS` and its options, checked."""

    name: str
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Recipe:
    """Everything a run depends on."""

    name: str = "run"
    task: str = "image-classification"
    model: ModelSpec | None = None
    teacher: ModelSpec | None = None
    data: DataSpec | None = None
    seed: Seed = 0
    train: Train = field(default_factory=Train)
    detection: Detecting = field(default_factory=Detecting)  # of the task object-detection
    text: Texting = field(default_factory=Texting)  # of the tasks of texts
    budget: Budget | None = None
    steps: tuple[Step, ...] = ()
    output: str = "runs"
    threads: Annotated[int, Within(1, 1024)] | None = None
    schema: int = SCHEMA
    source: str = "recipe"  # what the user called it, for messages


def builtin(name: str) -> Path:
    """The file of a recipe that ships with the package."""
    folder = Path(str(files("featherweight") / "recipes"))
    path = folder / f"{name}.yaml"
    if not os.path.isfile(path):
        known = sorted(p.stem for p in folder.glob("*.yaml"))
        raise OptionError(
            "recipe",
            f"no {shown(name, limit=60)!r}; {closest(name, known)}Known: {', '.join(known)}, or the path of a file",
        )
    return path


def read(path: str | Path, overrides: Iterable[str] = (), **options: Any) -> Recipe:
    """The recipe in a file, or the one of that name in the package; the rest is as in `parse`."""
    path = Path(path)
    if not path.suffix and not os.path.isfile(path):
        path = builtin(str(path))
    return parse(yaml.read(path), path, overrides, **options)


def parse(
    data: str | Mapping[str, Any],
    name: str | Path = "recipe",
    overrides: Iterable[str] = (),
    *,
    given: Mapping[str, Any] | None = None,
    partial: bool = False,
) -> Recipe:
    """The recipe in a text or mapping. Raises InputError about `name`: where, what, and what would be right.

    given: fields that take the place of the recipe's own; overrides: `key=value`, over both. partial: the recipe need
    not name a model.
    """
    raw = yaml.parse(data, name) if isinstance(data, str) else data
    if not isinstance(raw, Mapping):
        raise InputError(name, "bad_schema", "a recipe is a mapping: model, data, steps ...")
    fields = [field.name for field in dataclasses.fields(Recipe) if field.name != "source"]
    raw = override({**raw, **(given or {})}, overrides, fields=fields)
    version = raw.pop("schema", SCHEMA)
    if version != SCHEMA or isinstance(version, bool):
        text = f"schema {shown(repr(version), limit=60)}: this version reads schema {SCHEMA}; update featherweight"
        raise InputError(name, "version", text)
    steps = _steps(raw.pop("steps", ["train"]), name)
    raw = {key: _short(key, value) for key, value in raw.items()}
    if TASKS.get(str(raw.get("task"))) == TASK:
        raw = with_published(raw)
    if (reads := TASKS.get(str(raw.get("task")))) in TEXT_TASKS:
        raw = with_usual(raw, str(reads))
    recipe: Recipe = bind(Recipe, raw, "", name, skip=("steps", "schema", "source"), also=("steps", "schema"))
    task = known_task(recipe.task, TASKS, name)
    recipe = dataclasses.replace(recipe, task=task, steps=steps, source=str(name))
    called = Path(name).stem
    if "name" not in raw and isinstance(name, Path) and not name_problem(called):
        recipe = dataclasses.replace(recipe, name=called)
    vet(recipe, name, partial=partial)
    return recipe


def _short(key: str, value: Any) -> Any:
    """`model: name` for {name: name}; `data: source`, its options beside it."""
    if key in ("model", "teacher") and isinstance(value, str):
        return {"name": value}
    if key == "data":
        if isinstance(value, str):
            return {"source": value}
        if isinstance(value, Mapping) and "source" in value:
            own = {field.name for field in dataclasses.fields(DataSpec)}
            beside = {k: v for k, v in value.items() if k not in own}
            inside = value.get("options", {})
            if beside and isinstance(inside, Mapping):
                return {**{k: v for k, v in value.items() if k in own}, "options": {**inside, **beside}}
    return value


def _steps(items: Any, name: str | Path) -> tuple[Step, ...]:
    from .steps import STEPS

    if not isinstance(items, Sequence) or isinstance(items, str):
        raise InputError(name, "bad_type", "steps: must be a list, each entry a name or `name: {options}`")
    if not items:
        raise InputError(name, "empty", "steps: there are none; name at least one, such as `- train`")
    found = []
    for number, item in enumerate(items):
        where = f"steps[{number}]"
        if isinstance(item, str):
            item = {item: {}}
        if not isinstance(item, Mapping) or len(item) != 1 or not isinstance(next(iter(item)), str):
            raise InputError(name, "bad_schema", f"{where}: must be a name or one `name: {{options}}`")
        ((key, options),) = item.items()
        if key not in STEPS:
            raise InputError(
                name,
                "unknown_name",
                f"{where}: no step {shown(key, limit=60)!r}; {closest(key, STEPS)}Known: {', '.join(STEPS)}",
            )
        if options is not None and not isinstance(options, Mapping):
            what = shown(repr(options), limit=60)
            raise InputError(name, "bad_type", f"{where}.{key}: must be a mapping of options, not {what}")
        bound = bind(STEPS[key], options or {}, f"{where}.{key}", name)
        if missing := [option for option in required(key) if option not in bound]:
            raise InputError(name, "missing_key", f"{where}.{key}: needs {missing[0]!r}")
        found.append(Step(key, bound))
    return tuple(found)


def plain(recipe: Recipe) -> dict[str, Any]:
    """Everything resolved, as data that `parse` reads back: what goes into config.yaml."""
    others = {"detection": recipe.task == TASK, "text": recipe.task in TEXT_TASKS}
    unsaid = ("steps", "source", *(name for name, its in others.items() if not its))
    data = {f.name: _data(getattr(recipe, f.name)) for f in dataclasses.fields(recipe) if f.name not in unsaid}
    steps = [{step.name: {**defaults(step.name), **_data(dict(step.options))}} for step in recipe.steps]
    return {**{key: value for key, value in data.items() if value is not None}, "steps": steps}


def defaults(step: str) -> dict[str, Any]:
    """Option -> default of a step, read from its signature."""
    from .steps import STEPS

    parameters = list(inspect.signature(STEPS[step]).parameters.values())[1:]
    return {p.name: _data(p.default) for p in parameters if p.default is not inspect.Parameter.empty}


def required(step: str) -> list[str]:
    """The options of a step that have no default."""
    from .steps import STEPS

    parameters = list(inspect.signature(STEPS[step]).parameters.values())[1:]
    return [p.name for p in parameters if p.default is inspect.Parameter.empty]


def flat(recipe: Recipe) -> dict[str, Any]:
    """{"train.lr": 0.001, ...}: every scalar under its dotted name."""
    found: dict[str, Any] = {}

    def walk(value: Any, name: str) -> None:
        if isinstance(value, Mapping):
            for key, item in value.items():
                walk(item, f"{name}.{key}" if name else str(key))
        elif isinstance(value, list) and name == "steps":
            for number, item in enumerate(value):
                walk(item, f"steps[{number}]")
        else:
            found[name] = value

    walk(plain(recipe), "")
    return found


def _data(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _data(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: _data(item) for key, item in value.items()}
    return [_data(item) for item in value] if isinstance(value, (list, tuple)) else value
