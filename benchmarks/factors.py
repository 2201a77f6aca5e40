# SPDX-License-Identifier: Apache-2.0
"""What factors, structured matrices, turning and paired filters and dynamic 8 bits cost and bring, at a small scale.

    python benchmarks/factors.py                    every part that is not there yet; about 15 minutes on a quiet core
    python benchmarks/factors.py --part lowrank     one part anew
    python benchmarks/factors.py --tables           only write the tables into the cards

Each part is kept in docs/measured/factors.json when it is done, so the command goes on where it was stopped; the tables
in docs/methods are written from there. Accuracies are on digits (1,200 test pictures, one seed): differences of a point
and a half are noise. Latencies are raced in turns on one thread against the first row, in float32, and say which
runtime. Larger studies: benchmarks/compression_study.py.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import factors_table
import torch
from factors_table import RUNTIMES, SIZES, Rows
from torch import Tensor, nn

from featherweight import artifact, counting, files, measure
from featherweight.data import Batches, load
from featherweight.export.onnx import INPUT, to_bytes
from featherweight.latency import race
from featherweight.layer_race import Faster
from featherweight.methods import crelu, dynamic_int8, equivariant, lowrank, structured
from featherweight.methods.structured import MATRICES
from featherweight.models import zoo
from featherweight.runtime.session import open_session
from featherweight.tasks.classification import Classification

SHARES = (0.25,)  # of the full rank, in the nets that are raced
RESULTS = Path(__file__).resolve().parents[1] / "docs" / "measured" / "factors.json"


# What is measured with ------------------------------------------------------------------------------------------------
@cache
def digits() -> Any:
    return load("digits")


def batches(part: str, model: str, *, limit: int | None = None) -> Batches:
    images = getattr(digits(), part)
    return Batches(images, zoo.entry(model).preprocess, batch_size=32, shuffle=part == "train", limit=limit)


def task() -> Classification:
    return Classification(digits().classes)


def accuracy(model: nn.Module, name: str) -> float:
    """Percent of the test pictures."""
    return 100 * float(task().evaluate(model, batches("test", name).epoch(0))["top1"])


def speeds(models: dict[str, nn.Module], example: Tensor, *, budget_s: float = 4.0) -> dict[str, dict[str, Any]]:
    """Runtime -> model -> median milliseconds and the ratio to the first model with its interval."""
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, model in enumerate(models.values()):
            Path(folder, f"{number}.onnx").write_bytes(to_bytes(model, example))
        for runtime in RUNTIMES:
            precision = "f32" if runtime == "openvino" else None
            runners: dict[str, Callable[[], object]] = {}
            for number, name in enumerate(models):
                path = Path(folder, f"{number}.onnx")
                session = open_session(path, backend=runtime, threads=1, precision=precision)
                runners[name] = lambda session=session: session.run({INPUT: example.numpy()})
            times = race(runners, repeats=200, budget_s=budget_s)
            found[runtime] = {
                name: {"ms": one.median_ms, "ratio": one.ratio, "interval": one.ratio_interval}
                for name, one in times.items()
            }
    return found


# The parts ------------------------------------------------------------------------------------------------------------
def part_lowrank() -> Rows:
    """The shipped ViT in factors, untrained afterwards: weights' energy against outputs' variance."""
    model = artifact.load(zoo.shipped_weights("vit_digits"))
    seen = list(batches("train", "vit_digits", limit=256).epoch(0))
    whole = counting.parameters(model)
    rows: Rows = [{"what": "as it is", "params": whole, "plain": accuracy(model, "vit_digits")}]
    for keep in (0.9, 0.7, 0.5):
        row: dict[str, Any] = {"what": f"budget {keep:g}"}
        for name, known in (("plain", {}), ("data", {"batches": seen, "task": task()})):
            new = lowrank.factorize(model, ranks="budget", keep=keep, **known).eval()
            row |= {name: accuracy(new, "vit_digits"), "params": counting.parameters(new)}
        rows.append(row)
    return rows


def part_speed() -> Rows:
    """Whole nets in factors of a share of the full rank, all of them and those that a race kept; random weights."""
    rows: Rows = []
    for name, size in (("deit_tiny", 224), ("resnet18", 224)):
        torch.manual_seed(0)
        model, image = zoo.create(name).eval(), torch.randn(1, 3, size, size)
        seen = lowrank.look(model, [{"image": image}], Classification(1000))
        for conv in ("tucker", "spatial") if name == "resnet18" else ("tucker",):
            for share in SHARES:
                options: dict[str, Any] = {"ranks": "share", "keep": share, "conv": conv, "seen": seen}
                models = {"layers": model, "factors": lowrank.apply(model, lowrank.plan(model, **options))}
                for runtime in RUNTIMES:
                    edits = lowrank.plan(model, only=Faster(runtime), **options)  # type: ignore[arg-type]
                    models[f"kept in {runtime}"] = lowrank.apply(model, edits)
                for runtime, times in speeds(models, image).items():
                    for variant in ("factors", f"kept in {runtime}"):
                        new = models[variant]
                        macs = counting.macs(new, image) / counting.macs(model, image)
                        rows.append({
                            "net": name, "conv": conv, "share": share, "runtime": runtime,
                            "variant": variant.split()[0], "macs": macs,
                            "params": counting.parameters(new) / counting.parameters(model),
                            "ms": times["layers"]["ms"], **times[variant],
                        })  # fmt: skip
    return rows


def part_structured() -> Rows:
    """A quarter of the weights: the error of the fit to trained layers."""
    model = artifact.load(zoo.shipped_weights("vit_digits"))
    trained = [m.weight.detach().double() for path, m in model.named_modules() if path.endswith(("fc1", "fc2"))]
    rows: Rows = []
    for name in MATRICES:
        row: dict[str, Any] = {"matrix": name}
        if MATRICES[name].closed_form:
            errors = []
            for weight in trained:
                matrix = MATRICES[name](*weight.shape, **MATRICES[name].spec_for(*weight.shape, 0.25)).double()
                matrix.project(weight)
                errors.append(float((matrix.dense() - weight).norm().detach() / weight.norm()))
            row["error"] = sum(errors) / len(errors)
        rows.append(row)
    svd = []
    for weight in trained:
        rank = int(0.25 * weight.numel() / sum(weight.shape))
        svd.append(float(torch.linalg.svdvals(weight)[rank:].norm() / weight.norm()))
    rows.append({"matrix": "low rank", "error": sum(svd) / len(svd)})
    return rows


def part_structured_speed() -> Rows:
    """A quarter of the weights: the time of one layer on 196 tokens."""
    rows: Rows = [{"matrix": name} for name in (*MATRICES, "low rank")]
    for n in SIZES:
        torch.manual_seed(0)
        dense = nn.Sequential(nn.Linear(n, n))
        models: dict[str, nn.Module] = {"dense": dense}
        for name in MATRICES:
            models[name] = structured.structure(dense, matrix=name, keep=0.25, fresh=True)  # type: ignore[arg-type]
        models["low rank"] = lowrank.factorize(dense, ranks="budget", keep=0.25)
        times = speeds(models, torch.randn(1, 196, n))
        for row in rows:
            layer = models[row["matrix"]]
            row[f"params {n}"] = counting.parameters(layer) / counting.parameters(dense)
            row[f"ratio {n}"] = {runtime: times[runtime][row["matrix"]]["ratio"] for runtime in RUNTIMES}
    return rows


def part_dynamic() -> Rows:
    """The time of whole nets with 8 bits without calibration."""
    rows: Rows = []
    for name, size in (("vit_digits", 48), ("deit_tiny_patch16_224", 224)):
        torch.manual_seed(0)
        model = zoo.create(name).eval()
        models = {"dense": model, "8 bits": dynamic_int8.quantize_dynamic(model)}
        times = speeds(models, torch.randn(1, 3, size, size))
        rows += [{"model": name, "runtime": runtime, **times[runtime]["8 bits"]} for runtime in RUNTIMES]
    return rows


def part_equivariant() -> Rows:
    """How exact invariance is, at random weights that are not a trained net's fresh ones."""
    rows: Rows = []
    for group in ("p4", "p4m"):
        for symmetric in (False, True):
            torch.manual_seed(0)
            model = zoo.create("resnet18", widths=[16, 32], depths=[2, 2], stem="small", num_classes=10)
            for name, parameter in model.named_parameters():
                if parameter.ndim == 1:  # norms that differ, channel by channel
                    nn.init.normal_(parameter, mean=float(name.endswith("weight")), std=0.2)
            new = equivariant.equivariant(model, group=group, symmetric=symmetric)
            for size in (32, 33):
                error = equivariant.invariance_error(new, torch.randn(8, 3, size, size), group)  # type: ignore[arg-type]
                rows.append({"group": group, "symmetric": symmetric, "size": size, "error": error})
    return rows


