# SPDX-License-Identifier: Apache-2.0
"""Every described family is what its record says, from the inside and however it is wrapped."""

from __future__ import annotations

import pytest
import torch
from families import DEPTH, DIM, FAMILIES, HEADS, PLAIN, Family
from torch import Tensor, nn

from featherweight import anatomy
from featherweight.anatomy import Anatomy, Around, anatomy_of, blocks_of, embed_dim, prefix_of, wrap_blocks
from featherweight.models import zoo
from featherweight.surgery import submodule


def test_the_paths_lead_to_what_they_name(family: Family) -> None:
    model = family.make()
    record, blocks = anatomy_of(model), blocks_of(model)
    assert list(blocks) == [f"{record.blocks}.{i}" for i in range(DEPTH)]
    assert all(submodule(model, path) is block for path, block in blocks.items())
    assert isinstance(submodule(model, record.norm), nn.LayerNorm)
    assert submodule(model, record.head).out_features == 5
    assert embed_dim(model) == DIM
    for block in blocks.values():
        fc1, fc2 = (submodule(block, path) for path in record.mlp)
        assert (fc1.in_features, fc1.out_features, fc2.in_features, fc2.out_features) == (DIM, 4 * DIM, 4 * DIM, DIM)
        assert sum(submodule(block, path).out_features for path in record.qkv) == 3 * DIM
        assert submodule(block, record.projection).in_features == DIM
        attention = submodule(block, record.attention)
        assert getattr(attention, record.num_heads) == HEADS
        assert all(getattr(attention, name) == DIM for name in record.widths)


def test_the_norm_sees_all_tokens_and_the_blocks_the_prefix(family: Family) -> None:
    model, seen = family.make(), []
    for path in (anatomy_of(model).norm, next(iter(blocks_of(model)))):
        submodule(model, path).register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
    family.logits(model)
    assert seen == [prefix_of(model) + 16] * 2


@torch.no_grad()
def test_a_block_runs_with_and_without_a_mask(family: Family) -> None:
    model = family.make()
    run, block, x = anatomy_of(model).run, next(iter(blocks_of(model).values())), torch.randn(2, 5, DIM)
    nothing = torch.zeros(2, 1, 5, 5)
    torch.testing.assert_close(run(block, x, nothing), run(block, x, None), atol=1e-6, rtol=1e-5)
    alone = torch.full((2, 1, 5, 5), -1e9)
    alone[..., range(5), range(5)] = 0.0  # each token sees itself only
    torch.testing.assert_close(run(block, x, alone)[:, 2:3], run(block, x[:, 2:3], None), atol=1e-5, rtol=1e-5)


class Twice(Around):
    """Puts one token of zeros in front, for the test."""

    adds = 1

    def __init__(self, blocks: nn.ModuleList) -> None:
        super().__init__()
        self.blocks = blocks

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        x = torch.cat([torch.zeros_like(x[:, :1]), x], dim=1)
        for block in self.blocks:
            x = block(x)
        return x


def test_blocks_are_found_however_they_are_wrapped(family: Family) -> None:
    model = family.make()
    path, own = anatomy_of(model).blocks, list(blocks_of(model).values())
    for depth in (1, 2):
        wrap_blocks(model, Twice)
        assert list(blocks_of(model)) == [f"{path}{'.0.blocks' * depth}.{i}" for i in range(DEPTH)]
        assert all(a is b for a, b in zip(blocks_of(model).values(), own, strict=True))
        assert prefix_of(model) == 1 + depth
        assert family.logits(model).shape == (2, 5)


def test_distilled_models_have_two_prefix_tokens() -> None:
    config = {"image_size": (16, 16), "patch_size": 4, "embed_dim": 32, "depth": 1, "num_heads": 2, "distilled": True}
    assert prefix_of(zoo.build({"name": "vit", "config": config})) == 2
    deit = pytest.importorskip("timm.models.deit")
    theirs = deit.VisionTransformerDistilled(img_size=16, patch_size=4, embed_dim=32, depth=1, num_heads=2)
    assert prefix_of(theirs) == 2


def test_an_unknown_model_is_told_how_to_be_known() -> None:
    with pytest.raises(TypeError, match=r"no anatomy for Plain; describe it: .*describe\(Plain"):
        anatomy_of(PLAIN.make())


def test_a_described_class_and_those_made_from_it_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anatomy, "_BY_CLASS", {})

    class Mine(nn.Module):
        pass

    class Child(Mine):
        pass

    record = Anatomy(blocks="layers", norm="norm", head="head", run=lambda block, x, mask: block(x))
    anatomy.describe(Mine, record)
    assert anatomy_of(Mine()) is anatomy_of(Child()) is record
    ours = FAMILIES["ours"].make()

    class Special(type(ours)):  # type: ignore[misc]
        pass

    assert anatomy_of(Special(ours.config)) is anatomy.OURS
