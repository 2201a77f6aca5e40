# SPDX-License-Identifier: Apache-2.0
"""A recipe: YAML text -> checked steps. A typo stops here, before any work, with the place and what would be right.

A default exists once, in a signature: every key is bound to the field of a dataclass below, or to the parameter of the
step's function in `steps`. What running a recipe means is in `runs`.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from .binding import Ratio, Within, bind
from .doors import yaml
from .errors import InputError, OptionError, closest

SCHEMA = 1
TASKS = {
    "image-classification": "image-classification",
    "classification": "image-classification",
    "classify": "image-classification",
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
    optimizer: Literal["adamw", "sgd"] = "adamw"
    weight_decay: Annotated[float, Within(0.0, 10.0)] = 0.05
    warmup: Annotated[float, Within(0.0, 1.0)] = 0.05  # share of the steps
    min_ratio: Annotated[float, Within(0.0, 1.0)] = 0.01  # of lr, at the end of the cosine
    clip: Annotated[float, Within(0.0, 1e6, open_low=True)] | None = 1.0
    ema: Annotated[float, Within(0.0, 1.0)] | None = None
    precision: Literal["float32", "bfloat16"] = "float32"
    label_smoothing: Annotated[float, Within(0.0, 0.9)] = 0.0
    augment: Mapping[str, Any] = field(default_factory=dict)  # fields of data.transforms.Augment
    validate_images: Count | None = None  # of the validation part, after each epoch


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
    if not path.is_file():
        known = sorted(p.stem for p in folder.glob("*.yaml"))
        raise OptionError(
            "recipe", f"no {name!r}; {closest(name, known)}Known: {', '.join(known)}, or the path of a file"
        )
    return path


def read(path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """The recipe in a file, or the one of that name in the package, with `key=value` overrides."""
    path = Path(path)
    if not path.suffix and not path.exists():
        path = builtin(str(path))
    return parse(yaml.read(path), path, overrides)


def parse(data: str | Mapping[str, Any], name: str | Path = "recipe", overrides: Iterable[str] = ()) -> Recipe:
    """The recipe in a text or mapping. Raises InputError about `name`: where, what, and what would be right."""
    raw = yaml.parse(data, name) if isinstance(data, str) else data
    if not isinstance(raw, Mapping):
        raise InputError(name, "bad_schema", "a recipe is a mapping: model, data, steps ...")
    raw = override(dict(raw), overrides, name)
    version = raw.pop("schema", SCHEMA)
    if version != SCHEMA or isinstance(version, bool):
        raise InputError(
            name, "version", f"schema {version!r}: this version reads schema {SCHEMA}; update featherweight"
        )
    steps = _steps(raw.pop("steps", ["train"]), name)
    raw = {key: _short(key, value) for key, value in raw.items()}
    recipe: Recipe = bind(Recipe, raw, "", name, skip=("steps", "schema", "source"))
    if recipe.task not in TASKS:
        raise InputError(
            name, "unknown_name", f"task: no {recipe.task!r}; {closest(recipe.task, TASKS)}Known: {', '.join(TASKS)}"
        )
    if not re.fullmatch(r"[\w][\w .@+-]{0,99}", recipe.name) or recipe.name.endswith((" ", ".")):
        raise InputError(
            name,
            "bad_name",
            f"name: {recipe.name!r} is not up to 100 letters, digits, space or . _ - + @; it names a folder",
        )
    _known_model(recipe, name)
    return dataclasses.replace(recipe, task=TASKS[recipe.task], steps=steps, source=str(name))


def _known_model(recipe: Recipe, name: str | Path) -> None:
    from .models import zoo

    for where in ("model", "teacher"):
        spec: ModelSpec | None = getattr(recipe, where)
        if spec is None or spec.name.startswith("timm:") or Path(spec.name).exists():
            continue
        try:
            zoo.entry(spec.name)
        except OptionError as error:
            raise InputError(name, "unknown_name", f"{where}: {error.text}, or the path of a model folder") from None


def _short(key: str, value: Any) -> Any:
    """`model: name` for {name: name}; `data: source`, its options beside it."""
    if key in ("model", "teacher") and isinstance(value, str):
        return {"name": value}
    if key == "data":
        if isinstance(value, str):
            return {"source": value}
        if isinstance(value, Mapping):
            own = {field.name for field in dataclasses.fields(DataSpec)}
            options = {k: v for k, v in value.items() if k not in own}
            return {
                **{k: v for k, v in value.items() if k in own},
                **({"options": {**value.get("options", {}), **options}} if options else {}),
            }
    return value


def _steps(items: Any, name: str | Path) -> tuple[Step, ...]:
    from .steps import STEPS

    if not isinstance(items, Sequence) or isinstance(items, str):
        raise InputError(name, "bad_type", "steps: must be a list, each entry a name or `name: {options}`")
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
                name, "unknown_name", f"{where}: no step {key!r}; {closest(key, STEPS)}Known: {', '.join(STEPS)}"
            )
        if options is not None and not isinstance(options, Mapping):
            raise InputError(name, "bad_type", f"{where}.{key}: must be a mapping of options, not {options!r}")
        found.append(Step(key, bind(STEPS[key], options or {}, f"{where}.{key}", name)))
    return tuple(found)


def override(raw: dict[str, Any], pairs: Iterable[str], name: str | Path) -> dict[str, Any]:
    """`train.lr=1e-3`, `steps[2].prune.mlp=0.4` or, where a step comes once, `prune.mlp=0.4`. Returns a new mapping."""
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key.strip():
            raise OptionError("--set", f"{pair!r} is not key=value, such as train.lr=1e-3")
        value = yaml.parse(f"value: {text}", "--set")["value"]
        raw = _set(raw, _path(key.strip(), raw), value, key)
    return raw


def _path(key: str, raw: Mapping[str, Any]) -> list[str | int]:
    parts: list[str | int] = []
    for part in key.split("."):
        found = re.fullmatch(r"([\w-]+)((?:\[\d+\])*)", part)
        if not found:
            raise OptionError("--set", f"{key!r} is not a place, such as train.lr or steps[2].prune.mlp")
        parts += [found[1], *map(int, re.findall(r"\d+", found[2]))]
    fields = {f.name for f in dataclasses.fields(Recipe)}
    if len(parts) > 1 and parts[0] not in fields:
        steps = raw.get("steps", [])
        places = [
            i for i, step in enumerate(steps) if step == parts[0] or (isinstance(step, Mapping) and parts[0] in step)
        ]
        if len(places) != 1:
            known = sorted({*fields, *(s if isinstance(s, str) else next(iter(s), "") for s in steps)})
            raise OptionError(
                "--set",
                f"{key}: {parts[0]!r} is {len(places)} of the steps, not one; "
                f"{closest(str(parts[0]), known)}Known: {', '.join(known)}",
            )
        parts = ["steps", places[0], *parts]
    return parts


def _set(node: Any, path: Sequence[str | int], value: Any, key: str) -> Any:
    """The same tree with one value changed; what is on the way is copied."""
    if not path:
        return value
    head, rest = path[0], path[1:]
    if isinstance(head, int):
        if not isinstance(node, list) or head >= len(node):
            raise OptionError("--set", f"{key}: there is no entry {head}")
        return [*node[:head], _set(node[head], rest, value, key), *node[head + 1 :]]
    if isinstance(node, str):  # a short form: `- prune`, `data: digits`
        node = {node: {}} if node == head else {"source" if key.startswith("data") else "name": node}
    if node is not None and not isinstance(node, Mapping):
        raise OptionError("--set", f"{key}: {head!r} has no parts of its own")
    node = dict(node or {})
    return {**node, head: _set(node.get(head), rest, value, key)}


def plain(recipe: Recipe) -> dict[str, Any]:
    """Everything resolved, as data that `parse` reads back: what goes into config.yaml."""
    data = {
        f.name: _data(getattr(recipe, f.name)) for f in dataclasses.fields(recipe) if f.name not in ("steps", "source")
    }
    steps = [{step.name: {**defaults(step.name), **_data(dict(step.options))}} for step in recipe.steps]
    return {**{key: value for key, value in data.items() if value is not None}, "steps": steps}


def defaults(step: str) -> dict[str, Any]:
    """Option -> default of a step, read from its signature."""
    from .steps import STEPS

    parameters = list(inspect.signature(STEPS[step]).parameters.values())[1:]
    return {p.name: _data(p.default) for p in parameters}


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


def options_of(function: Callable[..., Any]) -> dict[str, Any]:
    """Name -> annotation of a step's keyword options."""
    hints = typing.get_type_hints(function, include_extras=True)
    return {name: hints[name] for name in list(inspect.signature(function).parameters)[1:]}
