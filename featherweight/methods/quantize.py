# SPDX-License-Identifier: Apache-2.0
"""8-bit integers in place of floats after training: post-training quantization of linear and convolution layers.

Weights: one scale per output channel, symmetric, [-127, 127]. Activations: one scale and zero point per tensor,
unsigned, chosen by an observer on a few hundred images that need no labels (Jacob 2018, arXiv 1712.05877;
Krishnamoorthi 2018, arXiv 1806.08342). The layers are in `int8.py`. What it does not do: attention products,
normalizations and activation functions stay float; nothing is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import Diverged, OptionError
from ..modes import evaluating
from ..runtime.parity import snr_db
from ..surgery import Edit, apply, submodule
from .calibration import Calls, chains_convolutions, enough, first, makes_tokens, run_watched, selected
from .flow import Flow, foldable, look
from .int8 import REDUCED, QuantConv2d, Quantizer, QuantLinear
from .observers import Histogram, Range, named

CORRECTION_IMAGES = 32  # mean errors need few: 25 and 125 images gave EfficientNet-Lite0 the same 23.5 dB


def plan(
    model: nn.Module,
    *,
    bits: int = 8,
    skip: Sequence[str] = (),
    flow: Flow | None = None,
    reduce_range: bool = False,
    signed: bool = False,
) -> list[Edit]:
    """One edit for each linear and 2d convolution layer that is not skipped; bits=32 leaves all as they are.

    skip: dotted paths; `*` stands for anything, and a path covers what is inside it. LookupError if nothing is left.
    flow: what `flow.look` found; with it, batch norms are first folded into the convolutions before them.
    """
    if bits == 32:
        return []
    if bits != 8:
        raise OptionError("bits", f"{bits!r} is not one of 8, 32 (no change)")
    found = selected(model, skip)
    paths = list(found)
    flow, inputs = flow or Flow(), {"inputs": False} if makes_tokens(model) else {}
    types = ({"limit": REDUCED} if reduce_range else {}) | ({"signed": True} if signed else {})
    norms = {path: flow.norms[path] for path in paths if path in flow.norms}
    edits = [Edit("", "fold_norm", {"conv": p, "norm": n}) for p, n in norms.items() if foldable(submodule(model, n))]
    for path in paths:
        output = {"output": True} if path in flow.rounded else {}
        of_conv = {**inputs, **output} if isinstance(found[path], nn.Conv2d) else {}
        edits.append(Edit(path, "int8", {**of_conv, **types}))
    return edits


def quantize(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    task: Calls,
    *,
    bits: int = 8,
    observer: str | Callable[[Histogram], Range] = "mse",
    calibration_images: int = 128,
    bias_correction: bool = True,
    skip: Sequence[str] = (),
    reduce_range: bool = False,
    signed: bool = False,
) -> nn.Module:
    """A copy in 8 bits whose ranges come from the first `calibration_images` of the batches; labels are not looked at.

    Give training images: what a model is judged on must not have tuned it. observer: "mse", "minmax", "percentile",
    "entropy" or a function of a `Histogram`. bias_correction: shift each channel by the mean error that rounding made
    in it on some of the same images (Nagel 2019, arXiv 1906.04721): 19 dB became 23.5 on EfficientNet-Lite0, a ViT did
    not change. A layer that is never called stays float. reduce_range: weights in 7 bits, for x86 without VNNI, where
    sums may overflow. signed: activations as int8, not uint8. Raises OptionError for too few images.
    """
    options: dict[str, Any] = {"bits": bits, "skip": skip, "reduce_range": reduce_range, "signed": signed}
    choose, edits = named(observer), plan(model, **options)
    if not edits:
        return apply(model, [])
    images = enough(batches, calibration_images)
    with evaluating(model), torch.no_grad():
        flow = look(model, images[0]["image"][:2], task) if chains_convolutions(model, images) else None
        edits = plan(model, flow=flow, **options)
        model = apply(model, [edit for edit in edits if edit.kind == "fold_norm"]).eval()
        edits = [edit for edit in edits if edit.kind == "int8"]
        seen = observe(model, {edit.path: bool(edit.spec.get("output")) for edit in edits}, images, task)
        new = apply(model, [edit for edit in edits if edit.path in seen]).eval()
        for path, (inputs, outputs) in seen.items():
            layer = submodule(new, path)
            for quantizer, found in ((layer.input, inputs), (getattr(layer, "output", None), outputs)):
                if isinstance(quantizer, Quantizer):
                    quantizer.set_range(choose(found))
        if bias_correction:
            correct_bias(model, new, list(seen), first(images, CORRECTION_IMAGES), task)
    return new


def observe(
    model: nn.Module, paths: Mapping[str, bool], batches: Iterable[Mapping[str, Any]], task: Calls
) -> dict[str, tuple[Histogram, Histogram]]:
    """Histograms of the inputs, and where `paths` says so of the outputs, of the layers that ran, in that order.

    Raises Diverged for a value that is not finite.
    """
    seen: dict[str, tuple[Histogram, Histogram]] = {}

    def watch(path: str) -> Callable[..., None]:
        def note(layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            inputs, outputs = seen.setdefault(path, (Histogram(), Histogram()))
            try:
                inputs.add(args[0])
                if paths[path]:
                    outputs.add(output)
            except ValueError as error:
                raise Diverged(f"calibration: {path} has {error}") from None

        return note

    run_watched(model, {path: watch(path) for path in paths}, batches, task)
    if not seen:
        raise LookupError(f"none of the {len(paths)} layers ran on the calibration batches; were there any batches?")
    return seen


def correct_bias(
    model: nn.Module, new: nn.Module, paths: Sequence[str], batches: Iterable[Mapping[str, Any]], task: Calls
) -> None:
    """Shift each channel of the new layers by the mean error they make on the inputs the float layers get."""
    sums: dict[str, tuple[Tensor, int]] = {}

    def watch(path: str) -> Callable[..., None]:
        def note(layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            axis = 1 if isinstance(layer, nn.Conv2d) else -1
            error = (output - submodule(new, path)(args[0])).movedim(axis, -1).flatten(0, -2)  # (samples, channels)
            total, count = sums.get(path, (torch.zeros(error.shape[1]), 0))
            sums[path] = total + error.sum(0), count + len(error)

        return note

    run_watched(model, {path: watch(path) for path in paths}, batches, task)
    for path, (total, count) in sums.items():
        bias = submodule(new, path).bias
        if isinstance(bias, Tensor):
            bias.add_(total / count)


def sensitivity(
    model: nn.Module, batches: Iterable[Mapping[str, Any]], task: Calls, **options: Any
) -> list[dict[str, Any]]:
    """What 8 bits in this one layer alone cost, worst first: {"layer", "snr_db", "top1_agreement", "weights"}.

    Calibrated and judged on the same batches, which the result says nothing beyond. `options` are those of `quantize`.
    """
    images = tuple(batches)
    whole = quantize(model, images, task, **options)
    rows = []
    with evaluating(model), torch.no_grad():
        expected = torch.cat(run_watched(model, {}, images, task))
        layers = {path: m for path, m in whole.named_modules() if isinstance(m, (QuantLinear, QuantConv2d))}
        for path, layer in layers.items():
            got = torch.cat(run_watched(model, {path: _instead(layer)}, images, task))
            same = float((got.argmax(-1) == expected.argmax(-1)).double().mean())
            ratio = snr_db(expected.numpy(), got.numpy())
            rows.append({"layer": path, "snr_db": ratio, "top1_agreement": same, "weights": layer.weight.numel()})
    return sorted(rows, key=lambda row: float(row["snr_db"]))


def _instead(layer: nn.Module) -> Callable[..., Any]:
    return lambda _host, args, _output: layer(*args)
