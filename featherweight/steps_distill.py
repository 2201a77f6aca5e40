# SPDX-License-Identifier: Apache-2.0
"""The steps in which the recipe's teacher teaches more than its answers: like those of `steps`, Work -> Work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from torch import nn

from . import teaching_text as teaching
from .beginning import check_teacher
from .binding import Ratio, Within
from .composition import TAUGHT, TOKENS, also, composes, restarting
from .errors import OptionError
from .methods.attention_transfer import AttentionTransfer
from .methods.dist import DIST
from .methods.dkd import DKD
from .methods.fitnets import FitNets
from .methods.minilm import MiniLM
from .methods.rkd import RKD, Relations
from .methods.similarity import SimilarityPreserving
from .methods.tinybert import TinyBERT
from .recipe import Count, Epochs, Rate
from .steps_together import begun, learned, taught_by
from .work import Work

Weight = Annotated[float, Within(0.0, 1e6)]
Temperature = Annotated[float, Within(0.0, 1000.0, open_low=True)]
Place = Annotated[int, Within(-1000, 1000)]
INNER = also(TAUGHT, needs={TOKENS: "they are compared one by one"})


@composes(restarting(TAUGHT))
def fitnets(
    work: Work,
    *,
    hint: str,
    guided: str,
    stage: Annotated[float, Within(0.0, 1.0, open_high=True)] = 0.3,
    start: Weight = 4.0,
    end: Weight = 1.0,
    temperature: Temperature = 3.0,
    restart: bool = True,
    epochs: Epochs | None = None,
    images: Count | None = None,
    lr: Rate | None = None,
) -> Work:
    """The middle of the student led by the teacher's, then its answer; hint and guided are paths of modules."""
    (batch,) = work.batches("val", size=1, limit=1).epoch(0)
    channels, height, width = batch["image"].shape[1:]
    options: dict[str, Any] = {"stage": stage, "start": start, "end": end, "temperature": temperature}
    method = FitNets(_teacher(work), hint, guided, (channels, height, width), **options)
    return taught_by(work, method, "FitNets", restart, epochs, images, lr)


@composes(restarting(TAUGHT))
def attention_transfer(
    work: Work,
    *,
    pairs: Mapping[str, str],
    weight: Weight = 1000.0,
    restart: bool = True,
    epochs: Epochs | None = None,
    images: Count | None = None,
    lr: Rate | None = None,
) -> Work:
    """The student's features large where the teacher's are; pairs: module of the student: module of the teacher."""
    method = AttentionTransfer(_teacher(work), pairs, weight=weight)
    return taught_by(work, method, "attention transfer", restart, epochs, images, lr)


@composes(restarting(TAUGHT))
def similarity(
    work: Work,
    *,
    pairs: Mapping[str, str],
    weight: Weight = 3000.0,
    restart: bool = True,
    epochs: Epochs | None = None,
    images: Count | None = None,
    lr: Rate | None = None,
) -> Work:
    """Pictures that are alike to the teacher alike to the student; pairs as of attention_transfer."""
    method = SimilarityPreserving(_teacher(work), pairs, weight=weight)
    return taught_by(work, method, "similarities", restart, epochs, images, lr)


@composes(restarting(TAUGHT))
def rkd(
    work: Work,
    *,
    pairs: Mapping[str, str],
    distance_weight: Weight = 25.0,
    angle_weight: Weight = 50.0,
    restart: bool = True,
    epochs: Epochs | None = None,
    images: Count | None = None,
    lr: Rate | None = None,
) -> Work:
    """Distances and angles between the pictures of a batch as the teacher's; pairs as of attention_transfer."""
    method = RKD(_teacher(work), pairs, Relations(distance_weight, angle_weight))
    return taught_by(work, method, "relations", restart, epochs, images, lr)


@composes(restarting(TAUGHT))
def dkd(
    work: Work,
    *,
    alpha: Weight = 1.0,
    beta: Weight = 8.0,
    temperature: Temperature = 4.0,
    warmup: Ratio = 0.0,
    restart: bool = True,
    epochs: Epochs | None = None,
    images: Count | None = None,
    lr: Rate | None = None,
) -> Work:
    """The teacher's answer in two parts, of the label's class and of the others; later trainings go on with it."""
    method = DKD(_teacher(work), alpha, beta, temperature, warmup)
    return taught_by(work, method, "decoupled distillation", restart, epochs, images, lr, stays=True)


@composes(restarting(TAUGHT))
def dist(
    work: Work,
    *,
    beta: Weight = 2.0,
    gamma: Weight = 2.0,
    temperature: Temperature = 1.0,
    restart: bool = True,
    epochs: Epochs | None = None,
    images: Count | None = None,
    lr: Rate | None = None,
) -> Work:
    """Answers correlated with the teacher's, by picture and by class; later trainings go on with it."""
    method = DIST(_teacher(work), beta, gamma, temperature)
    return taught_by(work, method, "DIST", restart, epochs, images, lr, stays=True)


@composes(restarting(INNER))
def tinybert(
    work: Work,
    *,
    attention: Weight = 1.0,
    hidden: Weight = 1.0,
    embedding: Weight = 1.0,
    alpha: Ratio = 1.0,
    temperature: Temperature = 1.0,
    stage: Ratio | None = 0.5,
    mapping: Sequence[Place] | None = None,
    general: str | None = None,
    general_epochs: Epochs = 1,
    augment: Annotated[int, Within(0, 1000)] = 0,
    restart: bool = True,
    epochs: Epochs | None = None,
    images: Count | None = None,
    lr: Rate | None = None,
) -> Work:
    """A transformer's attention and tokens, block by block, then its answer; without `stage` all at once.

    mapping: whom each block learns from. Of texts, general: a file of texts, one a line, that are learned from first,
    without labels and from the teacher as it came; augment: so many variants of each sentence, with words swapped.
    """
    options: dict[str, Any] = {"attention": attention, "hidden": hidden, "embedding": embedding, "mapping": mapping}
    method = TinyBERT(_teacher(work), alpha=alpha, temperature=temperature, stage=stage, **options)
    begin = begun(work, method, restart)
    if general is not None:
        begin = teaching.generally(work, begin, general, options, epochs=general_epochs, lr=lr)
    texts = teaching.with_variants(work, begin, augment, images) if augment else None
    return learned(work, begin, method, "TinyBERT", epochs, images, lr, texts=texts)


@composes(restarting(INNER))
def minilm(
    work: Work,
    *,
    weight: Weight = 1.0,
    student_block: Place = -1,
    teacher_block: Place = -1,
    relation_heads: Count | None = None,
    restart: bool = True,
    epochs: Epochs | None = None,
    images: Count | None = None,
    lr: Rate | None = None,
) -> Work:
    """How the queries, keys and values of one block are alike among themselves, as the teacher's."""
    places = {"student_block": student_block, "teacher_block": teacher_block, "relation_heads": relation_heads}
    method = MiniLM(_teacher(work), weight, **places)  # type: ignore[arg-type]
    return taught_by(work, method, "MiniLM", restart, epochs, images, lr)


def _teacher(work: Work) -> nn.Module:
    if work.teacher is None:
        raise OptionError(work.step, "there is no teacher yet: put a step `teacher` before it")
    check_teacher(work, work.teacher)
    return work.teacher
