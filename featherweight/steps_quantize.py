# SPDX-License-Identifier: Apache-2.0
"""The steps that leave fewer bits: functions Work -> Work like those of `steps`."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from torch import nn

from . import outlines
from .binding import Filled, Ratio, Within
from .composition import (
    CODEBOOK,
    FLOATS,
    MODEL,
    NORM_LAYERS,
    NORMS,
    PLAIN,
    RANGES,
    Effect,
    also,
    composes,
)  # fmt: skip
from .detecting import TASK
from .errors import OptionError
from .fitting import trained
from .methods import adaround as rounding
from .methods import dynamic_int8, weight_only
from .methods import half as halves
from .methods import mixed_precision as mixing
from .methods import qat as learning
from .methods.binary import Binary, How
from .methods.calibration import left_float
from .methods.distill import Distill
from .methods.equalize import equalize as equal_ranges
from .methods.qat import QAT
from .methods.quantize import quantize as to_int8
from .methods.smooth import smooth as smoothed
from .recipe import Count, Epochs, Rate
from .tasks.detection.answers import Answers, head_paths
from .work import Work, current, finished_stage

Grid = Literal["int8", "int4", "uint4", "int2", "ternary", "binary"]
Observer = Literal["minmax", "percentile", "mse", "entropy"]
Trained = Literal["int8", "int4", "int2", "ternary", "binary"]
FEW = Effect(
    needs={MODEL: "", FLOATS: "they are rounded"},
    breaks={
        FLOATS: "weights are kept in few bits after it",
        PLAIN: "layers hold few bits after it",
        CODEBOOK: "shared values are rounded one by one",
    },
)
INTEGERS = also(
    FEW,
    needs={NORMS: "they are folded into the convolutions"},
    breaks={NORM_LAYERS: "they are folded into the convolutions"},
    gives=(RANGES,),
)
MOVES = {CODEBOOK: "weights are scaled, channel by channel"}


@composes(INTEGERS, marks={"int8": also(INTEGERS, needs={})}, outline=outlines.integers)
def quantize(
    work: Work,
    *,
    bits: Literal[8] = 8,
    observer: Observer = "mse",
    calibration_images: Count = 128,
    bias_correction: bool = True,
    reduce_range: bool = False,
    skip: Sequence[str] = (),
) -> Work:
    """Weights and activations in 8 bits, calibrated on training images, which the validation part never is.

    Of a detector the head stays in float unless `skip` says otherwise. reduce_range: weights in 7 bits, for x86 without
    VNNI.
    """
    before = current(work)
    kept = tuple(skip) or (head_paths(before) if work.recipe.task == TASK else ())
    options: dict[str, Any] = {"bits": bits, "observer": observer, "calibration_images": calibration_images}
    options |= {"bias_correction": bias_correction, "reduce_range": reduce_range, "skip": kept}
    seen = _calibration(work, calibration_images)
    return _done(work, "int8", work.once("model", lambda: to_int8(before, seen, _task(work), **options)))


@composes(FEW, marks={"half": also(FEW, needs={})}, outline=outlines.planned(halves, "dtype", "skip"))
def half(work: Work, *, dtype: Literal["float16", "bfloat16"] = "float16", skip: Sequence[str] = ()) -> Work:
    """Weights in 16 bits: half the file."""
    before = current(work)
    model = work.once("model", lambda: halves.to_half(before, dtype=dtype, skip=skip))
    return _done(work, dtype, model)


@composes(FEW, marks={"dynamic_int8": also(FEW, needs={})}, outline=outlines.planned(dynamic_int8, "skip"))
def quantize_dynamic(work: Work, *, skip: Sequence[str] = ()) -> Work:
    """Linear layers in 8 bits, whose inputs are rounded by the range they have at that moment; no calibration."""
    before = current(work)
    model = work.once("model", lambda: dynamic_int8.quantize_dynamic(before, skip=skip))
    return _done(work, "int8, dynamic", model)


@composes(
    FEW,
    marks={"packed": also(FEW, needs={})},
    outline=outlines.planned(weight_only, "weights", "group", "ends", "skip"),
)
def quantize_weights(
    work: Work,
    *,
    weights: Grid = "int4",
    group: Annotated[int, Within(8, 65536)] | None = None,
    ends: Grid | None = "int8",
    adaround: Annotated[int, Within(0, 1_000_000)] = 0,
    calibration_images: Count = 128,
    skip: Sequence[str] = (),
) -> Work:
    """Weights in few bits, activations in float; adaround: steps that choose, for each weight, up or down."""
    before = current(work)

    def make() -> nn.Module:
        new = weight_only.weight_only(before, weights=weights, group=group, ends=ends, skip=skip)
        if not adaround:
            return new
        known: dict[str, Any] = {"calibration_images": calibration_images, "seed": work.recipe.seed}
        return rounding.adaround(before, new, _calibration(work, calibration_images), _task(work), steps=adaround,
                                 **known)  # fmt: skip

    title = f"{weights} weights" + (", AdaRound" if adaround else "")
    return _done(work, title, work.once("model", make))


@composes(
    Effect(
        needs={MODEL: "", FLOATS: "they are scaled", NORMS: "they are folded into the convolutions"},
        breaks={NORM_LAYERS: "they are folded into the convolutions", **MOVES},
    ),
    marks={"clip_channels": Effect(breaks={NORM_LAYERS: "they are folded into the convolutions"})},
)
def equalize(work: Work, *, relu6: Literal["clip", "leave"] = "clip") -> Work:
    """Equal ranges for the channels between two convolutions; the answers stay. Before `quantize`."""
    before = current(work)
    model = work.once("model", lambda: equal_ranges(before, _calibration(work, 2), _task(work), relu6=relu6))
    return finished_stage(work, "equalized", model)


@composes(Effect(needs={MODEL: "", FLOATS: "they are scaled"}, breaks=MOVES))
def smooth(work: Work, *, alpha: Ratio = 0.5, calibration_images: Count = 128) -> Work:
    """What is hard to round in a transformer's activations moves into its weights; the answers stay."""
    before = current(work)
    seen = _calibration(work, calibration_images)
    known: dict[str, Any] = {"alpha": alpha, "calibration_images": calibration_images}
    model = work.once("model", lambda: smoothed(before, seen, _task(work), **known))
    return finished_stage(work, f"smoothed ({alpha:g})", model)


