# SPDX-License-Identifier: Apache-2.0
"""Pruning in rounds: cut, train what is left, cut again (Han 2015, 1506.02626).

A round removes the weights below q times the standard deviation of those left in their layer, or the same share of what
is left, so that the last round reaches the sparsity asked for. Dropout gets weaker with the connections: Dr = Do
√(Cr / Co). How a round is trained is the caller's: `masks.KeepMasks`, at a tenth to a hundredth of the learning rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from ..errors import OptionError
from ..surgery import Edit, apply, edit_kind
from .masks import LAYERS, Masks, masks_of, prunable, weight_of, with_masks
from .sparsify import by_pattern, choose

DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
Retrain = Callable[[nn.Module, int], nn.Module]  # a pruned model and its round, from 0 -> the same, trained


def iterate(
    model: nn.Module,
    retrain: Retrain,
    *,
    rounds: int = 3,
    sparsity: float = 0.9,
    quality: float | Mapping[str, float] | None = None,
    **options: Any,
) -> nn.Module:
    """The model pruned and retrained in rounds; the one given is untouched.

    quality: q of the threshold q·std, one for all or {name pattern: q}; then `sparsity` and the options, which are
    those of `sparsify.choose`, have no say but `skip`. Raises OptionError.
    """
    if type(rounds) is not int or rounds < 1:
        raise OptionError("rounds", f"{rounds!r} is not a whole number of 1 or more")
    for number in range(rounds):
        model = cut(model, number, rounds=rounds, sparsity=sparsity, quality=quality, **options)
        model = retrain(model, number)
    return model


def cut(
    model: nn.Module,
    number: int,
    *,
    rounds: int,
    sparsity: float,
    quality: float | Mapping[str, float] | None = None,
    **options: Any,
) -> nn.Module:
    """The model pruned for round `number` of `rounds`, counted from 0, with its dropout adapted."""
    if quality is None:
        share = 1 - (1 - sparsity) ** ((number + 1) / rounds) if number + 1 < rounds else sparsity
        masks = choose(model, sparsity=share, **options)
    else:
        masks = by_threshold(model, quality, skip=options.get("skip", ()))
    return apply(with_masks(model, masks), rescaled_dropout(model, masks))


def by_threshold(model: nn.Module, quality: float | Mapping[str, float], *, skip: Sequence[str] = ()) -> Masks:
    """Masks without the weights smaller than q·std of those that are left in their layer."""
    layers, before = prunable(model, skip), masks_of(model)
    values = quality.values() if isinstance(quality, Mapping) else [quality]
    for value in values:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
            raise OptionError("quality", f"{value!r} is not a number of 0 or more: of standard deviations")
    found: Masks = {}
    for path, q in by_pattern("quality", quality, list(layers)).items():
        weight = weight_of(layers[path]).detach()
        left = before.get(path, weight != 0)
        found[path] = left & (weight.abs() >= q * weight[left].float().std(correction=0))
        if not bool(found[path].any()):
            raise OptionError("quality", f"{q!r} would leave nothing of {path}; its weights are all below that")
    return found


def rescaled_dropout(model: nn.Module, masks: Masks) -> list[Edit]:
    """An edit for each dropout that follows a pruned layer, in the order in which modules were made.

    Functional dropout has no module and is left as it is.
    """
    edits, share = [], 1.0
    for path, module in model.named_modules():
        if isinstance(module, LAYERS):
            before = int(weight_of(module).count_nonzero())
            left = int((weight_of(module)[masks[path]] != 0).sum()) if path in masks else before
            share = left / before if before else 1.0
        elif isinstance(module, DROPOUTS) and module.p > 0 and share < 1:
            edits.append(Edit(path, "set_dropout", {"p": module.p * math.sqrt(share)}))
    return edits


@edit_kind
def set_dropout(module: nn.Module, *, p: float) -> nn.Module:
    """The dropout with another probability."""
    if not isinstance(module, DROPOUTS) or isinstance(p, bool) or not isinstance(p, (int, float)) or not 0 <= p <= 1:
        raise OptionError("set_dropout", f"p={p!r} of a {type(module).__name__}: a probability of a dropout is meant")
    module.p = float(p)
    return module
