# SPDX-License-Identifier: Apache-2.0
"""Weights in the layouts of their authors: what is unwrapped, adapted with a note, and refused by name."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import fill
import pytest
import torch
from torch import nn

import featherweight
from featherweight import artifact, official
from featherweight.anatomy import Around
from featherweight.errors import InputError, OptionError
from featherweight.methods import dynamicvit
from featherweight.models import zoo
from featherweight.models.positions import resize
from featherweight.surgery import apply, edits_of

SMALL: dict[str, Any] = {
    "image_size": 32,
    "patch_size": 8,
    "embed_dim": 16,
    "depth": 4,
    "num_heads": 2,
    "num_classes": 5,
}


def small(**config: Any) -> nn.Module:
    return featherweight.create("vit", **{**SMALL, **config})


def weights(**config: Any) -> dict[str, torch.Tensor]:
    return fill.fill_(small(**config).state_dict())


def written(tmp_path: Path, tree: Any, name: str = "weights.pth") -> Path:
    torch.save(tree, tmp_path / name)
    return tmp_path / name


def same(model: nn.Module, state: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(model.state_dict()[key], tensor) for key, tensor in state.items())


def test_every_known_layout(tmp_path: Path) -> None:
    state = weights()
    beside = {"args": argparse.Namespace(lr=1e-3), "epoch": 3, "optimizer": {"state": {}}, "best_acc1": 71.5}
    prefixed = {f"module.{key}": tensor for key, tensor in state.items()}
    compiled = {f"_orig_mod.{key}": tensor for key, tensor in prefixed.items()}
    trees = [state, {"model": state}, {"model": state, **beside}, {"state_dict": prefixed, **beside}, compiled]
    for number, tree in enumerate(trees):
        told: list[str] = []
        path = written(tmp_path, tree, f"{number}.pth")
        assert same(featherweight.create("vit", weights=path, tell=told.append, **SMALL), state)
        assert told == []  # nothing was adapted


def test_the_moving_average_is_a_choice_and_is_told(tmp_path: Path) -> None:
    state = weights()
    average = {key: tensor + 1 for key, tensor in state.items()}
    for keys in (("model", "model_ema"), ("state_dict", "state_dict_ema")):
        path = written(tmp_path, dict(zip(keys, (state, average), strict=True)))
        told: list[str] = []
        assert same(official.create("vit", weights=path, tell=told.append, **SMALL), state)
        assert f"took '{keys[0]}'; it holds {keys[1]} too" in told[0]
        assert same(official.create("vit", weights=path, ema=True, tell=told.append, **SMALL), average)
    with pytest.raises(InputError, match="no moving average"):
        official.load(small(), written(tmp_path, state), ema=True)
    with pytest.raises(InputError, match="no moving average under model_ema"):
        official.load(small(), written(tmp_path, {"model": state}), ema=True)


def test_another_class_count_and_another_size_come_with_a_note(tmp_path: Path) -> None:
    state, told = weights(distilled=True), list[str]()
    path = written(tmp_path, {"model": state})
    model = official.create(
        "vit", weights=path, tell=told.append, **{**SMALL, "distilled": True, "num_classes": 3, "image_size": (16, 48)}
    )
    wanted = resize(state["pos_embed"], (2, 6), prefix=2)
    assert torch.equal(model.state_dict()["pos_embed"], wanted)
    assert model.state_dict()["head_dist.weight"].shape == (3, 16)
    rest = {key: t for key, t in state.items() if not key.startswith("head") and key != "pos_embed"}
    assert same(model, rest)
    assert len(told) == 2 and "pos_embed (1, 18, 16) resized to (1, 14, 16) (bicubic)" in told[0]
    assert "head, head_dist: 5 classes in the file, 3 here; starts untrained" in told[1]


def test_each_family_of_files_has_its_own_rule(tmp_path: Path) -> None:
    state, pos = weights(), weights()["pos_embed"]
    cases = {"flat": (state, "bicubic-antialias"), "wrapped": ({"model": state}, "bicubic")}
    for name, (tree, kernel) in cases.items():
        model = official.create("vit", weights=written(tmp_path, tree, name), **{**SMALL, "image_size": 64})
        assert torch.equal(model.state_dict()["pos_embed"], resize(pos, (8, 8), prefix=1, kernel=kernel))
    sparse = apply(small(), dynamicvit.plan(small(), keep=0.5))
    names = official.official_names.of(sparse)
    theirs = {"model": {key: sparse.state_dict()[ours] for key, ours in names.items()}}
    path = written(tmp_path, theirs)
    larger = apply(small(image_size=64), dynamicvit.plan(small(), keep=0.5))
    wanted = resize(theirs["model"]["pos_embed"], (8, 8), prefix=1, kernel="bilinear")
    assert torch.equal(official.load(larger, path).state_dict()["pos_embed"], wanted)
    by_hand = official.load(larger, path, resize="bicubic").state_dict()["pos_embed"]
    assert not torch.equal(by_hand, wanted)


def test_as_many_positions_on_another_grid_are_not_the_same(tmp_path: Path) -> None:
    state, told = weights(), list[str]()
    path = written(tmp_path, {"model": state})
    model = official.create("vit", weights=path, tell=told.append, **{**SMALL, "image_size": (16, 64)})
    assert "pos_embed (1, 17, 16) resized to (1, 17, 16)" in told[0]
    assert torch.equal(model.state_dict()["pos_embed"], resize(state["pos_embed"], (2, 8), prefix=1))


def test_a_sparse_model_takes_the_names_of_the_official_file(tmp_path: Path) -> None:
    model = apply(small(), dynamicvit.plan(small(), keep=0.5, at=[1, 2]))
    names = official.official_names.of(model)
    assert "blocks.3.attn.qkv.weight" in names and "score_predictor.1.in_conv.0.weight" in names
    assert sorted(names.values()) == sorted(model.state_dict())
    state = fill.fill_({key: model.state_dict()[ours] for key, ours in names.items()})
    path = written(tmp_path, {"model": state})
    loaded = official.load(model, path)
    assert all(torch.equal(loaded.state_dict()[names[key]], tensor) for key, tensor in state.items())
    assert edits_of(loaded) == edits_of(model) and not same(model, loaded.state_dict())  # a copy, like all of ours
    with pytest.raises(InputError, match="DynamicViT's: sparsify the model first"):
        official.load(small(), path)


def test_modules_around_modules_leave_no_trace_in_a_name() -> None:
    inner, outer = Around(), Around()
    inner.blocks, outer.blocks = nn.ModuleList([nn.Linear(2, 2)]), nn.ModuleList([inner])
    inner.extra, outer.token = nn.Linear(1, 1), nn.Parameter(torch.zeros(1))
    model = nn.Module()
    model.blocks = nn.ModuleList([outer])
    names = official.official_names.of(model)
    assert names["blocks.0.weight"] == "blocks.0.blocks.0.blocks.0.weight"
    assert names["extra.bias"] == "blocks.0.blocks.0.extra.bias" and names["token"] == "blocks.0.token"


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    state = weights()
    lacking = {key: tensor for key, tensor in state.items() if not key.startswith("blocks.2.")}
    with pytest.raises(InputError, match=r"missing_key: 12 tensors are missing: 'blocks\.2\.norm1\.weight'"):
        official.load(small(), written(tmp_path, lacking))
    told: list[str] = []
    kept = official.load(small(), written(tmp_path, lacking), strict=False, tell=told.append)
    assert same(kept, lacking) and "has no blocks.2.norm1.weight" in told[0]
    with pytest.raises(InputError, match="unexpected_key: 1 tensors the model does not have: 'neck'"):
        official.load(small(), written(tmp_path, {**state, "neck": torch.zeros(1)}))
    with pytest.raises(InputError, match="shape_mismatch"):
        official.load(small(embed_dim=32), written(tmp_path, state))
    with pytest.raises(InputError, match="non_finite"):
        official.load(small(), written(tmp_path, {**state, "norm.bias": torch.full((16,), float("nan"))}))
    with pytest.raises(InputError, match="no state dict under model or state_dict; it holds: epoch"):
        official.load(small(), written(tmp_path, {"epoch": 3}))
    with pytest.raises(OptionError, match="did you mean 'bicubic'"):
        official.load(small(), written(tmp_path, state), resize="bicubicc")


def test_a_file_of_another_model_is_recognized(tmp_path: Path) -> None:
    with torch.device("meta"):
        outline = zoo.create("deit_tiny_distilled_patch16_224")
    state = {key: torch.zeros(tensor.shape) for key, tensor in outline.state_dict().items()}
    path = written(tmp_path, {"model": state})
    with pytest.raises(InputError, match="it fits deit_tiny_distilled_patch16_224"):
        featherweight.create("deit_tiny_patch16_224", weights=path)
    with torch.device("meta"):
        sparse = featherweight.create("dynamicvit_deit_256")
    names = official.official_names.of(sparse)
    theirs = {key: torch.zeros(sparse.state_dict()[mine].shape) for key, mine in names.items()}
    with pytest.raises(InputError, match="it fits dynamicvit_deit_256"):
        featherweight.create("deit_small", weights=written(tmp_path, theirs))


@torch.no_grad()
def test_a_model_for_pictures_of_another_size() -> None:
    model = apply(small(), dynamicvit.plan(small(), keep=0.5))
    model.load_state_dict(fill.fill_(model.state_dict()))
    larger = official.resized(model, (48, 64))
    assert larger.config.image_size == (48, 64) and edits_of(larger) == edits_of(model)
    assert torch.equal(larger.pos_embed, resize(model.pos_embed, (6, 8), prefix=1))
    assert larger(torch.rand(2, 3, 48, 64)).shape == (2, 5)
    assert same(official.resized(model, 32), model.state_dict())  # its own size changes nothing
    with pytest.raises(OptionError, match="multiples of patch_size"):
        official.resized(model, 33)
    with pytest.raises(OptionError, match="not of the table"):
        official.resized(nn.Linear(2, 2), 32)


def test_a_loaded_model_is_saved_like_any_other(tmp_path: Path) -> None:
    path = written(tmp_path, {"model": weights()})
    model = featherweight.create("vit", weights=path, **SMALL)
    again = artifact.load(artifact.save(model, tmp_path / "model"))
    assert same(again, model.state_dict()) and not again.training


def test_a_family_a_name_and_timm() -> None:
    timm = pytest.importorskip("timm")
    model = featherweight.create("timm", architecture="test_vit", num_classes=3)
    assert type(model) is type(timm.create_model("test_vit"))
    assert zoo.base_of(model) == {"name": "timm:test_vit", "config": {"num_classes": 3}}
    with pytest.raises(OptionError, match=r"vit\.embed_dims: no such field; did you mean 'embed_dim'"):
        featherweight.create("vit", embed_dims=3)
