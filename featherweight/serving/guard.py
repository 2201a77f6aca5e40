# SPDX-License-Identifier: Apache-2.0
"""Around every request: who may ask, headers that keep a browser careful, and no error without an answer.

The Host header must name this server, or a page elsewhere could reach it under a name of its own (DNS rebinding). An
address of numbers cannot be rebound, so on another host than loopback any of those is taken. A POST is taken only from
the page itself, or from what is no browser.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from featherweight.errors import shown
from featherweight.serving.limits import Refused
from featherweight.serving.metrics import Metrics

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",  # unless the response has its own
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(self), microphone=(), geolocation=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
PATHS = ("/", "/predict", "/models", "/health", "/metrics")
_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^:@/\[\]\s]+)(?::\d{1,5})?")


class Guard:
    """Checks each request before `app` sees it, and puts HEADERS on each response."""

    def __init__(
        self, app: App, *, names: Iterable[str], loopback: bool, metrics: Metrics, report: Callable[[Exception], None]
    ) -> None:
        self.app, self.loopback, self.metrics, self.report = app, loopback, metrics, report
        self.names = {"localhost", *(name.lower() for name in names)}

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            return
        path = scope["path"] if scope["path"] in PATHS else "other"
        begun = False

        async def sending(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                self.metrics.requests[(("path", path), ("code", str(message["status"])))] += 1
                told = {name.decode("latin-1").lower() for name, _ in message["headers"]}
                extra = [(k.encode(), v.encode()) for k, v in HEADERS.items() if k not in told]
                message["headers"] = [*message["headers"], *extra]
            await send(message)

        try:
            self.check(scope)
            scope["app"] = self.app  # without it a wrong path or method is answered in plain text, not raised
            await self.app(scope, receive, sending)
        except Refused as error:
            await self.refuse(error)(scope, receive, sending)
        except HTTPException as error:
            wrong = Refused(error.status_code, "bad_address", f"{error.detail}; this server has {', '.join(PATHS)}")
            wrong.headers.update(error.headers or {})
            await self.refuse(wrong)(scope, receive, sending)
        except Exception as error:  # noqa: BLE001  (the last door: whatever nobody foresaw is an answer without a trace)
            self.report(error)
            if begun:
                return  # too late for an answer; the server ends the connection
            text = f"an error that should not happen: {type(error).__name__}"
            await self.refuse(Refused(500, "defect", text))(scope, receive, sending)

    def refuse(self, error: Refused) -> JSONResponse:
        """The response to a request that is turned away; the connection ends, since its body may not have been read."""
        self.metrics.refused[(("reason", error.reason),)] += 1
        return JSONResponse(error.to_dict(), error.status, headers={"connection": "close", **error.headers})

    def check(self, scope: Message) -> None:
        """Refused for a foreign Host, or for a POST from a page of another origin."""
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get("host", "")
        if not self.known(host):
            text = f"the Host {shown(host, limit=80)!r} is not this server's; start it with --allow-host to take it"
            raise Refused(403, "foreign_host", text)
        if scope["method"] in ("GET", "HEAD"):
            return
        origin, site = headers.get("origin"), headers.get("sec-fetch-site", "same-origin")
        ours = origin is None or origin.lower() in (f"http://{host.lower()}", f"https://{host.lower()}")
        if not ours or site not in ("same-origin", "none"):
            raise Refused(403, "foreign_origin", "only the page of this server may ask; pages of other origins may not")

    def known(self, host: str) -> bool:
        """Whether a Host header names this server."""
        found = _HOST.fullmatch(host)
        if found is None:
            return False
        name = found[1].lower().rstrip(".")
        try:
            address = ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return name in self.names
        return address.is_loopback or not self.loopback
