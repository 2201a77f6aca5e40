# SPDX-License-Identifier: Apache-2.0
"""Weights from the net: the one place that downloads, only when asked to, and never without a checksum.

A source is a name of the table whose authors publish a file, an https address, or `hf:OWNER/NAME[/FILE]` of the Hugging
Face hub, which tells the SHA-256 of its large files itself. What arrives is published whole once its digest fits.
Nothing is read here: `create(NAME, weights=FILE)` does that, and runs nothing.
"""

from __future__ import annotations

import hashlib
import os
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

from featherweight import __version__
from featherweight.errors import FeatherweightError, InputError, OptionError, closest, shown
from featherweight.files import publish_stream

DEIT = "https://dl.fbaipublicfiles.com/deit/{name}-{digest}.pth"
HUB = "https://huggingface.co"
PUBLISHED = {  # name -> address; a digest in a file's name is how its authors publish the checksum
    name: DEIT.format(name=name, digest=digest)
    for name, digest in {
        "deit_tiny_patch16_224": "a1311bcf",
        "deit_small_patch16_224": "cd65a155",
        "deit_base_patch16_224": "b5f2ef4d",
        "deit_tiny_distilled_patch16_224": "b40b3cf7",
        "deit_small_distilled_patch16_224": "649709d9",
        "deit_base_distilled_patch16_224": "df68dfff",
        "deit_base_patch16_384": "8de9b5d1",
        "deit_base_distilled_patch16_384": "d0272ac0",
    }.items()
}
IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.\w+$")
DIGEST = re.compile(r"[0-9a-f]{8,64}")
HUB_NAME = re.compile(r"hf:([\w.-]+/[\w.-]+)(?:/([\w./-]+))?")
PIECE = 1 << 20
LONGEST = 64 << 30  # bytes
TIMEOUT_S = 60.0
Tell = Callable[[int, int | None], None]  # bytes so far, bytes in all where the server says


@dataclass(frozen=True)
class Fetched:
    """A file that is here now."""

    path: Path
    url: str
    sha256: str
    size_bytes: int


def get(
    source: str,
    *,
    folder: str | os.PathLike[str] = "weights",
    sha256: str | None = None,
    tell: Tell | None = None,
) -> Fetched:
    """Download a file of weights into `folder` and check it; a file there that has this digest is not fetched again.

    sha256: at least the first 8 hexadecimal digits; needed for an address whose file name does not end in them. Raises
    OptionError for a source or digest that cannot be used, InputError where the bytes have another digest, and
    FeatherweightError where the net does not deliver.
    """
    address = _address(source)
    digest = _digest(sha256, address, source)
    response = None
    if digest is None:  # the hub tells it with the file
        response = _open(address)
        digest = _hub_digest(response, source)
    place = Path(folder) / Path(urllib.parse.urlsplit(address).path).name
    if (found := _here(place, digest)) is not None:
        if response is not None:
            response.close()
        return Fetched(place, address, found, place.stat().st_size)
    response = response or _open(address)
    place.parent.mkdir(parents=True, exist_ok=True)
    done = hashlib.sha256()
    length = response.headers.get("Content-Length")
    size = int(length) if length and length.isdigit() else None
    with response:
        publish_stream(place, _checked(response, address, done, digest, size, tell), size=size or 0)
    return Fetched(place, address, done.hexdigest(), place.stat().st_size)


def _address(source: str) -> str:
    """The address of a source; OptionError for what is none."""
    if source in PUBLISHED:
        return PUBLISHED[source]
    if hub := HUB_NAME.fullmatch(source):
        return f"{HUB}/{hub[1]}/resolve/main/{hub[2] or 'model.safetensors'}"
    if "://" in source:
        _check_scheme(source)
        return source
    text = f"no {source!r}; {closest(source, PUBLISHED)}Known: {', '.join(PUBLISHED)}, an https address, hf:OWNER/NAME"
    raise OptionError("get", text)


