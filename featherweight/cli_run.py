# SPDX-License-Identifier: Apache-2.0
"""The verbs that make a run: demo, train, compress, run. Options become a recipe; carrying it out is in `runs`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from featherweight import __version__
from featherweight import cli_options as options
from featherweight.console import current, line
from featherweight.errors import CheckFailed, InputError, OptionError, closest, shown

OF_THE_RUN = ("resume", "seed", "threads", "project", "name", "sets")  # options that say nothing of the training


def demo(
    *,
    quick: Annotated[bool, Parameter(help="half a minute: tokens and int8 only")] = False,
    from_scratch: Annotated[
        bool, Parameter(help="train everything instead of starting from the shipped weights")
    ] = False,
    task: Annotated[str, Parameter(help="classification; others will come")] = "classification",
    seed: options.Seed = None,
    threads: options.Threads = None,
    project: options.Project = "runs",
    name: options.Name = None,
    sets: options.Sets = None,
) -> int:
    """Compress a small vision transformer on real digits, step by step."""
    if task not in ("classification", "image-classification", "classify"):
        raise OptionError("--task", f"no {task!r}; {closest(task, ('classification',))}Known: classification")
    if quick and from_scratch:
        raise OptionError("--quick", "starts from the shipped weights; leave it or --from-scratch out")
    recipe = "demo_quick" if quick else "demo_from_scratch" if from_scratch else "demo"
    extra = _given(seed=seed, threads=threads)
    return _carry_out(recipe, project=project, name=name, overrides=[*extra, *(sets or [])], demo=True)


def train(
    model: options.Model,
    *,
    data: options.Data,
    teacher: Annotated[
        str | None, Parameter(name=("--teacher", "--teacher-model"), help="a model that teaches: a folder, or a name")
    ] = None,
    distill: Annotated[
        str | None,
        Parameter(name=("--distill", "--distillation-type"), help="hard, soft, token, token-soft, mse or none"),
    ] = None,
    alpha: Annotated[
        float | None, Parameter(name=("--alpha", "--distillation-alpha"), help="the teacher's share of the loss")
    ] = None,
    temperature: Annotated[
        float | None, Parameter(name=("--temperature", "--distillation-tau"), help="of soft answers")
    ] = None,
    weights: Annotated[
        str | None, Parameter(name=("--weights", "--pretrained"), help="a weights file to start from, or shipped")
    ] = None,
    reset_head: Annotated[bool, Parameter(help="a new classifier where the weights have other classes")] = False,
    epochs: int | None = None,
    batch_size: options.Batch = None,
    lr: Annotated[float | None, Parameter(name=("--lr", "--lr0"))] = None,
    optimizer: Annotated[str | None, Parameter(name=("--optimizer", "--opt"), help="adamw or sgd")] = None,
    weight_decay: float | None = None,
    warmup: Annotated[float | None, Parameter(help="share of the steps")] = None,
    ema: Annotated[float | None, Parameter(help="decay of a moving average of the weights, such as 0.999")] = None,
    clip: Annotated[float | None, Parameter(help="largest gradient norm")] = None,
    precision: Annotated[str | None, Parameter(help="float32 or bfloat16")] = None,
    label_smoothing: float | None = None,
    images: Annotated[int | None, Parameter(help="per epoch; all of them unless given")] = None,
    arch: options.Arch = None,
    seed: options.Seed = None,
    threads: options.Threads = None,
    max_bad: Annotated[float | None, Parameter(help="largest share of unreadable files that is skipped over")] = None,
    resume: Annotated[str | None, Parameter(help="go on with this run, in its folder")] = None,
    project: options.Project = "runs",
    name: options.Name = None,
    sets: options.Sets = None,
) -> int:
    """Train a model, with a teacher if one is named."""
    asked = {key: value for key, value in locals().items() if key not in OF_THE_RUN}
    if resume is not None:
        raise OptionError("--resume", f"needs no MODEL: featherweight run {shown(resume)} goes on with a run")
    from featherweight.verbs import training

    recipe = training.training_recipe(**asked)
    overrides = [*_given(seed=seed, threads=threads), *(sets or [])]
    code = _carry_out(
        recipe, project=project, name=name or options.fresh_name(project, "train", data), overrides=overrides
    )
    if not training.can_measure():
        current().warn("no report: it compares runtimes and needs pip install 'featherweight[onnx,openvino]'")
    return code


def compress(
    model: options.Model,
    *,
    data: options.Data,
    recipe: Annotated[str | None, Parameter(help="the steps to try; chosen for the model unless given")] = None,
    max_drop: Annotated[str, Parameter(name=("--max-drop",), help="points of top-1 that may be lost")] = "1%",
    target: Annotated[
        str | None, Parameter(help="2x faster, 5ms at batch 1, or 1MB on disk; exit code 1 if missed")
    ] = None,
    backend: Annotated[str, Parameter(help="the runtime it is for: onnxruntime or openvino")] = "onnxruntime",
    weights: Annotated[str | None, Parameter(help="a weights file for the named model, or shipped")] = None,
    reset_head: Annotated[bool, Parameter(help="a new classifier where the weights have other classes")] = False,
    arch: options.Arch = None,
    seed: options.Seed = None,
    threads: options.Threads = None,
    max_bad: Annotated[float | None, Parameter(help="largest share of unreadable files that is skipped over")] = None,
    project: options.Project = "runs",
    name: options.Name = None,
    sets: options.Sets = None,
) -> int:
    """Make a model small and fast: steps that help on this machine are kept."""
    screen = current()
    from featherweight.verbs import model_spec

    spec = model_spec(model, arch=arch, weights=weights, reset_head=reset_head)
    screen.say(_headline())
    overrides = [*_given(seed=seed, threads=threads), *(sets or [])]
    if max_bad is not None:
        overrides.append(f"data.max_bad={max_bad}")
    from featherweight.runs import compress as start

    named = name or options.fresh_name(project, "compress", data)
    asked: dict[str, Any] = {"max_drop": max_drop, "target": target, "backend": backend, "overrides": overrides, **spec}
    if recipe is not None:
        asked["recipe_file"] = recipe

    def work() -> Any:
        return start(asked.pop("name"), data, **asked, project=project, name=named, progress=screen.progress)

    return _finished(work, Path(project) / named)


def run(
    recipe: Annotated[
        str, Parameter(name=("--recipe",), help="a recipe file, the name of one in the package, or a run folder")
    ],
    *,
    seed: options.Seed = None,
    threads: options.Threads = None,
    project: Annotated[str | None, Parameter(name=("--project", "--output"), help="the folder of all runs")] = None,
    name: options.Name = None,
    sets: options.Sets = None,
) -> int:
    """Carry out a recipe, or go on where a run stopped."""
    place = Path(recipe)
    if place.is_dir() or place.is_symlink():
        from featherweight.files import pointed

        place = pointed(place) if place.is_symlink() else place
        if not (place / "config.yaml").is_file():
            raise InputError(place, "missing", "is no run: it has no config.yaml to go on with")
        project, name, recipe = project or str(place.parent), name or place.name, str(place / "config.yaml")
    overrides = [*_given(seed=seed, threads=threads), *(sets or [])]
    return _carry_out(recipe, project=project, name=name, overrides=overrides)


def _given(**known: Any) -> list[str]:
    """Options that are fields of every recipe, as overrides."""
    return [f"{key}={value}" for key, value in known.items() if value is not None]


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


def _next(folder: Path, demo: bool) -> None:
    """What can be done with what is there."""
    place = shown(folder)
    if (folder / "export" / "model.onnx").exists():
        steps = [f"featherweight predict {place} --source PICTURE --show-tokens"]
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


VERBS = (demo, train, compress, run)
