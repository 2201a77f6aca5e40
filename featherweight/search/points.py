# SPDX-License-Identifier: Apache-2.0
"""A point carried out: a run of its recipe in a folder of its own, exported, compared with the start and raced."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from featherweight import deploy, files, measure, runs
from featherweight.data import Data
from featherweight.explain import Outline
from featherweight.recipe import Recipe
from featherweight.runtime.session import open_session
from featherweight.search.forecast import Forecast
from featherweight.search.space import Point, Space, key_of
from featherweight.tasks.classification import scores
from featherweight.work import Stage, Work

Found = dict[str, Any]  # what was measured of a point: plain data
Tell = Callable[[Mapping[str, Any]], None]
AT_ONCE = 50
RACE_SECONDS = 1.5


@dataclass(frozen=True)
class Ground:
    """What every point of a search is measured against."""

    folder: Path
    data: Data
    work: Work  # at the end of the recipe's prefix
    space: Space
    outline: Outline
    forecast: Forecast
    runtime: str
    threads: int
    asked: int  # pictures on which answers are compared
    pictures: tuple[np.ndarray, ...] = ()  # of another place, that nobody has labeled; else training pictures
    given: Mapping[str, nn.Module] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)  # of the start: top1, latency_ms ...
    answers: np.ndarray | None = None  # of the start on the pictures that are compared, (N, K) probabilities

    @property
    def stage(self) -> Stage:
        """The start, as it was before anything of it was searched over."""
        return self.work.stages[-1]


def prepared(ground: Ground, work: Work) -> Sequence[Mapping[str, Tensor]]:
    """The pictures that are compared, as the stage at the end of the work sees them; no label is looked at."""
    import torch

    work = work.at(work.stages[-1])
    if not ground.pictures:
        found = work.batches("train", limit=ground.asked, augment=False, size=AT_ONCE)
        return [{"image": batch["image"], "label": batch["label"]} for batch in found.epoch(0)]
    batches = []
    for begin in range(0, len(ground.pictures), AT_ONCE):
        part = np.stack([work.preprocess(picture) for picture in ground.pictures[begin : begin + AT_ONCE]])
        batches.append({"image": torch.from_numpy(part), "label": torch.zeros(len(part), dtype=torch.int64)})
    return batches


def probabilities(path: Path, batches: Sequence[Mapping[str, Tensor]], runtime: str, threads: int) -> np.ndarray:
    """What a file answers, (N, K) summing to 1."""
    return shares(deploy.answers(open_session(path, backend=runtime, threads=threads), iter(batches))[0])


def shares(logits: np.ndarray) -> np.ndarray:
    """The softmax of (N, K)."""
    exp = np.exp(logits - logits.max(1, keepdims=True))
    return exp / exp.sum(1, keepdims=True)


def agreement(one: np.ndarray, other: np.ndarray) -> float:
    """The mean share of probability that both give to the same classes: 1 less their total variation distance."""
    return float(np.minimum(one, other).sum(1).mean())


def counted(ground: Ground, point: Point) -> Found:
    """What can be told before anything is trained: params, macs, bytes of the weights, the latency forecast.

    Raises what the steps raise where this model cannot have the point.
    """
    import torch

    from featherweight.search.forecast import amounts

    outline = ground.space.outline(ground.outline, point)
    dtype = "int8" if point.get("bits") == "int8" else "float32"
    has = amounts(outline.model, torch.zeros(1, *outline.image))
    raw, kind = (
        ground.forecast.raw_ms(has, dtype),
        "fewer tokens" if point.get("tokens kept", 1.0) < 1 else "all tokens",
    )
    return {
        "params": outline.params,
        "macs": int(has["conv"] + has["product"]),
        "size_bytes": outline.size_bytes(),
        "latency_ms": raw * ground.forecast.correction(kind),
        "raw_ms": raw,  # of the forecast, before it was corrected by what points took
        "kind": kind,
    }


def measured(ground: Ground, point: Point, images: int, tell: Tell) -> Found:
    """The point trained on so many pictures, exported and measured; a folder that is there already is gone on in."""
    name = f"{key_of(point)}-{images}"
    found = carried_out(ground, ground.space.recipe(point, images, name), tell)
    return {"point": dict(point), "images": images, "says": ground.space.says(point), **found}


def carried_out(ground: Ground, plan: Recipe, tell: Tell) -> Found:
    """A recipe run in the search's folder, and its last model measured."""
    began = time.monotonic()
    project = ground.folder / "points"
    _seeded(ground, project / plan.name)
    known: dict[str, Any] = {"source": ground.data, "given": ground.given, "progress": tell}
    if ground.given:
        known["preprocess"] = ground.work.preprocess
    work = runs.run(plan, project=project, **known)
    trained = time.monotonic() - began
    stage = [stage for stage in work.stages if stage.kept][-1]
    path = deploy.exported(work, stage)
    found = numbers(ground, work, stage, path)
    spent = {"training_s": round(trained, 2), "seconds": round(time.monotonic() - began, 2)}
    return {**found, "folder": str(work.folder), **spent}


