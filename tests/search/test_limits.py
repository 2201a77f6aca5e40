# SPDX-License-Identifier: Apache-2.0
"""What a budget says, which models keep to it, and which of them is picked."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from featherweight.errors import OptionError
from featherweight.search.domain import other_domain
from featherweight.search.front import layers, non_dominated, ordered, pick
from featherweight.search.limits import Limits, limits, seconds


@pytest.mark.parametrize(
    ("option", "text", "value"),
    [
        ("latency", "5ms", 5.0),
        ("latency", "800 us", 0.8),
        ("latency", "0.005s", 5.0),
        ("latency", 1.5, 1.5),
        ("size", "2MB", 2e6),
        ("size", "500kb", 5e5),
        ("macs", "0.3G", 3e8),
        ("macs", "300m", 3e8),
        ("max_drop", "0.5", 0.005),
        ("max_drop", "1%", 0.01),
        ("max_drop", "0", 0.0),
    ],
)
def test_what_is_written_is_a_number(option: str, text: Any, value: float) -> None:
    found = limits(**{option: text}).to_dict()
    names = {"latency": "latency_ms", "size": "size_bytes", "macs": "macs", "max_drop": "max_drop"}
    assert found[names[option]] == pytest.approx(value)


@pytest.mark.parametrize(
    ("option", "text", "said"),
    [
        ("latency", "5", "--latency: '5' is not something like 5ms"),
        ("latency", "-5ms", "--latency"),
        ("latency", "0ms", "--latency"),
        ("size", "2GHz", "--size: '2GHz' is not something like 2MB"),
        ("macs", "many", "--macs"),
        ("max_drop", "120", "--max-drop: 120 points are more than there are"),
    ],
)
def test_what_is_no_number_is_refused(option: str, text: str, said: str) -> None:
    with pytest.raises(OptionError) as found:
        limits(**{option: text})
    assert str(found.value).startswith(said)


def test_as_fast_as_the_recipe() -> None:
    asked = limits(latency="recipe", max_drop=1)
    assert asked.as_recipe and asked.bounded
    assert asked.cost == "latency_ms"
    assert not limits(latency="5ms").as_recipe


def test_nothing_asked_for_is_refused() -> None:
    with pytest.raises(OptionError, match="nothing is asked for"):
        limits()


@pytest.mark.parametrize(("text", "value"), [("90s", 90), ("5m", 300), ("1h", 3600), ("1.5min", 90)])
def test_time(text: str, value: float) -> None:
    assert seconds("--time", text) == value
    with pytest.raises(OptionError, match="--time"):
        seconds("--time", "soon")


def model(name: str, top1: float, ms: float, agreement: float | None = None, **more: Any) -> dict[str, Any]:
    agrees = top1 if agreement is None else agreement
    known = {"says": name, "top1": top1, "agreement": agrees, "judged": (top1 + agrees) / 2, "latency_ms": ms}
    return {**known, "size_bytes": 100, "macs": 10, "images": 100, "n": 100_000, **more}


START = model("start", 0.95, 4.0, 1.0)
MODELS = [model("slow", 0.95, 3.0), model("good", 0.94, 2.0), model("bad", 0.90, 2.5), model("fast", 0.80, 1.0)]


def names(found: list[dict[str, Any]]) -> list[str]:
    return [item["says"] for item in found]


def test_the_front_is_what_no_other_beats() -> None:
    front = non_dominated(MODELS, lambda m: m["top1"], lambda m: m["latency_ms"])
    assert names(front) == ["fast", "good", "slow"]
    twice = [*MODELS, model("same", 0.94, 2.0)]
    assert names(non_dominated(twice, lambda m: m["top1"], lambda m: m["latency_ms"])) == ["fast", "good", "slow"]
    fronts = layers(MODELS, lambda m: m["top1"], lambda m: m["latency_ms"])
    assert [names(front) for front in fronts] == [["fast", "good", "slow"], ["bad"]]


def test_the_most_accurate_within_a_cost_is_picked() -> None:
    best, why = pick(MODELS, Limits(latency_ms=2.2), START)
    assert (best["says"], why) == ("good", "")
    best, why = pick(MODELS, Limits(latency_ms=2.2, max_drop=0.02), START)
    assert (best["says"], why) == ("good", "")


def test_what_the_validation_part_cannot_tell_apart() -> None:
    longer = model("longer", 0.935, 2.0, images=300)
    assert pick([*MODELS, longer], Limits(latency_ms=2.2), START)[0]["says"] == "good"  # 0.08 points are one error
    few = [{**item, "n": 400} for item in (*MODELS, longer)]
    assert pick(few, Limits(latency_ms=2.2), START)[0]["says"] == "longer"  # 1.2 points are
    assert pick(few[:-1], Limits(latency_ms=2.2), START)[0]["says"] == "good"


def test_the_cheapest_within_a_loss_is_picked() -> None:
    assert pick(MODELS, Limits(max_drop=0.02), START)[0]["says"] == "good"
    assert pick(MODELS, Limits(max_drop=0.2), START)[0]["says"] == "fast"


def test_where_none_fits_the_nearest_and_why() -> None:
    best, why = pick(MODELS, Limits(latency_ms=0.5), START)
    assert best["says"] == "fast"
    assert why == "none of 4 models keeps to 0.5 ms: the fastest takes 1 ms"
    best, why = pick(MODELS, Limits(latency_ms=1.2, max_drop=0.01), START)
    assert "none of 4 models loses 1 points or less" in why
    _, why = pick(MODELS, Limits(size_bytes=50), START)
    assert why == "none of 4 models keeps to 0.05 kB: the smallest has 0.1 kB"


def test_what_is_promoted() -> None:
    assert names(ordered(MODELS, Limits(latency_ms=2.2), START)) == ["good", "fast", "bad", "slow"]
    order = ordered(MODELS, Limits(max_drop=0.05), START)
    assert names(order) == ["good", "slow", "fast", "bad"]  # the front by how near they are to a loss of 5 points


def batches(mean: float, spread: float = 1.0) -> list[dict[str, torch.Tensor]]:
    random = np.random.default_rng(0)
    centers = random.normal(mean, 0.3, (40, 3, 1, 1))
    images = centers + random.normal(0, spread, (40, 3, 8, 8))
    return [{"image": torch.from_numpy(images).float()}]


def test_pictures_of_another_domain_are_noticed() -> None:
    assert other_domain(batches(0.0), batches(0.1)) == ""
    assert "standard deviations away" in other_domain(batches(0.0), batches(2.0))
    assert "detail" in other_domain(batches(0.0), batches(0.0, 0.2)) or "contrast" in other_domain(
        batches(0.0), batches(0.0, 0.2)
    )
    assert other_domain(batches(0.0), batches(0.5), sure=(0.9, 0.9)) == ""
    assert "the model is 50 % sure, not 90 %" in other_domain(batches(0.0), batches(0.5), sure=(0.9, 0.5))
