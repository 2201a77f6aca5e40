# SPDX-License-Identifier: Apache-2.0
"""Opening and running a file makes no connection, looks up no name and writes nothing to the home folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from onnx_model import write

pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")

# Every attempt of Python code to reach the network is reported and stopped, so the control reaches nobody either.
WATCH = """
import sys
def watch(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "urllib.Request"):
        print("NETWORK", event, flush=True)
        raise OSError("no network in this test")
sys.addaudithook(watch)
"""
SILENT = """
import numpy as np
from featherweight.runtime.session import open_session
for backend in ("onnxruntime", "openvino"):
    session = open_session(sys.argv[1], backend=backend, threads=1)
    print(session.run({"x": np.ones((1, 3), np.float32)})["logits"].shape)
"""
LOUD = {
    "onnxruntime": "import onnxruntime\nonnxruntime.InferenceSession(sys.argv[1], providers=['CPUExecutionProvider'])",
    "openvino": "import openvino",
}


def run(code: str, model: Path, home: Path, *, tracer: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    home.mkdir()
    hidden = ("CI", "ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "DO_NOT_TRACK")
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    env = {key: value for key, value in os.environ.items() if key not in hidden} | proxies
    env |= {"HOME": str(home), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [*tracer, sys.executable, "-c", WATCH + code, str(model)]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)


def written(home: Path) -> list[str]:
    return sorted(str(path.relative_to(home)) for path in home.rglob("*"))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write(tmp_path / "m.onnx")


def test_a_session_is_silent(model: Path, tmp_path: Path) -> None:
    done = run(SILENT, model, tmp_path / "home")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["(1, 2)", "(1, 2)"]
    assert done.stderr == ""
    assert written(tmp_path / "home") == []


@pytest.mark.parametrize("package", LOUD)
def test_control_the_watch_sees_what_silence_prevents(package: str, model: Path, tmp_path: Path) -> None:
    done = run(LOUD[package], model, tmp_path / "home")
    assert "NETWORK" in done.stdout or written(tmp_path / "home"), f"{package} no longer calls home: silence can go"


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_a_session_is_silent_in_its_system_calls(model: Path, tmp_path: Path) -> None:
    log, home = tmp_path / "calls", tmp_path / "home"
    tracer = ("strace", "-f", "-qq", "-o", str(log), "-e", "trace=connect,sendto,sendmsg,sendmmsg,openat,mkdir,unlink")
    done = run(SILENT, model, home, tracer=tracer)
    if "ptrace" in done.stderr.lower() or not log.exists():
        pytest.skip("this machine does not allow tracing")
    assert done.returncode == 0, done.stderr
    calls = log.read_text(errors="replace").splitlines()
    assert any("m.onnx" in call for call in calls), "nothing was traced"
    assert not [call for call in calls if "AF_INET" in call]
    at_home = [call for call in calls if str(home) in call]
    assert not [call for call in at_home if "O_CREAT" in call or "O_WRONLY" in call or "mkdir(" in call]