@composes(INTEGERS, outline=outlines.planned(learning, "weights", "activations", "ends", "skip"))
def qat(
    work: Work,
    *,
    weights: Trained = "int8",
    activations: Literal[8, 4] | None = 8,
    learned: bool = True,
    observer: Observer = "mse",
    ends: Trained = "int8",
    freeze_at: Ratio = 0.7,
    calibration_images: Count = 128,
    skip: Sequence[str] = (),
    epochs: Epochs | None = None,
    images: Count | None = None,
    lr: Rate | None = None,
) -> Work:
    """Train with weights and activations rounded as they will be, taught by the model as it was unless others teach."""
    before = current(work)
    kept = tuple(skip) or (head_paths(before) if work.recipe.task == TASK else ())
    seen = tuple(_calibration(work, calibration_images))
    known: dict[str, Any] = {"weights": weights, "activations": activations, "learned": learned, "observer": observer}
    known |= {"ends": ends, "freeze_at": freeze_at, "skip": kept, "calibration_images": calibration_images}
    method = QAT(_task(work), seen, **known)
    model = work.once("model", lambda: trained(work, before, _taught(work, before, method), epochs, images, lr))
    inputs = "float" if activations is None else f"int{activations}"
    return _done(work, f"{weights} weights, {inputs} activations, trained", model)


