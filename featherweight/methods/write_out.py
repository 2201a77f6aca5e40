# SPDX-License-Identifier: Apache-2.0
"""Write out what is stored compactly: circulant and Toeplitz-like weights, filters that turn, as plain layers.

The answers stay and the file grows. It is for what comes after and knows plain layers only: 8 bits, folding of batch
norms. Exported files are written out in any case (`layers.expanded`).
"""

from __future__ import annotations

from torch import nn

from ..layers import Compact
from ..surgery import Edit, all_of, apply, edit_kind


@edit_kind
def write_out(layer: nn.Module) -> nn.Module:
    """The plain layer that a compact one is equal to; another layer stays."""
    return layer.expanded() if isinstance(layer, Compact) else layer


def plan(model: nn.Module) -> list[Edit]:
    """An edit for each layer that stores fewer numbers than it computes with; nothing is touched."""
    return [Edit(path, "write_out") for path, layer in all_of(model, Compact).items() if layer.expanded() is not layer]


def written_out(model: nn.Module) -> nn.Module:
    """A copy of the model without compact layers."""
    return apply(model, plan(model))
