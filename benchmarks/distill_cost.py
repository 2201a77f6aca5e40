# SPDX-License-Identifier: Apache-2.0
"""What a step of training costs with each way to teach, against plain training: processor time, in turns.

    python benchmarks/distill_cost.py                 a table, and docs/measured/distill_cost.json

Networks of the study of compression on random pictures: the cost does not depend on what is learned.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median

import torch
from results import ROOT, machine, table
from torch import Tensor, nn

from featherweight import files
from featherweight.method import Method
from featherweight.methods.attention_transfer import AttentionTransfer
from featherweight.methods.dist import DIST
from featherweight.methods.distill import Distill
from featherweight.methods.dkd import DKD
from featherweight.methods.fitnets import FitNets
from featherweight.methods.mean_teacher import MeanTeacher
from featherweight.methods.minilm import MiniLM
from featherweight.methods.mutual import Mutual
from featherweight.methods.one import ONE
from featherweight.methods.rkd import RKD
from featherweight.methods.similarity import SimilarityPreserving
from featherweight.methods.swa import SWA
from featherweight.methods.tinybert import TinyBERT
from featherweight.models import zoo
from featherweight.tasks.classification import Classification
from featherweight.train import fit

BATCH, STEPS = 64, 4  # pictures, steps of one training
MIDDLE = {"layer2": "layer2", "layer3": "layer3"}


class Pictures:
    """The same random batch in every step."""

    steps_per_epoch = STEPS

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.batch = {
            "image": torch.randn(BATCH, 3, 32, 32, generator=generator),
            "label": torch.randint(10, (BATCH,), generator=generator),
        }

    def epoch(self, epoch: int, start: int = 0) -> Iterator[dict[str, Tensor]]:
        for _ in range(start, STEPS):
            yield self.batch

    def shard(self, rank: int, world: int) -> Pictures:
        return self


def convolutional() -> tuple[nn.Module, dict[str, Callable[[], Sequence[Method]]]]:
    """The study's small network and what teaches it."""
    student, teacher = zoo.create("resnet_cifar", widths=(8, 16, 32)), zoo.create("resnet_cifar")
    seen = [Pictures().batch]
    return student, {
        "plain": lambda: (),
        "distill": lambda: (Distill(teacher, temperature=4.0),),
        "dkd": lambda: (DKD(teacher),),
        "dist": lambda: (DIST(teacher),),
        "fitnets": lambda: (FitNets(teacher, "layer2", "layer2", (3, 32, 32)),),
        "attention_transfer": lambda: (AttentionTransfer(teacher, MIDDLE),),
        "similarity": lambda: (SimilarityPreserving(teacher, {"layer3": "layer3"}),),
        "rkd": lambda: (RKD(teacher, {"layer3": "layer3"}),),
        "one": lambda: (ONE(("layer3", "fc"), 3),),
        "mutual": lambda: (Mutual((zoo.create("resnet_cifar", widths=(8, 16, 32)),)),),
        "mean_teacher": lambda: (MeanTeacher(),),
        "swa": lambda: (SWA(0.5, 0.0, seen, Classification(10)),),
    }


def transformer() -> tuple[nn.Module, dict[str, Callable[[], Sequence[Method]]]]:
    """The study's vision transformer, half as deep, and what teaches it."""
    student, teacher = zoo.create("vit_cifar", depth=3), zoo.create("vit_cifar")
    return student, {
        "plain": lambda: (),
        "tinybert": lambda: (TinyBERT(teacher, stage=None),),
        "minilm": lambda: (MiniLM(teacher),),
    }


def seconds(student: nn.Module, methods: Sequence[Method]) -> float:
    """Processor time of a short training, beginning and end included."""
    began = time.process_time()
    fit(student, Pictures(), Classification(10), methods=methods)
    return time.process_time() - began


def costs(rounds: int) -> dict[str, float]:
    """Name -> times plain training, the median over rounds in which all take their turns."""
    found: dict[str, float] = {}
    for student, makers in (convolutional(), transformer()):
        times: dict[str, list[float]] = {name: [] for name in makers}
        for _ in range(rounds + 1):
            for name, make in makers.items():
                times[name].append(seconds(student, make()))
        ratios = {
            name: median(a / b for a, b in zip(spent[1:], times["plain"][1:], strict=True))
            for name, spent in times.items()
        }
        found |= {name: round(ratio, 2) for name, ratio in ratios.items() if name != "plain"}
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--docs", type=Path, default=ROOT / "docs")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    found = costs(options.rounds)
    known = {"batch": BATCH, "steps": STEPS, "rounds": options.rounds, "times_plain": found, "machine": machine()}
    files.publish_json(options.docs / "measured" / "distill_cost.json", {"format": 1, **known})
    print(table(("with", "times plain training"), [(name, f"{ratio:.2f}") for name, ratio in found.items()]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
