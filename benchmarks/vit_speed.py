# SPDX-License-Identifier: Apache-2.0
"""How fast the vision transformers are: ours against timm's, fewer tokens or grouped attention against the plain form.

    python benchmarks/vit_speed.py                         what is missing, the most asked for first
    python benchmarks/vit_speed.py --minutes 20            stops when the time is up; started again, it goes on
    python benchmarks/vit_speed.py --only dynamicvit --batch 32 --runtimes eager,openvino --threads 1
    python benchmarks/vit_speed.py --table                 no measuring: the table alone

One race is one group of models in one runtime, type, batch and number of threads: they take turns, and a ratio is the
median over the turns of two times that stand beside each other, with its 95 % interval. Everything is kept, race by
race, in docs/measured/vit_speed.json, and docs/studies/vit_speed.md is written from there. Weights are random.

A busy machine shows: take the times with nothing beside them (`load` is kept with each race). About an hour for all.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from featherweight import files, measure
from featherweight.latency import Times, race
from featherweight.methods import dynamicvit, tome
from featherweight.models import zoo
from featherweight.surgery import apply

ROOT = Path(__file__).resolve().parents[1]
RESULTS, PAGE = ROOT / "docs" / "measured" / "vit_speed.json", ROOT / "docs" / "studies" / "vit_speed.md"
BLOCK = re.compile(r"(<!-- speed:begin (\w+) -->\n)(.*?)(<!-- speed:end -->)", re.DOTALL)
SIZE = (224, 224)
RUNTIMES = {  # name -> runtime, type
    "eager": ("torch eager", "float32"),
    "openvino": ("openvino", "float32"),
    "onnxruntime": ("onnxruntime", "float32"),
    "compiled": ("torch compiled", "float32"),
    "eager-bf16": ("torch eager", "bfloat16"),
    "openvino-bf16": ("openvino", "bfloat16"),
    "compiled-bf16": ("torch compiled", "bfloat16"),
}
TURNS = 40  # of a race at most
EQUAL = 0.97  # two copies of one model may differ by so much, for where their memory lies


def dropping(model: nn.Module, at: Sequence[int], keep: float = 0.7) -> nn.Module:
    return apply(model, dynamicvit.plan(model, keep=keep, at=at)).eval()


def ours(name: str, **config: Any) -> nn.Module:
    torch.manual_seed(0)
    return zoo.create(name, **config).eval()


def theirs(name: str) -> nn.Module:
    """timm's model with the weights of ours; they must answer alike, else something else is timed."""
    import timm

    own, other = ours(name), timm.create_model(name).eval()
    other.load_state_dict(own.state_dict())
    x = torch.randn(1, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(own(x), other(x), atol=1e-4, rtol=0)
    return other


Makers = Mapping[str, Callable[[], nn.Module]]
DEIT_S, DEIT_T = "deit_small_patch16_224", "deit_tiny_patch16_224"
GROUPS: dict[str, Makers] = {
    "deit_small": {
        "DeiT-S": lambda: ours(DEIT_S),
        "DeiT-S of timm": lambda: theirs(DEIT_S),
        "DynamicViT 0.7 on DeiT-S": lambda: dropping(ours(DEIT_S), (3, 6, 9)),
        "ToMe 13 on DeiT-S": lambda: tome.merged(ours(DEIT_S), r=13),
    },
    "lvvit_s": {
        "LV-ViT-S": lambda: ours("lvvit_s"),
        "DynamicViT 0.7 on LV-ViT-S": lambda: dropping(ours("lvvit_s"), (4, 8, 12)),
    },
    "deit_tiny": {
        "DeiT-T": lambda: ours(DEIT_T),
        "DeiT-T of timm": lambda: theirs(DEIT_T),
        "a second DeiT-T": lambda: ours(DEIT_T),  # what two equal models differ by
    },
    "sret_t": {
        "SReT-T, not sliced": lambda: ours("sret_t_wo_slice"),
        "SReT-T": lambda: ours("sret_t"),
        "SReT-T without permutations": lambda: ours("sret_t", permutation="none"),
    },
}


class Claim(NamedTuple):
    """`model` is at least `least[batch]` times as fast as `over`; a batch without a number is only shown."""

    group: str
    model: str
    over: str
    least: Mapping[int, float]


CLAIMS = (
    Claim("deit_small", "DeiT-S", "DeiT-S of timm", {1: 1.0, 32: 1.0}),
    Claim("deit_tiny", "DeiT-T", "DeiT-T of timm", {1: 1.0, 32: 1.0}),
    Claim("deit_tiny", "DeiT-T", "a second DeiT-T", {}),
    Claim("deit_small", "DynamicViT 0.7 on DeiT-S", "DeiT-S", {1: 1.0, 32: 1.45}),
    Claim("deit_small", "ToMe 13 on DeiT-S", "DeiT-S", {1: 1.0, 32: 1.45}),
    Claim("lvvit_s", "DynamicViT 0.7 on LV-ViT-S", "LV-ViT-S", {}),
    Claim("sret_t", "SReT-T", "SReT-T, not sliced", {}),
    Claim("sret_t", "SReT-T", "SReT-T without permutations", {}),
)


class Unit(NamedTuple):
    """One race."""

    group: str
    runtime: str
    batch: int
    threads: int

    @property
    def name(self) -> str:
        return f"{self.group} {self.runtime} batch {self.batch} threads {self.threads}"


def units(options: argparse.Namespace) -> Iterator[Unit]:
    """What is asked for: for every group and runtime large batches first, then single pictures."""
    for batch in sorted(options.batch, reverse=True):
        for runtime in options.runtimes:
            for group, makers in GROUPS.items():
                if any(word in " ".join([group, *makers]).lower() for word in options.only):
                    yield Unit(group, runtime, batch, options.threads)


class Bench:
    """Models of one group at a time, and their exported files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made: dict[str, dict[str, nn.Module]] = {}

    def models(self, group: str) -> dict[str, nn.Module]:
        if group not in self.made:
            self.made = {group: {name: make() for name, make in GROUPS[group].items()}}
        return self.made[group]

    def file(self, unit: Unit, name: str) -> Path:
        from featherweight.export import onnx

        path = self.folder / f"{re.sub(r'[^a-zA-Z0-9]+', '_', name)}.onnx"
        if not path.exists():
            path.write_bytes(onnx.to_bytes(self.models(unit.group)[name], torch.zeros(2, 3, *SIZE)))
        return path

    def runnable(self, unit: Unit, name: str) -> measure.Runnable:
        runtime, dtype = RUNTIMES[unit.runtime]
        known: dict[str, Any] = {"batch": unit.batch, "resolution": SIZE, "threads": unit.threads}
        if not runtime.startswith("torch"):
            precision = {"bfloat16": "bf16"}.get(dtype)
            return measure.runnable(self.file(unit, name), backend=runtime, precision=precision, **known)
        model = self.models(unit.group)[name]
        model = model if dtype == "float32" else apply(model, []).bfloat16()  # a copy
        found: measure.Runnable = measure.runnable(model if runtime == "torch eager" else torch.compile(model), **known)
        return dataclasses.replace(found, conditions=dataclasses.replace(found.conditions, runtime=runtime))

    def race(self, unit: Unit, seconds: float) -> dict[str, Any]:
        """What is kept of a race."""
        torch.set_num_threads(unit.threads)
        torch._dynamo.reset()
        runs = {name: self.runnable(unit, name) for name in GROUPS[unit.group]}
        times = race(runs, repeats=TURNS, warmup=2, budget_s=seconds)
        return kept(unit, times)


def kept(unit: Unit, times: Times) -> dict[str, Any]:
    first = next(iter(times.values())).conditions
    models = {
        name: {"median_ms": found.median_ms, "p10_ms": found.p10_ms, "p90_ms": found.p90_ms,
               "images_per_s": round(found.images_per_s, 3), "turns": found.conditions.repeats}
        for name, found in times.items()
    }  # fmt: skip
    ratios = []
    for claim in CLAIMS:
        if claim.group == unit.group:
            ratio, interval = times.ratio(claim.model, claim.over)
            ratios.append({"model": claim.model, "over": claim.over, "ratio": ratio, "interval": list(interval)})
    where = {"dtype": first.dtype, "runtime": first.runtime, "version": first.version, "load": first.load}
    return {**unit._asdict(), **where, "when": time.strftime("%Y-%m-%d"), "models": models, "ratios": ratios}


def results() -> dict[str, Any]:
    if not RESULTS.is_file():
        return {"format": 1, "machine": {}, "races": {}}
    found: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8"))
    return found


def verdict(found: Mapping[str, Any], least: float | None) -> str:
    """A ratio with its interval, and whether what is claimed of it holds."""
    low, high = found["interval"]
    text = f"{found['ratio']:.2f}× ({low:.2f}–{high:.2f})"
    if least is None:
        return text
    noise = high >= least or (least == 1.0 and found["ratio"] >= EQUAL)
    return text + (" ✓" if found["ratio"] >= least else " within noise" if noise else " ✗")


def table(found: Mapping[str, Any], threads: int) -> str:
    """A row for each claim and runtime."""
    races = [one for one in found["races"].values() if one["threads"] == threads]
    lines = ["| | runtime | batch 32 | images/s | batch 1 | ms |", "| --- | --- | ---: | ---: | ---: | ---: |"]
    for claim in CLAIMS:
        for runtime, (name, dtype) in RUNTIMES.items():
            cells = {1: ("–", "–"), 32: ("–", "–")}
            for one in races:
                if (one["group"], one["runtime"], one["dtype"]) == (claim.group, name, dtype) and one["batch"] in cells:
                    cells[one["batch"]] = _cells(one, claim)
            if cells != {1: ("–", "–"), 32: ("–", "–")}:
                what = f"{claim.model} against {claim.over}"
                kind = f"{name}, {'bf16' if runtime.endswith('bf16') else 'fp32'}"
                lines.append(f"| {what} | {kind} | {' | '.join((*cells[32], *cells[1]))} |")
    return "\n".join(lines)


def _cells(one: Mapping[str, Any], claim: Claim) -> tuple[str, str]:
    """The ratio, and what it is a ratio of: images a second, or milliseconds for one image."""
    batch, key = one["batch"], "median_ms" if one["batch"] == 1 else "images_per_s"
    mine, other = (one["models"][name][key] for name in (claim.model, claim.over))
    ratio = next(r for r in one["ratios"] if (r["model"], r["over"]) == (claim.model, claim.over))
    return verdict(ratio, claim.least.get(batch)), f"{mine:.1f} : {other:.1f}"


def filled(text: str, found: Mapping[str, Any]) -> str:
    """The page with its blocks written anew."""
    threads = sorted({one["threads"] for one in found["races"].values()}, reverse=True)
    tables = [f"On {n} thread{'s' if n > 1 else ''}:\n\n{table(found, n)}" for n in threads]
    blocks = {"table": "\n\n".join(tables) or "Nothing yet.", "machine": _machine(found)}
    return BLOCK.sub(lambda m: f"{m[1]}{blocks[m[2]]}\n{m[4]}", text)


def _machine(found: Mapping[str, Any]) -> str:
    if not found["races"]:
        return "Nothing yet."
    here, load = found["machine"], max(one["load"] for one in found["races"].values())
    versions = ", ".join(f"{name} {version}" for name, version in here["versions"].items())
    what = f"{here['cpu']}, {here['cores']} cores, {', '.join(here['flags'])}; {versions}. Largest load before a race:"
    return f"{what} {load}."


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    words: Callable[[str], list[str]] = lambda text: [word.strip().lower() for word in text.split(",")]  # noqa: E731
    parser.add_argument("--only", type=words, default=[""], help="groups or models with one of these words")
    parser.add_argument("--runtimes", type=words, default=list(RUNTIMES), help=", ".join(RUNTIMES))
    parser.add_argument("--batch", type=lambda text: [int(word) for word in text.split(",")], default=[32, 1])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=40.0, help="of each race, without making its models ready")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="no race begins after so many")
    parser.add_argument("--again", action="store_true", help="races that are there already, too")
    parser.add_argument("--table", action="store_true", help="measure nothing")
    options = parser.parse_args(argv)
    for name in options.runtimes:
        if name not in RUNTIMES:
            parser.error(f"--runtimes: no {name!r}; known: {', '.join(RUNTIMES)}")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    options, began, found = parsed(argv), time.monotonic(), results()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        for unit in [] if options.table else units(options):
            if unit.name in found["races"] and not options.again:
                continue
            if time.monotonic() - began > 60 * options.minutes:
                print("the time is up; started again, it goes on from here")
                break
            found = {**found, "machine": measure.machine()}
            found["races"][unit.name] = one = bench.race(unit, options.seconds)
            files.publish(RESULTS, (json.dumps(found, indent=1, ensure_ascii=False) + "\n").encode())
            for ratio in one["ratios"]:
                low, high = ratio["interval"]
                print(f"{unit.name}: {ratio['model']} over {ratio['over']} {ratio['ratio']:.3f} ({low:.3f}-{high:.3f})")
    page = filled(PAGE.read_text(encoding="utf-8"), found)
    files.publish(PAGE, page.encode())
    print(table(found, options.threads))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
