# SPDX-License-Identifier: Apache-2.0
"""What a worker of a search does until its time is up: takes a point, drops it if it is hopeless, else trains it."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from featherweight import files
from featherweight.doors import json as strict_json
from featherweight.errors import clean
from featherweight.search.front import last_of_each
from featherweight.search.lengths import Clock
from featherweight.search.limits import Limits, words
from featherweight.search.points import Ground, Tell, counted, measured
from featherweight.search.space import CANNOT
from featherweight.search.study import Job, Study

FAILED = 12  # points that came to nothing, with none that was measured: the search gives up
MISSED = 5  # hopeless points in a row, after which one is made that is not
NOTHING = 25  # hopeless points in a row, after which the time that is left is for the best
STRONGER = 4  # of what a knob has left, in a step towards a point that is not hopeless


def work(
    ground: Ground,
    study: Study,
    limits: Limits,
    clock: Clock,
    tell: Tell,
    *,
    points: int | None = None,
    written: Mapping[str, Any] | None = None,
) -> int:
    """Carry out points until the time is up, `points` were measured or none is left; how many were measured.

    written: what the recipe as it is written came to.
    """
    count, missed, row = 0, 0, 0
    while points is None or count < points:
        results = study.results()
        known = [*results, *([written] if written else [])]
        finishing = clock.finishing(known, now=row >= NOTHING)
        if clock.takes(0, known) > clock.left or finishing == 0:
            break
        ground.forecast.learn(known)
        wanted = replace(limits, **cheapest(known, limits, ground.about))
        if not results and len(study.failures()) >= FAILED:
            break
        if missed >= MISSED:
            study.enqueue(within(ground, wanted, seed=len(study.hopeless())))
            missed = 0
        job = study.next(ground.about, finishing=finishing, written=written)
        if job is None:
            break
        done = _carry_out(ground, study, wanted, clock, job, tell)
        count, missed, row = count + done, 0 if done else missed + 1, 0 if done else row + 1
    return count


def cheapest(results: Sequence[Mapping[str, Any]], limits: Limits, start: Mapping[str, Any]) -> dict[str, float]:
    """If only the loss is limited, the cost of the cheapest model that keeps to it; what costs more is not wanted."""
    if limits.bounded:
        return {}
    kept = [r for r in last_of_each(results) if not limits.too_much(r, float(start["top1"]) - float(r["top1"]))]
    return {limits.cost: min(float(r[limits.cost]) for r in kept)} if kept else {}


def within(ground: Ground, limits: Limits, *, seed: int) -> dict[str, Any]:
    """A point drawn at random, and made stronger in all its knobs until the forecast lets it pass."""
    drawn, knobs = random.Random(seed), ground.space.knobs
    places = {knob.name: drawn.randrange(len(knob.choices)) for knob in knobs}
    free = [knob for knob in knobs if knob.step not in ("student", "bits", "train")]
    point: dict[str, Any] = {}
    for _ in range(max(len(knob.choices) for knob in knobs)):
        point = {knob.name: knob.choices[places[knob.name]] for knob in knobs}
        try:
            if not limits.excess(counted(ground, point)):
                break
        except CANNOT:
            pass
        for knob in free:
            places[knob.name] += math.ceil((len(knob.choices) - 1 - places[knob.name]) / STRONGER)
    return point


def _carry_out(ground: Ground, study: Study, limits: Limits, clock: Clock, job: Job, tell: Tell) -> bool:
    """One job; whether anything was measured."""
    says = ground.space.says(job.point)
    try:
        told = counted(ground, job.point)
        about = {**told, "point": dict(job.point), "says": says}
        if job.rung == 0 and (reason := hopeless(told, limits, ground.forecast.slack)):
            study.skip(job.number, about, reason)
            return False
        images = job.images or clock.images[job.rung]
        tell({"event": "point", "says": says, "images": images, "left_s": round(clock.left)})

        def listen(event: Mapping[str, Any]) -> None:
            study.beat(job.number)

        found = measured(ground, job.point, images, listen)
    except CANNOT as error:
        study.fail(job.number, clean(f"{says}: {error}", limit=300))
        return False
    found |= {
        "rung": job.rung,
        "raw_ms": told["raw_ms"],
        "kind": told["kind"],
        "forecast_ms": told["latency_ms"],
        "key": job.key,
    }
    study.done(job.number, found)
    tell({"event": "measured", **found})
    return True


def hopeless(told: Mapping[str, Any], limits: Limits, slack: float) -> str:
    """Why a point cannot meet the limits, whatever its training brings, or ""."""
    room = {"latency_ms": 1 + slack, "size_bytes": 1.0, "macs": 1.02}
    for cost, above in limits.excess(told).items():
        if above > room[cost] - 1:
            return f"{words(cost, float(told[cost]))} expected, {words(cost, getattr(limits, cost))} allowed"
    return ""


@dataclass
class Others:
    """Further workers in processes of their own, each with its log."""

    processes: list[subprocess.Popen[bytes]]

    @classmethod
    def begin(cls, folder: Path, count: int, seconds: float) -> Others:
        """Start them on a search whose folder is prepared."""
        began = []
        for number in range(1, count + 1):
            code = "import sys; from featherweight.search import worker; worker.main(sys.argv[1:])"
            with (folder / f"worker-{number}.log").open("ab") as log:
                command = [sys.executable, "-c", code, str(folder), str(number), str(seconds)]
                began.append(subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL))
        return cls(began)

    def wait(self) -> list[int]:
        """Until all have ended: their exit codes."""
        return [process.wait() for process in self.processes]

    def stop(self) -> None:
        for process in self.processes:
            process.terminate()


def main(arguments: Sequence[str]) -> None:
    """A further worker: folder, number, seconds."""
    from featherweight.search.ground import opened

    folder, number, seconds = Path(arguments[0]), int(arguments[1]), float(arguments[2])

    def tell(event: Mapping[str, Any]) -> None:
        print(json.dumps(event, default=str), flush=True)

    plan = strict_json.read(folder / "plan.json")
    ground, study, limits = opened(plan, number)
    clock = Clock(seconds, plan["rungs"], plan["per_image"])
    work(ground, study, limits, clock, tell, written=plan.get("written"))


def save(folder: Path, plan: Mapping[str, Any]) -> None:
    """What every worker reads, and a second start of the same search."""
    files.publish_json(folder / "plan.json", dict(plan))
