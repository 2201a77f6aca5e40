# SPDX-License-Identifier: Apache-2.0
"""The verbs that make a run: demo, train, compress, run. Options become a recipe; carrying it out is in `runs`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from featherweight import __version__
from featherweight import cli_options as options
from featherweight.console import current, line
from featherweight.errors import CheckFailed, InputError, OptionError, closest, shown
from featherweight.files import pointed

TASKS = {
    "classify": "image-classification", "classification": "image-classification",
    "image-classification": "image-classification", "detect": "object-detection", "detection": "object-detection",
    "object-detection": "object-detection",
}  # fmt: skip
PREDICT = "predict {} --source PICTURE --show-tokens"
ASKED = {
    "text-classification": "ask {} --text TEXT",
    "question-answering": "ask {} --question QUESTION --context FILE",
}


def demo(
    *,
    quick: Annotated[bool, Parameter(help="half a minute: the shipped model goes to int8")] = False,
    from_scratch: Annotated[bool, Parameter(help="train everything, nothing shipped")] = False,
    task: Annotated[str, Parameter(help="classify or detect")] = "classify",
    running: options.Running = options.RUNNING,
) -> int:
    """Compress a small vision transformer on real digits, step by step; `demo detect` trains a detector."""
    if task not in TASKS:
        raise OptionError("--task", f"no {task!r}; {closest(task, TASKS)}Known: {', '.join(TASKS)}")
    if TASKS[task] == "object-detection":
        if quick or from_scratch:
            raise OptionError("--quick" if quick else "--from-scratch", "is of the demo of classifiers; leave it out")
        return _carry_out("demo_detect", project=running.project, name=running.name, overrides=running.overrides())
    if quick and from_scratch:
        raise OptionError("--quick", "starts from the shipped weights; leave it or --from-scratch out")
    recipe = "demo_quick" if quick else "demo_from_scratch" if from_scratch else "demo"
    return _carry_out(recipe, project=running.project, name=running.name, overrides=running.overrides(), demo=True)


def train(
    model: options.Model,
    *,
    data: options.Data,
    task: Annotated[
        str | None, Parameter(help="classify, detect, text or question-answering; what the model is for")
    ] = None,
    training: options.Training = options.TRAINING,
    running: options.Running = options.RUNNING,
    resume: Annotated[str | None, Parameter(help="go on with this run, in its folder")] = None,
) -> int:
    """Train a model, with a teacher if one is named; `train detect` for boxes, `train text` for sentences."""
    if resume is not None:
        raise OptionError("--resume", f"needs no MODEL: featherweight run {shown(resume)} goes on with a run")
    from featherweight.verbs.training import can_measure, training_recipe

    recipe = training_recipe(model, data, task=task, **asdict(training))
    name = running.name or options.fresh_name(running.project or "runs", "train", data)
    code = _carry_out(recipe, project=running.project, name=name, overrides=running.overrides())
    if "task" not in recipe and not can_measure():
        current().warn("no report: it compares runtimes and needs pip install 'featherweight[onnx,openvino]'")
    return code


def compress(
    model: options.Model,
    *,
    data: options.Data,
    recipe: Annotated[str | None, Parameter(help="the steps to try; chosen for the model unless given")] = None,
    max_drop: Annotated[str, Parameter(help="points of top-1, of a detector AP, that may be lost")] = "1%",
    target: Annotated[
        str | None, Parameter(help="2x faster, 5ms at batch 1, or 1MB on disk; exit code 1 if missed")
    ] = None,
    backend: Annotated[str, Parameter(help="the runtime it is for: onnxruntime or openvino")] = "onnxruntime",
    weights: options.WeightsFile = None,
    reset_head: options.ResetHead = False,
    arch: options.Arch = None,
    max_bad: options.Skipped = None,
    running: options.Running = options.RUNNING,
) -> int:
    """Make a model small and fast: steps that help on this machine are kept."""
    from featherweight.verbs.training import model_spec

    screen, project = current(), running.project or "runs"
    spec = model_spec(model, arch=arch, weights=weights, reset_head=reset_head)
    screen.say(_headline())
    from featherweight.runs import compress as start

    name = running.name or options.fresh_name(project, "compress", data)
    asked: dict[str, Any] = {"max_drop": max_drop, "target": target, "backend": backend, "project": project, **spec}
    asked |= {"overrides": running.overrides(**{"data.max_bad": max_bad}), "progress": screen.progress}
    if recipe is not None:
        asked["recipe_file"] = recipe
    called = asked.pop("name")
    return _finished(lambda: start(called, data, name=name, **asked), Path(project) / name)


def run(
    recipe: Annotated[
        str, Parameter(name=("--recipe",), help="a recipe file, the name of one in the package, or a run folder")
    ],
    *,
    running: options.Running = options.RUNNING,
) -> int:
    """Carry out a recipe, or go on where a run stopped."""
    place, name, project = Path(recipe), running.name, running.project
    if place.is_dir() or place.is_symlink() or place.name == "latest":
        place = pointed(place)
        if not (place / "config.yaml").is_file():
            raise InputError(place, "missing", "is no run: it has no config.yaml to go on with")
        project, name, recipe = project or str(place.parent), name or place.name, str(place / "config.yaml")
    return _carry_out(recipe, project=project, name=name, overrides=running.overrides())


def _carry_out(
    recipe: str | Mapping[str, Any], *, project: str | None, name: str | None, overrides: list[str], demo: bool = False
) -> int:
    """Check everything, then run; prints where things are and what to type next."""
    screen = current()
    screen.say(_headline())
    from featherweight import recipe as recipes

    plan = recipes.read(recipe, overrides) if isinstance(recipe, str) else recipes.parse(recipe, "options", overrides)
    from featherweight import runs

    folder = Path(project or plan.output) / (name or plan.name)
    return _finished(lambda: runs.run(plan, project=project, name=name, progress=screen.progress), folder, demo=demo)


def _headline() -> str:
    """The first line, before anything heavy is imported."""
    from featherweight.measure import machine

    found = machine()
    flags = " ".join(flag for flag in found["flags"] if "vnni" in flag or "amx" in flag or "bf16" in flag)
    torch = found["versions"].get("torch")
    parts = [
        f"featherweight {__version__}",
        f"torch {torch}" if torch else "no torch",
        f"{found['cpu']}, {found['cores']} cores",
    ]
    return " · ".join([*parts, *([flags] if flags else []), "offline"]) + "\n"


def get(
    source: Annotated[
        str, Parameter(name=("--source", "-s"), help="a name with published weights, an https address, hf:OWNER/NAME")
    ],
    *,
    out: Annotated[str, Parameter(help="the folder for the file")] = "weights",
    sha256: Annotated[str | None, Parameter(help="of the file, at least 8 digits, where its name has none")] = None,
    whole: Annotated[bool, Parameter(help="of hf:OWNER/NAME all that a model's folder has, into out/NAME")] = False,
) -> int:
    """Download weights; the only command that does."""
    from featherweight.tables import size
    from featherweight.verbs import fetching

    screen = current()
    screen.say(line("get", shown(source)))
    if whole:
        return _whole(source, out, sha256)
    found = fetching.get(source, folder=out, sha256=sha256)
    screen.answer(line("file", f"{shown(found.path)}, {size(found.size_bytes)}, sha256 {found.sha256}"))
    screen.emit({"path": str(found.path), "url": found.url, "sha256": found.sha256, "size_bytes": found.size_bytes})
    arch = source if source in fetching.PUBLISHED else "NAME"
    screen.next(
        f"featherweight info {shown(found.path)} --arch {arch}",
        f"featherweight val {shown(found.path)} --arch {arch} --data YOUR_DATA",
    )
    return 0


def _whole(source: str, out: str, sha256: str | None) -> int:
    """Download a model's folder from the hub."""
    from featherweight import hub

    if not source.startswith("hf:") or sha256 is not None:
        raise OptionError("--whole", "goes with hf:OWNER/NAME, whose files the hub checks itself; leave --sha256 out")
    screen = current()
    place = hub.get(source, folder=out)
    screen.answer(line("folder", shown(place)))
    screen.emit({"path": str(place), "name": source.removeprefix("hf:")})
    screen.next(f"featherweight info {shown(place)}")
    return 0


