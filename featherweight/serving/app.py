# SPDX-License-Identifier: Apache-2.0
"""The page, the endpoint and what watches them, as an ASGI app.

One request is computed at a time, since a model uses all processors it was given; a few more are read or wait; the next
is told when to come back. A request names no file and no address: its body is the picture, or JSON with the text.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import re
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from markupsafe import Markup
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route, Router

from featherweight import __version__, page
from featherweight.doors import json as strict_json
from featherweight.errors import InputError, OptionError
from featherweight.pictures import load
from featherweight.serving.guard import Guard
from featherweight.serving.limits import Limits, Refused, refusal
from featherweight.serving.metrics import CONTENT_TYPE, Metrics
from featherweight.serving.models import PICTURE, QUESTION, Asked, Served

TEMPLATES = Path(page.__file__).parent / "templates"
DEPTH = 4  # of JSON
RETRY_SECONDS = 1


def build(
    models: Sequence[Served],
    *,
    limits: Limits | None = None,
    names: Iterable[str] = (),
    loopback: bool = True,
    report: Callable[[Exception], None] = lambda error: None,
) -> Guard:
    """An ASGI app for one model or more of one kind.

    names: hosts it is known by besides localhost and addresses of numbers; loopback: of those, only loopback's.
    report: is told of errors that are the server's own.
    """
    house = House(models, limits or Limits(), report)
    routes = [
        Route("/", house.page),
        Route("/health", house.health),
        Route("/metrics", house.numbers),
        Route("/models", house.about),
        Route("/predict", house.predict, methods=["POST"]),
    ]
    router = Router(routes, redirect_slashes=False)
    return Guard(router, names=names, loopback=loopback, metrics=house.metrics, report=report)


class House:
    """The models, the one worker that asks them, and who is waiting."""

    def __init__(self, models: Sequence[Served], limits: Limits, report: Callable[[Exception], None]) -> None:
        self.models, self.limits, self.report = list(models), limits, report
        self.kind = self.models[0].kind
        self.metrics = Metrics()
        self.worker = ThreadPoolExecutor(1, thread_name_prefix="featherweight")
        self.html, self.policy = _page()
        self.turn = 0

    async def page(self, _: Request) -> Response:
        """GET /"""
        return HTMLResponse(self.html, headers={"content-security-policy": self.policy})

    async def health(self, _: Request) -> Response:
        """GET /health"""
        return JSONResponse({"status": "ok", "version": __version__, "models": [one.name for one in self.models]})

    async def numbers(self, _: Request) -> Response:
        """GET /metrics"""
        return Response(self.metrics.text(), headers={"content-type": CONTENT_TYPE})

    async def about(self, _: Request) -> Response:
        """GET /models"""
        told = {"version": __version__, "kind": self.kind, "limits": asdict(self.limits)}
        return JSONResponse({**told, "models": [one.about() for one in self.models]})

    async def predict(self, request: Request) -> Response:
        """POST /predict"""
        try:
            asked = Asked.read(request.query_params.multi_items())
        except OptionError as error:
            raise refusal(error) from None
        if self.metrics.busy > self.limits.waiting:
            text = "as many requests as may wait are waiting; come back in a second"
            raise Refused(503, "busy", text, {"retry-after": str(RETRY_SECONDS)})
        self.metrics.busy += 1
        future: Future[dict[str, Any]] | None = None
        try:
            body = await self._body(request)
            future = self.worker.submit(self._answer, body, asked, time.perf_counter())
            future.add_done_callback(self._leaver())
            found = await self._answered(future)
        finally:
            if future is None:
                self.metrics.busy -= 1
        for one in found["models"]:
            self.metrics.answered(one["name"], one["latency_ms"])
        return JSONResponse(found)

    def _leaver(self) -> Callable[[Any], None]:
        """What ends a request's stay, called in whatever thread its work ends: also of one nobody waits for anymore."""
        loop = asyncio.get_running_loop()

        def leave() -> None:
            self.metrics.busy -= 1

        def told(_: Any) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is gone when the server has stopped
                loop.call_soon_threadsafe(leave)

        return told

    async def _body(self, request: Request) -> bytes:
        """The body, of a kind and length that is taken, in time."""
        picture = self.kind == PICTURE
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        wanted = "image/jpeg or the like, or application/octet-stream" if picture else "application/json"
        if not (kind.startswith("image/") or kind == "application/octet-stream" if picture else kind == wanted):
            given = "the bytes of a picture" if picture else "JSON"
            raise Refused(415, "unsupported_format", f"send {given}, with the Content-Type {wanted}")
        if request.headers.get("content-encoding", "identity") != "identity":
            raise Refused(415, "unsupported_format", "send the body as it is, without a Content-Encoding")
        most = self.limits.max_bytes if picture else self.limits.max_text
        length = request.headers.get("content-length", "")
        if length.isdigit() and int(length) > most:
            raise _too_large(most)
        try:
            return await asyncio.wait_for(_read(request, most), self.limits.body_seconds)
        except asyncio.TimeoutError:
            raise Refused(408, "slow", f"did not arrive within {self.limits.body_seconds:g} seconds") from None
        except ClientDisconnect:
            raise Refused(400, "disconnected", "the sender is gone") from None

    async def _answered(self, future: Future[dict[str, Any]]) -> dict[str, Any]:
        """What the worker found, or why it did not."""
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), self.limits.answer_seconds)
        except asyncio.TimeoutError:
            text = f"no answer within {self.limits.answer_seconds:g} seconds"
            raise Refused(504, "timeout", text, {"retry-after": str(RETRY_SECONDS)}) from None
        except (InputError, OptionError) as error:
            refused = refusal(error)
            if refused.status >= 500:
                self.report(error)
            raise refused from None

    def _answer(self, body: bytes, asked: Asked, arrived: float) -> dict[str, Any]:
        """In the worker's thread: decode once, ask every model, the first and the last in turns."""
        began = time.perf_counter()
        told: dict[str, Any] = {}
        decoded: dict[str, float] = {}
        if self.kind == PICTURE:
            given: Any = load(body, max_pixels=self.limits.max_pixels)
            decoded = {"decode": 1e3 * (time.perf_counter() - began)}
            told = {"picture": {"width": given.shape[1], "height": given.shape[0]}}
        else:
            given = strict_json.parse(body, "body", max_depth=DEPTH)
            if not isinstance(given, dict):
                keys = '"question" and "context"' if self.kind == QUESTION else '"text"'
                raise InputError("body", "bad_type", f"must be a JSON object with {keys}")
        self.turn += 1
        order = self.models if self.turn % 2 else self.models[::-1]
        found = {one.name: one.answer(given, asked) for one in order}
        answers = [found[one.name] for one in self.models]
        for one in answers:
            stages = {**decoded, **one["latency_ms"]}
            one["latency_ms"] = {stage: round(value, 3) for stage, value in stages.items()}
        return {**told, "waited_ms": round(1e3 * (began - arrived), 3), "models": answers}


async def _read(request: Request, most: int) -> bytes:
    """The body, as long as it is not longer than it may be."""
    parts, length = [], 0
    async for part in request.stream():
        length += len(part)
        if length > most:
            raise _too_large(most)
        parts.append(part)
    return b"".join(parts)


def _too_large(most: int) -> Refused:
    return Refused(413, "too_large", f"has more than {most} bytes, which is the limit")


def _page() -> tuple[str, str]:
    """The page, and the policy that lets its own script and style run and nothing else."""
    script = (TEMPLATES / "serve.js").read_text(encoding="utf-8")
    html = page.template("serve.html.j2", script=Markup(script))
    sources = {"default-src": "'none'", "base-uri": "'none'", "form-action": "'none'", "frame-ancestors": "'none'"}
    sources |= {"img-src": "blob: data:", "connect-src": "'self'"}
    for tag in ("script", "style"):
        (text,) = re.findall(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        sources[f"{tag}-src"] = f"'sha256-{digest}'"
    return html, "; ".join(f"{name} {value}" for name, value in sources.items())
