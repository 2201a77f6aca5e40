# SPDX-License-Identifier: Apache-2.0
"""Which point is next: halving, claims of several workers, resuming; and when a search has to end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from featherweight import recipe as recipes
from featherweight.errors import OptionError
from featherweight.search import beginnings as starting
from featherweight.search.forecast import Forecast, Rates, group_of
from featherweight.search.lengths import Clock, longest, own_length, rungs_of
from featherweight.search.limits import Limits
from featherweight.search.space import Knob, Space, key_of, split
from featherweight.search.study import Job, Study
from featherweight.search.worker import cheapest, hopeless

pytest.importorskip("optuna")

RAW: dict[str, Any] = {"model": "vit_digits", "data": "digits", "steps": ["load", {"prune": {"mlp": 0.3}}, "quantize"]}
KNOBS = (
    Knob("mlp cut", "prune", "mlp", (0.0, 0.1, 0.2, 0.3, 0.4, 0.5), {"mlp": 0.0, "heads": 0.0}),
    Knob("heads cut", "prune", "heads", (0.0, 0.34), {"mlp": 0.0, "heads": 0.0}),
    Knob("bits", "bits", "bits", ("float32", "int8"), {}),
    Knob("learning rate", "train", "lr", (3e-4, 1e-3), {}),
)
START = {"top1": 0.9, "agreement": 1.0, "latency_ms": 10.0}


def space() -> Space:
    base = recipes.parse(RAW, "x.yaml")
    prefix, given = split(base)
    return Space(base, prefix, given, KNOBS, {}, 1000)


def study(folder: Path, *, about: str = "one", limits: Limits | None = None, seed: int = 0) -> Study:
    where = str(folder / "trials.journal")
    return Study(where, space(), limits or Limits(latency_ms=8.0), rungs=3, seed=seed, about=about)


def found(job: Job, images: int = 0, **more: Any) -> dict[str, Any]:
    """A measurement: the more is cut, the faster and the worse."""
    cut = float(job.point["mlp cut"])
    known = {"judged": 0.99 - cut / 10, "top1": 0.9 - cut / 10, "latency_ms": 8.5 - 2 * cut, "size_bytes": 1}
    return {"point": dict(job.point), "key": job.key, "rung": job.rung, "images": images, "macs": 1, **known, **more}


def test_a_third_of_a_rung_trains_longer(tmp_path: Path) -> None:
    mine = study(tmp_path)
    rungs = []
    for _ in range(16):
        job = mine.next(START)
        assert job is not None
        rungs.append(job.rung)
        mine.done(job.number, found(job))
    assert rungs[:4] == [0, 0, 0, 1]  # as soon as there are three, the best goes on
    by_rung = [mine.results(rung) for rung in range(3)]
    assert len(by_rung[0]) // 3 - len(by_rung[1]) in (0, 1)  # the next job may be one
    assert len(by_rung[1]) // 3 == len(by_rung[2]) == 1
    best = max(by_rung[0], key=lambda r: (r["latency_ms"] <= 8.0, r["judged"]))
    assert best["key"] in [r["key"] for r in by_rung[1]]
    assert len({(r["key"], r["rung"]) for r in mine.results()}) == len(mine.results())  # nothing twice


def test_a_search_goes_on_where_it_was(tmp_path: Path) -> None:
    first = study(tmp_path)
    first.enqueue(space().point(**{"mlp cut": 0.3, "bits": "int8"}))
    job = first.next(START)
    assert job is not None
    assert job.point["mlp cut"] == 0.3
    second = study(tmp_path)  # the first was killed in the middle
    assert second.take_up() == 1
    again = second.next(START)
    assert again is not None
    assert (again.point, again.rung) == (job.point, job.rung)
    second.done(again.number, found(again))
    assert [r["key"] for r in study(tmp_path).results()] == [key_of(job.point)]
    assert study(tmp_path).take_up() == 0


def test_two_workers_do_not_do_the_same(tmp_path: Path) -> None:
    one, other = study(tmp_path), study(tmp_path, seed=1)
    point = space().point(**{"mlp cut": 0.2})
    one.enqueue(point)
    other.enqueue(point)
    jobs = [one.next(START), other.next(START)]
    keys = [job.key for job in jobs if job is not None]
    assert len(keys) == len(set(keys)) == 2


def test_a_storage_of_something_else_is_refused(tmp_path: Path) -> None:
    study(tmp_path)
    with pytest.raises(OptionError, match="holds the search of something else"):
        study(tmp_path, about="two")
    with pytest.raises(OptionError, match=r"--storage: .*no folder"):
        study(tmp_path / "nowhere")
    with pytest.raises(OptionError, match="--storage: "):
        Study("nosuch://database", space(), Limits(macs=1), rungs=1, seed=0, about="x")


def test_the_space_can_be_exhausted(tmp_path: Path) -> None:
    few = replace(space(), knobs=(*KNOBS[1:3], replace(KNOBS[3], choices=(3e-4,))))
    mine, count = Study(str(tmp_path / "t"), few, Limits(latency_ms=8.0), rungs=1, seed=0, about="x"), 0
    while (job := mine.next(START)) is not None:
        mine.skip(job.number, {"latency_ms": 9.0, "size_bytes": 1, "macs": 1}, "too slow")
        count += 1
        assert count <= 4
    assert len(mine.hopeless()) == count == 4
    assert mine.results() == []


def test_the_last_time_is_for_the_best(tmp_path: Path) -> None:
    mine = study(tmp_path)
    for _ in range(2):
        job = mine.next(START)
        assert job is not None
        mine.done(job.number, found(job, 100))
    waiting = space().point(**{"mlp cut": 0.5, "bits": "int8"})
    mine.enqueue(waiting)
    best = max(mine.results(), key=lambda r: (r["latency_ms"] <= 8.0, r["judged"]))
    job = mine.next(START, finishing=400)  # what waits is put off
    assert job is not None
    assert (job.rung, job.key, job.images) == (3, best["key"], 400)
    mine.done(job.number, found(job, 400))
    second = mine.next(START, finishing=300)
    assert second is not None
    assert second.key != best["key"]
    mine.done(second.number, found(second, 300))
    assert mine.next(START, finishing=200) is None  # nobody gains by as little
    assert mine.failures() == []
    later = study(tmp_path)
    later.take_up()
    job = later.next(START)
    assert job is not None
    assert (job.point, job.rung) == (waiting, 0)
    later.done(job.number, found(job, 100))
    job = later.next(START, finishing=900)  # with more time the best is trained for longer
    assert job is not None and (job.images, job.rung) == (900, 3)


def test_steps_of_a_point() -> None:
    here = space()
    assert here.steps(here.point()) == []
    both = here.point(**{"mlp cut": 0.5, "bits": "int8"})
    assert here.steps(both) == [{"prune": {"mlp": 0.5, "heads": 0.0}}, {"quantize": {}}]
    trained = here.steps(both, 2500)[0]["prune"]
    assert trained == {"mlp": 0.5, "heads": 0.0, "epochs": 3, "images": 833, "lr": 3e-4}
    assert here.says(both) == "mlp cut 0.5, int8"
    plan = here.recipe(both, 640, "one")
    assert [step.name for step in plan.steps] == ["load", "prune", "quantize"]
    assert plan.steps[1].options["images"] == 640
    assert recipes.parse(recipes.plain(plan), "again").steps[1].options["images"] == 640
    assert here.parameters(both) == {"mlp cut": 5, "heads cut": 0, "bits": "int8", "learning rate": 0}
    assert key_of(both) != key_of(here.point())


def test_the_first_points_lie_next_to_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    def told(ground: Any, point: Any) -> dict[str, float]:
        """Heads weigh most; a model that is not in 8 bits takes 3 ms more."""
        speed = 2 * point["mlp cut"] + 3 * point["heads cut"]
        return {"latency_ms": 9 - speed - 3 * (point["bits"] == "int8")}

    monkeypatch.setattr(starting, "counted", told)
    ground: Any = SimpleNamespace(space=space())
    own = space().point(**{"mlp cut": 0.3, "bits": "int8"})
    assert space().point(**space().own()) == own
    found = starting.beginnings(ground, Limits(latency_ms=8.0))
    cheaper = [{"mlp cut": 0.4}, {"mlp cut": 0.2, "heads cut": 0.34}]  # and not fewer heads alone, which is cheaper yet
    assert found[:3] == [own, *({**own, **change} for change in cheaper)]  # the dearest that costs no more comes first
    assert found[3] == space().point(bits="int8")
    tight = starting.neighbors(ground, own, Limits(latency_ms=4.5))
    assert tight == [{**own, "heads cut": 0.34}]


def test_what_stands_behind_the_searched_steps_is_refused() -> None:
    plan = recipes.parse({**RAW, "steps": ["load", "prune", "merge", "measure", "report"]}, "x.yaml")
    with pytest.raises(OptionError, match=r"steps\.merge: stands behind what is searched over"):
        split(plan)
    prefix, given = split(recipes.parse({**RAW, "steps": ["load", {"prune": {"mlp": 0.4, "lr": 1e-3}}]}, "x.yaml"))
    assert [step.name for step in prefix] == ["load"]
    assert given == {"prune": {"mlp": 0.4}}


def test_a_point_that_costs_too_much_is_hopeless() -> None:
    limits = Limits(latency_ms=1.0, macs=100)
    assert hopeless({"latency_ms": 1.3, "macs": 90}, limits, 0.35) == ""
    assert hopeless({"latency_ms": 1.4, "macs": 90}, limits, 0.35) == "1.4 ms expected, 1 ms allowed"
    assert "multiply-adds expected" in hopeless({"latency_ms": 0.9, "macs": 110}, limits, 0.35)


def test_a_forecast_learns_what_points_took() -> None:
    rates = Rates(0.1, {"conv": 0.0, "product": 2e-6, "rest": 1e-6})
    told = Forecast({"float32": rates})
    has = {"conv": 5.0, "product": 1e5, "rest": 1e5}
    assert told.raw_ms(has, "int8") == pytest.approx(0.4)
    assert (told.correction("all tokens"), told.slack) == (1.0, 0.35)
    taken = [("all tokens", 1.0, 1.1), ("all tokens", 2.0, 2.2), ("all tokens", 4.0, 4.4)]
    slow = [("fewer tokens", 1.0, 1.5), ("fewer tokens", 2.0, 3.0), ("fewer tokens", 2.0, 3.3)]
    told.learn({"kind": kind, "raw_ms": raw, "latency_ms": ms} for kind, raw, ms in (*taken, *slow))
    assert told.correction("all tokens") == pytest.approx(1.1)
    assert told.correction("fewer tokens") == pytest.approx(1.5)
    assert told.slack == pytest.approx(0.1)
    assert "worst 9 %" in told.says()


@pytest.mark.parametrize(
    ("kind", "group"),
    [
        ("Convolution", "conv"), ("FusedConv", "conv"), ("Convert", "rest"), ("FullyConnected", "product"),
        ("QLinearMatMul", "product"), ("MatMul_BIAS", "product"), ("Softmax", "rest"),
        ("ScaledDotProductAttention", "product"), ("Gather", "rest"),
    ],
)  # fmt: skip
def test_kinds_of_operators(kind: str, group: str) -> None:
    assert group_of(kind) == group


def test_rungs() -> None:
    assert rungs_of(2880, 32, 0.02) == [320, 960, 2880]
    assert rungs_of(2880, 32, 0.01) == [960, 2880]  # 320 pictures take less than what a point takes besides
    assert rungs_of(200, 32, 1.0) == [66, 200]
    assert rungs_of(64, 32, 1.0) == [64]


def test_lengths_follow_the_recipe_and_the_time() -> None:
    raw = {**RAW, "train": {"epochs": 2, "images": 100, "batch_size": 32}}
    plan = recipes.parse({**raw, "steps": ["load", {"tokens": {"images": 300}}, {"prune": {"epochs": 1}}]}, "x.yaml")
    assert own_length(plan, 1000) == 2 * 300 + 100
    assert own_length(recipes.parse({**raw, "steps": ["load"]}, "x.yaml"), 1000) == 2 * 2 * 100
    assert longest(plan, 1000, seconds=1000.0, per_image=0.01) == 3 * 700
    assert longest(plan, 1000, seconds=30.0, per_image=0.01) == 1000
    assert longest(plan, 1000, seconds=1.0, per_image=0.01) == 64


def clocked(left: float) -> Clock:
    import time

    return Clock(100.0, (10, 30, 90), 0.1, began=time.monotonic() - (100.0 - left))


@pytest.mark.parametrize(("left", "images"), [(90.0, None), (30.0, 90), (14.05, 63), (7.0, 0)])
def test_when_to_finish(left: float, images: int | None) -> None:
    took = [{"images": 10, "seconds": 7.0, "training_s": 1.0}, {"images": 10, "seconds": 9.0, "training_s": 1.0}]
    clock = clocked(left)
    assert clock.takes(0, took) == 8.0
    assert clock.takes(2, took) == pytest.approx(16.0)
    assert clock.finishing(took) == images
    assert clock.finishing([]) is None
    assert clock.finishing(took, now=True) == (90 if images is None else images)


def test_what_costs_more_than_a_model_that_keeps_to_the_loss_is_not_wanted() -> None:
    done = [{"key": "a", "images": 9, "top1": 0.89, "latency_ms": 4.0}]
    done += [{"key": "b", "images": 3, "top1": 0.90, "latency_ms": 3.0}]
    done += [{"key": "b", "images": 9, "top1": 0.80, "latency_ms": 3.0}]  # its longest training counts
    assert cheapest(done, Limits(max_drop=0.02), START) == {"latency_ms": 4.0}
    assert cheapest(done, Limits(max_drop=0.2), START) == {"latency_ms": 3.0}
    assert cheapest(done, Limits(max_drop=0.001), START) == {}
    assert cheapest(done, Limits(max_drop=0.02, macs=9), START) == {}
