# SPDX-License-Identifier: Apache-2.0
"""The command line: a mistake is one line and exit code 2 before any work; every verb works; --help is quick."""

from __future__ import annotations

import io
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import fake_report
import pytest
import tiny_files

from featherweight import cli, console, verbs
from featherweight.console import Screen
from featherweight.errors import CheckFailed
from featherweight.verbs import training

VERBS = ("demo", "train", "compress", "run", "val", "predict", "export", "bench", "report", "list", "info", "doctor")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_files.write(tmp_path_factory.mktemp("cli"))


@pytest.fixture
def here(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, with links to the tiny files."""
    for name in ("model", "run", "pictures", "data"):
        (tmp_path / name).symlink_to(shared / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Said:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def run(here: Path, capfd: pytest.CaptureFixture[str]) -> Any:
    """Call the command line in this process."""

    def call(*tokens: str) -> Said:
        capfd.readouterr()
        code = cli.main(list(tokens))
        out, err = capfd.readouterr()
        return Said(code, out, err)

    return call


TYPOS = [
    (["predct", "model"], "did you mean 'predict'"),
    (["valx"], "did you mean 'val'"),
    (["data", "chek", "x"], "did you mean 'check'"),
    (["val", "--modle", "model"], "did you mean '--model'"),
    (["val", "model", "--dta", "digits"], "did you mean '--data'"),
    (["val", "model", "dta=digits"], "did you mean '--data'"),
    (["val", "model", "--data", "digits", "--part", "tset"], "did you mean 'test'"),
    (["val", "model", "--data", "digts"], "did you mean 'digits'"),
    (["val", "model", "--data", "digits", "--backend", "onnxruntme"], "did you mean 'onnxruntime'"),
    (["predict", "model", "--sorce", "x.png"], "did you mean '--source'"),
    (["predict", "model", "--source", "x.png", "--showtokens"], "did you mean '--show-tokens'"),
    (["train", "vit_digit", "--data", "digits"], "did you mean 'vit_digits'"),
    (["train", "vit_digits", "--data", "digits", "--distil", "hard"], "did you mean '--distill'"),
    (["train", "vit_digits", "--data", "digits", "--distill", "sotf"], "did you mean 'soft'"),
    (["train", "vit_digits", "--data", "digits", "--optimizer", "adam"], "did you mean 'adamw'"),
    (["train", "vit_digits", "--data", "digits", "train.epchs=3"], "did you mean 'epochs'"),
    (["train", "vit_digits", "--data", "digits", "--set", "trian.epochs=3"], "did you mean 'train'"),
    (["compress", "model", "--data", "data", "--max-drp", "1%"], "did you mean '--max-drop'"),
    (["compress", "model", "--data", "data", "--backend", "openvno"], "did you mean 'openvino'"),
    (["export", "model", "--format", "onxx"], "did you mean 'onnx'"),
    (["export", "model", "--quantize", "int9"], "did you mean 'int8'"),
    (["bench", "model", "--bacth", "1"], "did you mean '--batch'"),
    (["list", "modls"], "did you mean 'models'"),
    (["info", "resnet81"], "did you mean 'resnet18'"),
    (["doctor", "--jsn"], "did you mean '--json'"),
    (["run", "dmeo"], "did you mean 'demo'"),
    (["demo", "--quik"], "did you mean '--quick'"),
]


@pytest.mark.parametrize(("tokens", "suggestion"), TYPOS, ids=[" ".join(tokens) for tokens, _ in TYPOS])
def test_a_typo_is_one_line_with_a_suggestion(run: Any, here: Path, tokens: list[str], suggestion: str) -> None:
    said = run(*tokens)
    assert said.code == 2
    assert said.err.count("\n") == 1, said.err
    assert said.err.startswith("✗ ")
    assert suggestion in said.err
    assert "Traceback" not in said.out + said.err
    assert not (here / "runs").exists()


MISTAKES = [
    (["predict"], "--model is missing"),
    (["predict", "model"], "--source is missing"),
    (["predict", "model", "--source"], "--source"),
    (["predict", "model", "extra", "--source", "pictures"], "extra"),
    (["predict", "nowhere.onnx", "--source", "pictures"], "missing"),
    (["predict", "model", "--source", "nope.png"], "nope.png: missing"),
    (["predict", "model", "--source", "pictures/broken.png"], "broken.png"),
    (["predict", "model", "--source", "http://x.org/a.png"], "nothing is downloaded"),
    (["predict", "model", "--source", "pictures", "--top-k", "many"], "--top-k"),
    (["val", "model", "--data", "digits"], "does not know"),
    (["val", "model", "--data", "pictures"], "no images found"),
    (["train", "vit_digits", "--data", "digits", "--epochs", "two"], "--epochs"),
    (["train", "vit_digits", "--data", "digits", "--epochs", "0"], "epochs"),
    (["train", "vit_digits", "--data", "digits", "--distill", "hard"], "needs a teacher"),
    (["train", "vit_digits", "--data", "digits", "--alpha", "0.3"], "alpha"),
    (["train", "model.pth", "--data", "digits"], "missing"),
    (["compress", "model", "--data", "data", "--max-drop", "lots"], "such as 1%"),
    (["compress", "model", "--data", "data", "--target", "fast"], "2x"),
    (["compress", "run/export/model.onnx", "--data", "data"], "torch does not run .onnx"),
    (["demo", "--task", "segmentation"], "Known: classify"),
    (["demo", "detect", "--quick"], "--quick: is of the demo of classifiers"),
    (["demo", "--quick", "--from-scratch"], "--quick"),
    (["run", "pictures"], "config.yaml"),
    (["bench"], "needs a MODEL"),
    (["bench", "model", "--batch", "one"], "such as 1,32"),
    (["report"], "needs a RUN"),
    (["report", "runs/nowhere"], "no such run"),
    (["export", "model", "--quantize", "int8"], "needs --data"),
    (["export", "run"], "--exist-ok"),
    (["val", "model", "--data", "data", "json=perhaps"], "true or false"),
]


@pytest.mark.parametrize(("tokens", "words"), MISTAKES, ids=[" ".join(tokens) for tokens, _ in MISTAKES])
def test_a_mistake_is_one_line(run: Any, here: Path, tokens: list[str], words: str) -> None:
    said = run(*tokens)
    assert said.code == 2
    assert said.err.count("\n") == 1, said.err
    assert words in said.err
    assert not (here / "runs").exists()


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    code = """
import sys
from featherweight.cli import main
code = main(["--help"])
heavy = {"torch", "numpy", "PIL", "onnx", "onnxruntime", "openvino", "timm", "transformers", "rich", "yaml", "jinja2"}
sys.exit(f"imported {heavy & set(sys.modules)}" if heavy & set(sys.modules) else code)
"""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert all(f"  {verb} " in done.stdout for verb in (*VERBS, "data check"))
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert seconds < 1.0, f"{seconds} s of processor time; 0.2 are usual, 0.3 are promised on an idle machine"


def test_every_verb_has_help_and_version(run: Any) -> None:
    assert run("--version").out.strip() == cli.__version__
    assert run().out == run("-h").out == cli.overview() + "\n"
    for verb in VERBS:
        said = run(verb, "--help")
        assert said.code == 0
        assert "Usage: featherweight" in said.out
    assert "--max-bad" in run("data", "check", "--help").out


def test_predict(run: Any) -> None:
    said = run("predict", "run", "--source", "pictures", "--top-k", "2")
    assert said.code == 0
    rows = [line for line in said.out.splitlines() if line.startswith("pictures/")]
    assert [row.split()[0] for row in rows] == [f"pictures/{i}.png" for i in range(3)]
    assert all(row.count("%") == 2 for row in rows)
    assert said.err.startswith("! skipped pictures/broken.png: truncated")
    assert "next    featherweight val run" in said.out


def test_options_may_be_written_as_pairs(run: Any) -> None:
    plain = run("predict", "run", "--source", "pictures/0.png", "--top-k", "2", "-q").out
    assert run("predict", "model=run", "source=pictures/0.png", "top_k=2", "quiet=true").out == plain
    assert run("predict", "-m", "run", "-s", "pictures/0.png", "--top_k=2", "-q").out == plain
    assert run("-q", "predict", "run", "source=pictures/0.png", "top-k=2").out == plain
    assert plain.count("\n") == 1


def test_json_is_all_that_stdout_holds(run: Any) -> None:
    said = run("predict", "run", "--source", "pictures", "--show-tokens", "--json")
    found = json.loads(said.out)
    assert [one["file"] for one in found] == [f"pictures/{i}.png" for i in range(3)]
    assert [sum(stage) for stage in found[0]["kept"]] == [tiny_files.PATCHES // 2]
    assert set(found[0]["answers"][0]) == {"label", "score"}
    assert "pictures/0.png" in said.err


def test_tokens_are_drawn(run: Any) -> None:
    said = run("predict", "run", "--source", "pictures/0.png", "--show-tokens")
    rows = [line.strip() for line in said.out.splitlines() if "█" in line or "··" in line]
    assert len(rows) == 6
    assert sum(row.count("██") for row in rows) == tiny_files.PATCHES // 2


def test_text_files_and_stdin(run: Any, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("predict", "run", "-s", "pictures", "--save-txt", "--name", "mine").code == 0
    stored = sorted((here / "runs" / "mine" / "labels").iterdir())
    assert [path.name for path in stored] == [f"pictures_{i}.txt" for i in range(3)]
    probability, label = stored[0].read_text().splitlines()[0].split()
    assert 0 < float(probability) <= 1
    assert label in tiny_files.CLASSES
    assert "exists already" in run("predict", "run", "-s", "pictures", "--save-txt", "--name", "mine").err

    class Piped:
        buffer = io.BytesIO((here / "pictures" / "0.png").read_bytes())

    monkeypatch.setattr(sys, "stdin", Piped())
    said = run("predict", "run", "--source", "-", "-q")
    assert said.out.split()[1:] == run("predict", "run", "--source", "pictures/0.png", "-q").out.split()[1:]


@pytest.mark.parametrize("model", ["model", "run/export/model.onnx", "run/export/openvino_model.xml"])
def test_val_works_on_everything_alike(run: Any, model: str) -> None:
    said = run("val", model, "--data", "data", "--json")
    assert said.code == 0, said.err
    found = json.loads(said.out)
    assert found["n"] == 14
    assert found["correct"] == EXPECTED.setdefault("correct", found["correct"])
    assert found["interval"][0] <= found["top1"] <= found["interval"][1]
    assert "top-1" in said.err


EXPECTED: dict[str, int] = {}


def test_classes_are_matched_by_name(shared: Path) -> None:
    assert verbs.accuracy.class_places(("b", "a", "c"), ("a", "b")).tolist() == [1, 0]
    assert verbs.accuracy.class_places((), ("a", "b")).tolist() == [0, 1]


def test_bench(run: Any) -> None:
    said = run("bench", "model", "run", "--against", "run", "--batch", "1,2", "--seconds", "0.2", "--json")
    rows = json.loads(said.out)
    assert [(row["model"], row["batch"], row["verdict"] == "baseline") for row in rows] == [
        ("run", 1, True), ("model", 1, False), ("run", 2, True), ("model", 2, False)
    ]  # fmt: skip
    assert {row["runtime"] for row in rows} == {"onnxruntime", "torch eager"}
    assert all(row["median_ms"] > 0 and row["conditions"]["cpu"] for row in rows)


def test_export_checks_and_does_not_overwrite(run: Any, here: Path) -> None:
    said = run("export", "model", "--format", "onnx,openvino", "--data", "data", "--out", "out", "--images", "8")
    assert said.code == 0, said.err
    assert said.out.count("✓") == 2
    assert {path.name for path in (here / "out").iterdir()} >= {"model.onnx", "openvino_model.xml", "parity.json"}
    assert [row["images"] for row in json.loads((here / "out" / "parity.json").read_text())] == [8, 8]
    assert run("predict", "out/model.onnx", "-s", "pictures", "--show-tokens", "-q").code == 0
    assert run("export", "model", "--out", "out").code == 2


def test_a_failed_check_is_exit_code_one(run: Any, monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    from featherweight.export import onnx

    monkeypatch.setattr(onnx, "check", lambda *_, **__: (_ for _ in ()).throw(CheckFailed("does not answer alike")))
    said = run("export", "model", "--out", "out")
    assert (said.code, said.err) == (1, "✗ does not answer alike\n")
    assert not (here / "out" / "model.onnx").exists()


def test_info_doctor_list(run: Any) -> None:
    said = run("info", "model", "--json")
    found = json.loads(said.out)
    assert found["params"] == sum(layer["params"] for layer in found["layers"])
    assert found["classes"] == list(tiny_files.CLASSES)
    assert "█" in said.err
    assert "kept_tokens" in run("info", "run/export/model.onnx").out
    said = run("doctor", "--json")
    assert json.loads(said.out)["packages"]["torch"]
    assert "offline" in said.err
    for what, word in (("models", "vit_digits"), ("methods", "prune"), ("data", "digits")):
        assert word in run("list", what).out
    assert json.loads(run("list", "--json").out)[0]["name"]


def test_data_check(run: Any, here: Path) -> None:
    said = run("data", "check", "data")
    assert said.code == 0
    assert "7 classes, 28 train / 14 val" in said.out
    broken = here / "bad" / "a"
    broken.mkdir(parents=True)
    (here / "bad" / "b").mkdir()
    for number in range(3):
        for name in "ab":
            (here / "bad" / name / f"{number}.png").write_bytes((here / "pictures" / f"{number}.png").read_bytes())
    (broken / "half.png").write_bytes((here / "pictures" / "0.png").read_bytes()[:100])
    said = run("data", "check", "bad")
    assert said.code == 1
    assert "✗ a/half.png: truncated" in said.out
    assert "1 of 7 files cannot be used" in said.err
    assert run("data", "check", "bad", "--max-bad", "0.5").code == 0


def test_report_is_rebuilt_and_runs_are_compared(run: Any, here: Path) -> None:
    for number in range(2):
        (here / f"r{number}").mkdir()
        (here / f"r{number}" / "report.json").write_text(json.dumps(fake_report.fake(seed=number).to_dict()))
    assert run("report", "r0").code == 0
    assert (here / "r0" / "report.html").exists()
    said = run("report", "r0", "r1", "--out", "both")
    assert said.code == 0
    assert "both/compare.html" in said.out
    assert (here / "both" / "compare.html").exists()


def test_train_makes_a_run_that_is_used_and_goes_on(run: Any, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "MEASURED_WITH", ("a package nobody has",))
    config = "model.config={embed_dim: 16, depth: 1, num_heads: 2, image_size: [24, 24]}"
    said = run("train", "vit_digits", "--data", "data", "--epochs", "2", "-b", "14", "--name", "mine", config)
    assert said.code == 0, said.err
    assert said.err.startswith("! no report: it compares runtimes")
    assert "\r" not in said.out
    rows = [line.split() for line in said.out.splitlines() if line.split()[:1] in (["1/2"], ["2/2"])]
    assert [row[0] for row in rows if len(row) > 2] == ["1/2", "2/2"]
    assert (here / "runs" / "mine" / "model" / "model.json").exists()
    assert run("val", "runs/latest", "--data", "data").code == 0
    again = run("run", "runs/mine")
    assert again.code == 0, again.err
    assert "found as it was left" in again.out


def test_train_with_a_teacher_is_a_recipe() -> None:
    made = training.training_recipe(
        "vit_digits", "digits", teacher="resnet_digits", distill="token", alpha=0.3, lr=1e-3
    )
    assert made["teacher"] == {"name": "resnet_digits", "weights": "shipped"}
    assert made["train"] == {"lr": 1e-3}
    assert {"distill": {"how": "token", "distance": "hard", "alpha": 0.3}} in made["steps"]
    from featherweight.recipe import parse

    assert parse(made, "options").train.lr == 1e-3


def test_compress_hands_everything_over(run: Any, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from featherweight import runs

    seen: dict[str, Any] = {}

    def compress(model: str, data: str, **options: Any) -> None:
        seen.update(options, model=model, data=data)
        raise CheckFailed("target 9x was missed: 2.00x")

    monkeypatch.setattr(runs, "compress", compress)
    said = run("compress", "run", "data=data", "--max-drop", "2%", "target=9x", "prune.mlp=0.4", "--seed", "3")
    assert (said.code, said.err) == (1, "✗ target 9x was missed: 2.00x\n")
    assert (seen["max_drop"], seen["target"], seen["data"]) == ("2%", "9x", "data")
    assert seen["overrides"] == ["seed=3", "prune.mlp=0.4"]
    assert Path(seen["model"]).name == "model"
    assert seen["name"].startswith("compress-data-")


def test_demo_is_the_recipe_of_that_name(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from featherweight import runs

    seen: list[Any] = []
    monkeypatch.setattr(runs, "run", lambda plan, **options: seen.append(plan))
    assert run("demo", "train.epochs=7").code == 0
    assert run("demo", "--from-scratch").code == 0
    assert run("demo", "detect").code == 0
    assert [plan.name for plan in seen] == ["demo", "demo_from_scratch", "demo_detect"]
    assert seen[0].train.epochs == 7


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def val(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(verbs, "val", val)


def test_an_error_nobody_foresaw_is_four_lines_and_a_file(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, RuntimeError("a\x1b[31mb"))
    said = run("val", "model", "--data", "data")
    assert said.code == 1
    assert said.err.count("\n") == 4
    assert "\x1b" not in said.err
    path = Path(next(word for word in said.err.split() if word.endswith(".log")))
    text = path.read_text()
    path.unlink()
    assert "Traceback" in text
    assert "RuntimeError" in text
    assert "Traceback" not in said.err
    assert "Traceback" in run("val", "model", "--data", "data", "--debug").err


def test_an_interruption_is_130(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from featherweight import runs
    from featherweight.interrupt import Interrupted

    failing(monkeypatch, KeyboardInterrupt())
    assert run("val", "model", "--data", "data").code == 130
    monkeypatch.setattr(runs, "run", lambda *_, **__: (_ for _ in ()).throw(Interrupted("stopped by SIGINT")))
    said = run("demo", "--name", "mine")
    assert said.code == 130
    assert "featherweight run runs/mine" in said.err


def test_a_missing_extra_is_one_line(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, ModuleNotFoundError("No module named 'openvino'", name="openvino"))
    said = run("val", "model", "--data", "data")
    assert (said.code, said.err.count("\n")) == (2, 1)
    assert "pip install 'featherweight[openvino]'" in said.err


def test_a_reader_that_goes_away_is_no_crash(shared: Path) -> None:
    command = f"{sys.executable} -m featherweight list data | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, cwd=shared)
    assert "Traceback" not in done.stderr
    assert "stopped by an error" not in done.stderr


EVENTS: list[dict[str, Any]] = [
    {"event": "start", "name": "x"},
    {
        "event": "data",
        "name": "digits",
        "format": "digits",
        "classes": 10,
        "counts": {"train": 8, "val": 4},
        "skipped": 1,
    },
    {"event": "step", "name": "train", "number": 0, "of": 2},
    {"event": "train", "epochs": 2, "steps": 2},
    {"event": "step", "epoch": 0, "step": 1, "loss": 2.0, "progress": 0.25, "images_per_s": 100.0},
    {"event": "step", "epoch": 0, "step": 2, "loss": 1.5, "progress": 0.5, "images_per_s": 100.0},
    {"event": "epoch", "epoch": 0, "step": 2, "loss": 1.75, "validation": {"top1": 0.5}, "best": 0.5},
    {"event": "stage", "title": "trained\x1b[2J", "parameters": 1_000_000},
    {"event": "judged", "title": "prune", "kept": False, "reason": "not faster here: 1.02×"},
    {"event": "unknown", "more": 1},
]


def test_progress_in_a_log_is_plain_lines() -> None:
    stream = io.StringIO()
    progress = console.Progress(stream)
    for event in EVENTS:
        progress.take(event)
    text = stream.getvalue()
    assert "\r" not in text
    assert "\x1b" not in text
    lines = text.splitlines()
    assert len(lines) == 6
    assert lines[3].split()[:4] == ["1/2", "1.750", "50.0", "50.0"]
    assert "✗" in lines[5]


def test_progress_on_a_terminal_is_one_live_line_that_collapses(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    stream, now = Terminal(), iter(range(1000))
    progress = console.Progress(stream, clock=lambda: float(next(now)))
    for event in EVENTS[3:7]:
        progress.take(event)
    text = stream.getvalue()
    assert "2.000" in text  # the live line
    assert "1.750" in text.splitlines()[-1]
    assert progress.line is None


def test_quiet_shows_no_progress(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen(quiet=True)
    for event in EVENTS:
        screen.progress(event)
    screen.say("words")
    screen.next("featherweight")
    assert capsys.readouterr().out == ""


def test_colors_only_on_a_terminal_that_wants_them(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert console.paint("x", "31", Terminal()) == "\x1b[31mx\x1b[0m"
    assert console.paint("x", "31", io.StringIO()) == "x"
    monkeypatch.setenv("NO_COLOR", "1")
    assert console.paint("x", "31", Terminal()) == "x"


def test_python_dash_m(shared: Path) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "featherweight", "predct"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=shared)
    assert done.returncode == 2
    assert "did you mean 'predict'" in done.stderr
