# SPDX-License-Identifier: Apache-2.0
"""A step stays only if it helped here within the budget; a missed target fails the run when everything is saved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import tiny_runs as tiny

from featherweight import artifact, judge, measure, recipe, report, runs
from featherweight.budget import Goal, goal
from featherweight.errors import CheckFailed, OptionError
from featherweight.latency import Latency
from featherweight.recipe import Budget
from featherweight.runtime import parity
from featherweight.surgery import edits_of

STEPS = ["load", {"prune": {"mlp": 0.5, "heads": 0.0, "samples": 16}}, {"quantize": {"calibration_images": 16}}]


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, Goal(0.01)),
        ({"max_drop": "0%"}, Goal(0.0)),
        ({"max_drop": "2.5 %"}, Goal(0.025)),
        ({"max_drop": "3 points"}, Goal(0.03)),
        ({"target": "2x"}, Goal(0.01, "speed", 2.0)),
        ({"target": "1.5X"}, Goal(0.01, "speed", 1.5)),
        ({"target": "5ms"}, Goal(0.01, "latency_ms", 5.0)),
        ({"target": " 0.5 ms "}, Goal(0.01, "latency_ms", 0.5)),
        ({"target": "1MB"}, Goal(0.01, "bytes", 1e6)),
        ({"target": "300kB"}, Goal(0.01, "bytes", 3e5)),
    ],
)
def test_budgets_as_numbers(given: dict[str, str], wanted: Goal) -> None:
    found = goal(Budget(**given))
    assert (found.max_drop, found.kind, found.value) == pytest.approx((wanted.max_drop, wanted.kind, wanted.value))


@pytest.mark.parametrize(
    "given",
    [
        *(
            {"target": text}
            for text in ("", "2", "x", "fast", "-2x", "0x", "2 y", "1e3ms", "5mss", "2x 3x", "nan ms", "٣x")
        ),
        *({"max_drop": text} for text in ("", "1", "-1%", "101%", "some", "nan%", "1%%", "%")),
    ],
)
def test_what_is_no_budget_is_said_with_what_would_be(given: dict[str, str]) -> None:
    with pytest.raises(OptionError, match=r"is not (2x \(faster\), 5ms|a share such as 1%)"):
        goal(Budget(**given))


def found(**changes: Any) -> dict[str, Any]:
    """What a comparison would have measured: 2x faster, as good."""
    numbers = {"top1": 0.9, "start_top1": 0.9, "last_top1": 0.9, "ratio": 2.0, "interval": [1.9, 2.1]}
    return {**numbers, "bytes": 100, "last_bytes": 100, **changes}


SLOWER = {"ratio": 0.5, "interval": [0.45, 0.55]}
UNSURE = {"ratio": 1.1, "interval": [0.9, 1.3]}


@pytest.mark.parametrize(
    ("numbers", "budget", "trains", "kept", "said"),
    [
        ({}, {}, False, True, "2.00× faster"),
        (SLOWER, {}, False, False, "slower here: 0.50×"),
        (UNSURE, {}, False, False, "not certain here: 1.10×"),
        ({"top1": 0.85}, {}, False, False, "5.0 points lost, 1 allowed"),
        ({"top1": 0.85}, {"max_drop": "5%"}, False, True, "faster"),
        ({"top1": 0.85, "last_top1": 0.8}, {}, False, False, "points lost"),
        ({**SLOWER, "bytes": 25}, {}, False, False, "slower here"),
        ({**SLOWER, "bytes": 25}, {"target": "1MB"}, False, True, "4.00× smaller"),
        ({**SLOWER, "bytes": 100}, {"target": "1MB"}, False, False, "slower here"),
        ({**SLOWER, "top1": 0.92}, {}, True, True, "+2.0 points"),
        ({**SLOWER}, {}, True, True, "+0.0 points"),
        ({"top1": 0.895}, {}, True, False, "-0.5 points"),
    ],
)
def test_the_verdict(numbers: dict[str, Any], budget: dict[str, str], trains: bool, kept: bool, said: str) -> None:
    verdict = judge.verdict(found(**numbers), goal(Budget(**budget)), trains=trains)
    assert verdict[0] is kept
    assert said in verdict[1]


class Races:
    """In place of `measure.race`: latencies as they are told, whatever the machine does."""

    def __init__(self, ratios: Mapping[str, float]) -> None:
        self.ratios, self.place = ratios, ""
        self.count = 0

    def __call__(self, ready: Mapping[str, Any], *, baseline: str | None = None, **_: Any) -> dict[str, Latency]:
        self.count += 1
        ratio = self.ratios.get(self.place, 1.0)
        times = {"last": 1.0, "start": 1.0, "new": 1.0 / ratio}
        made = {name: Latency(times[name], times[name], times[name]) for name in ready}
        if "new" in made:
            ms = times["new"]
            made["new"] = Latency(ms, ms, ms, ratio=ratio, ratio_interval=(0.99 * ratio, 1.01 * ratio), baseline="last")
        return made


@pytest.fixture
def races(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A run whose races and accuracies are what the test says, by the name of the step."""
    monkeypatch.setitem(parity.LIMITS, "int8", (0.0, 1.0))
    real = judge._compare

    def start(ratios: Mapping[str, float], top1: Mapping[str, float] | None = None) -> Races:
        fake = Races(ratios)
        accuracy = {"load": 0.9, **(top1 or {})}

        def compare(work: Any, *stages: Any) -> dict[str, Any]:
            fake.place = stages[2].place.name.partition("-")[2]
            return real(work, *stages)

        def evaluated(_work: Any, path: Path, *_: Any) -> dict[str, Any]:
            return {"top1": accuracy.get(path.parent.name.partition("-")[2], 0.9)}

        monkeypatch.setattr(judge, "_compare", compare)
        monkeypatch.setattr(judge, "evaluate_file", evaluated)
        monkeypatch.setattr(measure, "race", fake)
        return fake

    return start


