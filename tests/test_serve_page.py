# SPDX-License-Identifier: Apache-2.0
"""The page of `featherweight serve` in a real browser: what it shows, what it asks for, its use without a mouse."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import browser
import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch")
pytest.importorskip("uvicorn")
import tiny_detector
import tiny_files
from serve_client import running

from featherweight import pipeline
from featherweight.runtime.preprocess import Preprocess
from featherweight.serving.models import named

pytestmark = [pytest.mark.slow, pytest.mark.skipif(browser.found() is None, reason="needs a Chromium")]
EVIL = "<img src=x onerror=document.title='taken'>"
DRAW = "[...document.querySelectorAll('article canvas')].map((one) => one.toDataURL())"
DROP = """(async () => {
  const data = new DataTransfer();
  const bytes = await new Promise((done) => document.querySelector('article canvas').toBlob(done));
  data.items.add(new File([bytes], 'dropped.png', { type: 'image/png' }));
  document.dispatchEvent(new DragEvent('drop', { dataTransfer: data, bubbles: true, cancelable: true }));
})()"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Browser]:
    made = browser.Browser(tmp_path_factory.mktemp("browser"), camera=True)
    yield made
    made.close()


@pytest.fixture(autouse=True)
def empty(page: browser.Browser) -> None:
    page.look()
    page.open("about:blank")
    page.requests.clear()
    page.complaints.clear()


def classifier() -> Any:
    classes = (EVIL, *tiny_files.CLASSES[1:])
    return pipeline("image-classification", tiny_files.model(), preprocess=tiny_files.PREPROCESS, classes=classes)


def detector() -> Any:
    zero, one = (0.0,) * 3, (1.0,) * 3
    box = Preprocess(size=(64, 64), resize="letterbox", interpolation="bilinear", mean=zero, std=one)
    told = tiny_detector.Told([[10, 20, 30, 40, 0.9, 1], [40, 30, 60, 60, 0.3, 2]]).eval()
    return pipeline("object-detection", told, preprocess=box, classes=("cat", EVIL, "eel"))


def pictures(folder: Path) -> list[Path]:
    for number in range(2):
        Image.fromarray(tiny_files.picture(number)).save(folder / f"{number}.png")
    (folder / "broken.png").write_bytes((folder / "0.png").read_bytes()[:90])
    return [folder / "0.png", folder / "1.png", folder / "broken.png"]


def opened(page: browser.Browser, port: int) -> None:
    page.open(f"http://127.0.0.1:{port}/")
    page.wait("document.querySelectorAll('#models li').length > 0")


def set_to(page: browser.Browser, name: str, value: float) -> None:
    slider = f"document.getElementById('{name}')"
    page.run(f"{slider}.value = '{value}'; {slider}.dispatchEvent(new Event('input'))")


def test_pictures_side_by_side(page: browser.Browser, tmp_path: Path) -> None:
    files = pictures(tmp_path)
    with running(named([("a", classifier()), ("b", classifier())])) as client:
        opened(page, client.port)
        page.choose("#files", files)
        page.wait("document.querySelectorAll('article').length === 3")
        heads = page.run("[...document.querySelectorAll('article > h3, .top h3')].map((one) => one.textContent)")
        assert heads == ["broken.png", "1.png", "0.png"]
        assert "this PNG stops early" in page.run("document.querySelector('.problem').textContent")
        assert page.run("document.querySelectorAll('.columns > div').length") == 4
        names = page.run(
            "[...document.querySelectorAll('.answers li > span:first-child')].map((one) => one.textContent)"
        )
        assert EVIL in names  # a text like any other
        assert page.run("document.querySelectorAll('img').length") == 0
        assert page.run("document.getElementById('times').children.length") == 2
        assert page.run("document.querySelector('.agree').textContent") == "same answer"
        before = page.run(DRAW)
        set_to(page, "stage", 0)
        after = page.run(DRAW)
        assert all(one != other for one, other in zip(before, after, strict=True))
        page.run(DROP)
        page.wait("document.querySelector('.top h3').textContent === 'dropped.png'")
        assert page.run("document.title") == "a and b · featherweight"
        assert page.run("document.getElementById('said').textContent").startswith("dropped.png: a ")
        home = f"http://127.0.0.1:{client.port}/"
        assert all(one.startswith((home, "data:,")) for one in page.requests)
        assert len(page.complaints) == 1
        assert "400" in page.complaints[0]
        page.run("fetch('http://127.0.0.1:9/').catch(() => document.title = 'blocked')")  # the policy holds
        page.wait("document.title === 'blocked'")
        assert "Content Security Policy" in page.complaints[-1]


def test_boxes_follow_the_slider_without_asking_again(page: browser.Browser, tmp_path: Path) -> None:
    files = pictures(tmp_path)[:1]
    with running(named([("d", detector())])) as client:
        opened(page, client.port)
        page.choose("#files", files)
        page.wait("document.querySelectorAll('article').length === 1")
        assert page.run("document.querySelectorAll('.answers li').length") == 1
        before, asked = page.run(DRAW), len(page.requests)
        set_to(page, "threshold", 0.2)
        assert page.run("document.querySelectorAll('.answers li').length") == 2
        assert page.run(DRAW) != before
        assert len(page.requests) == asked
        assert page.complaints == []


def test_the_camera(page: browser.Browser) -> None:
    with running(named([("a", classifier())])) as client:
        opened(page, client.port)
        page.run("document.getElementById('camera').click()")
        page.wait("Number(document.querySelector('#times td:last-child')?.textContent) >= 3")
        assert page.run("document.querySelectorAll('article').length") == 1
        page.run("document.getElementById('camera').click()")
        assert page.run("document.getElementById('video').hidden")
        assert page.complaints == []


