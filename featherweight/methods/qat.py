# SPDX-License-Identifier: Apache-2.0
"""Quantization-aware training: the model learns with its weights and activations rounded as they will be.

The gradient passes the rounding straight through where a value is inside the range (Jacob 2018, 1712.05877); with
`learned` the steps are trained too (LSQ: Esser 2020, 1902.08153). It starts from a trained float model: the steps of
the weights from the least squared error (the paper takes 2 mean|w| / sqrt(Qp)), those of the activations from
calibration images, where a zero point that is then fixed makes room for negative values. Batch norms train beside the
convolutions and are folded into their steps at the end, which is exact, as each channel has a step of its own. The
result is what `quantize` or `weight_only` would have made, with other numbers. Not here: attention products; the sum
of two branches keeps the rounding that each of them had.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from ..errors import OptionError
from ..modes import BATCH_NORMS, evaluating
from ..surgery import Edit, all_of, apply, edits_of, put, record, submodule
from ..train import Method
from .calibration import Calls, chains_convolutions, enough, makes_tokens, selected
from .flow import Flow, foldable, look
from .int8 import Quantizer
from .observers import mse, named
from .quantize import observe
from .rounding import levels_of, to_codes
from .rounding_layers import InputRounding, Rounded, Settled, rounding_of
from .stored import StoredConv2d, StoredLinear

ACTIVATIONS = {8: 256, 4: 16}


def plan(
    model: nn.Module,
    *,
    weights: str = "int8",
    activations: int | None = 8,
    ends: str = "int8",
    skip: Sequence[str] = (),
) -> list[Edit]:
    """The edits that `QAT` with these options leaves in the end, but for what only images tell."""
    layers = selected(model, skip)
    method = QAT(_Nothing(), (), weights=weights, activations=activations, ends=ends)
    grids = method.grids(list(layers))
    found = []
    for path, layer in layers.items():
        levels = method.input_levels(model, layer, grids[path])
        found.append(Edit(path, *_kind(layer, levels_of(grids[path]), levels, output=False)))
    return found


class _Nothing:
    """A task that is not asked anything."""

    def forward(self, model: nn.Module, batch: Any) -> Any:
        return model(batch)


@dataclass(frozen=True)
class QAT(Method):
    """Train with rounding. `finish` returns the model in integers, as after `quantize` or `weight_only`.

    calibration: batches without labels, which give the activations their first ranges and show which batch norm belongs
    to which convolution; task: how the model is called. weights: int8, int4, int2, ternary or binary. activations: 8,
    4 or None (float). learned: train the steps. ends: the grid of the first and the last layer. freeze_at: the share
    of the training after which batch norms use their running statistics. skip: as in `quantize`.
    """

    task: Calls
    calibration: Sequence[Mapping[str, Any]]
    weights: str = "int8"
    activations: int | None = 8
    learned: bool = True
    observer: str = "mse"
    ends: str = "int8"
    freeze_at: float = 0.7
    skip: Sequence[str] = ()
    calibration_images: int = 128

    def __post_init__(self) -> None:
        levels_of(self.weights, "weights")
        levels_of(self.ends, "ends")
        named(self.observer)
        if self.activations not in (None, *ACTIVATIONS):
            raise OptionError("activations", f"{self.activations!r} is not one of 8, 4, None (float)")
        if not 0 <= self.freeze_at <= 1:
            raise OptionError("freeze_at", f"{self.freeze_at!r} is not in 0..1, a share of the training")

    def prepare(self, model: nn.Module) -> nn.Module:
        images = enough(self.calibration, self.calibration_images)
        layers, choose = selected(model, self.skip), named(self.observer)
        with evaluating(model), torch.no_grad():
            seen = observe(model, dict.fromkeys(layers, False), images, self.task)
        paths = [path for path in layers if path in seen]
        new = copy.deepcopy(model)
        record(new, edits_of(model))
        for path, grid in self.grids(paths).items():
            layer: Any = submodule(new, path)
            inputs: nn.Module = nn.Identity()
            levels = self.input_levels(model, layer, grid)
            if levels:
                limits = mse(seen[path][0], levels=levels) if self.observer == "mse" else choose(seen[path][0])
                inputs = InputRounding(limits, levels, learned=self.learned)
            put(new, path, Rounded(layer, rounding_of(layer.weight, grid, learned=self.learned), inputs))
        for path, norm in [(p, m) for p, m in new.named_modules() if isinstance(m, BATCH_NORMS)]:
            put(new, path, Settled(norm))
        return new

    def grids(self, paths: Sequence[str]) -> dict[str, str]:
        """The grid of each layer."""
        ends = {paths[0], paths[-1]} if len(paths) > 2 else set()
        return {path: self.ends if path in ends else self.weights for path in paths}

    def input_levels(self, model: nn.Module, layer: nn.Module, grid: str) -> int:
        """0: the input stays as it is. At the ends 8 bits, where what makes tokens gets the picture as it is."""
        if self.activations is None or (isinstance(layer, nn.Conv2d) and makes_tokens(model)):
            return 0
        return ACTIVATIONS[self.activations if grid == self.weights else 8]

    def after_step(self, model: nn.Module, progress: float) -> None:
        for norm in all_of(model, Settled).values():
            norm.settled.fill_(progress >= self.freeze_at)

    def finish(self, model: nn.Module) -> nn.Module:
        plain, trained = copy.deepcopy(model), all_of(model, Rounded)
        inside = {f"{path}.layer": path for path in trained}  # where other methods found a layer while it was rounded
        record(plain, [replace(edit, path=inside.get(edit.path, edit.path)) for edit in edits_of(model)])
        with torch.no_grad():
            for path, host in all_of(plain, Rounded).items():
                host.layer.weight.copy_(host.rounding(host.layer.weight))
                put(plain, path, host.layer)
            for path, norm in all_of(plain, Settled).items():
                put(plain, path, norm.norm)
            return self._deployed(plain.eval(), trained)

    def _deployed(self, plain: nn.Module, trained: Mapping[str, Rounded]) -> nn.Module:
        """The edits that make integers of a model whose weights lie on their grids, and the numbers of the training."""
        images = enough(self.calibration, self.calibration_images)
        flow = Flow()
        if self.activations is not None and chains_convolutions(plain, images):
            flow = look(plain, images[0]["image"][:2], self.task)
        norms = {
            conv: norm for conv, norm in flow.norms.items() if conv in trained and foldable(submodule(plain, norm))
        }
        host = apply(plain, [Edit("", "fold_norm", {"conv": conv, "norm": norm}) for conv, norm in norms.items()])
        rounds = dict.fromkeys(sorted(flow.rounded & set(trained)), True)
        outputs = observe(host, rounds, images, self.task) if rounds else {}
        new = apply(host, [_edit(path, layer, path in outputs) for path, layer in trained.items()]).eval()
        choose = named(self.observer)
        for path, layer in trained.items():
            made: Any = submodule(new, path)
            _set_weight(made, layer, submodule(host, path).weight, submodule(plain, path).weight)
            if isinstance(layer.input, InputRounding):
                made.input.set(float(layer.input.step.value()), round(float(layer.input.zero)))
            output = getattr(made, "output", None)
            if isinstance(output, Quantizer):
                output.set_range(choose(outputs[path][1]))
        return new


def _kind(layer: nn.Module, levels: int, inputs: int, *, output: bool) -> tuple[str, dict[str, Any]]:
    """Kind and spec of the edit for a layer with so many levels of weights and of inputs (0: float)."""
    extra: dict[str, Any] = {"output": True} if output else {}
    if levels == 255 and (inputs == 256 or (isinstance(layer, nn.Conv2d) and not inputs)):
        return "int8", extra | ({"inputs": False} if not inputs else {})
    return "packed", {"levels": levels, **extra, **({"inputs": inputs} if inputs else {})}


def _edit(path: str, layer: Rounded, output: bool) -> Edit:
    inputs = layer.input.levels if isinstance(layer.input, InputRounding) else 0
    levels: Any = layer.rounding.levels
    return Edit(path, *_kind(layer.layer, levels, inputs, output=output))


def _set_weight(made: Any, layer: Rounded, folded: Any, before: Any) -> None:
    """The codes and steps of the training, the steps multiplied by what a batch norm was folded in with."""
    rows, old = folded.detach().flatten(1), before.detach().flatten(1)
    largest = old.abs().amax(1, keepdim=True)
    factor = torch.where(largest > 0, rows.abs().amax(1, keepdim=True) / largest.clamp(min=1e-30), 1.0)
    rounding: Any = layer.rounding
    _, step = rounding.codes(layer.layer.weight)
    step = step * factor
    codes = to_codes(rows, torch.where(step > 0, step, 1.0), rounding.levels)
    if isinstance(made, (StoredLinear, StoredConv2d)):
        store: Any = made.store
        store.set(codes[:, None], step[:, None])
    else:
        made.weight_int8.copy_((codes.int() - 127).to(torch.int8).reshape(made.weight_int8.shape))
        made.weight_scale.copy_(step.squeeze(1))
