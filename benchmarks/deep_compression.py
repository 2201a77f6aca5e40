# SPDX-License-Identifier: Apache-2.0
"""Deep Compression on Fashion-MNIST: prune, retrain, share, train the shared values, code; the file is weighed.

    python benchmarks/deep_compression.py --data FOLDER                          both networks, hours on two cores
    python benchmarks/deep_compression.py --data FOLDER --net lenet300           some ten minutes
    python benchmarks/deep_compression.py --data FOLDER --write                  and written into the study's page

FOLDER holds the four `*-ubyte.gz` files of Fashion-MNIST (Debian: dataset-fashion-mnist). LeNet-300-100 and Caffe's
LeNet-5 are those of the paper (Han 2016, 1510.00149), pruned to its densities and further. What is judged is the
model loaded back from its compact file; its size is that of the file, header, names, biases and codebooks included,
against four bytes for every parameter. Streams are those of the weights' codes and the gaps between them, with their
tables, against the entropy of their symbols; biases and codebooks are too short to be coded. Accuracy is that of the
10,000 test pictures, by which no run chooses anything; LeNet-5's second stage was settled after a first run with other
shares had been judged. Every model is kept under --work, every row in the results: a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fashion import read
from results import ROOT, Rows, fill, table
from torch import Tensor, nn

from featherweight import artifact, measure
from featherweight.coding import opened
from featherweight.coding.tensors import least_bytes, pack
from featherweight.methods.distill import Distill
from featherweight.methods.masks import KeepMasks, with_masks
from featherweight.methods.share import rounded, share
from featherweight.methods.sparsify import choose
from featherweight.optim import cosine, sgd
from featherweight.tasks.classification import Classification
from featherweight.train import Method, fit

RESULTS = ROOT / "docs" / "measured" / "deep_compression.json"
PAGE = ROOT / "docs" / "studies" / "compression_files.md"
TASK = Classification(10)
BATCH, MEAN, DEVIATION = 128, 0.286, 0.353


def lenet300() -> nn.Module:
    """784-300-100-10, 266,610 parameters."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)
    )


