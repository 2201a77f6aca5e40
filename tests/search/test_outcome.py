# SPDX-License-Identifier: Apache-2.0
"""The end of a search: what is raced, and what is picked, also where the recipe as it is written sets the latency."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from featherweight.search.limits import Limits
from featherweight.search.outcome import WRITTEN, _picked, candidates

START = {"top1": 0.95, "judged": 0.97, "latency_ms": 9.0}


def model(key: str, top1: float, ms: float, *, fast: float = 1.0, **more: Any) -> dict[str, Any]:
    """fast: the upper end of how much faster than the recipe it may be."""
    against = {"against_written": {"interval": [fast - 0.1, fast]}}
    costs = {"latency_ms": ms, "size_bytes": 1, "macs": 1, "images": 9, "n": 100_000}
    return {"key": key, "top1": top1, "judged": top1 + 0.01, **costs, **against, **more}


def test_what_is_raced(tmp_path: Path) -> None:
    (tmp_path / "m").touch()
    here = {"file": str(tmp_path / "m")}
    lucky = model("lucky", 0.96, 1.0, judged=0.90, **here)
    sure = model("sure", 0.95, 2.0, judged=0.98, **here)
    slow = model("slow", 0.97, 5.0, **here)
    gone = model("gone", 0.99, 1.0, file=str(tmp_path / "elsewhere"))
    found = [item["key"] for item in candidates([lucky, sure, slow, gone], Limits(latency_ms=2.5), START)]
    assert found[0] == "sure"  # the best judged of those that keep to the limit, though another is better and cheaper
    assert set(found) == {"sure", "lucky", "slow"}


def test_as_fast_as_the_recipe() -> None:
    done = {"start": START, WRITTEN: model(WRITTEN, 0.94, 2.0)}
    done |= {"as fast": model("as fast", 0.95, 2.1, fast=1.02), "slower": model("slower", 0.96, 2.3, fast=0.95)}
    best, reason, limits = _picked(done, Limits(latency_ms=2.06), as_recipe=True)
    assert (best["key"], reason, limits.latency_ms) == ("as fast", "", 2.1)  # the race cannot tell them apart
    best, reason, limits = _picked(done, Limits(latency_ms=2.06), as_recipe=False)
    assert (best["key"], reason, limits.latency_ms) == (WRITTEN, "", 2.06)
    del done["as fast"]
    assert _picked(done, Limits(latency_ms=2.06), as_recipe=True)[0]["key"] == WRITTEN  # nothing better was found
