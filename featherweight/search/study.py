# SPDX-License-Identifier: Apache-2.0
"""Which point is trained next, and for how long: successive halving over what any number of workers found so far.

A trial is a point at one rung: rung 0 trains least, each next one `ETA` times as long, begun anew so that its recipe
makes it. A worker takes the best third of a rung up as soon as there is a third (ASHA, Li 2018, arXiv 1810.05934), else
asks the sampler for a new point (TPE with constraints, Bergstra 2011). At the end the best are trained once more, each
for as long as the time that is left allows; that is one more rung. Everything is in Optuna's storage, so a search goes
on where it was stopped, and workers on several machines share it; what is claimed twice is done once.
"""

from __future__ import annotations

import os
import platform
import random
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featherweight.errors import FeatherweightError, OptionError, missing_extra, shown
from featherweight.search.front import last_of_each, ordered
from featherweight.search.lengths import ETA, GAIN
from featherweight.search.limits import Limits
from featherweight.search.space import Space, key_of

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial, Trial

FRESH = 8  # points drawn at random before the sampler has something to go by
GONE_SECONDS = 900.0  # a worker of another machine that has said nothing for so long is gone
BEAT_SECONDS = 30.0
NAME = "featherweight-fit"
KNOWN_ALREADY, PUT_OFF = "known already", "put off until there is more time"
KNOWN = 4  # points in a row that are known already, after which one is drawn that is not
DRAWN = 2000  # of which none is new: the space is exhausted


@dataclass(frozen=True)
class Job:
    """A point to be trained at a rung, claimed by this worker."""

    number: int  # of the trial
    point: Mapping[str, Any]
    rung: int
    images: int | None = None  # of its training, where the rung does not say

    @property
    def key(self) -> str:
        return key_of(self.point)


