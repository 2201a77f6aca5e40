# SPDX-License-Identifier: Apache-2.0
"""Structured pruning of transformers: the MLP neurons and attention heads that matter least are cut out.

(Michel 2019, 1905.10650, for heads; Molchanov 2017, 1611.06440, for the first-order importance.) What stays is exactly
the sub-network: rows and columns are removed, layers are really smaller, and the result equals the model with the
removed parts at zero. Works on every described transformer (`anatomy`), also one that carries a
distillation token or drops tokens. Not here: the width of the tokens, single weights, convolutions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from ..anatomy import Anatomy, anatomy_of, blocks_of
from ..errors import OptionError, closest
from ..surgery import Edit, apply, edit_kind, submodule
from ..train import Task
from . import importance as scoring
from .narrow import checked


@dataclass(frozen=True)
class Mlp:
    """The two layers around a block's hidden neurons."""

    fc1: nn.Linear
    fc2: nn.Linear

    @classmethod
    def of(cls, block: nn.Module, anatomy: Anatomy, where: str) -> Mlp:
        """Raises LookupError where the layers are not what can be narrowed."""
        fc1, fc2 = (_linear(block, path, where) for path in anatomy.mlp)
        if fc1.out_features != fc2.in_features:
            made, taken = fc1.out_features, fc2.in_features
            raise LookupError(
                f"{where}: {anatomy.mlp[0]} makes {made} neurons, {anatomy.mlp[1]} takes {taken}: no plain MLP"
            )
        _check_others(block, anatomy.mlp[0].rpartition(".")[0], (fc1, fc2), fc1.out_features, where)
        return cls(fc1, fc2)

    @property
    def groups(self) -> int:
        return self.fc1.out_features

    @property
    def reader(self) -> nn.Linear:
        return self.fc2

    def scores(self, norm: str) -> Tensor:
        return scoring.by_weight([_with_bias(self.fc1)], [self.fc2.weight], self.groups, norm)

    def narrow(self, keep: Sequence[int]) -> None:
        narrow_layer(self.fc1, keep, dim=0)
        narrow_layer(self.fc2, keep, dim=1)


