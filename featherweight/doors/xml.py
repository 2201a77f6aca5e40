# SPDX-License-Identifier: Apache-2.0
"""The one reader of XML: elements and their text, no DTD, no entities of its own, bounded in size, depth and number.

Attributes and comments are not kept. What declares a document type is refused before any of it is read, so that nothing
can be expanded or fetched.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from xml.parsers import expat

from featherweight.doors import Path, door, read_input
from featherweight.errors import InputError, shown

MAX_BYTES = 16 << 20
MAX_DEPTH = 32
MAX_ELEMENTS = 1 << 20


@dataclass
class Element:
    """One element: its name, what is written directly inside, and the elements in it, in order."""

    name: str
    line: int
    text: str = ""
    children: list[Element] = field(default_factory=list)

    def first(self, name: str) -> Element | None:
        """The first child of this name."""
        return next((child for child in self.children if child.name == name), None)

    def all(self, name: str) -> list[Element]:
        """The children of this name."""
        return [child for child in self.children if child.name == name]

    def word(self, name: str) -> str | None:
        """The text of the first child of this name, without the blanks around it."""
        found = self.first(name)
        return None if found is None else found.text.strip()


def read(path: Path, *, max_bytes: int = MAX_BYTES) -> Element:
    """The root of one XML file."""
    return parse(read_input(path, max_bytes=max_bytes), path)


def parse(data: bytes, name: object) -> Element:
    """The root of one XML text; `name` stands for it in messages."""
    with door(name, "bad_xml"):
        reader = _Reader(name)
        try:
            reader.parser.Parse(data, True)
        except expat.ExpatError as error:
            why = expat.errors.messages.get(error.code, str(error))
            reason = "truncated" if why == "no element found" else "bad_xml"
            raise InputError(name, reason, f"line {error.lineno}: {why}") from error
        return reader.root.children[0]


class _Reader:
    """Builds the tree and stops at what is too much."""

    def __init__(self, name: object) -> None:
        self.name, self.count = name, 0
        self.root = Element("", 0)
        self.open = [self.root]
        self.parser: Any = expat.ParserCreate()
        self.parser.buffer_text = True
        self.parser.StartElementHandler = self.start
        self.parser.EndElementHandler = self.end
        self.parser.CharacterDataHandler = self.text
        self.parser.StartDoctypeDeclHandler = self.refuse
        self.parser.EntityDeclHandler = self.refuse

    def refuse(self, *_: object) -> None:
        text = f"line {self.parser.CurrentLineNumber}: declares a document type or an entity, which is not read"
        raise InputError(self.name, "bad_xml", text)

    def start(self, name: str, _: object) -> None:
        self.count += 1
        if len(self.open) > MAX_DEPTH:
            raise InputError(self.name, "bad_xml", f"is nested more than {MAX_DEPTH} deep")
        if self.count > MAX_ELEMENTS:
            raise InputError(self.name, "too_large", f"has more than {MAX_ELEMENTS} elements")
        element = Element(name, self.parser.CurrentLineNumber)
        self.open[-1].children.append(element)
        self.open.append(element)

    def end(self, _: str) -> None:
        self.open.pop()

    def text(self, data: str) -> None:
        self.open[-1].text += data


def number(element: Element, name: str, where: object) -> float | None:
    """The number in a child, None if there is no such child; InputError for anything that is no plain number."""
    word = element.word(name)
    if word is None:
        return None
    try:
        return float(word)
    except ValueError as error:
        text = f"line {element.line}: <{name}> holds {shown(word, limit=40)!r}, not a number"
        raise InputError(where, "bad_type", text) from error
