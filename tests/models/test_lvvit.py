# SPDX-License-Identifier: Apache-2.0
"""LV-ViT: the authors' numbers on stand-in weights, mix-token, and configurations that cannot be."""

from __future__ import annotations

import copy
from dataclasses import asdict

import fill
import pytest
import torch
from golden_files import agrees, filled, golden
from torch import nn

from featherweight.errors import OptionError
from featherweight.layers import AuxLogits, draw_box, swap_box
from featherweight.models import zoo
from featherweight.models.lvvit import LVViT, LVViTConfig

ATOL = 2e-5
QUICK = ["lvvit_t", "lvvit_s"]
LARGE = [pytest.param(name, marks=pytest.mark.slow) for name in ("lvvit_s_384", "lvvit_l")]
PARTS = {"patch_embed": "patch_embed", "tokens_after_norm": "norm", "head_cls": "head", "head_aux": "aux_head"}


def made(name: str, scaled: tuple[str, ...] = ()) -> nn.Module:
    return filled(zoo.build({"name": "lvvit", "config": golden(name)["config"]}), scaled=scaled)


def pictures(name: str) -> torch.Tensor:
    return fill.image(golden(name)["input"]["image_name"], golden(name)["input"]["shape"])


@pytest.mark.parametrize("name", [*QUICK, *LARGE])
@torch.no_grad()
def test_outputs_are_those_of_the_official_code(name: str) -> None:
    reference, model = golden(name), made(name)
    found = [[key, list(t.shape), str(t.dtype).removeprefix("torch.")] for key, t in model.state_dict().items()]
    assert found == reference["state_dict"]
    assert sum(p.numel() for p in model.parameters()) == reference["params"]
    seen: dict[str, torch.Tensor] = {}
    for part, path in PARTS.items():
        model.get_submodule(path).register_forward_hook(lambda _m, _a, out, part=part: seen.update({part: out}))
    seen["logits"] = model(pictures(name))
    for part, wanted in reference["outputs"].items():
        agrees(seen[part], wanted, atol=ATOL)


@pytest.mark.parametrize("name", ["lvvit_t", *LARGE])
@torch.no_grad()
def test_the_norms_have_the_right_epsilon(name: str) -> None:
    probe = golden(name)["eps_probe"]
    agrees(made(name, probe["scaled_by_1e-3"])(pictures(name)), probe["logits"], atol=ATOL)


@pytest.mark.parametrize("mode", ["bn_batch", "bn_frozen"])
@pytest.mark.parametrize("name", ["lvvit_t", *LARGE[1:]])
@torch.no_grad()
def test_mix_token_is_the_official_one(name: str, mode: str) -> None:
    wanted, model = golden(name)["train_mix_token"], made(name).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train(mode == "bn_batch")
    logits = model(pictures(name), box=wanted["bbox_h0_w0_h1_w1"])
    agrees(logits, wanted[mode]["head_cls"], atol=ATOL)
    agrees(model.aside.aux_logits, wanted[mode]["head_aux"], atol=ATOL)
    assert model.aside.box.tolist() == wanted["bbox_h0_w0_h1_w1"]


def small(**config: object) -> LVViT:
    options = {
        "image_size": (16, 24), "patch_size": 4, "num_classes": 3, "embed_dim": 16, "depth": 2, "num_heads": 2,
        "stem_width": 8,
    }  # fmt: skip
    return LVViT(LVViTConfig(**{**options, **config}))  # type: ignore[arg-type]


def test_stochastic_depth_and_the_first_weights() -> None:
    torch.manual_seed(0)
    model = small(depth=3, drop_path_rate=0.5, embed_dim=64)
    assert [block.drop_path.rate for block in model.blocks] == [0.0, 0.25, 0.5]
    weights = torch.cat([m.weight.flatten() for m in model.modules() if isinstance(m, nn.Linear)])
    assert abs(float(weights.detach().std()) - 0.02) < 0.001
    assert 0.01 < float(model.pos_embed.detach().std()) < 0.03
    assert float(model.patch_embed.conv2.weight.detach().abs().max()) > 0.1  # PyTorch's own, not 0.02


@torch.no_grad()
def test_a_head_that_nothing_teaches_may_begin_silent() -> None:
    model = small(init="xavier").eval()
    assert float(model.head.weight.std()) > 0.1
    x = fill.normal("pictures", (2, 3, 16, 24))
    seen = []
    model.head.register_forward_hook(lambda _m, _a, output: seen.append(output))
    assert torch.equal(model(x), seen[0])
    assert float(small().aux_head.weight.std()) > 0.01


