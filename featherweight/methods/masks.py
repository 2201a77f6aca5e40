# SPDX-License-Identifier: Apache-2.0
"""Masks over single weights: which are zero, and kept so through later training, saving and loading.

A pruned model is plain: the zeros stand in the weights, and an edit `sparse` says of which layers they are meant to
stay. The mask is therefore read off the weights (`masks_of`), costs no byte, and replays with them. `KeepMasks` holds
it while a model is trained: what is gone has no gradient, and is zero again after each step whatever momentum says.

Which weights go is decided in `sparsify`, `gradual` and `iterative`. Zeros do not make a dense kernel faster: they save
bytes when the file is coded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import OptionError, closest
from ..method import Method, Pass
from ..surgery import Edit, apply, edit_kind, submodule

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
Masks = dict[str, Tensor]  # path of a layer -> bool, shaped like its weight; False is gone
MARK, SCAFFOLD, HEARD = "_featherweight_sparse", "sparse_mask", "_featherweight_heard"

# What a step says of each weight, from its value (of one that is gone, the last it had) and its gradient
WATCHES = {
    "movement": lambda w, g: -w * g,  # it moves away from zero, so it is wanted (Sanh 2020, 2005.07683)
    "taylor": lambda w, g: (w * g).abs(),  # Molchanov 2017, 1611.06440
    "fisher": lambda w, g: (w * g).square() / 2,  # optimal brain damage with the empirical Fisher (LeCun 1989)
}


class Mask(nn.Module):
    """A scaffold beside a layer's weight, with the memory of the methods that choose while they train."""

    def __init__(self, mask: Tensor, *, watches: str = "") -> None:
        super().__init__()
        self.mask: Tensor
        self.rest: Tensor
        self.score: Tensor
        self.level: Tensor
        self.register_buffer("mask", mask.clone())
        self.register_buffer("rest", torch.zeros(mask.shape, device=mask.device))  # the last values of what is gone
        self.register_buffer("score", torch.zeros(mask.shape if watches else (), device=mask.device))
        self.register_buffer("level", torch.zeros((), dtype=torch.int64, device=mask.device))
        self.watches = watches

    def full(self, weight: Tensor) -> Tensor:
        """The weight with the last values of what is gone."""
        return torch.where(self.mask, weight.detach(), self.rest.to(weight))

    @torch.no_grad()
    def choose(self, weight: Tensor, mask: Tensor) -> None:
        """From now on this mask: what returns has the value it had."""
        full = self.full(weight)
        self.mask.copy_(mask)
        self.rest.copy_(full * ~self.mask)
        weight.copy_(full * self.mask)

    def listen(self, weight: nn.Parameter) -> None:
        """Let the weight's gradient be heard and masked; once for each parameter, and copies start without."""
        if not hasattr(weight, HEARD) and weight.requires_grad:
            weight.register_hook(lambda gradient: self.hear(weight, gradient))
            setattr(weight, HEARD, True)

    @torch.no_grad()
    def hear(self, weight: Tensor, gradient: Tensor) -> Tensor:
        if self.watches:
            self.score += WATCHES[self.watches](self.full(weight).float(), gradient.float())
        return gradient * self.mask


@edit_kind
def sparse(layer: nn.Module, *, kept: int | None = None, pattern: str = "") -> nn.Module:
    """The same layer, whose zero weights are meant to stay zero. kept and pattern are for whoever reads the edit."""
    if not isinstance(getattr(layer, "weight", None), Tensor):
        raise OptionError("sparse", f"a {type(layer).__name__} has no weight that could be pruned")
    setattr(layer, MARK, True)
    return layer


def prunable(model: nn.Module, skip: Sequence[str] = ()) -> dict[str, nn.Module]:
    """Path -> layer for every linear layer and convolution with float weights that no pattern of `skip` names.

    Raises OptionError for a pattern that names none, LookupError where there is no such layer at all.
    """
    found = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, LAYERS) and isinstance(module.weight, nn.Parameter) and module.weight.is_floating_point()
    }
    if not found:
        raise LookupError(f"{type(model).__name__} has no linear layer or convolution with float weights to prune")
    check_patterns("skip", skip, list(found))
    return {path: layer for path, layer in found.items() if not any(fnmatchcase(path, p) for p in skip)}


