# SPDX-License-Identifier: Apache-2.0
"""The vision transformer against numbers of DeiT's own code, and what its configuration promises."""

from __future__ import annotations

import copy
import math

import fill
import pytest
import torch
from golden_files import agrees, filled, golden

from featherweight.errors import OptionError
from featherweight.models import zoo
from featherweight.models.vit import VisionTransformer, ViTConfig, sinusoidal

TINY = ("deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224")
SMALL = ("deit_small_patch16_224", "deit_small_distilled_patch16_224")
LARGE = ("deit_base_patch16_224", "deit_base_distilled_patch16_224", "deit_base_patch16_384")
FAMILY = [*TINY, *(pytest.param(name, marks=pytest.mark.slow) for name in (*SMALL, *LARGE))]
ATOL = 2e-5  # right and wrong differ by 1e-4 and more, two right ones by 3e-6


@pytest.mark.parametrize("name", [*TINY, *SMALL, *LARGE])
def test_keys_and_number_of_parameters(name: str) -> None:
    reference = golden(name)
    with torch.device("meta"):
        model = zoo.create(name)
    found = [[key, list(t.shape), str(t.dtype).removeprefix("torch.")] for key, t in model.state_dict().items()]
    assert sorted(found) == sorted(reference["state_dict"])
    assert sum(p.numel() for p in model.parameters()) == reference["params"]


@pytest.mark.parametrize("name", FAMILY)
@torch.no_grad()
def test_outputs(name: str) -> None:
    reference, model = golden(name), filled(zoo.create(name))
    image = fill.image(reference["input"]["image_name"], reference["input"]["shape"])
    seen: dict[str, torch.Tensor] = {}
    for part in ("patch_embed", "blocks.0", "norm", *(["head", "head_dist"] if "distilled" in name else [])):
        model.get_submodule(part).register_forward_hook(lambda _m, _a, output, part=part: seen.update({part: output}))
    wanted = reference["outputs"]
    agrees(model(image), wanted["logits"], atol=ATOL)
    agrees(seen["patch_embed"], wanted["patch_embed"], atol=ATOL)
    agrees(seen["blocks.0"], wanted["after_block0"], atol=ATOL)
    agrees(seen["norm"][:, 0], wanted["features_cls"], atol=ATOL)
    if "distilled" in name:
        agrees(seen["norm"][:, 1], wanted["features_dist"], atol=ATOL)
        agrees(seen["head"], wanted["head_cls"], atol=ATOL)
        agrees(seen["head_dist"], wanted["head_dist"], atol=ATOL)
        agrees(model.train()(image), wanted["head_cls"], atol=ATOL)  # training answers with the class token's head
        agrees(model.two_heads.aside.dist_logits, wanted["head_dist"], atol=ATOL)


@pytest.mark.parametrize("name", FAMILY)
@torch.no_grad()
def test_the_norms_have_the_right_epsilon(name: str) -> None:
    reference = golden(name)
    probe = reference["eps_probe"]
    model = filled(zoo.create(name), scaled=probe["scaled_by_1e-3"])
    agrees(model(fill.image(reference["input"]["image_name"], reference["input"]["shape"])), probe["logits"], atol=ATOL)


@torch.no_grad()
def test_a_wrong_epsilon_would_be_seen() -> None:
    reference = golden(TINY[0])
    model = filled(zoo.create(TINY[0], norm_eps=1e-5), scaled=reference["eps_probe"]["scaled_by_1e-3"])
    with pytest.raises(AssertionError):
        agrees(model(fill.image(TINY[0], reference["input"]["shape"])), reference["eps_probe"]["logits"], atol=ATOL)


def small(**config: object) -> VisionTransformer:
    options = {"image_size": (16, 24), "patch_size": 8, "num_classes": 3, "embed_dim": 16, "depth": 2, "num_heads": 2}
    return VisionTransformer(ViTConfig(**{**options, **config}))  # type: ignore[arg-type]


