# SPDX-License-Identifier: Apache-2.0
"""The docs are true: their commands and their Python run, their links lead somewhere, both READMEs say the same.

What they do is real, at a tiny scale: a few dozen pictures, one epoch, a model of a few thousand weights, short races.
"""

from __future__ import annotations

import functools
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from fake_report import fake
from PIL import Image
from scripts import tool

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
CARDS = sorted((DOCS / "methods").glob("*.md"))
TEXTS = [*sorted(ROOT.glob("README*.md")), ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md"))]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ELSEWHERE = ("pip", "make")  # commands that set a machine up: `make demo` and `make test` are run by themselves
LONG = ("featherweight demo",)  # has tests of its own
MAY_MISS = ("compress",)  # at this scale nothing gets twice as fast
TINY = {"n_train": 96, "n_val": 32, "n_test": 32}


@dataclass(frozen=True)
class Block:
    kind: str
    text: str

    def commands(self) -> list[str]:
        joined = self.text.replace("\\\n", " ")
        joined = re.sub(r"^\$ torchrun .* -m featherweight", "$ featherweight", joined, flags=re.MULTILINE)
        return [line[2:].split("  #")[0].strip() for line in joined.splitlines() if line.startswith("$ ")]


def blocks(path: Path) -> list[Block]:
    return [Block(kind, text) for kind, text in FENCE.findall(path.read_text(encoding="utf-8"))]


def module(name: str) -> dict[str, Any]:
    """The names of a new module that is registered, as dataclasses want theirs to be."""
    sys.modules[name] = ModuleType(name)
    return sys.modules[name].__dict__


@pytest.fixture
def small_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder with a few pictures, and everything that takes long made short."""
    import torch

    from featherweight import data, fitting, measure, train
    from featherweight.models import zoo
    from featherweight.runtime import session

    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    for name, config in {
        "vit_digits": {"patch_size": 12, "embed_dim": 24, "depth": 4, "stem": "patch"},
        "resnet_digits": {"widths": (8, 8, 16)},
    }.items():
        entry = zoo.ZOO[name]
        monkeypatch.setitem(zoo.ZOO, name, replace(entry, config={**entry.config, **config}))
    fit = functools.wraps(train.fit)(lambda *args, **options: train_fit(*args, **{**options, "epochs": 1}))
    train_fit = train.fit
    monkeypatch.setattr(train, "fit", fit)
    monkeypatch.setattr(fitting, "fit", fit)
    load = data.load
    monkeypatch.setattr(data, "load", lambda source, **options: load(source, **few(source, options)))
    race = measure.race
    monkeypatch.setattr(
        measure, "race", lambda models, **options: race(models, **{**options, "repeats": 6, "budget_s": 0.1})
    )
    monkeypatch.setattr(measure, "available_threads", lambda: 1)
    monkeypatch.setattr(session, "available_threads", lambda: 1)
    torch.set_num_threads(1)
    draw(tmp_path)
    yield tmp_path
    torch.set_num_threads(threads)


def few(source: object, options: dict[str, Any]) -> dict[str, Any]:
    return {**options, **TINY} if source == "digits" else options


def draw(folder: Path) -> None:
    """three.png, photos/ with two classes, and broken.png."""
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / "photos" / name).mkdir(parents=True)
        for number in range(6):
            Image.fromarray(rng.integers(0, 255, (40, 60, 3), np.uint8)).save(
                folder / "photos" / name / f"{number}.png"
            )
    Image.fromarray(rng.integers(0, 255, (48, 48, 3), np.uint8)).save(folder / "three.png")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing more")


def typed(command: str) -> int:
    """Run a command of ours in this process; the exit code."""
    from featherweight import cli

    words = shlex.split(command)
    assert words[0] == "featherweight", command
    return cli.main(words[1:])


def follow(path: Path, folder: Path, *, only: tuple[str, ...] = ("console", "python", "yaml")) -> list[str]:
    """Do what a page says, from top to bottom; the commands that were run."""
    names = module(f"page_{path.stem}")
    done = []
    for block in blocks(path):
        if block.kind == "yaml" and (found := re.match(r"# (\S+\.yaml)\n", block.text)):
            (folder / found[1]).write_text(block.text, encoding="utf-8")
        elif block.kind == "python" and "python" in only:
            exec(compile(block.text, f"{path.name}", "exec"), names)  # noqa: S102  our own page
        elif block.kind == "console" and "console" in only:
            for command in block.commands():
                if command.split()[0] in ELSEWHERE or command in LONG:
                    continue
                code = typed(command)
                expected = {2} if "broken.png" in command else {0, 1} if command.split()[1] in MAY_MISS else {0}
                assert code in expected, f"{path.name}: {command}: exit code {code}"
                done.append(command)
    return done


def make_first(folder: Path) -> None:
    """runs/first with an untrained model in it."""
    from featherweight import artifact
    from featherweight.models import zoo

    digits, preprocess = "0123456789", zoo.entry("vit_digits").preprocess
    artifact.save(zoo.create("vit_digits"), folder / "runs/first/model", classes=tuple(digits), preprocess=preprocess)


def test_quick_start_runs(small_world: Path) -> None:
    done = follow(DOCS / "quickstart.md", small_world)
    verbs = {command.split()[1] for command in done}
    assert {"train", "predict", "val", "compress", "export", "bench", "report", "run", "data", "info"} <= verbs


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md"])
def test_readme_python_runs(small_world: Path, name: str) -> None:
    assert any(block.kind == "python" for block in blocks(ROOT / name))
    make_first(small_world)
    follow(ROOT / name, small_world, only=("python",))


@pytest.mark.parametrize("card", CARDS, ids=lambda path: path.stem)
def test_card_python_runs(small_world: Path, card: Path) -> None:
    assert any(block.kind == "python" for block in blocks(card))
    follow(card, small_world, only=("python",))


@pytest.mark.parametrize(
    "name",
    ["house", "formats", "models", "training", "composition", "detection_data", "text", "serve", "fit", "device"],
)
def test_page_python_runs(small_world: Path, name: str) -> None:
    assert any(block.kind == "python" for block in blocks(DOCS / f"{name}.md"))
    follow(DOCS / f"{name}.md", small_world, only=("python",))


def test_house_example_is_a_method(small_world: Path) -> None:
    import torch

    from featherweight.data import Batches, load
    from featherweight.models import zoo
    from featherweight.tasks.classification import Classification
    from featherweight.train import fit

    names = module("page_house")
    (example,) = (block for block in blocks(DOCS / "house.md") if block.kind == "python")
    exec(compile(example.text, "house.md", "exec"), names)  # noqa: S102
    digits = load("digits")
    batches = Batches(digits.train, zoo.entry("vit_digits").preprocess, batch_size=32)
    terms: list[dict[str, float]] = []

    def log(row: dict[str, Any]) -> None:
        terms.append(row.get("terms", {}))

    torch.manual_seed(0)
    fit(zoo.create("vit_digits"), batches, Classification(digits.classes), methods=[names["Confident"](0.1)], log=log)
    assert any("entropy" in row for row in terms)


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_recipes_in_the_text_are_accepted(path: Path) -> None:
    from featherweight import recipe

    for block in blocks(path):
        if block.kind == "yaml":
            plan = recipe.parse(block.text, path.name, partial="\nmodel:" not in block.text)
            assert recipe.plain(recipe.parse(recipe.plain(plan), "again", partial=True)) == recipe.plain(plan)


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_every_option_that_is_shown_exists(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands are parsed to the end, and not carried out."""
    from featherweight import cli

    monkeypatch.chdir(tmp_path)
    for block in blocks(path):
        for command in block.commands() if block.kind == "console" else []:
            if command.split()[0] in ELSEWHERE:
                continue
            app, (_, words) = cli.build(), cli._screen(shlex.split(command)[1:])
            command_, bound, _ = app.parse_args(cli._rewritten(words, app), print_error=False, exit_on_error=False)
            assert callable(command_) and bound.signature.parameters.keys() >= bound.arguments.keys(), command


def test_a_wrong_option_in_the_text_would_be_found() -> None:
    from featherweight import cli
    from featherweight.errors import OptionError

    app = cli.build()
    with pytest.raises(OptionError, match="did you mean '--data'"):
        cli._rewritten(shlex.split("train vit_digits --dta digits"), app)


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    found = [*re.findall(r"\]\(([^)\s]+)\)", text), *re.findall(r'(?:src|srcset)="([^"]+)"', text)]
    for link in found:
        if not link.startswith(("https://", "#", "data:")):
            assert (path.parent / link.split("#")[0]).exists(), f"{path.name}: {link}"


def shape(path: Path) -> list[str]:
    """Levels of headings, blocks of code without their comments, links and generated blocks, in their order."""
    text = path.read_text(encoding="utf-8")
    found = []
    pattern = r"^(#+) |^```(\w+)\n(.*?)^```$|(?<=\]\()([^)]+)(?=\))|<!-- (measured:\w+ ?\w*)"
    for heading, kind, code, link, block in re.findall(pattern, text, re.MULTILINE | re.DOTALL):
        if kind == "text":
            code = re.sub(r"(\S)\s{2,}\S.*", r"\1", code)
        found.append(heading or (kind and f"{kind}: {uncommented(code)}") or link or block)
    return found


def uncommented(code: str) -> str:
    lines = (re.sub(r"\s*#.*", "", line).rstrip() for line in code.splitlines())
    return "\n".join(line for line in lines if line)


def test_both_readmes_say_the_same() -> None:
    english, chinese = shape(ROOT / "README.md"), shape(ROOT / "README.zh-CN.md")
    assert english == chinese
    assert len([one for one in english if one.startswith("console")]) >= 5


def test_every_card_is_in_the_list_of_methods() -> None:
    listed = re.findall(r"\(methods/(\w+)\.md\)", (ROOT / "docs" / "methods.md").read_text(encoding="utf-8"))
    assert sorted(listed) == sorted(path.stem for path in (ROOT / "docs" / "methods").glob("*.md"))


def test_the_chinese_readme_is_chinese() -> None:
    text = (ROOT / "README.zh-CN.md").read_text(encoding="utf-8")
    prose = re.sub(r"```.*?```|<!-- measured:begin.*?measured:end -->|`[^`]*`", "", text, flags=re.DOTALL)
    paragraphs = [
        part for part in prose.split("\n\n") if len(part) > 40 and "](" not in part and "<picture" not in part
    ]
    assert paragraphs
    for paragraph in paragraphs:
        assert len(re.findall(r"[\u4e00-\u9fff]", paragraph)) > len(paragraph) / 3, paragraph


@pytest.mark.parametrize("card", CARDS, ids=lambda path: path.stem)
def test_card_opens_with_what_was_measured(card: Path) -> None:
    lines = [line for line in card.read_text(encoding="utf-8").splitlines() if line]
    assert lines[0].startswith("# ")
    assert lines[1] == "## What we measured"
    assert lines[2].startswith("<!-- measured:begin ")


def test_every_method_has_a_card() -> None:
    from featherweight import methods

    assert set(methods.__all__) == {path.stem for path in CARDS}


def test_tables_say_what_the_source_says() -> None:
    assert tool("fill_reference").main(["--check"]) == 0, "run: python tools/fill_reference.py"


def test_numbers_are_those_of_the_stored_reports() -> None:
    assert tool("fill_measured").main(["--check"]) == 0, "run: python tools/fill_measured.py"


def test_filling_in_measured_numbers(tmp_path: Path) -> None:
    from featherweight import report

    measured = tool("fill_measured")
    for seed in (0, 1, 2):
        report.write(fake(seed=seed), tmp_path / "runs" / str(seed))
    texts: dict[str, Callable[[], str]] = {}
    for name, block in {
        "README.md": "demo picture",
        "docs/table.md": "demo table",
        "docs/methods/tokens.md": "demo stage tokens",
        "docs/other.md": "other table",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            f"before\n<!-- measured:begin {block} -->\nold\n<!-- measured:end -->\nafter\n", encoding="utf-8"
        )
        texts[name] = functools.partial(path.read_text, encoding="utf-8")
    runs = ",".join(str(tmp_path / "runs" / str(seed)) for seed in (0, 1, 2))
    assert measured.main([f"demo={runs}"], tmp_path) == 0
    assert "docs/pareto.svg" in texts["README.md"]()
    assert "Some Processor 9000" in texts["README.md"]()
    assert (tmp_path / "docs" / "pareto.svg").read_bytes().startswith(b"<")
    assert "not faster here: 0.99×" in texts["docs/table.md"]()
    assert "over 3 seeds" in texts["docs/table.md"]()
    card = texts["docs/methods/tokens.md"]()
    assert "tokens (keep 0.7)" in card
    assert "old" not in card
    assert card.startswith("before\n")
    assert card.endswith("after\n")
    assert "old" in texts["docs/other.md"]()
    assert measured.main(["--check"], tmp_path) == 0
    stored = (tmp_path / "docs" / "measured" / "demo-0.json").read_text(encoding="utf-8")
    assert "base64" not in stored
    assert len(stored) < 300_000
    page = tmp_path / "docs" / "table.md"
    page.write_text(texts["docs/table.md"]().replace("not faster", "much faster"), encoding="utf-8")
    assert measured.main(["--check"], tmp_path) == 1


def test_filling_in_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    from featherweight import report

    report.write(fake(), tmp_path / "run")
    measured = tool("fill_measured")
    for block, complaint in (("demo stage nowhere", "has 'nowhere' in its name"), ("demo painting", "no 'painting'")):
        (tmp_path / "README.md").write_text(
            f"<!-- measured:begin {block} -->\n<!-- measured:end -->\n", encoding="utf-8"
        )
        with pytest.raises(SystemExit, match=complaint):
            measured.main([f"demo={tmp_path / 'run'}"], tmp_path)
    with pytest.raises(SystemExit, match="is not NAME=RUN"):
        measured.main(["runs/demo"], tmp_path)
