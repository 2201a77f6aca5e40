# SPDX-License-Identifier: Apache-2.0
"""Whether a step helped on this machine within the budget, and whether the budget was met at the end.

A step is kept if the model still answers well enough on the validation part and the exported file became faster (the
95 % interval of the paired ratio lies above 1) or, where bytes are what is asked for, smaller; a step that only trains,
if nothing was lost. Accuracy and latency are those of the exported file in the runtime the budget names.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from . import measure
from .budget import Goal, goal
from .deploy import evaluate_file, exported, right, runnable
from .detecting import TASK
from .errors import CheckFailed, shown
from .recipe import Budget
from .texting import ASK
from .work import Stage, Work

TRAINS = ("baseline", "train", "distill")  # steps after which the model is as large as before
MERGES = "fuse"  # is not judged: files are of merged models anyway
RACE_SECONDS = 4.0
WORDS = {TASK: "AP", ASK: "F1"}  # what is lost, where it is not top-1


def judged(before: Work, after: Work) -> Work:
    """`after` if its step helped, else `before` with the step's stage marked as left out, and why."""
    if before.model is None or not after.stages or len(after.stages) < 2 or work_of(after.step) == MERGES:
        return after
    budget = after.recipe.budget or Budget()
    wanted = goal(budget)
    start, last, new = after.stages[0], kept_stages(before)[-1], after.stages[-1]
    found = after.once_data("judged", lambda: _compare(after, start, last, new, budget))
    kept, reason = verdict(found, wanted, trains=work_of(after.step) in TRAINS)
    after.tell({"event": "judged", "title": new.title, "kept": kept, "reason": reason})
    stage = dataclasses.replace(new, kept=kept, reason=reason)
    stages = (*after.stages[:-1], stage)
    return dataclasses.replace(after if kept else before, stages=stages, step=after.step, key=after.key)


def kept_stages(work: Work) -> list[Stage]:
    return [stage for stage in work.stages if stage.kept]


def work_of(step: str) -> str:
    """The name of the step that a numbered folder is of."""
    return step.partition("-")[2]


def verdict(found: dict[str, Any], wanted: Goal, *, trains: bool = False) -> tuple[bool, str]:
    """Kept or not, and the reason in words; a step that only trains is asked for its answers, not its speed."""
    drop = found["start_top1"] - found["top1"]
    if drop > wanted.max_drop + 1e-12:
        return False, f"{100 * drop:.1f} points lost, {100 * wanted.max_drop:g} allowed"
    if trains:
        gain = found["top1"] - found["last_top1"]
        return gain >= 0, f"{100 * gain:+.1f} points"
    if measure.faster(found["ratio"], tuple(found["interval"])):
        return True, measure.verdict(found["ratio"], tuple(found["interval"]))
    smaller = found["last_bytes"] / found["bytes"]
    if wanted.kind == "bytes" and smaller > 1.01:
        return True, f"{smaller:.2f}× smaller"
    return False, measure.verdict(found["ratio"], tuple(found["interval"]))


def _compare(work: Work, start: Stage, last: Stage, new: Stage, budget: Budget) -> dict[str, Any]:
    """Accuracy (of a detector AP), latency and bytes of three stages' files; stages that are one are measured once."""
    stages = {"last": last, "start": start, "new": new}
    names = {stage.place: name for name, stage in reversed(stages.items())}
    files = {names[stage.place]: exported(work, stage) for stage in stages.values()}
    seen = {name: work.at(stages[name]) for name in files}
    top1 = {name: right(evaluate_file(seen[name], path, "val", budget.backend)) for name, path in files.items()}
    ready = {name: runnable(work, stages[name], path, backend=budget.backend) for name, path in files.items()}
    race = measure.race(ready, baseline="last", budget_s=RACE_SECONDS, repeats=100)
    own = {name: names[stage.place] for name, stage in stages.items()}
    found = race[own["new"]]
    return {
        "top1": top1[own["new"]],
        "start_top1": top1[own["start"]],
        "last_top1": top1["last"],
        "ratio": found.ratio or 1.0,
        "interval": list(found.ratio_interval or (1.0, 1.0)),
        "latency_ms": found.median_ms,
        "start_ms": race[own["start"]].median_ms,
        "bytes": files[own["new"]].stat().st_size,
        "last_bytes": files["last"].stat().st_size,
        "start_bytes": files[own["start"]].stat().st_size,
    }


@dataclass(frozen=True)
class Outcome:
    """What a run reached of what its budget asked for."""

    met: bool
    asked: str
    reached: str = ""


def outcome(work: Work) -> Outcome:
    """Start against what is left, in the budget's runtime at batch 1."""
    budget, stages = work.recipe.budget or Budget(), kept_stages(work)
    wanted = goal(budget)
    asked = f"at most {budget.max_drop} of {WORDS.get(work.recipe.task, 'top-1')} lost"
    if wanted.kind is None:
        return Outcome(True, asked)
    found = work.once_data("final", lambda: _compare(work, stages[0], stages[0], stages[-1], budget))
    value = {"speed": found["start_ms"] / found["latency_ms"]}.get(wanted.kind, found.get(wanted.kind, 0.0))
    met = value >= wanted.value if wanted.kind == "speed" else value <= wanted.value
    size = f"{value / 1e6:.2f} MB" if value >= 1e6 else f"{value / 1e3:.1f} kB"
    words = {"speed": f"{value:.2f}x", "latency_ms": f"{value:.2f} ms", "bytes": size}
    return Outcome(met, f"{asked}, {budget.target}", words[wanted.kind])


def check_budget(work: Work) -> None:
    """Raises CheckFailed if what is left does not meet the target; the artefacts are saved by then."""
    budget = work.recipe.budget or Budget()
    if budget.target is None:
        return
    found = outcome(work)
    work.tell({"event": "budget", "met": found.met, "target": budget.target, "reached": found.reached})
    if not found.met:
        steps = sum(stage.kept for stage in work.stages[1:])
        raise CheckFailed(
            f"target {budget.target} was missed: {found.reached} after {steps} of {len(work.stages) - 1} steps that "
            f"helped; everything is saved in {shown(work.folder)}. Allow a larger max_drop, or add steps"
        )
