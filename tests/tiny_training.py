# SPDX-License-Identifier: Apache-2.0
"""A training run of a second that uses everything a resume must bring back, and processes to run and kill it in.

Dropout and Gumbel noise draw from torch, the method also from random and numpy; batch norm has buffers; the moving
average, AdamW's moments, shuffled and augmented data and an uneven last batch are there too.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import time
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch._dynamo  # an optimizer imports it, which takes seconds: once, in the parent of all processes
import torch.distributed.fsdp
from torch import Tensor, nn

from featherweight import checkpoint, files, optim, randomness, train
from featherweight.data.batches import Batches
from featherweight.data.transforms import Augment
from featherweight.errors import FeatherweightError
from featherweight.journal import Journal
from featherweight.runtime.preprocess import Preprocess
from featherweight.tasks.classification import Classification

EPOCHS, STEPS, EVERY = 7, 11, 4  # 77 steps, 20 checkpoints


class Pictures:
    """Random pictures in memory."""

    def __init__(self, count: int = 43, size: int = 8) -> None:
        generator = np.random.default_rng(0)
        self.pixels = generator.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
        self.labels = generator.integers(0, 4, count)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
        return self.pixels[i], int(self.labels[i])

    def names(self, i: int) -> str:
        return f"picture {i}"


def batches(count: int = 43, *, batch_size: int = 4, augment: Augment | None = None, **options: Any) -> Batches:
    """Shuffled batches of 8 x 8 pictures."""
    preprocess = Preprocess(size=(8, 8), resize="none")
    return Batches(Pictures(count), preprocess, batch_size=batch_size, shuffle=True, augment=augment, **options)


def network(*, dropout: float = 0.3, norm: bool = True, seed: int = 0) -> nn.Module:
    """A small convolutional network; with another seed, other weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 6, 3, stride=2),
            nn.BatchNorm2d(6) if norm else nn.GroupNorm(1, 6),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Flatten(),
            nn.Linear(6 * 9, 4),
        )


class Noisy(train.Method):
    """Distillation under Gumbel noise, with a weight that Python and NumPy throw dice for."""

    def __init__(self, teacher: nn.Module) -> None:
        self.teacher = teacher

    def loss(self, terms: dict[str, Tensor], run: train.Pass) -> dict[str, Tensor]:
        soft = nn.functional.gumbel_softmax(run.call(self.teacher), tau=1.0)
        weight = random.random() * float(np.random.rand())
        return {**terms, "distill": weight * nn.functional.cross_entropy(run.output, soft)}


def run(folder: Path, **options: Any) -> nn.Module:
    """The run, taken up from `folder`/checkpoints and logged in `folder`/log.jsonl."""
    torch.set_num_threads(1)
    settings: dict[str, Any] = {
        "methods": [Noisy(network(seed=1))],
        "optimizer": optim.adamw(3e-3),
        "epochs": EPOCHS,
        "ema": 0.99,
        "checkpoint": folder / "checkpoints",
        "checkpoint_every": EVERY,
        "log": Journal(folder / "log.jsonl"),
        "validate": lambda model: {"mean": float(next(model.parameters()).mean())},
    }
    data = batches(augment=Augment(flip=0.5, shift=0.2))
    return train.fit(network(), data, Classification(4), **{**settings, **options})


def session(
    folder: Path, *, faults: tuple[str, ...] = (), limit: int | None = None, pace: float = 0.0, stay: str = ""
) -> None:
    """What a child process does: the run with a test's marks and faults; what happened is left in `folder`/notes."""
    notes = folder / "notes"
    notes.mkdir(parents=True, exist_ok=True)
    if stay:
        _stay(notes, stay)
    _break(faults)
    if limit is not None:
        _fill_disk(limit)
    journal, started = Journal(folder / "log.jsonl"), []

    def log(row: dict[str, Any]) -> None:
        if not started:
            started.append(row["step"])
            (notes / f"session-{os.getpid()}").write_text(str(row["step"] - 1))
        journal(row)
        (notes / "step").write_text(str(row["step"]))
        time.sleep(pace)

    log.rewind = journal.rewind  # type: ignore[attr-defined]
    try:
        run(folder, log=log)
    except (FeatherweightError, KeyboardInterrupt) as error:
        (notes / "error").write_text(f"{type(error).__name__} {getattr(error, 'exit_code', '')} {error}")
        raise SystemExit(1) from None


def _stay(notes: Path, stage: str) -> None:
    """Say when the second checkpoint is at this stage of being published, and wait there for the end.

    written: under a temporary name; named: under its own; pointed: `latest` leads to it, the old ones are still there.
    """
    real, seen = os.replace, list[Any]()

    def here(now: str, target: Any) -> None:
        moment = "before" if stage == "written" else "after"
        if now != moment or not Path(target).name.startswith("latest" if stage == "pointed" else "step-"):
            return
        seen.append(target)
        if len(seen) == 2:
            (notes / f"staying-{os.getpid()}").touch()
            time.sleep(60)

    def replace(source: Any, target: Any) -> None:
        here("before", target)
        real(source, target)
        here("after", target)

    files.os.replace = replace  # type: ignore[assignment]


def _fill_disk(limit: int) -> None:
    """No checkpoint can be longer than `limit` bytes."""
    import resource

    real, hard = checkpoint.write, resource.getrlimit(resource.RLIMIT_FSIZE)[1]

    def write(*args: Any) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            real(*args)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))

    checkpoint.write = write


def _break(faults: tuple[str, ...]) -> None:
    """The trainers that a test must tell from a right one."""
    if "forgets its random state" in faults:
        randomness.restore = lambda saved: None
    if "forgets the position in the epoch" in faults:
        real = checkpoint.State.load

        def load(state: checkpoint.State, *args: Any) -> None:
            real(state, *args)
            state.position = 0

        checkpoint.State.load = load  # type: ignore[method-assign]


def prepare(*modules: str) -> Any:
    """Processes that start in milliseconds, because their parent has imported torch and these modules already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tiny_training", *modules])
    here, before = Path(__file__).resolve().parent, os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(here), str(here.parent)])  # it does not take over sys.path
    try:
        forkserver.ensure_running()
    finally:
        del os.environ["PYTHONPATH"]
        if before is not None:
            os.environ["PYTHONPATH"] = before
    return context


def start(folder: Path, **options: Any) -> Any:
    """A process that does `session`."""
    context = prepare()
    process = context.Process(target=session, args=(folder,), kwargs=options)
    process.start()
    return process


def wait_for(condition: Any, process: Any, seconds: float = 60.0) -> bool:
    """Until the condition holds (True), or the process is over (False)."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        if not process.is_alive():
            return False
        time.sleep(0.001)
    raise TimeoutError("the training process does nothing")


def step_of(folder: Path) -> int:
    """The last step that was logged."""
    with contextlib.suppress(OSError, ValueError):
        return int((folder / "notes" / "step").read_text())
    return 0
