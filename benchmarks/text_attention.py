# SPDX-License-Identifier: Apache-2.0
"""What dropping tokens and star-shaped attention cost a text classifier: at once, and after one epoch more.

    python benchmarks/text_attention.py --data DATA --out runs/text_study           after text_study.py --task sst2
    python benchmarks/text_attention.py --data DATA --out runs/text_study --table   no measuring: the cards' tables

The student of `text_study.py` on SST-2, changed and not trained on, then trained on for an epoch with its own answers
before the change; the unchanged one is trained on just so. Accuracy is that of the 1,821 test sentences; latencies are
those of 32 of them, one at a time, one thread, in turns. Rows are kept in docs/measured/text_attention.json.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from results import ROOT, Rows, fill, table
from text_study import Study, raced
from torch import nn

from featherweight import artifact, optim, pipeline
from featherweight.export import text
from featherweight.methods.distill import Distill
from featherweight.methods.power_bert import narrowing
from featherweight.methods.star_attention import starred
from featherweight.models import pretrained
from featherweight.train import fit

RESULTS, CARDS = ROOT / "docs" / "measured" / "text_attention.json", ROOT / "docs" / "methods"
SAME = "as it is"
CHANGES: dict[str, Callable[[nn.Module], nn.Module]] = {
    SAME: lambda model: model,
    "tokens 0.8": lambda model: narrowing(model, keep=0.8),
    "tokens 0.6": lambda model: narrowing(model, keep=0.6),
    "star, radius 4": lambda model: starred(model, radius=4),
    "star, radius 1": lambda model: starred(model, radius=1),
}


def longer(study: Study, model: nn.Module, student: nn.Module, tokens: Any) -> nn.Module:
    """One epoch more, with the student's answers beside the labels."""
    return fit(
        model, study.batches(tokens, 32), study.task, methods=[Distill(teacher=student, alpha=0.7)], epochs=1,
        optimizer=optim.adamw(lr=5e-5, weight_decay=0.01), schedule=optim.cosine(warmup=0.1), precision="bfloat16",
    )  # fmt: skip


def measured(study: Study, rows: Rows) -> None:
    """Every row that is not there, then the race of all in ONNX Runtime."""
    student = artifact.load(study.folder / "student")
    tokens = study.tokens
    changed = {name: pretrained.with_tokens(change(student), tokens) for name, change in CHANGES.items()}
    for name, model in changed.items():
        if name not in rows:
            row = study.score(model)
            new = pretrained.with_tokens(longer(study, model, student, tokens), tokens)
            rows.add(name, row | {"trained": study.score(new)["accuracy"]})
    with tempfile.TemporaryDirectory() as folder:
        pipes = {}
        for number, (name, model) in enumerate(changed.items()):
            path = Path(folder, str(number), "model.onnx")
            text.export(model, path, texts=study.texts[:64])
            pipes[name] = pipeline(None, path, threads=1)
        times = raced(pipes, study.inputs(), rounds=10)
    rows.add("race", {name: one["p50"] for name, one in times.items()})


def tables(rows: Rows) -> dict[str, str]:
    """The table of each card."""
    race = rows.rows["race"]
    head = ("the student of 4 layers on SST-2", "accuracy at once", "after an epoch", "ms, ONNX Runtime", "as fast")
    found = {}
    for card, word in {"power_bert": "tokens", "star_attention": "star"}.items():
        body = [
            (n, f"{r['accuracy']:.1f}", f"{r['trained']:.1f}", f"{race[n]:.2f}", f"{race[SAME] / race[n]:.2f}×")
            for n, r in rows.rows.items()
            if n == SAME or n.startswith(word)
        ]
        found[card] = table(head, body)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/text_study"))
    parser.add_argument("--table", action="store_true", help="only write the tables into the cards")
    options = parser.parse_args()
    options.tiny, options.seed = False, 0
    rows = Rows(RESULTS)
    if not options.table:
        torch.set_num_threads(1)
        measured(Study("sst2", options, rows), rows)
    for card, block in tables(rows).items():
        fill(CARDS / f"{card}.md", {card: block})


if __name__ == "__main__":
    main()
