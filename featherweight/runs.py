# SPDX-License-Identifier: Apache-2.0
"""A run: a recipe carried out in a folder that describes itself and that a second start goes on in.

    runs/NAME/  config.yaml  env.json  log.txt  metrics.csv  steps/00-teacher/ ...  model/  export/  report.html ...

Each step has a key: a digest of the step, its options, all before it and the data. What a step made under one key is
found again under it; the first step whose key changed is done anew, and all that follow. A killed training goes on
from its last checkpoint.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from csv import DictWriter
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from . import __version__, artifact, data, files, measure, recipe
from .binding import bind
from .budget import goal
from .data import Data
from .errors import FeatherweightError, OptionError
from .journal import Journal
from .models import zoo
from .recipe import Budget, Recipe, Step
from .runtime.preprocess import Preprocess
from .tasks.classification import Classification
from .work import Tell, Work

LONGEST_LINE = 4000


def run(
    what: Recipe | str | Path,
    *,
    project: str | Path | None = None,
    name: str | None = None,
    overrides: Sequence[str] = (),
    progress: Tell | None = None,
    given: Mapping[str, nn.Module] | None = None,
    source: Data | None = None,
) -> Work:
    """Carry out a recipe, or go on where it stopped. `given` and `source` stand in for models and data of the recipe.

    Raises CheckFailed if a check or the budget failed; everything made so far is in the folder all the same.
    """
    plan = what if isinstance(what, Recipe) else recipe.read(what, overrides)
    plan = dataclasses.replace(plan, name=name or plan.name, output=str(project or plan.output))
    if plan.data is None and source is None:
        raise OptionError(
            "data", "the recipe names none: add `data: digits`, a folder of class folders, a parquet or a CSV"
        )
    folder = Path(plan.output) / plan.name
    folder.mkdir(parents=True, exist_ok=True)
    with files.lock(folder), _threads(plan.threads):
        files.clean_stale(folder)
        tell = _teller(folder, progress)
        work = _begin(plan, folder, tell, given or {}, source)
        for number, step in enumerate(plan.steps):
            work = _do(work, step, number)
        files.point(folder.parent / "latest", folder)
        return _end(work)


def compress(
    model: str | Path | nn.Module,
    source: str | Path | Data,
    *,
    recipe_file: str | Path = "compress",
    max_drop: str = Budget.max_drop,
    target: str | None = None,
    backend: str = Budget.backend,
    project: str | Path | None = None,
    name: str | None = None,
    overrides: Sequence[str] = (),
    progress: Tell | None = None,
    **spec: Any,
) -> Work:
    """Make a model smaller step by step, keeping a step only if it helped on this machine within the budget.

    `model` is a name, a folder of ours or a module; `spec`: fields of `recipe.ModelSpec` (weights, reset_head ...).
    Raises CheckFailed if the target was missed, when everything is on the disk.
    """
    given = {"the given model": model} if isinstance(model, nn.Module) else {}
    called = next(iter(given), str(model))
    settings = {"max_drop": max_drop, "target": target, "backend": backend}
    plan = recipe.read(recipe_file, overrides)
    budget = bind(Budget, {k: v for k, v in settings.items() if v is not None}, "budget", "compress")
    goal(budget)
    plan = dataclasses.replace(
        plan, model=bind(recipe.ModelSpec, {"name": called, **spec}, "model", "compress"), budget=budget
    )
    loaded = source if isinstance(source, Data) else None
    if loaded is None:
        known = plan.data or recipe.DataSpec("")
        plan = dataclasses.replace(plan, data=dataclasses.replace(known, source=str(source)))
    return run(plan, project=project, name=name, progress=progress, given=given, source=loaded)


def _begin(plan: Recipe, folder: Path, tell: Tell, given: Mapping[str, nn.Module], source: Data | None) -> Work:
    tell(
        {
            "event": "start",
            "name": plan.name,
            "folder": str(folder),
            "steps": [step.name for step in plan.steps],
            "version": __version__,
        }
    )
    loaded = source or data.load(plan.data.source, max_bad=plan.data.max_bad, seed=plan.data.seed, **plan.data.options)  # type: ignore[union-attr]
    counts = {part: len(images) for part in ("train", "val", "test") if (images := getattr(loaded, part)) is not None}
    tell(
        {
            "event": "data",
            "name": loaded.name,
            "format": loaded.format,
            "classes": len(loaded.classes),
            "counts": counts,
            "skipped": len(loaded.skipped),
            "note": loaded.note,
        }
    )
    files.publish(
        folder / "config.yaml", yaml.safe_dump(recipe.plain(plan), sort_keys=False, allow_unicode=True).encode()
    )
    environment = {
        **measure.machine(),
        "seed": plan.seed,
        "data": loaded.fingerprint,
        "threads": torch.get_num_threads(),
    }
    files.publish(folder / "env.json", (json.dumps(environment, indent=1, sort_keys=True, default=str) + "\n").encode())
    task = Classification(classes=loaded.classes, label_smoothing=plan.train.label_smoothing)
    return Work(plan, folder, loaded, task, _preprocess(plan, given), tell, given)


def _preprocess(plan: Recipe, given: Mapping[str, nn.Module]) -> Preprocess:
    """The model's own way to prepare a picture."""
    if plan.model is None:
        raise OptionError("model", "the recipe names none: add `model: vit_digits`, say")
    spec = plan.model
    module = given.get(spec.name) or (artifact.load(spec.name) if artifact.is_artifact(spec.name) else None)
    record = artifact.record_of(module) if module is not None else None
    if record is not None and record.preprocess is not None:
        return record.preprocess
    return zoo.preprocess_of(spec.name, module, spec.config)