def _check_scheme(address: str) -> None:
    """Only https, which nobody on the way can change; http to this machine itself."""
    parts = urllib.parse.urlsplit(address)
    if parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in ("localhost", "127.0.0.1")):
        return
    raise OptionError("get", f"{shown(address, limit=100)} is not an https address")


def _digest(given: str | None, address: str, source: str) -> str | None:
    """The digits that are wanted; None where the hub will tell them."""
    named = IN_NAME.search(urllib.parse.urlsplit(address).path)
    if given is not None:
        if not DIGEST.fullmatch(given.lower()):
            raise OptionError("sha256", f"{shown(given, limit=80)!r} is not 8 to 64 hexadecimal digits")
        return given.lower()
    if named:
        return named[1]
    if source.startswith("hf:"):
        return None
    text = "is missing: without it a file that was changed on the way would not be noticed; its publisher says it"
    raise OptionError("sha256", text)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows, but never from https to something weaker; remembers what the hub says of the file on the way."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        _check_scheme(newurl)
        new = super().redirect_request(req, fp, code, msg, headers, newurl)
        if new is not None:
            new.linked = headers.get("X-Linked-ETag") or getattr(req, "linked", None)  # type: ignore[attr-defined]
        return new


class _Remember(urllib.request.BaseHandler):
    """Hands what was remembered on the way to the answer."""

    def http_response(self, request: Any, response: Any) -> Any:
        response.linked = getattr(request, "linked", None) or response.headers.get("X-Linked-ETag")
        return response

    https_response = http_response


def _open(address: str) -> Any:
    request = urllib.request.Request(address, headers={"User-Agent": f"featherweight/{__version__}"})
    try:
        return urllib.request.build_opener(_Redirects, _Remember).open(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        error.close()
        raise FeatherweightError(f"{shown(address, limit=200)}: the server says {error.code} {error.reason}") from None
    except (OSError, HTTPException, ValueError) as error:
        if isinstance(error, FeatherweightError):
            raise
        reason = getattr(error, "reason", error)
        raise FeatherweightError(f"{shown(address, limit=200)}: not reached: {reason}; is there a network?") from None


def _hub_digest(response: Any, source: str) -> str:
    """The SHA-256 that the hub gives for its large files."""
    digest = str(getattr(response, "linked", None) or "").strip('"')
    if len(digest) == 64 and DIGEST.fullmatch(digest):
        return digest
    response.close()
    raise OptionError("sha256", f"is missing: the hub tells none for {shown(source)}; give the publisher's")


def _checked(
    response: Any, address: str, done: Any, digest: str, size: int | None, tell: Tell | None
) -> Iterator[bytes]:
    """The file's pieces; InputError instead of an end where they have another digest or are too many."""
    count = 0
    while piece := _read(response, address):
        done.update(piece)
        count += len(piece)
        if count > LONGEST:
            raise InputError(address, "too_large", f"is larger than {LONGEST >> 30} GiB")
        if tell is not None:
            tell(count, size)
        yield piece
    if size is not None and count != size:
        raise InputError(address, "truncated", f"ended after {count} of {size} bytes; try again")
    if not done.hexdigest().startswith(digest):
        text = f"has the SHA-256 {done.hexdigest()}, not {digest}; it is not the file that was published"
        raise InputError(address, "checksum", text)


def _read(response: Any, address: str) -> bytes:
    try:
        return bytes(response.read(PIECE))
    except (OSError, HTTPException) as error:
        raise FeatherweightError(f"{shown(address, limit=200)}: the connection broke ({error}); try again") from None


def _here(place: Path, digest: str) -> str | None:
    """The digest of the file at this place, if it is the wanted one."""
    if not place.is_file():
        return None
    done = hashlib.sha256()
    with place.open("rb") as stream:
        while piece := stream.read(PIECE):
            done.update(piece)
    return done.hexdigest() if done.hexdigest().startswith(digest) else None
