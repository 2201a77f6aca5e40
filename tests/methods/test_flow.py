# SPDX-License-Identifier: Apache-2.0
"""Convolutional networks in 8 bits: batch norms folded, outputs rounded where the next layer is a convolution."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from featherweight.errors import OptionError
from featherweight.methods.flow import look
from featherweight.methods.int8 import QuantConv2d
from featherweight.methods.quantize import plan, quantize
from featherweight.runtime.parity import snr_db
from featherweight.surgery import Edit, apply, edits_of
from featherweight.tasks.classification import Classification

TASK = Classification(5)
IMAGES = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A stem with its cut-off, a residual branch, and one convolution whose places become tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8)
        self.left, self.left_norm = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.tokens, self.head = nn.Conv2d(8, 16, 2, 2), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(x + self.left_norm(self.left(x)))
        return self.head(self.tokens(x).flatten(2).transpose(1, 2).amax(1))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    model = Net()
    for norm in (model.norm, model.left_norm):
        nn.init.normal_(norm.weight, 1, 0.3)
        nn.init.normal_(norm.bias, 0, 0.3)
        norm.running_mean.normal_(0, 0.3)
        norm.running_var.uniform_(0.5, 2)
    return model.eval()


def test_what_follows_what(net: Net) -> None:
    flow = look(net, IMAGES[:2], TASK)
    assert flow.norms == {"stem": "norm", "left": "left_norm"}
    # the stem's cut-off feeds a sum too, so its output is rounded; what becomes tokens is not
    assert flow.rounded == {"stem", "left"}


def test_a_model_that_cannot_be_followed_has_no_flow() -> None:
    class Branching(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x if x.sum() > 0 else -x)

    assert look(Branching().eval(), IMAGES[:2], TASK).norms == {}


@torch.no_grad()
def test_folding_is_equal_and_replays(net: Net) -> None:
    pairs = (("stem", "norm"), ("left", "left_norm"))
    edits = [Edit("", "fold_norm", {"conv": conv, "norm": norm}) for conv, norm in pairs]
    before = copy.deepcopy(net.state_dict())
    folded = apply(net, edits)
    torch.testing.assert_close(folded(IMAGES), net(IMAGES), atol=1e-5, rtol=1e-5)  # the same products in another order
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert type(folded.norm) is nn.Identity
    fresh = apply(Net(), edits_of(folded)).eval()
    fresh.load_state_dict(folded.state_dict())
    assert torch.equal(fresh(IMAGES), folded(IMAGES))
    with pytest.raises(OptionError, match="are not a convolution and a batch norm"):
        apply(net, [Edit("", "fold_norm", {"conv": "stem", "norm": "head"})])


@torch.no_grad()
def test_a_network_in_8_bits(net: Net) -> None:
    small = quantize(net, [{"image": IMAGES}], TASK)
    assert snr_db(net(IMAGES).numpy(), small(IMAGES).numpy()) > 25
    assert not any(isinstance(module, nn.BatchNorm2d) for module in small.modules())
    rounded = {name for name, m in small.named_modules() if isinstance(m, QuantConv2d) and list(m.output.buffers())}
    assert rounded == {"stem", "left"}
    fresh = apply(Net(), edits_of(small)).eval()
    fresh.load_state_dict(small.state_dict())
    assert torch.equal(fresh(IMAGES), small(IMAGES))
    assert [edit.kind for edit in plan(net)] == ["int8"] * 4, "without a flow nothing is folded"


@torch.no_grad()
def test_timm_networks_pad_by_size_and_carry_their_activation() -> None:
    efficientnet = pytest.importorskip("timm.models.efficientnet")
    torch.manual_seed(0)
    model = efficientnet.tf_efficientnet_lite0(num_classes=5).eval()
    assert {type(m).__name__ for m in model.modules()} >= {"Conv2dSame", "BatchNormAct2d"}
    images = torch.randn(2, 3, 33, 33)  # odd: top and bottom are not padded alike
    flow = look(model, images, TASK)
    assert len(flow.norms) == 49
    edits = plan(model, flow=flow)
    folded = apply(model, [edit for edit in edits if edit.kind == "fold_norm"]).eval()
    torch.testing.assert_close(folded(images), model(images), atol=1e-5, rtol=1e-4)
    stem = apply(folded, [Edit("conv_stem", "int8", {"inputs": False})]).conv_stem
    close = snr_db(folded.conv_stem(images).numpy(), stem(images).numpy())
    assert close > 35, "an 8-bit weight and the same places"
