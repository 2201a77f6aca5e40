# SPDX-License-Identifier: Apache-2.0
"""The training loop: what it leaves alone, in which order it calls, what it averages, and where it stops."""

from __future__ import annotations

import copy
import math
import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_training as tiny
import torch
from torch import Tensor, nn

from featherweight import checkpoint, optim, train
from featherweight.errors import Diverged, OptionError
from featherweight.journal import Journal
from featherweight.tasks.classification import Classification

TASK = Classification(4)


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_the_model_given_is_untouched_and_the_result_is_in_eval_mode() -> None:
    model = tiny.network()
    before = copy.deepcopy(model)
    new = train.fit(model, tiny.batches(), TASK, ema=0.9)
    assert same(model, before)
    assert model.training
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not same(new, before)
    assert not any(module.training for module in new.modules())
    assert all(p.grad is None for p in new.parameters())


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not() -> None:
    first, second = (train.fit(tiny.network(), tiny.batches(), TASK, seed=3) for _ in range(2))
    assert same(first, second)
    assert not same(first, train.fit(tiny.network(), tiny.batches(), TASK, seed=4))


def test_the_callers_random_numbers_go_on_as_if_nothing_had_been_drawn() -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = draw()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    train.fit(tiny.network(), tiny.batches(8), TASK, methods=[tiny.Noisy(tiny.network(seed=1))])
    assert draw() == expected


class Told(train.Method):
    """Writes down when it is called."""

    def __init__(self, name: str, diary: list[str]) -> None:
        self.name, self.diary = name, diary

    def prepare(self, model: nn.Module) -> nn.Module:
        self.diary.append(f"prepare {self.name}")
        return nn.Sequential(model)

    def loss(self, terms: dict[str, Tensor], run: train.Pass) -> dict[str, Tensor]:
        assert run.task_terms == ("task",)
        self.diary.append(f"loss {self.name} {'/'.join(terms)} {run.progress:.1f}")
        return {**terms, self.name: run.output.square().mean()}

    def after_step(self, model: nn.Module, progress: float) -> None:
        self.diary.append(f"after {self.name} {progress:.1f}")

    def finish(self, model: nn.Module) -> nn.Module:
        self.diary.append(f"finish {self.name}")
        return model[0]


def test_methods_prepare_in_order_and_finish_in_reverse() -> None:
    diary: list[str] = []
    model = tiny.network()
    rows: list[dict[str, Any]] = []
    new = train.fit(model, tiny.batches(8), TASK, methods=[Told("a", diary), Told("b", diary)], log=rows.append)
    assert diary == [
        *("prepare a", "prepare b"),
        *("loss a task 0.0", "loss b task/a 0.0", "after a 0.5", "after b 0.5"),
        *("loss a task 0.5", "loss b task/a 0.5", "after a 1.0", "after b 1.0"),
        *("finish b", "finish a"),
    ]
    assert list(new.state_dict()) == list(model.state_dict())
    assert [row["event"] for row in rows] == ["step", "step", "epoch"]
    assert list(rows[0]["terms"]) == ["task", "a", "b"]
    assert rows[0]["loss"] == pytest.approx(sum(rows[0]["terms"].values()))
    assert rows[2]["terms"]["a"] == pytest.approx((rows[0]["terms"]["a"] + rows[1]["terms"]["a"]) / 2)
    assert {"lr", "grad_norm", "images_per_s", "progress", "epoch", "step"} <= rows[0].keys()


def test_a_step_is_plain_torch() -> None:
    """Against three lines of torch: the same weights to the bit."""
    data, model = tiny.batches(8), tiny.network(dropout=0.0)
    new = train.fit(model, data, TASK, optimizer=optim.sgd(0.1, weight_decay=0), schedule=optim.constant(), clip=None)
    plain = copy.deepcopy(model).train()
    optimizer = torch.optim.SGD(plain.parameters(), 0.1, momentum=0.9)
    for batch in data.epoch(0):
        optimizer.zero_grad()
        nn.functional.cross_entropy(plain(batch["image"]), batch["label"]).backward()
        optimizer.step()
    assert same(new, plain)


def test_another_model_is_called_in_eval_mode_without_gradient_and_left_as_it_was() -> None:
    teacher = tiny.network(seed=1)
    teacher[1].eval()
    before, modes = copy.deepcopy(teacher), [module.training for module in teacher.modules()]
    seen: list[tuple[bool, bool, bool]] = []

    class Look(train.Method):
        def loss(self, terms: dict[str, Tensor], run: train.Pass) -> dict[str, Tensor]:
            hook = teacher[3].register_forward_hook(lambda module, _args, _out: modes_seen.append(module.training))
            modes_seen: list[bool] = []
            answer = run.call(teacher)
            hook.remove()
            own = run.call(run.model)
            seen.append((modes_seen[0], answer.requires_grad, own.requires_grad and run.model.training))
            return terms

    train.fit(tiny.network(), tiny.batches(8), TASK, methods=[Look()])
    assert set(seen) == {(False, False, True)}
    assert same(teacher, before)
    assert [module.training for module in teacher.modules()] == modes


