# SPDX-License-Identifier: Apache-2.0
"""The same loop in two processes under torchrun: the same weights in both, as one process would have them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
import several_processes
import tiny_training as tiny
import torch
from torch import Tensor

from featherweight import checkpoint, distributed
from featherweight.journal import Journal

HERE = Path(__file__).resolve().parent


def launch(command: str, folder: Path) -> None:
    """Two processes with the variables torchrun gives, from a parent that has imported torch: seconds, not tens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    context = tiny.prepare()
    processes = []
    for rank in ("0", "1"):
        variables = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        processes.append(context.Process(target=several_processes.main, args=(command, folder, variables)))
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
        process.kill()
    assert [process.exitcode for process in processes] == [0, 0]


def torchrun(command: str, folder: Path, *options: str) -> None:
    """The real one."""
    launcher = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    paths = {"PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)]), "OMP_NUM_THREADS": "1"}
    program = [str(HERE / "several_processes.py"), command, str(folder)]
    subprocess.run([*launcher, *options, *program], env={**os.environ, **paths}, timeout=900, check=True)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ddp")
    launch("compare", folder)
    return folder


def weights(path: Path) -> dict[str, Tensor]:
    stored = checkpoint.door.read_sealed(path)[0]
    return checkpoint.unpack(stored)


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("kind", ["plain", "whole", "resumed"])
def test_both_processes_have_the_same_weights(done: Path, kind: str) -> None:
    assert (done / f"{kind}-0").read_bytes() == (done / f"{kind}-1").read_bytes()


def test_two_processes_do_what_one_does_with_their_batches_together(done: Path) -> None:
    """Not to the bit: one process sums a gradient over 8 samples, two add up their sums over 4."""
    two, one = weights(done / "plain-0"), several_processes.plain(batch_size=8).state_dict()
    start = tiny.network(dropout=0.0, norm=False).state_dict()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-5, atol=1e-6)
        assert not torch.allclose(start[name], tensor, rtol=1e-3, atol=1e-4), "the control: training moved it"


def test_repeated_augmentation_is_the_same_over_two_processes(done: Path) -> None:
    two, one = weights(done / "repeated-0"), several_processes.repeated(batch_size=8).state_dict()
    once = several_processes.plain(batch_size=8).state_dict()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-5, atol=1e-6)
        assert not torch.allclose(once[name], tensor, rtol=1e-3, atol=1e-4), "the control: other pictures were seen"


def test_a_stopped_run_goes_on_to_the_same_bits(done: Path) -> None:
    """One process got the signal; both stopped after the same step."""
    notes = [(done / f"stopped-{rank}.txt").read_text() for rank in (0, 1)]
    assert notes[0].startswith("143 stopped by another process after step")
    assert notes[1].startswith("143 stopped by SIGTERM after step")
    assert notes[0].split("after")[1] == notes[1].split("after")[1]
    assert equal(weights(done / "resumed-0"), weights(done / "whole-0"))
    last = [checkpoint.checkpoints(done / run / "checkpoints")[0] for run in ("whole", "stopped")]
    assert last[0].read_bytes() == last[1].read_bytes()


def test_each_process_has_its_own_random_numbers(done: Path) -> None:
    tensors, _ = checkpoint.read(checkpoint.checkpoints(done / "whole" / "checkpoints")[0])
    assert not torch.equal(tensors["random/0/torch"], tensors["random/1/torch"])


def test_one_process_logs(done: Path) -> None:
    rows = Journal(done / "log.jsonl").rows()
    assert [row["step"] for row in rows if row["event"] == "step"] == list(range(1, 25))  # 43 / (2 * 3) -> 8 steps


def test_processes_with_different_folders_are_refused(done: Path) -> None:
    for rank in (0, 1):
        assert "not all processes see the same checkpoints" in (done / f"apart-{rank}.txt").read_text()


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fsdp")
    launch("sharded", folder)
    return folder


def test_a_split_model_is_trained_like_a_whole_one(split: Path) -> None:
    """Not to the bit: sums of gradients are taken in another order."""
    ddp, fsdp = weights(split / "ddp-0"), weights(split / "fsdp-0")
    assert ddp.keys() == fsdp.keys()
    for name, tensor in ddp.items():
        torch.testing.assert_close(fsdp[name], tensor, rtol=1e-4, atol=1e-5)
    assert equal(fsdp, weights(split / "fsdp-1"))
    assert int((split / "validated-0.txt").read_text()) == sum(t.numel() for t in ddp.values()), "validated whole"


def test_a_split_run_that_is_stopped_goes_on_to_the_same_bits(split: Path) -> None:
    assert (split / "stopped-1.txt").read_text().startswith("143 stopped by SIGTERM after step")
    assert equal(weights(split / "resumed-0"), weights(split / "fsdp-0"))
    tensors, _ = checkpoint.read(checkpoint.checkpoints(split / "split")[0])
    assert {name: t.shape for name, t in tensors.items() if name.startswith("model/")} == {
        f"model/{name}": t.shape for name, t in weights(split / "fsdp-0").items()
    }, "checkpoints hold whole tensors"


def test_a_process_that_hangs_is_noticed(tmp_path: Path) -> None:
    launch("hung", tmp_path)
    assert "process 0 of 2 waits in vain: another one hangs or is gone" in (tmp_path / "lost-0.txt").read_text()


@pytest.mark.slow
def test_under_torchrun_itself(done: Path, tmp_path: Path) -> None:
    torchrun("compare", tmp_path)
    assert equal(weights(tmp_path / "resumed-1"), weights(done / "whole-0"))


@pytest.mark.slow
def test_a_killed_process_is_started_again_and_ends_in_the_same_bits(done: Path, tmp_path: Path) -> None:
    torchrun("killed", tmp_path, "--max-restarts", "3")
    assert (tmp_path / "killed" / "died").exists()
    for rank in (0, 1):
        assert equal(weights(tmp_path / f"killed-{rank}"), weights(done / "whole-0"))


def test_a_recipe_is_carried_out_by_two_processes_and_written_by_one(tmp_path: Path) -> None:
    launch("recipe", tmp_path)
    assert (tmp_path / "model-0").read_bytes() == (tmp_path / "model-1").read_bytes()
    first, second, silent = ((tmp_path / f"{name}.txt").read_text() for name in ("first-0", "second-0", "first-1"))
    assert "'event': 'train'" in first
    assert "'lr': 0.0019" in first, "it grew with the number of processes"
    assert "found as it was left" in second
    assert "'event': 'train'" not in second
    assert silent == ""
    for rank in (0, 1):
        refused = (tmp_path / f"refused-{rank}.txt").read_text()
        assert "name: several processes need one run folder" in refused
        assert "budget: is judged by one process" in refused
    assert '"processes": 2' in (tmp_path / "tiny" / "env.json").read_text()


def test_a_restart_does_not_meet_the_processes_that_died() -> None:
    """What an earlier start has left in the store is answered to nobody."""
    store = torch.distributed.HashStore()
    store.set_timeout(timedelta(seconds=20))
    store.set("featherweight/asks/1", "the dead one's question")
    names = []
    for _ in range(2):
        with ThreadPoolExecutor(3) as pool:
            found = list(pool.map(lambda rank: distributed._start(store, rank, 3), (2, 1, 0)))
        assert len(set(found)) == 1
        names += found[:1]
    assert len(set(names)) == 2
