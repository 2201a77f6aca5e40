# SPDX-License-Identifier: Apache-2.0
"""What a step's result depends on, as one digest: equal keys, equal result; another key, the step is done anew."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import torch

from . import __version__, recipe
from .models import zoo
from .options import describe
from .recipe import ModelSpec, Step
from .work import Work

WITHOUT_EFFECT = ("workers", "timeout")  # of `train`: the same pictures and weights whatever they are
# fields of a recipe that every step depends on
OF_ALL = ("task", "model", "teacher", "data", "seed", "train", "detection", "text", "budget")


def key_of(work: Work, step: Step) -> str:
    """A digest of the step, all before it, the data, the weights that were brought along, and the versions."""
    plan = work.recipe
    plain = recipe.plain(dataclasses.replace(plan, steps=(step,)))
    plain["train"] = {name: value for name, value in plain["train"].items() if name not in WITHOUT_EFFECT}
    facts = {
        "before": work.key,
        "step": step.name,
        "options": plain["steps"],
        "plan": {name: value for name, value in plain.items() if name in OF_ALL},
        "data": work.data.fingerprint,
        "preprocess": None if work.preprocess is None else work.preprocess.to_dict(),
        "given": {name: describe(module) for name, module in work.given.items()},
        "weights": [digest(path) for spec in (plan.model, plan.teacher) if spec for path in weights_of(spec)],
        "threads": torch.get_num_threads(),
        "versions": [__version__, str(torch.__version__)],
    }
    if file := step.options.get("general"):  # of texts
        facts["general"] = digest(Path(file))
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def weights_of(spec: ModelSpec) -> list[Path]:
    """The weights files that a spec names."""
    if spec.weights == "shipped":
        return [zoo.shipped_weights(spec.name)]
    path = Path(spec.weights or spec.name)
    found = [path / "model.safetensors" if path.is_dir() else path]
    return [path for path in found if path.is_file()]


def digest(path: Path) -> str:
    """sha256 of a file."""
    total = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            total.update(piece)
    return total.hexdigest()