@composes(also(FEW, breaks={NORM_LAYERS: "some stand inside the binary layers"}), marks={"binary": also(FEW, needs={})})
def binarize(
    work: Work,
    *,
    how: How = "weights",
    stochastic: bool = False,
    skip: Sequence[str] = (),
    epochs: Epochs | None = None,
    images: Count | None = None,
    lr: Rate | None = None,
) -> Work:
    """Train with weights of one bit, for xnor and bireal with inputs of one bit too."""
    before = current(work)
    example = next(iter(_calibration(work, 2)))["image"]
    method = Binary(how, _task(work), example, tuple(skip), stochastic)
    model = work.once("model", lambda: trained(work, before, _taught(work, before, method), epochs, images, lr))
    return _done(work, f"binary ({how})", model)


@composes(FEW)
def mixed_precision(
    work: Work,
    *,
    size: str | None = None,
    min_agreement: Annotated[float, Within(0.0, 1.0, open_low=True)] | None = None,
    choices: Annotated[Sequence[Grid], Filled()] = mixing.CHOICES,  # type: ignore[assignment]
    calibration_images: Count = 64,
    skip: Sequence[str] = (),
) -> Work:
    """A number of bits for each layer by its sensitivity, within a size ("1.5MB", of the weights) or a share of
    images that keep their class."""
    before = current(work)
    budget: dict[str, Any] = {"size_bytes": None if size is None else bytes_of(size), "min_agreement": min_agreement}

    def make() -> nn.Module:
        seen = _calibration(work, calibration_images)
        known: dict[str, Any] = {"choices": choices, "skip": skip, "calibration_images": calibration_images}
        return mixing.mixed_precision(before, seen, _task(work), **budget, **known)

    return _done(work, "mixed precision", work.once("model", make))


@composes(Effect(needs={MODEL: "", FLOATS: "NNCF rounds them itself"}))
def quantize_openvino(
    work: Work,
    *,
    preset: Literal["performance", "mixed"] = "mixed",
    fast_bias_correction: bool = True,
    calibration_images: Count = 128,
    images: Count = 128,
) -> Work:
    """An 8-bit OpenVINO file made by NNCF, in export/; the model itself stays as it is."""
    from .deploy import exported
    from .export import nncf

    model, stage = current(work), work.stages[-1]
    target = work.folder / "export"
    target.mkdir(exist_ok=True)

    def make() -> dict[str, Any]:
        judged = work.batches("val", limit=images).epoch(0)
        known: dict[str, Any] = {"preset": preset, "fast_bias_correction": fast_bias_correction, "task": work.task}
        made = nncf.export(
            exported(work, stage), target / "openvino_int8.xml", model=model, batches=list(judged),
            calibration=_calibration(work, calibration_images), calibration_images=calibration_images, **known,
        )  # fmt: skip
        return {"file": f"export/{made.path.name}", "size_bytes": made.size_bytes, **made.parity.to_dict()}

    row = work.once_data("nncf", make)
    work.tell({"event": "export", **row})
    return work


def _done(work: Work, title: str, model: nn.Module) -> Work:
    """The stage, and a note of layers that no step here rounds."""
    left = left_float(model)
    if left:
        text = ", ".join(f"{count} {name}" for name, count in left.items())
        work.tell({"event": "note", "text": f"{work.step}: stays in float: {text}"})
    return finished_stage(work, title, model)


def bytes_of(size: str) -> int:
    """The number in "1.5MB" or "300kB"; OptionError for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(kb|mb)", size.strip().lower(), re.ASCII)
    if not found or float(found[1]) <= 0:
        raise OptionError("size", f"{size!r} is not a size such as 1.5MB or 300kB")
    return round(float(found[1]) * {"kb": 1e3, "mb": 1e6}[found[2]])


def _calibration(work: Work, images: int) -> Any:
    """Training images, which the validation part never is."""
    return work.batches("train", limit=images, augment=False).epoch(0)


def _task(work: Work) -> Any:
    """How the model is called for one tensor."""
    return Answers() if work.recipe.task == TASK else work.task


def _taught(work: Work, before: nn.Module, method: Any) -> tuple[Any, ...]:
    """The method with the teachers at hand, or the model as it was; a detector learns from its boxes alone."""
    if work.recipe.task == TASK:
        return (*work.methods, method)
    return (*(work.methods or (Distill(copy.deepcopy(before).eval()),)), method)