def _do(work: Work, step: Step, number: int) -> Work:
    """One step in its numbered folder; what another key left there is cleared away first."""
    from .judge import judged
    from .steps import STEPS

    name = f"{number:02d}-{step.name}"
    key = _key(work, step)
    work = dataclasses.replace(work, step=name, key=key)
    mark = work.place / "key"
    if work.place.exists() and (not mark.is_file() or mark.read_text() != key):
        shutil.rmtree(work.place)
    for stale in work.folder.glob(f"steps/{number:02d}-*"):
        if stale.name != name:
            shutil.rmtree(stale)
    work.place.mkdir(parents=True, exist_ok=True)
    files.publish(mark, key.encode())
    work.tell(
        {
            "event": "step",
            "name": step.name,
            "number": number,
            "of": len(work.recipe.steps),
            "options": dict(step.options),
        }
    )
    try:
        after = STEPS[step.name](work, **step.options)
    except OptionError as error:
        raise OptionError(f"steps[{number}].{step.name}: {error.where}", error.text) from None
    except (LookupError, TypeError) as error:
        if isinstance(error, FeatherweightError) or work.recipe.budget is None:
            raise _mistake(error, f"steps[{number}].{step.name}") from error
        text = f"{step.name}: left out, this model cannot have it ({error.args[0] if error.args else error})"
        work.tell({"event": "note", "text": text})
        return dataclasses.replace(work, left_out=(*work.left_out, text))
    except ValueError as error:
        raise _mistake(error, f"steps[{number}].{step.name}") from error
    _write_metrics(work.folder)
    return judged(work, after) if work.recipe.budget and after.model is not work.model else after


def _mistake(error: Exception, where: str) -> Exception:
    """A method's complaint about its options or the model, as a user's mistake in this step."""
    return (
        error
        if isinstance(error, FeatherweightError)
        else OptionError(where, str(error.args[0] if error.args else error))
    )


def _key(work: Work, step: Step) -> str:
    """A digest of everything the step's result depends on."""
    plan = work.recipe
    facts = {
        "before": work.key,
        "step": step.name,
        "options": recipe.plain(dataclasses.replace(plan, steps=(step,)))["steps"],
        "plan": {
            k: v
            for k, v in recipe.plain(plan).items()
            if k in ("task", "model", "teacher", "data", "seed", "train", "budget")
        },
        "data": work.data.fingerprint,
        "threads": torch.get_num_threads(),
        "versions": [__version__, str(torch.__version__)],
        "weights": [_digest(path) for spec in (plan.model, plan.teacher) if spec for path in _weights(spec)],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def _weights(spec: recipe.ModelSpec) -> list[Path]:
    if spec.weights == "shipped":
        return [zoo.shipped_weights(spec.name)]
    path = Path(spec.weights or spec.name)
    return [path / "model.safetensors" if path.is_dir() else path] if path.exists() else []


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def _end(work: Work) -> Work:
    """The final model in its own folder; the budget's verdict last, when everything is on the disk."""
    from .judge import check_budget

    if work.model is not None:
        target = work.folder / "model"
        artifact.save(work.model, target, classes=work.data.classes, preprocess=work.preprocess)
        card = work.results.get("card")
        if card:
            files.publish(target / "README.md", card.encode())
    work.tell(
        {
            "event": "end",
            "folder": str(work.folder),
            "report": str(work.folder / "report.html") if "report" in work.results else None,
        }
    )
    if work.recipe.budget is not None:
        check_budget(work)
    return work


def _write_metrics(folder: Path) -> None:
    """metrics.csv: one row for every epoch of every step, from the journals."""
    rows = []
    for path in sorted(folder.glob("steps/*/journal.jsonl")):
        for row in Journal(path).rows():
            if row["event"] == "epoch":
                flat = {"stage": path.parent.name, "epoch": row["epoch"], "step": row["step"], "loss": row["loss"]}
                flat |= {f"loss_{name}": value for name, value in row["terms"].items()}
                flat |= {f"val_{k}": v for k, v in row.get("validation", {}).items() if isinstance(v, (int, float))}
                rows.append(flat)
    if rows:
        text = io.StringIO()
        writer = DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        files.publish(folder / "metrics.csv", text.getvalue().encode())


def _teller(folder: Path, progress: Tell | None) -> Tell:
    """Tells the caller, and writes what is worth keeping into log.txt, one clean line each."""

    def tell(event: Mapping[str, Any]) -> None:
        if event["event"] != "step" or "loss" not in event:
            line = json.dumps(event, default=str, ensure_ascii=True)
            with (folder / "log.txt").open("a", encoding="utf-8") as log:
                log.write(line[:LONGEST_LINE] + "\n")
        if progress is not None:
            progress(event)

    return tell


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or measure.available_threads())
    try:
        yield
    finally:
        torch.set_num_threads(before)
