# SPDX-License-Identifier: Apache-2.0
"""From logits to scores, in NumPy: what pipelines apply to a model's answer."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.float64]


def softmax(logits: Logits) -> Logits:
    """Logits (K,) -> probabilities that sum to 1."""
    powers = np.exp(logits - logits.max())
    return np.asarray(powers / powers.sum())


def sigmoid(logits: Logits) -> Logits:
    """Logits (K,) -> a probability each."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * logits)))  # does not overflow


FUNCTIONS: dict[str, Callable[[Logits], Logits]] = {
    "softmax": softmax,
    "sigmoid": sigmoid,
    "none": lambda logits: logits,
}
