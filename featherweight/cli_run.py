# SPDX-License-Identifier: Apache-2.0
"""The verbs that make a run: demo, train, compress, run. Options become a recipe; carrying it out is in `runs`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from featherweight import __version__
from featherweight import cli_options as options
from featherweight.console import current, line
from featherweight.errors import InputError, OptionError, closest, shown

DISTANCES = {  # --distill -> the options of the recipe's step `distill`
    "hard": {"how": "logits", "distance": "hard"},
    "soft": {"how": "logits", "distance": "soft"},
    "token": {"how": "token", "distance": "hard"},
    "token-soft": {"how": "token", "distance": "soft"},
    "mse": {"how": "logits", "distance": "mse"},
}
TRAINING = {  # an option -> the field of the recipe's `train`
    "epochs": "epochs", "batch": "batch_size", "lr": "lr", "optimizer": "optimizer", "weight_decay": "weight_decay",
    "warmup": "warmup", "ema": "ema", "clip": "clip", "precision": "precision", "label_smoothing": "label_smoothing",
    "images": "images",
}  # fmt: skip


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
    batch: options.Batch = None,
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
    if resume is not None:
        raise OptionError("--resume", f"needs no MODEL: featherweight run {shown(resume)} goes on with a run")
    settings = {key: value for key, value in locals().items() if key in TRAINING and value is not None}
    recipe: dict[str, Any] = {
        "model": _model_spec(model, arch, weights, reset_head),
        "data": {"source": data, **({} if max_bad is None else {"max_bad": max_bad})},
        "train": {TRAINING[key]: value for key, value in settings.items()},
        "steps": ["train", *_measuring()],
    }
    wanted = distill if distill is not None else "hard" if teacher else "none"
    if wanted != "none":
        recipe |= {
            "teacher": _model_spec(teacher or "", None, None, False),
            "steps": _distilling(wanted, teacher, alpha, temperature),
        }
    elif teacher is not None or alpha is not None or temperature is not None:
        raise OptionError("--distill", "is none, so --teacher, --alpha and --temperature have nothing to do")
    overrides = [*_given(seed=seed, threads=threads), *(sets or [])]
    return _carry_out(
        recipe, project=project, name=name or options.fresh_name(project, "train", data), overrides=overrides
    )


def _distilling(wanted: str, teacher: str | None, alpha: float | None, temperature: float | None) -> list[Any]:
    """The steps of a training with a teacher."""
    if wanted not in DISTANCES:
        known = (*DISTANCES, "none")
        raise OptionError("--distill", f"no {wanted!r}; {closest(wanted, known)}Known: {', '.join(known)}")
    if teacher is None:
        raise OptionError("--distill", f"{wanted} needs a teacher: add --teacher with a model folder or a name")
    given = {"alpha": alpha, "temperature": temperature}
    choice = {**DISTANCES[wanted], **{key: value for key, value in given.items() if value is not None}}
    return ["load", "teacher", {"distill": choice}, *_measuring()]


def _measuring() -> list[Any]:
    """Numbers and a page at the end of a training, where what they need is installed."""
    from importlib.util import find_spec

    if all(find_spec(package) for package in ("onnx", "onnxruntime", "openvino")):
        return [{"measure": {"part": "val", "budget_s": 1.0}}, "report"]
    current().warn("no report: it compares runtimes, which need pip install 'featherweight[onnx,openvino]'")
    return []


def _model_spec(model: str, arch: str | None, weights: str | None, reset_head: bool) -> dict[str, Any]:
    """The recipe's way to say it: a name or folder, and its weights."""
    from featherweight import sources

    if not model:
        return {}
    found = sources.find(model, backend="torch", arch=arch)
    spec: dict[str, Any] = {"name": found.name}
    if found.path is not None and found.path.is_dir():
        spec["name"] = str(found.path)
    elif found.path is not None and arch is not None:
        spec |= {"name": arch, "weights": str(found.path)}
    elif found.path is not None:
        raise OptionError(
            "--arch", f"is missing: {shown(found.path)} holds weights; say whose, or name the model's folder"
        )
    if weights is not None:
        if "weights" in spec:
            raise OptionError("--weights", f"the weights are those of {shown(model)} already")
        spec["weights"] = weights
    return {**spec, **({"reset_head": True} if reset_head else {})}


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
    arch: options.Arch = None,
    seed: options.Seed = None,
    threads: options.Threads = None,
    max_bad: Annotated[float | None, Parameter(help="largest share of unreadable files that is skipped over")] = None,
    project: options.Project = "runs",
    name: options.Name = None,
    sets: options.Sets = None,
) -> int:
    """Make a model small and fast: steps that help on this machine are kept."""
    from featherweight import sources

    screen = current()
    source = sources.find(model, backend="torch", arch=arch)
    screen.say(_headline())
    overrides = [
        *_given(seed=seed, threads=threads),
        *([] if max_bad is None else [f"data.max_bad={max_bad}"]),
        *(sets or []),
    ]
    from featherweight.recipe import compress as start

    named = name or options.fresh_name(project, "compress", data)
    spec = _model_spec(model, arch, weights, False)
    asked = {"recipe": recipe, "max_drop": max_drop, "target": target, "backend": backend, "overrides": overrides}
    work = start(
        spec if spec.get("weights") else str(source.path or source.name),
        data,
        **asked,
        project=project,
        name=named,
        progress=screen.progress,
    )
    return _finished(work)


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

    return _finished(runs.run(plan, project=project, name=name, progress=screen.progress), demo=demo)


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


def _finished(work: Any, *, demo: bool = False) -> int:
    """The table, where everything is, and the next commands."""
    from featherweight import report, tables

    screen = current()
    folder = Path(work.folder)
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
    place = shown(folder)
    steps = [f"featherweight val {place} --data YOUR_DATA", f"featherweight export {place} --format onnx,openvino"]
    if (folder / "export").is_dir():
        steps = [
            f"featherweight predict {place} --source PICTURE --show-tokens",
            f"featherweight bench {place} --backend all",
        ]
    screen.next(
        *steps, *(["featherweight compress YOUR_MODEL --data YOUR_DATA --max-drop 1% --target 2x"] if demo else [])
    )
    return 0


VERBS = (demo, train, compress, run)