def part_crelu() -> Rows:
    """How paired the filters of the shipped ResNet are, and what merging pairs does to it."""
    model = artifact.load(zoo.shipped_weights("resnet_digits"))
    image = torch.zeros(1, 3, 48, 48)
    rows: Rows = [{"layer": path, "phase": phase} for path, phase in crelu.phases(model).items()]
    whole = counting.macs(model, image)
    rows.append({"what": "as it is", "accuracy": accuracy(model, "resnet_digits"), "macs": 1.0, "pairs": 0})
    for similarity in (0.9, 0.7, 0.5):
        edits = crelu.plan(model, similarity=similarity)
        new = crelu.apply(model, edits).eval()
        macs = counting.macs(new, image) / whole
        merged = sum(len(edit.spec["partner"]) for edit in edits)
        rows.append(
            {"what": f"{similarity:g}", "accuracy": accuracy(new, "resnet_digits"), "macs": macs, "pairs": merged}
        )
    return rows


PARTS: dict[str, Callable[[], Rows]] = {
    "lowrank": part_lowrank, "equivariant": part_equivariant, "crelu": part_crelu, "structured": part_structured,
    "structured_speed": part_structured_speed,
    "speed": part_speed, "dynamic": part_dynamic,
}  # fmt: skip


def stored() -> dict[str, Any]:
    """Part -> rows, as far as they are there."""
    return dict(json.loads(RESULTS.read_text())) if RESULTS.is_file() else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=list(PARTS), action="append", help="only this one, anew")
    parser.add_argument("--tables", action="store_true", help="measure nothing")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    found = stored()
    for name, run in () if asked.tables else PARTS.items():
        if name in (asked.part or ()) or (not asked.part and name not in found):
            print(name, flush=True)
            rows = run()
            found = {
                **(json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}),
                name: rows,
                "machine": measure.machine(),
            }
            files.publish(RESULTS, (json.dumps(found, indent=1, allow_nan=False) + "\n").encode())
    factors_table.write(found)


if __name__ == "__main__":
    main()