def test_the_moving_average_is_what_is_returned_and_validated() -> None:
    validated: list[nn.Module] = []
    averages: list[dict[str, Tensor]] = []
    weights: list[dict[str, Tensor]] = []

    class Watch(train.Method):
        def after_step(self, model: nn.Module, progress: float) -> None:
            weights.append({name: t.clone() for name, t in model.state_dict().items()})

    model = tiny.network()
    averages.append({name: t.clone() for name, t in model.state_dict().items()})

    def validate(now: nn.Module) -> dict[str, float]:
        validated.append(now)
        assert not now.training
        return {"top1": 0.5}

    new = train.fit(model, tiny.batches(), TASK, methods=[Watch()], ema=0.3, validate=validate)
    average = averages[0]
    for step, now in enumerate(weights):
        decay = min(0.3, (1 + step) / (10 + step))
        for name, tensor in now.items():
            average[name] = torch.lerp(average[name], tensor, 1 - decay) if tensor.is_floating_point() else tensor
    for name, tensor in new.state_dict().items():
        assert torch.equal(tensor, average[name]), name
    assert same(validated[-1], new)
    assert not torch.equal(new[0].weight, weights[-1]["0.weight"])
    assert not torch.equal(new[1].running_mean, weights[-1]["1.running_mean"])


def test_frozen_parameters_do_not_move_and_are_free_afterwards() -> None:
    model = tiny.network()
    model[5].bias.requires_grad_(False)  # by the caller: stays so
    new = train.fit(model, tiny.batches(8), TASK, optimizer=optim.adamw(freeze=["0.*"]))
    assert torch.equal(new[0].weight, model[0].weight)
    assert torch.equal(new[5].bias, model[5].bias)
    assert not torch.equal(new[5].weight, model[5].weight)
    assert new[0].weight.requires_grad
    assert not new[5].bias.requires_grad


def test_gradients_are_clipped() -> None:
    def moved(clip: float | None) -> tuple[float, float]:
        rows: list[dict[str, Any]] = []
        model = tiny.network(dropout=0.0)
        options = {"optimizer": optim.sgd(1.0, momentum=0, weight_decay=0), "schedule": optim.constant()}
        new = train.fit(model, tiny.batches(4), TASK, clip=clip, log=rows.append, **options)
        pairs = zip(new.parameters(), model.parameters(), strict=True)
        return math.sqrt(sum(float((a - b).detach().square().sum()) for a, b in pairs)), rows[0]["grad_norm"]

    distance, norm = moved(0.01)
    assert distance == pytest.approx(0.01, rel=1e-3)
    assert norm > 0.1  # the log has the norm before
    assert moved(None)[0] == pytest.approx(norm, rel=1e-3)


def test_bfloat16_trains_in_mixed_precision() -> None:
    kinds: list[torch.dtype] = []

    class Look(train.Method):
        def loss(self, terms: dict[str, Tensor], run: train.Pass) -> dict[str, Tensor]:
            kinds.append(run.output.dtype)
            return terms

    new = train.fit(tiny.network(), tiny.batches(8), TASK, methods=[Look()], precision="bfloat16")
    assert set(kinds) == {torch.bfloat16}
    assert {p.dtype for p in new.parameters()} == {torch.float32}


class Poison(train.Method):
    """Puts NaN in one place at one step."""

    def __init__(self, where: str, step: int = 3) -> None:
        self.where, self.step, self.seen = where, step, 0

    def loss(self, terms: dict[str, Tensor], run: train.Pass) -> dict[str, Tensor]:
        self.seen += 1
        bad = math.nan if self.seen == self.step else 1.0
        if self.where == "teacher":
            terms = {**terms, "distill": (run.call(tiny.network(seed=1)) * bad).square().mean()}
        if self.where == "gradient":
            hook = run.output.register_hook(lambda gradient: gradient * bad)
            assert hook is not None
        if self.where == "infinity":
            terms = {**terms, "big": run.output.mean() * (math.inf if self.seen == self.step else 0.0)}
        return terms

    def after_step(self, model: nn.Module, progress: float) -> None:
        if self.where == "variance" and self.seen == self.step:
            model[1].running_var.fill_(math.nan)
        if self.where == "weight" and self.seen == self.step:
            with torch.no_grad():
                model[5].weight[0, 0] = math.inf


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("teacher", r"step 3 \(epoch 0\): loss term distill is nan"),
        ("infinity", r"step 3 \(epoch 0\): loss term big is (inf|-inf|nan)"),
        ("gradient", r"step 3 \(epoch 0\): the gradients' norm is nan \(first in 0\.weight"),
        ("variance", r"step 3: not finite: model/1\.running_var, ema/1\.running_var"),
        ("weight", r"step 3: not finite: model/5\.weight, ema/5\.weight"),
    ],
)
def test_what_is_not_finite_stops_the_run_and_is_never_saved(tmp_path: Path, where: str, message: str) -> None:
    data = tiny.batches()
    options: dict[str, Any] = {"ema": 0.9, "checkpoint": tmp_path, "checkpoint_every": 1}
    with pytest.raises(Diverged, match=message) as error:
        train.fit(tiny.network(), data, TASK, methods=[Poison(where)], **options)
    if where in ("teacher", "gradient", "infinity"):
        index = list(data.epoch(0))[2]["index"].tolist()
        assert f"samples {index}, picture {index[0]}, picture {index[1]}" in str(error.value)
    found = checkpoint.checkpoints(tmp_path)
    assert [path.name for path in found] == ["step-00000002.safetensors", "step-00000001.safetensors"]
    for path in found:
        assert all(torch.isfinite(t).all() for t in checkpoint.read(path)[0].values() if t.is_floating_point())


