# SPDX-License-Identifier: Apache-2.0
"""Downloads from a server on this machine: what is checked, what is refused, what is left when it breaks."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from featherweight.errors import FeatherweightError, InputError, OptionError
from featherweight.verbs import fetching
from featherweight.verbs.fetching import get

BODY = bytes(range(256)) * 5000  # 1.28 MB, more than a piece
DIGEST = hashlib.sha256(BODY).hexdigest()


class Server(BaseHTTPRequestHandler):
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.path == "/moved":
            return self.answer(302, b"", Location="/weights.pth", X_Linked_ETag=f'"{DIGEST}"')
        if self.path == "/weaker":
            return self.answer(302, b"", Location="http://example.invalid/weights.pth")
        if self.path == "/short.pth":
            return self.answer(200, BODY[:-1], Content_Length=str(len(BODY)))
        if "resolve" in self.path:
            return self.answer(302, b"", Location="/weights.pth", **self.of_hub())
        if self.path.endswith(".pth"):
            return self.answer(200, BODY, Content_Length=str(len(BODY)))
        return self.answer(404, b"")

    def of_hub(self) -> dict[str, str]:
        return {} if "small" in self.path else {"X_Linked_ETag": f'"{DIGEST}"'}

    def answer(self, code: int, body: bytes, **headers: str) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    Server.asked = []
    running = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=running.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{running.server_port}"
    running.shutdown()
    thread.join()
    running.server_close()


def test_a_file_with_the_right_digest_arrives_once(server: str, tmp_path: Path) -> None:
    told: list[tuple[int, int | None]] = []
    found = get(f"{server}/weights.pth", folder=tmp_path / "w", sha256=DIGEST[:8], tell=lambda *a: told.append(a))
    assert found.path == tmp_path / "w" / "weights.pth" and found.path.read_bytes() == BODY
    assert found.sha256 == DIGEST and found.size_bytes == len(BODY)
    assert told[-1] == (len(BODY), len(BODY)) and len(told) > 1
    get(f"{server}/weights.pth", folder=tmp_path / "w", sha256=DIGEST)
    assert Server.asked == ["/weights.pth"]  # it was here already
    found.path.write_bytes(b"another")
    get(f"{server}/weights.pth", folder=tmp_path / "w", sha256=DIGEST)
    assert found.path.read_bytes() == BODY


def test_the_name_of_a_file_may_hold_its_digest(server: str, tmp_path: Path) -> None:
    name = f"deit-{DIGEST[:8]}.pth"
    assert get(f"{server}/{name}", folder=tmp_path).path.name == name


WRONG = [("weights.pth", "0" * 64, "checksum"), ("short.pth", DIGEST, "truncated|broke")]


@pytest.mark.parametrize(("place", "digest", "reason"), WRONG)
def test_what_is_not_the_file_leaves_nothing(server: str, tmp_path: Path, place: str, digest: str, reason: str) -> None:
    with pytest.raises(FeatherweightError, match=reason):
        get(f"{server}/{place}", folder=tmp_path, sha256=digest)
    assert list(tmp_path.iterdir()) == []


def test_without_a_digest_nothing_is_fetched(server: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="sha256: is missing: without it"):
        get(f"{server}/weights.pth", folder=tmp_path)
    with pytest.raises(OptionError, match="not 8 to 64 hexadecimal digits"):
        get(f"{server}/weights.pth", folder=tmp_path, sha256="abc")
    assert Server.asked == []


def test_the_hub_tells_the_digest(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "HUB", server)
    found = get("hf:timm/vit_tiny.in1k/weights.pth", folder=tmp_path)
    assert found.sha256 == DIGEST and Server.asked[0] == "/timm/vit_tiny.in1k/resolve/main/weights.pth"
    with pytest.raises(OptionError, match="the hub tells none for hf:timm/small"):
        get("hf:timm/small", folder=tmp_path)


def test_only_https(server: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"http://example\.com/w\.pth is not an https address"):
        get("http://example.com/w.pth", folder=tmp_path, sha256=DIGEST)
    with pytest.raises(OptionError, match=r"example\.invalid.* is not an https address"):
        get(f"{server}/weaker", folder=tmp_path, sha256=DIGEST)
    with pytest.raises(InputError, match="checksum"):  # what is moved is followed and checked alike
        get(f"{server}/moved", folder=tmp_path, sha256="0" * 8)


def test_what_cannot_be_had_is_one_line(server: str, tmp_path: Path) -> None:
    with pytest.raises(FeatherweightError, match="the server says 404"):
        get(f"{server}/nothing", folder=tmp_path, sha256=DIGEST)
    with pytest.raises(FeatherweightError, match=r"not reached: .*is there a network"):
        get("http://127.0.0.1:9/weights.pth", folder=tmp_path, sha256=DIGEST)
    with pytest.raises(OptionError, match="did you mean 'deit_tiny_patch16_224'"):
        get("deit_tiny_patch_16_224", folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_every_published_file_has_its_digest_in_its_name() -> None:
    assert all(fetching.IN_NAME.search(address) for address in fetching.PUBLISHED.values())
