# SPDX-License-Identifier: Apache-2.0
"""A headless Chromium, driven over a pipe by the DevTools protocol: no driver and no port."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
SECONDS = 60.0  # for one command; a busy machine is slow to start a browser


def found() -> str | None:
    """Where a Chromium is, if there is one."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One page. What it asks for is in `requests`, what it complains about in `complaints`."""

    def __init__(self, folder: Path, *, camera: bool = False) -> None:
        wanted, mine = os.pipe()  # Chromium reads commands from 3 and writes answers to 4
        theirs, answers = os.pipe()
        flags = [
            "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe",
            "--no-first-run", "--disable-background-networking", "--disable-component-update", "--hide-scrollbars",
            f"--user-data-dir={folder}", *(["--use-fake-device-for-media-stream"] if camera else []),
            *(["--use-fake-ui-for-media-stream"] if camera else []),
        ]  # fmt: skip
        command = [str(found()), *flags]
        joined = f'exec "$@" 3<&{wanted} 4>&{answers}'
        quiet = subprocess.DEVNULL
        self.process = subprocess.Popen(
            ["bash", "-c", joined, "bash", *command], pass_fds=(wanted, answers), stdout=quiet, stderr=quiet
        )
        os.close(wanted)
        os.close(answers)
        self.into, self.out = mine, theirs
        self.number, self.rest, self.session = 0, b"", ""
        self.requests: list[str] = []
        self.complaints: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log", "DOM"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command of the protocol and its result."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.into, json.dumps(message).encode() + b"\0")
        while True:
            told = self._next()
            if told.get("id") == self.number:
                assert "error" not in told, (method, told["error"])
                result: dict[str, Any] = told["result"]
                return result
            self._hear(told)

    def _next(self) -> dict[str, Any]:
        end = time.monotonic() + SECONDS
        while b"\0" not in self.rest:
            assert select.select([self.out], [], [], max(0.0, end - time.monotonic()))[0], "the browser says nothing"
            part = os.read(self.out, 1 << 20)
            assert part, "the browser is gone"
            self.rest += part
        whole, _, self.rest = self.rest.partition(b"\0")
        message: dict[str, Any] = json.loads(whole)
        return message

    def _hear(self, told: dict[str, Any]) -> None:
        params = told.get("params", {})
        if told.get("method") == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif told.get("method") == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(params["exceptionDetails"]))
        elif told.get("method") == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.complaints.append(params["entry"]["text"])
        elif told.get("method") == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert"):
            self.complaints.append(json.dumps(params["args"]))

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression, awaited."""
        told = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in told, told["exceptionDetails"]
        return told["result"].get("value")

    def wait(self, script: str) -> Any:
        """The value of an expression as soon as it is true."""
        end = time.monotonic() + SECONDS
        while not (value := self.run(script)):
            assert time.monotonic() < end, f"never true: {script}"
            time.sleep(0.05)
        return value

    def open(self, url: str) -> None:
        """Go there."""
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete'")

    def choose(self, selector: str, files: Sequence[Path]) -> None:
        """Give files to an input."""
        node = self.call("DOM.querySelector", nodeId=self.call("DOM.getDocument")["root"]["nodeId"], selector=selector)
        self.call("DOM.setFileInputFiles", nodeId=node["nodeId"], files=[str(file) for file in files])

    def press(self, key: str, code: int, text: str = "") -> None:
        """A key."""
        known = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        self.call("Input.dispatchKeyEvent", type="keyDown", **known, **({"text": text} if text else {}))
        self.call("Input.dispatchKeyEvent", type="keyUp", **known)

    def look(self, *, width: int = 1100, height: int = 900, dark: bool = False) -> None:
        """The size of the window and the theme."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        theme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[theme])

    def picture(self, path: Path) -> None:
        """A screenshot of the whole page."""
        taken = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(taken["data"]))

    def close(self) -> None:
        """End the browser."""
        self.session = ""
        self.call("Browser.close")
        self.process.wait(20)
        os.close(self.into)
        os.close(self.out)
