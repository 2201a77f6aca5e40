# SPDX-License-Identifier: Apache-2.0
"""Ranges made equal between layers: the answer stays, and rounding by layer gets better."""

from __future__ import annotations

import pytest
import torch
from families import FAMILIES, IMAGES, Images
from torch import Tensor, nn

from featherweight.errors import OptionError
from featherweight.methods import quantize, smooth
from featherweight.methods.equalize import ChannelClip, equalize, folded
from featherweight.runtime.parity import snr_db
from featherweight.surgery import apply, edits_of


class Task:
    def forward(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return model(batch["image"])


def pictures(count: int = 8) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [{"image": torch.randn(count, 3, 16, 16, generator=generator)}]


class Separable(nn.Module):
    """Convolution, depthwise, convolution, with norms and ReLU6 as in mobile nets; one channel is much larger."""

    def __init__(self, act: type[nn.Module] = nn.ReLU6) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.bn1, self.act1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), act()
        self.conv2, self.bn2, self.act2 = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8), act()
        self.conv3, self.head = nn.Conv2d(8, 8, 1), nn.Linear(8, 5)
        with torch.no_grad():
            self.conv2.weight[::2] *= 20
            self.bn2.running_var.fill_(2.0)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act1(self.bn1(self.conv1(x)))
        x = self.act2(self.bn2(self.conv2(x)))
        return self.head(self.conv3(x).mean((2, 3)))


def spread(layer: nn.Conv2d) -> float:
    """The largest range of a channel over the median one."""
    ranges = layer.weight.detach().abs().flatten(1).amax(1)
    return float(ranges.max() / ranges.median())


@torch.no_grad()
@pytest.mark.parametrize("act", [nn.ReLU, nn.ReLU6, nn.Identity])
def test_the_answer_stays_and_the_ranges_agree(act: type[nn.Module]) -> None:
    model = Separable(act).eval()
    new = equalize(model, pictures(), Task())
    x = pictures()[0]["image"]
    torch.testing.assert_close(new(x), model(x), atol=1e-5, rtol=1e-4)
    first, second = (layer.weight.abs().flatten(1).amax(1) for layer in (new.conv1, new.conv2))
    torch.testing.assert_close(first, second, rtol=2e-2, atol=0)
    torch.testing.assert_close(second, new.conv3.weight.abs().amax((0, 2, 3)), rtol=2e-2, atol=0)
    assert isinstance(new.act1, ChannelClip) == (act is nn.ReLU6)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in new.modules())


@torch.no_grad()
def test_one_step_for_a_layer_gets_much_better() -> None:
    model = folded(Separable().eval(), pictures(), Task())
    new = equalize(model, pictures(), Task())
    assert spread(new.conv2) < 0.5 * spread(model.conv2)
    x, found = pictures()[0]["image"], []
    for one in (model, new):
        wanted = one(x)
        for layer in (one.conv1, one.conv2, one.conv3):
            step = layer.weight.abs().max() / 127
            layer.weight.copy_((layer.weight / step).round() * step)
        found.append(snr_db(wanted.numpy(), one(x).numpy()))
    assert found[1] > found[0] + 3


def test_replay_and_leaving_relu6_alone() -> None:
    model = Separable().eval()
    new = equalize(model, pictures(), Task())
    fresh = apply(Separable(), edits_of(new))
    fresh.load_state_dict(new.state_dict())
    x = pictures()[0]["image"]
    assert torch.equal(fresh.eval()(x), new(x))
    with pytest.raises(LookupError, match="no two convolutions"):
        equalize(model, pictures(), Task(), relu6="leave")
    with pytest.raises(OptionError, match="relu6"):
        equalize(model, pictures(), Task(), relu6="drop")  # type: ignore[arg-type]


def test_a_relu6_that_is_shared_is_left_alone() -> None:
    model = Separable().eval()
    model.act2 = model.act1
    with pytest.raises(LookupError, match="no two convolutions"):
        equalize(model, pictures(), Task())


@torch.no_grad()
@pytest.mark.parametrize("name", ["ours", "timm", "transformers"])
def test_smoothing_leaves_the_answer_and_helps_8_bits(name: str) -> None:
    family = FAMILIES[name]
    model, batches = family.make(), list(Images().epoch(0))
    norms = [module for module in model.modules() if isinstance(module, nn.LayerNorm)]
    for norm in norms[:-1]:
        norm.weight[3] *= 60  # one channel of each is much larger, as in trained transformers
    new = smooth.smooth(model, batches, family.task)
    torch.testing.assert_close(family.logits(new), family.logits(model), atol=2e-4, rtol=1e-3)
    db = [
        snr_db(family.logits(model).numpy(), family.logits(quantize.quantize(one, batches, family.task)).numpy())
        for one in (model, new)
    ]
    assert db[1] > db[0] + 1, db
    assert edits_of(new) == ()


def test_smoothing_needs_a_norm_and_a_share() -> None:
    with pytest.raises(OptionError, match=r"alpha: 1\.5 is not in 0\.\.1"):
        smooth.smooth(Separable(), pictures(), Task(), alpha=1.5)
    with pytest.raises(LookupError, match="no layer norm that only linear layers read"):
        smooth.smooth(Separable(), pictures(), Task())
    with pytest.raises(OptionError, match="too few"):
        smooth.smooth(FAMILIES["ours"].make(), [{"image": IMAGES}], Task())
