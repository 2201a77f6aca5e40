# SPDX-License-Identifier: Apache-2.0
"""What steps make of a model's structure, for `explain`: (outline, options) -> outline, without training or data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from . import official
from .errors import OptionError
from .methods import deit, dynamicvit, grouping, mixed_depth, prune, quantize, recursion, tome
from .methods.fuse import fuse
from .methods.widths import narrow_heads_and_tokens
from .surgery import apply, replaying
from .tasks.detection.answers import head_paths

if TYPE_CHECKING:
    from .explain import Outline

Options = Mapping[str, Any]


def some(options: Options, *names: str) -> dict[str, Any]:
    """These of the options."""
    return {name: options[name] for name in names}


def planned(module: Any, *names: str) -> Callable[[Outline, Options], Outline]:
    """The outline after a method's edits, which depend on these of the step's options; no number is worked out."""

    def change(model: nn.Module, options: Options) -> nn.Module:
        edits = module.plan(model, **some(options, *names))
        with replaying():
            return apply(model, edits)

    return lambda outline, options: outline.changed(lambda m: change(m, options))


def distilled(outline: Outline, options: Options) -> Outline:
    """With a distillation token, where that is how it learns."""
    return planned(deit)(outline, {}) if options["how"] == "token" else outline


tokens = planned(dynamicvit, "keep", "at", "stage", "score", "seed", "threshold")
merge = planned(tome, "r", "inflection", "proportional")
recursed = planned(recursion, "loops", "unique", "take", "nll_ratio", "coefficients")
grouped = planned(grouping, "groups", "at", "permute", "redraw")
depth = planned(mixed_depth, "loops")


def pruned(outline: Outline, options: Options) -> Outline:
    """With fewer neurons and heads; which ones is not known, and without `uniform` not in which block either."""
    known = some(options, "mlp", "heads", "round_to", "uniform")
    widths = some(options, "head_width", "embed", "round_to")
    if outline.reading is not None and (options["head_width"] or options["embed"]):
        raise OptionError("embed", "head_width and embed are for models of pictures")

    def change(model: nn.Module) -> nn.Module:
        small = prune.prune(model, **known)
        return small if outline.reading else narrow_heads_and_tokens(small, torch.zeros(2, *outline.image), **widths)

    return outline.changed(change, estimated=not options["uniform"])


def resized(outline: Outline, options: Options) -> Outline:
    """For pictures of another size."""
    size = options["size"]
    sides = (size, size) if isinstance(size, int) else tuple(size)
    new = outline.changed(lambda m: official.resized(m, sides, kernel=options["kernel"]).eval())
    return new.at((new.image[0], *sides))


def fused(outline: Outline, options: Options) -> Outline:
    """What training made of several parts is one."""
    return outline.changed(fuse)


def integers(outline: Outline, options: Options) -> Outline:
    """Layers of 8 bits; whether batch norms are folded into them shows when it is done."""

    def change(model: nn.Module) -> nn.Module:
        detects = hasattr(getattr(model, "head", None), "strides")
        skip = tuple(options["skip"]) or (head_paths(model) if detects else ())
        return apply(model, quantize.plan(model, bits=options["bits"], skip=skip))

    return outline.changed(change, estimated=True)
