# SPDX-License-Identifier: Apache-2.0
"""The wheel as a user gets it, built once from a copy of the source so that nothing is left behind in the tree."""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCES = ("featherweight", "pyproject.toml", "README.md", "LICENSE", "NOTICE")


@functools.cache
def build() -> Path:
    """The path of the wheel."""
    place = Path(tempfile.mkdtemp(prefix="featherweight-wheel-"))
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, place / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, place / "source" / name)
    command = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(place),
        str(place / "source"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the wheel does not build:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    shutil.rmtree(place / "source")
    return next(place.glob("*.whl"))
