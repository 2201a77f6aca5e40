# SPDX-License-Identifier: Apache-2.0
"""The verb that says what a recipe will do: explain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from featherweight import cli_options as options
from featherweight.console import columns, current, line
from featherweight.errors import shown

if TYPE_CHECKING:
    from featherweight.explain import Row


def explain(
    recipe: Annotated[str, Parameter(name=("--recipe",), help="a recipe file, or the name of one in the package")],
    *,
    seed: options.Seed = None,
    sets: options.Sets = None,
) -> int:
    """Say what a recipe will do and what size each step leaves, without training."""
    from featherweight import recipe as recipes
    from featherweight.explain import explain as rows_of

    screen = current()
    overrides = [*([f"seed={seed}"] if seed is not None else []), *(sets or [])]
    plan = recipes.read(recipe, overrides)
    screen.say(line("recipe", f"{shown(recipe)}: {plan.model.name if plan.model else '?'}, {len(plan.steps)} steps"))
    rows = rows_of(plan)
    screen.answer(table(rows))
    for row in rows:
        for note in row.notes:
            screen.answer(line(f"{row.number}", f"{row.step}: {note}"))
    screen.emit([row.to_dict() for row in rows])
    screen.next(f"featherweight run {shown(recipe)}")
    return 0


def table(rows: Sequence[Row]) -> str:
    """Number, step with its options, parameters, multiply-adds and bytes; ~ before what is an estimate."""
    from featherweight.tables import count, millions, size

    lines: list[tuple[str, ...]] = [("", "step", "what", "params", "MMACs", "bytes")]
    for row in rows:
        given = ", ".join(f"{key} {value}" for key, value in row.options.items())
        about = "~" if row.estimated else ""
        figures = [f"{about}{text}" for text in (count(row.params), millions(row.macs), size(row.size_bytes))]
        lines.append((str(row.number), row.step, f"{row.says} ({given})" if given else row.says, *figures))
    return columns(lines, left=3)


VERBS = (explain,)
