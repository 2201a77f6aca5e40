# SPDX-License-Identifier: Apache-2.0
"""Stopping when asked: the first Ctrl-C or SIGTERM is noted, for work to end at a good place; a second ends at once."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any


class Interrupted(KeyboardInterrupt):
    """Work that was asked to stop has put itself away and stopped; `exit_code` is 128 + the signal."""

    exit_code = 130


class Asked:
    """Whether a signal has asked for the end."""

    signal: int | None = None

    def error(self, done: str, resume: str) -> Interrupted:
        """What to raise once everything is put away."""
        name = signal.Signals(self.signal).name if self.signal else "another process"
        error = Interrupted(f"stopped by {name} {done}; {resume}")
        error.exit_code = 128 + (self.signal or signal.SIGTERM)
        return error


@contextlib.contextmanager
def interruptible(active: bool = True) -> Iterator[Asked]:
    """While inside, the first SIGINT or SIGTERM is noted, for the next step to see; a second one ends at once."""
    asked = Asked()
    if not active or threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def note(number: int, _frame: Any) -> None:
        if asked.signal is not None:
            raise KeyboardInterrupt("stopped at once")
        asked.signal = number

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
