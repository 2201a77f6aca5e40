# SPDX-License-Identifier: Apache-2.0
"""push and get with huggingface_hub itself, against a hub on this machine that speaks its protocol."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import fake_hub
import pytest
import tiny_text

from featherweight import artifact, cli, hub, pipeline
from featherweight.errors import OptionError
from featherweight.models import pretrained
from featherweight.tokenizer import open_tokens

transformers = pytest.importorskip("transformers")
pytest.importorskip("huggingface_hub")

CODE = """
import json, sys
from featherweight import cli, hub, pipeline
from featherweight.errors import FeatherweightError
model, out = sys.argv[1:]
told = {"address": hub.push(model, "somebody/model", private=True, token="secret", message="first")}
told["place"] = str(hub.fetched("somebody/model", revision="main"))
assert cli.main(["get", "hf:somebody/model", "--whole", "--out", out]) == 0
told["errors"] = []
for work in (
    lambda: hub.push(model, "somebody/model", token="wrong"),
    lambda: hub.get("somebody/other", folder=out),
    lambda: pipeline("question-answering", "somebody/other"),
):
    try:
        work()
    except FeatherweightError as error:
        told["errors"].append(str(error))
print("told", json.dumps(told))
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "model"
    made = tiny_text.model(transformers, kind="BertForSequenceClassification")
    artifact.save(pretrained.with_tokens(made, open_tokens(tiny_text.tokenizer(transformers))), folder)
    (folder / "notes.txt").write_text("mine")
    return folder


def test_a_model_goes_to_the_hub_and_comes_back(model: Path, tmp_path: Path) -> None:
    with fake_hub.serving() as server:
        known = {"HF_ENDPOINT": server.address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
        environment = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_PROGRESS_BARS": "1", **known}
        command = [sys.executable, "-c", CODE, str(model), str(tmp_path / "out")]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.rpartition("told ")[2])
    assert told["address"] == f"{server.address}/somebody/model"
    files = server.repositories["somebody/model"]
    sent = {"README.md", "config.json", "model.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert set(files) == sent  # and not the notes
    assert all(data == (model / name).read_bytes() for name, data in files.items())
    assert server.private == {"somebody/model"} and server.messages == ["first"] and "Bearer secret" in server.tokens
    answer = pipeline("sentiment-analysis", model)("king")
    for place in (told["place"], tmp_path / "out" / "model"):
        assert pipeline("sentiment-analysis", place)("king") == answer
    assert b"featherweight" in files["README.md"] and (tmp_path / "out/model/README.md").is_file()
    assert len(told["errors"]) == 3 and all("the hub cannot be reached or refuses" in one for one in told["errors"])
    assert not any("\n" in one for one in told["errors"])


def test_what_is_no_name_of_the_hub(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(OptionError, match="no name of the hub"):
        hub.get("hf:model", folder=tmp_path)
    assert cli.main(["get", "https://example.org/a.pth", "--whole"]) == 2
    assert "--whole: goes with hf:OWNER/NAME" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
