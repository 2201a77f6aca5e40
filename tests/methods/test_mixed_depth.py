# SPDX-License-Identifier: Apache-2.0
"""Another number of passes in each step: which, in every process and after a restart, and what is left afterwards."""

from __future__ import annotations

import copy
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import tiny_training as tiny
import torch
from families import FAMILIES, SRET, Images
from torch import Tensor, nn

from featherweight import artifact, checkpoint, optim
from featherweight.errors import OptionError
from featherweight.methods import mixed_depth, recursion
from featherweight.methods.deit import TokenDistill
from featherweight.methods.mixed_depth import MixedDepth
from featherweight.recurrence import Looped, Recurrent
from featherweight.surgery import all_of
from featherweight.train import Method, fit


class Watch(Method):
    """Notes how often blocks ran in each step, and that every parameter got a gradient."""

    def __init__(self, passes: list[int], missing: list[str]) -> None:
        self._passes, self._missing = passes, missing

    def loss(self, terms: dict[str, Tensor], run: Any) -> dict[str, Tensor]:
        self._passes.append(max(module.rounds() for module in all_of(run.model, Recurrent).values()))
        return terms

    def after_step(self, model: nn.Module, progress: float) -> None:
        self._missing += [name for name, p in model.named_parameters() if p.grad is None]


def looped(name: str = "ours") -> nn.Module:
    return recursion.share(FAMILIES[name].make(), loops=3, nll_ratio=1.0, coefficients=True)


def trained(model: nn.Module, task: Any, *methods: Method, **options: Any) -> nn.Module:
    return fit(model, Images(steps=4), task, methods=methods, **{"epochs": 2, **options})


def test_the_drawn_depth_is_a_function_of_seed_and_progress() -> None:
    method = MixedDepth(seed=3)
    found = [method.drawn(3, step / 300) for step in range(300)]
    assert [method.drawn(3, step / 300) for step in range(300)] == found
    assert all(70 < found.count(depth) < 130 for depth in (1, 2, 3))
    assert [MixedDepth(seed=4).drawn(3, step / 300) for step in range(300)] != found
    assert {MixedDepth(least=2).drawn(3, step / 50) for step in range(50)} == {2, 3}
    assert {MixedDepth(teach=1.0).drawn(3, step / 50) for step in range(50)} == {1, 2}  # 3 would teach itself


@pytest.mark.parametrize("teach", [0.0, 0.5])
@pytest.mark.parametrize("kind", ["sret", *FAMILIES])
def test_each_step_has_its_depth_and_every_parameter_a_gradient(kind: str, teach: float) -> None:
    family = SRET if kind == "sret" else FAMILIES[kind]
    model = SRET.make() if kind == "sret" else looped(kind)
    passes, missing = list[int](), list[str]()
    method = MixedDepth(teach=teach, seed=1)
    rows: list[dict[str, Any]] = []
    new = trained(model, family.task, method, Watch(passes, missing), log=rows.append)
    assert {name for name in missing if not name.startswith("aux_head")} == set()  # which a task of labels leaves out
    drawn = [method.drawn(3, step / 8) for step in range(8)]
    assert len(set(drawn)) > 1
    assert passes == (drawn if not teach else [3] * 8)
    assert ("mixed_depth" in rows[0]["terms"]) == bool(teach)
    assert list(new.state_dict()) == list(model.state_dict())  # no scaffold
    assert all(module.running is None for module in all_of(new, Recurrent).values())
    assert all(module.running is None for module in all_of(model, Recurrent).values())
    assert torch.equal(family.logits(new), family.logits(copy.deepcopy(new)))


def test_validation_sees_the_full_depth() -> None:
    seen: list[int] = []
    model = looped()
    look = {"validate": lambda m: {"rounds": seen.append(next(iter(all_of(m, Looped).values())).rounds()) or 0.0}}
    trained(model, FAMILIES["ours"].task, MixedDepth(seed=1), epochs=4, **look)
    assert seen == [3] * 4


class Stopped(Exception):
    pass


@pytest.mark.parametrize("teach", [0.0, 0.5])
def test_a_stopped_run_goes_on_to_the_same_bits(teach: float, tmp_path: Path) -> None:
    def stop(row: dict[str, Any]) -> None:
        if row["step"] == 5:
            raise Stopped

    run: dict[str, Any] = {"checkpoint": tmp_path, "checkpoint_every": 3, "ema": 0.9}
    whole = trained(SRET.make(), SRET.task, MixedDepth(teach=teach, seed=1), ema=0.9)
    with pytest.raises(Stopped):
        trained(SRET.make(), SRET.task, MixedDepth(teach=teach, seed=1), log=stop, **run)
    again = trained(SRET.make(), SRET.task, MixedDepth(teach=teach, seed=1), **run)
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), again.state_dict().values(), strict=True))


