# SPDX-License-Identifier: Apache-2.0
"""What each process of test_ddp.py runs; under torchrun: `python several_processes.py COMMAND FOLDER`."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tiny_runs
import tiny_training as tiny
import torch
from torch import nn

from featherweight import checkpoint, optim, runs, train
from featherweight.data.transforms import Augment
from featherweight.distributed import Lost
from featherweight.errors import InputError, OptionError
from featherweight.interrupt import Interrupted
from featherweight.journal import Journal
from featherweight.methods.deit import TokenDistill
from featherweight.models import zoo


def rank() -> int:
    """Which process this is."""
    return int(os.environ.get("RANK", "0"))


def save(model: nn.Module, path: Path) -> None:
    """A result to compare."""
    checkpoint.write(path, model.state_dict(), {"counters": {}, "facts": {}})


def plain(**options: Any) -> nn.Module:
    """A run without noise, for the comparison with one process: 40 samples, 8 in each step."""
    network = tiny.network(dropout=0.0, norm=False)
    return train.fit(network, tiny.batches(40, **options), tiny.Classification(4), **RATE)


RATE: dict[str, Any] = {"optimizer": optim.sgd(0.05), "schedule": optim.constant(), "epochs": 2}


def repeated(**options: Any) -> nn.Module:
    """The same with each picture three times, augmented anew each time."""
    return plain(repeats=3, augment=Augment(crop_min=0.3, flip=0.5), **options)


def transformer(**options: Any) -> nn.Module:
    """A small ViT; its blocks are what FSDP gathers and lets go."""
    config = {"image_size": [8, 8], "patch_size": 4, "embed_dim": 16, "num_heads": 2, "depth": 3, "num_classes": 4}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = zoo.build({"name": "vit", "config": config})
    known = {"batch_size": 4, "augment": Augment(flip=0.5)}
    rate = {"optimizer": optim.adamw(3e-3), "epochs": 2, "ema": 0.9, **options}
    return train.fit(model, tiny.batches(28, **known), tiny.Classification(4), **rate)


class Stop(train.Method):
    """One process gets a signal in the middle of an epoch."""

    def after_step(self, model: nn.Module, progress: float) -> None:
        if (stop := os.environ.get("STOP_AT")) and rank() == 1 and progress >= float(stop):
            os.environ.pop("STOP_AT")
            os.kill(os.getpid(), signal.SIGTERM)


class Die(train.Method):
    """One process is killed, once."""

    def __init__(self, folder: Path) -> None:
        self._mark, self._wanted = folder / "died", folder.name == "killed"  # not options: the names begin with _

    def after_step(self, model: nn.Module, progress: float) -> None:
        if self._wanted and rank() == 1 and progress > 0.6 and not self._mark.exists():
            self._mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)


def noisy(folder: Path, **options: Any) -> nn.Module:
    """A run with all kinds of randomness, batch norm and an average; 43 samples do not divide by two."""
    data = tiny.batches(43, batch_size=3, augment=Augment(flip=0.5))
    return train.fit(
        tiny.network(),
        data,
        tiny.Classification(4),
        methods=[tiny.Noisy(tiny.network(seed=1)), Stop(), Die(folder)],
        **{"epochs": 3, "ema": 0.9, "checkpoint": folder / "checkpoints", "checkpoint_every": 3, **options},
    )


def compare(folder: Path) -> None:
    """Equality with one process, and a stopped run that goes on."""
    me = rank()
    save(plain(batch_size=4), folder / f"plain-{me}")
    save(repeated(batch_size=4), folder / f"repeated-{me}")
    whole = noisy(folder / "whole", log=Journal(folder / "log.jsonl"))
    save(whole, folder / f"whole-{me}")
    os.environ["STOP_AT"] = "0.5"
    try:
        noisy(folder / "stopped")
    except Interrupted as error:
        (folder / f"stopped-{me}.txt").write_text(f"{error.exit_code} {error}")
    save(noisy(folder / "stopped"), folder / f"resumed-{me}")
    try:
        noisy(folder / "apart" if me else folder / "whole")
    except InputError as error:
        (folder / f"apart-{me}.txt").write_text(str(error))


def sharded(folder: Path) -> None:
    """The same training with whole and with split models, and a split one that is stopped and goes on."""
    me = rank()
    save(transformer(methods=[TokenDistill(tiny_vit_teacher())]), folder / f"ddp-{me}")
    split: dict[str, Any] = {"parallel": "fsdp", "methods": [TokenDistill(tiny_vit_teacher()), Stop()]}
    shapes: list[int] = []
    looked = {"validate": lambda model: {"numbers": sum(p.numel() for p in model.parameters())}}
    whole = transformer(**split, **looked, log=lambda row: shapes.append(row.get("validation", {}).get("numbers", 0)))
    save(whole, folder / f"fsdp-{me}")
    (folder / f"validated-{me}.txt").write_text(str(max(shapes, default=0)))
    kept = {"checkpoint": folder / "split", "checkpoint_every": 2}
    os.environ["STOP_AT"] = "0.5"
    try:
        transformer(**split, **kept)
    except Interrupted as error:
        (folder / f"stopped-{me}.txt").write_text(f"{error.exit_code} {error}")
    os.environ.pop("STOP_AT", None)
    save(transformer(**split, **kept), folder / f"resumed-{me}")


def tiny_vit_teacher() -> nn.Module:
    """Any classifier."""
    return tiny.network(dropout=0.0, norm=False, seed=1)


class Hang(train.Method):
    """One process stops answering, until the other one has left its complaint."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def after_step(self, model: nn.Module, progress: float) -> None:
        if rank() == 1 and progress > 0.4:
            end = time.monotonic() + 60
            while not (self._folder / "lost-0.txt").exists() and time.monotonic() < end:
                time.sleep(0.05)
            os._exit(0)


def recipe(folder: Path) -> None:
    """A whole recipe, and once more: then everything is there."""
    tiny_runs.fitting.CHECKPOINT_EVERY = tiny_runs.EVERY
    for time_ in ("first", "second"):
        told = tiny_runs.Told()
        work = runs.run(tiny_runs.training(**{"train.lr_batch": 16}), project=folder, progress=told)
        (folder / f"{time_}-{rank()}.txt").write_text("\n".join(str(event) for event in told.events))
    assert work.model is not None
    save(work.model, folder / f"model-{rank()}")
    for change in ({"name": f"mine-{rank()}"}, {"budget": {"max_drop": "1%"}}):
        try:
            runs.run(tiny_runs.training(**change), project=folder)
        except OptionError as error:
            with (folder / f"refused-{rank()}.txt").open("a") as notes:
                notes.write(f"{error}\n")


def hung(folder: Path) -> None:
    """A run whose second process hangs."""
    try:
        train.fit(tiny.network(), tiny.batches(40), tiny.Classification(4), methods=[Hang(folder)], epochs=2, timeout=2)
    except Lost as error:
        (folder / "lost-0.txt").write_text(str(error))


def killed(folder: Path) -> None:
    """A run whose second process dies."""
    save(noisy(folder / "killed"), folder / f"killed-{rank()}")


def main(command: str, folder: Path, variables: Mapping[str, str]) -> None:
    """The command, in the place among several processes that the variables give."""
    os.environ.update(variables)
    torch.set_num_threads(1)
    {"compare": compare, "killed": killed, "sharded": sharded, "recipe": recipe, "hung": hung}[command](folder)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), {})
