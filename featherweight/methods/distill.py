# SPDX-License-Identifier: Apache-2.0
"""Learning from a teacher's answers (Hinton 2015, 1503.02531): works on any classifier, needs no change of structure.

The distances are functions of (student logits, teacher logits), both (B, K), to a scalar. Not here: a token or a
head of its own for the teacher (deit), features (fitnets), the transformer's inner life (tinybert).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import OptionError
from ..train import Method, Pass

OTHERS = "answers with {theirs} classes, the student with {mine}; both need the data's"
Distance = Callable[[Tensor, Tensor, float], Tensor]


def kl(logits: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """T^2 * KL(teacher || student) at temperature T, mean over the batch."""
    target = F.log_softmax(teacher.float() / temperature, dim=-1)
    return (
        F.kl_div(F.log_softmax(logits.float() / temperature, dim=-1), target, reduction="batchmean", log_target=True)
        * temperature**2
    )


def kl_per_class(logits: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """`kl` divided by the number of classes too: DeiT's published code, K times weaker than its paper's formula."""
    return kl(logits, teacher, temperature) / logits.shape[-1]


def hard(logits: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Cross-entropy with the teacher's decision; the temperature plays no part."""
    return F.cross_entropy(logits.float(), teacher.argmax(dim=-1))


def mse(logits: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Mean squared difference of the logits; the temperature plays no part."""
    return F.mse_loss(logits.float(), teacher.float())


def soft_cross_entropy(logits: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Cross-entropy with the teacher's softened answer, mean over the batch, without T^2: SReT's code, at alpha 1.

    KL plus the teacher's entropy (Shen 2021, 2112.01528); its gradient is that of `kl` divided by T^2.
    """
    target = F.softmax(teacher.float() / temperature, dim=-1)
    return F.cross_entropy(logits.float() / temperature, target)


DISTANCES: dict[str, Distance] = {
    "soft": kl, "soft_per_class": kl_per_class, "hard": hard, "mse": mse, "soft_cross_entropy": soft_cross_entropy,
}  # fmt: skip


def check_weights(alpha: float, temperature: float) -> None:
    """Raises OptionError unless alpha is in 0..1 and temperature above 0."""
    if not 0 <= alpha <= 1:
        raise OptionError("alpha", f"{alpha!r} is not in 0..1; it is the teacher's share of the loss")
    if not temperature > 0:
        raise OptionError("temperature", f"{temperature!r} is not above 0")


def classes_of(model: nn.Module) -> int | None:
    """How many classes a classifier answers with, as far as it says: by a number of its own or its configuration's, or
    by the linear layer that its head is or ends with. None where it does not."""
    model = getattr(model, "teacher", model)  # of one that recalls (`answers.Remembered`)
    config = getattr(model, "config", None)
    for where, name in ((model, "num_classes"), (config, "num_classes"), (config, "num_labels")):
        if isinstance(found := getattr(where, name, None), int) and not isinstance(found, bool) and found > 0:
            return found
    for part in (*(getattr(model, name, None) for name in ("head", "fc", "classifier")), model):
        while isinstance(part, nn.Sequential) and len(part):
            part = part[-1]
        if isinstance(part, nn.Linear):
            return part.out_features
    return None


def check_teacher(model: nn.Module, teacher: nn.Module) -> None:
    """OptionError where both say how many classes they know, and it is not the same number."""
    mine, theirs = classes_of(model), classes_of(teacher)
    if mine is not None and theirs is not None and mine != theirs:
        raise OptionError("teacher", OTHERS.format(theirs=theirs, mine=mine))


def taught(logits: Tensor, run: Pass, teacher: nn.Module) -> Tensor:
    """The teacher's logits (B, K) on the batch; OptionError where it knows other classes than the student."""
    answer: Tensor = run.call(teacher)
    if answer.shape != logits.shape:
        theirs, mine = (int(x.shape[-1]) for x in (answer, logits))
        raise OptionError("teacher", OTHERS.format(theirs=theirs, mine=mine))
    return answer


def share(terms: dict[str, Tensor], run: Pass, alpha: float, distance: Tensor) -> dict[str, Tensor]:
    """(1 - alpha) of the task's own terms, alpha of the distance to the teacher."""
    scaled = {name: (1 - alpha) * term if name in run.task_terms else term for name, term in terms.items()}
    return {**scaled, "distill": alpha * distance}


@dataclass(frozen=True)
class Distill(Method):
    """(1 - alpha) * task + alpha * distance(student, teacher). alpha 0 is plain training."""

    teacher: nn.Module
    alpha: float = 0.5
    temperature: float = 1.0
    distance: Distance = kl

    def __post_init__(self) -> None:
        check_weights(self.alpha, self.temperature)

    def prepare(self, model: nn.Module) -> nn.Module:
        """The model as it is. OptionError for a teacher of other classes, where both tell; else the first loss does."""
        check_teacher(model, self.teacher)
        return model

    def loss(self, terms: dict[str, Tensor], run: Pass) -> dict[str, Tensor]:
        answer = taught(run.output, run, self.teacher)
        return share(terms, run, self.alpha, self.distance(run.output, answer, self.temperature))