def test_what_others_put_aside_is_that_of_the_full_depth() -> None:
    """In whichever order the two methods come."""
    family, model = FAMILIES["ours"], looped()
    models = []
    for first in (True, False):
        methods = [MixedDepth(teach=0.5), TokenDistill(family.make("teacher"))]
        ordered = methods if first else methods[::-1]
        models.append(fit(model, Images(steps=1), family.task, methods=ordered, optimizer=optim.sgd(0.1)))
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["sret", *FAMILIES])
def test_a_cut_model_is_the_one_that_runs_fewer_passes(kind: str, tmp_path: Path) -> None:
    family = SRET if kind == "sret" else FAMILIES[kind]
    model = SRET.make() if kind == "sret" else looped(kind)
    for loops in (1, 2):
        shallow = mixed_depth.cut(model, loops=loops)
        training = copy.deepcopy(model).train()
        for module in training.modules():  # all but what runs several times is as in evaluation
            module.training = isinstance(module, Recurrent)
        with mixed_depth.at_depth(training, loops):
            torch.testing.assert_close(family.logits(shallow), family.logits(training), atol=1e-6, rtol=0)
        assert len(shallow.state_dict()) < len(model.state_dict())
        base = family.base() if kind != "sret" else None
        loaded = artifact.load(artifact.save(shallow, tmp_path / str(loops)), base=base)
        assert torch.equal(family.logits(loaded), family.logits(shallow))
    assert mixed_depth.plan(model, loops=3) == []
    assert mixed_depth.cut(mixed_depth.cut(model, loops=2), loops=1).state_dict().keys() == (
        mixed_depth.cut(model, loops=1).state_dict().keys()
    )


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: MixedDepth(least=0), "least: 0 is not a number of passes"),
        (lambda: MixedDepth(teach=-1.0), "teach: -1.0 is not a weight"),
        (lambda: MixedDepth(temperature=0.0), "temperature: 0.0 is not above 0"),
        (lambda: MixedDepth(seed=-1), "seed: -1 is not from 0"),
        (lambda: MixedDepth(least=3).prepare(looped()), "least: 3 of 3 passes leave nothing to mix"),
        (lambda: MixedDepth().prepare(mixed_depth.cut(looped(), loops=1)), "leave nothing to mix"),
        (lambda: mixed_depth.cut(looped(), loops=4), "loops: 4 is not from 1 to 3"),
    ],
)
def test_what_cannot_be_is_refused(make: Any, says: str) -> None:
    with pytest.raises(OptionError, match=says):
        make()


def test_a_model_that_repeats_nothing_is_refused() -> None:
    with pytest.raises(LookupError, match="take an SReT, or recursion first"):
        MixedDepth().prepare(FAMILIES["ours"].make())


def one_of_two(folder: Path, variables: Mapping[str, str]) -> None:
    """What each of two processes runs."""
    os.environ.update(variables)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    shared = recursion.share(FAMILIES["ours"].make(), loops=3, nll_ratio=1.0, coefficients=True)
    for teach, parallel in ((0.0, "ddp"), (0.5, "ddp"), (0.0, "fsdp"), (0.5, "fsdp")):
        for name, model in (("sret", SRET.make()), ("shared", shared)):
            new = trained(model, SRET.task, MixedDepth(teach=teach, seed=1), parallel=parallel)
            place = folder / f"{name}-{teach}-{parallel}-{variables['RANK']}"
            checkpoint.write(place, new.state_dict(), {"counters": {}, "facts": {}})


@pytest.mark.slow
def test_two_processes_train_the_same_depths(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    context, processes = tiny.prepare(), []
    for rank in ("0", "1"):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        processes.append(context.Process(target=one_of_two, args=(tmp_path, place)))
        processes[-1].start()
    for process in processes:
        process.join(200)
        assert process.exitcode == 0
    for name in ("sret", "shared"):
        for teach in (0.0, 0.5):
            places = [tmp_path / f"{name}-{teach}-{how}-{rank}" for how in ("ddp", "fsdp") for rank in "01"]
            first, *others = [checkpoint.unpack(checkpoint.door.read_sealed(place)[0]) for place in places]
            for number, other in enumerate(others):
                for key, tensor in first.items():
                    torch.testing.assert_close(other[key], tensor, atol=2e-3 if number else 0, rtol=0)