class Study:
    """The search's trials in their storage."""

    def __init__(self, storage: str, space: Space, limits: Limits, *, rungs: int, seed: int, about: str) -> None:
        """about: a digest of what is searched; OptionError for a storage that holds the search of something else."""
        with _quiet() as optuna:
            sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=FRESH, constraints_func=_violation)
            try:
                self._study = optuna.create_study(
                    study_name=NAME, storage=_storage(storage), sampler=sampler, load_if_exists=True,
                    directions=["maximize", "minimize"],
                )  # fmt: skip
            except Exception as error:
                why = str(error).splitlines()[0] if str(error) else type(error).__name__
                raise OptionError("--storage", f"{shown(storage)} cannot be used: {why}") from error
        known = self._study.user_attrs.get("about")
        if known not in (None, about):
            text = f"{shown(storage)} holds the search of something else: model, data, recipe, limits or runtime differ"
            raise OptionError("--storage", f"{text}; name another, or another --name")
        self._study.set_user_attr("about", about)
        self.space, self.limits, self.rungs = space, limits, rungs
        self._beaten = 0.0
        self._mine: dict[int, Trial] = {}  # those that this worker claimed

    def enqueue(self, point: Mapping[str, Any], rung: int = 0, images: int | None = None) -> None:
        """Let a worker do this next."""
        with _quiet():
            self._study.enqueue_trial(self.space.parameters(point), user_attrs={"rung": rung, "images": images})

    def empty(self) -> bool:
        return not self._study.get_trials(deepcopy=False)

    def results(self, rung: int | None = None) -> list[dict[str, Any]]:
        """What was measured so far, of all workers, in the order of the trials."""
        found = [t for t in self._study.get_trials(deepcopy=False) if "found" in t.user_attrs]
        return [t.user_attrs["found"] for t in found if rung in (None, t.user_attrs["rung"])]

    def hopeless(self) -> list[dict[str, Any]]:
        """What was not trained because of what it would cost, with the forecast."""
        return [t.user_attrs["skipped"] for t in self._study.get_trials(deepcopy=False) if "skipped" in t.user_attrs]

    def take_up(self) -> int:
        """Trials whose worker is gone are queued again: how many. So is what was put off."""
        trials, count = self._study.get_trials(deepcopy=False), 0
        queued = [_asked(t) for t in trials if t.state.name != "FAIL"]
        for trial in trials:
            if trial.user_attrs.get("why") == PUT_OFF and not trial.user_attrs["rung"] and trial.params not in queued:
                queued.append(trial.params)
                with _quiet():
                    self._study.enqueue_trial(trial.params, user_attrs={"rung": 0})
        for trial in trials:
            if trial.state.name == "RUNNING" and _gone(trial.user_attrs):
                with _quiet() as optuna:
                    attrs = {"rung": trial.user_attrs.get("rung", 0), "images": trial.user_attrs.get("images")}
                    self._study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
                    if trial.params:
                        self._study.enqueue_trial(trial.params, user_attrs=attrs)
                        count += 1
        return count

    def next(
        self, start: Mapping[str, Any], *, finishing: int | None = None, written: Mapping[str, Any] | None = None
    ) -> Job | None:
        """The next job of this worker, or None where the space is exhausted.

        finishing: no time is left for more than a training of so many pictures, so the best point that gains by it
        gets it. written: the recipe as it is written, whose point may be the best.
        """
        known = 0
        while known <= KNOWN or self._draw():
            self._promote(start, finishing, written)
            waiting = any(t.state.name == "WAITING" for t in self._study.get_trials(deepcopy=False))
            if finishing is not None and not waiting:
                return None
            with _quiet():
                trial = self._study.ask()
                point = self.space.suggested(trial)
            self._mine[trial.number] = trial
            job = Job(trial.number, point, int(trial.user_attrs.get("rung", 0)), trial.user_attrs.get("images"))
            for name, value in (("rung", job.rung), ("key", job.key), ("worker", _here())):
                trial.set_user_attr(name, value)
            self._beat(trial.number, force=True)
            if finishing is not None and job.rung != self.rungs:
                self.fail(job.number, PUT_OFF)
                continue
            if not self._known(job):
                return job
            self.fail(job.number, KNOWN_ALREADY)
            known += 1
        return None

    def _draw(self) -> bool:
        """Queue a point that no trial had, drawn at random; False where there is none."""
        trials = self._study.get_trials(deepcopy=False)
        had = {trial.user_attrs.get("key") for trial in trials}
        drawn = random.Random(len(trials))
        for _ in range(DRAWN):
            point = {knob.name: drawn.choice(knob.choices) for knob in self.space.knobs}
            if key_of(point) not in had:
                self.enqueue(point)
                return True
        return False

    def _promote(self, start: Mapping[str, Any], finishing: int | None, written: Mapping[str, Any] | None) -> None:
        """Queue what has earned a longer training, the longest first."""
        if finishing is not None:
            if not self._waiting():
                done = last_of_each([*self.results(), *([written] if written else [])])
                best = ordered(done, self.limits, start)
                fresh = [
                    r
                    for r in best
                    if r["images"] * GAIN <= finishing and not self._begun(r, self.rungs, finishing / GAIN)
                ]
                for result in fresh[:1]:
                    self.enqueue(result["point"], self.rungs, finishing)
            return
        for rung in range(self.rungs - 2, -1, -1):
            results = self.results(rung)
            earned = ordered(results, self.limits, start)[: len(results) // ETA]
            new = [r for r in earned if not self._begun(r, rung + 1)]
            if new:
                self.enqueue(new[0]["point"], rung + 1)
                return

    def _begun(self, result: Mapping[str, Any], rung: int, images: float = 0.0) -> bool:
        """Whether the point was, is or will be trained at this rung, on more pictures than these where it says."""
        parameters = self.space.parameters(result["point"])
        for trial in self._study.get_trials(deepcopy=False):
            same = trial.user_attrs.get("rung") == rung and (trial.user_attrs.get("images") or 0) >= images
            if same and trial.state.name != "FAIL" and _asked(trial) == parameters:
                return True
        return False

    def _waiting(self) -> bool:
        """Whether a last training was queued and not begun."""
        trials = self._study.get_trials(deepcopy=False)
        return any(t.state.name == "WAITING" and t.user_attrs.get("rung") == self.rungs for t in trials)

    def _known(self, job: Job) -> bool:
        """Whether another trial has or does the same; of two that claim it at once the first one stays."""
        mine = {"key": job.key, "rung": job.rung, "images": job.images}
        for trial in self._study.get_trials(deepcopy=False):
            same = all(trial.user_attrs.get(name) == value for name, value in mine.items())
            if same and trial.number < job.number and trial.state.name != "FAIL":
                return True
        return False

    def beat(self, number: int) -> None:
        """Say that the trial's worker is still at it."""
        self._beat(number)

    def _beat(self, number: int, force: bool = False) -> None:
        now = time.time()
        if force or now - self._beaten > BEAT_SECONDS:
            self._beaten = now
            self._attribute(number, "seen", now)

    def _attribute(self, number: int, name: str, value: Any) -> None:
        self._mine[number].set_user_attr(name, value)

    def done(self, number: int, found: Mapping[str, Any]) -> None:
        """A point that was measured."""
        self._attribute(number, "found", dict(found))
        self._attribute(number, "violation", list(self.limits.excess(found).values()) or [0.0])
        with _quiet():
            self._study.tell(number, [float(found["judged"]), float(found[self.limits.cost])])

    def skip(self, number: int, told: Mapping[str, Any], reason: str) -> None:
        """A point that is not worth training: the sampler learns that it is outside the limits."""
        self._attribute(number, "skipped", {**told, "reason": reason})
        self._attribute(number, "violation", list(self.limits.excess(told).values()) or [0.0])
        with _quiet():
            self._study.tell(number, [0.0, float(told[self.limits.cost])])

    def fail(self, number: int, why: str) -> None:
        """A point that came to nothing."""
        self._attribute(number, "why", why)
        with _quiet() as optuna:
            self._study.tell(number, state=optuna.trial.TrialState.FAIL)

    def failures(self) -> list[str]:
        """Why points came to nothing, but for those that were known."""
        told = [t.user_attrs.get("why") for t in self._study.get_trials(deepcopy=False) if t.state.name == "FAIL"]
        return [why for why in told if why and why not in (KNOWN_ALREADY, PUT_OFF)]


def _asked(trial: FrozenTrial) -> dict[str, Any]:
    """The choices of a trial, also of one that waits."""
    return dict(trial.params or trial.system_attrs.get("fixed_params") or {})


def _violation(trial: FrozenTrial) -> list[float]:
    """Above 0: outside the limits. One number, as every trial must have as many."""
    return [float(sum(trial.user_attrs.get("violation", [0.0])))]


def _here() -> dict[str, Any]:
    return {"host": platform.node(), "pid": os.getpid()}


def _gone(attributes: Mapping[str, Any]) -> bool:
    """Whether the worker of a running trial is dead, or has not been heard of for long."""
    worker = attributes.get("worker", {})
    if worker.get("host") == platform.node():
        if worker.get("pid") == os.getpid():
            return True  # a search of this process that was stopped
        try:
            os.kill(int(worker["pid"]), 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
    return time.time() - float(attributes.get("seen", 0.0)) > GONE_SECONDS


@contextmanager
def _quiet() -> Iterator[Any]:
    """Optuna, which neither logs nor warns of what is new in it."""
    import warnings

    try:
        import optuna
    except ImportError:
        raise missing_extra("`featherweight fit`", "optuna", "search") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield optuna


def _storage(where: str) -> Any:
    """A database by its address, else a journal file, which several processes may share."""
    with _quiet() as optuna:
        if "://" in where:
            return optuna.storages.RDBStorage(where)
        path = Path(where)
        if not path.parent.is_dir():
            raise FeatherweightError(f"there is no folder {shown(path.parent)}")
        journal = optuna.storages.journal
        return optuna.storages.JournalStorage(journal.JournalFileBackend(str(path)))
