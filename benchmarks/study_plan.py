# SPDX-License-Identifier: Apache-2.0
"""What the study trains and what it asks of it: data for `vit_study`, in the order in which it is done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

WHOLE = "as it is"  # the view of a model that answers as it does when deployed
KEEPS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)  # rates r of r, r^2, r^3


@dataclass(frozen=True)
class Trial:
    """One training: a recipe and what differs from it. `teacher` and `start` are trials whose models it is given."""

    name: str
    claim: str
    says: str
    recipe: str
    overrides: tuple[str, ...] = ()
    teacher: str | None = None
    start: str | None = None
    once: bool = False  # one seed is enough: it teaches, it is not compared

    def needs(self) -> tuple[str, ...]:
        return tuple(name for name in (self.teacher, self.start) if name)


@dataclass(frozen=True)
class Side:
    """One side of a comparison: a trial's model, looked at in one way."""

    trial: str
    view: str = WHOLE


@dataclass(frozen=True)
class Row:
    """A claim as a comparison: `better` is more accurate than `than`, by at least -`margin` points."""

    claim: str
    says: str
    better: Side
    than: Side
    paper: str
    margin: float = 0.0


_SOFT = ("distill.distance=soft", "distill.temperature=3", "distill.alpha=0.1")  # as the paper's
_WEAK = ("train.epochs=3",)  # of 5: two epochs gave 59.2 %, where the ViT has 64.5 %
_BY = "tokens.score="
_IN_ORDER = ("grouping.permute=none",)
_PATCH = "model.config.stem=patch"
_LONGER = "steps=[baseline, {train: {epochs: 3, lr: 4.0e-4}}, measure, report]"
_NOT_MIXED = ("token_labelling.mix_token=false",)
_ALONE = (*_NOT_MIXED, "token_labelling.labels=image", "token_labelling.dense_weight=0")

TRIALS: tuple[Trial, ...] = (  # what the other claims need, and one training of each claim, come first
    Trial("vit", "1", "ViT, labels alone", "study_vit"),
    Trial("teacher", "1", "convolutional teacher", "study_teacher", once=True),
    Trial("deit_hard", "1", "hard token distillation", "study_deit", teacher="teacher"),
    Trial("dynamicvit", "2", "DynamicViT, keep 0.7", "study_dynamicvit", start="vit"),
    Trial("shallow", "3", "ViT of 3 blocks", "study_vit", ("model.config.depth=3",)),
    Trial("recursion", "3", "3 blocks, each run twice", "study_recursion"),
    Trial("lvvit", "4", "LV-ViT, labels alone", "study_lvvit", _ALONE, teacher="teacher"),
    Trial("lvvit_labels", "4", "LV-ViT, token labels", "study_lvvit", _NOT_MIXED, teacher="teacher"),
    Trial("deit_soft", "1", "soft token distillation", "study_deit", _SOFT, teacher="teacher"),
    Trial("dynamicvit_random", "2", "tokens dropped by chance", "study_dynamicvit", (_BY + "random",), start="vit"),
    Trial("dynamicvit_attention", "2", "by attention to them", "study_dynamicvit", (_BY + "attention",), start="vit"),
    Trial("grouping", "3", "attention in 4 groups, permuted in every other block", "study_grouping"),
    Trial("lvvit_mixed", "4", "LV-ViT, token labels and mix-token", "study_lvvit", teacher="teacher"),
    Trial("teacher_equal", "1", "convolutional teacher about as good as the ViT", "study_teacher", _WEAK, once=True),
    Trial("deit_by_conv", "1", "hard, taught by that one", "study_deit", teacher="teacher_equal"),
    Trial("deit_by_vit", "1", "hard, taught by the ViT", "study_deit", teacher="vit"),
    Trial("patch", "5", "patch stem, learned positions", "study_vit", (_PATCH,)),
    Trial("patch_none", "5", "patch stem, no positions", "study_vit", (_PATCH, "model.config.position=none")),
    Trial("patch_sinusoidal", "5", "patch stem, sinusoidal", "study_vit", (_PATCH, "model.config.position=sinusoidal")),
    Trial("none", "5", "convolutional stem, no positions", "study_vit", ("model.config.position=none",)),
    Trial("grouping_in_order", "3", "attention in 4 groups, never permuted", "study_grouping", _IN_ORDER),
    Trial("mixed_depth", "3", "3 blocks, run once or twice, trained together", "study_mixed_depth"),
    Trial("vit_longer", "2", "ViT, trained on as long as DynamicViT", "study_vit", (_LONGER,), start="vit"),
)

