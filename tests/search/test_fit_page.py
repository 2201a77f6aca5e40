# SPDX-License-Identifier: Apache-2.0
"""The page of a search: one file with one script, drawn in a browser without asking for anything."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from featherweight.search import page
from featherweight.search.forecast import Forecast, Rates
from featherweight.search.limits import Limits
from featherweight.search.outcome import Search

HOSTILE = '</script><script>alert(1)</script><img src=x onerror="alert(1)">'
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def model(key: str, top1: float, ms: float, **more: Any) -> dict[str, Any]:
    counts = {"size_bytes": int(4e5 * ms), "macs": int(5e7 * ms), "params": 1, "n": 360}
    known = {"agreement": top1 + 0.02, "images": 900, "seconds": 12.0, "training_s": 9.0, "forecast_ms": 1.1 * ms}
    return {"key": key, "says": f"mlp cut {key}", "top1": top1, "latency_ms": ms, **counts, **known, **more}


def raced(item: dict[str, Any], place: Path) -> dict[str, Any]:
    against = {"ratio": 1.5, "interval": [1.4, 1.6], "says": "1.50× faster"}
    where = {"place": str(place / item["key"]), "recipe": str(place / item["key"] / "recipe.yaml")}
    done = {"test": {"top1": item["top1"] - 0.01}, "drop": 0.95 - item["top1"], "conditions": {"load": 9.0, "cores": 2}}
    return {**item, **where, **done, "against_start": against, "against_written": against}


def searched(folder: Path, *, reason: str = "", says: str = "tokens kept 0.7, mlp cut 0.3, int8") -> Search:
    draw = random.Random(0)
    tried = [model(f"p{n}", 0.8 + 0.12 * draw.random(), 0.5 + 2 * draw.random()) for n in range(24)]
    best = [raced(model("a", 0.90, 0.6), folder), raced(model("b", 0.935, 1.1, says=says), folder),
            raced(model("c", 0.945, 1.9), folder)]  # fmt: skip
    start = {**raced(model("start", 0.95, 3.2, says="the start"), folder), "images": 0}
    written = {**raced(model("written", 0.925, 1.4, says="the recipe as it is written"), folder), "images": 0}
    limits = Limits(latency_ms=1.3, max_drop=0.02)
    return Search(folder, limits, best[1], tuple(best), start, written, (*tried, *best), reason)


def written(folder: Path, **changes: Any) -> str:
    forecast = Forecast({"float32": Rates(0.1, {})})
    forecast.learn({"kind": "all tokens", "raw_ms": 1.0, "latency_ms": ms} for ms in (1.0, 1.1, 1.2))
    data = SimpleNamespace(name=HOSTILE, classes="0123", train=[1] * 9, val=[1] * 3, test=[1] * 3)
    space = SimpleNamespace(base=SimpleNamespace(model=SimpleNamespace(name="vit_digits")))
    ground = SimpleNamespace(space=space, data=data, runtime="openvino", threads=2, asked=256, forecast=forecast)
    knob = {"name": "mlp cut", "choices": [0.0, 0.5]}
    study = SimpleNamespace(hopeless=lambda: [{"says": "int8", "reason": "2 ms expected"}], failures=lambda: [HOSTILE])
    plan = {"knobs": [knob], "rungs": [100, 300, 900], "rates": {}, "warnings": [HOSTILE], "seed": 0}
    place = page.write(searched(folder, **changes), ground, study, plan, 300.0)  # type: ignore[arg-type]
    return place.read_text(encoding="utf-8")


def test_one_script_and_nothing_from_elsewhere(tmp_path: Path) -> None:
    text = written(tmp_path, says=HOSTILE)
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    assert policy and len(scripts) == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert policy[1] == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    assert not re.search(r"<[^>]+(?:src|href)=|url\(|@import|<img|alert\(1\)</script><", text)
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert data
    points = json.loads(data[1])["points"]
    assert [sum(p["kind"] == kind for p in points) for kind in ("start", "written", "pick", "front", "tried")] == [
        1, 1, 1, 2, 24,
    ]  # fmt: skip


def test_what_the_page_says(tmp_path: Path) -> None:
    text = written(tmp_path)
    for said in (
        "budget met", "92.5", "1.3 ms at most, 2 points lost at most", "1.50× faster", "median 8 %",
        "2 ms expected", "Training them took 243 s; to export, ask and race them took 81 s",
        "The machine was busy while it was timed (load 9 on 2 cores)",
    ):  # fmt: skip
        assert said in text, said
    assert "budget missed" in written(tmp_path, reason="none of 3 models keeps to 1.3 ms")
    told = json.loads((tmp_path / "search.json").read_text())
    assert told["reason"] == "none of 3 models keeps to 1.3 ms"
    assert len(told["points"]) == 27


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_a_browser_draws_it(tmp_path: Path) -> None:
    written(tmp_path)
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=2000", "--dump-dom"]
    command = [str(BROWSER), *flags, f"--user-data-dir={tmp_path / 'profile'}", (tmp_path / "report.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout.count("<circle") == 29
    assert done.stdout.count('class="point pick shown"') == 1
    assert "mlp cut 0.3, int8 (the pick)" in done.stdout
