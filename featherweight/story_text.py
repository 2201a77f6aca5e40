# SPDX-License-Identifier: Apache-2.0
"""What the page of a text model's run says: who is taken for whom, and what its numbers are of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .deploy import RUNTIMES, example
from .texting import ASK
from .work import Work


def shown(work: Work, found: Mapping[str, Any], last: int, samples: int) -> dict[str, Any]:
    """The fields of a report that are of answers: of a classifier those of the first stage and the last that stayed."""
    if work.recipe.task == ASK:
        return {}
    labels, count = np.array(found["labels"]), len(work.data.classes)
    base, small = (np.array(found["rows"][i]["predictions"][RUNTIMES[0]]) for i in (0, last))
    return {"confusion_base": confusion(base, labels, count), "confusion_small": confusion(small, labels, count)}


def confusion(predicted: np.ndarray, labels: np.ndarray, classes: int) -> tuple[tuple[int, ...], ...]:
    """How often each class (row) was taken for each (column)."""
    table = np.zeros((classes, classes), dtype=int)
    np.add.at(table, (labels, predicted), 1)
    return tuple(tuple(int(n) for n in row) for row in table)


def model_line(work: Work, row: Mapping[str, Any]) -> str:
    """The model's size and cost in a line."""
    name = work.recipe.model.name if work.recipe.model else ""
    length = example(work, work.stages[0])["input_ids"].shape[1]
    return f"{name}: {row['params'] / 1e6:.2f} M parameters, {row['macs'] / 1e6:.0f} M multiply-adds at {length} tokens"


def notes(work: Work) -> tuple[str, ...]:
    """What the numbers are of."""
    length = example(work, work.stages[0])["input_ids"].shape[1]
    judged = "F1 is SQuAD's, over words, of the best answer to each question. " if work.recipe.task == ASK else ""
    return (
        f"{judged}Latencies and MACs are those of one validation text of middling length, {length} tokens.",
        "A row is the exported file in ONNX Runtime unless it names another; 'vs base' is against the first row.",
    )
