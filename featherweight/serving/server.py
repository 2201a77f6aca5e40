# SPDX-License-Identifier: Apache-2.0
"""Listening: a socket on loopback, connections that must say what they want in time, and an end by Ctrl-C."""

from __future__ import annotations

import asyncio
import errno
import functools
import ipaddress
import os
import socket
from collections.abc import Callable, Sequence
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from featherweight.errors import OptionError, shown
from featherweight.interrupt import interruptible
from featherweight.pipelines import pipeline
from featherweight.pipelines_detection_usual import UsualDetection
from featherweight.serving.app import build
from featherweight.serving.limits import Limits
from featherweight.serving.models import Served, named

HEAD_BYTES = 16 << 10  # of a request's line and headers
GRACE_SECONDS = 5  # for requests in the house, when the server is asked to stop


def open_models(models: Sequence[Any], **options: Any) -> list[Served]:
    """Names, paths or modules, opened by `pipeline` with these options, and asked once so that they are warm."""
    opened = [
        (str(model) if _is_path(model) else type(model).__name__, pipeline(model=model, **options)) for model in models
    ]
    for name, pipe in opened:
        if isinstance(pipe, UsualDetection):
            raise OptionError("model", f"{shown(name)} is a detector of transformers; only ours are served")
    served = named(opened)
    for one in served:
        one.warm()
    return served


def _is_path(model: Any) -> bool:
    return isinstance(model, (str, os.PathLike))


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address. OptionError for what is no address of numbers, nor localhost."""
    return ipaddress.ip_address(_address(host)).is_loopback


def listen(host: str = "127.0.0.1", port: int = 8000) -> socket.socket:
    """A bound socket; port 0 takes a free one. OptionError where it is taken or not allowed."""
    address = _address(host)
    if isinstance(port, bool) or not isinstance(port, int) or not 0 <= port <= 65535:
        raise OptionError("port", f"must be 0..65535, not {port!r}")
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    try:
        if os.name == "posix":  # elsewhere it would share a port that another program listens on
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, port))
        sock.listen()
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise OptionError(
                "port", f"{port} is taken by another program; choose another, or 0 for a free one"
            ) from None
        if error.errno in (errno.EACCES, errno.EPERM):
            raise OptionError("port", f"{port} is not allowed here; choose one above 1023") from None
        raise OptionError(
            "host", f"{shown(host)}: {error.strerror or error}; give an address of this machine"
        ) from None
    return sock


def _address(host: str) -> str:
    try:
        return str(ipaddress.ip_address("127.0.0.1" if host == "localhost" else host.strip("[]")))
    except ValueError:
        text = f"{shown(host)} is no address; give one of this machine, such as 127.0.0.1, or 0.0.0.0 for all of them"
        raise OptionError("host", text) from None


def url(sock: socket.socket) -> str:
    """Where the page is."""
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def run(
    models: Sequence[Served],
    sock: socket.socket,
    *,
    limits: Limits | None = None,
    names: Sequence[str] = (),
    report: Callable[[Exception], None] = lambda error: None,
    started: Callable[[uvicorn.Server], None] = lambda server: None,
) -> None:
    """Serve on a bound socket until Ctrl-C or SIGTERM, or until `should_exit` of the server that `started` gets."""
    limits = limits or Limits()
    app = build(models, limits=limits, names=names, loopback=is_loopback(sock.getsockname()[0]), report=report)
    http: Any = functools.partial(Patient, limits=limits)
    config = uvicorn.Config(
        app, http=http, ws="none", loop="asyncio", lifespan="off", log_config=None, log_level="critical",
        access_log=False, server_header=False, proxy_headers=False, timeout_graceful_shutdown=GRACE_SECONDS,
        h11_max_incomplete_event_size=HEAD_BYTES,
    )  # fmt: skip
    server = uvicorn.Server(config)
    started(server)
    with interruptible():
        server.run(sockets=[sock])


class Patient(H11Protocol):
    """A connection that is closed when it says nothing, or half of something, for too long; and of which there are not
    too many."""

    def __init__(self, *args: Any, limits: Limits, **options: Any) -> None:
        super().__init__(*args, **options)
        self.limits = limits
        self.deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request; or end, with too many others here."""
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections:
            transport.abort()
        else:
            self._watch()

    def data_received(self, data: bytes) -> None:
        """Take a part of a request."""
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """Begin to wait for the next."""
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._forget()
        super().connection_lost(exc)

    def _watch(self) -> None:
        """Wait while no request is being answered, from when that began; not longer for each byte that drips in."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._forget()
        elif self.deadline is None and not self.transport.is_closing():
            self.deadline = self.loop.call_later(self.limits.header_seconds, self.transport.abort)

    def _forget(self) -> None:
        if self.deadline is not None:
            self.deadline.cancel()
            self.deadline = None
