# SPDX-License-Identifier: Apache-2.0
"""What a model looked at, as a picture in a file: the patches it kept at each stage, or attention rollout."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from featherweight import token_maps
from featherweight.errors import OptionError, closest
from featherweight.pictures import load
from featherweight.runners import Runner, open_runner
from featherweight.token_maps import Panel

What = Literal["tokens", "attention"]
WHATS: tuple[What, ...] = get_args(What)


def draw(
    model: Any,
    picture: Any,
    path: str | os.PathLike[str],
    *,
    what: What = "tokens",
    backend: str = "auto",
    arch: str | None = None,
    preprocess: Any = None,
) -> Path:
    """Draw what a model made of a picture into a .svg or .png file, and return its path.

    model: as for `pipeline`. tokens: the patches it kept, a panel for each stage that is told (an exported file tells
    the last). attention: how much of the answer goes back to each patch (Abnar 2020, 2005.00928), for a torch model
    that anatomy describes. OptionError for a model that has nothing to show.
    """
    token_maps.check_path(Path(path))
    check_what(what)
    runner = open_runner(model, backend=_backend(backend, what), arch=arch, preprocess=preprocess)
    return token_maps.save(panels(runner, load(picture), what), Path(path))


def panels(runner: Runner, picture: NDArray[np.uint8], what: What) -> list[Panel]:
    """The picture as the model sees it, and what it made of it."""
    seen = runner.preprocess.fit(picture)
    batch = runner.preprocess.normalize(seen)[None]
    first = Panel("the input", token_maps.enlarged(seen))
    if what == "attention":
        return [first, Panel("attention rollout", token_maps.heat_over(seen, _rollout(runner, batch)))]
    kept = runner.run(batch, tokens=True).kept
    if not kept:
        raise OptionError("model", "keeps all of its tokens; attention can be drawn for it, kept tokens cannot")
    rows = [stage[0].tolist() for stage in kept]
    return [first, *(Panel(f"kept {sum(row)} of {len(row)}", token_maps.kept_over(seen, row)) for row in rows)]


def draw_all(runner: Runner, picture: NDArray[np.uint8], whats: Sequence[str], folder: Path, file: str) -> list[str]:
    """Each of `whats` drawn over a picture into a folder, as .svg named after the picture's file; their paths."""
    stem, found = "stdin" if file == "-" else Path(file).stem, list[str]()
    for what in whats:
        path = folder / f"{stem}-{what}.svg"
        names = (path.with_stem(f"{path.stem}-{number}") for number in count(2))
        path = path if not path.exists() else next(name for name in names if not name.exists())
        found.append(str(token_maps.save(panels(runner, picture, what), path)))  # type: ignore[arg-type]
    return found


def check_what(what: str) -> None:
    """OptionError for something that cannot be drawn."""
    if what not in WHATS:
        raise OptionError("what", f"no {what!r}; {closest(str(what), WHATS)}Known: {', '.join(WHATS)}")


def _backend(backend: str, what: What) -> str:
    return "torch" if what == "attention" and backend == "auto" else backend


def _rollout(runner: Runner, batch: NDArray[np.float32]) -> list[float]:
    model = getattr(runner, "model", None)
    if model is None:
        raise OptionError("backend", f"attention needs the torch model; {runner.backend} runs an exported file")
    import torch

    from featherweight.methods.attention import rollout

    weight = next(model.parameters())
    try:
        found: list[float] = rollout(model, torch.from_numpy(batch).to(weight.device, weight.dtype))[0].tolist()
    except TypeError as error:  # nobody described the family
        raise OptionError("model", str(error)) from None
    return found
