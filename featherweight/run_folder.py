# SPDX-License-Identifier: Apache-2.0
"""What a run does to its folder and its process: one process holds the folder and writes the log, the others wait."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from . import distributed, files, measure
from .work import Tell

LONGEST_LINE = 4000  # characters of log.txt


@contextmanager
def held(folder: Path, team: distributed.Team) -> Iterator[None]:
    """The run folder, held by the process that writes; the others wait for it."""
    with files.lock(folder) if team.leads else nullcontext():
        if team.leads:
            files.clean_stale(folder)
        team.wait()
        yield


def silent(event: Mapping[str, Any]) -> None:
    """What a process that does not lead tells."""


def teller(folder: Path, progress: Tell | None) -> Tell:
    """Tells the caller, and writes what is worth keeping into log.txt, one clean line each."""

    def tell(event: Mapping[str, Any]) -> None:
        if event["event"] != "step" or "loss" not in event:
            line = json.dumps(event, default=str, ensure_ascii=True)
            with (folder / "log.txt").open("a", encoding="utf-8") as log:
                log.write(line[:LONGEST_LINE] + "\n")
        if progress is not None:
            progress(event)

    return tell


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or measure.available_threads())
    try:
        yield
    finally:
        torch.set_num_threads(before)
