# SPDX-License-Identifier: Apache-2.0
"""A run: a recipe carried out in a folder that describes itself and that a second start goes on in.

    runs/NAME/  config.yaml  env.json  log.txt  metrics.csv  steps/00-teacher/ ...  model/  export/  report.html ...

Each step has a key: a digest of the step, its options, all before it and the data. What a step made under one key is
found again under it; the first step whose key changed is done anew, and all that follow. A killed training goes on
from its last checkpoint.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import __version__, artifact, data, detecting, distributed, files, measure, recipe, sources, texting
from .beginning import check_student
from .binding import bind
from .data import Data
from .data.corpus import Corpus
from .data.scenes import Scenery
from .doors import yaml as strict_yaml
from .errors import FeatherweightError, InputError, OptionError, shown
from .journal import write_metrics
from .keys import key_of, weights_of
from .models import zoo
from .recipe import Budget, ModelSpec, Recipe, Step
from .run_folder import held, silent, teller, threads
from .runtime.preprocess import Preprocess
from .tasks.classification import Classification, HuggingFace
from .vetting import name_problem
from .work import Tell, Work

GIVEN = "the given model"
# steps of the leading process, for which the others do not wait
ALONE = ("export", "measure", "report", "landscape", "evaluate")


def run(
    what: Recipe | str | Path,
    *,
    project: str | Path | None = None,
    name: str | None = None,
    overrides: Sequence[str] = (),
    progress: Tell | None = None,
    given: Mapping[str, nn.Module] | None = None,
    source: Data | Scenery | Corpus | None = None,
    preprocess: Preprocess | None = None,
) -> Work:
    """Carry out a recipe, or go on where it stopped; given, source, preprocess: models, data, sizes not of the recipe.

    Raises CheckFailed if a check or the budget failed; everything made so far is in the folder all the same.
    """
    if isinstance(what, Recipe) and overrides:
        raise OptionError("overrides", "go with the name of a recipe, not with one that is parsed already")
    plan = what if isinstance(what, Recipe) else recipe.read(what, overrides)
    plan = dataclasses.replace(plan, name=name or plan.name, output=str(project or plan.output))
    folder = _folder(plan)
    if plan.data is None and source is None:
        text = "the recipe names none: add `data: digits`, a folder of class folders, a parquet or a CSV"
        raise OptionError("data", text)
    for spec in (plan.model, plan.teacher):
        if spec and spec.weights not in (None, "shipped") and not weights_of(spec):
            raise InputError(spec.weights, "missing", "no such weights file; null begins with random weights")
    team = distributed.join(torch.device(plan.train.device), plan.train.timeout)
    if team.world > 1 and plan.budget is not None:
        raise OptionError("budget", "is judged by one process: run this recipe without torchrun")
    if team.differs(zlib.crc32(str(folder).encode())):
        raise OptionError("name", "several processes need one run folder: give --name")
    with team.watched(), held(folder, team), threads(plan.threads):
        tell = teller(folder, progress) if team.leads else silent
        try:
            work = _begin(plan, folder, tell, given or {}, source, preprocess)
            for number, step in enumerate(plan.steps):
                work = _do(work, step, number)
            return _end(work) if team.leads else work
        except (FeatherweightError, KeyboardInterrupt) as error:
            tell({"event": "stopped", "error": str(error) or type(error).__name__})
            raise


def compress(
    model: str | Path | nn.Module,
    source: str | Path | Data | Scenery | Corpus,
    *,
    recipe_file: str | Path | None = None,
    max_drop: str = Budget.max_drop,
    target: str | None = None,
    backend: str = Budget.backend,
    project: str | Path | None = None,
    name: str | None = None,
    overrides: Sequence[str] = (),
    progress: Tell | None = None,
    preprocess: Preprocess | None = None,
    **spec: Any,
) -> Work:
    """Make a model smaller step by step, keeping a step only if it helped on this machine within the budget.

    `model` is a name, a folder of ours or a module, whose pictures `preprocess` prepares; `spec`: fields of
    `recipe.ModelSpec` (weights, reset_head ...); recipe_file: `compress`, of a detector `compress_detect`, unless
    given. Raises CheckFailed if the target was missed, with all on the disk.
    """
    budget = {"max_drop": max_drop, "target": target, "backend": backend}
    fields: dict[str, Any] = {"budget": {key: value for key, value in budget.items() if value is not None}}
    given = isinstance(source, Data | Scenery | Corpus)
    if not given:
        fields["data"] = {"source": str(source)}
    if not isinstance(model, nn.Module):
        fields["model"] = trained_spec({"name": str(model), **spec})
    task = texting.task_of_model(model)
    if task in texting.TASKS:
        fields["task"] = task
    file = recipe_file or {"": "compress", detecting.TASK: "compress_detect"}.get(task, "compress_text")
    plan = recipe.read(file, overrides, given=fields, partial=isinstance(model, nn.Module))
    options: dict[str, Any] = {"project": project, "name": name, "progress": progress, "preprocess": preprocess}
    if isinstance(model, nn.Module):
        plan = dataclasses.replace(plan, model=bind(ModelSpec, {**spec, "name": GIVEN}, "model", "compress"))
        options["given"] = {GIVEN: model}
    return run(plan, source=source if given else None, **options)  # type: ignore[arg-type]


def trained_spec(spec: dict[str, Any]) -> dict[str, Any]:
    """A named model with weights: what nobody has trained cannot lose anything by being made smaller."""
    name = spec["name"]
    if spec.get("weights") is not None or artifact.is_artifact(name) or texting.is_folder(name):
        return spec
    if name.startswith("timm:") or not zoo.entry(name).shipped or spec.get("config"):
        raise OptionError("weights", f"{shown(name)} comes without: give a weights file, or train it first")
    return {**spec, "weights": "shipped"}


def _folder(plan: Recipe) -> Path:
    """Where the run lives: a new folder, or one that a run has been in before."""
    if problem := name_problem(plan.name):
        raise OptionError("name", problem)
    folder = Path(plan.output) / plan.name
    strange = folder.is_dir() and not (folder / ".lock").exists() and not (folder / "config.yaml").exists()
    if strange and any(folder.iterdir()):
        raise OptionError("name", f"{shown(folder)} holds something that is no run; choose another name")
    return folder


def _begin(
    plan: Recipe,
    folder: Path,
    tell: Tell,
    given: Mapping[str, nn.Module],
    source: Data | Scenery | Corpus | None,
    preprocess: Preprocess | None,
) -> Work:
    names = [step.name for step in plan.steps]
    tell({"event": "start", "name": plan.name, "folder": str(folder), "steps": names, "version": __version__})
    loaded = source or _load(plan)
    counts = {part: len(images) for part in ("train", "val", "test") if (images := getattr(loaded, part)) is not None}
    about = {"name": loaded.name, "format": loaded.format, "classes": len(loaded.classes), "counts": counts}
    tell({"event": "data", **about, "skipped": len(loaded.skipped), "note": loaded.note})
    if distributed.here().leads:
        _described(plan, folder, loaded)
    work = Work(plan, folder, loaded, _task(plan, loaded, given), preprocess or _preprocess(plan, given), tell, given)
    if plan.model and any(s.name == "distill" and s.options.get("how", "token") == "token" for s in plan.steps):
        check_student(plan.model, work)
    return work


def _described(plan: Recipe, folder: Path, loaded: Data | Scenery | Corpus) -> None:
    """The run folder says what it is of; what other steps left there is cleared away."""
    files.publish(folder / "config.yaml", strict_yaml.write(recipe.plain(plan)).encode())
    environment = {**measure.machine(), "seed": plan.seed, "data": loaded.fingerprint}
    environment |= {"threads": torch.get_num_threads(), "processes": distributed.here().world}
    files.publish(folder / "env.json", (json.dumps(environment, indent=1, sort_keys=True, default=str) + "\n").encode())
    for old in folder.glob("steps/*"):  # of a recipe that had more steps, or others
        if old.name not in {f"{number:02d}-{step.name}" for number, step in enumerate(plan.steps)}:
            _clear(folder, old)


def _load(plan: Recipe) -> Data | Scenery | Corpus:
    if plan.task == detecting.TASK:
        return detecting.load(plan)
    if plan.task in texting.TASKS:
        return texting.load(plan)
    spec = plan.data or recipe.DataSpec("")
    return data.load(spec.source, max_bad=spec.max_bad, seed=spec.seed, **spec.options)


def _task(plan: Recipe, loaded: Data | Scenery | Corpus, given: Mapping[str, nn.Module]) -> Any:
    """How the models are called; those of the transformers library in their own way."""
    if isinstance(loaded, Scenery):
        return detecting.task_of(plan, loaded)
    if isinstance(loaded, Corpus):
        return texting.task_of(plan, loaded)
    theirs = any(type(module).__module__.startswith("transformers.") for module in given.values())
    kind = HuggingFace if theirs else Classification
    return kind(classes=loaded.classes, label_smoothing=plan.train.label_smoothing)


def _preprocess(plan: Recipe, given: Mapping[str, nn.Module]) -> Preprocess | None:
    """The model's own way to prepare a picture; of texts none."""
    if plan.task in texting.TASKS:
        return None
    spec = plan.model
    if spec is None:
        raise OptionError("model", "the recipe names none: add `model: vit_digits`, say")
    module = given.get(spec.name)
    if module is None and artifact.is_artifact(spec.name):
        module = artifact.load(spec.name)
    elif module is None and sources.is_picture_model(spec.name):
        module = sources.picture_model(spec.name)
    record = artifact.record_of(module) if module is not None else None
    if record is not None and record.preprocess is not None:
        size = spec.config.get("image_size", record.preprocess.size)
        sides = (size, size) if isinstance(size, int) else tuple(size)
        return dataclasses.replace(record.preprocess, size=sides)
    return zoo.preprocess_of(spec.name, module, spec.config)