def test_without_checkpoints_too() -> None:
    with pytest.raises(Diverged, match="running_var"):
        train.fit(tiny.network(), tiny.batches(8), TASK, methods=[Poison("variance", step=2)])


def test_a_picture_that_is_not_finite_names_the_task_term() -> None:
    class Broken(tiny.Batches):  # type: ignore[misc, valid-type]
        def epoch(self, epoch: int, start: int = 0) -> Any:
            for step, batch in enumerate(super().epoch(epoch, start)):
                batch["image"][0, 0, 0, 0] = math.nan if step == 1 else 0.0
                yield batch

    data = tiny.batches(12)
    data.__class__ = Broken
    with pytest.raises(Diverged, match=r"step 2 \(epoch 0\): loss term task is nan"):
        train.fit(tiny.network(), data, TASK)


def test_a_validation_that_is_not_finite_is_never_the_best(tmp_path: Path) -> None:
    figures = iter([0.4, math.nan, 0.3])
    journal = Journal(tmp_path / "log.jsonl")
    train.fit(tiny.network(), tiny.batches(8), TASK, epochs=3, validate=lambda m: {"top1": next(figures)}, log=journal)
    assert [row["best"] for row in journal.rows() if row["event"] == "epoch"] == [0.4, 0.4, 0.4]
    assert [row["validation"]["top1"] for row in journal.rows() if row["event"] == "epoch"] == [0.4, None, 0.3]


class Narrow(nn.Module):
    """A batch norm that sees one value per channel and sample."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.head = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(x.mean((2, 3))))


@pytest.mark.parametrize(("count", "batch_size"), [(5, 4), (1, 4), (3, 1)])
def test_a_batch_of_one_sample_is_no_end(count: int, batch_size: int) -> None:
    with pytest.warns(UserWarning, match="a batch of one sample") as said:
        new = train.fit(Narrow(), tiny.batches(count, batch_size=batch_size), TASK)
    assert len(said) >= 1
    assert all(torch.isfinite(t).all() for t in new.state_dict().values())


def test_a_batch_of_one_that_torch_can_take_is_left_alone() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        new = train.fit(tiny.network(), tiny.batches(1), TASK)
    assert new[1].num_batches_tracked == 1


@pytest.mark.parametrize(
    ("where", "options"),
    [
        ("epochs", {"epochs": 0}),
        ("ema", {"ema": 1.0}),
        ("clip", {"clip": 0.0}),
        ("precision", {"precision": "float61"}),
        ("seed", {"seed": -1}),
        ("checkpoint_every", {"checkpoint_every": 5}),
        ("checkpoint_every", {"checkpoint_every": 0, "checkpoint": "x"}),
    ],
)
def test_a_wrong_option_is_named_before_any_work(
    where: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OptionError) as error:
        train.fit(tiny.network(), tiny.batches(8), TASK, **options)
    assert error.value.where == where


def test_data_that_does_not_keep_its_word_is_named() -> None:
    class Short(tiny.Batches):  # type: ignore[misc, valid-type]
        steps_per_epoch = 9

        def epoch(self, epoch: int, start: int = 0) -> Any:
            yield from list(tiny.batches(8).epoch(epoch))[start:]

    data = tiny.batches(8)
    data.__class__ = Short
    with pytest.raises(OptionError, match="epoch 0 has 2 batches, not 9"):
        train.fit(tiny.network(), data, TASK)


def test_it_learns() -> None:
    pictures = tiny.Pictures(200)
    pictures.pixels[:, :, :, 0] = (pictures.labels * 60)[:, None, None]
    data = tiny.batches(200, batch_size=20)
    data.images = pictures
    found: list[float] = []
    train.fit(
        tiny.network(dropout=0.0),
        data,
        TASK,
        epochs=6,
        optimizer=optim.adamw(2e-2),
        validate=lambda model: found.append(TASK.evaluate(model, data)["top1"]) or {"top1": found[-1]},
    )
    assert found[-1] > 0.9


def test_the_journal_survives_half_a_row(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "log.jsonl")
    for step in range(3):
        journal({"step": step, "loss": math.inf})
    journal.path.write_text(journal.path.read_text()[:-5])
    journal.rewind(2)
    journal({"step": 2, "loss": 1.0})
    assert journal.rows() == [{"step": 0, "loss": None}, {"step": 1, "loss": None}, {"step": 2, "loss": 1.0}]
    with pytest.warns(UserWarning, match="has 3 of the 9 rows"):
        journal.rewind(9)