TABLE = "the authors' table"
ABSTRACT = "the paper's abstract"
RECALLED = "recalled from the paper, not checked again"
ROWS: tuple[Row, ...] = (
    Row(
        "1",
        "soft token distillation beats none",
        Side("deit_soft"),
        Side("vit"),
        f"DeiT-B: 81.8 and 81.8, without a token ({RECALLED})",
    ),
    Row(
        "1",
        "hard token distillation beats soft",
        Side("deit_hard"),
        Side("deit_soft"),
        f"DeiT-B: 83.0 over 81.8, without a token ({RECALLED})",
    ),
    Row("1", "hard token distillation beats none", Side("deit_hard"), Side("vit"), f"DeiT-B: 83.4 over 81.8 ({TABLE})"),
    Row(
        "1",
        "a convolutional teacher teaches better than a transformer about as good",
        Side("deit_by_conv"),
        Side("deit_by_vit"),
        f"DeiT-B: 82.7 by RegNetY-8GF (81.7) over 81.9 by DeiT-B (81.8) ({RECALLED})",
    ),
    Row(
        "1",
        "both heads beat the class head",
        Side("deit_hard"),
        Side("deit_hard", "class head"),
        f"DeiT-B: 83.4 over 83.0 ({RECALLED})",
    ),
    Row(
        "1",
        "both heads beat the distillation head",
        Side("deit_hard"),
        Side("deit_hard", "distillation head"),
        f"DeiT-B: 83.4 over 83.1 ({RECALLED})",
    ),
    Row(
        "2",
        "DynamicViT at 0.7 is as good as the model before",
        Side("dynamicvit"),
        Side("vit"),
        f"drop within 0.5 ({ABSTRACT}); DeiT-S: 79.32 after 79.9 ({TABLE})",
        margin=0.5,
    ),
    Row(
        "2",
        "DynamicViT at 0.7 is as good as the model trained on for as long",
        Side("dynamicvit"),
        Side("vit_longer"),
        "not compared",
        margin=0.5,
    ),
    Row(
        "2",
        "predictors beat chance",
        Side("dynamicvit"),
        Side("dynamicvit_random"),
        f"DeiT-S: 79.3 over 77.5 ({RECALLED})",
    ),
    Row(
        "2",
        "predictors beat the class token's attention",
        Side("dynamicvit"),
        Side("dynamicvit_attention"),
        f"DeiT-S: 79.3 over 78.1 ({RECALLED})",
    ),
    Row(
        "3",
        "recursion beats none at equal parameters",
        Side("recursion"),
        Side("shallow"),
        f"about 2 points ({ABSTRACT})",
    ),
    Row(
        "3",
        "attention in groups costs little",
        Side("grouping"),
        Side("vit"),
        f"SReT-T: 76.0 sliced, 76.1 not ({TABLE})",
        margin=0.5,
    ),
    Row("3", "permutation helps groups", Side("grouping"), Side("grouping_in_order"), "no number known to us"),
    Row(
        "3",
        "mixed depth: two passes are as good as trained alone",
        Side("mixed_depth"),
        Side("recursion"),
        "that it converges, without a number",
        margin=1.0,
    ),
    Row(
        "3",
        "mixed depth: one pass is as good as trained alone",
        Side("mixed_depth", "1 pass"),
        Side("shallow"),
        "that it converges, without a number",
        margin=1.0,
    ),
    Row(
        "4",
        "token labels help",
        Side("lvvit_labels"),
        Side("lvvit", "class head"),
        f"clearly, at every size ({ABSTRACT})",
    ),
    Row("4", "mix-token helps", Side("lvvit_mixed"), Side("lvvit_labels"), "no number known to us"),
    Row(
        "5",
        "learned positions beat none, convolutional stem",
        Side("vit"),
        Side("none"),
        f"ViT-B: about 3 points, 5-shot ({RECALLED})",
    ),
    Row(
        "5",
        "learned positions beat none, patch stem",
        Side("patch"),
        Side("patch_none"),
        f"ViT-B: about 3 points, 5-shot ({RECALLED})",
    ),
    Row(
        "5",
        "sinusoidal positions beat none, patch stem",
        Side("patch_sinusoidal"),
        Side("patch_none"),
        "no number known to us",
    ),
    Row(
        "5",
        "sinusoidal positions are as good as learned ones, patch stem",
        Side("patch_sinusoidal"),
        Side("patch"),
        "no number known to us",
        margin=0.5,
    ),
)


def trial(name: str) -> Trial:
    return next(one for one in TRIALS if one.name == name)


def chosen(only: Sequence[str]) -> tuple[Trial, ...]:
    """Trials by name or by claim ("claim1"), with all they need; all of them if nothing is named."""
    names = {one.name for one in TRIALS if not only or one.name in only or f"claim{one.claim}" in only}
    unknown = [word for word in only if not any(word in (one.name, f"claim{one.claim}") for one in TRIALS)]
    if unknown:
        raise SystemExit(f"--only: no {unknown[0]!r}; known: claim1 to claim5, {', '.join(t.name for t in TRIALS)}")
    while missing := {need for name in names for need in trial(name).needs()} - names:
        names |= missing
    return tuple(one for one in TRIALS if one.name in names)
