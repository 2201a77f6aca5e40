# SPDX-License-Identifier: Apache-2.0
"""Everything that changes the next training step, kept so that a killed run goes on to the same bits.

A checkpoint is one sealed safetensors file: weights, buffers, moving average, optimizer and the random state of every
process as tensors; counters and the run's options as JSON. It is published under the name of its step, then `latest`
points to it, then old ones go. A run is taken up from the newest file that verifies.

Exact for one kind of machine with the same versions and number of threads, on one or two processes; with more, the sums
over processes may be taken in another order. What a model remembers outside its state_dict is not kept.
"""

from __future__ import annotations

import contextlib
import copy
import json
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from featherweight import files, optim, randomness
from featherweight.distributed import Team
from featherweight.doors import checkpoint as door
from featherweight.doors import json as strict_json
from featherweight.errors import Diverged, InputError, OptionError, StorageError, shown
from featherweight.options import differences
from featherweight.packing import pack, tensors_of, unpack
from featherweight.sharding import alike, fill, whole

__all__ = ["COUNTERS", "State", "Store", "checkpoints", "pack", "read", "tensors_of", "unpack", "write"]

FORMAT = 1
KEEP = 2  # checkpoints in a folder
NAME = "step-{:08d}.safetensors"
# fmt: off
COUNTERS: dict[str, type | tuple[type, ...]] = {
    "step": int, "updates": int, "epoch": int, "position": int, "rows": int, "sums": dict,
    "best": (float, type(None)),
}
# fmt: on


class State:
    """Model, optimizer, moving average and counters of one run."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        trainable: frozenset[str],
        averaged: bool,
        outline: nn.Module | None = None,
    ) -> None:
        self.model, self.optimizer = model, optimizer
        self.outline = outline  # a whole model of this structure, where `model` is split over processes
        self.trainable = trainable  # names of the parameters that could be trained before the optimizer froze some
        self.average = {name: t.detach().clone() for name, t in tensors_of(model).items()} if averaged else {}
        self.step = self.epoch = 0
        self.updates = 0  # changes of the weights
        self.position = 0  # batches of this epoch that are done
        self.rows = 0  # what the log was told
        self.sums: dict[str, float] = {}  # of each loss term over this epoch
        self.best: float | None = None

    @torch.no_grad()
    def advance(
        self, values: Mapping[str, float], *, changed: bool = True, ema: Callable[[int], float] | None = None
    ) -> None:
        """Count a step that was made, with the values of its loss terms; changed: the weights are others now."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.updates += changed
        if ema is not None and changed:
            decay = ema(self.updates)
            for name, tensor in tensors_of(self.model).items():
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
        """Remember the best of a validation's first figure; what is not finite is never better."""
        value = next(iter(metrics.values()), None)
        if isinstance(value, (int, float)) and math.isfinite(value):
            self.best = float(value) if self.best is None else max(self.best, float(value))

    @torch.no_grad()
    def deployable(self) -> nn.Module:
        """A copy with the weights to use: the moving average, if there is one. What the optimizer froze is free.

        Where the model is split, every process has to ask.
        """
        model = copy.deepcopy(self.outline or self.model)
        own = tensors_of(model)
        for name, tensor in (self.average or (tensors_of(self.model) if self.outline else {})).items():
            own[name].copy_(whole(tensor))
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in self.trainable)
        return model

    def check_finite(self) -> None:
        """Diverged, naming the tensors, where something is not finite."""
        bad = [n for n, t in self.tensors().items() if t.is_floating_point() and not bool(torch.isfinite(t).all())]
        if bad:
            more = f" and {len(bad) - 4} more" if len(bad) > 4 else ""
            raise Diverged(f"step {self.step}: not finite: {', '.join(bad[:4])}{more}; nothing of this step is saved")

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name: model/…, ema/…, optimizer/PARAMETER/…, and gradient/… of steps that add up."""
        found = {f"model/{name}": tensor for name, tensor in tensors_of(self.model).items()}
        found |= {f"ema/{name}": tensor for name, tensor in self.average.items()}
        for name, parameter, memory in optim.memories(self.model, self.optimizer):
            if parameter.grad is not None:
                found[f"gradient/{name}"] = parameter.grad
            for key, value in memory.items():
                if isinstance(value, Tensor):
                    found[f"optimizer/{name}/{key}"] = value
                elif value is not None:
                    raise TypeError(f"the optimizer keeps {key}, a {type(value).__name__}; only tensors can be kept")
        return {name: whole(tensor.detach()) for name, tensor in found.items()}

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor], counters: Mapping[str, Any], path: Path) -> None:
        """Take over what `tensors` gave, in place; InputError where it does not fit this model."""
        own = {f"model/{name}": tensor for name, tensor in tensors_of(self.model).items()}
        own |= {f"ema/{name}": tensor for name, tensor in self.average.items()}
        weights = {name: tensor for name, tensor in tensors.items() if name.startswith(("model/", "ema/"))}
        door.check(pack(weights), own, name=path)
        for name, tensor in own.items():
            fill(tensor, weights[name])
        trained = {name: (parameter, memory) for name, parameter, memory in optim.memories(self.model, self.optimizer)}
        for full, value in tensors.items():
            if full.startswith("gradient/"):
                waiting = trained.get(full.removeprefix("gradient/"))
                if waiting is not None:
                    waiting[0].grad = alike(value, waiting[0])
            name, _, key = full.removeprefix("optimizer/").rpartition("/")
            if not full.startswith("optimizer/"):
                continue
            if name not in trained:
                raise InputError(path, "unexpected_key", f"{full}: this parameter is not trained here")
            parameter, memory = trained[name]
            moment = key != "step" and value.shape == parameter.shape  # lies in memory as its parameter does
            memory[key] = alike(value, parameter) if moment else value
        for name in COUNTERS:
            setattr(self, name, counters[name])


@dataclass
class Store:
    """The checkpoints of one run in a folder, which all processes see; without a folder nothing is kept."""

    folder: Path | None
    facts: Mapping[str, Any]  # the run's options
    team: Team
    every: int | None  # steps; None: once per epoch
    allow: tuple[str, ...]  # options that may differ from those of the checkpoint
    written: int = -1  # the step of the last checkpoint

    @classmethod
    @contextlib.contextmanager
    def open(
        cls,
        folder: str | os.PathLike[str] | None,
        facts: Mapping[str, Any],
        team: Team,
        *,
        every: int | None,
        allow: Sequence[str],
    ) -> Iterator[Store]:
        """Hold the folder, as only one run at a time can."""
        if every is not None and (every < 1 or folder is None):
            raise OptionError("checkpoint_every", "is a number of steps, 1 or more, and needs checkpoint=FOLDER")
        with contextlib.ExitStack() as held:
            if folder is not None and team.leads:
                held.enter_context(files.lock(folder))
                files.clean_stale(folder)
            yield cls(None if folder is None else Path(folder), facts, team, every, tuple(allow))

    def keep(self, state: State, *, now: bool) -> None:
        """Write a checkpoint if one is due: every `every` steps or each epoch, at the end, or `now`."""
        ended = state.position == 0
        due = now or (ended and state.epoch >= self.facts["epochs"])
        due = due or (ended if self.every is None else state.step % self.every == 0)
        if self.folder is None or not due or self.written == state.step:
            return
        state.check_finite()
        tensors = state.tensors()
        for name, mine in randomness.state().items():
            for rank, theirs in enumerate(self.team.gather(mine)):
                tensors[f"random/{rank}/{name}"] = theirs
        failure: StorageError | None = None
        if self.team.leads:
            try:
                self.publish(self.folder, state, tensors)
            except StorageError as error:
                failure = error
        if self.team.any(failure is not None):  # here all wait for the leading process
            raise failure or StorageError(f"{shown(self.folder)}: the leading process could not write its checkpoint")
        self.written = state.step

    def publish(self, folder: Path, state: State, tensors: Mapping[str, Tensor]) -> None:
        """Write the checkpoint of this step, point to it, remove old ones: at every moment one is whole."""
        path = folder / NAME.format(state.step)
        counters = {name: getattr(state, name) for name in COUNTERS}
        write(path, tensors, {"counters": counters, "facts": dict(self.facts)})
        files.point(folder / "latest", path)
        _remove_old(folder, state.step)

    def restore(self, state: State) -> None:
        """Take up the newest checkpoint that verifies, if there is one. A damaged one is named in a warning."""
        if self.folder is None:
            return
        found = _newest(self.folder, warn=self.team.leads)
        if found is not None:
            path, tensors, note = found
            if changes := differences(note["facts"], self.facts, allow=self.allow):
                text = f"{changes}; go back to that, allow it by name, or begin in a new folder"
                raise InputError(path, "changed", text)
            state.load(tensors, note["counters"], path)
            prefix = f"random/{self.team.rank}/"
            mine = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
            randomness.restore(mine)
            self.written = state.step
        if self.team.differs(state.step):
            raise InputError(self.folder, "missing", "not all processes see the same checkpoints; share the folder")


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a folder, newest first."""
    return sorted((path for path in folder.glob("step-*.safetensors") if _step(path) >= 0), key=_step, reverse=True)


