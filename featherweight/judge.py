# SPDX-License-Identifier: Apache-2.0
"""Whether a step helped on this machine within the budget, and whether the budget was met at the end.

A step is kept if the model still answers well enough on the validation part and the exported file became faster (the
95 % interval of the paired ratio lies above 1) or, where bytes are what is asked for, smaller. Accuracy and latency are
those of the exported file in the runtime the budget names.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from . import measure
from .budget import Goal, goal
from .deploy import evaluate_file, exported
from .errors import CheckFailed
from .recipe import Budget
from .work import Stage, Work


def judged(before: Work, after: Work) -> Work:
    """`after` if its step helped, else `before` with the step's stage marked as left out, and why."""
    if before.model is None or not after.stages or len(after.stages) < 2:
        return after
    budget = after.recipe.budget or Budget()
    wanted = goal(budget)
    start, last, new = after.stages[0], kept_stages(before)[-1], after.stages[-1]
    found = after.once_data("judged", lambda: _compare(after, start, last, new, budget))
    kept, reason = verdict(found, wanted)
    after.tell({"event": "judged", "title": new.title, "kept": kept, "reason": reason})
    stage = dataclasses.replace(new, kept=kept, reason=reason)
    stages = (*after.stages[:-1], stage)
    return dataclasses.replace(after if kept else before, stages=stages, step=after.step, key=after.key)


def kept_stages(work: Work) -> list[Stage]:
    return [stage for stage in work.stages if stage.kept]


def verdict(found: dict[str, Any], wanted: Goal) -> tuple[bool, str]:
    """Kept or not, and the reason in words."""
    drop = found["start_top1"] - found["top1"]
    if drop > wanted.max_drop + 1e-12:
        return False, f"{100 * drop:.1f} points lost, {100 * wanted.max_drop:g} allowed"
    if measure.faster(found["ratio"], tuple(found["interval"])):
        return True, f"{found['ratio']:.2f}x faster"
    smaller = found["last_bytes"] / found["bytes"]
    if wanted.kind == "bytes" and smaller > 1.01:
        return True, f"{smaller:.2f}x smaller"
    return False, measure.verdict(found["ratio"], tuple(found["interval"]))


def _compare(work: Work, start: Stage, last: Stage, new: Stage, budget: Budget) -> dict[str, Any]:
    files = {name: exported(work, stage) for name, stage in (("start", start), ("last", last), ("new", new))}
    top1 = {name: evaluate_file(work, path, "val", budget.backend)["top1"] for name, path in files.items()}
    images = next(iter(work.batches("val", size=1, limit=1).epoch(0)))["image"].numpy()
    race = measure.race(
        {
            name: measure.runnable(files[name], batch=1, images=images, backend=budget.backend)
            for name in ("last", "start", "new")
        },
        baseline="last",
        budget_s=4.0,
        repeats=100,
    )
    return {
        "top1": top1["new"],
        "start_top1": top1["start"],
        "last_top1": top1["last"],
        "ratio": race["new"].ratio,
        "interval": list(race["new"].ratio_interval or (0.0, 0.0)),
        "latency_ms": race["new"].median_ms,
        "start_ms": race["start"].median_ms,
        "bytes": files["new"].stat().st_size,
        "last_bytes": files["last"].stat().st_size,
        "start_bytes": files["start"].stat().st_size,
    }


def check_budget(work: Work) -> None:
    """Raises CheckFailed if what is left does not meet the target; the artefacts are saved by then."""
    budget = work.recipe.budget or Budget()
    wanted = goal(budget)
    if wanted.kind is None:
        return
    found = work.results.get("final") or final_numbers(work)
    values = {
        "speed": found["start_ms"] / found["latency_ms"],
        "latency_ms": found["latency_ms"],
        "bytes": found["bytes"],
    }
    value = values[wanted.kind]
    met = value >= wanted.value if wanted.kind == "speed" else value <= wanted.value
    work.tell({"event": "budget", "met": met, "target": budget.target, "reached": value, "kind": wanted.kind})
    if not met:
        said = {"speed": f"{value:.2f}x", "latency_ms": f"{value:.2f} ms", "bytes": f"{value / 1e6:.2f} MB"}[
            wanted.kind
        ]
        steps = sum(stage.kept for stage in work.stages[1:])
        raise CheckFailed(
            f"target {budget.target} was missed: {said} after {steps} of {len(work.stages) - 1} steps that helped; "
            f"everything is saved in {work.folder}. Allow a larger max_drop, or add steps"
        )


def final_numbers(work: Work) -> dict[str, Any]:
    """Start against what is left, in the budget's runtime at batch 1."""
    budget, stages = work.recipe.budget or Budget(), kept_stages(work)
    return _compare(work, stages[0], stages[0], stages[-1], budget)