@torch.no_grad()
def test_it_begins_as_deit_does() -> None:
    torch.manual_seed(0)
    model = small(embed_dim=64, num_heads=4, depth=3)
    assert all(not m.bias.any() for m in model.modules() if isinstance(m, torch.nn.Linear))
    weights = torch.cat([m.weight.flatten() for m in model.modules() if isinstance(m, torch.nn.Linear)])
    assert abs(float(weights.std()) - 0.02) < 0.001
    assert 0.01 < float(model.pos_embed.std()) < 0.03
    assert float(model.patch_embed.proj.weight.abs().max()) <= 1 / math.sqrt(3 * 64) + 1e-6  # PyTorch's own


def test_stochastic_depth_rises_to_the_last_block_and_ends_in_evaluation() -> None:
    model = small(depth=3, drop_path_rate=0.5)
    assert [block.drop_path.rate for block in model.blocks] == [0.0, 0.25, 0.5]
    x = torch.randn(64, 3, 16, 24)
    assert not torch.equal(model.train()(x), model(x))
    assert torch.equal(model.eval()(x), model(x))


def test_images_need_not_be_square_but_of_the_right_size() -> None:
    assert small()(torch.zeros(2, 3, 16, 24)).shape == (2, 3)
    with pytest.raises(ValueError, match=r"image of \(24, 16\) given to a model for \(16, 24\)"):
        small()(torch.zeros(2, 3, 24, 16))


@pytest.mark.parametrize("stem", ["patch", "conv"])
def test_both_stems_make_one_token_for_each_patch(stem: str) -> None:
    model = small(stem=stem)
    assert model.patch_embed(torch.zeros(1, 3, 16, 24)).shape == (1, 6, 16)


def test_sinusoidal_positions_are_fixed_and_tell_rows_from_columns() -> None:
    model = small(position="sinusoidal")
    assert "pos_embed" not in model.state_dict()
    table = sinusoidal((2, 3), 16, 1)[0]
    assert not table[0].any()  # the class token has none
    assert len({tuple(row) for row in table.tolist()}) == 7
    rows, columns = table[1:].reshape(2, 3, 16).split(8, dim=-1)
    assert torch.equal(rows[:, 0], rows[:, 2])
    assert torch.equal(columns[0], columns[1])
    with pytest.raises(OptionError, match="not a multiple of 4"):
        sinusoidal((2, 2), 6, 1)


@torch.no_grad()
def test_without_positions_the_order_of_the_patches_makes_no_difference() -> None:
    def flipped(position: str) -> float:
        torch.manual_seed(0)
        model = small(position=position, init="xavier").eval()
        image = torch.randn(1, 3, 16, 24)
        rows = image.unflatten(2, (2, 8)).flip(2).flatten(2, 3)  # both rows of patches change places
        return float((model(image) - model(rows)).abs().max())

    assert flipped("none") < 1e-6 < 1e-3 < flipped("sinusoidal")
    assert "pos_embed" not in small(position="none").state_dict()


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"image_size": (16, 20)}, "multiples of patch_size 8"),
        ({"image_size": (0, 8)}, "multiples of patch_size 8"),
        ({"num_heads": 3}, "num_heads: 3 does not divide embed_dim 16"),
        ({"position": "learnt"}, "position: 'learnt' is not one of learned, sinusoidal"),
        ({"stem": "cnn"}, "stem: 'cnn' is not one of patch, conv"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(config: dict[str, object], says: str) -> None:
    with pytest.raises(OptionError) as error:
        small(**config)
    assert says in str(error.value)


def test_a_distilled_model_in_training_copies() -> None:
    model = small(distilled=True).train()
    model(torch.randn(2, 3, 16, 24)).sum().backward()
    assert "dist_logits" in model.two_heads.aside
    assert "dist_logits" not in copy.deepcopy(model).two_heads.aside
