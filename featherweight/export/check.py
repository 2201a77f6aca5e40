# SPDX-License-Identifier: Apache-2.0
"""An exported file against the model it was made of, on real inputs; and what the file says about itself."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

import featherweight
from featherweight.errors import OptionError
from featherweight.modes import evaluating
from featherweight.runtime.parity import Parity, compare
from featherweight.runtime.preprocess import Preprocess
from featherweight.runtime.session import Session


class Calls(Protocol):
    """The part of a task that is needed here: how the model is called."""

    def forward(self, model: nn.Module, batch: Any) -> Any: ...


class Plain:
    """A model that is given the images and answers with the logits."""

    def forward(self, model: nn.Module, batch: Any) -> Any:
        return model(batch["image"])


@dataclass(frozen=True)
class Exported:
    """A file that was written and compared with its model."""

    path: Path
    max_abs_difference: float
    opset: int
    size_bytes: int  # of all its files
    parity: Parity


def describe(
    *,
    task: str = "image-classification",
    classes: Sequence[str] = (),
    preprocess: Preprocess | None = None,
    compression: Sequence[Mapping[str, Any]] = (),
    license: str = "",  # noqa: A002
    **more: str,
) -> dict[str, str]:
    """What goes into the file beside the graph: texts, some of them JSON, under the names that other tools use."""
    found = {"task": task, "featherweight_version": featherweight.__version__}
    if classes:
        found["names"] = _json({str(i): name for i, name in enumerate(classes)})
    if preprocess is not None:
        found["preprocess"] = _json(preprocess.to_dict())
        found["imgsz"] = _json(list(preprocess.size))
    if compression:
        found["compression"] = _json(list(compression))
    if license:
        found["license"] = license
    return found | more


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def parity(
    model: nn.Module, session: Session, batches: Iterable[Mapping[str, Tensor]], task: Calls | None = None
) -> Parity:
    """How the file in the session answers to the images of the batches, compared with the model."""
    task, name = task or Plain(), session.inputs[0].name
    expected, got = [], []
    with evaluating(model), torch.inference_mode():
        for batch in batches:
            expected.append(task.forward(model, batch).float().cpu().numpy())
            got.append(session.run({name: batch["image"].cpu().numpy()})["logits"])
    if not expected:
        raise OptionError("batches", "there are none to compare the exported file on")
    return compare(np.concatenate(expected), np.concatenate(got), backend=session.backend, dtype=session.dtype)