def _do(work: Work, step: Step, number: int) -> Work:
    """One step in its numbered folder; what another key left there is cleared away first."""
    from .judge import judged
    from .steps import STEPS

    name = f"{number:02d}-{step.name}"
    key = key_of(work, step)
    work = dataclasses.replace(work, step=name, key=key)
    team = distributed.here()
    if team.leads:
        _marked(work, key)
    team.wait()
    if not team.leads and step.name in ALONE:
        return work
    about = {"name": step.name, "number": number, "of": len(work.recipe.steps), "options": dict(step.options)}
    work.tell({"event": "step", **about})
    try:
        after = STEPS[step.name](work, **step.options)
    except OptionError as error:
        raise OptionError(f"steps[{number}].{step.name}: {error.where}", error.text) from None
    except (LookupError, TypeError) as error:
        if isinstance(error, FeatherweightError) or work.recipe.budget is None:
            raise _mistake(error, f"steps[{number}].{step.name}") from error
        why = str(error.args[0] if error.args else error).partition(" Known:")[0].rstrip(".")
        text = f"{step.name}: left out, this model cannot have it ({why})"
        work.tell({"event": "note", "text": text})
        return dataclasses.replace(work, left_out=(*work.left_out, text))
    except ValueError as error:
        raise _mistake(error, f"steps[{number}].{step.name}") from error
    if team.leads:
        write_metrics(work.folder)
    return judged(work, after) if work.recipe.budget and after.model is not work.model else after


