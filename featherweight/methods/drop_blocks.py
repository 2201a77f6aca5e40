# SPDX-License-Identifier: Apache-2.0
"""Whole residual blocks are left out: those that change what passes through them least.

A block whose output is nearly its input, 1 − cosine small, does little (Men 2024, 2403.03853, "block influence"); a
regular choice, such as every other block, is the other rule (Fan 2019, 1909.11556). In a described transformer the
blocks are the anatomy's, elsewhere every module of its own class that stands in a sequence and gives what it took:
shape for shape. Dropped in time it is the surest speed there is, for nothing gets narrower. Not here: training with
random depth, and blocks without a shortcut, which nothing could stand in for.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..anatomy import anatomy_of, blocks_of, replace_blocks
from ..errors import OptionError
from ..method import Task
from ..modes import evaluating
from ..surgery import Edit, apply, edit_kind
from .importance import each
from .masks import check_patterns
from .narrow import checked

Rule = Literal["similarity", "even"]
RULES = ("similarity", "even")


@edit_kind
def keep_blocks(model: nn.Module, *, keep: Sequence[int]) -> nn.Module:
    """The transformer with only these of its blocks left, counted as they are now."""
    kept = checked(keep, len(blocks_of(model)), "keep_blocks")
    return replace_blocks(model, lambda blocks: [blocks[i] for i in kept])


@edit_kind
def pass_on(block: nn.Module) -> nn.Module:
    """Nothing in place of a block that gives what it takes."""
    return nn.Identity()


def plan(
    model: nn.Module,
    *,
    count: int = 1,
    rule: Rule = "similarity",
    batches: Any = None,
    task: Task | None = None,
    skip: Sequence[str] = (),
) -> list[Edit]:
    """The edits that leave out `count` blocks; nothing is touched.

    rule: similarity, which looks at `batches` (no labels needed) through their `task`; even, spread over the depth.
    skip: name patterns of blocks that stay. Raises OptionError, LookupError for a model without such blocks.
    """
    if rule not in RULES:
        raise OptionError("rule", f"no {rule!r} here. Known: {', '.join(RULES)}")
    if type(count) is not int or count < 0:
        raise OptionError("count", f"{count!r} is not a whole number of 0 or more: blocks to leave out")
    if batches is None or task is None:
        raise OptionError("batches", "are needed, with their task, to see what passes through the blocks")
    if count == 0:
        return []
    influence = influences(model, batches, task)
    check_patterns("skip", skip, list(influence))
    free = [path for path in influence if not any(fnmatchcase(path, pattern) for pattern in skip)]
    if count >= len(influence) or count > len(free):
        most = min(len(influence) - 1, len(free))
        raise OptionError("count", f"{count} of {len(influence)} blocks cannot be left out; at most {most}")
    gone = _even(free, count) if rule == "even" else sorted(free, key=influence.__getitem__)[:count]
    return _edits(model, list(influence), gone)


def drop_blocks(model: nn.Module, **options: Any) -> nn.Module:
    """A copy without the blocks that `plan`, whose options these are, leaves out."""
    return apply(model, plan(model, **options))


def influences(model: nn.Module, batches: Any, task: Task) -> dict[str, float]:
    """Path of a block -> 1 − mean cosine between what it takes and gives, over positions and images: 0 does nothing.

    Raises LookupError where no block gives what it takes, OptionError without batches.
    """
    seen: dict[str, list[tuple[float, int]]] = {}
    unfit: set[str] = set()

    def watch(path: str) -> Any:
        def after(_block: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            taken, given = (args[0] if args else None), output[0] if isinstance(output, tuple) else output
            if not (isinstance(taken, Tensor) and isinstance(given, Tensor) and taken.shape == given.shape):
                unfit.add(path)
                return
            dim = 1 if taken.ndim == 4 else -1  # the channels of pictures (B, C, H, W), of tokens (B, N, C)
            alike = F.cosine_similarity(taken.detach().float(), given.detach().float(), dim=dim)
            seen.setdefault(path, []).append((float(alike.sum()), alike.numel()))

        return after

    hooks = [block.register_forward_hook(watch(path)) for path, block in candidates(model).items()]
    count = 0
    try:
        with evaluating(model), torch.no_grad():
            for batch in each(batches):
                task.forward(model, batch)
                count += 1
    finally:
        for hook in hooks:
            hook.remove()
    if not count:
        raise OptionError("batches", "there are none; at least one batch of images is needed")
    found = {path: 1 - sum(s for s, _ in rows) / sum(n for _, n in rows) for path, rows in seen.items()}
    found = {path: value for path, value in found.items() if path not in unfit}
    if not found:
        raise LookupError(f"{type(model).__name__} has no block in a sequence that gives the shape that it takes")
    return found


def candidates(model: nn.Module) -> dict[str, nn.Module]:
    """Path -> block: the anatomy's, else modules of a class of the model's own that stand in a sequence."""
    try:
        return blocks_of(model)
    except TypeError:
        pass
    found = {}
    for path, module in model.named_modules():
        for name, child in module.named_children() if isinstance(module, (nn.Sequential, nn.ModuleList)) else ():
            own = not type(child).__module__.startswith("torch.nn") and any(True for _ in child.children())
            if own and not isinstance(child, (nn.Sequential, nn.ModuleList)):
                found[f"{path}.{name}".lstrip(".")] = child
    return found


def _even(paths: Sequence[str], count: int) -> list[str]:
    """So many of the paths, spread evenly."""
    return [paths[int((i + 0.5) * len(paths) / count)] for i in range(count)]


def _edits(model: nn.Module, paths: Sequence[str], gone: Sequence[str]) -> list[Edit]:
    try:
        anatomy_of(model)
    except TypeError:
        return [Edit(path, "pass_on") for path in paths if path in gone]
    every = list(blocks_of(model))
    return [Edit("", "keep_blocks", {"keep": [i for i, path in enumerate(every) if path not in gone]})]