def run(project: Path, told: tiny.Told | None = None, *, steps: Any = None, **budget: str) -> Any:
    plan = tiny.plan(steps=steps or STEPS, budget=budget)
    return runs.run(plan, project=project, progress=told)


def test_a_slower_step_is_marked_and_left_out(tmp_path: Path, races: Any) -> None:
    fake, told = races({"prune": 0.8, "quantize": 2.0}), tiny.Told()
    done = run(tmp_path, told)
    assert [(stage.place.name, stage.kept) for stage in done.stages] == [
        ("00-load", True), ("01-prune", False), ("02-quantize", True),
    ]  # fmt: skip
    assert done.stages[1].reason == "slower here: 0.80×"
    assert [(event["kept"], event["reason"]) for event in told.of("judged")] == [
        (False, "slower here: 0.80×"), (True, "2.00× faster"),
    ]  # fmt: skip
    pruned = {edit.kind for edit in edits_of(artifact.load(tmp_path / "tiny" / "steps" / "01-prune" / "model"))}
    kinds = {edit.kind for edit in edits_of(artifact.load(tmp_path / "tiny" / "model"))}
    assert pruned and kinds and not pruned & kinds, "the pruned model went on"
    count = fake.count
    again = run(tmp_path)
    assert fake.count == count, "judged a second time"
    assert [stage.kept for stage in again.stages] == [True, False, True]


def test_a_step_that_loses_too_much_is_left_out_however_fast(tmp_path: Path, races: Any) -> None:
    races({"prune": 5.0, "quantize": 2.0}, {"prune": 0.85, "quantize": 0.895})
    done = run(tmp_path)
    assert [stage.kept for stage in done.stages] == [True, False, True]
    assert done.stages[1].reason == "5.0 points lost, 1 allowed"
    assert done.model is done.stages[2].model


def test_what_comes_after_a_step_that_was_left_out_begins_before_it(tmp_path: Path, races: Any) -> None:
    races({"prune": 0.8, "quantize": 0.5})
    done = run(tmp_path)
    assert [stage.kept for stage in done.stages] == [True, False, False]
    assert done.model is done.stages[0].model
    before = artifact.load(tmp_path / "tiny" / "steps" / "00-load" / "model").state_dict()
    after = artifact.load(tmp_path / "tiny" / "model").state_dict()
    assert all((before[name] == after[name]).all() for name in before)


def test_a_teaching_step_is_judged_by_its_answers(tmp_path: Path, races: Any) -> None:
    races({"distill": 0.9}, {"distill": 0.93})
    done = run(tmp_path, steps=["load", "teacher", "distill"])
    assert [(stage.kept, stage.reason) for stage in done.stages] == [(True, ""), (True, "+3.0 points")]


@pytest.mark.parametrize(
    ("target", "reached"),
    [("4x", "1.50x after 1"), ("0.5ms", "0.67 ms after 1"), ("1kB", r"\d+\.\d kB after 1")],
    ids=["x", "ms", "bytes"],
)
def test_a_missed_target_fails_when_everything_is_saved(tmp_path: Path, races: Any, target: str, reached: str) -> None:
    races({"quantize": 1.5})
    told = tiny.Told()
    with pytest.raises(CheckFailed, match=rf"target {target} was missed: {reached} of 1 steps") as caught:
        run(tmp_path, told, steps=[STEPS[0], STEPS[2], "export"], target=target)
    assert caught.value.exit_code == 1 and str(caught.value).isprintable()
    assert (told.of("budget")[0]["met"], told.events[-1]["event"]) == (False, "stopped")
    folder = tmp_path / "tiny"
    assert artifact.load(folder / "model") and (folder / "export" / "model.onnx").is_file()
    assert (tmp_path / "latest").resolve() == folder.resolve()


def test_a_target_that_was_reached(tmp_path: Path, races: Any) -> None:
    races({"quantize": 1.5})
    told = tiny.Told()
    run(tmp_path, told, steps=[STEPS[0], STEPS[2]], target="1.4x", max_drop="2%")
    assert [(event["met"], event["reached"]) for event in told.of("budget")] == [(True, "1.50x")]


def test_the_budget_is_on_the_page(tmp_path: Path, races: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = measure.race
    fake = races({"quantize": 1.5})
    monkeypatch.setattr(measure, "race", lambda ready, **known: (fake if "last" in ready else real)(ready, **known))
    measured = [{"measure": {"batch": [1], "repeats": 6, "budget_s": 0.1}}, {"report": {"samples": 0}}]
    with pytest.raises(CheckFailed):
        run(tmp_path, steps=[STEPS[0], STEPS[2], *measured], target="9x")
    page = report.load(tmp_path / "tiny")
    assert (page.budget, page.budget_met) == ("at most 1% of top-1 lost, 9x", False)
    assert page.stages[-1].name.startswith("+ int8")


def test_a_bad_budget_stops_before_the_folder_is_made(tmp_path: Path) -> None:
    for options in ({"target": "twice"}, {"max_drop": "x"}, {"backend": "tensorrt"}):
        with pytest.raises(ValueError, match="budget"):
            runs.compress("vit_digits", "digits", project=tmp_path, **options)
    with pytest.raises(ValueError, match="did you mean 'vit_digits'"):
        runs.compress("vit_digit", "digits", project=tmp_path)
    with pytest.raises(ValueError, match="did you mean 'weights'"):
        runs.compress("vit_digits", "digits", project=tmp_path, wieghts="shipped")
    assert not list(tmp_path.iterdir())
    assert recipe.read("compress", partial=True).budget is None
