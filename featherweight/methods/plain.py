# SPDX-License-Identifier: Apache-2.0
"""Which layers may be replaced by something else: those that compute what their names say, and are really called."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ..errors import OptionError
from .calibration import covers, quantizable

Layer = nn.Linear | nn.Conv2d


def is_plain(module: nn.Module) -> bool:
    """A linear or 2d convolution layer, also timm's, that computes what its name says and pads with zeros."""
    timms = type(module).__module__ == "timm.layers.linear" and type(module).__name__ == "Linear"
    return timms or quantizable(module)


def plain_layers(model: nn.Module, *, skip: Sequence[str] = ()) -> dict[str, Layer]:
    """Path -> linear or 2d convolution layer, in order.

    Left out: subclasses with a forward of their own, the projection of `nn.MultiheadAttention` (whose weight is read
    past the layer), layers that share their weight with another module, and those that a pattern of `skip` covers: a
    dotted path, `*` for anything, with everything inside it. Raises OptionError for a pattern that covers none.
    """
    found: dict[str, Layer] = {}
    for path, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)) and is_plain(module):
            found[path] = module
    for host, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            found.pop(f"{host}.out_proj".lstrip("."), None)
    users: dict[int, int] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            users[id(parameter)] = users.get(id(parameter), 0) + 1
    found = {path: layer for path, layer in found.items() if users[id(layer.weight)] == 1}
    if isinstance(skip, str):
        raise OptionError("skip", f"is a list of name patterns; write [{skip!r}]")
    for pattern in skip:
        if not any(covers(pattern, path) for path in found):
            text = f"{pattern!r} covers no linear or convolution layer of {type(model).__name__}"
            raise OptionError("skip", f"{text}; they are named like {', '.join(list(found)[:3]) or 'none'}")
    return {path: layer for path, layer in found.items() if not any(covers(pattern, path) for pattern in skip)}
