# SPDX-License-Identifier: Apache-2.0
"""A killed run goes on to the same bits; a full disk, a flipped bit, a signal and other options do not harm it."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import time
from pathlib import Path

import pytest
import tiny_training as tiny
import torch

from featherweight import checkpoint, train
from featherweight.doors import safetensors
from featherweight.errors import InputError
from featherweight.journal import Journal

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
LAST = tiny.EPOCHS * tiny.STEPS
NAME = f"step-{LAST:08d}.safetensors"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    process = tiny.start(folder)
    process.join(180)
    assert process.exitcode == 0
    return folder


def weights(folder: Path) -> bytes:
    """The last checkpoint: weights, average, optimizer, random states, counters, options."""
    return (folder / "checkpoints" / NAME).read_bytes()


def log(folder: Path) -> list[dict[str, object]]:
    """The log without wall-clock fields."""
    return [{k: v for k, v in row.items() if k != "images_per_s"} for row in Journal(folder / "log.jsonl").rows()]


def finish(folder: Path, **options: object) -> None:
    process = tiny.start(folder, **options)
    process.join(180)
    assert process.exitcode == 0, (folder / "notes" / "error").read_text()


def kill_in_write(folder: Path, stage: str) -> None:
    """Kill a session inside its second write of a checkpoint."""
    process = tiny.start(folder, stay=stage)
    assert tiny.wait_for((folder / "notes" / f"staying-{process.pid}").exists, process), "over before it was killed"
    process.kill()
    process.join()
    unfinished = list((folder / "checkpoints").glob(".fw-*.tmp"))
    assert bool(unfinished) == (stage == "written")


def kill_after(folder: Path, steps: int, *, wait: float = 0.0) -> None:
    """Kill a session when it has logged so many steps, or `wait` seconds later."""
    goal = tiny.step_of(folder) + steps
    process = tiny.start(folder, pace=0.005)
    assert tiny.wait_for(lambda: tiny.step_of(folder) >= goal, process), "over before it was killed"
    time.sleep(wait)
    process.kill()
    process.join()


def verifies(folder: Path) -> bool:
    """All checkpoints load, and `latest`, made after the first one, names one of them; there may be none yet."""
    found = checkpoint.checkpoints(folder / "checkpoints")
    for path in found:
        checkpoint.read(path)
    latest = folder / "checkpoints" / "latest"
    return latest.resolve() in [path.resolve() for path in found] if latest.is_symlink() else len(found) < 2


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_killed_run_ends_in_the_same_bits(whole: Path, tmp_path: Path, seed: int) -> None:
    """Ten kills, half of them inside the writing of a checkpoint."""
    dice = random.Random(seed)
    for stage in dice.sample(["written", "written", "written", "named", "pointed"], 5):
        kill_in_write(tmp_path, stage)
        assert verifies(tmp_path)
        kill_after(tmp_path, dice.randint(2, 4), wait=dice.uniform(0, 0.01))
        assert verifies(tmp_path)
    finish(tmp_path)
    starts = {int(note.read_text()) for note in (tmp_path / "notes").glob("session-*")}
    assert len(starts - {0}) >= 5, "too few resumes from different steps to prove anything"
    assert weights(tmp_path) == weights(whole)
    assert log(tmp_path) == log(whole)
    assert [row["step"] for row in log(tmp_path) if row["event"] == "step"] == list(range(1, LAST + 1))
    assert not list((tmp_path / "checkpoints").glob(".fw-*"))


@pytest.mark.parametrize("fault", ["forgets its random state", "forgets the position in the epoch"])
def test_a_forgetful_trainer_is_noticed(whole: Path, tmp_path: Path, fault: str) -> None:
    kill_after(tmp_path, tiny.EVERY + 2)
    before = checkpoint.read(tmp_path / "checkpoints" / "latest")[1]["counters"]
    assert before["position"] > 0
    process = tiny.start(tmp_path, faults=(fault,))
    process.join(180)
    last = checkpoint.checkpoints(tmp_path / "checkpoints")[0]
    assert last.name != NAME or weights(tmp_path) != weights(whole)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_a_checkpoint_of_this_step(whole: Path, tmp_path: Path, number: signal.Signals) -> None:
    process = tiny.start(tmp_path, pace=0.005)
    assert tiny.wait_for(lambda: tiny.step_of(tmp_path) >= 6, process)
    signalled = time.monotonic()
    os.kill(process.pid, number)
    process.join(10)
    assert time.monotonic() - signalled < 10
    error = (tmp_path / "notes" / "error").read_text()
    assert error.startswith(f"Interrupted {128 + number} stopped by {number.name} after step")
    assert "the same command goes on from" in error
    step = checkpoint.read(tmp_path / "checkpoints" / "latest")[1]["counters"]["step"]
    assert f"after step {step};" in error
    finish(tmp_path)
    assert weights(tmp_path) == weights(whole)
    assert log(tmp_path) == log(whole)


def test_a_full_disk_leaves_the_checkpoint_before(whole: Path, tmp_path: Path) -> None:
    kill_after(tmp_path, tiny.EVERY + 2)
    kept = checkpoint.checkpoints(tmp_path / "checkpoints")
    digests = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in kept}
    size = kept[0].stat().st_size
    for limit in (1, size // 2, size - 1):
        process = tiny.start(tmp_path, limit=limit)
        process.join(180)
        error = (tmp_path / "notes" / "error").read_text()
        assert process.exitcode == 1
        assert error.startswith("StorageError")
        assert "disk full" in error
        assert "bytes free" in error
        assert "needed" in error
        assert {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in kept} == digests
        assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == sorted(
            [".lock", "latest", *(path.name for path in kept)]
        )
    finish(tmp_path)
    assert weights(tmp_path) == weights(whole)


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_every_flipped_bit_is_noticed(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = weights(whole)
    bits = random.Random(0).sample(range(8 * len(data)), 300)
    path = tmp_path / "step-00000001.safetensors"

    def noticed(bit: int) -> bool:
        path.write_bytes(flipped(data, bit))
        try:
            checkpoint.read(path)
        except InputError:
            return True
        return False

    assert all(noticed(bit) for bit in bits)
    monkeypatch.setattr(safetensors, "_verify", lambda *args: None)
    assert sum(noticed(bit) for bit in bits) < 150, "the control: without the digest most flips pass"


def copied(whole: Path, folder: Path) -> list[Path]:
    """The two last checkpoints of the undisturbed run, in a folder of their own; newest first."""
    (folder / "checkpoints").mkdir()
    for path in checkpoint.checkpoints(whole / "checkpoints"):
        (folder / "checkpoints" / path.name).write_bytes(path.read_bytes())
    return checkpoint.checkpoints(folder / "checkpoints")


def test_a_damaged_newest_is_named_and_the_one_before_used(whole: Path, tmp_path: Path) -> None:
    newest, older = copied(whole, tmp_path)
    newest.write_bytes(flipped(newest.read_bytes(), 8 * newest.stat().st_size - 5))
    with pytest.warns(UserWarning, match=rf"{newest.name}: checksum: .*going on from {older.name}"):
        tiny.run(tmp_path, log=None)
    assert weights(tmp_path) == weights(whole)
    newest.write_bytes(flipped(newest.read_bytes(), 8 * newest.stat().st_size - 5))
    with pytest.raises(InputError, match="checksum"):
        checkpoint.read(newest)


def test_where_all_are_damaged_nothing_begins_anew(whole: Path, tmp_path: Path) -> None:
    for path in copied(whole, tmp_path):
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=NAME):
        tiny.run(tmp_path, log=None)


def test_a_finished_run_returns_its_model_at_once(whole: Path, tmp_path: Path) -> None:
    copied(whole, tmp_path)
    rows: list[dict[str, object]] = []
    model = tiny.run(tmp_path, log=rows.append)
    again = tiny.run(tmp_path, log=rows.append)
    assert not rows
    saved, _ = checkpoint.read(tmp_path / "checkpoints" / NAME)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, saved[f"ema/{name}"])
        assert torch.equal(tensor, again.state_dict()[name])


def test_other_options_are_refused_by_name(whole: Path, tmp_path: Path) -> None:
    copied(whole, tmp_path)
    methods = [tiny.Noisy(tiny.network(seed=3))]
    with pytest.raises(InputError) as refused:
        tiny.run(tmp_path, log=None, seed=5, precision="bfloat16", ema=0.9, methods=methods, epochs=4)
    text = str(refused.value)
    for part in (
        "changed",
        "seed was 0, is 5",
        "precision was float32, is bfloat16",
        f"epochs was {tiny.EPOCHS}, is 4",
        "teacher",
    ):
        assert part in text
    assert len(text) <= 500
    assert "\n" not in text


def test_other_data_is_refused(whole: Path, tmp_path: Path) -> None:
    copied(whole, tmp_path)
    for name, other in {
        "samples": tiny.batches(44),
        "batch_size": tiny.batches(batch_size=5),
        "seed": tiny.batches(seed=1),
    }.items():
        with pytest.raises(InputError, match=rf"data\.augment was Augment, is None; data\.{name} was"):
            train.fit(tiny.network(), other, tiny.Classification(4), clip=1.0, checkpoint=tmp_path / "checkpoints")


def test_another_torch_is_refused_and_allowed(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copied(whole, tmp_path)
    monkeypatch.setattr(torch, "__version__", "9.9")
    with pytest.raises(InputError, match=r"torch was .*, is 9\.9"):
        tiny.run(tmp_path, log=None)
    tiny.run(tmp_path, log=None, allow=["torch"])


def test_more_epochs_are_allowed(whole: Path, tmp_path: Path) -> None:
    copied(whole, tmp_path)
    rows: list[dict[str, object]] = []
    tiny.run(tmp_path, log=rows.append, epochs=tiny.EPOCHS + 1)
    assert [row["step"] for row in rows if row["event"] == "step"] == list(range(LAST + 1, LAST + tiny.STEPS + 1))


def test_another_model_is_refused(whole: Path, tmp_path: Path) -> None:
    copied(whole, tmp_path)
    with pytest.raises(InputError, match="shape_mismatch"):
        train.fit(
            tiny.network()[:4].append(torch.nn.Flatten()).append(torch.nn.Linear(54, 5)),
            tiny.batches(augment=tiny.Augment(flip=0.5, shift=0.2)),
            tiny.Classification(4),
            methods=[tiny.Noisy(tiny.network(seed=1))],
            optimizer=tiny.optim.adamw(3e-3),
            epochs=tiny.EPOCHS,
            ema=0.99,
            checkpoint=tmp_path / "checkpoints",
        )


def test_two_runs_cannot_share_a_folder(tmp_path: Path) -> None:
    from featherweight import files
    from featherweight.errors import FeatherweightError

    with files.lock(tmp_path / "checkpoints"), pytest.raises(FeatherweightError, match="in use"):
        tiny.run(tmp_path)
