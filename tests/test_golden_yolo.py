# SPDX-License-Identifier: Apache-2.0
"""The runner of golden files on YOLOv7's models, and that it sees what is wrong."""

from __future__ import annotations

import copy
import hashlib
import json
import tarfile
from pathlib import Path
from typing import Any

import golden_runner
import golden_yolo_models
import pytest
import torch
import yolo_files
from golden_files import FOLDER, golden

from featherweight.models import zoo

NAMES = sorted(p.stem for p in (FOLDER / "yolo").glob("*.json") if p.stem.startswith(("deploy-", "training-")))


@pytest.mark.parametrize("name", [n if "tiny" in n else pytest.param(n, marks=pytest.mark.slow) for n in NAMES])
def test_every_number_of_the_file_is_ours(name: str) -> None:
    case = golden_runner.check(FOLDER / "yolo" / f"{name}.json")
    assert case is not None and case.wrong == [] and len(case.seen) > 20


def wrong(tmp_path: Path, change: Any) -> list[str]:
    reference = copy.deepcopy(golden("yolo/training-yolov7-tiny"))
    change(reference)
    (tmp_path / "changed.json").write_text(json.dumps(reference))
    case = golden_runner.check(tmp_path / "changed.json")
    return case.wrong if case else []


CHANGES = {
    "state_dict: 344 entries, not 343": lambda held: held["state_dict"].pop(5),
    "params: 6228762, not 1": lambda held: held.__setitem__("params", 1),
    "anchors_px": lambda held: held["anchors_px"][1].__setitem__(0, 31.0),
    "outputs.sq.raw.1: off by": lambda held: held["outputs"]["sq"]["raw"][1]["values"].__setitem__(3, 0.5),
    "fused.head_m0.bias: off by": lambda held: held["fused"]["head_m0"]["bias"]["values"].__setitem__(0, 0.5),
    "gflops_conv_only_640": lambda held: held.__setitem__("gflops_conv_only_640", 13.0),
    "layer 8": lambda held: held["layer_stats_sq"][8].__setitem__(4, 0.5),
    "outputs.sq.novel: compared with nothing": lambda held: held["outputs"]["sq"].__setitem__(
        "novel", held["outputs"]["sq"]["decoded"]
    ),
}


def test_what_is_wrong_is_seen(tmp_path: Path) -> None:
    def all_at_once(held: dict[str, Any]) -> None:
        for change in CHANGES.values():
            change(held)

    found = wrong(tmp_path, all_at_once)
    assert [part for part in CHANGES if not any(part in text for text in found)] == []


def test_a_hostile_file_that_is_read_is_a_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"model": {"w": torch.zeros(1)}}, tmp_path / "harmless.pt")
    (tmp_path / "malicious.pt").write_bytes(b"\x80\x02cposix\nsystem\n(X\x04\x00\x00\x00truetR.")
    for names, passes in ((["malicious.pt"], True), (["malicious.pt", "harmless.pt"], False)):
        with tarfile.open(tmp_path / "hostile.tar.gz", "w:gz") as archive:
            for name in names:
                archive.add(tmp_path / name, name)
        assert golden_runner.main(str(tmp_path)) == (0 if passes else 1)
    assert "harmless.pt was read" in capsys.readouterr().out


def test_checkpoints_beside_the_file_are_compared(tmp_path: Path) -> None:
    """Against numbers made here, from a file made here: what is compared, and that a difference is seen."""
    import fill

    config = {"variant": "custom", "graph": "C8/3s2 C8/3s2 C8/3s2 C8/3s2 C8/3s2 Detect<2,3,4", "num_classes": 4}
    model = zoo.create("yolov7", **config).eval()
    state = fill.fill_(model.state_dict(), keep=("anchor",))
    model.load_state_dict({key: t.half() if t.is_floating_point() else t for key, t in state.items()})
    (tmp_path / "pts").mkdir()
    (tmp_path / "json").mkdir()
    yolo_files.write(tmp_path / "pts" / "x.pt", model)
    with torch.no_grad():
        raw = model(fill.image("x", (1, 3, 64, 64)))
    decoded = golden_yolo_models.decode(raw, model.head.anchors, model.head.strides)
    kept = torch.from_numpy(golden_yolo_models.Nms(0.001, 0.65)(decoded[0].double().numpy()))
    digest = hashlib.sha256((tmp_path / "pts" / "x.pt").read_bytes()).hexdigest()
    held = {
        "sha256_file": digest, "tensors": len(state), "numbers": sum(t.numel() for t in state.values()), "bn_eps": 1e-3,
        "params": sum(p.numel() for p in model.parameters()), "names_first": [f"kind {n}" for n in range(4)],
        "image": "x", "shape": [1, 3, 64, 64], "raw": [fill.digest(m) for m in raw],
        "decoded": fill.digest(decoded), "decoded_fused": fill.digest(decoded),
        "nms_conf0.001_iou0.65_best_class": {"count": len(kept), "digest": fill.digest(kept)},
    }  # fmt: skip
    path = tmp_path / "json" / "checkpoint.json"
    path.write_text(json.dumps({"x.pt": held, "elsewhere.pt": {"sha256_file": ""}}))
    case = golden_runner.check(path)
    assert case is not None and case.wrong == [] and "elsewhere.pt is not here" in case.told
    path.write_text(json.dumps({"x.pt": {**held, "params": 5}}))
    assert golden_runner.check(path).wrong[0].startswith("x.pt.params: ")  # type: ignore[union-attr]
    path.write_text(json.dumps({"elsewhere.pt": held}))
    assert golden_runner.check(path).wrong[0].startswith("none of elsewhere.pt")  # type: ignore[union-attr]
