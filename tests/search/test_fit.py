# SPDX-License-Identifier: Apache-2.0
"""A whole search at tiny scale: it ends with models, recipes that make them again, and a page that opens by itself."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import tiny_runs
import torch

from featherweight import artifact, cli, runs
from featherweight.data import load
from featherweight.errors import CheckFailed, OptionError
from featherweight.models import zoo
from featherweight.search import fit, page
from featherweight.search.points import agreement

pytest.importorskip("optuna")

DATA = {key: value for key, value in tiny_runs.DIGITS.items() if key != "source"}
OVERRIDES = [*(f"data.options.{key}={value}" for key, value in DATA.items()), "train.batch_size=16", "threads=1"]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model in a folder of its own."""
    folder = tmp_path_factory.mktemp("fit")
    torch.manual_seed(0)
    model = zoo.create("vit_digits", num_classes=10, **tiny_runs.CONFIG)
    classes, preprocess = load("digits", **DATA).classes, zoo.preprocess_of("vit_digits", model, tiny_runs.CONFIG)
    return artifact.save(model, folder / "m", task="image-classification", classes=classes, preprocess=preprocess)


def search(start: Path, **changes: Any) -> Any:
    options: dict[str, Any] = {"macs": "0.7M", "time": "30m", "points": 2, "images": 48, "name": "f", **changes}
    return fit(start, "digits", project=start.parent, overrides=OVERRIDES, **options)


@pytest.mark.slow
def test_a_search_from_end_to_end(start: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = search(start)
    folder = start.parent / "f"
    assert found.met
    assert found.pick["macs"] <= 0.7e6 < found.start["macs"]
    assert len(found.points) == 2
    best = Path(found.pick["place"])
    assert (folder / "pick").resolve() == best.resolve()
    assert {"recipe.yaml", "model.onnx", "model", "numbers.json"} <= {path.name for path in best.iterdir()}
    again = runs.run(str(best / "recipe.yaml"), project=start.parent, name="again")
    weights = [path / "model" / "model.safetensors" for path in (best, again.folder)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    check_page((folder / "report.html").read_text())
    told = json.loads((folder / "search.json").read_text())
    assert told["met"] and len(told["points"]) == 2
    on = [f"--set={text}" for text in OVERRIDES]
    words = ["fit", str(start), "--data", "digits", "--macs", "0.7M", "--images", "48", "--time", "30m"]
    code = cli.main([*words, "--points", "1", "--project", str(start.parent), "--name", "f", *on])
    shown = capsys.readouterr().out
    assert code == 0
    assert "goes on with the search that is there" in shown
    assert len(json.loads((folder / "search.json").read_text())["points"]) == 3
    with pytest.raises(OptionError, match="holds the search of something else"):
        search(start, macs="0.6M")
    with pytest.raises(OptionError, match=r"--macs: .* is out of reach"):
        search(start, macs="0.0001M", name="g")


@pytest.mark.slow
def test_two_workers_and_no_model_that_fits(start: Path) -> None:
    with pytest.raises(CheckFailed, match=r"none of .* models"):
        search(start, macs=None, latency="0.02ms", max_drop=0, workers=2, time="90s", name="two")
    told = json.loads((start.parent / "two" / "search.json").read_text())
    assert not told["met"]
    assert told["reason"]
    assert (start.parent / "two" / "worker-1.log").exists()


@pytest.mark.slow
def test_as_fast_as_the_recipe(start: Path) -> None:
    asked = {"macs": None, "latency": "recipe", "recipe": "compress", "name": "r", "points": 1}
    found = search(start, **asked)
    own = Path(found.written["place"])
    assert found.met
    assert found.pick["key"] in {"written", *(item["key"] for item in found.front)}
    assert own.name == "00-the-recipe-as-it-is-written"
    again = runs.run(str(own / "recipe.yaml"), project=start.parent, name="as-written-again")
    weights = [path / "model" / "model.safetensors" for path in (own, again.folder)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    before = (start.parent / "r" / "points" / "as-written" / "log.txt").stat()
    assert len(search(start, **asked).points) == 2
    assert (start.parent / "r" / "points" / "as-written" / "log.txt").stat() == before  # nor is it done again


def check_page(text: str) -> None:
    """One script, named by its digest; nothing from elsewhere."""
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    assert policy and len(scripts) == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy[1]
    assert "default-src 'none'" in policy[1]
    assert not re.search(r"(?:src|href)=|url\(|@import", text)
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert data
    assert {"start", "pick"} <= {point["kind"] for point in json.loads(data[1])["points"]}


def test_data_in_the_page_cannot_leave_its_element() -> None:
    told = page._trusted("1", {"says": "</script><b>\u2028"})
    assert "<" not in told["json"]
    assert json.loads(str(told["json"]))["says"] == "</script><b>\u2028"


def test_agreement() -> None:
    import numpy as np

    one = np.array([[0.5, 0.5], [1.0, 0.0]])
    assert agreement(one, one) == 1.0
    assert agreement(one, np.array([[0.0, 1.0], [0.0, 1.0]])) == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"macs": None}, "fit: nothing is asked for"),
        ({"latency": "recipe"}, "--latency: recipe is the latency of the recipe that --recipe names"),
        ({"runtime": "openvno"}, "--runtime: no 'openvno'; did you mean 'openvino'?"),
        ({"workers": 0}, "--workers: must be 1 or more"),
        ({"time": "later"}, "--time: 'later' is not something like 90s"),
        ({"name": "../up"}, "--name: "),
        ({"unlabeled": "nowhere"}, "--unlabeled: nowhere is no folder"),
        ({"latency": "0.000001ms"}, "--latency: 1e-06 ms is less than an empty graph takes here in onnxruntime"),
    ],
)
def test_mistakes_are_told_before_anything_is_trained(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], said: str
) -> None:
    monkeypatch.setattr("featherweight.search.points.measured", lambda *a, **k: pytest.fail("something was trained"))
    with pytest.raises(OptionError) as found:
        search(start, **{"name": tmp_path.name, **changes})
    assert str(found.value).startswith(said)


def test_a_detector_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="model: is for object-detection"):
        fit("yolov7_tiny", "digits", macs="1M", project=tmp_path)
    with pytest.raises(OptionError, match="--recipe: demo_detect is for object-detection"):
        fit("vit_digits", "digits", macs="1M", project=tmp_path, recipe="demo_detect")
