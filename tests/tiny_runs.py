# SPDX-License-Identifier: Apache-2.0
"""Runs of seconds: a recipe with every kind of step, and processes that carry one out to be killed."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tiny_training
import torch
import torch._dynamo  # an optimizer imports it, which takes seconds: once, in the parent of all processes

from featherweight import fitting, recipe, runs
from featherweight.recipe import Recipe
from featherweight.work import Work

CONFIG = {"image_size": [24, 24], "embed_dim": 24, "depth": 2, "num_heads": 3}
DIGITS = {"source": "digits", "n_train": 64, "n_val": 32, "n_test": 20, "size": 24, "glyph_min": 12, "glyph_max": 20}
PLAN: dict[str, Any] = {
    "name": "tiny",
    "seed": 3,
    "threads": 1,
    "data": DIGITS,
    "model": {"name": "vit_digits", "config": CONFIG},
    "teacher": {"name": "resnet_digits", "config": {"image_size": [24, 24], "widths": [8, 8, 8]}},
    "train": {"epochs": 1, "batch_size": 16, "lr": 1e-3},
    "steps": [
        "teacher",
        "baseline",
        "distill",
        {"tokens": {"keep": 0.6, "at": [1]}},
        {"quantize": {"calibration_images": 32}},
        {"export": {"images": 16}},
        {"measure": {"batch": [1, 2], "repeats": 6, "budget_s": 0.1}},
        {"report": {"samples": 2}},
    ],
}
TRAINING = {"steps": ["baseline", {"prune": {"mlp": 0.5, "heads": 0.0, "samples": 16}}], "train.epochs": 3}
EVERY = 2  # steps between two checkpoints
LAST = 12  # steps of each training of `training`


def plan(**changes: Any) -> Recipe:
    """The recipe with other values at dotted names."""
    raw = copy.deepcopy(PLAN)
    for name, value in changes.items():
        *way, last = name.split(".")
        node = raw
        for part in way:
            node = node.setdefault(part, {})
        node[last] = value
    return recipe.parse(raw, "tiny.yaml")


def training(**changes: Any) -> Recipe:
    """Two trainings of twelve steps, nothing measured."""
    return plan(**{**TRAINING, **changes})


class Told:
    """Every event of a run, as `progress`."""

    def __init__(self) -> None:
        self.events: list[Mapping[str, Any]] = []

    def __call__(self, event: Mapping[str, Any]) -> None:
        self.events.append(event)

    def of(self, kind: str) -> list[Mapping[str, Any]]:
        return [event for event in self.events if event["event"] == kind]

    @property
    def trained(self) -> list[tuple[str, int]]:
        """(folder of the step, step of the training) of every step that was made."""
        return [(event["step_name"], event["step"]) for event in self.of("step") if "loss" in event]


def carry_out(project: Path, told: Told | None = None, **changes: Any) -> Work:
    """`training` in this process."""
    fitting.CHECKPOINT_EVERY = EVERY
    return runs.run(training(**changes), project=project, progress=told)


def session(project: Path, pace: float) -> None:
    """What a child process does; the last step is left in project/step."""
    torch.set_num_threads(1)

    def tell(event: Mapping[str, Any]) -> None:
        if event["event"] == "step" and "loss" in event:
            (project / "step").write_text(f"{event['step_name']} {event['step']}")
            time.sleep(pace)

    fitting.CHECKPOINT_EVERY = EVERY
    runs.run(training(), project=project, progress=tell)


def start(project: Path, *, pace: float = 0.05) -> Any:
    """A process that does `session`."""
    process = tiny_training.prepare("tiny_runs").Process(target=session, args=(project, pace))
    process.start()
    return process


def kill_at(project: Path, where: str) -> None:
    """Carry on in another process and kill it when it has made this step, such as "00-baseline 7"."""
    (project / "step").unlink(missing_ok=True)
    process = start(project)
    end = time.monotonic() + 240
    while not (project / "step").exists() or (project / "step").read_text() != where:
        if time.monotonic() > end or not process.is_alive():
            raise TimeoutError(f"never came to {where}")
        time.sleep(0.002)
    process.kill()
    process.join()


def weights(project: Path, name: str = "tiny") -> bytes:
    return (project / name / "model" / "model.safetensors").read_bytes()
