# SPDX-License-Identifier: Apache-2.0
"""What the command line prints: human text, machine output, progress, errors. Nothing here decides anything.

On a terminal one live line per epoch collapses into a table row; elsewhere each epoch is one plain line and a carriage
return is never written. With `--json` human text goes to stderr, and stdout holds JSON alone.
"""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

from featherweight.errors import clean, shown

WIDTHS = {"epoch": 9, "loss": 8, "acc %": 7, "best": 7, "img/s": 7, "eta": 8}
REFRESH_SECONDS = 0.1


@dataclass
class Screen:
    """One command's output; made once by the command line."""

    quiet: bool = False
    verbose: bool = False
    json: bool = False
    debug: bool = False
    progress_state: Progress | None = field(default=None, repr=False)

    @property
    def stream(self) -> IO[str]:
        """Where human text goes."""
        return sys.stderr if self.json else sys.stdout

    def say(self, text: str = "") -> None:
        """Human text; nothing when quiet. File names in it were made printable by whoever put them in."""
        if not self.quiet:
            self.close()
            print(text, file=self.stream, flush=True)

    def answer(self, text: str) -> None:
        """The result itself: printed even when quiet."""
        self.close()
        print(text, file=self.stream, flush=True)

    def emit(self, data: Any) -> None:
        """The result for programs, on stdout, when `--json` was given."""
        if self.json:
            self.close()
            print(json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False, default=str), flush=True)

    def detail(self, text: str) -> None:
        """What only `-v` shows."""
        if self.verbose:
            self.say(text)

    def next(self, *commands: str) -> None:
        """The commands to type next; every verb ends with them."""
        for number, command in enumerate(commands):
            self.say(("" if number else "\n") + line("" if number else "next", command))

    def warn(self, text: str) -> None:
        """A remark that does not stop anything."""
        self.close()
        print(paint(f"! {clean(text)}", "33", sys.stderr), file=sys.stderr, flush=True)

    def problem(self, text: str) -> None:
        """Why the command stopped: one line on stderr."""
        self.close()
        print(paint(f"✗ {clean(text)}", "31", sys.stderr), file=sys.stderr, flush=True)

    def crashed(self, error: BaseException, command: str) -> None:
        """An error nobody foresaw: four lines, and the traceback in a file."""
        self.close()
        handle, path = tempfile.mkstemp(prefix="featherweight-", suffix=".log")
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as log:
            log.write(f"featherweight {command}\n\n" + "".join(traceback.format_exception(error)))
        lines = (
            f"╭ ✗ stopped by an error that should not happen: {type(error).__name__}",
            f"│ {clean(error, limit=200) or 'it says nothing more'}",
            f"│ traceback: {path}   (or run it again with --debug)",
            "╰ this is a defect of featherweight: please report it with that file",
        )
        print("\n".join(lines), file=sys.stderr, flush=True)

    def progress(self, event: Mapping[str, Any]) -> None:
        """Take an event of a run: {"event": "train", "step", "epoch", "stage", "note", ...}."""
        if self.quiet:
            return
        if self.progress_state is None:
            self.progress_state = Progress(self.stream)
        self.progress_state.take(event)

    def close(self) -> None:
        """End the live line, so that other text does not run into it."""
        if self.progress_state is not None:
            self.progress_state.erase()

    def listen_to_warnings(self) -> None:
        """Print what `warnings.warn` says as one line each, for this process."""

        def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
            if issubclass(category, UserWarning) or self.verbose:
                self.warn(str(message))

        warnings.showwarning = show


