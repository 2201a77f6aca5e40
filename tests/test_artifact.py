# SPDX-License-Identifier: Apache-2.0
"""A model as a folder: exact, deterministic, checked; nothing in a file is ever run."""

from __future__ import annotations

import copy
import functools
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from families import CLASSES, FAMILIES, PLAIN, SIZE
from torch import nn

from featherweight import artifact, official
from featherweight.doors import checkpoint as door
from featherweight.errors import InputError, OptionError
from featherweight.methods import deit, dynamicvit, prune
from featherweight.runtime.preprocess import Preprocess
from featherweight.surgery import apply, edits_of

OURS = FAMILIES["ours"]
PREPROCESS = Preprocess(size=(SIZE, SIZE), resize="exact", mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
NAMES = ("cat", "dog", "Gürteltier", "犰狳", "a/b")


@functools.cache
def compressed() -> nn.Module:
    """A model with an edit of each kind that needs no data."""
    model = apply(OURS.make(), deit.plan(OURS.make()))
    model = apply(model, dynamicvit.plan(model, keep=0.5))
    return prune.prune(model, mlp=0.5, heads=0.5).eval()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return artifact.save(compressed(), tmp_path / "model", classes=NAMES, preprocess=PREPROCESS, note={"top1": 0.5})


def rewritten(folder: Path, **changes: Any) -> Path:
    """The weights file with another record, its digest right again, alone in a folder."""
    tensors, metadata = door.read_sealed(folder / artifact.WEIGHTS)
    record = json.loads(metadata["record"])
    path = folder.parent / "rewritten.safetensors"
    door.write(path, tensors, {"record": json.dumps({**record, **changes})})
    return path


def test_what_was_said_is_what_is_read(folder: Path) -> None:
    loaded = artifact.load(folder)
    record = artifact.record_of(loaded)
    assert record is not None
    assert (record.classes, record.preprocess, record.note) == (NAMES, PREPROCESS, {"top1": 0.5})
    assert not loaded.training
    assert edits_of(loaded) == edits_of(compressed())
    assert torch.equal(OURS.logits(loaded), OURS.logits(compressed()))
    assert artifact.record_of(compressed()) is None


def test_the_file_alone_is_complete(folder: Path, tmp_path: Path) -> None:
    alone = shutil.copy(folder / artifact.WEIGHTS, tmp_path / "alone.safetensors")
    assert torch.equal(OURS.logits(artifact.load(alone)), OURS.logits(compressed()))


def test_any_safetensors_reader_can_read_it(folder: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    state = safetensors.load_file(folder / artifact.WEIGHTS)
    assert all(torch.equal(state[name], tensor) for name, tensor in compressed().state_dict().items())


def test_equal_models_give_equal_bytes(folder: Path, tmp_path: Path) -> None:
    again = artifact.save(artifact.load(folder), tmp_path / "again")  # also keeps classes, preprocessing and note
    assert sorted(path.name for path in again.iterdir()) == [artifact.RECORD, artifact.WEIGHTS]
    for name in (artifact.RECORD, artifact.WEIGHTS):
        assert (folder / name).read_bytes() == (again / name).read_bytes()


def test_a_fresh_process_knows_every_kind_of_edit(folder: Path) -> None:
    code = "import sys; from featherweight import artifact; print(type(artifact.load(sys.argv[1])).__name__)"
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("VisionTransformer", "")


def test_saving_again_replaces_and_failing_leaves_what_was_there(folder: Path) -> None:
    before = (folder / artifact.WEIGHTS).read_bytes()
    broken = copy.deepcopy(compressed())
    with torch.no_grad():
        next(broken.parameters())[0] = float("nan")
    with pytest.raises(InputError, match="non_finite"):
        artifact.save(broken, folder)
    assert (folder / artifact.WEIGHTS).read_bytes() == before
    artifact.save(OURS.make(), folder)
    assert edits_of(artifact.load(folder)) == ()


def test_half_precision_is_kept(tmp_path: Path) -> None:
    model = OURS.make().to(torch.bfloat16)
    loaded = artifact.load(artifact.save(model, tmp_path))
    assert {tensor.dtype for tensor in loaded.state_dict().values()} == {torch.bfloat16}


def test_a_module_of_the_users_own(tmp_path: Path) -> None:
    model = PLAIN.make()
    artifact.save(model, tmp_path)
    with pytest.raises(OptionError, match=r"base: .* made from a module of your own; load it with base="):
        artifact.load(tmp_path)
    fresh = PLAIN.build()
    before = fresh.classifier.weight.clone()
    loaded = artifact.load(tmp_path, base=fresh)
    assert torch.equal(PLAIN.logits(loaded), PLAIN.logits(model))
    assert torch.equal(fresh.classifier.weight, before)  # the base given is not what is filled
    with pytest.raises(InputError, match=r"shape_mismatch|missing_key|unexpected_key"):
        artifact.load(tmp_path, base=nn.Linear(2, 2))


def test_a_description_that_was_changed_by_hand_is_noticed(folder: Path) -> None:
    text = (folder / artifact.RECORD).read_text()
    (folder / artifact.RECORD).write_text(text.replace("dog", "cat"))
    with pytest.raises(InputError, match=r"changed: does not say what model\.safetensors beside it says"):
        artifact.load(folder)


@pytest.mark.parametrize("place", [0.1, 0.5, 0.999])
def test_a_flipped_bit_is_noticed(folder: Path, place: float) -> None:
    data = bytearray((folder / artifact.WEIGHTS).read_bytes())
    data[int(place * len(data))] ^= 1
    (folder / artifact.WEIGHTS).write_bytes(data)
    with pytest.raises(InputError):
        artifact.load(folder)


def test_files_that_are_no_artifact(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="missing"):
        artifact.load(tmp_path / "nowhere")
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="not_an_artifact"):
        artifact.load(tmp_path / "other.safetensors")
    door.write(tmp_path / "state.safetensors", {}, {"training": "{}"})
    with pytest.raises(InputError, match=r"not_an_artifact.*training checkpoint"):
        artifact.load(tmp_path / "state.safetensors")


def base(**config: Any) -> dict[str, Any]:
    whole = {"image_size": [SIZE, SIZE], "patch_size": 4, "num_classes": CLASSES, "embed_dim": 32, "depth": 3}
    return {"name": "vit", "config": {**whole, "num_heads": 4, **config}}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"format": 2}, "version"),
        ({"base": {"name": "os.system", "config": {}}}, "unknown_name"),
        ({"base": {"name": "vit", "config": {"embed_dims": 1}}}, "unknown_name"),
        ({"base": base(depth=900)}, "out_of_range"),
        ({"base": base(embed_dim=64)}, "bad_schema|shape_mismatch"),
        ({"edits": [{"path": "", "kind": "eval", "spec": {}}]}, "unknown_name"),
        ({"edits": [{"path": "blocks.9", "kind": "int8", "spec": {}}]}, "unknown_name"),
        ({"edits": [{"path": "", "kind": "narrow_mlp", "spec": {"block": "blocks.0", "keep": [9999]}}]}, "bad_schema"),
        ({"edits": [{"path": "", "kind": "narrow_mlp", "spec": {"block": "blocks.0", "more": 1}}]}, "bad_schema"),
        ({"edits": [{"path": "", "kind": "sparse_tokens", "spec": {"keep": "no pairs"}}]}, "bad_schema"),
        ({"edits": []}, "missing_key|unexpected_key"),
        ({"edits": "none"}, "bad_schema"),
        ({"classes": [1]}, "bad_name"),
        ({"task": "world domination"}, "unknown_name"),
        ({"extra": 1}, "bad_schema"),
    ],
)
def test_a_record_that_cannot_be_explained_is_refused_in_one_line(
    folder: Path, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(InputError, match=reason) as error:
        artifact.load(rewritten(folder, **changes))
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 2


def test_plain_weights_load_by_name(tmp_path: Path) -> None:
    model = OURS.make("another")
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    fresh = OURS.make()
    loaded = official.load(fresh, tmp_path / "weights.pth")
    assert torch.equal(OURS.logits(loaded), OURS.logits(model))
    assert not torch.equal(OURS.logits(fresh), OURS.logits(model))
    with pytest.raises(InputError, match=r"missing_key|unexpected_key"):
        official.load(PLAIN.make(), tmp_path / "weights.pth")
