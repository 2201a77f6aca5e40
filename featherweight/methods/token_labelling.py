# SPDX-License-Identifier: Apache-2.0
"""Token labelling (Jiang 2021, 2104.10858): every patch learns what a teacher says of its place.

For models with a head on every token (LV-ViT). The labels come from maps that a teacher made before (`label_maps`), cut
as each picture was, or are the picture's own label for every token. With mix-token, a box of each picture's tokens
comes from another one: token labels follow their tokens, the class label is mixed by area. Not here: image mixup and
cutmix, which label maps could not follow.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import OptionError
from ..layers import AuxLogits
from ..surgery import all_of, edits_of, find, record
from ..train import Batch, Method, Pass
from .dense import grid_of
from .distill import classes_of
from .label_crops import cropped, transposed
from .label_maps import LabelMaps


def soft_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over the rows of - sum(labels * log softmax(logits)); classes last."""
    return -(labels * F.log_softmax(logits.float(), dim=-1)).sum(-1).mean()


def smoothed(label: Tensor, num_classes: int, smoothing: float) -> Tensor:
    """Labels (B,) -> (B, K): 1 - s + s / K for the class, s / K for the others."""
    return F.one_hot(label, num_classes).float() * (1 - smoothing) + smoothing / num_classes


def blended(label: Tensor, truth: Tensor, if_agree: float, if_not: float) -> Tensor:
    """A label (B, K) with a share of the truth (B, K): `if_agree` where both name the same class, else `if_not`."""
    agree = label.argmax(-1) == truth.argmax(-1)
    share = torch.where(agree, if_agree, if_not)[:, None]
    return label * (1 - share) + truth * share


def mixed(label: Tensor, box: Tensor | None, tokens: int) -> Tensor:
    """The class token's labels (B, K) when a box (top, left, bottom, right) of the tokens is the reverse batch's."""
    if box is None:
        return label
    foreign = (box[2] - box[0]) * (box[3] - box[1]) / tokens
    return label * (1 - foreign) + label.flip(0) * foreign


@dataclass(frozen=True)
class TokenLabelling(Method):
    """cls_weight * cross-entropy of the class token + dense_weight * cross-entropy of the tokens, in the task's place.

    labels: what `label_maps.make` made of the training part; without, each token learns its picture's label.
    mix_token: exchange a box of tokens in the batch, in training. smoothing: of all labels. truth_if_agree,
    truth_if_not: the true label's share of the class token's, where the map's best class is the true one and where it
    is not; the published code's `ground_truth` is 0.5 and 0.1, its comment describes 0.1 and 0.5. official: the
    published code's labels, whose crop has its axes exchanged and whose sum is 1 + smoothing / K.
    """

    labels: LabelMaps | None = None
    cls_weight: float = 1.0
    dense_weight: float = 1.0
    mix_token: bool = True
    smoothing: float = 0.1
    truth_if_agree: float = 0.0
    truth_if_not: float = 0.0
    official: bool = False

    def __post_init__(self) -> None:
        for name in ("cls_weight", "dense_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise OptionError(name, f"{getattr(self, name)!r} is not 0 or more")
        for name in ("smoothing", "truth_if_agree", "truth_if_not"):
            if not 0 <= getattr(self, name) <= 1:
                raise OptionError(name, f"{getattr(self, name)!r} is not in 0..1")

    def prepare(self, model: nn.Module) -> nn.Module:
        """A copy that mixes tokens in training, if asked to. LookupError for a model without a head on every token."""
        if not all_of(model, AuxLogits):
            text = f"{type(model).__name__} has no head on every token, which token labelling teaches"
            raise LookupError(f"{text}; take lvvit_t, say")
        mine = classes_of(model)
        if self.labels is not None and mine not in (None, self.labels.num_classes):
            text = f"the teacher has {self.labels.num_classes} classes, the model {mine}; teach with the same"
            raise OptionError("labels", text)
        return _mixing(model, self.mix_token)

    def loss(self, terms: dict[str, Tensor], run: Pass) -> dict[str, Tensor]:
        aside = find(run.model, AuxLogits).aside
        tokens: Tensor = aside.aux_logits  # (B, N, K)
        with torch.no_grad(), torch.autocast(tokens.device.type, enabled=False):
            label, token_labels = self.targets(run.batch, tokens.shape[1], tokens.shape[2])
            label = mixed(label, aside.box, tokens.shape[1])
        own = {name: term for name, term in terms.items() if name not in run.task_terms}
        terms = {"task": self.cls_weight * soft_cross_entropy(run.output, label), **own}
        if token_labels is not None:
            terms["tokens"] = self.dense_weight * soft_cross_entropy(tokens, token_labels)
        return terms

    def finish(self, model: nn.Module) -> nn.Module:
        """A copy that mixes nothing, as no other loss knows of it."""
        return _mixing(model, False)

    def targets(self, batch: Batch, count: int, num_classes: int) -> tuple[Tensor, Tensor | None]:
        """Labels of the class token (B, K) and of `count` tokens (B, N or 1, K), before mix-token.

        Tokens that are not the whole grid, as some were dropped or merged, have no place and no labels of maps.
        """
        truth = smoothed(batch["label"], num_classes, self.smoothing)
        if self.labels is None:
            label = batch.get("soft_label", truth).float()
            return label, label[:, None]
        try:
            grid = grid_of(count, batch["image"])
        except OptionError:
            grid = None
        label, tokens = self._from_maps(self.labels, batch, grid)
        return blended(label, truth, self.truth_if_agree, self.truth_if_not), tokens

    def _from_maps(self, maps: LabelMaps, batch: Batch, grid: tuple[int, int] | None) -> tuple[Tensor, Tensor | None]:
        """The class token's labels (B, K) and the tokens' (B, N, K), as the teacher has them."""
        if "soft_label" in batch:
            text = "mixup and cutmix change what is where, and label maps cannot follow: leave them out"
            raise OptionError("augment", f"{text}; mix-token takes their part")
        if "geometry" not in batch:
            raise OptionError("batches", "say not where their pictures come from: they need 'geometry' and 'crop'")
        scores, classes = maps.of(batch["index"])
        where = batch["geometry"], batch["crop"]
        geometry, crop = transposed(*where) if self.official else where
        sure = 1 - self.smoothing + (self.smoothing / maps.num_classes if self.official else 0.0)

        def cut(cells: tuple[int, int]) -> Tensor:
            logits = cropped(scores, classes, geometry, crop, cells, maps.num_classes)
            return logits.softmax(-1) * sure + self.smoothing / maps.num_classes

        return cut((1, 1))[:, 0], None if grid is None else cut(grid)


def _mixing(model: nn.Module, on: bool) -> nn.Module:
    """A copy whose mix-token is on or off."""
    new = copy.deepcopy(model)
    record(new, edits_of(model))
    find(new, AuxLogits).mix_token = on
    return new
