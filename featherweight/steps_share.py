# SPDX-License-Identifier: Apache-2.0
"""The steps that make the file small and mend what that costs: shared weights, repair, the compact file."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from torch import nn

from . import artifact, measure
from .binding import Within
from .coding.graph import write_graph
from .composition import CODEBOOK, FLOATS, MODEL, NORMS, PLAIN, Effect, composes
from .detecting import TASK
from .errors import CheckFailed, OptionError
from .fitting import trained
from .methods import share as sharing
from .methods.distill import Distill
from .methods.repair import repair as mended
from .recipe import Count, Epochs, Rate, Seed
from .surgery import submodule
from .tasks.detection.answers import Answers
from .work import Stage, Work, current, finished_stage

if TYPE_CHECKING:
    from .explain import Outline

CodeBits = Annotated[int, Within(1, sharing.MOST_BITS)]
MARK = Effect(
    gives=(CODEBOOK,),
    breaks={
        PLAIN: "layers hold codes",
        NORMS: "weights were rounded",
        CODEBOOK: "what is shared has no weights to group",
    },
)


def _shared(options: Mapping[str, Any]) -> Effect:
    """Training after sharing brings the batch norms' statistics along."""
    effect = dataclasses.replace(MARK, needs={MODEL: "", FLOATS: "k-means groups them"})
    return effect if options["epochs"] is None else dataclasses.replace(effect, gives=(CODEBOOK, NORMS))


def _outlined(outline: Outline, options: Mapping[str, Any]) -> Outline:
    """So many bits a weight, whatever the coder makes of them."""
    edits = sharing.plan(outline.model, **{name: options[name] for name in ("bits", "scaled", "skip")})
    sizes = {edit.path: submodule(outline.model, edit.path).weight.numel() for edit in edits}  # type: ignore[union-attr, operator]
    bits = sum(sizes[edit.path] * math.log2(edit.spec["centroids"]) for edit in edits)
    return outline.stored(bits / sum(sizes.values()))


@composes(_shared, marks={"codebook": MARK}, outline=_outlined)
def share(
    work: Work,
    *,
    bits: CodeBits | Mapping[str, CodeBits] = 5,
    init: Literal["linear", "density", "random", "mixed"] | None = None,
    scaled: bool | Literal["energy"] | None = None,
    iterations: Annotated[int, Within(0, 100_000)] = 50,
    skip: Sequence[str] = (),
    seed: Seed = 0,
    epochs: Epochs | None = None,
    images: Count | None = None,
    lr: Rate | None = None,
) -> Work:
    """Weights become codes of a few bits into a codebook per layer; with `epochs` the codebooks are trained.

    bits: of all layers, or of patterns of their names. It comes after pruning, whose zeros it keeps.
    """
    before = current(work)
    if epochs is None and (images, lr) != (None, None):
        raise OptionError("epochs", "share does not train without; images and lr say how, so give epochs too")
    sharing.plan(before, bits=bits, scaled=scaled, skip=skip)  # a mistake is told before anything is done

    def make() -> nn.Module:
        options: dict[str, Any] = {"init": init, "scaled": scaled, "iterations": iterations, "seed": seed}
        new = sharing.share(before, bits=bits, skip=skip, **options).eval()
        if epochs is None:
            return new
        methods = work.methods or (Distill(copy.deepcopy(before).eval()),)
        return sharing.rounded(trained(work, new, methods, epochs, images, lr))

    said = f"{bits} bits" if isinstance(bits, int) else ", ".join(f"{name} {each}" for name, each in bits.items())
    return finished_stage(work, f"shared weights ({said})", work.once("model", make))


@composes(Effect(needs={MODEL: ""}, gives=(NORMS,)))
def repair(
    work: Work,
    *,
    samples: Annotated[int, Within(2, 1_000_000)] = 128,
    bias: bool = True,
    reference: Literal["before", "first"] = "before",
) -> Work:
    """Norms and biases are matched to the model before the last step, or to the first one, on pictures without labels.

    reference: `first` for the model that the compression began with.
    """
    model = current(work)
    earlier = _reference(work, reference)
    if earlier is None:
        raise OptionError("repair", "there is nothing before it to compare with: it comes after a compressing step")

    def make() -> nn.Module:
        seen = work.batches("train", limit=samples, augment=False)
        task = Answers() if work.recipe.task == TASK else work.task
        return mended(model, earlier.model, seen.epoch(0), task, images=samples, bias=bias).eval()

    return finished_stage(work, "repair", work.once("model", make))


def _reference(work: Work, which: str) -> Stage | None:
    if len(work.stages) < 2:
        return None
    return work.stages[0] if which == "first" else work.stages[-2]


@composes(Effect(needs={MODEL: ""}))
def code(
    work: Work,
    *,
    coder: Literal["auto", "raw", "deflate", "rans", "huffman", "zstd"] = "auto",
    graph: bool = False,
) -> Work:
    """The model as one compact file, `compact/model.fwz`, read back and compared bit for bit.

    graph: also `compact/graph.fwz`, which runs in ONNX Runtime without torch.
    """
    model = current(work)
    path = work.folder / "compact" / "model.fwz"
    known: dict[str, Any] = {"classes": work.data.classes, "preprocess": work.preprocess}
    artifact.save(model, path, task=work.recipe.task, coder=coder, **known)
    base = work.given.get(work.recipe.model.name) if work.recipe.model else None
    wanted, found = model.state_dict(), artifact.load(path, base=base).state_dict()
    if any(not wanted[name].equal(found[name]) for name in wanted):
        raise CheckFailed(f"{path.name} does not give back the weights that were written")
    floats = 4 * measure.parameters(work.stages[0].model)
    files = {"model": path, **({"graph": _graph(work, coder)} if graph else {})}
    row: dict[str, Any] = {"float32_bytes": floats}
    for name, file in files.items():
        size = file.stat().st_size
        row[name] = {"size_bytes": size, "ratio": floats / size}
        text = f"{file.name}: {size} bytes, {floats / size:.1f} times fewer than the first model's in float32"
        work.tell({"event": "note", "text": text})
    return dataclasses.replace(work, results={**work.results, "compact": row})


def _graph(work: Work, coder: str) -> Path:
    """The last stage as an exported file, checked as any export is, in compact form."""
    from .deploy import exported

    path = work.folder / "compact" / "graph.fwz"
    write_graph(path, exported(work, work.stages[-1]).read_bytes(), coder=coder)
    return path
