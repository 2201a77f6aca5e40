# SPDX-License-Identifier: Apache-2.0
"""The claims of the papers on efficient vision transformers, tried on CIFAR-10 at the scale of one machine.

    python benchmarks/vit_study.py --data cifar10 --out runs/study               what is missing, one after the other
    python benchmarks/vit_study.py --data cifar10 --out runs/study --only claim1
    python benchmarks/vit_study.py --out runs/study --table                      no training: tables and plot alone

Start it twice to use two cores: each takes what the other has not. Killed, it goes on from the last checkpoint when it
is started again. The test part is looked at once for each training, when that is done. What it finds is kept in
docs/measured/study-NAME.json, and docs/studies/vit.md is written from there.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from study_plan import KEEPS, ROWS, WHOLE, Trial, chosen, trial
from study_table import write_docs
from torch import Tensor, nn

from featherweight import data, files, measure, recipe, runs
from featherweight.data import Data
from featherweight.errors import FeatherweightError
from featherweight.interrupt import Interrupted
from featherweight.layers import AuxLogits, TwoHeads
from featherweight.methods.dynamicvit import set_keep
from featherweight.methods.mixed_depth import cut, depth_of
from featherweight.methods.token_scores import all_sparse
from featherweight.recipe import ModelSpec, Recipe, Step
from featherweight.recurrence import Recurrent
from featherweight.surgery import all_of
from featherweight.tasks.classification import scores
from featherweight.work import Work

ROOT = Path(__file__).resolve().parents[1]
PAUSE = 20.0  # seconds until it is looked again whether the other process is done
Answers = dict[str, np.ndarray]  # view -> logits (N, K)
CarryOut = Callable[[Trial, int, Path, Data], dict[str, Any]]


def folder_of(out: Path, trial: Trial, seed: int) -> Path:
    return out / "runs" / f"{trial.name}-{0 if trial.once else seed}"


def result_of(out: Path, trial: Trial, seed: int) -> Path:
    return out / "results" / f"{trial.name}-{0 if trial.once else seed}.json"


def planned(one: Trial, seed: int, out: Path) -> Recipe:
    """The trial's recipe without its measuring; with the models that other trials have trained already."""
    plan = recipe.read(one.recipe, [*one.overrides, f"seed={seed}"])
    steps = tuple(step for step in plan.steps if step.name not in ("measure", "report"))
    if one.teacher:
        teacher = ModelSpec(str(folder_of(out, trial(one.teacher), seed) / "model"))
        plan = dataclasses.replace(plan, teacher=teacher)
    if one.start:
        start = ModelSpec(str(folder_of(out, trial(one.start), seed) / "model"))
        steps = tuple(Step("load", {}) if step.name == "baseline" else step for step in steps)
        plan = dataclasses.replace(plan, model=start)
    return dataclasses.replace(plan, steps=steps)


@contextlib.contextmanager
def heads_seen(model: nn.Module) -> Iterator[dict[str, list[Tensor]]]:
    """While inside, what each head of the class answers, batch by batch, before they are made one."""
    seen: dict[str, list[Tensor]] = {"class head": [], "distillation head": []}

    def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        heads = inputs[:2] if isinstance(module, TwoHeads) else inputs[:1]
        for name, logits in zip(seen, heads, strict=False):
            seen[name].append(logits.detach())

    joined = [*all_of(model, TwoHeads).values(), *all_of(model, AuxLogits).values()]
    hooks = [module.register_forward_pre_hook(look) for module in joined]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def answers(work: Work, model: nn.Module) -> tuple[Answers, np.ndarray]:
    """The logits of every view of the model on the test part, and the labels."""

    def asked(one: nn.Module) -> tuple[np.ndarray, np.ndarray]:
        return work.task.predictions(one, work.batches("test", size=100).epoch(0))

    with heads_seen(model) as seen:
        found, labels = asked(model)
    views = {WHOLE: found}
    views |= {name: torch.cat(parts).float().numpy() for name, parts in seen.items() if parts}
    if all_sparse(model):
        views |= {f"keep {keep:g}": asked(set_keep(model, keep))[0] for keep in KEEPS}
    if all_of(model, Recurrent):
        deepest = depth_of(model)
        views |= {f"{n} pass{'es' * (n > 1)}": asked(cut(model, loops=n))[0] for n in range(1, deepest)}
    return views, labels


def carried_out(trial: Trial, seed: int, out: Path, source: Data) -> dict[str, Any]:
    """Train, or go on; then evaluate, once. What is found as plain values."""
    plan, folder = planned(trial, seed, out), folder_of(out, trial, seed)
    with clocked(folder.with_suffix(".seconds")) as clock:
        work = runs.run(plan, project=folder.parent, name=folder.name, source=source)
        if (model := work.model) is None:
            raise ValueError(f"{trial.recipe} makes no model")
        views, labels = answers(work, model)
    found = told(trial, plan, work, model, clock())
    return {**found, "views": {name: view(logits, labels) for name, logits in views.items()}}


