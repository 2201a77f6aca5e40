# SPDX-License-Identifier: Apache-2.0
"""ask and push: what they print, what they refuse, and that nothing goes out by itself."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_text

from featherweight import artifact, cli, hub
from featherweight.errors import FeatherweightError, InputError, OptionError
from featherweight.models import pretrained
from featherweight.tokenizer import open_tokens

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    tokens = open_tokens(tiny_text.tokenizer(transformers))
    for name, kind in (("sentiment", "BertForSequenceClassification"), ("answers", "BertForQuestionAnswering")):
        artifact.save(pretrained.with_tokens(tiny_text.model(transformers, kind=kind), tokens), folder / name)
    return folder


def test_ask_for_sentiment(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "texts.txt").write_text("the old tower\n\n北京\n", encoding="utf-8")
    asked = ["ask", str(models / "sentiment"), "--text", "king", "--source", str(tmp_path / "texts.txt")]
    assert cli.main([*asked, "--top-k", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("   ")[0] for line in lines] == ["king", "the old tower", "北京"]
    assert all(line.count("LABEL_") == 2 and line.count(" %") == 2 for line in lines)
    assert cli.main([*asked, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [list(one) for one in found] == [["text", "answers"]] * 3


def test_ask_a_question(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "context.txt").write_text(tiny_text.CHINA, encoding="utf-8")
    for context in (str(tmp_path / "context.txt"), tiny_text.CHINA):
        asked = ["ask", str(models / "answers"), "--question", tiny_text.WHERE, "--context", context]
        assert cli.main(asked) == 0
        assert "在长江的" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "--text: is missing"),
        (("--question", "who?"), "goes with --context"),
        (("--text", "a", "--question", "who?", "--context", "b"), "neither --text nor --source"),
        (("--source", "latin.txt"), "encoding"),
        (("--source", "nowhere.txt"), "nowhere.txt"),
        (("--question", "who?", "--context", "king"), "made for 'text-classification'"),
        (("--text", "a " * 200), "truncation"),
    ],
    ids=str,
)
def test_a_wrong_question_is_one_line(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...], said: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("latin.txt").write_bytes("café".encode("latin-1"))
    assert cli.main(["ask", str(models / "sentiment"), *words]) == 2
    error = capsys.readouterr().err.strip()
    assert said in error and "\n" not in error


def test_predict_is_for_pictures(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["predict", str(models / "sentiment"), "--source", "photo.png"]) == 2
    assert "featherweight ask" in capsys.readouterr().err


def test_ask_fetches_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["ask", "somebody/model", "--text", "king"]) == 2
    assert "nothing is fetched" in capsys.readouterr().err


def test_push_offline_says_so(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["push", str(models / "sentiment"), "somebody/model"]) == 1
    error = capsys.readouterr().err.strip()
    assert "was not pushed, and the hub cannot be reached or refuses" in error and "\n" not in error


def test_push_sends_a_model_and_nothing_else(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, Any] = {}

    class Api:
        def __init__(self, token: str | None = None) -> None:
            told["token"] = token

        def create_repo(self, name: str, **options: Any) -> None:
            told["created"] = (name, options)

        def upload_folder(self, **options: Any) -> SimpleNamespace:
            told["sent"] = options
            return SimpleNamespace(repo_url="https://huggingface.co/somebody/model")

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(HfApi=Api))
    assert hub.push(models / "sentiment", "somebody/model", private=True).endswith("somebody/model")
    assert told["created"] == ("somebody/model", {"private": True, "exist_ok": True})
    patterns = told["sent"]["allow_patterns"]
    assert "*.safetensors" in patterns and "README.md" in patterns and "*" not in patterns


def test_push_refuses_what_is_no_model(tmp_path: Path, models: Path) -> None:
    with pytest.raises(InputError, match="is no model's folder"):
        hub.push(tmp_path, "somebody/model")
    for name in ("model", "a/b/c", "some body/model", ""):
        with pytest.raises(OptionError, match="no name of the hub"):
            hub.push(models / "sentiment", name)


def test_a_model_of_the_hub_is_taken_from_its_cache(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from featherweight import pipeline

    def found(repo_id: str, *, local_files_only: bool = False, **options: Any) -> str:
        assert repo_id == "somebody/model" and local_files_only and "*.safetensors" in options["allow_patterns"]
        return str(models / "sentiment")

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=found))
    assert pipeline("sentiment-analysis", "somebody/model")("king")[0]["label"].startswith("LABEL_")
    with pytest.raises(FeatherweightError):  # without a task a name is one of ours, never one of the hub
        pipeline(None, "somebody/model")
