# SPDX-License-Identifier: Apache-2.0
"""Networks that learn from each other, and a network that learns from its own average."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import FAMILIES, PLAIN, Family, Images
from torch import nn
from torch.nn import functional as F

from featherweight.errors import OptionError
from featherweight.methods.distill import kl
from featherweight.methods.mean_teacher import Average, MeanTeacher
from featherweight.methods.mutual import Mutual, logits_of
from featherweight.packing import tensors_of
from featherweight.train import Pass, fit


def batch() -> dict[str, torch.Tensor]:
    return next(Images().epoch(0))


def test_each_network_learns_the_task_and_from_all_others() -> None:
    peers = (PLAIN.make("one"), PLAIN.make("two"))
    method = Mutual(peers, weight=2.0)
    model: Any = method.prepare(PLAIN.make()).train()
    data = batch()
    output = model(data["image"])
    a, b = model.mutual.aside.logits
    run = Pass(
        model, data, output, lambda m: None, 0.0, ("task",), lambda o: {"task": F.cross_entropy(o, data["label"])}
    )
    found = method.loss({"task": torch.tensor(0.0)}, run)
    torch.testing.assert_close(found["peers"], sum(F.cross_entropy(o, data["label"]) for o in (a, b)))
    pairs = [(output, a), (output, b), (a, output), (a, b), (b, output), (b, a)]
    torch.testing.assert_close(found["mutual"], 2.0 * sum(kl(x, y) for x, y in pairs) / 2)


def test_peers_are_trained_and_gone_afterwards() -> None:
    peer = PLAIN.make("peer")
    before = {name: t.clone() for name, t in peer.state_dict().items()}
    seen: list[nn.Module] = []

    class Watch(Mutual):
        def finish(self, model: nn.Module) -> nn.Module:
            seen.append(model.mutual.peers[0])  # type: ignore[union-attr, index]
            return super().finish(model)

    found = fit(PLAIN.make(), Images(), PLAIN.task, methods=[Watch((peer,))])
    assert list(found.state_dict()) == list(PLAIN.make().state_dict())
    assert not found._forward_hooks
    assert not found._forward_hooks_with_kwargs
    assert all(torch.equal(before[name], t) for name, t in peer.state_dict().items())  # the one given is untouched
    assert any(not torch.equal(before[name], t) for name, t in seen[0].state_dict().items())


@pytest.mark.parametrize("family", list(FAMILIES.values()), ids=list(FAMILIES))
def test_mutual_learning_of_transformers(family: Family) -> None:
    terms: list[dict[str, float]] = []
    told = lambda row: terms.append(row["terms"]) if row["event"] == "step" else None  # noqa: E731
    found = fit(family.make(), Images(), family.task, methods=[Mutual((family.make("peer"),))], log=told)
    assert list(found.state_dict()) == list(family.make().state_dict())
    assert all(row["mutual"] > 0 for row in terms)


def test_no_peers_is_plain_training() -> None:
    plain = fit(PLAIN.make(), Images(), PLAIN.task).state_dict()
    found = fit(PLAIN.make(), Images(), PLAIN.task, methods=[Mutual(())]).state_dict()
    assert all(torch.equal(plain[name], found[name]) for name in plain)


def test_a_peer_with_the_same_weights_is_refused() -> None:
    with pytest.raises(OptionError, match="has the model's own weights"):
        fit(PLAIN.make(), Images(), PLAIN.task, methods=[Mutual((PLAIN.make(),))])
    with pytest.raises(OptionError, match="answers with dict"):
        logits_of({})


def test_the_average_follows() -> None:
    model = nn.Linear(2, 2)
    average = Average(model)
    start = model.weight.detach().clone()
    with torch.no_grad():
        model.weight += 1.0
    average.follow(model, 0.9)
    torch.testing.assert_close(average.model.weight, start + 0.9)  # the first decay is 1 / 10
    for _ in range(200):
        average.follow(model, 0.9)
    torch.testing.assert_close(average.model.weight, model.weight)
    assert not any(p.requires_grad for p in average.model.parameters())


def test_the_teacher_is_the_average_and_answers_in_evaluation() -> None:
    method = MeanTeacher(weight=1.5, ramp=0.0)
    model: Any = method.prepare(PLAIN.make()).train()
    data = batch()
    answers = {}

    def call(other: nn.Module) -> torch.Tensor:
        answers["asked"] = other
        return PLAIN.logits(PLAIN.make("teacher"), data["image"])

    output = model(data["image"])
    found = method.loss({"task": torch.tensor(0.0)}, Pass(model, data, output, call, 0.5, ("task",)))
    assert answers["asked"] is model.mean_teacher.model
    wanted = 1.5 * kl(output, PLAIN.logits(PLAIN.make("teacher"), data["image"]))
    torch.testing.assert_close(found["self_distill"], wanted)


@pytest.mark.parametrize("deploy", ["student", "teacher"])
def test_student_or_teacher_is_left(deploy: Any) -> None:
    plain = fit(PLAIN.make(), Images(), PLAIN.task)
    taught = fit(PLAIN.make(), Images(), PLAIN.task, methods=[MeanTeacher(weight=0.0, deploy=deploy)])
    assert list(taught.state_dict()) == list(plain.state_dict())
    assert all(p.requires_grad for p in taught.parameters())
    same = all(torch.equal(a, b) for a, b in zip(tensors_of(plain).values(), tensors_of(taught).values(), strict=True))
    assert same == (deploy == "student")  # weight 0 is plain training; the average is another model


@pytest.mark.parametrize("wrong", [{"weight": -1.0}, {"decay": 1.0}, {"temperature": 0.0}, {"ramp": 2.0}])
def test_options_are_checked(wrong: dict[str, float]) -> None:
    with pytest.raises(OptionError, match=next(iter(wrong))):
        MeanTeacher(**wrong)  # type: ignore[arg-type]