def test_drawing(page: browser.Browser) -> None:
    with running(named([("a", classifier())]), max_bytes=50_000) as client:
        opened(page, client.port)
        page.run("document.getElementById('draw').click()")
        box = page.run("(({x, y}) => [x, y])(document.getElementById('pad').getBoundingClientRect())")
        before = page.run("document.getElementById('pad').toDataURL()")
        for kind, x in (("mousePressed", 40), ("mouseMoved", 120), ("mouseReleased", 120)):
            place = {"x": box[0] + x, "y": box[1] + 100, "button": "left", "buttons": 1, "clickCount": 1}
            page.call("Input.dispatchMouseEvent", type=kind, **place)
        page.wait("document.querySelector('.top h3')?.textContent === 'drawing'")
        assert page.run("document.getElementById('pad').toDataURL()") != before
        assert page.complaints == []
        page.run("""(() => {
          const data = new DataTransfer();
          data.items.add(new File([new Uint8Array(50001)], 'large.png'));
          document.dispatchEvent(new DragEvent('drop', { dataTransfer: data, bubbles: true, cancelable: true }));
        })()""")
        page.wait("document.querySelectorAll('article').length === 2")
        assert "has 50001 bytes, at most 50000" in page.run("document.querySelector('.problem').textContent")
        assert page.complaints == []  # it was not even sent


def test_questions(page: browser.Browser) -> None:
    class Finder:
        """Finds the last character of the context."""

        task, classes = "question-answering", ()

        class runner:  # noqa: N801
            backend, dtype, threads = "torch", "float32", 1

        def preprocess(self, asked: Any, call: Any) -> Any:
            return type("Asked", (), {"windows": [], "context": asked["context"]})()

        def postprocess(self, one: Any, logits: Any, call: Any) -> Any:
            end = len(one.context)
            return {"score": 0.5, "start": end - 1, "end": end, "answer": one.context[-1]}

    with running(named([("q", Finder())])) as client:
        opened(page, client.port)
        page.run("document.getElementById('words').value = '\\u{1F389}\\u{1F389} 塔'")
        page.run("document.getElementById('question').focus()")
        for letter in "who":
            page.call("Input.insertText", text=letter)
        page.press("Enter", 13, "\r")  # the form is sent from the keyboard
        page.wait("document.querySelectorAll('article').length === 1")
        assert page.run("document.querySelector('mark').textContent") == "塔"
        assert page.run("document.querySelector('.context').textContent") == "🎉🎉 塔"
        assert page.complaints == []


def test_texts(page: browser.Browser) -> None:
    class Counter:
        """Says how long its texts are."""

        task, classes = "text-classification", ()

        class runner:  # noqa: N801
            backend, dtype, threads = "torch", "float32", 1

        def preprocess(self, text: Any, call: Any) -> Any:
            return type("Encoding", (), {"ids": [len(text["text"]), len(text.get("text_pair", ""))]})()

        def forward(self, encodings: Any, call: Any) -> Any:
            return [encodings[0].ids]

        def postprocess(self, logits: Any, call: Any) -> Any:
            return [{"label": f"{logits}", "score": 0.5}]

    with running(named([("t", Counter())])) as client:
        opened(page, client.port)
        for number, pair in enumerate(("", "ab"), 1):
            page.run(
                f"document.getElementById('words').value = 'one'; document.getElementById('pair').value = '{pair}'"
            )
            page.run("document.querySelector('#text button').click()")
            page.wait(f"document.querySelectorAll('article').length === {number}")
            said = page.run("document.querySelector('.answers li').textContent")
            assert said.startswith(f"[3, {len(pair)}]")
        assert page.run("document.getElementById('for-question').hidden")
        assert page.complaints == []


def test_keyboard_reaches_everything_and_shows_where_it_is(page: browser.Browser) -> None:
    with running(named([("a", classifier())])) as client:
        opened(page, client.port)
        seen = []
        for _ in range(4):
            page.press("Tab", 9)
            seen.append(page.run("document.activeElement.id || document.activeElement.textContent"))
        assert seen == ["files", "camera", "draw", "top"]
        page.press("Tab", 9)
        page.run("document.getElementById('files').focus()")
        style = "getComputedStyle(document.getElementById('files').parentElement)"
        assert page.run(f"{style}.outlineStyle") == "solid"
        named_ = "(one) => one.labels?.length || one.textContent || one.ariaLabel"
        assert page.run(f"[...document.querySelectorAll('input, textarea, button')].every({named_})")


@pytest.mark.parametrize("width", [360, 1100])
def test_every_width_and_theme(page: browser.Browser, tmp_path: Path, width: int) -> None:
    files = pictures(tmp_path)
    with running(named([("a", classifier()), ("b" * 60, classifier())])) as client:
        light: dict[bool, float] = {}
        for dark in (False, True):
            page.look(width=width, height=800, dark=dark)
            opened(page, client.port)
            page.choose("#files", files)
            page.wait("document.querySelectorAll('article').length === 3")
            assert page.run("document.documentElement.scrollWidth <= innerWidth")
            page.picture(tmp_path / f"{dark}.png")
            pixels = np.asarray(Image.open(tmp_path / f"{dark}.png").convert("L"))
            light[dark] = float(np.median(pixels))
        assert light[False] > 200
        assert light[True] < 60