def told(trial: Trial, plan: Recipe, work: Work, model: nn.Module, seconds: float) -> dict[str, Any]:
    """What every result says of a training: what was asked, what came out, and what it cost."""
    example = next(iter(work.batches("test", size=1, limit=1).epoch(0)))["image"]
    said = recipe.plain(plan)
    return {
        "trial": trial.name,
        "seed": plan.seed,
        "recipe": trial.recipe,
        "overrides": list(trial.overrides),
        "train": {key: value for key, value in said["train"].items() if value is not None},
        "steps": said["steps"],
        "params": measure.parameters(model),
        "macs": measure.macs(model, example),
        "cpu_minutes": round(seconds / 60, 2),
        "machine": measure.machine(),
    }


@contextlib.contextmanager
def clocked(path: Path) -> Iterator[Callable[[], float]]:
    """Processor seconds spent inside, those of earlier starts included, which are kept at `path`; a kill loses some."""
    before = float(path.read_text()) if path.is_file() else 0.0
    began = time.process_time()

    def spent() -> float:
        return before + time.process_time() - began

    try:
        yield spent
    finally:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.publish(path, f"{spent():.1f}\n".encode())


def view(logits: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Accuracy with its interval, and which of the pictures were right, a bit each."""
    found = scores(logits, labels)
    right = np.packbits(logits.argmax(1) == labels)
    return {**found, "interval": list(found["interval"]), "right": base64.b64encode(right.tobytes()).decode("ascii")}


def work_through(
    trials: Sequence[Trial],
    seeds: int,
    out: Path,
    source: Path,
    tell: Callable[[], None],
    *,
    carry_out: CarryOut | None = None,
    read: Callable[[Path], Data] | None = None,
) -> int:
    """Every trial with every seed, in turn; what another process is at is left to it. How many could not be done.

    `tell` is called after each. One that fails is said, and the others go on. carry_out, read: of another study.
    """
    wanted = [(one, seed) for seed in range(seeds) for one in trials if seed == 0 or not one.once]
    failed: set[tuple[str, int]] = set()
    loaded: Data | None = None
    while pending := [(one, seed) for one, seed in wanted if not result_of(out, one, seed).is_file()]:
        taken = False
        for one, seed in pending:
            if (one.name, seed) in failed or not ready(one, seed, trials, out):
                continue
            loaded = loaded or (read or cifar)(source)
            try:
                with files.lock(out / "taken" / result_of(out, one, seed).stem):
                    if not result_of(out, one, seed).is_file():
                        kept(one, seed, out, loaded, carry_out or carried_out)
            except (FeatherweightError, LookupError, TypeError, ValueError, RuntimeError) as error:
                if "in use by another process" in str(error):
                    taken = True
                    continue
                failed.add((one.name, seed))
                say(f"{one.name}, seed {seed}: {type(error).__name__}: {error}")
            tell()
            break  # from the top: what this one was needed for comes first
        else:
            if not taken:
                break  # what is left needs what failed
            time.sleep(PAUSE)
    return len(pending)


def cifar(source: Path) -> Data:
    """CIFAR-10, a tenth of whose training part validates."""
    return data.load(source, val_share=0.1, in_memory=True)


def kept(one: Trial, seed: int, out: Path, source: Data, carry_out: CarryOut) -> None:
    """Do a trial and keep what was found."""
    say(f"{one.name}, seed {seed}")
    found = carry_out(one, seed, out, source)
    result_of(out, one, seed).parent.mkdir(parents=True, exist_ok=True)
    files.publish_json(result_of(out, one, seed), found)
    say(f"{one.name}, seed {seed}: {found['views'][WHOLE]['top1']:.2%}")


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def ready(trial: Trial, seed: int, trials: Sequence[Trial], out: Path) -> bool:
    """Whether the models that it needs are there."""
    needed = [one for one in trials if one.name in trial.needs()]
    return all(result_of(out, one, seed).is_file() for one in needed)


def collect(out: Path, docs: Path) -> None:
    """Every result into docs/measured, without the bits that no comparison uses."""
    used = {(side.trial, side.view) for row in ROWS for side in (row.better, row.than)}
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted((out / "results").glob("*.json")):
        run = json.loads(path.read_text(encoding="utf-8"))
        for name, seen in run["views"].items():
            if (run["trial"], name) not in used:
                del seen["right"]
        found.setdefault(run["trial"], []).append(run)
    (docs / "measured").mkdir(parents=True, exist_ok=True)
    for name, several in found.items():
        files.publish_json(docs / "measured" / f"study-{name}.json", {"format": 1, "trial": name, "runs": several})


def write(out: Path, docs: Path) -> None:
    """What is known so far, into the docs."""
    collect(out, docs)
    write_docs(docs)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="CIFAR-10: a folder with train and test, of any kind that is read")
    parser.add_argument("--out", type=Path, default=Path("runs/study"), help="where the runs are kept")
    parser.add_argument("--only", action="append", default=[], help="claim1 ... claim5, or a trial's name; repeatable")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="where the tables are written")
    parser.add_argument("--table", action="store_true", help="train nothing")
    options = parser.parse_args(arguments)
    if not options.table:
        if options.data is None:
            parser.error("--data is needed to train: the folder of CIFAR-10")
        try:
            left = work_through(
                chosen(options.only), options.seeds, options.out, options.data, lambda: write(options.out, options.docs)
            )
        except (Interrupted, FeatherweightError) as error:  # stopped, or the data are not there
            print(error)
            return error.exit_code
        return 1 if left else 0
    write(options.out, options.docs)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
