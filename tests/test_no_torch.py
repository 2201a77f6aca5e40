# SPDX-License-Identifier: Apache-2.0
"""The runtime half works as `pip install featherweight` leaves it: without torch and without every other extra.

Quick: a child process that cannot find any package the bare installation would not bring. Slow: that installation
itself, in a new virtual environment, from the wheel.
"""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
import venv
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import built_wheel
import numpy as np
import pytest
from packaging.requirements import Requirement
from PIL import Image

HIDE = """
import re
import sys
from importlib.machinery import PathFinder

class Bare(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in ABSENT else PathFinder.find_spec(name, path, target)

    @classmethod
    def find_distributions(cls, *context):
        return (d for d in PathFinder.find_distributions(*context) if re.sub("[-_.]+", "-", d.name).lower() in BARE)

sys.meta_path[sys.meta_path.index(PathFinder)] = Bare
"""
LOADED = "import sys; print([n for n in ('torch', 'torchvision', 'timm', 'transformers', 'onnx') if n in sys.modules])"
LEAVE = "sys.exit(globals().get('code', 0))"
PIPELINE = """
import sys
from featherweight import pipeline
answers = pipeline("image-classification", model=sys.argv[1])([sys.argv[2]], top_k=2)
assert len(answers) == 1 and len(answers[0]) == 2, answers
assert set(answers[0][0]) == {"label", "score"} and answers[0][0]["label"] in {"cat", "dog", "eel"}, answers
"""
BENCH = """
import sys
from featherweight import measure
timed = measure.race({"a": measure.runnable(sys.argv[1]), "b": measure.runnable(sys.argv[1])}, repeats=6, budget_s=0.2)
assert timed["b"].median_ms > 0 and timed["b"].conditions.runtime == "onnxruntime", timed
"""
COMMAND = "import sys; from featherweight.cli import main; code = main(sys.argv[1:])"


@functools.cache
def bare() -> frozenset[str]:
    """Distributions that `pip install featherweight` brings, in the spelling of `metadata`."""
    found: set[str] = set()
    queue = ["featherweight"]
    while queue:
        name = re.sub(r"[-_.]+", "-", queue.pop()).lower()
        if name in found:
            continue
        found.add(name)
        try:
            wanted = [Requirement(text) for text in metadata.requires(name) or ()]
        except metadata.PackageNotFoundError:
            continue
        queue += [one.name for one in wanted if one.marker is None or one.marker.evaluate({"extra": ""})]
    return frozenset(found)


@functools.cache
def absent() -> tuple[str, ...]:
    """Modules of this environment that the bare installation would not have."""
    here = bare()
    owners = metadata.packages_distributions()
    return tuple(
        sorted(m for m, names in owners.items() if not {re.sub(r"[-_.]+", "-", n).lower() for n in names} & here)
    )


def test_what_is_hidden() -> None:
    """A control of the test's own means: everything heavy is among it, nothing the runtime half needs is."""
    assert {"torch", "torchvision", "timm", "transformers", "onnx", "openvino", "sklearn", "pytest"} <= set(absent())
    assert not {"numpy", "PIL", "yaml", "onnxruntime", "jinja2", "matplotlib", "rich", "cyclopts"} & set(absent())


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """model.onnx, picture.png and a run folder with a report.json, made with everything at hand."""
    import torch
    from fake_report import fake

    from featherweight import report
    from featherweight.export import check, onnx
    from featherweight.models import zoo
    from featherweight.runtime.preprocess import Preprocess

    folder = tmp_path_factory.mktemp("exported")
    torch.manual_seed(0)
    model = zoo.create("vit_digits", image_size=(16, 16), embed_dim=24, depth=2, num_classes=3).eval()
    preprocess = Preprocess(size=(16, 16), resize="exact", interpolation="bilinear", mean=(0.5,) * 3, std=(0.5,) * 3)
    told = check.describe(classes=("cat", "dog", "eel"), preprocess=preprocess)
    onnx.export(model, torch.randn(2, 3, 16, 16), folder / "model.onnx", metadata=told)
    Image.fromarray(np.arange(20 * 30 * 3, dtype=np.uint16).astype(np.uint8).reshape(20, 30, 3)).save(
        folder / "picture.png"
    )
    report.write(fake(), folder / "run")
    (folder / "run" / "report.html").unlink()
    return folder


