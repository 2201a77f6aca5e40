# SPDX-License-Identifier: Apache-2.0
"""What modules of a student and of its teacher put out on one batch: the plumbing of every method that compares them.

A student is heard by a listener that goes with the training (`listening`); a teacher is watched while it is asked, so
it is left as it is. Not here: what is compared, and how (attention_transfer, similarity, rkd, fitnets, tinybert).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import OptionError
from ..method import Method, Pass
from ..modes import evaluating
from ..surgery import Aside, submodule
from .listening import Listener, hear, with_listener, without

FeatureDistance = Callable[[Tensor, Tensor], Tensor]  # features of student and teacher -> a scalar


class Ears(Listener):
    """Keeps what it heard while the model is trained, by name, until the loss takes it."""

    def __init__(self) -> None:
        super().__init__()
        self.aside = Aside()

    def keep(self, name: str, module: nn.Module, args: tuple[Any, ...], output: Any = None) -> None:
        """A hook: what the module put out or, before it ran, the first of what it got."""
        if self.training:
            setattr(self.aside, name, tensor_of(args if output is None else output, name))

    def take(self, name: str) -> Tensor:
        """What was heard in this step. LookupError for a module that did not run."""
        if name not in self.aside:
            raise LookupError(f"{name} did not run in this step, so there are no features of it")
        found: Tensor = self.aside.take(name)
        return found


def tensor_of(output: Any, name: str) -> Tensor:
    """The tensor in what a module puts out: itself, or the first of a tuple."""
    while isinstance(output, (tuple, list)) and output:
        output = output[0]
    if not isinstance(output, Tensor):
        raise OptionError(name, f"puts out {type(output).__name__}, not a tensor whose features could be compared")
    return output


def entering(path: str) -> str:
    """The name of what the module at a path gets, where its path alone is the name of what it puts out."""
    return f"input of {path}"


def listened(model: nn.Module, name: str, ears: Ears, paths: Iterable[str], *, inputs: Iterable[str] = ()) -> nn.Module:
    """A copy of the model whose modules at these paths are heard. LookupError for a path that is not there."""
    new = with_listener(model, name, ears)
    for path in paths:
        hear(submodule(new, path), getattr(new, name).keep, path)
    for path in inputs:
        hear(submodule(new, path), getattr(new, name).keep, entering(path), inputs=True)
    return new


def asked(
    run: Pass, teacher: nn.Module, paths: Iterable[str], *, inputs: Iterable[str] = ()
) -> tuple[Tensor, dict[str, Tensor]]:
    """The teacher's answer to the batch, and by path what its modules put out; by `entering(path)` what they got."""
    paths, inputs = list(paths), list(inputs)
    with seen(teacher, paths, inputs=inputs) as found:
        answer = run.call(teacher)
    missing = [name for name in (*paths, *map(entering, inputs)) if name not in found]
    if missing:
        raise LookupError(f"teacher: {missing[0]} did not run, so there are no features of it")
    return answer, found


@contextmanager
def seen(model: nn.Module, paths: Iterable[str], *, inputs: Iterable[str] = ()) -> Iterator[dict[str, Tensor]]:
    """While inside: path -> what the module there put out last, `entering(path)` -> what it got."""
    found: dict[str, Tensor] = {}

    def put(name: str) -> Callable[..., None]:
        return lambda _module, _args, output: found.__setitem__(name, tensor_of(output, name))

    def got(name: str) -> Callable[..., None]:
        return lambda _module, args: found.__setitem__(name, tensor_of(args, name))

    with ExitStack() as stack:
        for path in dict.fromkeys(paths):
            stack.callback(submodule(model, path).register_forward_hook(put(path)).remove)
        for path in dict.fromkeys(inputs):
            stack.callback(submodule(model, path).register_forward_pre_hook(got(entering(path))).remove)
        yield found


@torch.no_grad()
def shapes(model: nn.Module, paths: Sequence[str], image: Sequence[int]) -> list[tuple[int, ...]]:
    """What the modules put out for one picture (C, H, W), without the batch. Runs the model once, in eval mode."""
    like = next(model.parameters())
    with evaluating(model), seen(model, paths) as found:
        model(torch.zeros(1, *image, device=like.device, dtype=like.dtype))
    for path in paths:
        if path not in found:
            raise OptionError(path, f"does not run in {type(model).__name__}, so there are no features of it")
    return [tuple(found[path].shape[1:]) for path in paths]


def same_places(student: Tensor, teacher: Tensor, where: str) -> tuple[Tensor, Tensor]:
    """Features of equally many places: of maps (B, C, H, W) the larger ones are averaged down, tokens must agree."""
    if student.ndim != teacher.ndim or student.ndim not in (2, 3, 4):
        shapes_ = f"{list(student.shape)} and {list(teacher.shape)}"
        raise OptionError(where, f"{shapes_} cannot be compared: both must be vectors, tokens or maps")
    if student.ndim == 4 and student.shape[2:] != teacher.shape[2:]:
        size = min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3])
        pool = nn.functional.adaptive_avg_pool2d
        return pool(student, size), pool(teacher, size)
    if student.ndim == 3 and student.shape[1] != teacher.shape[1]:
        text = f"{student.shape[1]} tokens of the student cannot be compared with {teacher.shape[1]} of the teacher"
        raise OptionError(where, text)
    return student, teacher


def embedding(features: Tensor) -> Tensor:
    """One vector for each sample (B, C): maps and tokens are averaged over their places."""
    return features.flatten(2).mean(2) if features.ndim == 4 else features.mean(1) if features.ndim == 3 else features


@dataclass(frozen=True)
class FeatureDistill(Method):
    """The task's loss + weight * the sum over `pairs` of distance(student's features, teacher's). weight 0 is plain.

    pairs: path of a module in the student -> path in the teacher. LookupError for a path that is not there.
    """

    teacher: nn.Module
    pairs: Mapping[str, str]
    distance: FeatureDistance
    weight: float = field(default=1.0, kw_only=True)

    def __post_init__(self) -> None:
        if not self.pairs:
            raise OptionError("pairs", "there are none; name at least one, student's path: teacher's path")
        if not self.weight >= 0:
            raise OptionError("weight", f"{self.weight!r} is not 0 or more")
        for path in self.pairs.values():
            submodule(self.teacher, path)

    @property
    def name(self) -> str:
        """Of the listener and of the term of the loss."""
        return type(self).__name__.lower()

    def prepare(self, model: nn.Module) -> nn.Module:
        return listened(model, self.name, Ears(), self.pairs)

    def loss(self, terms: dict[str, Tensor], run: Pass) -> dict[str, Tensor]:
        ears: Any = getattr(run.model, self.name)
        _, theirs = asked(run, self.teacher, self.pairs.values())
        pairs = [(ears.take(mine), theirs[path]) for mine, path in self.pairs.items()]
        distances = [self.distance(a.float(), b.float()) for a, b in pairs]
        return {**terms, self.name: self.weight * torch.stack(distances).sum()}

    def finish(self, model: nn.Module) -> nn.Module:
        return without(model, self.name)
