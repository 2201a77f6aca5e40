# SPDX-License-Identifier: Apache-2.0
"""Network slimming: an L1 on the scales of batch norms, so that whole channels fall silent (Liu 2017, 1708.06519).

Train with it, then cut with `channels.prune_channels(..., importance="bn_scale")`. Nothing is changed but the loss.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import OptionError
from ..method import Method, Pass
from ..modes import BATCH_NORMS


@dataclass(frozen=True)
class Slimming(Method):
    """Adds weight · Σ|γ| over all batch norms; 0 is plain training. The paper's weights are 1e-5 to 1e-4."""

    weight: float = 1e-4

    def __post_init__(self) -> None:
        if not 0 <= self.weight < float("inf"):
            raise OptionError("weight", f"{self.weight!r} is not a number of 0 or more")

    def prepare(self, model: nn.Module) -> nn.Module:
        if not _scales(model):
            raise LookupError(f"{type(model).__name__} has no batch norm with scales to make sparse")
        return model

    def loss(self, terms: dict[str, Tensor], run: Pass) -> dict[str, Tensor]:
        if self.weight == 0:
            return terms
        total = torch.stack([scale.abs().sum() for scale in _scales(run.model)]).sum()
        return {**terms, "slimming": self.weight * total}


def _scales(model: nn.Module) -> list[Tensor]:
    return [m.weight for m in model.modules() if isinstance(m, BATCH_NORMS) and m.weight is not None]
