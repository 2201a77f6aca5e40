# SPDX-License-Identifier: Apache-2.0
"""The XML door: elements and text, nothing expanded or fetched, bounds held, one clean line for everything else."""

from __future__ import annotations

import random

import pytest

from featherweight.doors import xml
from featherweight.errors import InputError


def refused(data: bytes, reason: str) -> str:
    with pytest.raises(InputError) as error:
        xml.parse(data, "a.xml")
    text = str(error.value)
    assert error.value.reason == reason and "\n" not in text and len(text) <= 500 and "a.xml" in text
    return text


def test_elements_and_their_text() -> None:
    root = xml.parse('﻿<a><b> 1.5 </b><c x="7">é&amp;<!-- no --></c><b>2</b></a>'.encode(), "a.xml")
    assert root.name == "a" and [child.text for child in root.all("b")] == [" 1.5 ", "2"]
    assert root.word("b") == "1.5" and root.word("c") == "é&" and root.word("d") is None
    assert xml.number(root, "b", "a.xml") == 1.5 and xml.number(root, "d", "a.xml") is None
    with pytest.raises(InputError, match="not a number"):
        xml.number(root, "c", "a.xml")


LAUGHS = b'<!DOCTYPE a [<!ENTITY b "lol"><!ENTITY c "&b;&b;&b;&b;">]><a>&c;</a>'
FETCH = b'<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a>&b;</a>'


def test_what_could_expand_or_fetch_is_refused_before_it_does() -> None:
    for data in (LAUGHS, FETCH, b'<!DOCTYPE a SYSTEM "http://a/b.dtd"><a/>'):
        assert "document type" in refused(data, "bad_xml")
    refused(b"<a>&undefined;</a>", "bad_xml")


def test_bounds_and_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xml, "MAX_ELEMENTS", 1000)
    refused(b"<a>" * 100 + b"</a>" * 100, "bad_xml")
    refused(b"<a>" + b"<b/>" * (xml.MAX_ELEMENTS + 1) + b"</a>", "too_large")
    refused(b"<a><b></a>", "bad_xml")
    refused(b"<a><b>", "truncated")
    refused(b"not xml at all", "bad_xml")
    refused(b'<?xml version="1.0" encoding="nonsense"?><a/>', "bad_xml")
    refused(b"<a>\xff\xfe</a>", "bad_xml")


def test_a_thousand_damaged_files_give_one_line_each() -> None:
    rng = random.Random(0)
    whole = b"<annotation><size><width>5</width></size><object><name>x</name></object></annotation>"
    refusals: list[InputError] = []
    for _ in range(1000):
        data = bytearray(whole)
        for _ in range(rng.randrange(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        data = data[: rng.randrange(1, len(data) + 1)] if rng.random() < 0.5 else data
        try:
            root = xml.parse(bytes(data), "a.xml")
        except InputError as error:
            refusals.append(error)
        else:
            assert root.name.encode() in data and data.count(b"<") >= 2
    assert 500 < len(refusals) < 1000 and {error.reason for error in refusals} == {"bad_xml", "truncated"}
    said = [str(error) for error in refusals]
    assert all("\n" not in text and len(text) <= 500 and "a.xml" in text for text in said)
