# SPDX-License-Identifier: Apache-2.0
"""What a request may cost, and why one is turned away. One table of limits, each with a default."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from featherweight.errors import InputError, OptionError, clean

OWN_NAMES = ("picture", "text", "question", "context", "body")  # what an InputError about a request is about
STATUS = {"too_large": 413, "unsupported_format": 415, "not_an_image": 415}  # by the reason; 400 for any other


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of a server."""

    max_bytes: int = 20 << 20  # of one picture
    max_pixels: int = 40_000_000
    max_text: int = 100_000  # bytes of one request with text
    waiting: int = 8  # requests in the house besides the one that is computed
    body_seconds: float = 20.0  # for a request to arrive
    answer_seconds: float = 30.0  # for it to be answered
    header_seconds: float = 10.0  # for a connection to say what it wants
    connections: int = 64

    def __post_init__(self) -> None:
        for one in fields(self):
            value, least = getattr(self, one.name), 0 if one.name == "waiting" else 1 if one.type == "int" else 0.001
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= least:
                raise OptionError(one.name, f"must be {least} or more, not {value!r}")


@dataclass
class Refused(Exception):
    """A request that is not answered: the status, a word for programs, a line for people."""

    status: int
    reason: str
    text: str
    headers: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.status} {self.reason}: {clean(self.text)}"

    def to_dict(self) -> dict[str, dict[str, str]]:
        """The body of the response."""
        return {"error": {"reason": self.reason, "text": clean(self.text)}}


def refusal(error: InputError | OptionError) -> Refused:
    """An error of the package as a response: the sender's mistake, or, of an InputError about a file, the model's."""
    if isinstance(error, OptionError):
        return Refused(400, "bad_option", str(error))
    if error.path in OWN_NAMES:
        return Refused(STATUS.get(error.reason, 400), error.reason, f"{error.path} {error.text}")
    return Refused(500, "model_failed", f"the model failed: {error.reason}")