def numbers(ground: Ground, work: Work, stage: Stage, path: Path) -> Found:
    """Accuracy on the validation part, agreement with the start, latency beside the start's, bytes and counts.

    expected: the mean probability of the right class, which tells models apart that are right equally often. judged:
    the mean of accuracy, that, and agreement; each of the three has errors of its own.
    """
    session = open_session(path, backend=ground.runtime, threads=ground.threads)
    logits, labels = deploy.answers(session, work.at(stage).batches("val", size=AT_ONCE).epoch(0))
    told = scores(logits, labels)
    batches = prepared(ground, work)
    said = probabilities(path, batches, ground.runtime, ground.threads)
    example = deploy.example(work, stage)
    agrees = 1.0 if ground.answers is None else agreement(said, ground.answers)
    expected = float(shares(logits)[np.arange(len(labels)), labels].mean())
    found: Found = {
        "top1": float(told["top1"]),
        "n": int(told["n"]),
        "agreement": agrees,
        "expected": expected,
        "judged": (float(told["top1"]) + expected + agrees) / 3,
        "params": measure.parameters(stage.model),
        "macs": measure.macs(stage.model, example),
        "size_bytes": measure.size(path),
        "file": str(path),
        "model": str(stage.place / "model"),
        "dtype": session.dtype,
    }
    return {**found, **_timed(ground, path, example.numpy())}


def _timed(ground: Ground, path: Path, images: np.ndarray) -> Found:
    """Raced against the start's file, one race at a time on this machine.

    The latency is the start's, taken when nothing else ran, over the ratio, so that neighbors do not make a difference.
    """
    known: dict[str, Any] = {"batch": 1, "backend": ground.runtime, "threads": ground.threads}
    mine = measure.runnable(path, images=images, **known)
    if not ground.about:
        return {"latency_ms": measure.race({"start": mine}, budget_s=RACE_SECONDS, repeats=200)["start"].median_ms}
    before = deploy.example(ground.work, ground.stage).numpy()
    first = measure.runnable(Path(ground.about["file"]), images=before, **known)
    with alone(ground.folder):
        raced = measure.race({"start": first, "point": mine}, budget_s=RACE_SECONDS, repeats=200)["point"]
    ratio = raced.ratio or 1.0
    interval = raced.ratio_interval or (1.0, 1.0)
    return {
        "latency_ms": round(float(ground.about["latency_ms"]) / ratio, 5),
        "ratio": ratio,
        "ratio_interval": list(interval),
    }


@contextlib.contextmanager
def alone(folder: Path) -> Any:
    """Wait until no other worker of this folder is racing, and keep them waiting."""
    with (folder / "race.lock").open("w") as stream:
        if files.LOCKS:
            import fcntl

            fcntl.flock(stream.fileno(), fcntl.LOCK_EX)
        yield


def _seeded(ground: Ground, folder: Path) -> None:
    """The start's steps, in the folder of a point: they are found there as if the point had made them."""
    target = folder / "steps"
    if target.exists():
        return
    target.mkdir(parents=True)
    (folder / "config.yaml").touch()  # so that the folder is known for a run's
    for step in sorted((ground.work.folder / "steps").iterdir()):
        shutil.copytree(step, target / step.name, copy_function=_linked)


def _linked(source: str, target: str) -> None:
    """A second name for the file where the disk has such, else a copy: nothing in a finished step is written again."""
    try:
        Path(target).hardlink_to(source)
    except OSError:
        shutil.copy2(source, target)
