# SPDX-License-Identifier: Apache-2.0
"""A detector called for one tensor: what calibration and comparisons of layers ask, who know no maps."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class Answers:
    """Calls a detector; the answer is objectness and classes of all levels, (B, N, 1 + K), before the sigmoid."""

    def forward(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([raw[..., 4:].flatten(1, 3) for raw in model(batch["image"])], dim=1)


def head_paths(model: nn.Module) -> tuple[str, ...]:
    """The dotted path of a detector's head."""
    head = getattr(model, "head", None)
    return tuple(path for path, module in model.named_modules() if module is head)