def _step(path: Path) -> int:
    digits = path.name.removeprefix("step-").removesuffix(".safetensors")
    return int(digits) if digits.isascii() and digits.isdigit() else -1


def _newest(folder: Path, *, warn: bool) -> tuple[Path, dict[str, Tensor], dict[str, Any]] | None:
    """The newest checkpoint that verifies, or None where there is no checkpoint at all."""
    damaged: InputError | None = None
    for path in checkpoints(folder):
        try:
            found = path, *read(path)
        except InputError as error:
            damaged = damaged or error
            continue
        if damaged is not None and warn:
            warnings.warn(f"{damaged}; going on from {path.name}", stacklevel=5)
        return found
    if damaged is not None:
        raise damaged
    return None


def _remove_old(folder: Path, step: int) -> None:
    """Keep the newest up to `step`; later ones are of a future that was given up."""
    found = checkpoints(folder)
    kept = [path for path in found if _step(path) <= step][:KEEP]
    for path in found:
        if path not in kept:
            with contextlib.suppress(OSError):
                path.unlink()


def write(path: Path, tensors: Mapping[str, Tensor], note: Mapping[str, Any]) -> None:
    """Publish tensors and a JSON note as one sealed file."""
    text = json.dumps({"format": FORMAT, **note}, sort_keys=True, allow_nan=False)
    door.write(path, pack(tensors), {"training": text})


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the note of a file that `write` made; InputError where one bit of it is another."""
    stored, metadata = door.read_sealed(path)
    note = strict_json.parse(metadata.get("training", "{}"), path)
    counters = note.get("counters", {}) if isinstance(note, dict) else {}
    if not counters or note.get("format") != FORMAT or not isinstance(note.get("facts"), dict):
        raise InputError(path, "version", f"is not a training state of format {FORMAT}")
    counters.setdefault("updates", counters.get("step"))  # of a file from before gradients could add up
    for name, kind in COUNTERS.items():
        if not isinstance(counters.get(name), kind):
            raise InputError(path, "bad_schema", f"the counter {name} is missing or of another kind")
    return unpack(stored), note
