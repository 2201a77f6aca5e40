# SPDX-License-Identifier: Apache-2.0
"""One method per file. They work on any module and never import `featherweight.models`; importing them here registers
the kinds of edit that a saved model may name."""

from . import (  # isort: skip
    aux_heads, deit, distill, distill_detection, dynamicvit, fuse, grouping, mixed_depth, prune, quantize, recursion,
    token_labelling, tome,
)  # fmt: skip

__all__ = [
    "aux_heads", "deit", "distill", "distill_detection", "dynamicvit", "fuse", "grouping", "mixed_depth", "prune",
    "quantize", "recursion", "token_labelling", "tome",
]  # fmt: skip
