# SPDX-License-Identifier: Apache-2.0
"""FitNets (Romero 2015, 1412.6550): a thin, deep student is first led by the middle of its teacher, then by the end.

Stage 1, the first share of the run: the student's guided layer, through a regressor, learns what the teacher's hint
layer puts out; nothing behind the guided layer gets a gradient (a weight decay still acts on it). Stage 2: the task,
and beside it the teacher's softened answer with a weight that falls linearly from `start` to `end`. Not here: stage by
stage over several hints, which the paper found no better.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import OptionError
from ..method import Method, Pass
from ..surgery import submodule
from .distill import Distance, soft_cross_entropy
from .features import Ears, asked, listened, shapes
from .listening import without

NAME = "fitnets"


class Regressor(Ears):
    """What was heard at the guided layer, in the shape of the hint."""

    def __init__(self, guided: Sequence[int], hint: Sequence[int], where: str) -> None:
        super().__init__()
        self.size: tuple[int, ...] = ()
        if len(guided) != len(hint) or len(guided) not in (1, 2, 3):
            shapes_ = f"{list(guided)} and the hint's {list(hint)}"
            raise OptionError(where, f"{shapes_} do not fit: both must be vectors, tokens or maps")
        if len(guided) == 2 and guided[0] != hint[0]:
            raise OptionError(where, f"has {guided[0]} tokens, the hint {hint[0]}; a regressor cannot make them equal")
        self.fit: nn.Module
        if len(guided) < 3:
            self.fit = nn.Linear(guided[-1], hint[-1])
        else:
            sides = [a - b + 1 for a, b in zip(guided[1:], hint[1:], strict=True)]  # the paper's kernel, unpadded
            if min(sides) >= 1:
                self.fit = nn.Conv2d(guided[0], hint[0], (sides[0], sides[1]))
            else:  # a guided layer smaller than its hint is enlarged
                self.fit, self.size = nn.Conv2d(guided[0], hint[0], 1), tuple(hint[1:])

    def shaped(self, features: Tensor) -> Tensor:
        """Features of the guided layer as the hint's."""
        found: Tensor = self.fit(features)
        return F.interpolate(found, self.size, mode="bilinear") if self.size else found


@dataclass(frozen=True)
class FitNets(Method):
    """Hints for the first `stage` of the run, then the task + lambda * distance, lambda from `start` to `end`.

    guided: path of a module of the student; hint: of the teacher. image: the shape (C, H, W) of a picture, by which the
    regressor is made. stage, start and end 0 is plain training. LookupError for a path that is not there.
    """

    teacher: nn.Module
    hint: str
    guided: str
    image: tuple[int, int, int]
    stage: float = 0.3
    start: float = 4.0
    end: float = 1.0
    temperature: float = 3.0
    distance: Distance = soft_cross_entropy

    def __post_init__(self) -> None:
        submodule(self.teacher, self.hint)
        if not 0 <= self.stage < 1:
            raise OptionError("stage", f"{self.stage!r} is not a share of the run from 0 to below 1")
        for name in ("start", "end"):
            if not getattr(self, name) >= 0:
                raise OptionError(name, f"{getattr(self, name)!r} is not 0 or more")
        if not self.temperature > 0:
            raise OptionError("temperature", f"{self.temperature!r} is not above 0")

    def prepare(self, model: nn.Module) -> nn.Module:
        (hint,), (guided,) = shapes(self.teacher, [self.hint], self.image), shapes(model, [self.guided], self.image)
        return listened(model, NAME, Regressor(guided, hint, f"guided: {self.guided}"), [self.guided])

    def loss(self, terms: dict[str, Tensor], run: Pass) -> dict[str, Tensor]:
        regressor: Any = getattr(run.model, NAME)
        answer, theirs = asked(run, self.teacher, [self.hint])
        made = regressor.shaped(regressor.take(self.guided))
        led = 0.5 * F.mse_loss(made.float(), theirs[self.hint].float())
        if run.progress < self.stage:  # every parameter still has a gradient, of 0, as several processes want it
            return {**{name: 0.0 * term for name, term in terms.items()}, "hint": led}
        done = (run.progress - self.stage) / (1 - self.stage)
        weight = self.start + (self.end - self.start) * done
        distance = self.distance(run.output, answer, self.temperature)
        return {**terms, "hint": 0.0 * led, "distill": weight * distance}

    def finish(self, model: nn.Module) -> nn.Module:
        return without(model, NAME)
