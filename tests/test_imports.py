# SPDX-License-Identifier: Apache-2.0
"""The house's arrows: who may import whom, and who may touch torch, read off the source without running it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "featherweight"

# A line may import from the lines above it and from itself. A name is a module or a folder of the package.
HOUSE = (
    ("errors",),
    ("files", "composition"),
    ("doors",),
    ("coding",),
    ("runtime",),
    ("scores",),
    ("surgery", "modes"),
    ("layers", "convs", "recurrence"),
    ("models",),
    ("anatomy",),
    ("data",),
    ("tasks",),
    (
        "train",
        "method",
        "optim",
        "schedules",
        "checkpoint",
        "packing",
        "distributed",
        "sharding",
        "answers",
        "interrupt",
        "journal",
        "options",
        "randomness",
    ),
    ("methods",),
    ("interchange", "artifact", "official", "official_names", "official_yolo", "official_yolo_rows"),
    ("export",),
    (
        "measure",
        "landscape",
        "latency",
        "sessions",
        "floors",
        "roofline",
        "macs_of_file",
        "layer_times",
        "bench_plot",
        "layer_race",
        "counting",
        "report",
        "compare",
        "page",
        "tables",
        "accuracies",
        "plots",
        "detection_plots",
        "drawing",
        "prune_plots",
        "costs",
        "pareto",
        "token_maps",
    ),
    (
        "recipe",
        "binding",
        "overrides",
        "vetting",
        "budget",
        "sources",
        "runners",
        "runners_torch",
        "runners_file",
        "runners_detection",
        "tokenizer",
        "hub",
        "runners_text",
        "runners_transformers",
        "runs",
        "run_folder",
        "keys",
        "work",
        "steps",
        "steps_finetune",
        "steps_detection",
        "detecting",
        "outlines_text",
        "teaching_text",
        "texting",
        "steps_text",
        "steps_recursion",
        "steps_factors",
        "steps_labels",
        "steps_tokens",
        "steps_prune",
        "outlines_prune",
        "steps_quantize",
        "steps_distill",
        "steps_together",
        "explain",
        "outlines",
        "steps_share",
        "fitting",
        "beginning",
        "judge",
        "deploy",
        "deploy_detection",
        "deploy_text",
        "story_text",
        "story",
        "story_detection",
    ),
    (
        "pictures",
        "videos",
        "boxes_over",
        "pipelines",
        "pipelines_detection",
        "pipelines_detection_usual",
        "pipelines_usual",
        "texts",
        "pipelines_text",
        "pipelines_questions",
        "verbs",
        "serving",
        "search",
        "cli",
        "cli_run",
        "cli_serve",
        "cli_fit",
        "cli_use",
        "cli_bench",
        "fresh",
        "cli_text",
        "cli_predict",
        "cli_look",
        "cli_data",
        "cli_convert",
        "cli_plot",
        "cli_explain",
        "cli_options",
        "console",
    ),
)
NEVER = {("methods", "models")}  # the proof that a method works on your model
TORCH = {"torch", "torchvision", "timm", "transformers"}
WITHOUT_TORCH = ("errors", "files", "doors", "coding", "runtime", "scores")  # not even inside a function
TORCH_IN_FUNCTIONS = ("__init__", "__main__", "pipelines", "measure", "report", "cli")  # their imports' imports too
LATE = TORCH - {"torch"} | {"sklearn", "skimage", "pyarrow", "matplotlib", "jinja2", "onnxruntime", "openvino", "nncf"}
ONLY_HERE = {"onnx": "export", "onnxscript": "export"}  # at the top of a file; inside a function anywhere


@dataclass(frozen=True)
class Import:
    source: str  # dotted, without the package's name: "data.digits"; "" is the package itself
    target: str  # "featherweight.doors.image", "torch.nn"
    line: int
    late: bool  # inside a function
    typing: bool  # under TYPE_CHECKING

    @property
    def outside(self) -> str:
        """The other package, or nothing."""
        head = self.target.split(".")[0]
        return "" if head == "featherweight" else head

    def __str__(self) -> str:
        return f"{self.source or '__init__'} line {self.line}: {self.target}"


def modules(package: Path) -> dict[str, Path]:
    """Dotted name without the package's own -> file."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(package: Path) -> list[Import]:
    known = modules(package)
    found: list[Import] = []
    for name, path in known.items():
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
        inside = path.name == "__init__.py"
        for node, late, typing in walk(tree):
            for target in targets(node, name, inside, known):
                found.append(Import(name, target, getattr(node, "lineno", 0), late, typing))
    return found