@dataclass(frozen=True)
class Heads:
    """A block's attention, one head after the other in every layer."""

    attention: nn.Module
    qkv: tuple[nn.Linear, ...]  # one (q | k | v) or three
    projection: nn.Linear
    anatomy: Anatomy

    @classmethod
    def of(cls, block: nn.Module, anatomy: Anatomy, where: str) -> Heads:
        """Raises LookupError where the layers are not what can be narrowed."""
        attention = submodule(block, anatomy.attention)
        qkv = tuple(_linear(block, path, where) for path in anatomy.qkv)
        projection = _linear(block, anatomy.projection, where)
        found = cls(attention, qkv, projection, anatomy)
        width = projection.in_features
        if any(layer.out_features * len(qkv) != 3 * width for layer in qkv) or width % found.groups:
            raise LookupError(f"{where}.{anatomy.attention}: its q, k and v are not {found.groups} heads of one width")
        _check_others(block, anatomy.attention, (*qkv, projection), width, where)
        return found

    @property
    def groups(self) -> int:
        return int(getattr(self.attention, self.anatomy.num_heads))

    @property
    def reader(self) -> nn.Linear:
        return self.projection

    def scores(self, norm: str) -> Tensor:
        parts = [part for layer in self.qkv for part in _with_bias(layer).chunk(3 // len(self.qkv))]
        return scoring.by_weight(parts, [self.projection.weight], self.groups, norm)

    def narrow(self, keep: Sequence[int]) -> None:
        width, parts = self.projection.in_features, 3 // len(self.qkv)
        each = width // self.groups  # d, the width of a head
        channels = [head * each + i for head in keep for i in range(each)]
        for layer in self.qkv:
            narrow_layer(layer, [part * width + c for part in range(parts) for c in channels], dim=0)
        narrow_layer(self.projection, channels, dim=1)
        setattr(self.attention, self.anatomy.num_heads, len(keep))
        for name in self.anatomy.widths:
            setattr(self.attention, name, len(channels))


@edit_kind
def narrow_mlp(model: nn.Module, *, block: str, keep: Sequence[int]) -> nn.Module:
    """The model whose block at that path has only these hidden neurons left, counted as they are now."""
    part = Mlp.of(submodule(model, block), anatomy_of(model), block)
    part.narrow(checked(keep, part.groups, f"{block}: neurons"))
    return model


@edit_kind
def narrow_heads(model: nn.Module, *, block: str, keep: Sequence[int]) -> nn.Module:
    """The model whose block at that path has only these attention heads left, counted as they are now."""
    part = Heads.of(submodule(model, block), anatomy_of(model), block)
    part.narrow(checked(keep, part.groups, f"{block}: heads"))
    return model


def plan(
    model: nn.Module,
    *,
    mlp: float = 0.3,
    heads: float = 0.3,
    importance: str = "l2",
    batches: Any = None,
    task: Task | None = None,
    round_to: int = 8,
    uniform: bool = True,
    skip: Sequence[str] = (),
) -> list[Edit]:
    """The edits that cut out the share `mlp` of all hidden neurons and `heads` of all heads; nothing is touched.

    importance: l2, l1 (of the weights), or taylor (needs `batches` to train on and their `task`). uniform: the same
    share of every block; else the least important of all blocks go, whichever they are in. round_to: neurons left are
    a multiple of it. skip: name patterns of blocks (`blocks.0`) or parts (`*.attn`) left alone. One head and `round_to`
    neurons always stay. Raises OptionError, TypeError for a model without anatomy, LookupError for unfit layers.
    """
    _check_options(mlp, heads, round_to)
    scoring.check(importance, batches, task)
    parts = _parts(model, {"narrow_mlp": mlp, "narrow_heads": heads}, skip)
    scores = _scores(model, parts, importance, batches, task)
    kept = {
        "narrow_mlp": _chosen(scores["narrow_mlp"], mlp, round_to, uniform),
        "narrow_heads": _chosen(scores["narrow_heads"], heads, 1, uniform),
    }
    return [
        Edit("", kind, {"block": path, "keep": kept[kind][path]})
        for path in blocks_of(model)
        for kind in kept
        if path in kept[kind] and len(kept[kind][path]) < parts[kind][path].groups
    ]


def prune(model: nn.Module, **options: Any) -> nn.Module:
    """A smaller copy of the model; the options are those of `plan`."""
    return apply(model, plan(model, **options))


def _parts(model: nn.Module, ratios: Mapping[str, float], skip: Sequence[str]) -> dict[str, dict[str, Mlp | Heads]]:
    """Kind -> path of a block -> what may be narrowed there."""
    anatomy, blocks = anatomy_of(model), blocks_of(model)
    names = {path: f"{anatomy.blocks}.{i}" for i, path in enumerate(blocks)}  # what a person calls a block
    kinds: dict[str, tuple[str, Callable[[nn.Module, Anatomy, str], Mlp | Heads]]] = {
        "narrow_mlp": (anatomy.mlp[0].rpartition(".")[0] or anatomy.mlp[0], Mlp.of),
        "narrow_heads": (anatomy.attention, Heads.of),
    }
    _check_skip(skip, [n for name in names.values() for n in (name, *(f"{name}.{part}" for part, _ in kinds.values()))])
    return {
        kind: {
            path: of(block, anatomy, path)
            for path, block in blocks.items()
            if ratios[kind] and not any(fnmatchcase(n, p) for n in (names[path], f"{names[path]}.{part}") for p in skip)
        }
        for kind, (part, of) in kinds.items()
    }


def _scores(
    model: nn.Module, parts: Mapping[str, Mapping[str, Mlp | Heads]], importance: str, batches: Any, task: Task | None
) -> dict[str, dict[str, Tensor]]:
    """Kind -> block -> scores (G,)."""
    if importance != "taylor":
        return {
            kind: {path: part.scores(importance).cpu() for path, part in some.items()} for kind, some in parts.items()
        }
    readers = {
        f"{kind} {path}": (part.reader, part.groups) for kind, some in parts.items() for path, part in some.items()
    }
    found = scoring.by_taylor(model, readers, batches, task) if readers else {}  # type: ignore[arg-type]
    return {kind: {path: found[f"{kind} {path}"] for path in some} for kind, some in parts.items()}


def _chosen(scores: Mapping[str, Tensor], ratio: float, step: int, uniform: bool) -> dict[str, list[int]]:
    """Block -> the indices that stay, in order: the best of each block, their number a multiple of `step`."""
    if not scores:
        return {}
    if uniform:
        wanted = {path: (1 - ratio) * len(score) for path, score in scores.items()}
    else:
        ranked = {path: scoring.per_mean(score) for path, score in scores.items()}
        everything = torch.cat(list(ranked.values())).sort().values
        cut = int(ratio * len(everything) + 0.5)
        limit = everything[cut] if cut < len(everything) else everything[-1]
        wanted = {path: float((score >= limit).sum()) for path, score in ranked.items()}
    counts = {
        path: min(len(scores[path]), max(step, int(number / step + 0.5) * step)) for path, number in wanted.items()
    }
    return {
        path: sorted(scores[path].argsort(descending=True, stable=True)[:count].tolist())
        for path, count in counts.items()
    }


def narrow_layer(layer: nn.Linear, keep: Sequence[int], *, dim: int) -> None:
    """Leave these outputs (dim 0) or inputs (dim 1) of the very layer."""
    index = torch.tensor(keep, device=layer.weight.device)
    layer.weight = _part(layer.weight, index, dim)
    if dim == 0:
        layer.out_features = len(keep)
        if layer.bias is not None:
            layer.bias = _part(layer.bias, index, 0)
    else:
        layer.in_features = len(keep)


def _part(parameter: Tensor, index: Tensor, dim: int) -> nn.Parameter:
    return nn.Parameter(parameter.detach().index_select(dim, index).contiguous(), requires_grad=parameter.requires_grad)


def _with_bias(layer: nn.Linear) -> Tensor:
    """Weight and bias side by side (outputs, inputs + 1)."""
    return layer.weight if layer.bias is None else torch.cat([layer.weight, layer.bias[:, None]], dim=1)


def _linear(block: nn.Module, path: str, where: str) -> nn.Linear:
    layer = submodule(block, path)
    if type(layer) is not nn.Linear or torch.nn.utils.parametrize.is_parametrized(layer):
        kind = type(layer).__name__
        raise LookupError(
            f"{where}.{path} is a {kind}, not a plain linear layer: prune first, then quantize or factorize"
        )
    return layer


def _check_others(block: nn.Module, home: str, known: Sequence[nn.Module], width: int, where: str) -> None:
    """LookupError where another layer at `home` is as wide as what is narrowed, and so would have to follow."""
    if home == "":
        return
    for name, module in submodule(block, home).named_modules():
        if module not in known and any(width in tensor.shape for tensor in module.parameters(recurse=False)):
            raise LookupError(
                f"{where}.{home}.{name} works on all {width} channels at once and cannot follow; skip *.{home}"
            )


def _check_options(mlp: float, heads: float, round_to: int) -> None:
    for name, ratio in (("mlp", mlp), ("heads", heads)):
        if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not 0 <= ratio < 1:
            raise OptionError(name, f"{ratio!r} is not in [0, 1); it is the share that is removed")
    if type(round_to) is not int or round_to < 1:
        raise OptionError("round_to", f"{round_to!r} is not a whole number of 1 or more")


def _check_skip(skip: Sequence[str], names: Sequence[str]) -> None:
    if isinstance(skip, str):
        raise OptionError("skip", f"is a list of name patterns; write [{skip!r}]")
    for pattern in skip:
        if not any(fnmatchcase(name, pattern) for name in names):
            hint = f"{closest(pattern, names)}They are named like {', '.join(names[:3])}"
            raise OptionError("skip", f"{pattern!r} fits no block or part; {hint}")
