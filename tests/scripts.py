# SPDX-License-Identifier: Apache-2.0
"""The scripts beside the package, which is where they import each other from, as modules."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[1]


def benchmark(name: str) -> ModuleType:
    """benchmarks/NAME.py, loaded anew."""
    return _loaded(ROOT / "benchmarks" / f"{name}.py")


def tool(name: str) -> ModuleType:
    """tools/NAME.py, loaded anew."""
    return _loaded(ROOT / "tools" / f"{name}.py")


def _loaded(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found