def check_patterns(where: str, patterns: Sequence[str] | Mapping[str, Any], names: Sequence[str]) -> None:
    """OptionError for a name pattern that fits no layer."""
    if isinstance(patterns, str):
        raise OptionError(where, f"is a list of name patterns; write [{patterns!r}]")
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            hint = f"{closest(pattern, names)}They are named like {', '.join(list(names)[:3])}"
            raise OptionError(where, f"{pattern!r} fits no layer; {hint}")


def weight_of(layer: nn.Module) -> nn.Parameter:
    """The layer's weight, of a layer that has one."""
    return layer.weight  # type: ignore[return-value]


def masks_of(model: nn.Module) -> Masks:
    """What is kept, of every layer that was pruned: path -> bool mask. Empty for a dense model."""
    marked = {path: layer for path, layer in model.named_modules() if hasattr(layer, MARK)}
    return {path: weight_of(layer).detach() != 0 for path, layer in marked.items()}


def sparsity(model: nn.Module, skip: Sequence[str] = ()) -> float:
    """The share of zeros among the weights of all linear layers and convolutions."""
    weights = [weight_of(layer) for layer in prunable(model, skip).values()]
    return 1 - sum(int(w.count_nonzero()) for w in weights) / sum(w.numel() for w in weights)


def marks(model: nn.Module, masks: Mapping[str, Tensor], *, pattern: str = "") -> list[Edit]:
    """The edits that say of which layers zeros are to stay: those whose mask has any, unless marked already."""
    more = {"pattern": pattern} if pattern else {}
    return [
        Edit(path, "sparse", {"kept": int(mask.sum()), **more})
        for path, mask in masks.items()
        if not bool(mask.all()) and not hasattr(submodule(model, path), MARK)
    ]


@torch.no_grad()
def with_masks(model: nn.Module, masks: Mapping[str, Tensor], *, pattern: str = "") -> nn.Module:
    """A copy whose weights are zero where a mask is False, marked. OptionError for a mask that does not fit."""
    for path, mask in masks.items():
        weight = getattr(submodule(model, path), "weight", None)
        if not isinstance(weight, Tensor) or weight.shape != mask.shape:
            found = f"a weight of {tuple(weight.shape)}" if isinstance(weight, Tensor) else "no weight"
            raise OptionError("masks", f"{path} has {found}, its mask is {tuple(mask.shape)}")
    new = apply(model, marks(model, masks, pattern=pattern))
    for path, mask in masks.items():
        weight = weight_of(submodule(new, path))
        weight.copy_(torch.where(mask.to(weight.device), weight, torch.zeros_like(weight)))
    return new


def hold(model: nn.Module, masks: Mapping[str, Tensor], *, watches: str = "") -> nn.Module:
    """A copy in which each of these layers has a `Mask` beside its weight: a scaffold, which `release` takes away."""
    new = apply(model, ())
    for path, mask in masks.items():
        submodule(new, path).add_module(SCAFFOLD, Mask(mask, watches=watches))
    return new


def held(model: nn.Module) -> dict[str, tuple[nn.Parameter, Mask]]:
    """Path of a layer -> its weight and the mask that is held beside it."""
    found = {}
    for path, module in model.named_modules():
        mask = module._modules.get(SCAFFOLD)
        if isinstance(mask, Mask):
            found[path] = (weight_of(module), mask)
    return found


def release(model: nn.Module) -> nn.Module:
    """A copy without the scaffold, with the zeros in the weights and the layers marked."""
    masks = {path: mask.mask for path, (_, mask) in held(model).items()}
    new = apply(model, ())
    for path in masks:
        delattr(submodule(new, path), SCAFFOLD)
    return with_masks(new, masks)


@dataclass(frozen=True)
class KeepMasks(Method):
    """Training of a pruned model in which what is zero stays zero. Of a dense model it is plain training.

    Beside a method that holds masks itself (`gradual`) it leaves those layers to it.
    """

    def prepare(self, model: nn.Module) -> nn.Module:
        others = held(model)
        return hold(model, {path: mask for path, mask in masks_of(model).items() if path not in others})

    def loss(self, terms: dict[str, Tensor], run: Pass) -> dict[str, Tensor]:
        for weight, mask in held(run.model).values():
            mask.listen(weight)
        return terms

    @torch.no_grad()
    def after_step(self, model: nn.Module, progress: float) -> None:
        for weight, mask in held(model).values():
            weight.mul_(mask.mask)

    def finish(self, model: nn.Module) -> nn.Module:
        return release(model)
