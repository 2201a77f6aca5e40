# SPDX-License-Identifier: Apache-2.0
"""What the authors of DynamicViT, ConvNeXt and Swin call the tensors of timm's models, adaptive or not.

Their files say some linear layers as 1x1 convolutions (weights of two more dimensions, of size 1), and hold index
tables and masks (`COMPUTED`) that a model computes by itself.
"""

from __future__ import annotations

import re

from torch import nn

from . import dynamicvit_maps as maps

COMPUTED = ("relative_position_index", "attn_mask")  # last parts of names that are not weights

# pattern of our name -> the authors' name; each fits from the start, and the first that fits counts
_BLOCK = r"stages\.(\d+)\.blocks\.(?:blocks\.)?(\d+)\.(?:block\.)?"
_CONVNEXT = (
    (r"stem\.(\d+)\.", r"downsample_layers.0.\1."),
    (r"stages\.(\d+)\.downsample\.", r"downsample_layers.\1."),
    (r"stages\.\d+\.blocks\.score_predictor\.", "score_predictor."),
    (_BLOCK + r"conv_dw\.", r"stages.\1.\2.dwconv."),
    (_BLOCK + r"mlp\.fc1\.", r"stages.\1.\2.pwconv1."),
    (_BLOCK + r"mlp\.fc2\.", r"stages.\1.\2.pwconv2."),
    (_BLOCK, r"stages.\1.\2."),
    (r"head\.norm\.", "norm."),
    (r"head\.fc\.", "head."),
)
_SWIN_BLOCK = r"layers\.(\d+)\.blocks\.(?:blocks\.)?(\d+)\."
_SWIN = (
    (r"layers\.(\d+)\.blocks\.score_predictor\.", r"layers.\1.score_predictor."),
    (_SWIN_BLOCK + r"fast_path\.", r"layers.\1.blocks.\2.fastmlp.fc1."),
    (_SWIN_BLOCK + r"(?:block\.)?", r"layers.\1.blocks.\2."),
    (r"head\.fc\.", "head."),
)


def official_names(model: nn.Module) -> dict[str, str]:
    """The authors' name -> ours, for each tensor of timm's ConvNeXt or Swin; empty for any other model."""
    pyramid = maps.pyramid_of(model)
    if pyramid is None:
        return {}
    table = _CONVNEXT if pyramid is maps.CONVNEXT else _SWIN
    return {_named(_earlier(key) if table is _SWIN else key, table): key for key in model.state_dict()}


def _named(key: str, table: tuple[tuple[str, str], ...]) -> str:
    for pattern, name in table:
        if re.match(pattern, key):
            return re.sub(f"^{pattern}", name, key, count=1)
    return key


def _earlier(key: str) -> str:
    """Swin's authors put what makes the map smaller at the end of a stage, timm at the beginning of the next."""
    found = re.match(r"layers\.(\d+)\.downsample\.(.*)", key)
    return f"layers.{int(found[1]) - 1}.downsample.{found[2]}" if found else key
