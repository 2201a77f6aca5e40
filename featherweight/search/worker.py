# SPDX-License-Identifier: Apache-2.0
"""What a worker of a search does until its time is up: takes a point, drops it if it is hopeless, else trains it."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from featherweight import files
from featherweight.doors import json as strict_json
from featherweight.errors import FeatherweightError, clean
from featherweight.search.limits import Limits, words
from featherweight.search.points import Ground, Tell, counted, measured
from featherweight.search.study import ETA, Job, Study

EXPLORE = 0.65  # share of the time for new points; the rest is for the longest training of the best
FAILED = 12  # points that came to nothing, with none that was measured: the search gives up
MISSED = 5  # hopeless points in a row, after which one is made that is not
STRONGER = 4  # of what a knob has left, in a step towards a point that is not hopeless
OVERHEAD_SECONDS = 6.0  # of a point beside its training, before one was done
CANNOT = (FeatherweightError, LookupError, TypeError, ValueError, RuntimeError)


@dataclass
class Clock:
    """How long a search may go on, and what a point at each rung takes."""

    seconds: float
    images: Sequence[int]  # of each rung
    per_image: float  # seconds of training, measured before
    began: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        return self.seconds - (time.monotonic() - self.began)

    def takes(self, rung: int, results: Sequence[Mapping[str, Any]]) -> float:
        """Seconds of a point at this rung, by those that were done at it, else by its training pictures."""
        same = [float(r["seconds"]) for r in results if r["images"] == self.images[rung]]
        if same:
            return sum(same) / len(same)
        beside = [float(r["seconds"]) - r["images"] * self.per_image for r in results]
        overhead = max(0.0, sum(beside) / len(beside)) if beside else OVERHEAD_SECONDS
        return overhead + self.images[rung] * self.per_image

    def finishing(self, results: Sequence[Mapping[str, Any]]) -> int | None:
        """The rung that the best point is to have before the time is up; None while there is time for new points."""
        top = len(self.images) - 1
        if self.left > max((1 - EXPLORE) * self.seconds, self.takes(top, results)) or not results:
            return None
        return next((rung for rung in range(top, 0, -1) if self.takes(rung, results) <= self.left), None)


def work(ground: Ground, study: Study, limits: Limits, clock: Clock, tell: Tell, *, points: int | None = None) -> int:
    """Carry out points until the time is up, `points` were measured or none is left; how many were measured."""
    count, missed = 0, 0
    while points is None or count < points:
        results = study.results()
        if clock.takes(0, results) > clock.left:
            break
        if clock.left < (1 - EXPLORE) * clock.seconds and results and clock.finishing(results) is None:
            break
        ground.forecast.learn(results)
        if not results and len(study.failures()) >= FAILED:
            break
        if missed >= MISSED:
            study.enqueue(within(ground, limits, seed=len(study.hopeless())))
            missed = 0
        job = study.next(ground.about, finishing=clock.finishing(results))
        if job is None:
            break
        done = _carry_out(ground, study, limits, clock, job, tell)
        count, missed = count + done, 0 if done else missed + 1
    return count


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
        tell({"event": "point", "says": says, "images": clock.images[job.rung], "left_s": round(clock.left)})
        images = clock.images[job.rung]

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


def rungs_of(full: int, batch: int) -> list[int]:
    """Training pictures at each rung, the longest last: `ETA` times less each down to two batches, three at most."""
    found = [full]
    while len(found) < 3 and found[0] // ETA >= 2 * batch:
        found.insert(0, found[0] // ETA)
    return found


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
    work(ground, study, limits, clock, tell)


def save(folder: Path, plan: Mapping[str, Any]) -> None:
    """What every worker reads, and a second start of the same search."""
    files.publish_json(folder / "plan.json", dict(plan))
