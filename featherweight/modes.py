# SPDX-License-Identifier: Apache-2.0
"""Running a model in another mode than it is in, and putting every module back as it was."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """The model in eval mode; afterwards each module is in the mode it was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield model
    finally:
        for module in training:
            module.training = True


@contextmanager
def lone_sample(model: nn.Module, size: int) -> Iterator[None]:
    """For a batch of `size` 1: a batch norm that would see one value per channel uses its running statistics instead.

    Without this, torch stops at the last batch of an epoch that happens to have one sample. Said in a warning.
    """
    if size != 1:
        yield
        return
    changed: list[nn.Module] = []

    def before(module: nn.Module, args: tuple[Any, ...]) -> None:
        if module.training and args[0].numel() == args[0].shape[1]:
            module.training = False
            changed.append(module)

    hooks = [m.register_forward_pre_hook(before) for m in model.modules() if isinstance(m, BATCH_NORMS)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for module in changed:
            module.training = True
    if changed:
        warnings.warn(
            "a batch of one sample: batch norm used its running statistics; drop_last leaves such a batch out",
            stacklevel=4,
        )
