# SPDX-License-Identifier: Apache-2.0
"""Pruning of whole channels: filters, neurons and the width of residual streams, with all that hangs on them.

Which channels go together is read off the model (`coupling`; Fang 2023, 2301.12900), what each is worth stands in
`channel_scores`. What stays is really smaller and is built anew from a plain list of edits (`narrow`). Works on any
model that torch.export can follow; what cannot be cut is left whole, and `left_alone` says why. Not here: attention
heads and their width, which are split from one dimension (`prune`, `head_width`), whole blocks (`drop_blocks`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import OptionError, closest
from ..method import Task
from ..modes import evaluating
from ..surgery import Edit, apply
from . import channel_scores
from .coupling import Group, couple
from .importance import per_mean
from .masks import check_patterns
from .narrow import edits_for

SCOPES = ("uniform", "global", "isomorphic")
Ratio = float | Mapping[str, float]


@dataclass(frozen=True)
class Ranked:
    """The channels of a model with what each is worth: enough to cut it to any ratio."""

    groups: tuple[Group, ...]
    scores: tuple[Tensor, ...]  # (C,) each
    sizes: Mapping[str, tuple[int, ...]]  # shapes of the tensors
    kinds: tuple[object, ...]  # equal for groups of the same shape of graph

    def edits(self, ratio: Ratio, *, scope: str = "uniform", round_to: int = 8) -> list[Edit]:
        """What cuts the share `ratio` of the channels; see `plan`."""
        _check(ratio, scope, round_to)
        counts = self._uniform(ratio, round_to) if scope == "uniform" else self._ranked(ratio, scope, round_to)
        gone: dict[str, dict[int, Tensor]] = {}
        for group, score, count in zip(self.groups, self.scores, counts, strict=True):
            if count == group.channels:
                continue
            worst = score.argsort(descending=True, stable=True)[count:]
            for (name, dim), index in group.members.items():
                before = gone.setdefault(name, {}).get(dim, torch.empty(0, dtype=torch.int64))
                gone[name][dim] = torch.cat([before, index[worst].flatten()])
        left = {
            name: {
                dim: sorted(set(range(self.sizes[name][dim])) - set(out.tolist())) for dim, out in gone[name].items()
            }
            for name in self.sizes
            if name in gone
        }
        return edits_for(left)

    def only(self, place: int) -> Ranked:
        """The same with one group alone."""
        return Ranked((self.groups[place],), (self.scores[place],), self.sizes, (self.kinds[place],))

    def _uniform(self, ratio: Ratio, step: int) -> list[int]:
        ratios = [_of(group, ratio) for group in self.groups]
        for group, share in zip(self.groups, ratios, strict=True):
            if (1 - share) * group.channels < 1:
                most = 1 - 1 / group.channels
                text = f"{share!r} would leave nothing of {group.name} ({group.channels} channels); at most {most:.3g}"
                raise OptionError("ratio", text)
        pairs = zip(self.groups, ratios, strict=True)
        return [_rounded((1 - share) * group.channels, group.channels, step) for group, share in pairs]

    def _ranked(self, ratio: Ratio, scope: str, step: int) -> list[int]:
        """The least important of all groups, or of all of the same kind, go, wherever they are."""
        if isinstance(ratio, Mapping):
            raise OptionError("ratio", f"is given by layer, which scope {scope!r} decides; use scope='uniform'")
        counts = [0] * len(self.groups)
        kinds = self.kinds if scope == "isomorphic" else ("",) * len(self.groups)
        for kind in dict.fromkeys(kinds):
            ranked = {i: per_mean(self.scores[i]) for i, other in enumerate(kinds) if other == kind}
            everything = torch.cat(list(ranked.values())).sort().values
            limit = everything[min(int(ratio * len(everything) + 0.5), len(everything) - 1)]
            for i, score in ranked.items():
                counts[i] = _rounded(float((score >= limit).sum()), self.groups[i].channels, step)
        return counts


def rank(
    model: nn.Module,
    example: Any,
    *,
    importance: str = "l2",
    batches: Any = None,
    task: Task | None = None,
    skip: Sequence[str] = (),
) -> Ranked:
    """The channels that may be cut, each with its score; options as of `plan`."""
    channel_scores.check(importance, batches, task)
    found = couple(model, example)
    check_patterns("skip", skip, [*(layer for group in found.groups for layer in _layers(group)), *found.locked])
    groups = [g for g in found.groups if not any(fnmatchcase(layer, p) for layer in _layers(g) for p in skip)]
    if not groups:
        reasons = "; ".join(f"{layer}: {why}" for layer, why in list(found.locked.items())[:3])
        raise LookupError(f"{type(model).__name__} has no channels that could be cut. {reasons}".strip())
    scores = channel_scores.scores(model, groups, importance, batches, task)
    known = [(group, score) for group, score in zip(groups, scores, strict=True) if score is not None]
    tensors = {**dict(model.named_buffers()), **dict(model.named_parameters())}
    kinds = tuple(_kind(model, group) for group, _ in known)
    sizes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    return Ranked(tuple(group for group, _ in known), tuple(score for _, score in known), sizes, kinds)


def plan(
    model: nn.Module,
    example: Any,
    *,
    ratio: Ratio = 0.3,
    importance: str = "l2",
    scope: str = "uniform",
    round_to: int = 8,
    batches: Any = None,
    task: Task | None = None,
    skip: Sequence[str] = (),
) -> list[Edit]:
    """The edits that cut the share `ratio` of the channels; nothing is touched.

    example: a batch that the model takes, or a tuple of its arguments, run to see what hangs together. ratio: one, or
    {name pattern of layers: share}, where a group without a pattern stays whole. importance: l1, l2, bn_scale, fpgm,
    or taylor, which needs `batches` and their `task`. scope: uniform, the same share of every group; global, the least
    important of all; isomorphic, of all groups of the same shape of graph (Fang 2024, 2407.04616). round_to: channels
    left are a multiple of it. skip: name patterns of layers whose outputs stay. Raises OptionError, and LookupError for
    a model whose channels cannot be cut.
    """
    _check(ratio, scope, round_to)
    ranked = rank(model, example, importance=importance, batches=batches, task=task, skip=skip)
    if isinstance(ratio, Mapping):
        check_patterns("ratio", ratio, [layer for group in ranked.groups for layer in _layers(group)])
    edits = ranked.edits(ratio, scope=scope, round_to=round_to)
    check_runs(model, edits, example)
    return edits


def prune_channels(model: nn.Module, example: Any, **options: Any) -> nn.Module:
    """A smaller copy of the model; the options are those of `plan`."""
    return apply(model, plan(model, example, **options))


def left_alone(model: nn.Module, example: Any) -> dict[str, str]:
    """Layer -> why its outputs cannot be cut."""
    return dict(couple(model, example).locked)


def check_runs(model: nn.Module, edits: Sequence[Edit], example: Any) -> None:
    """LookupError where the model does not run as before after the edits: its code has a size of its own."""
    args = example if isinstance(example, tuple) else (example,)
    with evaluating(model), torch.no_grad():
        wanted = _shapes(model(*args))
    new, reason = apply(model, edits), ""
    try:
        with evaluating(new), torch.no_grad():
            found = _shapes(new(*args))
        if found != wanted:
            reason = f"it answers {found[:2]}, not {wanted[:2]}"
    except Exception as error:  # noqa: BLE001  whatever a model's own code raises
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
    if reason:
        text = f"{type(model).__name__} has a size in its code that its channels cannot be cut to: {reason}"
        raise LookupError(f"{text}; skip the layers before it")


def _shapes(output: Any) -> list[tuple[int, ...]]:
    """Of all tensors in an answer."""
    if isinstance(output, Tensor):
        return [tuple(output.shape)]
    parts = output.values() if isinstance(output, Mapping) else output if isinstance(output, (list, tuple)) else ()
    return [shape for part in parts for shape in _shapes(part)]


def _layers(group: Group) -> list[str]:
    return [name.rpartition(".")[0] for name, _ in group.makers]


def _kind(model: nn.Module, group: Group) -> object:
    """What the group's tensors are, without their names and sizes."""
    found = []
    for (name, dim), index in group.members.items():
        path, _, own = name.rpartition(".")
        found.append((type(model.get_submodule(path)).__name__, own, dim, index.shape[1]))
    return tuple(sorted(found))


def _of(group: Group, ratio: Ratio) -> float:
    """The ratio of a group; of several patterns that fit the last counts."""
    if not isinstance(ratio, Mapping):
        return ratio
    found = [r for pattern, r in ratio.items() if any(fnmatchcase(layer, pattern) for layer in _layers(group))]
    return found[-1] if found else 0.0


def _rounded(wanted: float, channels: int, step: int) -> int:
    return min(channels, max(step, int(wanted / step + 0.5) * step))


def _check(ratio: Ratio, scope: str, round_to: int) -> None:
    for value in ratio.values() if isinstance(ratio, Mapping) else [ratio]:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
            raise OptionError("ratio", f"{value!r} is not in [0, 1); it is the share that is removed")
    if scope not in SCOPES:
        raise OptionError("scope", f"no {scope!r} here; {closest(scope, SCOPES)}Known: {', '.join(SCOPES)}")
    if type(round_to) is not int or round_to < 1:
        raise OptionError("round_to", f"{round_to!r} is not a whole number of 1 or more")
