# SPDX-License-Identifier: Apache-2.0
"""One method per file. They work on any module and never import `featherweight.models`; importing them here registers
the kinds of edit that a saved model may name."""

from . import (  # isort: skip
    adaround, aux_heads, binary, channels, deit, distill, distill_detection, drop_blocks, dynamic_int8, dynamicvit,
    equalize, fuse, gradual, grouping, half, iterative, masks, mixed_depth, mixed_precision, narrow, prune, qat,
    quantize, recursion, repair, share, slimming, smooth, sparsify, token_labelling, tome, weight_only, widths,
)  # fmt: skip

__all__ = [
    "adaround", "aux_heads", "binary", "channels", "deit", "distill", "distill_detection", "drop_blocks",
    "dynamic_int8", "dynamicvit", "equalize", "fuse", "gradual", "grouping", "half", "iterative", "masks",
    "mixed_depth", "mixed_precision", "narrow", "prune", "qat", "quantize", "recursion", "repair", "share",
    "slimming", "smooth", "sparsify", "token_labelling", "tome", "weight_only", "widths",
]  # fmt: skip
