# SPDX-License-Identifier: Apache-2.0
"""The verb serve: a local page and a JSON endpoint. Argument parsing and printing; the work is in `serving`."""

from __future__ import annotations

import sys
import traceback
from typing import Annotated

from cyclopts import Parameter

from featherweight import cli_options as options
from featherweight.console import current, line
from featherweight.errors import OptionError, shown

OPTIONS = {
    "max_bytes": "--max-bytes",
    "max_pixels": "--max-pixels",
    "waiting": "--waiting",
    "answer_seconds": "--timeout",
}


def serve(
    model: options.Model,
    against: Annotated[
        str | None, Parameter(name=("--against", "--other"), help="a second model, to compare side by side")
    ] = None,
    *,
    host: Annotated[str, Parameter(help="the address to listen on; others than loopback's let other machines in")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, Parameter(name=("--port", "-p"), help="0 takes a free one")] = 8000,
    allow_host: Annotated[
        list[str] | None, Parameter(help="a name this server is reached by; repeat it for more")
    ] = None,
    max_bytes: Annotated[int | None, Parameter(help="of one picture; 20 MiB unless given")] = None,
    max_pixels: Annotated[int | None, Parameter(help="of one picture; 40 million unless given")] = None,
    waiting: Annotated[int | None, Parameter(help="requests that may wait; 8 unless given")] = None,
    timeout: Annotated[float | None, Parameter(help="seconds an answer may take; 30 unless given")] = None,
    tokenizer: Annotated[str | None, Parameter(help="a folder, for a text model that comes without its own")] = None,
    backend: options.Backend = "auto",
    device: options.Device = None,
    threads: options.Threads = None,
    arch: options.Arch = None,
) -> int:
    """A local page and a JSON endpoint for a model, or two side by side."""
    from featherweight.serving import server
    from featherweight.serving.limits import Limits

    screen = current()
    bounds = options.given({
        "max_bytes": max_bytes, "max_pixels": max_pixels, "waiting": waiting, "answer_seconds": timeout,
    })  # fmt: skip
    try:
        limits = Limits(**bounds)
        inside = server.is_loopback(host)
        sock = server.listen(host, port)
    except OptionError as error:
        raise OptionError(OPTIONS.get(error.where, f"--{error.where}"), error.text) from None
    with sock:
        asked = {"backend": backend, "device": device, "threads": threads, "arch": arch, "tokenizer": tokenizer}
        served = server.open_models([model, *([against] if against else [])], **options.given(asked))
        for one in served:
            told = one.about()
            screen.say(line("model", f"{one.name}: {told['task']}, {told['runtime']} {told['dtype']}"))
        if not inside:
            screen.warn(f"everybody who reaches {shown(host)} can ask the model: no password, no encryption")
        screen.answer(line("serving", f"{server.url(sock)}   (Ctrl-C ends it)"))
        screen.emit({"url": server.url(sock), "models": [one.about() for one in served]})

        def report(error: Exception) -> None:
            screen.warn(f"{type(error).__name__}: {error}")
            if screen.debug:
                traceback.print_exception(error, file=sys.stderr)

        server.run(served, sock, limits=limits, names=allow_host or (), report=report)
    screen.say(line("stopped", shown(model)))
    return 0


VERBS = (serve,)
