# SPDX-License-Identifier: Apache-2.0
"""What the study of compression found of each method, for its card in docs/methods."""

from __future__ import annotations

from pathlib import Path

from compression_plan import TRIALS, trial
from results import fill, table
from study_plan import WHOLE, Row, Side
from study_table import Results, outcome, spread

BLOCK = "study"
CARDS: dict[str, tuple[str, ...]] = {  # card -> what is compared with, and the method's own trials
    "distill": ("small", "hinton", "hard"),
    "dkd": ("small", "dkd", "dkd_mild", "hinton"),
    "fitnets": ("small", "fitnets", "hinton"),
    "one": ("small", "one"),
    "dist": ("small", "dist", "hinton"),
    "attention_transfer": ("small", "attention", "hinton"),
    "similarity": ("small", "similarity", "hinton"),
    "rkd": ("small", "rkd", "hinton"),
    "minilm": ("vit", "minilm"),
    "mutual": ("small", "mutual"),
    "mean_teacher": ("small", "mean_teacher"),
    "gradual": ("longer", "one_shot", "iterative", "gradual", "one_shot_lamp", "iterative_lamp"),
    "equivariant": ("small", "p4", "p4m", "p4_open", "p4m_open"),
    "crelu": ("dense", "crelu"),
    "qat": ("longer", "qat8", "qat4", "qat2"),
    "binary": ("longer", "qat1"),
    "structured": tuple(one.name for one in TRIALS if one.claim == "structure"),
    "overparameterize": ("small", "branches_repvgg", "branches_acb"),
    "soup": ("longer", "soup"),
    "swa": ("longer", "swa"),
}
HEAD = ("training", "top-1, %", "against the first, points", "parameters")


def said(names: tuple[str, ...], results: Results) -> str:
    """The trainings of a card that were run, each against the first, picture by picture."""
    first, *_ = names
    there = [name for name in names if name in results]
    if first not in there or len(there) < 2:
        return "On CIFAR-10: not run yet ([the study](../studies/compression.md))."
    body = []
    for name in there:
        runs = [run for _, run in sorted(results[name].items())]
        found = outcome(Row("", "", Side(name), Side(first), ""), results)
        gap = "–" if name == first else f"{found.difference:+.2f} [{found.low:+.2f}, {found.high:+.2f}]"
        accuracy = spread([100 * run["views"][WHOLE]["top1"] for run in runs])
        body.append([trial(name).says, accuracy, gap, f"{runs[0]['params']:,}"])
    seeds = len(results[first])
    text = (
        f"On CIFAR-10, 10,000 test pictures, {seeds} seed{'s' * (seeds > 1)}; the interval is that over the pictures\n"
    )
    return f"{text}([the study](../studies/compression.md)):\n\n{table(HEAD, body)}"


def write(folder: Path, results: Results) -> None:
    """Into the cards of a folder."""
    for card, names in CARDS.items():
        if (page := folder / f"{card}.md").is_file():
            fill(page, {BLOCK: said(names, results)})
