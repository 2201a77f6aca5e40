# SPDX-License-Identifier: Apache-2.0
"""Blocks that run several times: what they compute, what they save, and which other methods go with them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from families import CONFIG, DEPTH, DIM, FAMILIES, IMAGES, Images
from torch import nn

from featherweight import artifact, counting
from featherweight.anatomy import anatomy_of, blocks_of
from featherweight.errors import OptionError
from featherweight.methods import dynamicvit, prune, quantize, recursion, tome
from featherweight.models import zoo
from featherweight.recurrence import Coefficient, Looped, NonLinearProjection
from featherweight.surgery import Edit, all_of, apply, submodule
from featherweight.train import fit


@torch.no_grad()
@pytest.mark.parametrize("name", list(FAMILIES))
def test_one_block_stands_for_its_neighbors(name: str) -> None:
    """As if the host's list named the same block several times."""
    family = FAMILIES[name]
    model, expected = family.make(), family.make()
    first = next(iter(blocks_of(expected).values()))
    listed = submodule(expected, anatomy_of(expected).blocks)
    for place in range(DEPTH):
        listed[place] = first
    shared = recursion.share(model, loops=DEPTH)
    assert torch.equal(family.logits(shared), family.logits(expected))
    assert len(blocks_of(shared)) == 1
    assert list(blocks_of(shared).values()) != list(blocks_of(model).values())  # the model given is another


@torch.no_grad()
def test_deeper_at_equal_parameters() -> None:
    family = FAMILIES["ours"]
    model = family.make()
    deeper = recursion.share(model, loops=2, unique=DEPTH)
    assert counting.parameters(deeper) == counting.parameters(model)
    image = torch.zeros(1, 3, 16, 16)
    ends = counting.macs(model, image), counting.macs(deeper, image)
    assert 1.9 < ends[1] / ends[0] < 2
    assert list(deeper.state_dict())[5].startswith("blocks.0.block.")


@torch.no_grad()
@pytest.mark.parametrize("name", list(FAMILIES))
def test_projections_and_coefficients_start_as_the_identity_and_then_work(name: str) -> None:
    family = FAMILIES[name]
    model = family.make()
    plain = recursion.share(model, loops=DEPTH)
    added = recursion.share(model, loops=DEPTH, nll_ratio=0.5, coefficients=True).eval()
    assert torch.equal(family.logits(added), family.logits(plain))
    assert len(all_of(added, NonLinearProjection)) == DEPTH
    assert {module.mlp.fc1.out_features for module in all_of(added, NonLinearProjection).values()} == {DIM // 2}
    looped = next(iter(all_of(added, Looped).values()))
    looped.coefficient2[DEPTH - 1].bias.zero_()  # the last pass adds nothing
    fewer = recursion.share(model, loops=DEPTH - 1, unique=1)
    torch.testing.assert_close(family.logits(added), family.logits(fewer), atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_deep_model_of_one_block_is_saved_and_loaded(tmp_path: Path) -> None:
    """It has more passes than tensors."""
    model = zoo.build({"name": "vit", "config": {**CONFIG, "depth": 48, "embed_dim": 8, "num_heads": 2}}).eval()
    shared = recursion.share(model, loops=48).eval()
    assert len(shared.state_dict()) < 48
    loaded = artifact.load(artifact.save(shared, tmp_path / "model"))
    assert torch.equal(loaded(IMAGES), shared(IMAGES))


def test_projections_and_coefficients_are_trained() -> None:
    family = FAMILIES["ours"]
    model = recursion.share(family.make(), loops=DEPTH, nll_ratio=1.0, coefficients=True)
    trained = fit(model, Images(), family.task)
    moved = {name for name, t in trained.state_dict().items() if not torch.equal(t, model.state_dict()[name])}
    for part in ("projections.2.mlp.fc2.weight", "projections.0.mlp.fc1.weight", "coefficient1.1.bias"):
        assert f"blocks.0.{part}" in moved
    assert len(all_of(trained, Coefficient)) == 4 * DEPTH


@torch.no_grad()
def test_a_block_may_start_as_the_mean() -> None:
    model = FAMILIES["ours"].make()
    shared = recursion.share(model, loops=DEPTH, take="mean")
    wanted = torch.stack([block.mlp.fc1.weight for block in model.blocks]).mean(0)
    torch.testing.assert_close(next(iter(blocks_of(shared).values())).mlp.fc1.weight, wanted)
    edit = Edit("", "narrow_mlp", {"block": "blocks.1", "keep": list(range(64))})
    with pytest.raises(OptionError, match=r"blocks differ in mlp\.fc1\.weight"):
        recursion.share(apply(model, [edit]), loops=DEPTH, take="mean")


@torch.no_grad()
@pytest.mark.parametrize("name", list(FAMILIES))
def test_other_methods_see_one_block(name: str) -> None:
    family = FAMILIES[name]
    shared = recursion.share(family.make(), loops=2, unique=DEPTH, nll_ratio=1.0).eval()
    pruned = prune.prune(shared, mlp=0.5, heads=0.5)
    assert counting.parameters(pruned) < counting.parameters(shared)
    assert family.logits(pruned).isfinite().all()
    sparse = apply(shared, dynamicvit.plan(shared, keep={1: 0.5}))
    assert counting.macs(sparse, torch.zeros(1, 3, 16, 16)) < 0.95 * counting.macs(shared, torch.zeros(1, 3, 16, 16))
    with pytest.raises(OptionError, match="comes last"):
        recursion.share(apply(family.make(), dynamicvit.plan(family.make())), loops=3)


def test_a_wrong_order_says_the_right_one() -> None:
    family = FAMILIES["ours"]
    small = quantize.quantize(family.make(), list(Images().epoch(0)), family.task)
    with pytest.raises(LookupError, match="share blocks first, then quantize"):
        recursion.share(small, loops=3)
    with pytest.raises(OptionError, match="cannot merge in between"):
        apply(recursion.share(family.make(), loops=3), tome.plan(family.make(), r=2))
    with pytest.raises(OptionError, match="run several times already"):
        recursion.share(recursion.share(family.make(), loops=3), loops=1, unique=1)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"loops": 2}, f"loops: 2 does not divide the {DEPTH} blocks; say how many stay with `unique`"),
        ({"loops": 0}, "loops: 0 does not divide"),
        ({"loops": 2, "unique": 2}, f"unique: 2 does not divide the {DEPTH} blocks"),
        ({"loops": 2.5, "unique": 1}, "loops: 2.5 is not a whole number"),
        ({"loops": 3, "take": "last"}, "take: 'last' is not one of first, mean"),
        ({"loops": 3, "nll_ratio": 0.001}, "nll_ratio: 0.001 is not from 0"),
        ({"loops": 3, "nll_ratio": -1.0}, "nll_ratio: -1.0 is not from 0"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, object], says: str) -> None:
    with pytest.raises(OptionError, match=says):
        recursion.plan(FAMILIES["ours"].make(), **options)


def test_a_model_nobody_described_is_refused() -> None:
    with pytest.raises(TypeError, match="no anatomy for Linear"):
        recursion.plan(nn.Linear(2, 2))
