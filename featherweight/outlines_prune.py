# SPDX-License-Identifier: Apache-2.0
"""What the steps of pruning make of a model's structure, for `explain`: like those of `outlines`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .costs import macs_share
from .methods import channels, drop_blocks
from .methods.budgeted import Make, fit_budget
from .methods.sparse_choice import Pattern
from .surgery import apply
from .tasks.classification import Classification

if TYPE_CHECKING:
    from .explain import Outline

Options = Mapping[str, Any]


def thinned(outline: Outline, options: Options) -> Outline:
    """With so many weights left; by layer or by threshold it is not known before."""
    known = options["sparsity"] if isinstance(options["sparsity"], (int, float)) and options["quality"] is None else 0.0
    pattern = Pattern.of_text(options["pattern"])
    return outline.thinned(pattern.keep / pattern.of if pattern.of else 1 - known)


def cut(outline: Outline, options: Options) -> Outline:
    """With fewer channels; under a budget, by data or by rank across layers it is not known which."""
    known: dict[str, Any] = {"round_to": options["round_to"], "skip": tuple(options["skip"])}
    example = torch.zeros(2, *outline.image)

    def change(model: nn.Module) -> nn.Module:
        if options["macs"] is None:
            ratio = options["ratio"] if options["time"] is None else 1 - options["time"]
            return channels.prune_channels(model, example, ratio=ratio, **known)
        ranked = channels.rank(model, example, skip=known["skip"])
        how: dict[str, Any] = {"scope": "uniform", "round_to": options["round_to"]}
        make: Make = lambda ratio: apply(model, ranked.edits(ratio, **how))  # noqa: E731
        return fit_budget(make, macs_share(model, example), budget=options["macs"]).model

    return outline.changed(change, estimated=options["scope"] != "uniform" or options["time"] is not None)


def shorter(outline: Outline, options: Options) -> Outline:
    """With fewer blocks, whichever they are."""

    def change(model: nn.Module) -> nn.Module:
        known: dict[str, Any] = {"count": options["count"], "rule": "even", "skip": tuple(options["skip"])}
        if outline.reading is not None:
            batch, task = outline.reading.example(), outline.reading.task
            return drop_blocks.drop_blocks(model, batches=[batch], task=task, **known)
        pictures = {"image": torch.zeros(2, *outline.image)}
        return drop_blocks.drop_blocks(model, batches=[pictures], task=Classification(), **known)

    return outline.changed(change, estimated=options["rule"] != "even")