def _finished(work: Callable[[], Any], folder: Path, *, demo: bool = False) -> int:
    """Do the work, then show what came out, even if a check failed; a run that was stopped says how to go on."""
    screen = current()
    try:
        work()
    except KeyboardInterrupt:
        screen.warn(f"to go on: featherweight run {shown(folder)}")
        raise
    except CheckFailed:
        _shown(folder)
        _next(folder, demo)
        raise
    _shown(folder)
    _next(folder, demo)
    return 0


def _task_of(folder: Path) -> str:
    """What the model of a run is for."""
    from featherweight.doors import yaml

    return str(yaml.read(folder / "config.yaml").get("task", ""))


def _next(folder: Path, demo: bool) -> None:
    """What can be done with what is there."""
    place = shown(folder)
    if (folder / "export" / "model.onnx").exists():
        steps = [f"featherweight {ASKED.get(_task_of(folder), PREDICT).format(place)}"]
        steps.append(f"featherweight bench {place} --backend all")
    elif (folder / "model").is_dir():
        steps = [f"featherweight val {place} --data YOUR_DATA", f"featherweight export {place} --format onnx,openvino"]
    else:
        steps = [f"featherweight run {place}"]
    if demo:
        steps.append("featherweight compress YOUR_MODEL --data YOUR_DATA --max-drop 1% --target 2x")
    current().next(*steps)


def _shown(folder: Path) -> None:
    """The table, the headline, and where everything is."""
    from featherweight import report, tables

    screen = current()
    page = folder / "report.html"
    found = report.load(folder) if (folder / "report.json").exists() else None
    if found is not None and found.stages:
        screen.say()
        if not screen.quiet:
            report.show(found.stages, file=screen.stream)
        if figures := tables.headline(found.stages):
            screen.say("\n" + line("result", tables.sentence(figures)))
    screen.say(line("saved", f"{shown(folder)}/" + (f"   report: {shown(page)}" if page.exists() else "")))
    screen.emit({"run": str(folder), "report": found.to_dict() if found else None})


VERBS = (demo, train, compress, run, get)
