# SPDX-License-Identifier: Apache-2.0
"""Pruning of single weights at once: those that matter least become zero and stay it.

`choose` decides and gives masks, `plan` says what that would be layer by layer, `sparsify` does it. What a weight is
worth: `weight_scores`; which share of which layer, N:M and blocks: `sparse_choice`. Afterwards train with
`masks.KeepMasks`. Not here: pruning while training (`gradual`), in rounds (`iterative`), of whole channels
(`channels`), heads and neurons (`prune`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from ..errors import OptionError
from ..method import Task
from ..surgery import Edit
from . import sparse_choice, weight_scores
from .masks import Masks, check_patterns, marks, masks_of, prunable, with_masks
from .sparse_choice import Pattern

__all__ = ["choose", "plan", "sparsify"]


def choose(
    model: nn.Module,
    *,
    sparsity: float | Mapping[str, float] = 0.5,
    importance: str = "magnitude",
    scope: str | None = None,
    pattern: str = "",
    batches: Any = None,
    task: Task | None = None,
    skip: Sequence[str] = (),
) -> Masks:
    """Path -> mask of every linear layer and convolution: True stays. Weights that are gone already stay gone.

    sparsity: the fraction removed, of all weights or {name pattern: fraction}, where layers without a pattern stay
    whole. importance: magnitude, or taylor, snip, fisher, wanda, which need `batches` and their `task`. scope: layer,
    output, global, lamp or erk; by default what `sparse_choice.usual` says. pattern: "", blocks "4x1", or "2:4", which
    has its own sparsity. skip: name patterns. Raises OptionError, LookupError for a model without such layers.
    """
    wanted = Pattern.of_text(pattern)
    scope = scope or sparse_choice.usual(sparsity, importance)
    sparse_choice.check(scope)
    weight_scores.check(importance, batches, task)
    check_sparsity(sparsity, scope)
    layers = prunable(model, skip)
    if not any(sparse_choice.fits(layer, wanted) for layer in layers.values()):
        raise LookupError(f"pattern {pattern!r}: no layer has a number of inputs that {wanted.of} divides")
    shares = by_pattern("sparsity", sparsity, list(layers)) if isinstance(sparsity, Mapping) else sparsity
    if shares == 0 and not wanted.of:
        return {path: torch.ones_like(layer.weight, dtype=torch.bool) for path, layer in layers.items()}  # type: ignore[arg-type]
    scores = weight_scores.scores(model, layers, importance, batches, task)
    for path, mask in masks_of(model).items():
        if path in scores:
            scores[path] = scores[path] * mask
    return sparse_choice.choose(scores, shares, scope=scope, pattern=wanted)


def plan(model: nn.Module, **options: Any) -> list[Edit]:
    """An edit for every layer that would get zeros, with the number of weights kept; nothing is touched.

    The options are those of `choose`. The edits mark; the zeros themselves travel in the weights.
    """
    return marks(model, choose(model, **options), pattern=options.get("pattern", ""))


def sparsify(model: nn.Module, **options: Any) -> nn.Module:
    """A copy with the weights at zero that `choose`, whose options these are, takes out."""
    return with_masks(model, choose(model, **options), pattern=options.get("pattern", ""))


def check_sparsity(sparsity: float | Mapping[str, float], scope: str) -> None:
    """OptionError for what is no fraction, or one by layer where the scope shares out by itself."""
    for value in sparsity.values() if isinstance(sparsity, Mapping) else [sparsity]:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
            raise OptionError("sparsity", f"{value!r} is not in [0, 1); it is the share that is removed")
    if isinstance(sparsity, Mapping) and scope not in ("layer", "output"):
        raise OptionError("sparsity", f"is given by layer, which scope {scope!r} decides; use scope='layer'")


def by_pattern(where: str, values: float | Mapping[str, float], paths: Sequence[str]) -> dict[str, float]:
    """A value for each path: the one given, or that of the last pattern that fits, 0 where none does."""
    if not isinstance(values, Mapping):
        return dict.fromkeys(paths, values)
    check_patterns(where, values, paths)
    found = dict.fromkeys(paths, 0.0)
    for pattern, value in values.items():
        found |= {path: value for path in paths if fnmatchcase(path, pattern)}
    return found