def hidden(code: str, *arguments: object, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run code where only the bare installation is to be found; its last word is what was loaded all the same."""
    text = f"ABSENT, BARE = set({absent()!r}), set({sorted(bare())!r})\n{HIDE}\n{code}\n{LOADED}\n{LEAVE}"
    command = [sys.executable, "-W", "error", "-c", text, *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def worked(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.rstrip().endswith("[]"), done.stdout
    return done.stdout


def test_import_and_pipeline(files: Path) -> None:
    worked(hidden(PIPELINE, files / "model.onnx", files / "picture.png", folder=files))


def test_predict(files: Path) -> None:
    done = hidden(COMMAND, "predict", "model.onnx", "--source", "picture.png", "--top-k", "2", folder=files)
    assert re.search(r"picture.png +(cat|dog|eel) \d+\.\d %", worked(done))


def test_measure(files: Path) -> None:
    worked(hidden(BENCH, files / "model.onnx", folder=files))


def test_bench(files: Path) -> None:
    worked(hidden(COMMAND, "bench", "model.onnx", "--batch", "1", folder=files))


def test_bench_with_all_that_it_tells(files: Path) -> None:
    more = ("--start", "--roofline", "--layers", "--floor", "--plot", "race.svg")
    said = worked(hidden(COMMAND, "bench", "model.onnx", "--batch", "1", "--seconds", "0.1", *more, folder=files))
    assert "GMAC/s" in said and "kinds" in said and "ready ms" in said and (files / "race.svg").is_file()


def test_info(files: Path) -> None:
    assert "pixel_values" in worked(hidden(COMMAND, "info", "model.onnx", folder=files))


def test_report_is_rebuilt(files: Path) -> None:
    worked(hidden(COMMAND, "report", "run", folder=files))
    assert (files / "run" / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_help_and_doctor(files: Path) -> None:
    assert "predict" in worked(hidden(COMMAND, "--help", folder=files))
    assert "featherweight[torch]" in worked(hidden(COMMAND, "doctor", folder=files))


@pytest.mark.parametrize(
    "command",
    [
        ("train", "vit_digits", "--data", "digits"),
        ("compress", "vit_digits", "--data", "digits"),
        ("demo",),
        ("val", "model.onnx", "--data", "digits"),
        ("serve", "model.onnx"),
    ],
)
def test_what_needs_more_says_so_in_one_line(files: Path, command: tuple[str, ...]) -> None:
    done = hidden(COMMAND, *command, folder=files)
    assert done.returncode == 2, done.stdout + done.stderr
    said = done.stderr.strip().splitlines()
    assert len(said) == 1, done.stderr
    assert "pip install 'featherweight[" in said[0]
    assert not (files / "runs").exists()


def test_a_runtime_that_needed_torch_would_be_found(files: Path) -> None:
    done = hidden("import torch", folder=files)
    assert done.returncode != 0
    assert "No module named 'torch'" in done.stderr


@pytest.mark.slow
def test_in_a_real_environment_without_torch(files: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    subprocess.run([python, "-m", "pip", "install", "-qq", built_wheel.build()], check=True)
    listed = subprocess.run(
        [python, "-m", "pip", "list", "--format", "json"], check=True, capture_output=True, text=True
    )
    names = {entry["name"].lower() for entry in json.loads(listed.stdout)}
    assert "featherweight" in names
    assert not {"torch", "torchvision", "timm", "transformers", "onnx", "openvino", "safetensors"} & names
    for code, arguments in (
        (PIPELINE, (files / "model.onnx", files / "picture.png")),
        (BENCH, (files / "model.onnx",)),
        (COMMAND, ("predict", files / "model.onnx", "--source", files / "picture.png")),
        (COMMAND, ("report", files / "run")),
        (COMMAND, ("doctor",)),
    ):
        text = f"{code}\n{LOADED}\n{LEAVE}"
        command = [python, "-W", "error", "-c", text, *map(str, arguments)]
        worked(subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False))
