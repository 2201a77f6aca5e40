# SPDX-License-Identifier: Apache-2.0
"""Which point is trained next, and for how long: successive halving over what any number of workers found so far.

A trial is a point at one rung: rung 0 trains least, each next one `ETA` times as long, begun anew so that its recipe
makes it. A worker takes the best third of a rung up as soon as there is a third (ASHA, Li 2018, arXiv 1810.05934), else
asks the sampler for a new point (TPE with constraints, Bergstra 2011). Everything is in Optuna's storage, so a search
goes on where it was stopped, and workers on several machines share it; what is claimed twice is done once.
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
from featherweight.search.front import ordered
from featherweight.search.limits import Limits
from featherweight.search.space import Space, key_of

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial, Trial

ETA = 3
FRESH = 8  # points drawn at random before the sampler has something to go by
GONE_SECONDS = 900.0  # a worker of another machine that has said nothing for so long is gone
BEAT_SECONDS = 30.0
NAME = "featherweight-fit"
KNOWN = 4  # points in a row that are known already, after which one is drawn that is not
DRAWN = 2000  # of which none is new: the space is exhausted


@dataclass(frozen=True)
class Job:
    """A point to be trained at a rung, claimed by this worker."""

    number: int  # of the trial
    point: Mapping[str, Any]
    rung: int

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

    def enqueue(self, point: Mapping[str, Any], rung: int = 0) -> None:
        """Let a worker do this next."""
        with _quiet():
            self._study.enqueue_trial(self.space.parameters(point), user_attrs={"rung": rung})

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
        """Trials whose worker is gone are queued again: how many."""
        count = 0
        for trial in self._study.get_trials(deepcopy=False):
            if trial.state.name == "RUNNING" and _gone(trial.user_attrs):
                with _quiet() as optuna:
                    attrs = {"rung": trial.user_attrs.get("rung", 0)}
                    self._study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
                    if trial.params:
                        self._study.enqueue_trial(trial.params, user_attrs=attrs)
                        count += 1
        return count

    def next(self, start: Mapping[str, Any], *, finishing: int | None = None) -> Job | None:
        """The next job of this worker, or None where the space is exhausted.

        finishing: no time is left for more than a training at this rung, so the best point that has not had it gets it.
        """
        known = 0
        while known <= KNOWN or self._draw():
            self._promote(start, finishing)
            waiting = any(t.state.name == "WAITING" for t in self._study.get_trials(deepcopy=False))
            if finishing is not None and not waiting:
                return None
            with _quiet():
                trial = self._study.ask()
                point = self.space.suggested(trial)
            self._mine[trial.number] = trial
            rung = int(trial.user_attrs.get("rung", 0))
            trial.set_user_attr("rung", rung)
            trial.set_user_attr("key", key_of(point))
            trial.set_user_attr("worker", _here())
            self._beat(trial.number, force=True)
            if not self._known(trial.number, key_of(point), rung):
                return Job(trial.number, point, rung)
            self.fail(trial.number, "known already")
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

    def _promote(self, start: Mapping[str, Any], finishing: int | None) -> None:
        """Queue what has earned a longer training, the longest first."""
        top = self.rungs - 1
        if finishing is not None:
            best = ordered([r for r in self.results() if not self._begun(r, finishing)], self.limits, start)
            if best and not self._waiting(finishing):
                self.enqueue(best[0]["point"], finishing)
            return
        for rung in range(top - 1, -1, -1):
            results = self.results(rung)
            earned = ordered(results, self.limits, start)[: len(results) // ETA]
            new = [r for r in earned if not self._begun(r, rung + 1)]
            if new:
                self.enqueue(new[0]["point"], rung + 1)
                return

    def _begun(self, result: Mapping[str, Any], rung: int) -> bool:
        """Whether the point was, is or will be trained at this rung."""
        parameters = self.space.parameters(result["point"])
        for trial in self._study.get_trials(deepcopy=False):
            same = trial.params or trial.system_attrs.get("fixed_params")
            if trial.state.name != "FAIL" and trial.user_attrs.get("rung") == rung and same == parameters:
                return True
        return False

    def _waiting(self, rung: int) -> bool:
        trials = self._study.get_trials(deepcopy=False)
        return any(t.state.name == "WAITING" and t.user_attrs.get("rung") == rung for t in trials)

    def _known(self, number: int, key: str, rung: int) -> bool:
        """Whether another trial has or does the same; of two that claim it at once the first one stays."""
        for trial in self._study.get_trials(deepcopy=False):
            mine = trial.user_attrs.get("key") == key and trial.user_attrs.get("rung") == rung
            if mine and trial.number < number and trial.state.name != "FAIL":
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
            self._study.tell(number, [float(found["agreement"]), float(found[self.limits.cost])])

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
        return [why for why in told if why and why != "known already"]


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
