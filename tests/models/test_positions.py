# SPDX-License-Identifier: Apache-2.0
"""Resized position embeddings against numbers of DeiT's, timm's, DynamicViT's and LV-ViT's own code."""

from __future__ import annotations

import fill
import pytest
import torch
from golden_files import agrees, golden

from featherweight.errors import OptionError
from featherweight.models.positions import resize, resize_map

INPUTS = {
    "plain 14x14 -> 24x24": ("pe:vit", (1, 197, 32), 1, (24, 24)),
    "distilled 14x14 -> 24x24": ("pe:dist", (1, 198, 32), 2, (24, 24)),
    "plain 24x24 -> 14x14": ("pe:vit384", (1, 577, 32), 1, (14, 14)),
    "plain 14x14 -> 14x14": ("pe:vit", (1, 197, 32), 1, (14, 14)),
}
KERNEL = {
    "deit_official (bicubic, a=-0.75, no antialias)": "bicubic",
    "timm_1.0.31 (bicubic, antialias=True)": "bicubic-antialias",
    "timm_1.0.31 with antialias=False": "bicubic",
    "timm_0.4.12 (bilinear)": "bilinear",
    "timm_0.4.5 (bilinear)": "bilinear",
    "dynamicvit (bilinear)": "bilinear",
    "lvvit (bicubic, no antialias)": "bicubic",
}
CASES = [(case, rule) for case, rules in golden("pos_embed_resize")["outputs"].items() for rule in rules]


@pytest.mark.parametrize(("case", "rule"), CASES)
def test_each_rule_is_the_one_of_its_authors(case: str, rule: str) -> None:
    name, shape, prefix, grid = INPUTS[case]
    found = resize(fill.normal(name, shape), grid, prefix=prefix, kernel=KERNEL[rule])
    agrees(found, golden("pos_embed_resize")["outputs"][case][rule], atol=2e-6)


def test_the_rules_differ() -> None:
    name, shape, prefix, grid = INPUTS["plain 24x24 -> 14x14"]
    one, two, three = (resize(fill.normal(name, shape), grid, prefix=prefix, kernel=k) for k in set(KERNEL.values()))
    assert min(float((a - b).abs().max()) for a, b in ((one, two), (two, three), (one, three))) > 0.3


def test_a_map_of_positions() -> None:
    found = resize_map(fill.normal("pe:sret", (1, 32, 28, 28)), (48, 48))
    agrees(found, golden("pos_embed_resize")["sret_4d"]["bicubic"], atol=2e-6)


def test_rectangles_and_equal_counts() -> None:
    positions = torch.arange(2 * 8, dtype=torch.float32).reshape(1, 16, 1)  # a 4 x 4 grid that counts
    wide = resize(positions, (2, 8))
    assert wide.shape == (1, 16, 1) and not torch.equal(wide, positions)  # as many places, another grid
    assert resize(positions, (2, 8), source=(2, 8)) is positions
    assert wide[0, :, 0].diff().min() > 0  # rows are still read one after another


def test_what_cannot_be_resized_is_said() -> None:
    with pytest.raises(OptionError, match="15 positions make no square; say which grid"):
        resize(torch.zeros(1, 15, 4), (2, 2))
    with pytest.raises(OptionError, match="15 positions are not a grid of"):
        resize(torch.zeros(1, 15, 4), (2, 2), source=(4, 4))
    with pytest.raises(OptionError, match="did you mean 'bicubic'"):
        resize(torch.zeros(1, 16, 4), (2, 2), kernel="bicubicc")