def walk(node: ast.AST, late: bool = False, typing: bool = False) -> Iterator[tuple[ast.AST, bool, bool]]:
    for child in ast.iter_child_nodes(node):
        yield child, late, typing
        deeper = late or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        hints = typing or (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test))
        yield from walk(child, deeper, hints)


def targets(node: ast.AST, name: str, inside: bool, known: dict[str, Path]) -> Iterator[str]:
    """Every module this node imports, in full."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            home = ["featherweight", *name.split(".")] if name else ["featherweight"]
            up = home[: len(home) - node.level + inside]
            base = ".".join([*up, *([node.module] if node.module else [])])
        for alias in node.names:
            full = f"{base}.{alias.name}"
            yield full if full.removeprefix("featherweight.") in known or base == "featherweight" else base
    elif isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "featherweight":
        yield f"featherweight.{node.attr}"
    elif isinstance(node, ast.Call) and called(node.func) in ("import_module", "__import__"):
        first = node.args[0] if node.args else None
        yield str(first.value) if isinstance(first, ast.Constant) else f"? {ast.unparse(node)}"


def called(function: ast.expr) -> str:
    """The last name of a dotted expression."""
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def violations(package: Path) -> list[str]:
    every = imports(package)
    return list(dict.fromkeys([*misplaced(package), *wrong_arrows(every), *wrong_torch(every), *too_early(every)]))


def misplaced(package: Path) -> list[str]:
    rooms = {room for line in HOUSE for room in line} | {"__init__", "__main__"}
    tops = {(name or "__init__").split(".")[0] for name in modules(package)}
    return [f"{name}: has no line in the house; give it one, or put it into a folder" for name in sorted(tops - rooms)]


def wrong_arrows(every: list[Import]) -> list[str]:
    place = {room: number for number, line in enumerate(HOUSE) for room in line}
    found = []
    for one in every:
        here = one.source.split(".")[0]
        if one.outside.startswith("?") and one.source:  # the package itself looks names up in its own table
            found.append(f"{one}: a module named by a variable")
        if one.outside or here not in place:
            continue
        room = one.target.removeprefix("featherweight").removeprefix(".").split(".")[0]
        if room in ("", "__version__") or one.typing:
            continue
        if room not in place or place[room] > place[here] or (here, room) in NEVER:
            found.append(f"{one}: {here} may not import {room or 'the package itself'}")
    return found


def wrong_torch(every: list[Import]) -> list[str]:
    found = [
        f"{one}: {one.source.split('.')[0]} must work without torch"
        for one in every
        if one.source.split(".")[0] in WITHOUT_TORCH and one.outside in TORCH and not one.typing
    ]
    for start in TORCH_IN_FUNCTIONS:
        for one, way in reached("" if start == "__init__" else start, every):
            if one.outside in TORCH:
                found.append(f"{one}: torch without a call, by {' -> '.join(way)}")
    return found


def reached(start: str, every: list[Import]) -> Iterator[tuple[Import, list[str]]]:
    """What importing `start` imports, and by which way."""
    ways = {start: [start or "__init__"]}
    queue = [start]
    while queue:
        here = queue.pop()
        for one in every:
            if one.source != here or one.late or one.typing:
                continue
            yield one, ways[here]
            steps = one.target.split(".")[1:] if not one.outside else []
            for depth in range(1, len(steps) + 1):  # importing a.b.c runs a and a.b first
                name = ".".join(steps[:depth])
                if name not in ways:
                    ways[name] = [*ways[here], name]
                    queue.append(name)


def too_early(every: list[Import]) -> list[str]:
    found = []
    for one in every:
        room = one.source.split(".")[0]
        if one.late or one.typing:
            continue
        if one.outside in LATE or (one.outside in ONLY_HERE and ONLY_HERE[one.outside] != room):
            found.append(f"{one}: only inside the function that needs it")
        if room == "errors" and one.outside in ("numpy", "PIL", "yaml"):
            found.append(f"{one}: errors needs the standard library only")
    return found


def test_every_arrow_points_up() -> None:
    assert violations(PACKAGE) == []


def test_methods_and_models_were_looked_at() -> None:
    seen = modules(PACKAGE)
    assert {"methods.deit", "models.vit", "runtime.session", "doors.image", "train"} <= set(seen)
    assert any(one.outside == "torch" for one in imports(PACKAGE))


@pytest.mark.parametrize(
    ("file", "text", "complaint"),
    [
        ("doors/image.py", "from featherweight.surgery import apply", "doors may not import surgery"),
        ("doors/image.py", "from .. import surgery", "doors may not import surgery"),
        ("doors/image.py", "def read():\n    import torch", "doors must work without torch"),
        (
            "runtime/session.py",
            "from importlib import import_module\nimport_module('torch')",
            "must work without torch",
        ),
        ("runtime/session.py", "import importlib\nimportlib.import_module(name)", "named by a variable"),
        ("runtime/session.py", "import onnxruntime", "only inside the function"),
        ("methods/deit.py", "from ..models import vit", "methods may not import models"),
        ("methods/deit.py", "def f():\n    from featherweight.models.vit import ViT", "methods may not import models"),
        ("methods/deit.py", "from featherweight import pipeline", "methods may not import pipeline"),
        ("methods/deit.py", "import featherweight\nfeatherweight.load('x')", "methods may not import load"),
        ("surgery.py", "from . import methods", "surgery may not import methods"),
        ("report.py", "import torch", "torch without a call, by report"),
        ("cli.py", "from featherweight import surgery", "torch without a call, by cli -> surgery"),
        ("cli.py", "from featherweight.models.vit import ViT", "torch without a call, by cli -> models"),
        ("cli.py", "try:\n    import timm\nexcept ImportError:\n    pass", "only inside the function"),
        ("measure.py", "import onnx", "only inside the function"),
        ("helpers.py", "", "has no line in the house"),
    ],
)
def test_a_wrong_import_is_found(tmp_path: Path, file: str, text: str, complaint: str) -> None:
    house = {"__init__.py": "", "surgery.py": "import torch", "models/__init__.py": "import torch", "models/vit.py": ""}
    for name, content in {**house, file: text}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    assert any(complaint in found for found in violations(tmp_path)), violations(tmp_path)


def test_what_is_allowed_is_let_through(tmp_path: Path) -> None:
    allowed = {
        "__init__.py": "def __getattr__(name):\n    from featherweight import recipe\n    return recipe",
        "cli.py": "from featherweight import __version__\ndef run():\n    import torch\n    from .recipe import run",
        "measure.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch",
        "recipe.py": "import torch\nfrom . import methods, models\nfrom .methods.deit import plan",
        "methods/__init__.py": "",
        "methods/deit.py": "from ..surgery import apply\nfrom .distill import hard",
        "methods/distill.py": "from torch import nn",
        "models/__init__.py": "",
        "surgery.py": "import torch",
        "export/onnx.py": "import onnx\nimport featherweight\nprint(featherweight.__version__)",
    }
    for name, content in allowed.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    assert violations(tmp_path) == []
