# SPDX-License-Identifier: Apache-2.0
"""Make a vision model small and fast, and prove it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featherweight.official import create
    from featherweight.pipelines import pipeline
    from featherweight.runs import run
    from featherweight.search import fit
    from featherweight.sources import load
    from featherweight.verbs import bench, draw, info, val

__version__ = "0.1.0"
__all__ = ["__version__", "bench", "create", "draw", "fit", "info", "load", "pipeline", "run", "val"]

_PLACES = {
    "bench": "verbs",
    "create": "official",
    "draw": "verbs",
    "fit": "search",
    "info": "verbs",
    "load": "sources",
    "pipeline": "pipelines",
    "run": "runs",
    "val": "verbs",
}


def __getattr__(name: str) -> Any:
    """The functions above, imported when first used: `import featherweight` alone imports nothing heavy."""
    if name in _PLACES:
        return getattr(import_module(f"featherweight.{_PLACES[name]}"), name)
    raise AttributeError(f"module 'featherweight' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_PLACES])
