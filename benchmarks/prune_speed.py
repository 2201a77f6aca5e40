# SPDX-License-Identifier: Apache-2.0
"""How fast half the multiply-adds really are: DeiT-tiny and ResNet-18 pruned to 50 % MACs in ONNX Runtime and OpenVINO.

    python benchmarks/prune_speed.py                       what is missing, then the page
    python benchmarks/prune_speed.py --only resnet18 --batch 1 --runtimes openvino
    python benchmarks/prune_speed.py --minutes 10          stops when the time is up; started again, it goes on
    python benchmarks/prune_speed.py --table               no measuring: the page alone

Each plan is searched until at most half the MACs are left, saved as JSON and safetensors, and loaded onto a fresh model
of timm's, which must answer to the bit as the pruned one does: nothing is repaired by hand. Then the exported files are
raced in turns with the dense one. What is compared is the time of the processor, which a busy machine changes least.
Weights are random: this is about time, not accuracy. Kept in docs/measured/prune_speed.json, race by race.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import results
import torch
from torch import nn

from featherweight import artifact, counting, measure
from featherweight.export import onnx
from featherweight.latency import race
from featherweight.methods import channels, drop_blocks, prune, widths
from featherweight.methods.budgeted import Fitted, fit_budget
from featherweight.surgery import apply
from featherweight.tasks.classification import Classification

RESULTS, PAGE = results.ROOT / "docs/measured/prune_speed.json", results.ROOT / "docs/studies/prune_speed.md"
SIZE, BUDGET, TARGET = (224, 224), 0.5, 1.65
BATCHES, RUNTIMES = (1, 32), ("onnxruntime", "openvino")
TURNS = 60
Cut = Callable[[nn.Module, float], nn.Module]  # a model and a ratio -> the pruned one
EXAMPLE = torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(0))


def by_channels(step: int) -> Cut:
    """The same share of every group of channels, residual streams too."""
    known: dict[int, channels.Ranked] = {}

    def cut(model: nn.Module, ratio: float) -> nn.Module:
        if id(model) not in known:
            known[id(model)] = channels.rank(model, EXAMPLE)
        return apply(model, known[id(model)].edits(ratio, round_to=step))

    return cut


def by_widths(step: int, *, heads: bool = False) -> Cut:
    """The same share of the neurons, of the width of heads (or of whole heads) and of the tokens."""
    known: dict[int, channels.Ranked] = {}

    def cut(model: nn.Module, ratio: float) -> nn.Module:
        if id(model) not in known:
            known[id(model)] = widths.rank_tokens(model, EXAMPLE)
        new = prune.prune(model, mlp=ratio, heads=0.34 if heads and ratio else 0.0, round_to=step)
        new = apply(new, widths.plan_heads(new, ratio=0.0 if heads else ratio, round_to=step))
        return apply(new, known[id(model)].edits(ratio, round_to=step))

    return cut


def by_blocks(model: nn.Module, ratio: float) -> nn.Module:
    """So many blocks left out, spread evenly."""
    count = round(ratio * len(drop_blocks.candidates(model)))
    known: dict[str, Any] = {"batches": [{"image": EXAMPLE}], "task": Classification(1000)}
    return drop_blocks.drop_blocks(model, count=count, rule="even", **known)


PLANS: dict[str, dict[str, Cut]] = {
    "resnet18": {f"channels, multiples of {n}": by_channels(n) for n in (8, 16, 32)},
    "deit_tiny_patch16_224": {
        **{f"neurons, heads' width, tokens, multiples of {n}": by_widths(n) for n in (8, 16)},
        "a head less, neurons, tokens, multiples of 16": by_widths(16, heads=True),
        "blocks left out evenly, 7 of 12": by_blocks,
    },
}


class Unit(NamedTuple):
    """One race: a plan's model against the dense one."""

    model: str
    plan: str
    runtime: str
    batch: int
    threads: int

    @property
    def key(self) -> str:
        return f"{self.model} | {self.plan} | {self.runtime} | batch {self.batch} | threads {self.threads}"


def base(name: str) -> nn.Module:
    import timm

    torch.manual_seed(0)
    return timm.create_model(name).eval()


def fitted(name: str, plan: str) -> tuple[nn.Module, Fitted]:
    """The dense model, and the largest pruned one within the budget."""
    model, cut = base(name), PLANS[name][plan]
    whole = counting.macs(model, EXAMPLE[:1])
    share: Callable[[nn.Module], float] = lambda new: counting.macs(new, EXAMPLE[:1]) / whole  # noqa: E731
    return model, fit_budget(lambda ratio: cut(model, ratio), share, budget=BUDGET, highest=0.7, steps=7)


