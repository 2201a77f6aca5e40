# SPDX-License-Identifier: Apache-2.0
"""The steps in which models teach each other or are averaged: functions Work -> Work like those of `steps`."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from torch import nn

from .beginning import start
from .binding import Filled, Ratio, Within
from .composition import FLOATS, MODEL, NORMS, TRAINS, Effect, composes, restarting
from .errors import OptionError
from .fitting import trained
from .methods import soup as soups
from .methods.mean_teacher import MeanTeacher
from .methods.mutual import Mutual
from .methods.one import ONE, Deploy
from .methods.swa import SWA, renew_norms
from .recipe import Count, Epochs, Rate
from .train import Method
from .work import Work, current, finished_stage

if TYPE_CHECKING:
    from .data.text import TextBatches
    from .explain import Outline

Weight = Annotated[float, Within(0.0, 1e6)]
Temperature = Annotated[float, Within(0.0, 1000.0, open_low=True)]
Several = Annotated[int, Within(2, 64)]


def _branches(outline: Outline, options: Mapping[str, Any]) -> Outline:
    """The structure of one branch, or of the ensemble."""
    if options["deploy"] != "ensemble":
        return outline
    method = ONE(tuple(options["at"]), options["count"], deploy="ensemble", features=options["features"])
    return outline.changed(method.prepare)


@composes(restarting(TRAINS), outline=_branches)
def one(
    work: Work,
    *,
    at: Annotated[Sequence[str], Filled()],
    count: Several = 3,
    weight: Weight = 1.0,
    temperature: Temperature = 3.0,
    ramp: Ratio = 0.3,
    deploy: Deploy = "first",
    features: Count | None = None,
    spread: Annotated[float, Within(0.0, 10.0, open_low=True)] | None = None,
    restart: bool = True,
    epochs: Epochs | None = None,
    images: Count | None = None,
    lr: Rate | None = None,
) -> Work:
    """Several copies of the last part, whose gated ensemble teaches them all; one of them is left (ONE)."""
    options: dict[str, Any] = {"temperature": temperature, "ramp": ramp, "deploy": deploy, "features": features}
    method = ONE(tuple(at), count, weight, spread=spread, **options)
    return taught_by(work, method, f"ONE ({count} branches)", restart, epochs, images, lr)


@composes(restarting(TRAINS))
def mutual(
    work: Work,
    *,
    peers: Annotated[int, Within(1, 16)] = 1,
    weight: Weight = 1.0,
    temperature: Temperature = 1.0,
    restart: bool = True,
    epochs: Epochs | None = None,
    images: Count | None = None,
    lr: Rate | None = None,
) -> Work:
    """The model beside peers of the same kind and other seeds, each of which learns from the others' answers."""
    spec = work.recipe.model
    if spec is None:
        raise OptionError("model", "the recipe names none, of which peers could be made")
    others = tuple(start(spec, _seeded(work, number)) for number in range(1, peers + 1))
    method = Mutual(others, weight, temperature)
    return taught_by(work, method, f"mutual learning ({peers + 1})", restart, epochs, images, lr)


@composes(restarting(TRAINS))
def mean_teacher(
    work: Work,
    *,
    weight: Weight = 1.0,
    decay: Annotated[float, Within(0.0, 1.0, open_high=True)] = 0.999,
    temperature: Temperature = 1.0,
    ramp: Ratio = 0.3,
    deploy: Literal["student", "teacher"] = "student",
    restart: bool = True,
    epochs: Epochs | None = None,
    images: Count | None = None,
    lr: Rate | None = None,
) -> Work:
    """The model taught by its own moving average."""
    method = MeanTeacher(weight, decay, temperature, ramp, deploy=deploy)
    return taught_by(work, method, "self-distillation", restart, epochs, images, lr)


@composes(TRAINS)
def swa(
    work: Work,
    *,
    start: Ratio = 0.0,
    every: Ratio = 0.025,
    samples: Count = 1024,
    epochs: Epochs | None = None,
    images: Count | None = None,
    lr: Rate | None = None,
) -> Work:
    """Train on at a constant rate and take the mean of the weights; its batch norms then see `samples` pictures."""
    seen = list(work.batches("train", limit=samples, augment=False).epoch(0))
    method = SWA(start, every, seen, work.task)
    plan = dataclasses.replace(work.recipe, train=dataclasses.replace(work.recipe.train, schedule="constant"))
    before, constant = current(work), dataclasses.replace(work, recipe=plan)
    model = work.once("model", lambda: trained(constant, before, (*work.methods, method), epochs, images, lr))
    return finished_stage(work, "SWA", model)


@composes(Effect(needs={MODEL: "", FLOATS: "they are averaged"}, gives=(NORMS,)))
def soup(
    work: Work,
    *,
    count: Several = 3,
    how: Literal["greedy", "uniform"] = "greedy",
    rates: Sequence[Rate] = (),
    samples: Count = 1024,
    epochs: Epochs | None = None,
    images: Count | None = None,
    lr: Rate | None = None,
) -> Work:
    """Fine-tune the model several times, with other seeds and `rates` in turn, and take the mean of the weights.

    greedy: only of those that do not lower the accuracy on the validation part.
    """
    before = current(work)
    seen = list(work.batches("train", limit=samples, augment=False).epoch(0))

    def member(number: int) -> nn.Module:
        mine, rate = _seeded(work, number), rates[number % len(rates)] if rates else lr
        return work.once(f"member-{number}", lambda: trained(mine, before, work.methods, epochs, images, rate))

    def mended(model: nn.Module) -> nn.Module:
        renew_norms(model, seen, work.task)
        return model

    def make() -> nn.Module:
        models = [member(number) for number in range(count)]
        if how == "uniform":
            return mended(soups.uniform(models))
        found = soups.greedy(models, lambda m: _top1(work, m), mend=mended)
        work.tell({"event": "note", "text": f"{work.step}: in the soup are {list(found.members)} of {count}"})
        return found.model

    return finished_stage(work, f"soup ({how}, {count})", work.once("model", make))


def taught_by(
    work: Work,
    method: Method,
    title: str,
    restart: bool,
    epochs: int | None,
    images: int | None,
    lr: float | None,
    *,
    stays: bool = False,
) -> Work:
    """The model trained with the method, which stays for later trainings or not; what does not fit is said now."""
    begin = begun(work, method, restart)
    return learned(work, begin, method, title, epochs, images, lr, stays=stays)


def begun(work: Work, method: Method, restart: bool) -> nn.Module:
    """The model that a method's training begins from, which it fits."""
    begin = work.origin if restart and work.origin is not None else current(work)
    method.prepare(copy.deepcopy(begin))
    return begin


def learned(
    work: Work,
    begin: nn.Module,
    method: Method,
    title: str,
    epochs: int | None,
    images: int | None,
    lr: float | None,
    *,
    stays: bool = False,
    texts: TextBatches | None = None,
) -> Work:
    """This model trained with the method. texts: as of `fitting.trained`."""
    methods = (*work.methods, method)
    model = work.once("model", lambda: trained(work, begin, methods, epochs, images, lr, texts=texts))
    return finished_stage(dataclasses.replace(work, methods=methods) if stays else work, title, model)


def _seeded(work: Work, number: int) -> Work:
    """The work with another seed."""
    return dataclasses.replace(work, recipe=dataclasses.replace(work.recipe, seed=work.recipe.seed + number))


def _top1(work: Work, model: nn.Module) -> float:
    return float(work.task.evaluate(model, work.batches("val").epoch(0))["top1"])
