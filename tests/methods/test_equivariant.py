# SPDX-License-Identifier: Apache-2.0
"""Nets that turn with their pictures: layer by layer, whole, trained, saved, exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fill
import pytest
import torch
from families import PLAIN, Images
from torch import Tensor, nn

from featherweight import artifact, counting
from featherweight.errors import OptionError
from featherweight.layers import expanded
from featherweight.methods import equivariant
from featherweight.methods.equivariant import invariance_error
from featherweight.methods.group_layers import (
    ORDER,
    GroupConv2d,
    GroupNorm2d,
    SymmetricMean,
    acted,
    inverse,
    product,
    turned,
)
from featherweight.models import zoo
from featherweight.surgery import Edit, apply, edits_of
from featherweight.train import fit

GROUPS = list(ORDER)
SMALL: dict[str, Any] = {"widths": [8, 16], "depths": [1, 1], "stem": "small", "num_classes": 3}


def fields(channels: int = 16, size: int = 9) -> Tensor:
    return fill.normal("fields", (2, channels, size, size)).double()


def resnet(**changes: Any) -> nn.Module:
    model = zoo.create("resnet18", **{**SMALL, **changes})
    model.load_state_dict({k: fill.tensor(k, t.shape, t.dtype) for k, t in model.state_dict().items()})
    return model.eval()


@pytest.mark.parametrize("group", GROUPS)
def test_the_elements_are_a_group_and_act_as_one(group: Any) -> None:
    x = fill.normal("x", (2, 16, 5, 5))
    for one in range(ORDER[group]):
        assert product(one, inverse(one)) == product(inverse(one), one) == 0
        for other in range(ORDER[group]):
            both = product(one, other)
            assert torch.equal(turned(turned(x, other), one), turned(x, both))
            assert torch.equal(acted(acted(x, other, group), one, group), acted(x, both, group))


CASES: dict[str, dict[str, Any]] = {
    "plain": {"padding": 1},
    "no bias": {"bias": False},
    "strided, odd": {"stride": 2, "padding": 1},
    "dilated": {"dilation": 2, "padding": 2},
    "groups": {"groups": 2, "padding": 1},
    "depthwise": {"groups": 16, "padding": 1},
}


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("case", list(CASES))
def test_a_convolution_turns_with_its_input(case: str, group: Any) -> None:
    outputs = 16 if case == "depthwise" else 32
    torch.manual_seed(0)
    conv = GroupConv2d(16, outputs, 3, group=group, **CASES[case]).double()
    if conv.bias is not None:
        nn.init.normal_(conv.bias)
    for element in range(ORDER[group]):
        found, wanted = conv(acted(fields(), element, group)), acted(conv(fields()), element, group)
        torch.testing.assert_close(found, wanted, atol=1e-12, rtol=0)
    torch.testing.assert_close(expanded(conv)(fields()), conv(fields()), atol=1e-12, rtol=0)
    assert conv.base.numel() * ORDER[group] == expanded(conv).weight.numel()


@pytest.mark.parametrize("group", GROUPS)
def test_a_lifting_convolution_turns_the_picture(group: Any) -> None:
    conv = GroupConv2d(3, 16, 3, group=group, lift=True, padding=1).double()
    picture = fill.normal("picture", (2, 3, 8, 8)).double()
    for element in range(ORDER[group]):
        torch.testing.assert_close(conv(turned(picture, element)), acted(conv(picture), element, group))


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("training", [False, True])
def test_a_norm_turns_with_its_input(group: Any, training: bool) -> None:
    norm = GroupNorm2d(nn.BatchNorm2d(16), group).double().train(training)
    norm.norm.load_state_dict({k: fill.tensor(k, t.shape, t.dtype) for k, t in norm.norm.state_dict().items()})
    if not training:
        torch.testing.assert_close(expanded(norm)(fields()), norm(fields()))
    for element in range(ORDER[group]):
        torch.testing.assert_close(norm(acted(fields(), element, group)), acted(norm(fields()), element, group))


def test_the_projection_is_the_nearest_and_keeps_its_own() -> None:
    conv = GroupConv2d(16, 32, 3, group="p4m").double()
    other = GroupConv2d(16, 32, 3, group="p4m").double()
    other.project(conv.weight.detach(), None)
    torch.testing.assert_close(other.base, conv.base)
    weight = fill.normal("weight", conv.weight.shape).double()
    other.project(weight, None)
    error = (other.weight - weight).square().sum()
    (gradient,) = torch.autograd.grad(error, other.base)
    assert float(gradient.abs().max()) < 1e-10


def test_fresh_filters_are_as_large_as_the_nets_own_and_equivariant_ones_stay() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(32, 64, 3)
    spread = [
        float(apply(conv, [Edit("", "group_conv", {"group": "p4m", "fresh": fresh})]).base.std().detach())  # type: ignore[union-attr, operator]
        for fresh in (False, True)
    ]
    assert spread[1] == pytest.approx(float(conv.weight.std().detach()), rel=0.05)
    assert spread[0] == pytest.approx(spread[1] / 8**0.5, rel=0.1)
    symmetric = GroupConv2d(16, 32, 3, group="p4m")
    other = GroupConv2d(16, 32, 3, group="p4m")
    other.project(symmetric.weight.detach(), None, fresh=True)
    torch.testing.assert_close(other.base, symmetric.base)


@pytest.mark.parametrize("size", [8, 9])
def test_symmetric_means(size: int) -> None:
    pool = SymmetricMean(2)
    x = fill.normal("x", (1, 2, size, size))
    assert pool(x).shape[-1] == (size + 1) // 2
    for element in range(8):
        torch.testing.assert_close(pool(turned(x, element)), turned(pool(x), element))


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("pool", ["mean", "max"])
@pytest.mark.parametrize("changes", [{}, {"stem": "imagenet"}], ids=str)
def test_a_residual_net_answers_the_same_to_turned_pictures(group: Any, pool: Any, changes: dict[str, Any]) -> None:
    model = resnet(**changes)
    picture = fill.normal("picture", (4, 3, 32, 32))
    assert invariance_error(model, picture, group) > 0.1  # what is measured can be large
    new = equivariant.equivariant(model, group=group, pool=pool, symmetric=True)
    assert invariance_error(new, picture, group) < 1e-5
    nearly = equivariant.equivariant(model, group=group, pool=pool)
    assert invariance_error(nearly, picture, group) > 1e-4
    assert new(picture).std() > 0.01
    odd = fill.normal("odd", (4, 3, 33, 33))
    assert invariance_error(nearly, odd, group) < 1e-5  # strides fit odd sizes


def test_without_pooling_the_classifier_reads_every_channel_and_the_layers_turn_all_the_same() -> None:
    model, picture = resnet(), fill.normal("picture", (4, 3, 32, 32))
    new = equivariant.equivariant(model, pool="none", symmetric=True)
    assert torch.equal(new.fc.weight, model.fc.weight)
    assert invariance_error(new, picture) > 0.1
    new.fc = nn.Identity()
    upright, on_its_side = (new(x).unflatten(1, (-1, 4)) for x in (picture, turned(picture, 1)))
    assert not torch.allclose(on_its_side, upright, atol=1e-3)  # within its field each has moved
    torch.testing.assert_close(on_its_side.sort(2).values, upright.sort(2).values, atol=1e-5, rtol=0)
    with pytest.raises(OptionError, match="'median' is not one of mean, max, none"):
        equivariant.plan(model, pool="median")


def test_weights_are_a_quarter_and_multiply_adds_as_many() -> None:
    model, x = resnet(), torch.zeros(1, 3, 16, 16)
    new = equivariant.equivariant(model)
    assert counting.macs(new, x) <= counting.macs(model, x)
    assert 0.24 < counting.parameters(new) / counting.parameters(model) < 0.3


def test_training_keeps_the_property_and_files_hold_base_filters(tmp_path: Path) -> None:
    model = equivariant.equivariant(resnet(num_classes=5), symmetric=True)
    new = fit(model, Images(), PLAIN.task, epochs=2)
    picture = fill.normal("picture", (4, 3, 16, 16))
    assert not torch.allclose(new(picture), model(picture))
    assert invariance_error(new, picture) < 1e-5
    folder = artifact.save(new, tmp_path)
    loaded = artifact.load(folder)
    assert torch.equal(loaded(picture), new(picture))
    plain = artifact.save(resnet(num_classes=5), tmp_path / "plain")
    sizes = [(f / "model.safetensors").stat().st_size for f in (folder, plain)]
    assert sizes[0] < 0.5 * sizes[1]


def test_other_peoples_nets_and_norms_with_activations() -> None:
    models = pytest.importorskip("timm.models")
    for name, options in {"resnet10t": {}, "mobilenetv3_small_050": {}}.items():
        torch.manual_seed(0)
        model = models.create_model(name, num_classes=4, **options).eval()
        new = equivariant.equivariant(model, symmetric=True)
        assert invariance_error(new, fill.normal("picture", (2, 3, 64, 64))) < 1e-4, name


def test_a_net_that_ends_in_a_1_x_1_convolution() -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 5, 1)]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    new = equivariant.equivariant(model)
    assert invariance_error(new, fill.normal("picture", (2, 3, 12, 12))) < 1e-5
    assert [e.kind for e in edits_of(new)] == ["group_conv", "group_norm", "group_conv", "invariant_layer"]


def head(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (head(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 8, 3)), "0: 6 outputs are not whole fields of 4"),
        (head(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=4)), "1: 8 outputs are not whole fields of 4 in each of 4"),
        (head(nn.Conv2d(3, 8, (3, 1))), "0: a kernel of 3 x 1"),
        (head(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8)), "1: a GroupNorm has no form for fields"),
        (nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(32, 2)), "reads 32 numbers, not the 8 channels"),
        (nn.Sequential(nn.Conv2d(3, 8, 3)), "0 ends the net with places"),
    ],
)
def test_a_layer_without_such_a_form_is_named(model: nn.Module, says: str) -> None:
    with pytest.raises(OptionError, match=says):
        equivariant.plan(model)


def test_neutral_and_unknown() -> None:
    assert equivariant.plan(resnet(), group="none") == []
    with pytest.raises(OptionError, match="'p6' is not one of p4, p4m"):
        equivariant.plan(resnet(), group="p6")  # type: ignore[arg-type]
    with pytest.raises(LookupError, match="no convolution to turn"):
        equivariant.plan(nn.Linear(2, 2))
