# SPDX-License-Identifier: Apache-2.0
"""Branches while training: merged exactly, whatever their statistics; nothing is left of them."""

from __future__ import annotations

from typing import Any

import fill
import pytest
import torch
from families import PLAIN, Images
from torch import nn

from featherweight import counting
from featherweight.convs import fused
from featherweight.errors import OptionError
from featherweight.methods.fuse import fuse
from featherweight.methods.overparameterize import Branches, Overparameterize, plan, with_branches
from featherweight.surgery import all_of, edits_of
from featherweight.train import fit

BLOCKS = ["repvgg", "acb", "dbb"]
IMAGE = fill.normal("image", (2, 8, 7, 9))
CONVS: dict[str, dict[str, Any]] = {
    "plain": {},
    "strided": {"stride": 2},
    "groups": {"groups": 4},
    "wide": {"kernel_size": 5, "padding": 2},
    "long": {"kernel_size": (3, 5), "padding": (1, 2)},
}


def branched(block: Any, outputs: int = 8, gamma: float = 1.0, **options: Any) -> Branches:
    """A convolution with branches whose norms have seen something."""
    conv = nn.Conv2d(8, outputs, **{"kernel_size": 3, "padding": 1, **options})
    made = with_branches(conv, block, gamma)
    made.load_state_dict({k: fill.tensor(k, t.shape, t.dtype) for k, t in made.state_dict().items()})
    return made.eval()


@pytest.mark.parametrize("outputs", [8, 12])
@pytest.mark.parametrize("case", list(CONVS))
@pytest.mark.parametrize("block", BLOCKS)
def test_merging_is_exact(block: Any, case: str, outputs: int) -> None:
    made = branched(block, outputs, **CONVS[case])
    merged = fused(made)
    assert type(merged) is nn.Conv2d
    torch.testing.assert_close(merged(IMAGE), made(IMAGE), atol=2e-5, rtol=1e-5)
    exact = fused(made.double())
    torch.testing.assert_close(exact(IMAGE.double()), made(IMAGE.double()), atol=1e-12, rtol=0)  # type: ignore[misc]


def test_the_branches_are_the_papers() -> None:
    assert [type(b).__name__ for b in branched("repvgg").branches] == ["Branch", "Through"]
    assert [type(b).__name__ for b in branched("repvgg", 12).branches] == ["Branch"]  # no input to add
    assert [type(b).__name__ for b in branched("repvgg", stride=2).branches] == ["Branch"]
    sizes = [b.conv.kernel_size for b in branched("acb").branches]
    assert sizes == [(3, 1), (1, 3)]
    assert [type(b).__name__ for b in branched("dbb").branches] == ["Branch", "Twice", "Twice"]


@pytest.mark.parametrize("block", BLOCKS)
def test_the_net_starts_as_it_was(block: Any) -> None:
    model = PLAIN.make()
    method = Overparameterize(block)
    prepared = method.prepare(model)
    assert len(all_of(prepared, Branches)) == 2
    assert torch.equal(PLAIN.logits(prepared), PLAIN.logits(model))
    assert torch.equal(PLAIN.logits(method.finish(prepared)), PLAIN.logits(model))
    papers = Overparameterize(block, gamma=1.0).prepare(model)
    assert not torch.allclose(PLAIN.logits(papers), PLAIN.logits(model))


@pytest.mark.parametrize("block", BLOCKS)
def test_training_uses_the_branches_and_leaves_none(block: Any) -> None:
    method = Overparameterize(block, gamma=0.5)
    states = []

    class Watch(Overparameterize):
        def finish(self, model: nn.Module) -> nn.Module:
            states.append(model)
            return super().finish(model)

    new = fit(PLAIN.make(), Images(), PLAIN.task, epochs=2, methods=[Watch(block, gamma=0.5)])
    (trained,) = states
    torch.testing.assert_close(PLAIN.logits(new), PLAIN.logits(trained.eval()), atol=1e-4, rtol=0)
    assert not all_of(new, Branches)
    assert counting.parameters(new) == counting.parameters(PLAIN.make())  # its convolutions had biases
    first, *_ = all_of(trained, Branches).values()
    fresh, *_ = all_of(method.prepare(PLAIN.make()), Branches).values()
    for name, value in first.named_parameters():
        assert not torch.equal(value, fresh.get_parameter(name)) or "bias" in name, name


def test_the_bias_stays_and_is_said() -> None:
    conv = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4))
    new = fit_nothing(conv)
    assert [edit.kind for edit in edits_of(new)] == ["with_bias"]
    assert new[0].bias is not None
    deployed = fuse(new.eval(), torch.rand(2, 3, 8, 8))
    assert isinstance(deployed[1], nn.Identity)


def fit_nothing(model: nn.Module) -> Any:
    method = Overparameterize()
    return method.finish(method.prepare(model))


def test_what_is_left_alone() -> None:
    kept = nn.Sequential(
        nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 2), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3, padding=2, dilation=2),
        nn.ConvTranspose2d(4, 4, 3), nn.Conv2d(4, 4, 3, padding=1),
    )  # fmt: skip
    assert [edit.path for edit in plan(kept)] == ["5"]
    with pytest.raises(LookupError, match="no convolution of 3 x 3 or more that keeps the size"):
        plan(kept, skip=["5"])
    with pytest.raises(OptionError, match="'vgg' is not one of repvgg, acb, dbb"):
        Overparameterize("vgg")  # type: ignore[arg-type]
