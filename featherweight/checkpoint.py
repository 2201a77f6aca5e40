# SPDX-License-Identifier: Apache-2.0
"""Everything that changes the next training step, kept so that a killed run goes on to the same bits.

A checkpoint is one sealed safetensors file: weights, buffers, moving average, optimizer, and the random state of every
process as tensors; counters and the run's options as JSON. It is published under the name of its step, then `latest`
points to it, then old ones go. A run is taken up from the newest file that verifies.
Exact on one kind of machine, with the same versions and number of threads. All processes must see the folder.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import math
import random
import signal
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from featherweight import files, optim
from featherweight.distributed import Team
from featherweight.doors import json as strict_json
from featherweight.doors.stored import Stored
from featherweight.errors import Diverged, InputError, OptionError, shown

FORMAT = 1
KEEP = 2  # checkpoints in a folder
SHOWN = 6  # differences named in a refusal
DEPTH = 6  # of options inside options


class State:
    """Model, optimizer, moving average and counters of one run."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, *, averaged: bool) -> None:
        self.model, self.optimizer = model, optimizer
        self.average = {n: t.detach().clone() for n, t in model.state_dict().items()} if averaged else None
        self.step = self.epoch = self.position = self.rows = 0  # position: batches of this epoch; rows: told to the log
        self.sums: dict[str, float] = {}  # of each loss term over this epoch
        self.best: float | None = None

    @torch.no_grad()
    def advance(self, values: Mapping[str, float], *, ema: float | None) -> None:
        """Count a step that was made."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        if self.average is not None and ema is not None:
            decay = min(ema, (1 + self.step) / (10 + self.step))  # a young average forgets its beginning faster
            for name, tensor in self.model.state_dict().items():
                if tensor.is_floating_point():
                    self.average[name].lerp_(tensor, 1 - decay)
                else:
                    self.average[name].copy_(tensor)
        self.step += 1
        self.position += 1

    def next_epoch(self) -> dict[str, float]:
        """The means of this epoch's loss terms; the counters move on."""
        means = {name: value / self.position for name, value in self.sums.items()}
        self.sums, self.position, self.epoch = {}, 0, self.epoch + 1
        return means

    def compare(self, metrics: Mapping[str, Any]) -> None:
        """Remember the best of the first figure of a validation; what is not finite is never better."""
        value = next(iter(metrics.values()), None)
        if isinstance(value, (int, float)) and math.isfinite(value):
            self.best = float(value) if self.best is None else max(self.best, float(value))

    def deployable(self) -> nn.Module:
        """A copy with the weights to use: the moving average where there is one."""
        model = copy.deepcopy(self.model)
        if self.average is not None:
            model.load_state_dict(self.average)
        return model

    def check_finite(self) -> None:
        """Diverged, naming the tensors, where something is not finite."""
        tensors = self.tensors()[0]
        bad = [n for n, t in tensors.items() if t.is_floating_point() and not bool(torch.isfinite(t).all())]
        if bad:
            raise Diverged(f"step {self.step}: not finite: {', '.join(bad[:4])}{' and more' if len(bad) > 4 else ''}")

    def tensors(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All tensors by name, and what the optimizer remembers besides."""
        tensors = {f"model/{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"ema/{name}": tensor for name, tensor in (self.average or {}).items()}
        numbers = {}
        for name, memory in optim.named_state(self.model, self.optimizer):
            for key, value in memory.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer/{name}/{key}"] = value
                elif value is not None:
                    numbers[f"optimizer/{name}/{key}"] = value
        return {name: tensor.detach() for name, tensor in tensors.items()}, numbers

    COUNTERS = ("step", "epoch", "position", "rows", "sums", "best")

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any], counters: Mapping[str, Any], path: Path) -> None:
        """Take over what `tensors` gave, in place; InputError where it does not fit this model."""
        mine = {f"model/{n}": t for n, t in self.model.state_dict().items()}
        mine |= {f"ema/{n}": t for n, t in (self.average or {}).items()}
        theirs = {n: t for n, t in tensors.items() if n.startswith(("model/", "ema/"))}
        for name in sorted(set(mine) ^ set(theirs)):
            reason = "missing_key" if name in mine else "unexpected_key"
            raise InputError(path, reason, f"{name} is not in both; this checkpoint is of another model")
        for name, tensor in mine.items():
            if theirs[name].shape != tensor.shape or theirs[name].dtype != tensor.dtype:
                text = f"{name} is {tuple(theirs[name].shape)} {theirs[name].dtype}, the model's {tuple(tensor.shape)} {tensor.dtype}"
                raise InputError(path, "shape_mismatch", text)
            tensor.copy_(theirs[name])
        memories = dict(optim.named_state(self.model, self.optimizer))
        for full, value in [*tensors.items(), *numbers.items()]:
            kind, _, rest = full.partition("/")
            name, _, key = rest.rpartition("/")
            if kind == "optimizer":
                if name not in memories:
                    raise InputError(path, "unexpected_key", f"{full}: no such parameter is trained here")
                device = mine[f"model/{name}"].device if key != "step" else torch.device("cpu")
                memories[name][key] = value.to(device) if isinstance(value, Tensor) else value
        for name in self.COUNTERS:
            setattr(self, name, counters[name])


@dataclass
class Store:
    """The checkpoints of one run in a folder; without a folder nothing is kept."""

    folder: Path | None
    facts: Mapping[str, Any]
    team: Team
    every: int | None
    allow: tuple[str, ...]
    written: int = -1  # the step of the last checkpoint

    @classmethod
    @contextlib.contextmanager
    def open(
        cls, folder: Any, facts: Mapping[str, Any], team: Team, *, every: int | None, allow: Sequence[str]
    ) -> Iterator[Store]:
        """Hold the folder, and only one process at a time does, until the run is over."""
        if every is not None and (every < 1 or folder is None):
            raise OptionError("checkpoint_every", "is a number of steps, 1 or more, and needs checkpoint=FOLDER")
        with contextlib.ExitStack() as held:
            if folder is not None and team.leads:
                held.enter_context(files.lock(folder))
                files.clean_stale(folder)
            yield cls(None if folder is None else Path(folder), facts, team, every, tuple(allow))

    @property
    def active(self) -> bool:
        return self.folder is not None

    def keep(self, state: State, *, now: bool, epoch_ended: bool) -> None:
        """Write a checkpoint if one is due: `now`, at the end of the run, each `every` steps (None: each epoch)."""
        finished = epoch_ended and state.epoch >= self.facts["epochs"]
        due = epoch_ended if self.every is None else state.step % self.every == 0
        if self.folder is None or self.written == state.step or not (due or now or finished):
            return
        device = next(iter(state.model.state_dict().values())).device
        mine = random_state()
        shared = {name: self.team.gather(tensor, device) for name, tensor in mine.items()}
        if self.team.leads:
            state.check_finite()
            tensors, numbers = state.tensors()
            for name, ranks in shared.items():
                tensors |= {f"rng/{rank}/{name}": tensor for rank, tensor in enumerate(ranks)}
            counters = {name: getattr(state, name) for name in State.COUNTERS}
            note = {"format": FORMAT, "counters": counters, "numbers": numbers, "facts": self.facts}
            write(self.folder / f"step-{state.step:08d}.safetensors", tensors, note)
            self.publish(self.folder, state.step)
        self.written = state.step

    def publish(self, folder: Path, step: int) -> None:
        """Point to the checkpoint of `step`, then remove old ones and those of a future that was given up."""
        files.point(folder / "latest", folder / f"step-{step:08d}.safetensors")
        found = checkpoints(folder)
        kept = [path for path in found if _step_of(path) <= step][:KEEP]
        for path in found:
            if path not in kept:
                with contextlib.suppress(OSError):
                    path.unlink()

    def restore(self, state: State) -> bool:
        """Take up the newest checkpoint that verifies; False if there is none. A damaged one is named in a warning."""
        if self.folder is None:
            return False
        tensors: dict[str, Tensor] = {}
        damaged: InputError | None = None
        for path in checkpoints(self.folder):
            try:
                tensors, note = read(path)
            except InputError as error:
                damaged = damaged or error
                if self.team.leads:
                    warnings.warn(f"{error}; going on from the checkpoint before", stacklevel=3)
                continue
            same(self.facts, note["facts"], self.allow, path)
            state.load(tensors, note["numbers"], note["counters"], path)
            prefix = f"rng/{self.team.rank}/"
            set_random_state({n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)})
            self.written = state.step
            break
        if damaged is not None and not tensors:
            raise damaged
        return bool(tensors)


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoint files of a folder, newest step first."""
    return sorted(folder.glob("step-*.safetensors"), key=_step_of, reverse=True)


def _step_of(path: Path) -> int:
    digits = path.name.removeprefix("step-").removesuffix(".safetensors")
    return int(digits) if digits.isascii() and digits.isdigit() else -1


def write(path: Path, tensors: Mapping[str, Tensor], note: Mapping[str, Any]) -> None:
    """Publish tensors and a JSON note as one sealed file."""
    from featherweight.doors import checkpoint as door

    door.write(path, pack(tensors), {"state": json.dumps(note, sort_keys=True, allow_nan=False)})


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the note of a file that `write` made; InputError where one bit of it is another."""
    from featherweight.doors import checkpoint as door

    stored, metadata = door.read_sealed(path)
    note = strict_json.parse(metadata.get("state", "null"), path)
    if not isinstance(note, dict) or note.get("format") != FORMAT:
        raise InputError(path, "version", f"is not a training state of format {FORMAT}")
    return unpack(stored), note


def pack(tensors: Mapping[str, Tensor]) -> dict[str, Stored]:
    """Tensors as a checkpoint stores them."""
    found = {}
    for name, tensor in tensors.items():
        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        found[name] = Stored(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), data.data)
    return found


def unpack(stored: Mapping[str, Stored]) -> dict[str, Tensor]:
    """What `pack` made, as tensors of their own memory."""
    found = {}
    for name, item in stored.items():
        dtype = getattr(torch, item.dtype)
        data = torch.from_numpy(np.frombuffer(item.data, dtype=np.uint8).copy())
        found[name] = data.view(dtype).reshape(item.shape)
    return found


def random_state() -> dict[str, Tensor]:
    """The global random generators of Python, NumPy and torch, as tensors of fixed size."""
    _, words, gauss = random.getstate()
    _, key, position, has, cached = np.random.get_state()  # type: ignore[misc]
    found = {
        "torch": torch.get_rng_state(),
        "python": torch.tensor(words, dtype=torch.int64),
        "numpy": torch.tensor([*np.asarray(key).tolist(), position], dtype=torch.int64),
        "gauss": torch.tensor([gauss is not None, gauss or 0.0, has, cached], dtype=torch.float64),
    }
    if torch.cuda.is_initialized():
        found["cuda"] = torch.cuda.get_rng_state()
    return found


def set_random_state(state: Mapping[str, Tensor]) -> None:
    """Put the generators where `random_state` found them."""
    python_has, python_gauss, numpy_has, numpy_gauss = state["gauss"].tolist()
    random.setstate((3, tuple(state["python"].tolist()), python_gauss if python_has else None))
    key = state["numpy"].numpy()
    np.random.set_state(("MT19937", key[:-1].astype(np.uint32), int(key[-1]), int(numpy_has), numpy_gauss))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


@contextlib.contextmanager
def random_state_kept() -> Iterator[None]:
    """Whatever happens inside, the caller's random numbers go on as if nothing had."""
    before = random_state()
    try:
        yield
    finally:
        set_random_state(before)


def seed_all(seed: int, rank: int) -> None:
    """Seed Python, NumPy and torch; every process its own way."""
    words = np.random.SeedSequence([seed, rank]).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))
    torch.manual_seed(int(words[2]))


