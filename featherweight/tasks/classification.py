# SPDX-License-Identifier: Apache-2.0
"""Image classification: one label per picture.

A batch is {"image": (B, 3, H, W), "label": (B,)}, optionally with "soft_label" (B, K) that mixing made; a model answers
with logits (B, K). `HuggingFace` is the same for models that take pixel_values and answer with .logits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from featherweight.errors import Diverged, OptionError


class Classification:
    """How a classifier is called and read.

    classes: their names, or how many there are; left out, labels read as numbers.
    label_smoothing: share of the target spread over all classes; not applied to a soft label, which has its own.
    """

    def __init__(
        self, classes: Sequence[str] | int = (), *, num_classes: int | None = None, label_smoothing: float = 0.0
    ) -> None:
        names = tuple(str(i) for i in range(classes)) if isinstance(classes, int) else tuple(classes)
        if num_classes is not None:
            if names and len(names) != num_classes:
                raise OptionError("num_classes", f"is {num_classes}, but there are {len(names)} class names")
            names = names or tuple(str(i) for i in range(num_classes))
        if not 0 <= label_smoothing < 1:
            raise OptionError("label_smoothing", f"must be 0 or more and below 1, not {label_smoothing!r}")
        self.classes, self.label_smoothing = names, label_smoothing

    @property
    def num_classes(self) -> int | None:
        """None when the task was made without classes."""
        return len(self.classes) or None

    def forward(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """The logits (B, K), also of a model that answers with more than them."""
        found = model(batch["image"])
        logits: Tensor = getattr(found, "logits", found)
        return logits

    def loss(self, output: Tensor, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Cross-entropy with the soft label if there is one, else with the label."""
        if "soft_label" in batch:
            return {"task": F.cross_entropy(output, batch["soft_label"])}
        return {"task": F.cross_entropy(output, batch["label"], label_smoothing=self.label_smoothing)}

    def decode(self, output: Tensor, top_k: int | None = 5) -> list[list[dict[str, Any]]]:
        """Per picture [{"label", "score"}, ...], best first; top_k=None gives all classes."""
        scores = output.detach().float().softmax(-1)
        k = min(top_k or scores.shape[-1], scores.shape[-1])
        values, places = scores.topk(k, dim=-1)
        return [
            [{"label": self.label(place), "score": value} for value, place in zip(row, where, strict=True)]
            for row, where in zip(values.tolist(), places.tolist(), strict=True)
        ]

    def label(self, number: int) -> str:
        """The name of a class."""
        return self.classes[number] if self.classes else str(number)

    def predictions(
        self, model: nn.Module, batches: Iterable[Mapping[str, Tensor]]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Logits (N, K) and labels (N,) in the order of the batches; the model's training mode is put back."""
        logits, labels = [], []
        modes = {module: module.training for module in model.modules()}
        model.eval()
        try:
            with torch.inference_mode():
                for batch in batches:
                    logits.append(self.forward(model, batch).float().cpu().numpy())
                    labels.append(batch["label"].cpu().numpy())
        finally:
            for module, mode in modes.items():
                module.training = mode
        if not logits:
            raise OptionError("data", "nothing to evaluate on: there are no batches")
        return np.concatenate(logits), np.concatenate(labels)

    def evaluate(self, model: nn.Module, batches: Iterable[Mapping[str, Tensor]]) -> dict[str, Any]:
        """{"top1", "top5" (from 6 classes on), "n", "correct", "interval" of top1 at 95 %}, fractions of 1."""
        return scores(*self.predictions(model, batches))


class HuggingFace(Classification):
    """The same for the models of the transformers library."""

    def forward(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """The logits (B, K)."""
        logits: Tensor = model(pixel_values=batch["image"]).logits
        return logits


def scores(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> dict[str, Any]:
    """Logits (N, K), labels (N,) -> top1, top5, n, correct, interval."""
    n, k = logits.shape
    if len(labels) and not 0 <= labels.min() <= labels.max() < k:
        raise OptionError("model", f"has {k} classes, but the data has a class number {labels.max()}")
    if broken := int((~np.isfinite(logits)).any(1).sum()):
        raise Diverged(f"evaluation: the logits of {broken} of {n} pictures are not finite")
    correct = int((logits.argmax(1) == labels).sum())
    found: dict[str, Any] = {"top1": correct / n}
    if k > 5:
        best = np.argsort(-logits, axis=1, kind="stable")[:, :5]
        found["top5"] = float((best == labels[:, None]).any(1).mean())
    return {**found, "n": n, "correct": correct, "interval": wilson(correct, n)}


def wilson(correct: int, n: int, *, z: float = 1.959963984540054) -> tuple[float, float]:
    """The interval (Wilson 1927) in which the true share lies with 95 % confidence."""
    if n <= 0:
        return 0.0, 1.0
    share, spread = correct / n, z * z / n
    middle = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / n + spread / (4 * n)) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


def confusion(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Counts (K, K): row is the true class, column the predicted one."""
    k = logits.shape[1]
    return np.bincount(labels * k + logits.argmax(1), minlength=k * k).reshape(k, k)