def colored(stream: IO[str]) -> bool:
    """Whether colors may be used there."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def paint(text: str, code: str, stream: IO[str]) -> str:
    """The text in a color, where colors may be used."""
    return f"\x1b[{code}m{text}\x1b[0m" if colored(stream) else text


class Progress:
    """Rows of epochs, and on a terminal a live line below them."""

    def __init__(self, stream: IO[str], *, clock: Any = time.monotonic) -> None:
        self.stream, self.clock = stream, clock
        self.live = stream.isatty() and os.environ.get("TERM") != "dumb"
        self.line: Any = None  # rich's live display, while it stands on the screen
        self.headed = False
        self.plan: dict[str, Any] = {}
        self.began, self.painted = 0.0, -math.inf
        self.first_progress, self.last = 0.0, dict[str, Any]()

    def take(self, event: Mapping[str, Any]) -> None:
        """One event of a run."""
        kind = event.get("event")
        if kind == "train":
            self.plan, self.headed, self.last = dict(event), False, {}
        elif kind == "step" and "loss" in event:
            self.step(event)
        elif kind == "epoch":
            self.epoch(event)
        elif kind is not None and (text := sentence(event)):
            self.erase()
            self.headed = False
            print(text, file=self.stream, flush=True)

    def step(self, event: Mapping[str, Any]) -> None:
        """Draw the live line, on a terminal."""
        now = self.clock()
        if not self.last:
            self.began, self.first_progress = now, float(event.get("progress") or 0.0)
        self.last = dict(event)
        if self.live and now - self.painted >= REFRESH_SECONDS:
            self.painted = now
            self.header()
            self.draw(row(self.cells(event, None)))

    def epoch(self, event: Mapping[str, Any]) -> None:
        """The row of a finished epoch."""
        self.header()
        self.erase()
        found = event.get("validation") or {}
        print(row(self.cells({**self.last, **event}, found)), file=self.stream, flush=True)

    def cells(self, event: Mapping[str, Any], validation: Mapping[str, Any] | None) -> dict[str, str]:
        """Column -> text."""
        done, total = int(event.get("epoch") or 0) + 1, self.plan.get("epochs")
        top1 = next(iter((validation or {}).values()), None)
        best = event.get("best")
        speed = event.get("images_per_s")
        return {
            "epoch": f"{done}/{total}" if total else str(done),
            "loss": f"{float(event['loss']):.3f}" if event.get("loss") is not None else "",
            "acc %": f"{100 * float(top1):.1f}" if isinstance(top1, (int, float)) else "",
            "best": f"{100 * float(best):.1f}" if isinstance(best, (int, float)) else "",
            "img/s": f"{float(speed):.0f}" if speed else "",
            "eta": self.eta(float(self.last.get("progress") or 0.0)),
        }

    def eta(self, progress: float) -> str:
        """Minutes and seconds that are left, from the second batch on."""
        made = progress - self.first_progress
        if made <= 0 or progress <= 0:
            return ""
        seconds = round((self.clock() - self.began) / made * (1.0 - progress))
        return (
            f"{seconds // 60}:{seconds % 60:02d}"
            if seconds < 3600
            else f"{seconds // 3600} h {seconds % 3600 // 60:02d}"
        )

    def header(self) -> None:
        """The names of the columns, once per training."""
        if not self.headed:
            self.headed = True
            self.erase()
            names = {name: name for name in WIDTHS} | {"acc %": self.plan.get("metric", "acc %")}
            print(row(names), file=self.stream, flush=True)

    def draw(self, text: str) -> None:
        from rich.console import Console
        from rich.live import Live
        from rich.text import Text

        if self.line is None:
            console = Console(file=self.stream, highlight=False)
            self.line = Live(
                console=console, transient=True, auto_refresh=False, redirect_stdout=False, redirect_stderr=False
            )
            self.line.start()
        self.line.update(Text(text, style="dim", no_wrap=True), refresh=True)

    def erase(self) -> None:
        """Take the live line away."""
        if self.line is not None:
            self.line.stop()
            self.line = None


def row(cells: Mapping[str, str]) -> str:
    """One line of the epoch table."""
    return " ".join(cells.get(name, "").rjust(width) for name, width in WIDTHS.items()).rstrip()


def sentence(event: Mapping[str, Any]) -> str:
    """What a run says between trainings, or nothing for an event that is for the log alone."""
    kind = event.get("event")
    if kind == "data":
        counts = " / ".join(f"{count} {part}" for part, count in event.get("counts", {}).items())
        more = [f"{event['skipped']} files left out"] if event.get("skipped") else []
        more += [str(event["note"])] if event.get("note") else []
        text = f"{event.get('name')}: {event.get('format')}, {event.get('classes')} classes, {counts}"
        return line("data", "; ".join([text, *more]))
    if kind == "step":
        return line(f"{int(event.get('number', 0)) + 1}/{event.get('of')}", str(event.get("name")))
    if kind == "stage":
        title, count = event.get("title"), event.get("parameters")
        return line("", f"{title}: {count / 1e6:.2f} M parameters" if isinstance(count, int) else str(title))
    if kind == "judged":
        return line("✓" if event.get("kept") else "✗", f"{event.get('title')}: {event.get('reason')}")
    if kind == "export":
        same = event.get("agreement")
        figures = [f"{event['size_bytes'] / 1e6:.2f} MB"] if event.get("size_bytes") else []
        figures += [f"{100 * same:.1f} % same answers on {event.get('images')} images"] if same is not None else []
        return line("export", f"{event.get('file')}: {', '.join(figures)}")
    if kind in ("start", "end", "train", "table", "budget"):
        return ""
    said = event.get("text") or event.get("title") or event.get("message")
    return line("" if kind == "note" else str(kind), str(said)) if said else ""


def line(word: str, text: str) -> str:
    """A word in a column of its own, then the text."""
    return f"{clean(word, limit=40):7} {clean(text)}"


def columns(rows: Sequence[Sequence[object]], *, left: int = 1, head: bool = True) -> str:
    """Rows as aligned text; the first `left` columns to the left, the others to the right."""
    texts = [
        [shown(cell, limit=60) if not isinstance(cell, str) else clean(cell, limit=120) for cell in r] for r in rows
    ]
    if not texts:
        return ""
    widths = [max(len(r[i]) for r in texts) for i in range(len(texts[0]))]
    lines = [
        "  ".join(c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(r, widths, strict=True)))
        for r in texts
    ]
    return "\n".join("  " + line.rstrip() for line in lines)


def bar(share: float, *, width: int = 20) -> str:
    """A horizontal bar of `share` (0..1) of the width, in eighths of a character."""
    eighths = round(max(0.0, min(1.0, share)) * width * 8)
    whole, rest = divmod(eighths, 8)
    return "█" * whole + ("▏▎▍▌▋▊▉"[rest - 1] if rest else "")


_screens: list[Screen] = [Screen()]


def use(screen: Screen) -> None:
    """From now on this is the screen of this process."""
    _screens[0] = screen


def current() -> Screen:
    """The screen of the command that runs."""
    return _screens[0]
