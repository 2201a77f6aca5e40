# SPDX-License-Identifier: Apache-2.0
"""One method per file. They work on any module and never import `featherweight.models`; importing them here registers
the kinds of edit that a saved model may name."""

from . import deit, distill, dynamicvit, fuse, grouping, mixed_depth, prune, quantize, recursion, token_labelling, tome

__all__ = [
    "deit", "distill", "dynamicvit", "fuse", "grouping", "mixed_depth", "prune", "quantize", "recursion",
    "token_labelling", "tome",
]  # fmt: skip
