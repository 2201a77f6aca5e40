# SPDX-License-Identifier: Apache-2.0
"""A server in a thread of the test's process, and who asks it."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from http.client import HTTPConnection
from typing import Any

from featherweight.serving import server as serving
from featherweight.serving.limits import Limits
from featherweight.serving.models import Served

PNG = {"Content-Type": "image/png"}
JSON = {"Content-Type": "application/json"}
SECONDS = 60  # of patience with a busy machine


class Client:
    """One request after the other, each on a connection of its own."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.reported: list[Exception] = []

    def ask(self, method: str, path: str, body: Any = None, headers: Any = None) -> tuple[int, Any, dict[str, str]]:
        """Status, body (parsed where it is JSON), headers."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=SECONDS)
        try:
            connection.request(method, path, body, headers or {}, encode_chunked=isinstance(body, Iterator))
            response = connection.getresponse()
            data, told = response.read(), {k.lower(): v for k, v in response.getheaders()}
        finally:
            connection.close()
        return response.status, json.loads(data) if told["content-type"] == "application/json" else data.decode(), told

    def post(self, body: Any, path: str = "/predict", **headers: str) -> tuple[int, Any, dict[str, str]]:
        kind = JSON if isinstance(body, str) else PNG
        return self.ask("POST", path, body.encode() if isinstance(body, str) else body, {**kind, **headers})


@contextlib.contextmanager
def running(models: list[Served], **limits: Any) -> Iterator[Client]:
    """A server in a thread of this process."""
    sock = serving.listen("127.0.0.1", 0)
    client = Client(sock.getsockname()[1])
    found: list[Any] = []
    options = {"limits": Limits(**limits), "report": client.reported.append, "started": found.append}
    thread = threading.Thread(target=serving.run, args=(models, sock), kwargs=options)
    thread.start()
    try:
        yield client
    finally:
        found[0].should_exit = True
        thread.join(SECONDS)
        sock.close()
        assert not thread.is_alive()
