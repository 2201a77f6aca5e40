# SPDX-License-Identifier: Apache-2.0
"""The benchmark of deployed models: goes on where it stopped, and its page says what the stored rows say."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import scripts

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def device() -> ModuleType:
    pytest.importorskip("openvino")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        return scripts.benchmark("device")


def test_it_goes_on_where_it_stopped(device: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--tiny", "--results", str(tmp_path / "device.json"), "--seconds", "0.01", "--threads", "1"]
    assert device.main([*given, "--part", "jpeg", "--minutes", "0"]) == 0
    assert not (tmp_path / "device.json").exists()
    assert device.main([*given, "--part", "jpeg,size"]) == 0
    rows = json.loads((tmp_path / "device.json").read_text())["rows"]
    assert set(rows) == {"jpeg 128x96", "size"}
    assert rows["jpeg 128x96"]["rows"]["Pillow"]["over"]["Pillow"] == [1.0, 1.0, 1.0]
    assert 0 < rows["size"]["packages"]["numpy"] < rows["size"]["total"] < rows["size"]["torch alone"]
    said = capsys.readouterr().out
    assert device.main([*given, "--part", "jpeg,size"]) == 0
    assert "jpeg" in said and capsys.readouterr().out == ""  # nothing was missing any more
    blocks = device.device_page.blocks(rows, json.loads((tmp_path / "device.json").read_text())["machine"])
    assert "| jpeg 128x96 |" in blocks["jpeg"] and "MB on disk" in blocks["size"]
    assert blocks["deit"] == device.device_page.NOTHING


@pytest.mark.parametrize("wrong", [["--part", "jpg"], ["--tiny"]])
def test_what_it_does_not_know_is_refused(device: ModuleType, wrong: list[str], capsys: Any) -> None:
    with pytest.raises(SystemExit):
        device.main(wrong)
    assert capsys.readouterr().err


def test_the_page_says_what_the_rows_say(device: ModuleType) -> None:
    page = ROOT / "docs" / "device.md"
    text = page.read_text(encoding="utf-8")
    stored = device.RESULTS
    kept = json.loads(stored.read_text()) if stored.is_file() else {"rows": {}, "machine": {}}
    for name, block in device.device_page.blocks(kept["rows"], kept["machine"]).items():
        told = f"<!-- bench:begin {name} -->\n{block}\n<!-- bench:end -->"
        assert told in text, "run: python benchmarks/device.py --table"
