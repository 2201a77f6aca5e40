# SPDX-License-Identifier: Apache-2.0
"""Branches share what stands before them, a gate makes their ensemble, and one of them is left."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from families import FAMILIES, IMAGES, PLAIN, Family, Images
from torch import nn
from torch.nn import functional as F

from featherweight import artifact, counting
from featherweight.errors import OptionError
from featherweight.methods.distill import kl
from featherweight.methods.one import ONE, Branched, Gate, gated, width_of
from featherweight.surgery import all_of, edits_of
from featherweight.train import Pass, fit

AT = ("features.3", "classifier")


def prepared(count: int = 3, **options: object) -> nn.Module:
    torch.manual_seed(1)
    return ONE(AT, count=count, **options).prepare(PLAIN.make())  # type: ignore[arg-type]


def test_each_branch_is_the_model_with_its_own_last_part() -> None:
    """In training mode every branch's logits are those of the whole network with that branch's weights."""
    model = prepared().train()
    nn.Module.eval(model.features[1])  # its batch norm would see the three parts of a batch as one otherwise
    output = model(IMAGES)
    parts = all_of(model, Branched)
    assert list(parts) == list(AT)
    logits = parts["classifier"].letter.logits
    torch.testing.assert_close(output, logits[0])
    for place in range(3):
        alone = PLAIN.make()
        alone.features[3] = [parts[AT[0]].module, *parts[AT[0]].others][place]
        alone.classifier = [parts[AT[1]].module, *parts[AT[1]].others][place]
        alone.load_state_dict(alone.state_dict())
        torch.testing.assert_close(alone(IMAGES), logits[place])
    assert not torch.equal(logits[0], logits[1])


def test_shared_layers_see_the_batch_once() -> None:
    model = prepared().train()
    sizes = []
    model.features[0].register_forward_hook(lambda _m, args, _o: sizes.append(len(args[0])))
    model.features[4].register_forward_hook(lambda _m, args, _o: sizes.append(len(args[0])))  # a ReLU between the two
    model(IMAGES)
    assert sizes == [2, 6]


def test_evaluation_answers_with_the_first_branch() -> None:
    assert torch.equal(PLAIN.logits(prepared().eval()), PLAIN.logits(PLAIN.make()))


def test_the_gate_shares_out_1() -> None:
    gates = Gate(8, 3)(torch.rand(4, 8, 5, 5))
    assert gates.shape == (4, 3)
    torch.testing.assert_close(gates.sum(1), torch.ones(4))
    logits = [torch.rand(4, 5) for _ in range(3)]
    wanted = sum(gates[:, i : i + 1] * logits[i] for i in range(3))
    torch.testing.assert_close(gated(gates, logits), wanted)


def test_the_loss_is_the_papers() -> None:
    model = prepared().train()
    label = torch.tensor([1, 3])
    output = model(IMAGES)
    letter = all_of(model, Branched)["classifier"].letter
    logits, gates = letter.logits, letter.gates
    run = Pass(
        model, {"label": label}, output, lambda m: None, 0.5, ("task",), lambda o: {"task": F.cross_entropy(o, label)}
    )
    found = ONE(AT, count=3, ramp=0.0, temperature=3.0).loss({"task": F.cross_entropy(output, label)}, run)
    ensemble = gated(gates, logits)
    torch.testing.assert_close(found["branches"], F.cross_entropy(logits[1], label) + F.cross_entropy(logits[2], label))
    torch.testing.assert_close(found["ensemble"], F.cross_entropy(ensemble, label))
    torch.testing.assert_close(found["distill"], sum(kl(z, ensemble, 3.0) for z in logits))


@pytest.mark.parametrize("family", list(FAMILIES.values()), ids=list(FAMILIES))
def test_one_branch_of_a_transformer_is_left(family: Family) -> None:
    at = {"transformers": ("vit.layers.2", "vit.layernorm", "classifier")}.get(
        family.name, ("blocks.2", "norm", "head")
    )
    if family.name == "lvvit":
        at = ("blocks.2", "norm", "head")
    model = family.make()
    found = fit(model, Images(), family.task, methods=[ONE(at, count=2, features=32)])
    assert list(found.state_dict()) == list(model.state_dict())
    assert edits_of(found) == ()
    assert not all_of(found, Branched)


def test_the_ensemble_may_stay(tmp_path: Path) -> None:
    found = fit(PLAIN.make(), Images(), PLAIN.task, methods=[ONE(AT, count=3, deploy="ensemble")])
    assert [edit.kind for edit in edits_of(found)] == ["branches"]
    assert counting.parameters(found) > 2 * counting.parameters(PLAIN.make())
    answer = PLAIN.logits(found)
    loaded = artifact.load(artifact.save(found, tmp_path), base=PLAIN.build())
    assert torch.equal(PLAIN.logits(loaded), answer)
    one = all_of(found, Branched)["classifier"]
    assert not torch.equal(answer, PLAIN.logits(found) if one.ensemble is False else PLAIN.logits(PLAIN.make()))


def test_one_branch_is_plain_training() -> None:
    plain = fit(PLAIN.make(), Images(), PLAIN.task).state_dict()
    found = fit(PLAIN.make(), Images(), PLAIN.task, methods=[ONE(AT, count=1)]).state_dict()
    assert all(torch.equal(plain[name], found[name]) for name in plain)


def test_branches_begin_apart() -> None:
    for spread in (None, 0.1):
        one = all_of(prepared(spread=spread), Branched)["classifier"]
        assert isinstance(one.module, nn.Linear)
        assert isinstance(one.others[0], nn.Linear)
        apart = (one.others[0].weight - one.module.weight).detach()
        far = float(apart.norm() / one.module.weight.detach().norm())
        assert far > 0.02
        assert (far < 0.3) == (spread is not None)


def test_mistakes_are_told() -> None:
    with pytest.raises(OptionError, match="at: is a list of paths"):
        ONE("classifier")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="count: 0"):
        ONE(AT, count=0)
    with pytest.raises(OptionError, match="branches that are alike stay alike"):
        ONE(AT, spread=0.0)
    with pytest.raises(LookupError, match=r"no module 'features.8'"):
        ONE(("features.8", "classifier")).prepare(PLAIN.make())
    with pytest.raises(OptionError, match=r"features: cannot be seen from features.2"):
        width_of(nn.ReLU(), "features.2")
    with pytest.raises(OptionError, match="has branches already"):
        ONE(AT).prepare(prepared(deploy="ensemble"))
