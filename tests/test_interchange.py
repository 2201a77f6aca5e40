# SPDX-License-Identifier: Apache-2.0
"""A folder of ours with a model of timm's loads in plain timm."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import featherweight
from featherweight import artifact
from featherweight.methods.prune import prune

timm = pytest.importorskip("timm")


def test_timm_builds_its_own_model_from_our_folder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = featherweight.create("timm:test_vit", num_classes=3)
    artifact.save(model, tmp_path, classes=("a", "b", "c"))
    images = torch.rand(2, 3, 160, 160)
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    by_weights = timm.create_model("test_vit", num_classes=3, checkpoint_path=str(tmp_path / "model.safetensors"))
    with torch.no_grad():
        for other in (theirs, by_weights.eval(), featherweight.load(tmp_path)):
            assert torch.equal(other(images), model(images))
    assert json.loads((tmp_path / "config.json").read_text())["architecture"] == "test_vit"
    artifact.save(prune(model, mlp=0.5, heads=0.0), tmp_path)
    assert not (tmp_path / "config.json").exists()  # timm cannot build what was cut
    assert featherweight.load(tmp_path)(images).shape == (2, 3)
