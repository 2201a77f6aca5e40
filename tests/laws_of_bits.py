# SPDX-License-Identifier: Apache-2.0
"""What the laws ask of everything that leaves fewer bits: changes, on which families, neutral settings, trainings."""

from __future__ import annotations

from collections.abc import Callable

import torch
from families import FAMILIES, IMAGES, PLAIN, Family, Images
from torch import nn

from featherweight.methods import (
    adaround,
    dynamic_int8,
    equalize,
    half,
    mixed_precision,
    quantize,
    smooth,
    weight_only,
)
from featherweight.methods.binary import Binary
from featherweight.methods.qat import QAT
from featherweight.train import Method

Change = Callable[[nn.Module, Family], nn.Module]


def seen() -> list[dict[str, torch.Tensor]]:
    return list(Images().epoch(0))


def rounded_up_or_down(model: nn.Module, family: Family) -> nn.Module:
    new = weight_only.weight_only(model, weights="int4")
    return adaround.adaround(model, new, seen(), family.task, steps=2)


def mixed(model: nn.Module, family: Family) -> nn.Module:
    known = {"choices": ("int8", "int2"), "size_bytes": 600}
    return mixed_precision.mixed_precision(model, seen(), family.task, **known)  # type: ignore[arg-type]


CHANGES: dict[str, Change] = {
    "half": lambda model, family: half.to_half(model),
    "bfloat16": lambda model, family: half.to_half(model, dtype="bfloat16"),
    "int4 weights": lambda model, family: weight_only.weight_only(model, weights="int4"),
    "uint4 weights": lambda model, family: weight_only.weight_only(model, weights="uint4", group=16),
    "ternary weights": lambda model, family: weight_only.weight_only(model, weights="ternary"),
    "binary weights": lambda model, family: weight_only.weight_only(model, weights="binary", ends=None),
    "adaround": rounded_up_or_down,
    "mixed precision": mixed,
    "dynamic quantize": lambda model, family: dynamic_int8.quantize_dynamic(model),
    "signed quantize": lambda model, family: quantize.quantize(
        model, seen(), family.task, signed=True, reduce_range=True
    ),
    "equalize": lambda model, family: equalize.folded(model, seen(), family.task),
    "smooth, quantize": lambda model, family: quantize.quantize(
        smooth.smooth(model, seen(), family.task), seen(), family.task
    ),
}
NEUTRAL: dict[str, Change] = {
    "half": lambda model, family: half.to_half(model, dtype="float32"),
    "weights in few bits": lambda model, family: weight_only.weight_only(model, weights="float32"),
    "dynamic": lambda model, family: dynamic_int8.quantize_dynamic(model, bits=32),
    "mixed precision": lambda model, family: mixed_precision.mixed_precision(
        model, seen(), family.task, size_bytes=10**9, skip=("*.1.*", "*.2.*"), choices=("int8",)
    ),
}
CASES = [
    ("half", "transformers"), ("bfloat16", "plain"), ("int4 weights", "timm"), ("uint4 weights", "plain"),
    ("ternary weights", "ours"), ("binary weights", "plain"), ("adaround", "plain"), ("mixed precision", "plain"),
    ("dynamic quantize", "ours"), ("signed quantize", "plain"), ("equalize", "plain"), ("smooth, quantize", "ours"),
]  # fmt: skip


def bits(weights: str, family: Family) -> Callable[[nn.Module], Method]:
    """Training with rounding; how a family is called is the only thing it asks of it."""
    return lambda teacher: QAT(family.task, seen(), weights=weights)


METHODS = {
    "qat": (bits("int8", PLAIN), ("ours", "plain")),
    "qat in 4 bits": (bits("int4", FAMILIES["transformers"]), ("transformers",)),
    "binary": (lambda teacher: Binary("weights"), ("timm",)),
    "xnor": (lambda teacher: Binary("xnor"), ("plain",)),
    "bireal": (lambda teacher: Binary("bireal", PLAIN.task, IMAGES), ("plain",)),
}
