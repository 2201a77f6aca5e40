# SPDX-License-Identifier: Apache-2.0
"""Fewer bits on the models that ship with the package: bytes of the file, and how far the answers are from float.

    python benchmarks/few_bits.py                        what is missing
    python benchmarks/few_bits.py --only resnet qat      rows with one of these words
    python benchmarks/few_bits.py --images 1000          more pictures

The digits that need no file: training pictures calibrate and train, test pictures judge. Everything is kept, row by
row, in docs/measured/few_bits.json, and the table of docs/studies/few_bits.md is written from there. Without training a
few minutes on two quiet cores, with it about an hour.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import results
import torch
from torch import Tensor, nn

from featherweight import artifact, data, measure
from featherweight.data import Batches
from featherweight.methods import adaround, dynamic_int8, equalize, half, mixed_precision, quantize, smooth, weight_only
from featherweight.methods.binary import Binary
from featherweight.methods.distill import Distill
from featherweight.methods.qat import QAT
from featherweight.models import zoo
from featherweight.optim import adamw
from featherweight.runtime.parity import snr_db
from featherweight.tasks.classification import Classification
from featherweight.train import Method, fit

RESULTS, PAGE = results.ROOT / "docs" / "measured" / "few_bits.json", results.ROOT / "docs" / "studies" / "few_bits.md"
MODELS = ("resnet_digits", "vit_digits")
TASK = Classification(10)
Seen = Sequence[Mapping[str, Tensor]]
Make = Callable[[nn.Module, Seen], nn.Module]


def weights(grid: str, **options: Any) -> Make:
    return lambda model, seen: weight_only.weight_only(model, weights=grid, **options)


def learned(grid: str, steps: int) -> Make:
    def make(model: nn.Module, seen: Seen) -> nn.Module:
        return adaround.adaround(model, weight_only.weight_only(model, weights=grid), seen, TASK, steps=steps)

    return make


def mixed(share: float) -> Make:
    """So much of what int8 would take."""

    def make(model: nn.Module, seen: Seen) -> nn.Module:
        size = round(share * sum(layer.weight.numel() for layer in quantize.selected(model).values()))
        return mixed_precision.mixed_precision(model, seen[:1], TASK, size_bytes=size)

    return make


def eight(model: nn.Module, seen: Seen) -> nn.Module:
    return quantize.quantize(model, seen, TASK)


ROUNDED: dict[str, Make] = {
    "float32": lambda model, seen: model,
    "float16": lambda model, seen: half.to_half(model),
    "bfloat16": lambda model, seen: half.to_half(model, dtype="bfloat16"),
    "int8": eight,
    "int8, dynamic": lambda model, seen: dynamic_int8.quantize_dynamic(model),
    "int8 weights": weights("int8"),
    "int4 weights": weights("int4"),
    "uint4 weights": weights("uint4"),
    "int4 weights, AdaRound": learned("int4", 200),
    "int2 weights": weights("int2"),
    "int2 weights, AdaRound": learned("int2", 200),
    "ternary weights": weights("ternary"),
    "binary weights": weights("binary"),
    "mixed, half of int8": mixed(0.5),
    "mixed, 0.4 of int8": mixed(0.4),
}
OF_ONE: dict[str, dict[str, Make]] = {
    "resnet_digits": {"equalized, int8": lambda model, seen: eight(equalize.equalize(model, seen, TASK), seen)},
    "vit_digits": {"smoothed, int8": lambda model, seen: eight(smooth.smooth(model, seen, TASK), seen)},
}
TRAINED: dict[str, Callable[[Seen], Method]] = {
    "qat int8": lambda seen: QAT(TASK, seen),
    "qat int4": lambda seen: QAT(TASK, seen, weights="int4"),
    "qat int2": lambda seen: QAT(TASK, seen, weights="int2"),
    "qat ternary": lambda seen: QAT(TASK, seen, weights="ternary"),
    "qat binary": lambda seen: QAT(TASK, seen, weights="binary"),
    "binary, connect": lambda seen: Binary("connect"),
    "binary, weights": lambda seen: Binary("weights"),
    "binary, xnor": lambda seen: Binary("xnor"),
    "binary, bireal": lambda seen: Binary("bireal", TASK, seen[0]["image"]),
}


class Bench:
    """One model, and the pictures as it wants them."""

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        self.name, self.options = name, options
        digits = data.load("digits")
        known: dict[str, Any] = {"batch_size": 32}
        preprocess = zoo.entry(name).preprocess
        self.train = Batches(digits.train, preprocess, shuffle=True, limit=options.train, **known)
        self.seen = [b for _, b in zip(range(4), self.train.epoch(0), strict=False)]
        self.judged = list(Batches(digits.test, preprocess, limit=options.images, **known).epoch(0))
        self.labels = torch.cat([batch["label"] for batch in self.judged]).numpy()
        self.model = artifact.load(zoo.shipped_weights(name))
        self.wanted = self.answers(self.model)

    def answers(self, model: nn.Module) -> np.ndarray:
        with torch.inference_mode():
            return torch.cat([model(batch["image"]) for batch in self.judged]).numpy()

    def row(self, name: str) -> dict[str, Any]:
        began = time.process_time()
        make = {**ROUNDED, **OF_ONE[self.name]}.get(name)
        new = make(self.model, self.seen) if make else self.trained(TRAINED[name](self.seen))
        seconds = time.process_time() - began
        with tempfile.TemporaryDirectory() as folder:
            artifact.save(new, folder)
            size = measure.size(Path(folder) / "model.safetensors")
            got = self.answers(artifact.load(folder))
        ratio = snr_db(self.wanted, got)
        return {
            "top1": round(float((got.argmax(1) == self.labels).mean()), 4), "images": len(self.labels),
            "agreement": round(float((got.argmax(1) == self.wanted.argmax(1)).mean()), 4),
            "snr_db": round(ratio, 1) if np.isfinite(ratio) else None,
            "size_bytes": size, "seconds": round(seconds, 1),
            "trained": 0 if make else self.options.epochs * self.options.train,
        }  # fmt: skip

    def trained(self, method: Method) -> nn.Module:
        """Trained on with rounding, taught by the float model."""
        methods = [Distill(self.model, alpha=0.5), method]
        rate = adamw(self.options.lr, weight_decay=0.0)
        return fit(self.model, self.train, TASK, methods=methods, optimizer=rate, epochs=self.options.epochs)


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """A row for each way, the models beside each other."""
    head = ("", *(f"{model}: {what}" for model in MODELS for what in ("top-1", "same class", "dB", "file")))
    lines = []
    for name in dict.fromkeys([*ROUNDED, *(n for of in OF_ONE.values() for n in of), *TRAINED]):
        cells: list[str] = []
        for model in MODELS:
            row = found.get(f"{model} {name}")
            mine = name in ROUNDED or name in TRAINED or name in OF_ONE[model]
            if row is None:
                cells += ["not run yet" if mine else "–", "", "", ""]
                continue
            noise = "–" if row["snr_db"] is None else f"{row['snr_db']:.1f}"
            after = f" after {row['trained']} pictures" if row.get("trained") else ""
            size = f"{row['size_bytes'] / 1e6:.3f} MB"
            cells += [f"{row['top1']:.1%}{after}", f"{row['agreement']:.1%}", noise, size]
        lines.append((name, *cells))
    return results.table(head, lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="*", default=[""], help="rows with one of these words")
    parser.add_argument("--images", type=int, default=1000, help="test pictures")
    parser.add_argument("--train", type=int, default=6000, help="training pictures of an epoch")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--untrained", action="store_true", help="only what needs no training")
    parser.add_argument("--again", action="store_true", help="also what is there already")
    options, found = parser.parse_args(argv), results.Rows(RESULTS)
    torch.set_num_threads(1)
    for model in MODELS:
        bench: Bench | None = None
        for name in (*ROUNDED, *OF_ONE[model], *(() if options.untrained else TRAINED)):
            key = f"{model} {name}"
            if any(word in key for word in options.only) and (options.again or key not in found):
                bench = bench or Bench(model, options)
                found.add(key, bench.row(name))
    results.fill(PAGE, {"digits": table(found.rows)})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
