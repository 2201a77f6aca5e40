# SPDX-License-Identifier: Apache-2.0
"""What the accuracy of a measurement is: top-1, agreement with the model before, of detectors AP, of answers F1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from featherweight.measure import Measurement
    from featherweight.report import Stage

KINDS = {"top1": "accuracy", "AP": "AP", "f1": "F1", "agreement": "agreement"}  # the word for each


@dataclass(frozen=True)
class Score:
    """The accuracy of a measurement in percent; without labels it is the agreement with the model before."""

    kind: str  # one of KINDS
    value: float
    low: float  # of its interval; where none is known, the value
    high: float
    n: int
    ap50: float | None = None  # of a detector
    of: str = "images"  # what was counted

    @property
    def half(self) -> float:
        return (self.high - self.low) / 2


def score(measurement: Measurement) -> Score | None:
    """Percent correct, of a detector AP, with its interval, or None where accuracy was not measured."""
    known = measurement.accuracy or {}
    for kind in KINDS:
        if known.get(kind) is not None:
            value = 100.0 * float(known[kind])
            low, high = known.get("interval") or (known[kind], known[kind])
            ap50 = 100.0 * float(known["AP50"]) if kind == "AP" and known.get("AP50") is not None else None
            return Score(
                kind,
                value,
                100.0 * float(low),
                100.0 * float(high),
                int(known.get("n") or 0),
                ap50,
                str(known.get("of") or "images"),
            )
    return None


def kind(stages: Sequence[Stage]) -> str:
    """What the accuracy of these stages is: top-1, or AP of detectors."""
    return next((found.kind for stage in stages if (found := score(stage.measurement))), "top1")
