# SPDX-License-Identifier: Apache-2.0
"""What the package's own source must not contain: any way from data to code, any check that `-O` would switch off."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import featherweight

ROOT = Path(featherweight.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "imp", "code", "codeop", "pty"}
CALLS = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "os.execv", "tempfile.mktemp", "yaml.load",
    "yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "torch.load", "torch.save", "torch.jit.load",
    "torch.hub.load", "numpy.load", "np.load", "pickle.load", "pickle.loads",
}  # fmt: skip
# file -> what it may do, and why
ALLOWED: dict[str, set[str]] = {}


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def faults(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assert):
            yield f"line {node.lineno}: assert"
        elif isinstance(node, ast.Import):
            for name in node.names:
                if name.name.split(".")[0] in MODULES:
                    yield f"line {node.lineno}: import {name.name}"
        elif isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").split(".")[0] in MODULES:
            yield f"line {node.lineno}: from {node.module}"
        elif isinstance(node, ast.Call):
            if dotted(node.func) in CALLS:
                yield f"line {node.lineno}: {dotted(node.func)}"
            for word in node.keywords:
                constant = word.value.value if isinstance(word.value, ast.Constant) else None
                if word.arg in ("shell", "allow_pickle", "trust_remote_code") and constant is not False:
                    yield f"line {node.lineno}: {word.arg}="
                if word.arg == "weights_only" and constant is not True:
                    yield f"line {node.lineno}: weights_only="
        elif isinstance(node, ast.Attribute) and dotted(node).endswith(("MAX_IMAGE_PIXELS", "LOAD_TRUNCATED_IMAGES")):
            yield f"line {node.lineno}: {node.attr}"
        elif isinstance(node, ast.Name) and node.id in ("eval", "exec"):
            yield f"line {node.lineno}: {node.id}"


@pytest.mark.parametrize("path", FILES, ids=[path.relative_to(ROOT).as_posix() for path in FILES])
def test_data_is_never_code(path: Path) -> None:
    allowed = ALLOWED.get(path.relative_to(ROOT).as_posix(), set())
    assert [fault for fault in faults(path.read_text("utf-8")) if fault.split(": ")[1] not in allowed] == []


@pytest.mark.parametrize(
    "source",
    [
        "assert path", "eval('1')", "run = eval", "import pickle", "from pickle import loads", "import joblib as j",
        "torch.load(p)", "torch.load(p, weights_only=flag)", "np.load(p, allow_pickle=True)", "os.system('x')",
        "subprocess.run(x, shell=True)", "yaml.load(x)", "tempfile.mktemp()", "Image.MAX_IMAGE_PIXELS = None",
        "ImageFile.LOAD_TRUNCATED_IMAGES = True", "AutoModel.from_pretrained(x, trust_remote_code=True)",
    ],
)  # fmt: skip
def test_the_scan_would_see_it(source: str) -> None:
    assert list(faults(source))


def test_only_the_doors_catch_everything() -> None:
    def catches_all(path: Path) -> bool:
        tree = ast.parse(path.read_text("utf-8"))
        kinds = [node.type for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler)]
        return any(kind is None or dotted(kind) in ("Exception", "BaseException") for kind in kinds)

    inside = [path for path in FILES if path.parent.name == "doors" and catches_all(path)]
    assert [path.name for path in inside] == ["__init__.py"]
