# SPDX-License-Identifier: Apache-2.0
"""Methods with a part in training, on the plainest model of a user: an `nn.Sequential`, which calls all its parts."""

from __future__ import annotations

from collections.abc import Callable

import fill
import pytest
import torch
from families import CLASSES, SIZE, Images
from torch import nn

from featherweight.methods.attention_transfer import AttentionTransfer
from featherweight.methods.binary import Binary
from featherweight.methods.dist import DIST
from featherweight.methods.distill import Distill
from featherweight.methods.dkd import DKD
from featherweight.methods.fitnets import FitNets
from featherweight.methods.gradual import GradualPruning
from featherweight.methods.masks import KeepMasks, with_masks
from featherweight.methods.mean_teacher import MeanTeacher
from featherweight.methods.mutual import Mutual
from featherweight.methods.one import ONE
from featherweight.methods.overparameterize import Overparameterize
from featherweight.methods.qat import QAT
from featherweight.methods.rkd import RKD
from featherweight.methods.share import share
from featherweight.methods.similarity import SimilarityPreserving
from featherweight.methods.slimming import Slimming
from featherweight.methods.sparsify import choose
from featherweight.methods.swa import SWA
from featherweight.tasks.classification import Classification
from featherweight.train import Method, fit

TASK, IMAGE = Classification(CLASSES), (3, SIZE, SIZE)
DATA = Images(steps=4)
SEEN = list(DATA.epoch(0))


def net(width: int = 8) -> nn.Sequential:
    torch.manual_seed(width)
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, 2, 1, bias=False), nn.BatchNorm2d(2 * width), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, CLASSES),
    ).eval()  # fmt: skip


METHODS: dict[str, Callable[[nn.Module], Method]] = {  # each with a wider teacher
    "distill": Distill,
    "dkd": DKD,
    "dist": DIST,
    "fitnets": lambda teacher: FitNets(teacher, "5", "5", IMAGE),
    "attention": lambda teacher: AttentionTransfer(teacher, {"5": "5"}),
    "similarity": lambda teacher: SimilarityPreserving(teacher, {"5": "5"}),
    "rkd": lambda teacher: RKD(teacher, {"5": "5"}),
    "one": lambda teacher: ONE(("3", "4", "8")),
    "mutual": lambda teacher: Mutual((net(12),)),
    "mean_teacher": lambda teacher: MeanTeacher(),
    "swa": lambda teacher: SWA(start=0.5, every=0.1, batches=SEEN, task=TASK),
    "gradual": lambda teacher: GradualPruning(0.5),
    "slimming": lambda teacher: Slimming(),
    "branches": lambda teacher: Overparameterize("acb", gamma=1.0),
    "qat": lambda teacher: QAT(TASK, SEEN),
    "binary": lambda teacher: Binary("weights", task=TASK),
}


@pytest.mark.parametrize("name", list(METHODS))
def test_a_sequential_is_trained_and_is_one_afterwards(name: str) -> None:
    model, picture = net(), fill.normal("picture", (2, *IMAGE))
    before = model(picture)
    new = fit(model, DATA, TASK, epochs=2, methods=[METHODS[name](net(16))], seed=0).eval()
    assert isinstance(new, nn.Sequential)
    assert len(new) == len(model)
    assert new(picture).shape == before.shape
    assert not torch.allclose(new(picture), before)
    assert torch.equal(model(picture), before)


def test_masks_and_shared_values_are_kept_with_averaging() -> None:
    model, average = net(), SWA(start=0.0, every=0.1, batches=SEEN, task=TASK)
    sparse = with_masks(model, choose(model, sparsity=0.5))
    new = fit(sparse, DATA, TASK, epochs=2, methods=[KeepMasks(), average], seed=0)
    assert float((new[3].weight == 0).float().mean()) >= 0.4
    few = fit(share(new, bits=2, scaled=False), DATA, TASK, epochs=2, methods=[average], seed=0)
    assert few[3].weight.unique().numel() <= 5  # and the zeros