@torch.no_grad()
def test_a_fixed_position_and_pictures_that_are_not_square() -> None:
    x = fill.normal("pictures", (2, 3, 16, 24))
    model = small(position="sinusoidal").eval()
    assert "pos_embed" not in model.state_dict()
    assert model(x).shape == small().eval()(x).shape == small(position="none").eval()(x).shape == (2, 3)
    assert "pos_embed" not in small(position="none").state_dict()
    with pytest.raises(ValueError, match=r"image of \(24, 16\) given to a model for \(16, 24\)"):
        model(x.transpose(2, 3))
    assert LVViTConfig(image_size=32).grid == (2, 2)  # type: ignore[arg-type]
    assert zoo.build({"name": "lvvit", "config": {**asdict(model.config), "image_size": 16}}).config.grid == (4, 4)


@torch.no_grad()
def test_training_answers_with_the_class_token_and_puts_the_rest_aside() -> None:
    x, model = fill.normal("pictures", (4, 3, 16, 24)), filled(small())
    answer = model(x)
    for module in model.modules():
        module.training = not isinstance(module, nn.BatchNorm2d)
    logits = model(x)
    heads = next(m for m in model.modules() if isinstance(m, AuxLogits))
    assert heads.aside.aux_logits.shape == (4, 24, 3)
    assert heads.aside.box is None
    torch.testing.assert_close(heads.answer(logits), answer)
    torch.testing.assert_close(answer, logits + 0.5 * model.aside.aux_logits.max(1).values)
    assert not torch.equal(logits, answer)
    assert "aux_logits" not in copy.deepcopy(model).aside


def test_every_parameter_is_part_of_a_plain_step() -> None:
    model = small().train()
    model(fill.normal("pictures", (4, 3, 16, 24))).sum().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert all(gradient is not None for gradient in gradients.values())
    assert not gradients["aux_head.weight"].any()  # type: ignore[union-attr]


@torch.no_grad()
def test_mix_token_puts_each_answer_where_its_picture_is() -> None:
    """With no blocks a token knows only its own patch, so mixing in and out is the identity."""
    x, model = fill.normal("pictures", (3, 3, 16, 24)), filled(small(depth=0, mix_token=True))
    model.norm, model.head = nn.Identity(), nn.Linear(16, 3)
    plain = model.train()(x, box=(0, 0, 0, 0)), model.aside.aux_logits
    torch.manual_seed(1)
    mixed = model(x), model.aside.aux_logits
    assert model.aside.box.tolist() != [0, 0, 0, 0]
    torch.testing.assert_close(mixed, plain)


def test_boxes_are_of_any_size_and_place_within_the_grid() -> None:
    torch.manual_seed(0)
    boxes = torch.stack([draw_box((14, 10)) for _ in range(400)])
    assert int(boxes.min()) == 0
    assert (boxes[:, 2:].amax(0) == torch.tensor([14, 10])).all()
    assert (boxes[:, :2] <= boxes[:, 2:]).all()
    shares = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) / 140
    assert float(shares.min()) == 0
    assert float(shares.max()) > 0.6
    tokens = fill.normal("tokens", (2, 140, 3))
    assert torch.equal(swap_box(tokens, torch.tensor([0, 0, 14, 10]), (14, 10)), tokens.flip(0))
    one = swap_box(tokens, torch.tensor([1, 2, 2, 3]), (14, 10))
    assert torch.equal(one[:, 12], tokens.flip(0)[:, 12])
    assert int((one != tokens).any(-1).sum()) == 2


def test_mix_token_and_dropped_tokens_do_not_go_together() -> None:
    model = small(mix_token=True).train()
    model.blocks[0].forward = lambda x: x[:, :9]  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="mix-token needs all tokens in training; 8 are left"):
        model(torch.zeros(2, 3, 16, 24))
    model.aux_logits.mix_token = False
    assert model(torch.zeros(2, 3, 16, 24)).shape == (2, 3)
    assert model.aside.aux_logits.shape == (2, 8, 3)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"patch_size": 5}, "patch_size: 5 is not an even number"),
        ({"image_size": (16, 18)}, "image_size: (16, 18) is not a pair of multiples of patch_size 4"),
        ({"num_heads": 3}, "num_heads: 3 does not divide embed_dim 16"),
        ({"skip_lam": 0.0}, "skip_lam: 0.0 is not above 0"),
        ({"stem_width": 0}, "stem_width: 0 is not above 0"),
        ({"position": "learnt"}, "position: 'learnt' is not one of learned, sinusoidal"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(config: dict[str, object], says: str) -> None:
    with pytest.raises(OptionError) as error:
        small(**config)
    assert says in str(error.value)
