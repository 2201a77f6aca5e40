# SPDX-License-Identifier: Apache-2.0
"""What is shipped: size and content of the wheel, versions that agree, what each extra brings, a quiet import."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import sysconfig
import time
import zipfile
from email.parser import Parser
from pathlib import Path

import built_wheel
import pytest
from packaging.requirements import Requirement

import featherweight

ROOT = built_wheel.ROOT
PACKAGE = ROOT / "featherweight"
LIMIT_BYTES = 5_000_000
CORE = {"cyclopts", "jinja2", "markupsafe", "matplotlib", "numpy", "onnxruntime", "pillow", "pyyaml", "rich"}
IMPORTED_AS = {"PIL": "pillow", "yaml": "pyyaml", "sklearn": "scikit-learn", "skimage": "scikit-image"}
IMPORTED_AS["faster_coco_eval"] = "faster-coco-eval"
IMPORTED_AS["cv2"] = "opencv-python-headless"
IMPORTED_AS["huggingface_hub"] = "huggingface-hub"
HELP_SECONDS = 0.3  # of processor time, on an idle machine


@pytest.fixture(scope="module")
def archive() -> zipfile.ZipFile:
    return zipfile.ZipFile(built_wheel.build())


@pytest.fixture(scope="module")
def metadata(archive: zipfile.ZipFile) -> dict[str, list[str]]:
    (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    parsed = Parser().parsestr(archive.read(name).decode())
    return {key: [str(value) for value in parsed.get_all(key, [])] for key in parsed}


def test_wheel_is_small(archive: zipfile.ZipFile) -> None:
    assert archive.filename is not None
    assert os.path.getsize(archive.filename) < LIMIT_BYTES


def test_wheel_carries_every_file_of_the_package(archive: zipfile.ZipFile) -> None:
    shipped = {name for name in archive.namelist() if name.startswith("featherweight/")}
    wanted = {
        path.relative_to(ROOT).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert shipped == wanted
    for folder, ending in (("weights", ".safetensors"), ("recipes", ".yaml"), ("templates", ".html.j2")):
        assert [n for n in shipped if n.startswith(f"featherweight/{folder}/") and n.endswith(ending)], folder
    assert "featherweight/py.typed" in shipped


def test_wheel_carries_nothing_else(archive: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in archive.namelist()}
    assert tops == {"featherweight", f"featherweight-{featherweight.__version__}.dist-info"}
    licenses = {Path(name).name for name in archive.namelist() if "/licenses/" in name}
    assert licenses == {"LICENSE", "NOTICE"}


def test_versions_agree(metadata: dict[str, list[str]]) -> None:
    assert metadata["Version"] == [featherweight.__version__]
    newest = re.search(r"^## (\d[^\s]*)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert newest is not None
    assert newest[1] == featherweight.__version__


def test_what_pip_reads(metadata: dict[str, list[str]]) -> None:
    assert metadata["License-Expression"] == ["Apache-2.0"]
    assert set(metadata["Requires-Python"][0].split(",")) == {">=3.10", "<3.14"}
    assert {
        "torch",
        "onnx",
        "openvino",
        "nncf",
        "zstd",
        "timm",
        "text",
        "parquet",
        "detection",
        "video",
        "search",
        "jpeg",
        "serve",
        "demo",
        "all",
        "dev",
    } == set(metadata["Provides-Extra"])


def test_core_needs_no_torch(metadata: dict[str, list[str]]) -> None:
    needed = [Requirement(text) for text in metadata["Requires-Dist"]]
    assert {one.name.lower() for one in needed if one.marker is None} == CORE
    torch = [one for one in needed if one.name == "torch"]
    assert [str(one.specifier) for one in torch] == ["<3,>=2.9"]
    assert all(one.marker is not None for one in torch)


def test_nothing_is_imported_that_no_extra_brings(metadata: dict[str, list[str]]) -> None:
    brought = {Requirement(text).name.lower() for text in metadata["Requires-Dist"]}
    imported: dict[str, Path] = {}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            else:
                continue
            imported.update({name.split(".")[0]: path for name in names})
    foreign = {name: path for name, path in imported.items() if name not in {*sys.stdlib_module_names, "featherweight"}}
    assert {name: path for name, path in foreign.items() if IMPORTED_AS.get(name, name).lower() not in brought} == {}


def test_every_file_names_the_licence() -> None:
    for path in [*PACKAGE.rglob("*.py"), *(ROOT / "tests").rglob("*.py"), *(ROOT / "tools").rglob("*.py")]:
        head = path.read_text(encoding="utf-8").splitlines()[:2]
        assert not head or "# SPDX-License-Identifier: Apache-2.0" in head, path


def python(code: str, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-c", code, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_import_is_quiet_and_brings_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import json, logging, sys, warnings\n"
        "before = set(sys.modules)\n"
        "import featherweight\n"
        "print(json.dumps({'new': sorted(set(sys.modules) - before), 'handlers': len(logging.getLogger().handlers)}))"
    )
    done = python(code, folder=tmp_path)
    assert done.stderr == ""
    found = json.loads(done.stdout)  # and not a word more
    heavy = {"torch", "torchvision", "timm", "transformers", "onnx", "onnxruntime", "openvino", "matplotlib", "sklearn"}
    assert {name.split(".")[0] for name in found["new"]} & heavy == set()
    assert found["handlers"] == 0
    assert list(tmp_path.iterdir()) == []


def test_star_and_names_of_the_package_resolve(tmp_path: Path) -> None:
    code = """
import featherweight
for name in featherweight.__all__:
    getattr(featherweight, name)
assert "load" in dir(featherweight)
"""
    done = python(code, folder=tmp_path)
    assert done.returncode == 0, done.stderr


def test_console_script_is_installed_and_answers() -> None:
    script = Path(sysconfig.get_path("scripts")) / "featherweight"
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert featherweight.__version__ in done.stdout


def test_help_is_quick(tmp_path: Path) -> None:
    """Processor time, the best of five, as a share of what an empty interpreter of this machine takes today."""
    empty, helped = spent("pass", tmp_path), spent("import featherweight.cli as c; c.main(['--help'])", tmp_path)
    assert helped - empty < HELP_SECONDS * max(1.0, empty / 0.02), (empty, helped)


def spent(code: str, folder: Path) -> float:
    def once() -> float:
        start = os.times()
        python(f"try:\n    exec({code!r})\nexcept SystemExit:\n    pass", folder=folder)
        end = os.times()
        return end.children_user + end.children_system - start.children_user - start.children_system

    time.sleep(0)
    return min(once() for _ in range(5))
