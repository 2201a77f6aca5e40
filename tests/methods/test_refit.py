# SPDX-License-Identifier: Apache-2.0
"""Least squares after a cut: exact where the answer is known, nearer than the bare cut elsewhere, inputs untouched."""

from __future__ import annotations

import copy

import torch
from families import IMAGES, Family

from featherweight.anatomy import anatomy_of, blocks_of
from featherweight.methods.prune import prune
from featherweight.methods.refit import refit
from featherweight.surgery import Edit, apply, edits_of, submodule

BATCHES = [{"image": IMAGES}]


def _error(family: Family, model: torch.nn.Module, other: torch.nn.Module) -> float:
    return float((family.logits(model) - family.logits(other)).square().mean())


def test_it_is_nearer_than_the_bare_cut(family: Family) -> None:
    model = family.make()
    pruned = prune(model, mlp=0.5, heads=0.5, round_to=1)
    before = copy.deepcopy(pruned.state_dict())
    fitted = refit(model, pruned, BATCHES, family.task)
    assert _error(family, model, fitted) < 0.5 * _error(family, model, pruned)
    assert edits_of(fitted) == edits_of(pruned)
    assert all(torch.equal(before[name], tensor) for name, tensor in pruned.state_dict().items())


def test_a_neuron_that_another_one_repeats_costs_nothing(family: Family) -> None:
    """Two equal hidden neurons, one cut: the other takes its part over, and the answers stay."""
    model = family.make()
    path, block = next(iter(blocks_of(model).items()))
    fc1 = submodule(block, anatomy_of(model).mlp[0])
    with torch.no_grad():
        fc1.weight[1], fc1.bias[1] = fc1.weight[0], fc1.bias[0]
    keep = [i for i in range(fc1.out_features) if i != 1]
    pruned = apply(model, [Edit("", "narrow_mlp", {"block": path, "keep": keep})])
    fitted = refit(model, pruned, BATCHES, family.task, ridge=1e-9)
    assert _error(family, model, pruned) > 1e-6
    assert _error(family, model, fitted) < 1e-3 * _error(family, model, pruned)


def test_nothing_cut_is_nothing_changed(family: Family) -> None:
    model = family.make()
    fitted = refit(model, apply(model, []), BATCHES, family.task)
    assert torch.equal(family.logits(fitted), family.logits(model))
