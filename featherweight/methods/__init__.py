# SPDX-License-Identifier: Apache-2.0
"""One method per file. They work on any module and never import `featherweight.models`; importing them here registers
the kinds of edit that a saved model may name."""

from . import (  # isort: skip
    aux_heads, channels, deit, distill, distill_detection, drop_blocks, dynamicvit, fuse, gradual, grouping,
    iterative, masks, mixed_depth, narrow, prune, quantize, recursion, slimming, sparsify, token_labelling,
    tome, widths,
)  # fmt: skip

__all__ = [
    "aux_heads", "channels", "deit", "distill", "distill_detection", "drop_blocks", "dynamicvit", "fuse",
    "gradual", "grouping", "iterative", "masks", "mixed_depth", "narrow", "prune", "quantize", "recursion",
    "slimming", "sparsify", "token_labelling", "tome", "widths",
]  # fmt: skip
