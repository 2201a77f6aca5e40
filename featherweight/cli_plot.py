# SPDX-License-Identifier: Apache-2.0
"""The verbs that draw: landscape."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from featherweight import cli_options as options
from featherweight.console import current, line
from featherweight.errors import OptionError, shown


def landscape(
    model: options.Model,
    *,
    data: options.Data,
    part: Annotated[str, Parameter(help="train, val or test")] = "train",
    limit: Annotated[int, Parameter(help="use that many pictures, evenly spaced")] = 256,
    points: Annotated[int, Parameter(help="places along each direction, an odd number")] = 21,
    span: Annotated[float, Parameter(help="how far to go, in lengths of the model's own filters")] = 1.0,
    seed: Annotated[int, Parameter(help="of the two directions")] = 0,
    batch: Annotated[int, Parameter(name=("--batch", "--batch-size", "-b"), help="pictures at a time")] = 64,
    arch: options.Arch = None,
    out: Annotated[str | None, Parameter(help="a .svg or .png file; a new run folder unless given")] = None,
    project: options.Project = "runs",
    name: options.Name = None,
) -> int:
    """Draw the loss around a model, over two random directions of its weights."""
    from featherweight.verbs.shaping import landscape as around

    screen = current()
    if out is not None and Path(out).suffix not in (".svg", ".png"):
        raise OptionError("--out", f"{shown(out)} ends neither in .svg nor in .png")
    asked = {"part": part, "limit": limit, "points": points, "span": span, "seed": seed, "batch_size": batch}
    found = around(model, data, arch=arch, **asked)  # type: ignore[arg-type]
    from featherweight.landscape import save

    place = Path(out) if out else options.new_folder(project, name, "landscape") / "landscape.svg"
    save(found, place, title=f"loss around {shown(Path(model).name, limit=30)}, {found.images} pictures")
    screen.answer(line("loss", f"{found.center:.4g}" if found.center is not None else "not finite"))
    screen.say(line("saved", f"{shown(place)}, {shown(place.with_suffix('.json').name)}"))
    screen.emit({"drawing": str(place), **found.to_dict()})
    return 0


VERBS = (landscape,)
