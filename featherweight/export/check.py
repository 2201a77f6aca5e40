# SPDX-License-Identifier: Apache-2.0
"""An exported file against the model it was made of, on real inputs; and what the file says about itself."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

import featherweight
from featherweight.errors import OptionError
from featherweight.methods.binary import BinaryInputs
from featherweight.methods.dynamic_int8 import DynamicLinear
from featherweight.methods.int8 import Quantizer
from featherweight.methods.token_scores import all_sparse
from featherweight.methods.tome import MergingBlocks
from featherweight.modes import evaluating
from featherweight.runtime.parity import Parity, compare
from featherweight.runtime.preprocess import Preprocess
from featherweight.runtime.session import Session

ROUNDING = (Quantizer, DynamicLinear, BinaryInputs)  # layers for which the last bits may decide
HALF_DB = 50.0  # of weights stored in 16 bits: 11 of each are left
NEAR_TIES_DB = 35.0  # where tokens are chosen, two whose scores differ in the last bit may change places


class Calls(Protocol):
    """The part of a task that is needed here: how the model is called."""

    def forward(self, model: nn.Module, batch: Any) -> Any: ...


class Plain:
    """A model that is given the images and answers with the logits, or with more than them."""

    def forward(self, model: nn.Module, batch: Any) -> Any:
        found = model(batch["image"])
        return getattr(found, "logits", found)


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


@contextmanager
def rounding_noise(model: nn.Module, *, size: float = 1e-6) -> Iterator[None]:
    """While inside, what layers that round get is moved in its last bits, as another order of sums would move it."""
    random = torch.Generator().manual_seed(0)

    def move(_layer: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0] * (1 + size * torch.randn(args[0].shape, generator=random)), *args[1:])

    hooks = [layer.register_forward_pre_hook(move) for layer in model.modules() if isinstance(layer, ROUNDING)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def floor(model: nn.Module, batches: Iterable[Mapping[str, Tensor]], task: Calls | None = None) -> Parity | None:
    """A model that rounds compared with itself under rounding noise; None for one that computes in float alone."""
    if not any(isinstance(layer, ROUNDING) for layer in model.modules()):
        return None
    batches = tuple(batches)
    expected = _answers(model, batches, task or Plain())
    with rounding_noise(model):
        return compare(expected, _answers(model, batches, task or Plain()), backend="torch eager", dtype="int8")


def least_snr_db(model: nn.Module) -> float | None:
    """The limit for a float model that drops or merges tokens; None where that of the arithmetic is right."""
    rounded = any(isinstance(layer, ROUNDING) for layer in model.modules())
    chooses = bool(all_sparse(model)) or any(isinstance(layer, MergingBlocks) for layer in model.modules())
    return NEAR_TIES_DB if chooses and not rounded else None


def _answers(model: nn.Module, batches: Iterable[Mapping[str, Tensor]], task: Calls) -> np.ndarray:
    with evaluating(model), torch.inference_mode():
        found = [task.forward(model, batch).float().cpu().numpy() for batch in batches]
    if not found:
        raise OptionError("batches", "there are none to compare the exported file on")
    return np.concatenate(found)


def parity(
    model: nn.Module, session: Session, batches: Iterable[Mapping[str, Tensor]], task: Calls | None = None
) -> Parity:
    """How the file in the session answers to the images of the batches, compared with the model."""
    batches, name = tuple(batches), session.inputs[0].name
    expected = _answers(model, batches, task or Plain())
    got = np.concatenate([session.run({name: batch["image"].cpu().numpy()})["logits"] for batch in batches])
    return compare(expected, got, backend=session.backend, dtype=session.dtype)