def _marked(work: Work, key: str) -> None:
    """The step's folder, with its key in it; what another key left there is gone."""
    mark = work.place / "key"
    if work.place.exists() and (not mark.is_file() or mark.read_text() != key):
        _clear(work.folder, work.place)
    work.place.mkdir(parents=True, exist_ok=True)
    files.publish(mark, key.encode())


def _clear(folder: Path, step: Path) -> None:
    """Take away what a step left under another key, and what was made of it."""
    for old in (step, folder / "export", folder / "model"):
        shutil.rmtree(old, ignore_errors=True)


def _mistake(error: Exception, where: str) -> Exception:
    """A method's complaint about its options or the model, as a user's mistake in this step."""
    if isinstance(error, FeatherweightError):
        return error
    return OptionError(where, str(error.args[0] if error.args else error))


def _end(work: Work) -> Work:
    """The final model in its own folder; the budget's verdict last, when everything is on the disk."""
    files.point(work.folder.parent / "latest", work.folder)
    from .judge import check_budget

    if work.model is not None:
        target = work.folder / "model"
        known: dict[str, Any] = {"classes": work.data.classes, "preprocess": work.preprocess}
        artifact.save(work.model, target, task=work.recipe.task, **known)
        card = work.results.get("card")
        if card:
            files.publish(target / "README.md", card.encode())
    page = str(work.folder / "report.html") if "report" in work.results else None
    work.tell({"event": "end", "folder": str(work.folder), "report": page})
    if work.recipe.budget is not None:
        check_budget(work)
    return work
