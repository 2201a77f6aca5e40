# SPDX-License-Identifier: Apache-2.0
"""Pruning tried on the shipped digits models: the tables of the method cards, kept row by row.

    python benchmarks/prune_digits.py                 what is missing, then the cards' tables
    python benchmarks/prune_digits.py --only blocks   weights, training, channels or blocks
    python benchmarks/prune_digits.py --table         no measuring: the tables alone

`vit_digits` and `resnet_digits` with the weights they come with, 720 validation pictures (the 95 % interval of one
accuracy is about ±1.5 points; what is compared sees the same pictures). Calibration: 256 training pictures. "Trained"
is two epochs of 1,500 pictures with labels and the dense model as teacher, equal for all. About ten minutes of a core.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import results
import torch
from torch import nn

from featherweight import artifact
from featherweight.counting import macs, parameters
from featherweight.data import Batches, load
from featherweight.methods import channels, drop_blocks, iterative, sparsify
from featherweight.methods.distill import Distill
from featherweight.methods.gradual import GradualPruning
from featherweight.methods.masks import KeepMasks
from featherweight.methods.narrow import kept_outputs
from featherweight.methods.repair import repair
from featherweight.models import zoo
from featherweight.optim import adamw
from featherweight.tasks.classification import Classification
from featherweight.train import fit

RESULTS, CARDS = results.ROOT / "docs/measured/prune_digits.json", results.ROOT / "docs/methods"
SHARES = (0.3, 0.5, 0.7, 0.8)
RULES: dict[str, dict[str, Any]] = {
    "magnitude, each layer alike": {"scope": "layer"},
    "magnitude, over all layers": {"scope": "global"},
    "LAMP": {"scope": "lamp"},
    "ERK": {"scope": "erk"},
    "Taylor, over all layers": {"importance": "taylor", "scope": "global"},
    "SNIP's score, over all layers": {"importance": "snip", "scope": "global"},
    "Fisher (OBD), over all layers": {"importance": "fisher", "scope": "global"},
    "Wanda, each output alike": {"importance": "wanda", "scope": "output"},
    "magnitude, each output alike": {"scope": "output"},
    "2:4": {"pattern": "2:4"},
    "blocks 4x1, each layer alike": {"pattern": "4x1", "scope": "layer"},
}
SPARSE = 0.95  # of the comparison with training
RATIOS = (0.1, 0.2, 0.3)
IMPORTANCES = ("l1", "l2", "bn_scale", "fpgm", "taylor")
COUNTS = (1, 2, 3)


class Lab:
    """The data, the task and the shipped models."""

    def __init__(self, pictures: int) -> None:
        self.data = load("digits")
        self.task = Classification(self.data.classes)
        self.pictures = pictures

    def batches(self, part: str, model: str, *, limit: int | None = None, **known: Any) -> Batches:
        seen = getattr(self.data, part)
        options = {"batch_size": 60, "drop_last": False, "limit": limit, **known}
        return Batches(seen, zoo.entry(model).preprocess, **{k: v for k, v in options.items() if v is not None})

    def model(self, name: str) -> nn.Module:
        return artifact.load(zoo.shipped_weights(name))

    def calibration(self, name: str) -> list[Any]:
        return list(self.batches("train", name, limit=256).epoch(0))

    def accuracy(self, model: nn.Module, name: str) -> float:
        found = self.task.evaluate(model, self.batches("val", name).epoch(0))
        return round(100 * float(found["top1"]), 2)

    def trained(self, model: nn.Module, teacher: nn.Module, methods: Sequence[Any], epochs: int = 2) -> nn.Module:
        seen = self.batches("train", "resnet_digits", limit=self.pictures, shuffle=True)
        known: dict[str, Any] = {"optimizer": adamw(5e-4), "epochs": epochs}
        return fit(model, seen, self.task, methods=[Distill(teacher), *methods], **known)


def weights(lab: Lab, rows: results.Rows) -> None:
    """Single weights of the transformer set to zero, nothing trained."""
    model, seen = lab.model("vit_digits"), lab.calibration("vit_digits")
    if "weights dense" not in rows:
        rows.add("weights dense", {"top1": lab.accuracy(model, "vit_digits")})
    for rule, options in RULES.items():
        for share in shares_of(rule):
            key = f"weights {rule} {share}"
            if key in rows:
                continue
            small = sparsify.sparsify(model, sparsity=share, batches=seen, task=lab.task, **options)
            rows.add(key, {"top1": lab.accuracy(small, "vit_digits")})


def shares_of(rule: str) -> tuple[float, ...]:
    """The shares of zeros that a rule can have: 2:4 has its own."""
    return SHARES if ":" not in rule else (0.5,)


def training(lab: Lab, rows: results.Rows) -> None:
    """The residual network at 95 % zeros with equal training: at once, in rounds, while training."""
    name = "resnet_digits"
    model = lab.model(name)
    known: dict[str, Any] = {"scope": "lamp"}
    ways: dict[str, Callable[[], nn.Module]] = {
        "dense": lambda: model,
        "at once, not trained": lambda: sparsify.sparsify(model, sparsity=SPARSE, **known),
        "at once, trained": lambda: lab.trained(
            sparsify.sparsify(model, sparsity=SPARSE, **known), model, [KeepMasks()]
        ),
        "in two rounds": lambda: iterative.iterate(
            model, lambda m, _: lab.trained(m, model, [KeepMasks()], 1), rounds=2, sparsity=SPARSE, **known
        ),
        "while training, by magnitude": lambda: lab.trained(model, model, [GradualPruning(SPARSE, **known)]),
        "while training, by movement": lambda: lab.trained(
            model, model, [GradualPruning(SPARSE, importance="movement", scope="global")]
        ),
    }
    for way, make in ways.items():
        key = f"training {way}"
        if key not in rows:
            rows.add(key, {"top1": lab.accuracy(make(), name)})


def channel_rows(lab: Lab, rows: results.Rows) -> None:
    """Channels of the residual network cut: as it is, with statistics repaired, and trained."""
    name = "resnet_digits"
    model, seen = lab.model(name), lab.calibration(name)
    example = seen[0]["image"][:2]
    for importance in IMPORTANCES:
        known: dict[str, Any] = {"importance": importance, "round_to": 2, "batches": seen, "task": lab.task}
        for ratio in RATIOS:
            key = f"channels {importance} {ratio}"
            if key in rows:
                continue
            small = channels.prune_channels(model, example, ratio=ratio, **known)
            mended = repair(small, model, seen, lab.task, kept=kept_outputs(small, model))
            shares = {
                "macs": macs(small, example) / macs(model, example),
                "params": parameters(small) / parameters(model),
            }
            rows.add(key, {"top1": lab.accuracy(small, name), "repaired": lab.accuracy(mended, name), **shares})
    for ratio in RATIOS:
        key = f"channels trained {ratio}"
        if key not in rows:
            small = channels.prune_channels(model, example, ratio=ratio, round_to=2)
            small = repair(small, model, seen, lab.task, kept=kept_outputs(small, model))
            rows.add(key, {"top1": lab.accuracy(lab.trained(small, model, []), name)})


def blocks(lab: Lab, rows: results.Rows) -> None:
    """Blocks of the transformer left out, nothing trained."""
    name = "vit_digits"
    model, seen = lab.model(name), lab.calibration(name)
    if "blocks influences" not in rows:
        found = drop_blocks.influences(model, seen, lab.task)
        rows.add("blocks influences", {path: round(value, 4) for path, value in found.items()})
    for rule in drop_blocks.RULES:
        for count in COUNTS:
            key = f"blocks {rule} {count}"
            if key not in rows:
                small = drop_blocks.drop_blocks(model, count=count, rule=rule, batches=seen, task=lab.task)
                rows.add(key, {"top1": lab.accuracy(small, name)})


PARTS: dict[str, Callable[[Lab, results.Rows], None]] = {
    "weights": weights,
    "training": training,
    "channels": channel_rows,
    "blocks": blocks,
}


def cell(rows: Mapping[str, Mapping[str, Any]], key: str, field: str = "top1") -> str:
    value = rows.get(key, {}).get(field)
    return "not run yet" if value is None else f"{value:.1f}" if field != "macs" else f"{value:.0%}"


def tables(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """Card -> name of the block -> table."""
    sparse = [
        [rule, *(cell(rows, f"weights {rule} {share}") if share in shares_of(rule) else "–" for share in SHARES)]
        for rule in RULES
    ]
    head = [f"`vit_digits`, {cell(rows, 'weights dense')} % dense", *(f"{share:.0%} zeros" for share in SHARES)]
    ways = [[key.removeprefix("training "), cell(rows, key)] for key in rows if key.startswith("training ")]
    ways = ways or [["every way", "not run yet"]]
    cut = [
        [importance, f"{ratio:.0%}", *(cell(rows, f"channels {importance} {ratio}", f) for f in FIELDS)]
        for importance in IMPORTANCES
        for ratio in RATIOS
    ]
    trained = [cell(rows, f"channels trained {ratio}") for ratio in RATIOS]
    cut.append(["l2, repaired, trained two epochs", ", ".join(f"{r:.0%}" for r in RATIOS), "", "", ", ".join(trained)])
    dropped = [[rule, *(cell(rows, f"blocks {rule} {count}") for count in COUNTS)] for rule in drop_blocks.RULES]
    return {
        "sparsify": {"sparse": results.table(head, sparse)},
        "gradual": {"training": results.table([f"`resnet_digits`, {SPARSE:.0%} zeros", "top-1, %"], ways)},
        "channels": {"channels": results.table(["importance", "cut", *TITLES], cut)},
        "drop_blocks": {"blocks": results.table(["rule", *(f"{c} of 6 left out" for c in COUNTS)], dropped)},
    }


FIELDS = ("macs", "top1", "repaired")
TITLES = ("MACs left", "top-1, %", "statistics repaired")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", choices=list(PARTS), help="one part")
    parser.add_argument("--pictures", type=int, default=1500, help="that a training sees in an epoch")
    parser.add_argument("--table", action="store_true", help="measure nothing")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows = results.Rows(RESULTS)
    for name, part in PARTS.items() if not options.table else ():
        if options.only in (None, name):
            part(Lab(options.pictures), rows)
    for card, found in tables(rows.rows).items():
        results.fill(CARDS / f"{card}.md", found)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