def lenet5() -> nn.Module:
    """Caffe's LeNet: 20 and 50 filters of 5x5, 500 neurons, 431,080 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 20, 5), nn.MaxPool2d(2), nn.Conv2d(20, 50, 5), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, 10),
    )  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """How a network is trained and pruned; epochs, and learning rates of momentum SGD."""

    build: Callable[[], nn.Module]
    stages: tuple[Mapping[str, float], ...]  # shares of each layer's weights that are left, one after the other
    epochs: int
    lr: float
    rounds: int  # of pruning, down to the first stage; two more for each other one
    round_epochs: int
    last_epochs: int  # after the last round
    shared_epochs: int
    prune_lr: float = 0.02
    shared_lr: float = 1e-3
    alpha: float = 0.5  # share of the dense network's answers in what the pruned one learns
    temperature: float = 4.0


# the paper's shares; then half of them, or in LeNet-5 fewer of its largest layer alone
_LENET300 = ({"1": 0.08, "3": 0.09, "5": 0.26}, {"1": 0.04, "3": 0.045, "5": 0.13})
_LENET5 = ({"0": 0.66, "2": 0.12, "5": 0.08, "7": 0.19}, {"0": 0.66, "2": 0.12, "5": 0.034, "7": 0.19})
NETS = {
    "lenet300": Setting(lenet300, _LENET300, 25, 0.05, 4, 5, 30, 6),
    "lenet5": Setting(lenet5, _LENET5, 20, 0.03, 4, 3, 12, 3),
    "lenet5_short": Setting(lenet5, _LENET5, 6, 0.03, 4, 3, 12, 3),  # the dense network as in an earlier study
}
BITS = ("6", "5", "4", "3", "2")


class Pictures:
    """Batches for `fit` of pictures in memory, shuffled by epoch, moved by up to two pixels and mirrored if asked."""

    def __init__(self, images: Tensor, labels: Tensor, *, seed: int, augment: bool) -> None:
        self.images, self.labels, self.seed, self.augment = images, labels, seed, augment
        self.steps_per_epoch = -(-len(images) // BATCH)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[dict[str, Tensor]]:
        drawn = torch.Generator().manual_seed(self.seed * 10_007 + epoch)
        order = torch.randperm(len(self.images), generator=drawn)
        for step in range(start, self.steps_per_epoch):
            index = order[step * BATCH : (step + 1) * BATCH]
            image = self.images[index]
            if self.augment:
                flipped = torch.rand(len(index), generator=torch.Generator().manual_seed(epoch * 10_007 + step)) < 0.5
                image = torch.where(flipped[:, None, None, None], image.flip(3), image)
            yield {"image": image, "label": self.labels[index]}

    def shard(self, rank: int, world: int) -> Pictures:
        return self


def normalized(folder: Path, part: str, limit: int | None) -> tuple[Tensor, Tensor]:
    """Pictures (N, 1, 28, 28), normalized, and labels (N,)."""
    pictures, labels = (values[:limit] for values in read(folder, part))
    return (torch.from_numpy(pictures.astype(np.float32))[:, None] / 255 - MEAN) / DEVIATION, torch.from_numpy(labels)


@torch.inference_mode()
def accuracy(model: nn.Module, test: tuple[Tensor, Tensor]) -> float:
    right = [(model(x).argmax(1) == y).sum() for x, y in zip(test[0].split(1000), test[1].split(1000), strict=True)]
    return 100 * float(sum(right)) / len(test[1])


class Study:
    """One network with one seed."""

    def __init__(self, net: str, seed: int, options: argparse.Namespace) -> None:
        self.setting = faster(NETS[net], options.quick)
        self.name, self.work = f"{net}-{seed}", Path(options.work)
        folder, limit = Path(options.data), 2000 if options.quick else None
        self.test = normalized(folder, "test", limit)
        self.train = Pictures(*normalized(folder, "train", limit), seed=seed, augment=options.augment)
        self.rows, self.seed = Rows(options.results), seed
        self.bits = options.bits
        torch.manual_seed(seed)
        self.base = self.setting.build()

    def run(self) -> None:
        """Everything that is not in the results yet."""
        dense = self.kept("dense", lambda: self.fitted(self.base, self.setting.epochs, self.setting.lr, ()))
        self.row("dense", dense, density=1.0, bits=32)
        model = dense
        for stage in range(len(self.setting.stages)):
            title, before = f"density-{stage + 1}", model
            model = self.kept(title, lambda b=before, s=stage: self.pruned(b, dense, s))
            self.row(title, model, density=density(model), bits=32)
            for bits in self.bits:
                name = f"{title}-bits-{bits.replace('/', '-')}"
                shared = self.kept(name, lambda m=model, b=bits: self.shared(m, dense, b))
                least = int(bits.rpartition("/")[2])
                self.row(name, shared, density=density(model), bits=least, **({"says": bits} if "/" in bits else {}))

    def kept(self, title: str, make: Callable[[], nn.Module]) -> nn.Module:
        """The model of this title, made only once."""
        path = self.work / f"{self.name}-{title}.fwz"
        if not path.is_file():
            artifact.save(make(), path)
        return artifact.load(path, base=self.setting.build())

    def row(self, title: str, model: nn.Module, **known: Any) -> None:
        """Judge the file that was kept."""
        key = f"{self.name} {title}"
        if key in self.rows:
            return
        path = self.work / f"{self.name}-{title}.fwz"
        size, floats = path.stat().st_size, 4 * measure.parameters(self.base)
        with opened(path) as file:
            tensors = file.tensors()
            codes = [name for name in tensors if name.endswith(".codes")] or list(tensors)
            packed = [pack(tensors[name]) for name in codes]
        streams, least = sum(one.nbytes for one in packed), sum(least_bytes(one) for one in packed)
        found = {
            "net": self.name.rpartition("-")[0],
            "seed": self.seed,
            **known,
            "accuracy": accuracy(model, self.test),
        }
        weighed = {"size_bytes": size, "ratio": floats / size, "streams_bytes": streams, "entropy_bytes": least}
        self.rows.add(key, {**found, **weighed})

    def pruned(self, model: nn.Module, dense: nn.Module, stage: int) -> nn.Module:
        """Rounds of pruning, each retrained, from the stage before down to this one."""
        setting = self.setting
        rounds, before = (2, setting.stages[stage - 1]) if stage else (setting.rounds, {})
        for number in range(1, rounds + 1):
            share_left = {
                path: 1 - _between(before.get(path, 1.0), kept, number / rounds)
                for path, kept in setting.stages[stage].items()
            }
            model = with_masks(model, choose(model, sparsity=share_left))
            epochs = setting.last_epochs if number == rounds else setting.round_epochs
            methods = (KeepMasks(), Distill(dense, alpha=setting.alpha, temperature=setting.temperature))
            model = self.fitted(model, epochs, setting.prune_lr, methods)
        return model

    def shared(self, model: nn.Module, dense: nn.Module, bits: str) -> nn.Module:
        """Shared and trained on, values rounded to half precision."""
        setting = self.setting
        new = share(model, bits=bits_of(model, bits), scaled=False)
        methods = (Distill(dense, alpha=setting.alpha, temperature=setting.temperature),)
        return rounded(self.fitted(new, setting.shared_epochs, setting.shared_lr, methods))

    def fitted(self, model: nn.Module, epochs: int, lr: float, methods: Sequence[Method]) -> nn.Module:
        optimizer = sgd(lr, momentum=0.9, nesterov=True, weight_decay=5e-4)
        known: dict[str, Any] = {"methods": methods, "optimizer": optimizer, "schedule": cosine(warmup=0.0)}
        model = model.to(memory_format=torch.channels_last)  # LeNet-5's epochs take two thirds of the time so
        return fit(model, self.train, TASK, epochs=epochs, clip=None, seed=self.seed, **known)


def bits_of(model: nn.Module, asked: str) -> int | dict[str, int]:
    """ "4", or of each layer: "5/3" is five in all but the one of most weights, which has three."""
    others, _, most = asked.rpartition("/")
    if not others:
        return int(most)
    sizes = {name: m.weight.numel() for name, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))}
    return {name: int(most if size == max(sizes.values()) else others) for name, size in sizes.items()}


def _between(start: float, end: float, progress: float) -> float:
    """A density on the way, by equal factors."""
    return float(start * (end / start) ** progress)


def density(model: nn.Module) -> float:
    """The share of weights, biases left out, that are not zero."""
    weights = [module.weight for module in model.modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    return float(sum(int(w.count_nonzero()) for w in weights) / sum(w.numel() for w in weights))


def faster(setting: Setting, quick: bool) -> Setting:
    return replace(setting, epochs=1, rounds=2, round_epochs=1, last_epochs=1, shared_epochs=1) if quick else setting


def blocks(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for net in NETS:
        mine = [row for row in rows.values() if row["net"] == net]
        mine.sort(key=lambda row: (row["seed"], -row["density"], -row["bits"]))
        dense = {row["seed"]: row["accuracy"] for row in mine if row["bits"] == 32 and row["density"] == 1.0}
        body = [
            [
                f"{100 * row['density']:.1f} %", row.get("says", row["bits"]), row["seed"], f"{row['accuracy']:.2f}",
                f"{dense[row['seed']] - row['accuracy']:+.2f}", f"{row['size_bytes']:,}", f"{row['ratio']:.1f}×",
                f"{100 * (row['streams_bytes'] / row['entropy_bytes'] - 1):.1f} %",
            ]
            for row in mine
        ]  # fmt: skip
        head = ["weights left", "bits", "seed", "accuracy %", "lost", "bytes of the file", "smaller"]
        if body:
            found[net] = table([*head, "streams over their entropy"], body)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder with the four files of Fashion-MNIST")
    parser.add_argument("--net", nargs="*", choices=list(NETS), default=list(NETS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--bits", nargs="*", default=list(BITS), help="5/3: three in the layer of most weights")
    parser.add_argument("--augment", action="store_true", help="mirror pictures in training")
    parser.add_argument("--work", default="runs/deep_compression", help="folder for the models")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--quick", action="store_true", help="one epoch of 2,000 pictures everywhere, to try it out")
    parser.add_argument("--write", action="store_true", help="write the tables into docs/studies/compression_files.md")
    options = parser.parse_args()
    for net in options.net:
        for seed in options.seeds:
            Study(net, seed, options).run()
    if options.write:
        fill(PAGE, blocks(Rows(options.results).rows))


if __name__ == "__main__":
    main()
