# SPDX-License-Identifier: Apache-2.0
"""One method per file. They work on any module and never import `featherweight.models`; importing them here registers
the kinds of edit that a saved model may name."""

from . import (  # isort: skip
    adaround, attention_transfer, aux_heads, binary, channels, crelu, deit, dist, distill,
    distill_detection, dkd, drop_blocks, dynamic_int8, dynamicvit, equalize, equivariant, fitnets, fuse,
    gradual, grouping, half, lowrank, mean_teacher, minilm, mixed_depth, mixed_precision, mutual, one,
    overparameterize, power_bert, prune, qat, quantize, recursion, repair, rkd, sensitivity, share,
    similarity, smooth, soup, sparsify, star_attention, structured, swa, tinybert, token_labelling,
    tome, vocabulary, weight_only, write_out,
)  # fmt: skip
from . import iterative, masks, narrow, slimming, widths  # noqa: F401  # isort: skip  (on the cards of others)

__all__ = [
    "adaround", "attention_transfer", "aux_heads", "binary", "channels", "crelu", "deit", "dist",
    "distill", "distill_detection", "dkd", "drop_blocks", "dynamic_int8", "dynamicvit", "equalize",
    "equivariant", "fitnets", "fuse", "gradual", "grouping", "half", "lowrank", "mean_teacher",
    "minilm", "mixed_depth", "mixed_precision", "mutual", "one", "overparameterize", "power_bert",
    "prune", "qat", "quantize", "recursion", "repair", "rkd", "sensitivity", "share", "similarity",
    "smooth", "soup", "sparsify", "star_attention", "structured", "swa", "tinybert", "token_labelling",
    "tome", "vocabulary", "weight_only", "write_out",
]  # fmt: skip
