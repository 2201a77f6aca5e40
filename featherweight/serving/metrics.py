# SPDX-License-Identifier: Apache-2.0
"""Counters of a server in the text format that Prometheus reads (version 0.0.4). Touched in the loop's thread alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from featherweight import __version__

BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)  # seconds
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
Labels = tuple[tuple[str, str], ...]


class Histogram:
    """How often a time lay below each of BUCKETS, for each set of labels."""

    def __init__(self) -> None:
        self.counts: dict[Labels, list[int]] = {}
        self.sums: dict[Labels, float] = {}

    def add(self, seconds: float, **labels: str) -> None:
        """Count one time."""
        key = tuple(labels.items())
        counts = self.counts.setdefault(key, [0] * (len(BUCKETS) + 1))
        for place, bound in enumerate(BUCKETS):
            counts[place] += seconds <= bound
        counts[-1] += 1
        self.sums[key] = self.sums.get(key, 0.0) + seconds

    def lines(self, name: str) -> list[str]:
        """Its samples."""
        found = []
        for key, counts in self.counts.items():
            for bound, count in zip((*map(repr, BUCKETS), "+Inf"), counts, strict=True):
                found.append(f"{name}_bucket{_labels((*key, ('le', bound)))} {count}")
            found.append(f"{name}_sum{_labels(key)} {self.sums[key]:.9g}")
            found.append(f"{name}_count{_labels(key)} {counts[-1]}")
        return found


class Metrics:
    """What a server counts."""

    def __init__(self) -> None:
        self.requests: Counter[Labels] = Counter()
        self.refused: Counter[Labels] = Counter()
        self.stages = Histogram()
        self.busy = 0  # requests in the house

    def answered(self, name: str, latency_ms: Mapping[str, float]) -> None:
        """The stages of one answer of one model."""
        for stage, milliseconds in latency_ms.items():
            self.stages.add(milliseconds / 1e3, model=name, stage=stage)

    def text(self) -> str:
        """Everything, for a scraper."""
        busy = [f"featherweight_busy {self.busy}"]
        plain = f"featherweight_info{_labels((('version', __version__),))} 1"
        requests = [f"featherweight_requests_total{_labels(key)} {n}" for key, n in self.requests.items()]
        refused = [f"featherweight_refused_total{_labels(key)} {n}" for key, n in self.refused.items()]
        parts = (
            ("featherweight_info", "gauge", "The version that runs.", [plain]),
            ("featherweight_requests_total", "counter", "Responses by path and status.", requests),
            ("featherweight_refused_total", "counter", "Requests turned away, by reason.", refused),
            ("featherweight_busy", "gauge", "Requests being read, waiting or computed.", busy),
            ("featherweight_stage_seconds", "histogram", "Time of each stage of an answer.",
             self.stages.lines("featherweight_stage_seconds")),
        )  # fmt: skip
        lines = [
            line
            for name, kind, help_, rows in parts
            for line in (f"# HELP {name} {help_}", f"# TYPE {name} {kind}", *rows)
        ]
        return "\n".join(lines) + "\n"


def _labels(pairs: Labels) -> str:
    def escaped(text: str) -> str:
        return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")

    return "{" + ",".join(f'{name}="{escaped(value)}"' for name, value in pairs) + "}" if pairs else ""
