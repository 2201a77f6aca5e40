# SPDX-License-Identifier: Apache-2.0
"""Means of weights: over the end of a run, and over several models."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, PLAIN, Images
from torch import Tensor, nn

from featherweight import artifact
from featherweight.errors import OptionError
from featherweight.methods import prune, soup
from featherweight.methods.swa import SWA, renew_norms, schedule
from featherweight.surgery import edits_of
from featherweight.train import Method, fit

DATA = list(Images().epoch(0))


class Remember(Method):
    """Keeps the weights of every step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []

    def after_step(self, model: nn.Module, progress: float) -> None:
        self.steps.append({name: p.detach().clone() for name, p in model.named_parameters()})


@pytest.mark.parametrize(
    ("start", "every", "steps"), [(0.5, 0.0, [3, 4, 5, 6, 7]), (0.5, 0.25, [3, 5, 7]), (1.0, 0.0, [])]
)
def test_swa_is_the_mean_of_the_weights_on_the_way(start: float, every: float, steps: list[int]) -> None:
    kept = Remember()
    found = fit(PLAIN.make(), Images(), PLAIN.task, epochs=4, methods=[kept, SWA(start, every, DATA, PLAIN.task)])
    wanted = [kept.steps[step] for step in steps] or kept.steps[-1:]
    for name, parameter in found.named_parameters():
        torch.testing.assert_close(parameter, torch.stack([state[name] for state in wanted]).mean(0))
    assert list(found.state_dict()) == list(PLAIN.make().state_dict())
    assert all(p.requires_grad for p in found.parameters())


def test_batch_norms_are_renewed_and_nothing_else() -> None:
    model = PLAIN.make()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    renew_norms(model, DATA, PLAIN.task)
    norm: Any = model.features[1]
    with torch.no_grad():
        batches = [model.features[0](batch["image"]) for batch in DATA]
    torch.testing.assert_close(norm.running_mean, torch.stack([x.mean((0, 2, 3)) for x in batches]).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack([x.var((0, 2, 3)) for x in batches]).mean(0))
    changed = {name for name, t in model.state_dict().items() if not torch.equal(before[name], t)}
    assert changed == {f"features.1.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}
    assert not any(module.training for module in model.modules())
    assert norm.momentum == 0.1


def test_swa_asks_for_data_where_there_are_batch_norms() -> None:
    with pytest.raises(OptionError, match="batches: the mean's batch norms need statistics"):
        fit(PLAIN.make(), Images(), PLAIN.task, methods=[SWA()])
    family = FAMILIES["ours"]
    fit(family.make(), Images(), family.task, methods=[SWA(0.0, 0.0)])
    with pytest.raises(OptionError, match="there are none"):
        renew_norms(PLAIN.make(), [], PLAIN.task)
    with pytest.raises(OptionError, match="every: 2"):
        SWA(every=2.0)


def test_the_rate_falls_and_stays() -> None:
    rate = schedule(start=0.75, rate=0.2, warmup=0.1)
    assert rate(0.05) == pytest.approx(0.5)
    assert rate(0.1) == pytest.approx(1.0)
    assert rate(0.75) == rate(0.9) == rate(1.0) == 0.2
    values = [rate(0.1 + 0.65 * i / 20) for i in range(21)]
    assert all(a > b for a, b in pairwise(values))
    with pytest.raises(OptionError, match="in this order"):
        schedule(start=0.1, warmup=0.2)


def test_a_uniform_soup_is_the_mean() -> None:
    models = [PLAIN.make(seed) for seed in ("", "one", "two")]
    found = soup.uniform(models)
    for name, tensor in found.state_dict().items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, torch.stack([m.state_dict()[name] for m in models]).mean(0))
    alone = soup.uniform(models[:1])
    assert all(
        torch.equal(a, b) for a, b in zip(alone.state_dict().values(), models[0].state_dict().values(), strict=True)
    )
    assert not {t.data_ptr() for t in alone.state_dict().values()} & {
        t.data_ptr() for t in models[0].state_dict().values()
    }


def test_a_greedy_soup_takes_what_does_not_harm() -> None:
    one, two, far = nn.Linear(1, 1), nn.Linear(1, 1), nn.Linear(1, 1)
    for model, value in ((one, 1.0), (two, 3.0), (far, 100.0)):
        nn.init.constant_(model.weight, value)
        nn.init.zeros_(model.bias)
    mended: list[nn.Module] = []

    def score(model: nn.Module) -> float:
        return -abs(float(model.weight.detach()) - 2.0)  # type: ignore[arg-type]

    found = soup.greedy([far, one, two], score, mend=mended.append)
    assert found.members == (1, 2)
    assert float(found.model.weight.detach()) == 2.0  # type: ignore[arg-type]
    assert found.score == 0.0
    assert len(mended) == 2  # each mean of several
    assert soup.greedy([far], score).members == (0,)


def test_a_soup_of_pruned_models_is_saved_like_them(tmp_path: Path) -> None:
    family = FAMILIES["ours"]
    small = prune.prune(family.make(), mlp=0.5, heads=0.5)
    models = [fit(small, Images(), family.task, seed=seed) for seed in (0, 1)]
    found = soup.uniform(models)
    assert edits_of(found) == edits_of(small)
    loaded = artifact.load(artifact.save(found, tmp_path))
    assert torch.equal(family.logits(loaded), family.logits(found))


def test_models_that_cannot_be_averaged_are_refused() -> None:
    family = FAMILIES["ours"]
    with pytest.raises(OptionError, match="models: there are none"):
        soup.uniform([])
    with pytest.raises(OptionError, match=r"models\[1\]: was changed in another way"):
        soup.uniform([family.make(), prune.prune(family.make(), mlp=0.5)])
    with pytest.raises(OptionError, match=r"models\[1\]: has not the tensors of the first"):
        soup.uniform([family.make(), PLAIN.make()])
    with pytest.raises(OptionError, match="weight is"):
        soup.uniform([nn.Linear(2, 2), nn.Linear(3, 2)])
    masked = [nn.Linear(2, 2), nn.Linear(2, 2)]
    for model, first in zip(masked, (True, False), strict=True):
        model.register_buffer("mask", torch.tensor([first, True]))
    with pytest.raises(OptionError, match="mask differs, and has no mean"):
        soup.uniform(masked)
