# SPDX-License-Identifier: Apache-2.0
"""The benchmark of vision transformers: goes on where it stopped, and the page says what the stored races say."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import scripts
import torch
from torch import nn

from featherweight.methods import tome
from featherweight.models.vit import VisionTransformer, ViTConfig

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def loaded() -> ModuleType:
    return scripts.benchmark("vit_speed")


@pytest.fixture
def speed(loaded: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The benchmark on a model of a few weights, with a page of its own."""

    def plain() -> nn.Module:
        torch.manual_seed(0)
        config = ViTConfig(image_size=(16, 16), patch_size=4, num_classes=5, embed_dim=32, depth=2, num_heads=2)
        return VisionTransformer(config).eval()

    makers = {"plain": plain, "merged": lambda: tome.merged(plain(), r=4)}
    monkeypatch.setattr(loaded, "GROUPS", {"tiny": makers})
    monkeypatch.setattr(loaded, "CLAIMS", (loaded.Claim("tiny", "merged", "plain", {32: 0.01}),))
    monkeypatch.setattr(loaded, "SIZE", (16, 16))
    monkeypatch.setattr(loaded, "RESULTS", tmp_path / "vit_speed.json")
    monkeypatch.setattr(loaded, "PAGE", tmp_path / "page.md")
    page = "before\n<!-- speed:begin table -->\n<!-- speed:end -->\n<!-- speed:begin machine -->\n<!-- speed:end -->\n"
    loaded.PAGE.write_text(page, encoding="utf-8")
    return loaded


def test_it_goes_on_where_it_stopped(speed: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--runtimes", "eager,openvino-bf16", "--threads", "1", "--seconds", "0.01"]
    assert speed.main([*asked, "--batch", "32", "--minutes", "0"]) == 0
    assert not speed.RESULTS.exists()
    assert "Nothing yet." in speed.PAGE.read_text()
    assert speed.main([*asked, "--batch", "1", "--runtimes", "eager"]) == 0
    first = json.loads(speed.RESULTS.read_text())["races"]
    assert speed.main([*asked, "--batch", "32,1"]) == 0
    found = json.loads(speed.RESULTS.read_text())
    assert len(found["races"]) == 4 and first.items() <= found["races"].items()
    assert {one["dtype"] for one in found["races"].values()} == {"float32", "bfloat16"} or not _has_bf16(found)
    page = speed.PAGE.read_text()
    assert page.startswith("before\n") and "On 1 thread:" in page and found["machine"]["cpu"] in page
    rows = [line for line in page.splitlines() if line.startswith("| merged against plain")]
    assert len(rows) == 2 or not _has_bf16(found)
    assert all(line.split("|")[3].endswith("✓ ") for line in rows)  # a hundredth of the speed is surely reached
    assert "merged over plain" in capsys.readouterr().out


def _has_bf16(found: dict[str, Any]) -> bool:
    """Elsewhere OpenVINO computes in float32 whatever it is asked."""
    return any(flag.endswith("bf16") for flag in found["machine"]["flags"])


def test_verdicts(loaded: ModuleType) -> None:
    ratio = {"ratio": 1.5, "interval": [1.3, 1.6]}
    assert loaded.verdict(ratio, None) == "1.50× (1.30–1.60)"
    assert [loaded.verdict(ratio, least)[-1] for least in (1.45, 1.7)] == ["✓", "✗"]
    assert loaded.verdict(ratio, 1.55).endswith("within noise")
    equal = {"ratio": 0.98, "interval": [0.97, 0.99]}
    assert loaded.verdict(equal, 1.0).endswith("within noise")
    assert loaded.verdict({**equal, "ratio": 0.96}, 1.0).endswith("✗")


def test_every_claim_is_of_models_that_are_there(loaded: ModuleType) -> None:
    for claim in loaded.CLAIMS:
        assert {claim.model, claim.over} <= set(loaded.GROUPS[claim.group])


def test_an_unknown_runtime_is_refused(loaded: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        loaded.parsed(["--runtimes", "eager,tensorrt"])
    assert "no 'tensorrt'; known: eager, openvino" in capsys.readouterr().err


def test_the_page_says_what_was_measured(loaded: ModuleType) -> None:
    text = loaded.PAGE.read_text(encoding="utf-8")
    assert loaded.filled(text, loaded.results()) == text, "run: python benchmarks/vit_speed.py --table"
