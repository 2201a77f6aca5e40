# SPDX-License-Identifier: Apache-2.0
"""What a step of a recipe needs, what it gives and what it takes away: how wrong orders are refused before any work.

A `Fact` is something that holds of the model at one moment ("the batch norms' statistics fit the weights"). A step
states its `Effect` where it is written:

    @composes(Effect(needs={FLOATS: ""}, gives=(MASKS,), breaks={NORMS: "weights are gone"}))
    def sparsify(work: Work, *, ratio: Ratio = 0.5) -> Work: ...

`walk` follows the facts through a recipe. A step is refused that needs what does not hold, or that undoes what an
earlier step worked for (a fact that is `made`, such as masks); the message says why and which order is right. What is
in neither list is left as it was. Where the effect depends on the options, a function of the options stands in its
place. Not here: whether the options fit the model (`vetting`), what comes out (`explain`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, TypeVar

from .errors import OptionError


@dataclass(frozen=True)
class Fact:
    """Something that may hold of the model, or of what is known about it."""

    says: str  # fits behind "needs"
    missing: str = ""  # said where it has never held; with `makers`, the steps that bring it
    makers: tuple[str, ...] = ()
    natural: bool = False  # of a model that nothing was done to it holds
    made: bool = False  # a step worked for it: no later step may undo it
    renewed: str = ""  # what brings it back after it was broken, to be put between the two steps


# fmt: off
MODEL = Fact("a model", "there is no model yet", ("baseline", "load", "train"))
TEACHER = Fact("a teacher", "there is no teacher yet", ("teacher",))
MEASURED = Fact("measurements", "there is nothing to report yet", ("measure",))
FLOATS = Fact("weights that are floats", natural=True)
PLAIN = Fact("the linear and convolution layers that the model was built with", natural=True)
NORM_LAYERS = Fact("batch norms that are not folded", natural=True)
NORMS = Fact("statistics of the batch norms that fit the weights", natural=True, renewed="`repair` or a training")
TOKENS = Fact("a token for every patch of the picture", natural=True)
GLOBAL = Fact("attention among all tokens", natural=True)
ONCE = Fact("blocks that run once each", natural=True)
MASKS = Fact("weights that were set to zero and stay so", made=True)
CODEBOOK = Fact("weights that share few values", made=True)
RANGES = Fact("ranges of 8 or fewer bits that fit what flows", made=True)
# fmt: on
FACTS: Mapping[str, Fact] = MappingProxyType(
    {name.lower(): fact for name, fact in list(globals().items()) if isinstance(fact, Fact)}
)


@dataclass(frozen=True)
class Effect:
    """What a step needs, gives and takes away; each reason is a few words, and may be empty."""

    needs: Mapping[Fact, str] = field(default_factory=dict)  # fact -> why
    gives: tuple[Fact, ...] = ()
    breaks: Mapping[Fact, str] = field(default_factory=dict)  # fact -> why
    anew: bool = False  # it begins where the baseline began, so what was done to the model since is not in it


Statement = Effect | Callable[[Mapping[str, Any]], Effect]  # of all options of the step, defaults included
Outline = Callable[[Any, Mapping[str, Any]], Any]  # (explain.Outline, options) -> explain.Outline
F = TypeVar("F", bound=Callable[..., Any])
_EFFECTS: dict[str, Statement] = {}
_OUTLINES: dict[str, Outline] = {}
_MARKS: dict[str, Effect] = {}

LOOKS = Effect(needs={MODEL: ""})  # a step that leaves the model as it is
TRAINS = Effect(needs={MODEL: "", FLOATS: "training moves them"}, gives=(NORMS,))  # a step that only trains
TAUGHT = Effect(needs={TEACHER: "", **TRAINS.needs}, gives=(NORMS,))  # and asks the recipe's teacher


def composes(
    effect: Statement, *, outline: Outline | None = None, marks: Mapping[str, Effect] | None = None
) -> Callable[[F], F]:
    """State a step's effect.

    outline: what becomes of the model's structure, without training (for `explain`). marks: kinds of edit that the step
    leaves in a saved model, and what holds of a model that carries one.
    """

    def stated(step: F) -> F:
        _EFFECTS[step.__name__] = effect
        _MARKS.update(marks or {})
        if outline is not None:
            _OUTLINES[step.__name__] = outline
        return step

    return stated


def effect_of(step: str, options: Mapping[str, Any]) -> Effect:
    """What the step states, for these options (defaults included). LookupError for a step that states nothing."""
    if step not in _EFFECTS:
        raise LookupError(f"the step {step} does not state its effect: decorate it with composition.composes")
    found = _EFFECTS[step]
    return found if isinstance(found, Effect) else found(options)


def outline_of(step: str) -> Outline | None:
    """What the step said becomes of the structure; None for a step that leaves it."""
    return _OUTLINES.get(step)


def also(effect: Effect, **changes: Any) -> Effect:
    """The effect with more: needs and breaks joined, gives appended, the rest replaced."""
    joined: dict[str, Any] = {
        "needs": {**effect.needs, **changes.pop("needs", {})},
        "breaks": {**effect.breaks, **changes.pop("breaks", {})},
        "gives": (*effect.gives, *changes.pop("gives", ())),
    }
    return Effect(**{"anew": effect.anew, **joined, **changes})


def restarting(effect: Effect) -> Callable[[Mapping[str, Any]], Effect]:
    """The effect of a step with an option `restart`, by which it begins where the baseline began."""
    return lambda options: also(effect, anew=True) if options["restart"] else effect


@dataclass(frozen=True)
class Moment:
    """A step in its place: what it states, what holds after it, and what it leaves to be mended."""

    number: int
    step: str
    effect: Effect
    holds: frozenset[Fact]
    lost: tuple[Fact, ...]  # natural facts that this step broke
    dropped: tuple[int, ...]  # earlier steps whose work is not in the model any more, as this one begins anew


class WrongOrder(OptionError):
    """A step that cannot stand where it stands, as of this fact; `reason` is a word of `errors.REASONS`."""

    def __init__(self, where: str, text: str, reason: str = "wrong_order", fact: Fact | None = None) -> None:
        super().__init__(where, text)
        self.reason, self.fact = reason, fact


def walk(
    steps: Sequence[tuple[str, Mapping[str, Any]]], *, done: Iterable[str] = (), lasting: Iterable[Fact] = ()
) -> list[Moment]:
    """The facts through a recipe of (step, all its options). WrongOrder, `where` the step, where it cannot work.

    done: kinds of the edits that the model to start from carries, oldest first. lasting: facts that nothing breaks in
    this model, such as NORMS where there are no batch norms.
    """
    marks = [_MARKS[kind] for kind in dict.fromkeys(done) if kind in _MARKS]
    facts = _Facts(marks, frozenset(lasting))
    return [facts.after(number, step, effect_of(step, options)) for number, (step, options) in enumerate(steps)]


class _Facts:
    """What holds, which step made it, and which step broke what does not."""

    def __init__(self, before: Iterable[Effect], lasting: frozenset[Fact]) -> None:
        self.names: list[str] = []
        self.effects: list[Effect] = []
        self.lasting = lasting
        self.at_start = {fact: -1 for fact in FACTS.values() if fact.natural}
        self.broken: dict[Fact, tuple[int, str]] = {}
        for effect in before:
            self._change(self.at_start, -1, effect)
        self.held = dict(self.at_start)

    def after(self, number: int, step: str, effect: Effect) -> Moment:
        self.names.append(step)
        self.effects.append(effect)
        dropped = self._begin_anew() if effect.anew else ()
        for fact, why in effect.needs.items():
            if fact not in self.held:
                reason = "wrong_order" if fact in self.broken else "missing_key"
                raise WrongOrder(self._place(number), self._lacking(fact, why, step), reason, fact)
        for fact, why in effect.breaks.items():
            if fact.made and fact in self.held:
                raise WrongOrder(self._place(number), self._undoing(fact, why, step), fact=fact)
        lost = tuple(f for f in effect.breaks if f.natural and f in self.held and f not in self.lasting)
        self._change(self.held, number, effect)
        return Moment(number, step, effect, frozenset(self.held), lost, dropped)

    def _change(self, held: dict[Fact, int], number: int, effect: Effect) -> None:
        for fact, why in effect.breaks.items():
            if fact not in self.lasting and held.pop(fact, None) is not None:
                self.broken[fact] = (number, why)
        held.update(dict.fromkeys(effect.gives, number))

    def _begin_anew(self) -> tuple[int, ...]:
        """Back to the start, but for what is not of the model; the steps whose work is lost by it."""
        lost = {number for fact, number in self.held.items() if fact.made and number >= 0}
        beside = {fact: number for fact, number in self.held.items() if fact in (MODEL, TEACHER, MEASURED)}
        self.held = {**self.at_start, **beside}
        return tuple(sorted(lost))

    def _place(self, number: int) -> str:
        return f"steps[{number}].{self.names[number]}" if number >= 0 else "the model it starts from"

    def _lacking(self, fact: Fact, why: str, step: str) -> str:
        reason = f" ({why})" if why else ""
        if fact not in self.broken:
            makers = ", ".join(f"`{maker}`" for maker in fact.makers)
            return f"{fact.missing or f'needs {fact.says}'}{reason}: put a step {makers} before it"
        number, how = self.broken[fact]
        took = f"needs {fact.says}{reason}, which {self._place(number)} has not left{f': {how}' if how else ''}"
        if fact.renewed:
            return f"{took}; put {fact.renewed} between them"
        return f"{took}; {self._before(step, number)}"

    def _undoing(self, fact: Fact, why: str, step: str) -> str:
        number = self.held[fact]
        reason = f" ({why})" if why else ""
        return f"would undo the {fact.says} of {self._place(number)}{reason}; {self._before(step, number)}"

    def _before(self, step: str, number: int) -> str:
        if number < 0:
            return "start from a model that has not been through it"
        if self.names[number] == step:
            return "once is enough"
        if _in_the_way(self.effects[-1], self.effects[number]):
            return "use one of the two"
        return f"the right order is `{step}`, then `{self.names[number]}`"


def _in_the_way(first: Effect, second: Effect) -> bool:
    """Whether the second could not follow the first either."""
    lost = set(first.breaks) - {fact for fact in first.breaks if fact.renewed}
    return bool(lost & set(second.needs)) or any(fact.made for fact in set(first.gives) & set(second.breaks))