class Files:
    """The exported files of the plan at hand."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made: tuple[str, str] | None = None
        self.about: dict[str, Any] = {}

    def make(self, name: str, plan: str) -> dict[str, Path]:
        """The dense and the pruned model's file; what was cut is in `about`."""
        paths = {kind: self.folder / f"{kind}.onnx" for kind in ("dense", "pruned")}
        if self.made != (name, plan):
            model, found = fitted(name, plan)
            small = found.model.eval()
            again = artifact.load(artifact.save(small, self.folder / "model"), base=base(name))
            with torch.no_grad():
                same = torch.equal(again(EXAMPLE), small(EXAMPLE))
            for path, one in zip(paths.values(), (model, again), strict=True):
                path.write_bytes(onnx.to_bytes(one, EXAMPLE))
            self.about = {
                "ratio": round(found.ratio, 4),
                "macs": round(found.cost, 4),
                "params": round(counting.parameters(small) / counting.parameters(model), 4),
                "rebuilt": same,
                "plan_bytes": measure.size(self.folder / "model" / "model.json"),
                "onnx_bytes": [measure.size(path) for path in paths.values()],
            }
            self.made = (name, plan)
        return paths


def raced(unit: Unit, files: Files, seconds: float) -> dict[str, Any]:
    """What is kept of a race: processor time, and the clock's beside it."""
    paths = files.make(unit.model, unit.plan)
    known: dict[str, Any] = {"batch": unit.batch, "resolution": SIZE, "threads": unit.threads, "backend": unit.runtime}
    runs = {kind: measure.runnable(path, **known) for kind, path in paths.items()}
    found: dict[str, Any] = {}
    for clock in (time.process_time, time.perf_counter):
        times = race(runs, baseline="dense", repeats=TURNS, warmup=3, budget_s=seconds / 2, clock=clock)
        ratio, interval = times.ratio("pruned", "dense")
        ms = [times[kind].median_ms for kind in runs]
        found[clock.__name__] = {"ratio": ratio, "interval": list(interval), "ms": ms}
    return {**unit._asdict(), **files.about, **found, "load": measure.load_average(), "when": time.strftime("%Y-%m-%d")}


def units(options: argparse.Namespace) -> Iterator[Unit]:
    for name, plans in PLANS.items():
        for plan in plans:
            for batch in options.batch:
                for runtime in options.runtimes:
                    if any(word in f"{name} {plan}" for word in options.only):
                        yield Unit(name, plan, runtime, batch, options.threads)


def written(rows: dict[str, dict[str, Any]]) -> dict[str, str]:
    """The blocks of the page."""
    blocks = {}
    for name, plans in PLANS.items():
        body = []
        for plan in plans:
            mine = [row for row in rows.values() if (row["model"], row["plan"]) == (name, plan)]
            about = [f"{mine[0]['macs']:.1%}", f"{mine[0]['params']:.1%}"] if mine else ["–", "–"]
            body.append([plan, *about, *(_cell(mine, batch, runtime) for batch in BATCHES for runtime in RUNTIMES)])
        head = [
            "plan",
            "MACs",
            "parameters",
            *(f"{runtime}, batch {batch}" for batch in BATCHES for runtime in RUNTIMES),
        ]
        blocks[name.split("_")[0]] = results.table(head, body)
    if rows:
        here, loads = measure.machine(), [row["load"] for row in rows.values()]
        versions = ", ".join(
            f"{name} {here['versions'][name]}" for name in ("onnxruntime", "openvino", "torch", "timm")
        )
        where = f"{here['cpu']}, {here['cores']} cores, {', '.join(here['flags'])}; {versions}."
        blocks["machine"] = f"{where} Load of the machine before a race: {min(loads):.0f} to {max(loads):.0f}."
    return blocks


def _cell(rows: Sequence[dict[str, Any]], batch: int, runtime: str) -> str:
    found = next((row for row in rows if (row["batch"], row["runtime"]) == (batch, runtime)), None)
    if found is None:
        return "not run yet"
    ratio, (low, high) = found["process_time"]["ratio"], found["process_time"]["interval"]
    mark = "" if batch != 1 else " ✓" if ratio >= TARGET else " ✗"
    return f"{ratio:.2f}× ({low:.2f}–{high:.2f}){mark}"


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    words: Callable[[str], list[str]] = lambda text: [word.strip() for word in text.split(",")]  # noqa: E731
    parser.add_argument("--only", type=words, default=[""], help="models or plans with one of these words")
    parser.add_argument("--runtimes", type=words, default=list(RUNTIMES))
    parser.add_argument("--batch", type=lambda text: [int(word) for word in text.split(",")], default=list(BATCHES))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each race, without making its models ready")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="no race begins after so many")
    parser.add_argument("--again", action="store_true", help="races that are there already, too")
    parser.add_argument("--table", action="store_true", help="measure nothing")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    options, began, rows = parsed(argv), time.monotonic(), results.Rows(RESULTS)
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        files = Files(Path(folder))
        for unit in [] if options.table else units(options):
            if unit.key in rows and not options.again:
                continue
            if time.monotonic() - began > 60 * options.minutes:
                print("the time is up; started again, it goes on from here")
                break
            rows.add(unit.key, raced(unit, files, options.seconds))
    results.fill(PAGE, written(rows.rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
