# SPDX-License-Identifier: Apache-2.0
"""A YOLOv7 in its other form, with other classes or anchors: what stays, stays to the bit, and what is new is told."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..convs import fused
from ..surgery import edits_of
from . import zoo
from .yolov7 import YOLOv7
from .yolov7_classes import carried, same_classes


def changed(
    model: YOLOv7,
    *,
    tell: Callable[[str], None] = lambda text: None,
    names: Sequence[str] = (),
    wanted: Sequence[str] = (),
    **config: Any,
) -> YOLOv7:
    """A detector with other fields of its configuration and these weights, wherever they fit.

    training -> deploy: implicit vectors are merged into the head, auxiliary branches go; the answer stays. deploy ->
    training: implicit vectors begin without effect, so the answer stays too; auxiliary branches begin untrained. With
    other classes the head keeps its boxes and objectness, and classes that are in `names`, those of the model, and in
    `wanted`, those of the new one; other classes begin untrained. TypeError for a model that was edited.
    """
    if edits_of(model):
        raise TypeError("only a detector without edits can be built in another form")
    if config.get("variant", model.config.variant) != model.config.variant:
        raise TypeError(f"{model.config.variant} has other layers than {config['variant']}")
    new = cast(YOLOv7, zoo.build({"name": "yolov7", "config": {**dataclasses.asdict(model.config), **config}}))
    state, own = _state(model, new), new.state_dict()
    if "anchors" in config:
        state = {key: tensor for key, tensor in state.items() if not key.endswith((".anchors", ".anchor_grid"))}
    fits = {key: t for key, t in state.items() if key in own and own[key].shape == t.shape}
    fits |= _head(model, new, state, names, wanted, tell)
    _without_effect(new, fits)
    new.load_state_dict(fits, strict=False)
    untrained = [key for key in own if key not in fits and not key.startswith(f"model.{len(new.model) - 1}.")]
    if untrained or (new.head.m2 and not model.head.m2):
        tell("has no auxiliary branches; they start untrained")
    return new.train(model.training)


def _head(
    model: YOLOv7, new: YOLOv7, state: dict[str, Tensor], names: Sequence[str], wanted: Sequence[str], tell: Any
) -> dict[str, Tensor]:
    """The head's weights for other classes, none where they are the same; what became of them is told."""
    before, after = model.head.num_classes, new.head.num_classes
    known = len(names) == before and len(wanted) == after
    if before == after and (not known or list(names) == list(wanted)):
        return {}
    pairs = same_classes(wanted, names) if known and before > 1 else []  # a single class is never trained
    last = f"model.{len(new.model) - 1}."
    theirs = {key.removeprefix(last): tensor for key, tensor in state.items() if key.startswith(last)}
    found = carried(new.head, theirs, before, pairs)
    if not found:
        tell(f"{_classes(before)} in the file, {after} here, and other anchors; the head starts untrained")
        return {}
    kept = f"boxes, objectness and {_classes(len(pairs))} of the same name" if pairs else "boxes and objectness"
    rest = "" if len(pairs) == after else f", {'the others' if pairs else 'the classes'} start untrained"
    tell(f"{_classes(before)} in the file, {after} here; {kept} stay{rest}")
    return {f"{last}{key}": tensor for key, tensor in found.items()}


def _classes(count: int) -> str:
    return f"{count} class{'' if count == 1 else 'es'}"


def _state(model: YOLOv7, new: YOLOv7) -> dict[str, Tensor]:
    """The weights under the names of the new form."""
    head: nn.Module = model.head
    if new.config.form == "deploy":
        head = fused(head) or head
    last = f"model.{len(model.model) - 1}."
    state = {key: tensor for key, tensor in model.state_dict().items() if not key.startswith(last)}
    return state | {f"model.{len(new.model) - 1}.{key}": tensor for key, tensor in head.state_dict().items()}


@torch.no_grad()
def _without_effect(new: YOLOv7, found: dict[str, Tensor]) -> None:
    """Implicit vectors that no weights are known for add 0 and multiply by 1, where the convolution is known."""
    last = f"model.{len(new.model) - 1}"
    for level, (before, after) in enumerate(zip(new.head.ia, new.head.im, strict=True)):
        if f"{last}.ia.{level}.implicit" not in found and f"{last}.m.{level}.weight" in found:
            before.implicit.zero_()  # type: ignore[operator, union-attr]
            after.implicit.fill_(1.0)  # type: ignore[operator, union-attr]
