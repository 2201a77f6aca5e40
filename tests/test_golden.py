# SPDX-License-Identifier: Apache-2.0
"""The runner of golden files (`make golden DIR=...`) on the files of the repository, and that it sees what is wrong."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import golden_runner
import pytest
from golden_files import FOLDER, golden

QUICK = ("deit_tiny_distilled_patch16_224", "lvvit_t", "sret_t", "sret_t_wo_slice", "dyvit_deit_s", "tome_deit_small")
ALL = [path.stem for path in sorted(FOLDER.glob("*.json")) if "family" in json.loads(path.read_text())]


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in ALL])
def test_every_number_of_the_file_is_ours(name: str) -> None:
    case = golden_runner.check(FOLDER / f"{name}.json")
    assert case is not None and case.wrong == [] and len(case.seen) >= 2


def changed(tmp_path: Path, name: str, change: Any) -> list[str]:
    reference = copy.deepcopy(golden(name))
    change(reference)
    (tmp_path / "changed.json").write_text(json.dumps(reference))
    case = golden_runner.check(tmp_path / "changed.json")
    return case.wrong if case else []


def test_what_is_wrong_is_seen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "deit_tiny_patch16_224"

    def off(reference: dict[str, Any]) -> None:
        reference["outputs"]["logits"]["values"][3] += 1e-4
        reference["outputs"]["novel"] = reference["outputs"]["logits"]
        reference["params"] += 1

    wrong = changed(tmp_path, name, off)
    assert "outputs.logits: off by 1.0e-04" in wrong[1] and wrong[0].startswith("params: 5717416, not 5717417")
    assert wrong[2:] == ["outputs.novel: compared with nothing"]
    assert golden_runner.main(str(tmp_path)) == 1
    assert "FAILED changed.json" in capsys.readouterr().out

    def lacks(reference: dict[str, Any]) -> None:
        del reference["state_dict"][5]

    assert "missing_key" in changed(tmp_path, name, lacks)[0]
    unknown = changed(tmp_path, name, lambda reference: reference.update(method={"name": "novel"}))
    assert unknown == ["LookupError: no novel for the family vit here"]


def test_a_folder_without_golden_files_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "functions.json").write_text("{}")
    assert golden_runner.main(str(tmp_path)) == 1
