# SPDX-License-Identifier: Apache-2.0
"""The steps a recipe is made of: functions Work -> Work, whose keyword options are the keys of the YAML.

A step changes nothing it was given. What is costly is done once: `Work.once` keeps the result in the step's numbered
folder under a key of everything it depends on, and finds it there when the recipe runs again.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

from torch import nn

from . import outlines
from .beginning import RANDOM, check_teacher, comes_trained, start
from .binding import Filled, Ratio, Within
from .composition import (
    FLOATS,
    LOOKS,
    MASKS,
    MEASURED,
    MODEL,
    NORMS,
    PLAIN,
    TAUGHT,
    TEACHER,
    TOKENS,
    TRAINS,
    Effect,
    also,
    composes,
    restarting,
)  # fmt: skip
from .errors import OptionError, shown
from .fitting import trained
from .methods import prune as pruning
from .methods.deit import TokenDistill
from .methods.distill import DISTANCES, Distill
from .methods.refit import refit
from .methods.widths import narrow_heads_and_tokens
from .models import zoo
from .recipe import Count, Epochs, ModelSpec, Rate
from .steps_detection import aux_heads, distill_detection, evaluate, fuse
from .steps_distill import attention_transfer, dist, dkd, fitnets, minilm, rkd, similarity, tinybert
from .steps_factors import crelu, equivariant, lowrank, overparameterize, structured, write_out
from .steps_finetune import landscape, resolution
from .steps_labels import token_labelling
from .steps_prune import drop, prune_channels, sparsify
from .steps_quantize import (
    binarize,
    equalize,
    half,
    mixed_precision,
    qat,
    quantize,
    quantize_dynamic,
    quantize_openvino,
    quantize_weights,
    smooth,
)  # fmt: skip
from .steps_recursion import depth, grouping, mixed_depth, recursion
from .steps_share import code, repair, share
from .steps_text import power_bert, share_embeddings, star_attention, vocabulary
from .steps_together import mean_teacher, mutual, one, soup, swa
from .steps_tokens import merge, tokens
from .work import Work, current, finished_stage


@composes(Effect(gives=(TEACHER,)))
def teacher(work: Work, *, epochs: Epochs | None = None, images: Count | None = None, lr: Rate | None = None) -> Work:
    """The model that teaches: as `teacher:` of the recipe names it; trained here if it comes without weights."""
    spec = work.recipe.teacher
    if spec is None:
        raise OptionError("teacher", "the recipe does not say which: add `teacher: resnet_digits`, say")
    model = start(spec, work)
    if not comes_trained(spec, work.recipe.task, work.given):
        model = work.once("model", lambda: trained(work, model, (), epochs, images, lr), spec=spec)
    return finished_stage(dataclasses.replace(work, teacher=model.eval()), "teacher", model, stays=False)


@composes(Effect(needs={FLOATS: "training moves them"}, gives=(MODEL, NORMS)))
def baseline(work: Work, *, epochs: Epochs | None = None, images: Count | None = None, lr: Rate | None = None) -> Work:
    """The model as it is, trained plainly: what everything after is compared with."""
    origin = start(_model(work), work)
    model = work.once("model", lambda: trained(work, origin, (), epochs, images, lr))
    return finished_stage(dataclasses.replace(work, origin=origin), "baseline", model)


@composes(Effect(needs={FLOATS: "training moves them"}, gives=(MODEL, NORMS)))
def train(work: Work, *, epochs: Epochs | None = None, images: Count | None = None, lr: Rate | None = None) -> Work:
    """Train the model on, with whatever methods earlier steps brought along."""
    origin = work.model if work.model is not None else start(_model(work), work)
    model = work.once("model", lambda: trained(work, origin, work.methods, epochs, images, lr))
    return finished_stage(dataclasses.replace(work, origin=work.origin or origin), "trained", model)


@composes(Effect(gives=(MODEL,)))
def load(work: Work) -> Work:
    """The model with the weights it comes with, random ones if with none, untrained here: where compression starts."""
    spec = _model(work)
    if not comes_trained(spec, work.recipe.task, work.given):
        work.tell({"event": "note", "text": f"{shown(spec.name)} {RANDOM}"})
    model = work.once("model", lambda: start(spec, work).eval())
    return finished_stage(dataclasses.replace(work, origin=model), "baseline", model)


def _distilling(options: Mapping[str, Any]) -> Effect:
    token = also(TAUGHT, needs={PLAIN: "its classifier is copied for the token", TOKENS: "one more stands before them"})
    return restarting(token if options["how"] == "token" else TAUGHT)(options)


@composes(_distilling, outline=outlines.distilled)
def distill(
    work: Work,
    *,
    how: Literal["token", "logits"] = "token",
    distance: Literal["hard", "soft", "soft_per_class", "mse", "soft_cross_entropy"] = "hard",
    alpha: Ratio = 0.5,
    temperature: Annotated[float, Within(0.0, 1000.0, open_low=True)] = 1.0,
    restart: bool = True,
    cache: Annotated[int, Within(1, 10_000)] | None = None,
    answers: str | None = None,
    epochs: Epochs | None = None,
    images: Count | None = None,
    lr: Rate | None = None,
) -> Work:
    """The same model taught by the teacher; with `restart` from where the baseline began, same schedule and seed.

    cache: the teacher is asked in so many epochs, whose pictures then come again; answers: the folder of what it said.
    """
    if work.teacher is None:
        raise OptionError("distill", "there is no teacher yet: put a step `teacher` before it")
    kind = TokenDistill if how == "token" else Distill
    method = kind(work.teacher, alpha=alpha, temperature=temperature, distance=DISTANCES[distance])
    begin = work.origin if restart and work.origin is not None else current(work)
    known: dict[str, Any] = {"cache": cache, "answers": answers}
    check_teacher(work, work.teacher)
    model = work.once("model", lambda: trained(work, begin, (method,), epochs, images, lr, **known))
    return finished_stage(dataclasses.replace(work, methods=(*work.methods, method)), f"{distance} distillation", model)


CUTS = also(
    TRAINS,
    needs={PLAIN: "rows and columns are cut out of them"},
    breaks={MASKS: "the layers that read what is cut are solved anew"},
)


@composes(CUTS, outline=outlines.pruned)
def prune(
    work: Work,
    *,
    mlp: Ratio = 0.3,
    heads: Ratio = 0.3,
    head_width: Ratio = 0.0,
    embed: Ratio = 0.0,
    importance: Literal["l1", "l2", "taylor"] = "l2",
    round_to: Annotated[int, Within(1, 1024)] = 8,
    uniform: bool = True,
    samples: Count = 256,
    epochs: Epochs | None = None,
    images: Count | None = None,
    lr: Rate | None = None,
) -> Work:
    """Cut neurons of the MLPs and whole heads out, then fine-tune with the teachers at hand.

    head_width, embed: shares of the width of the heads that are left, and of the tokens.
    """
    before = current(work)

    def make() -> nn.Module:
        seen = work.batches("train", limit=samples, augment=False)
        options = {"mlp": mlp, "heads": heads, "importance": importance, "round_to": round_to, "uniform": uniform}
        calibration = list(seen.epoch(0))
        small = pruning.prune(before, batches=calibration, task=work.task, **options)
        small = refit(before, small, calibration, work.task)
        widths = {"head_width": head_width, "embed": embed, "round_to": round_to}
        if head_width or embed:
            small = narrow_heads_and_tokens(small, _pictures(calibration), **widths)
        return trained(work, small, work.methods or (Distill(copy.deepcopy(before).eval()),), epochs, images, lr)

    return finished_stage(work, f"prune (MLP {mlp:.0%}, heads {heads:.0%})", work.once("model", make))


@composes(LOOKS)
def export(
    work: Work,
    *,
    formats: Annotated[Sequence[Literal["onnx", "openvino"]], Filled()] = ("onnx", "openvino"),
    images: Count = 128,
    form: Literal["decoded", "raw", "end2end"] = "decoded",
) -> Work:
    """The files a runtime loads, each checked against the model on real images; a failed check fails the run.

    form: of a detector's answers.
    """
    from .deploy import export_model

    return export_model(work, formats=tuple(formats), images=images, form=form)


@composes(also(LOOKS, gives=(MEASURED,)))
def measure(
    work: Work,
    *,
    batch: Annotated[Sequence[Annotated[int, Within(1, 4096)]], Filled()] = (1, 32),
    repeats: Annotated[int, Within(6, 100_000)] = 60,
    budget_s: Annotated[float, Within(0.1, 86_400.0)] = 4.0,
    part: Literal["val", "test"] = "test",
) -> Work:
    """Every stage: accuracy, parameters, MACs, bytes, latency in torch, ONNX Runtime and OpenVINO, raced in turns."""
    from .deploy import measure_stages

    return measure_stages(work, batch=tuple(batch), repeats=repeats, budget_s=budget_s, part=part)


@composes(Effect(needs={MEASURED: ""}))
def report(work: Work, *, samples: Annotated[int, Within(0, 64)] = 8) -> Work:
    """The page, and the same numbers for programs."""
    from .story import write_report

    return write_report(work, samples=samples)


STEPS: dict[str, Callable[..., Work]] = {
    step.__name__: step
    for step in (
        teacher, baseline, load, train, distill, token_labelling, tokens, merge, prune, recursion, grouping,
        mixed_depth, depth, resolution, quantize, export, measure, landscape, report, aux_heads, distill_detection,
        half, quantize_dynamic, quantize_weights, equalize, smooth, qat, binarize, mixed_precision, quantize_openvino,
        fuse, evaluate, sparsify, prune_channels, drop,
        fitnets, attention_transfer, similarity, rkd, dkd, dist, tinybert, minilm, one, mutual,
        mean_teacher, swa, soup, share, repair, code,
        lowrank, structured, crelu, equivariant, overparameterize, write_out, vocabulary, power_bert, star_attention,
        share_embeddings,
    )
}  # fmt: skip


def _pictures(batches: Sequence[Mapping[str, Any]]) -> Any:
    """Two pictures, by which widths are found."""
    if "image" not in batches[0]:
        raise OptionError("embed", "head_width and embed are for models of pictures")
    return batches[0]["image"][:2]


def _model(work: Work) -> ModelSpec:
    if work.recipe.model is None:
        raise OptionError(
            "model",
            f"the recipe names none; add `model: vit_digits`. Known: {', '.join(zoo.known())}, timm:NAME, a folder",
        )
    return work.recipe.model
