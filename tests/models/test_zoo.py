# SPDX-License-Identifier: Apache-2.0
"""Names to models: the table, its limits, and what a file may ask for."""

from __future__ import annotations

import copy
import json

import pytest
import torch

import featherweight
from featherweight import counting
from featherweight.errors import OptionError
from featherweight.methods.token_scores import one_sparse
from featherweight.models import zoo

TINY = {"image_size": (16, 16), "patch_size": 8, "num_classes": 3, "embed_dim": 16, "depth": 2, "num_heads": 2}


@pytest.mark.parametrize("name", list(zoo.ZOO))
def test_every_line_of_the_table_can_be_built_and_says_what_it_is(name: str) -> None:
    line = zoo.entry(name)
    with torch.device("meta"):
        model = zoo.create(name)
    base = json.loads(json.dumps(zoo.base_of(model)))
    with torch.device("meta"):
        again = zoo.build(base)
    assert [(k, t.shape) for k, t in again.state_dict().items()] == [
        (k, t.shape) for k, t in model.state_dict().items()
    ]
    assert zoo.base_of(again) == base
    assert line.says
    reported = line.reported_ap if line.task == "object-detection" else line.reported_top1
    assert (reported is None) == (line.source == "")
    if not line.family.startswith("timm:"):
        assert tuple(model.config.image_size) == tuple(line.preprocess.size)


COUNTED = ("deit_tiny_patch16_224", "dynamicvit_deit_256", "vit_digits")


@pytest.mark.parametrize("name", [n if n in COUNTED else pytest.param(n, marks=pytest.mark.slow) for n in zoo.ZOO])
def test_the_counts_in_the_table_are_counted(name: str) -> None:
    with torch.device("meta"):
        model = featherweight.create(name)
        picture = torch.zeros(1, 3, *zoo.entry(name).preprocess.size)
    found = {"params": counting.parameters(model), "macs": counting.macs(model, picture)}
    assert zoo.counts()[name] == found


def test_every_line_of_the_table_has_counts() -> None:
    assert list(zoo.counts()) == list(zoo.ZOO)


def test_a_dynamicvit_drops_tokens_at_the_rate_of_the_table_or_another() -> None:
    with torch.device("meta"):
        assert zoo.find("dynamicvit_deit_256").places == (3, 6, 9)  # type: ignore[union-attr]
        shares = [one_sparse(featherweight.create("dynamicvit_deit_256", **k)).keep for k in ({}, {"keep": 0.5})]
    assert shares[0] == ((3, 0.7), (6, 0.7**2), (9, 0.7**3)) and shares[1] == ((3, 0.5), (6, 0.25), (9, 0.125))
    with pytest.raises(OptionError, match=r"keep: is for a DynamicViT, .*; deit_tiny keeps all tokens"):
        featherweight.create("deit_tiny", keep=0.5)


def test_an_alias_is_the_same_model() -> None:
    assert zoo.entry("deit_tiny") is zoo.entry("deit_tiny_patch16_224")
    assert "deit_tiny" in zoo.known()


def test_options_override_the_table() -> None:
    model = zoo.create("vit_digits", num_classes=3, depth=1)
    assert model.head.out_features == 3
    assert len(model.blocks) == 1
    assert zoo.base_of(model)["config"]["num_classes"] == 3
    assert zoo.create("resnet_digits", image_size=40).config.image_size == (40, 40)


def test_a_copy_is_still_what_it_was_built_as() -> None:
    model = zoo.build({"name": "vit", "config": TINY})
    assert zoo.base_of(copy.deepcopy(model)) == zoo.base_of(model)
    assert zoo.base_of(torch.nn.Linear(1, 1)) is None


@pytest.mark.parametrize(
    ("name", "config", "says"),
    [
        ("vit_digit", {}, "did you mean 'vit_digits'"),
        ("os.system", {}, "no 'os.system'"),
        ("vit_digits", {"num_class": 3}, "did you mean 'num_classes'"),
        ("vit_digits", {"depth": 0}, "0 is not in 1..1000"),
        ("vit_digits", {"depth": 10**9}, "is not in 1..1000"),
        ("vit_digits", {"depth": True}, "whole numbers"),
        ("vit_digits", {"embed_dim": "96"}, "whole numbers"),
        ("vit_digits", {"embed_dim": 10**6}, "is not in 1..65536"),
        ("vit_digits", {"qkv_bias": 1}, "must be of type bool"),
        ("vit_digits", {"mlp_ratio": float("nan")}, "is not in"),
        ("vit_digits", {"image_size": [48, 48, 48]}, "image_size"),
        ("resnet_digits", {"widths": 24}, "must look like"),
        ("resnet_digits", {"image_size": [48]}, "is not a height and a width"),
        ("timm:../evil", {}, "is not a name of timm's"),
        ("timm:vit_tiny_patch16_224", {"pretrained": True}, "no such field"),
    ],
)
def test_mistakes_are_named(name: str, config: dict[str, object], says: str) -> None:
    with pytest.raises(OptionError) as error:
        zoo.create(name, **config)
    assert says in str(error.value)


def test_an_unknown_family_in_a_file_is_refused() -> None:
    with pytest.raises(OptionError, match="did you mean 'vit'"):
        zoo.build({"name": "vitt", "config": {}})


def test_timm_models_by_name() -> None:
    pytest.importorskip("timm")
    model = zoo.create("timm:vit_tiny_patch16_224", img_size=32, depth=1, num_classes=3)
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 3)
    assert zoo.base_of(model) == {
        "name": "timm:vit_tiny_patch16_224",
        "config": {"img_size": 32, "depth": 1, "num_classes": 3},
    }
    with pytest.raises(OptionError, match="did you mean 'vit_tiny_patch16_224'"):
        zoo.create("timm:vit_tiny_patch16_225")


def test_weights_that_do_not_come_with_the_package_are_not_promised() -> None:
    with pytest.raises(OptionError, match="none come with the package for 'deit_tiny'"):
        zoo.shipped_weights("deit_tiny")


def test_resnet18_is_torchvisions() -> None:
    models = pytest.importorskip("torchvision.models")
    theirs, ours = models.resnet18().eval(), zoo.create("resnet18").eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", sorted(zoo.FAMILIES))
def test_a_family_is_a_name_too(family: str) -> None:
    zoo.check(family)
    zoo.check(family, num_classes=3)
    with pytest.raises(OptionError, match=f"{family}.classes: no such field"):
        zoo.check(family, classes=3)
    assert zoo.preprocess_of(family, config={"image_size": [64, 64]}).size == (64, 64)
    side = 640 if family == "yolov7" else 224
    assert zoo.preprocess_of(family).size == (side, side)