class Interrupted(KeyboardInterrupt):
    """A run that was asked to stop has written a checkpoint and stopped; `exit_code` is 128 + the signal."""

    exit_code = 130


class Asked:
    """Whether a signal has asked for the end."""

    signal: int | None = None

    def error(self, step: int, folder: Path | None) -> Interrupted:
        name = signal.Signals(self.signal).name if self.signal else "another process"
        error = Interrupted(f"stopped by {name} after step {step}; the same command goes on from {shown(folder)}")
        error.exit_code = 128 + (self.signal or signal.SIGTERM)
        return error


@contextlib.contextmanager
def interruptible(active: bool) -> Iterator[Asked]:
    """While inside, the first SIGINT or SIGTERM is noted, for the next step to see; a second one ends at once."""
    asked = Asked()
    if not active or threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def note(number: int, _frame: Any) -> None:
        if asked.signal is not None:
            raise KeyboardInterrupt("stopped at once")
        asked.signal = number

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def describe(value: Any, depth: int = DEPTH) -> Any:
    """An option as JSON that is equal exactly when the option is: modules and arrays by digest, functions by name."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if depth == 0:
        return type(value).__qualname__
    if isinstance(value, Mapping):
        return {str(k): describe(v, depth - 1) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [describe(v, depth - 1) for v in value]
    if isinstance(value, nn.Module):
        return f"{type(value).__qualname__} {_digest(value.state_dict().values())}"
    if isinstance(value, (Tensor, np.ndarray)):
        return f"{tuple(value.shape)} {_digest([torch.as_tensor(value)])}"
    if hasattr(value, "__qualname__"):
        return str(value.__qualname__)
    name = type(value).__qualname__
    if hasattr(value, "__len__"):  # data
        return f"{name} of {len(value)}"
    options = {k: describe(v, depth - 1) for k, v in getattr(value, "__dict__", {}).items() if not k.startswith("_")}
    return {"is": name, **options}


def _digest(tensors: Any) -> str:
    total = hashlib.sha256()
    for tensor in tensors:
        total.update(str(tensor.dtype).encode() + tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()[:16]


def same(now: Mapping[str, Any], then: Mapping[str, Any], allow: Sequence[str], path: Path) -> None:
    """InputError listing where two runs' options differ, but for those that `allow` names and for more epochs."""
    mine, theirs = dict(_leaves("", now)), dict(_leaves("", then))
    found = []
    for key in sorted(mine.keys() | theirs.keys()):
        old, new = theirs.get(key), mine.get(key)
        more = key == "epochs" and isinstance(old, int) and isinstance(new, int) and new > old
        if old != new and not more and not any(key == a or key.startswith((f"{a}.", f"{a}[")) for a in allow):
            found.append(f"{key} was {old}, is {new}")
    if found:
        rest = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise InputError(path, "changed", f"{'; '.join(found[:SHOWN])}{rest}; go back to these, allow them by name, or begin in a new folder")


def _leaves(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _leaves(f"{key}.{name}" if key else str(name), item)
    elif isinstance(value, list):
        for place, item in enumerate(value):
            yield from _leaves(f"{key}[{place}]", item)
    else:
        yield key, value
