# SPDX-License-Identifier: Apache-2.0
"""A deployed model answers its first picture within 1.5 seconds of the start of the process, and without torch.

Processor time is taken instead of the clock's: on an idle machine they are the same for one thread, on a busy one only
the first says something of us.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SECONDS = 1.5
HEAVY = ("torch", "torchvision", "timm", "transformers", "onnx", "nncf", "pandas", "scipy", "sklearn", "cv2")
ANSWER = """
import sys
from featherweight import pipeline
answers = pipeline("image-classification", model=sys.argv[1], backend=sys.argv[2], threads=1)(sys.argv[3])
assert len(answers) >= 2, answers
"""
LOADED = f"\nprint([name for name in {HEAVY} if name in sys.modules])"
COMMAND = """
import sys
from featherweight.cli import main
code = main(["predict", sys.argv[1], "--source", sys.argv[3], "--backend", sys.argv[2], "--threads", "1", "-q"])
assert code == 0
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DeiT-tiny of 5.7 M weights as model.onnx, and picture.jpg."""
    import torch

    from featherweight.export import check, onnx
    from featherweight.models import zoo

    folder = tmp_path_factory.mktemp("start")
    torch.manual_seed(0)
    entry = zoo.entry("deit_tiny")
    told = check.describe(classes=tuple(f"class {i}" for i in range(1000)), preprocess=entry.preprocess)
    onnx.export(zoo.create("deit_tiny").eval(), torch.randn(2, 3, 224, 224), folder / "model.onnx", metadata=told)
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (480, 640, 3), np.uint8)).save(folder / "picture.jpg")
    return folder


@pytest.mark.skipif(not hasattr(os, "wait4"), reason="the system does not say what a child took")
@pytest.mark.parametrize(
    ("backend", "code"),
    [("onnxruntime", ANSWER), ("openvino", ANSWER), ("onnxruntime", COMMAND)],
    ids=["onnxruntime", "openvino", "command line"],
)
def test_the_first_answer_comes_at_once(files: Path, backend: str, code: str) -> None:
    pytest.importorskip(backend)
    took = []
    for _ in range(3):
        command = [sys.executable, "-c", code + LOADED, str(files / "model.onnx"), backend, str(files / "picture.jpg")]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        said = child.stdout.read() if child.stdout else ""
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.stdout:
            child.stdout.close()
        assert child.returncode == 0, said
        assert said.splitlines()[-1] == "[]", "imported on the way"
        took.append(usage.ru_utime + usage.ru_stime)
        if took[-1] < SECONDS:
            return
    pytest.fail(f"took {min(took):.2f} s of processor time until its first answer")
