# SPDX-License-Identifier: Apache-2.0
"""A scaffold that listens: a part beside a model's own, which hears what modules get or put out while it is trained.

Names of the model's own parameters stay as they are, copies of the model have copies of the listener, and `without`
takes it away again.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from torch import Tensor, nn

from ..errors import OptionError
from ..packing import tensors_of

M = TypeVar("M", bound=nn.Module)


class Listener(nn.Module):
    """A part that listens and is never called by the model, but for an `nn.Sequential`, whose last layer it then is: it
    lets everything pass.
    """

    def forward(self, x: Any) -> Any:
        return x


def with_listener(model: M, name: str, listener: nn.Module) -> M:
    """A copy of the model with the listener beside its parts; OptionError if there is one already."""
    if hasattr(model, name):
        raise OptionError(name, f"{type(model).__name__} has one already; use the method once")
    new = copy.deepcopy(model)
    listener.train(model.training)
    for like in model.parameters():
        listener.to(like)  # where the model is, and in its type
        break
    new.add_module(name, listener)
    return new


def hear(module: nn.Module, hook: Callable[..., Any], *known: Any, inputs: bool = False) -> None:
    """Let a method of a listener hear what a module puts out, or gets; `known` are its first arguments."""
    called = partial(hook, *known) if known else hook
    if inputs:
        module.register_forward_pre_hook(called)
    else:
        module.register_forward_hook(called)


def followed(copied: nn.Module, model: nn.Module, name: str) -> dict[str, tuple[Tensor, Tensor]]:
    """Name -> tensor of a copy that follows the model in training, and the model's own.

    OptionError where another method gave the model other tensors after it was copied.
    """
    theirs = tensors_of(model)
    mine = tensors_of(copied)
    if missing := [key for key in mine if key not in theirs]:
        text = f"follows {missing[0]}, which a later method took away: put it last in the list of methods"
        raise OptionError(name, text)
    return {key: (tensor, theirs[key]) for key, tensor in mine.items()}


def without(model: M, name: str) -> M:
    """A copy of the model without its listener."""
    new = copy.deepcopy(model)
    listener = getattr(new, name)
    for module in new.modules():
        for table in (module._forward_hooks, module._forward_pre_hooks):
            for key, hook in list(table.items()):
                if getattr(hook.func if isinstance(hook, partial) else hook, "__self__", None) is listener:
                    del table[key]
                    module._forward_hooks_with_kwargs.pop(key, None)
    delattr(new, name)
    return new
