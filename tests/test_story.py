# SPDX-License-Identifier: Apache-2.0
"""From a run's results to its page: rows, samples, curves and masks say what was measured, not less and not more."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny_runs as tiny
import torch

from featherweight import recipe, report, story
from featherweight.data import Data, Skipped
from featherweight.deploy import EAGER, RUNTIMES
from featherweight.errors import OptionError
from featherweight.files import publish_json
from featherweight.latency import Conditions, Latency
from featherweight.methods import dynamicvit
from featherweight.models import zoo
from featherweight.runtime.preprocess import Preprocess
from featherweight.surgery import apply
from featherweight.tasks.classification import Classification
from featherweight.work import Stage, Work

CLASSES = ("ant", "bee", "cow")
LABELS = [0, 1, 2, 0, 1, 2]
EVIL = "<script>alert(1)</script>\x1b[2J"


class Pictures:
    """Six pictures, each of one shade."""

    def __init__(self) -> None:
        self.labels = np.array(LABELS)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
        return np.full((24, 24, 3), 40 * i, np.uint8), int(self.labels[i])

    def names(self, i: int) -> str:
        return f"picture {i}"


def row(title: str, place: str, answers: list[int], ms: float) -> dict[str, Any]:
    """What `measure` writes about a stage; the latency is `ms` in torch, a half and a third of it in files."""
    times = dict(zip((EAGER, *RUNTIMES), (ms, ms / 2, ms / 3), strict=True))
    found = {"top1": float(np.mean(np.array(answers) == LABELS)), "interval": [0.0, 1.0], "n": 6}
    latencies = [
        Latency(ms_, ms_, ms_, conditions=Conditions(runtime=runtime, cores=2)).to_dict()
        for runtime, ms_ in times.items()
    ]
    return {
        "title": title, "place": place, "params": 1_000_000, "macs": 2_000_000, "sizes": {EAGER: 400, "file": 300},
        "accuracy": dict.fromkeys((EAGER, *RUNTIMES), found), "predictions": dict.fromkeys(RUNTIMES, answers),
        "dtype": dict(zip(RUNTIMES, ("float32", "int8"), strict=True)), "confidence": [0.5] * 6, "latencies": latencies,
    }  # fmt: skip


def model(*, sparse: bool = False) -> torch.nn.Module:
    torch.manual_seed(0)
    made = zoo.create("vit_digits", **{**tiny.CONFIG, "num_classes": 3}).eval()
    return apply(made, dynamicvit.plan(made, keep={1: 0.5})).eval() if sparse else made


@pytest.fixture
def work(tmp_path: Path) -> Work:
    """A run of three stages, the second left out, with everything measured."""
    plan = dataclasses.replace(recipe.parse({**tiny.PLAN, "budget": None}), name="tale")
    pictures: Any = Pictures()
    data = Data("zoo", "folder", CLASSES, pictures, pictures, pictures, "f", (Skipped(EVIL, "corrupt"),))
    places = [tmp_path / "steps" / name for name in ("00-load", "01-prune", "02-tokens")]
    models = (model(), model(), model(sparse=True))
    titles = ("baseline", "prune", "tokens")
    stages = [Stage(title, place, module) for title, place, module in zip(titles, places, models, strict=True)]
    stages[1] = dataclasses.replace(stages[1], kept=False, reason="slower here: 0.80×")
    publish_json(tmp_path / "env.json", {"cpu": "some", "threads": 1})
    answers = ([0, 1, 2, 0, 1, 1], [0, 0, 0, 0, 0, 0], [0, 1, 0, 0, 1, 2])
    rows = [row(s.title, s.place.name, a, ms) for s, a, ms in zip(stages, answers, (6.0, 9.0, 3.0), strict=True)]
    found = {"part": "test", "labels": LABELS, "rows": rows, "remarks": {}}
    preprocess = Preprocess(size=(24, 24), resize="exact")
    settings: dict[str, Any] = {"model": models[2], "stages": tuple(stages), "results": {"measure": found}}
    task, tell = Classification(CLASSES), tiny.Told()
    return Work(plan, tmp_path, data, task, preprocess, tell, **settings, left_out=("coding: left out",))


def page_of(work: Work, *, samples: int = 2) -> report.Report:
    story.write_report(work, samples=samples)
    return report.load(work.folder)


def test_the_rows_are_the_start_the_stages_and_the_other_runtime(work: Work) -> None:
    page = page_of(work)
    assert [(stage.name, stage.kept, stage.runtime) for stage in page.stages] == [
        ("baseline, torch", True, EAGER),
        ("baseline, exported", True, "onnxruntime"),
        ("+ prune", False, "onnxruntime"),
        ("+ tokens", True, "onnxruntime"),
        ("+ tokens in OpenVINO", True, "openvino"),
    ]
    assert page.stages[2].reason == "slower here: 0.80×"
    assert [stage.latency().median_ms for stage in page.stages] == [6.0, 3.0, 4.5, 1.5, 1.0]
    assert [stage.measurement.size_bytes for stage in page.stages] == [400, 300, 300, 300, 300]


def test_the_slower_runtime_of_the_last_stage_comes_before_the_faster(work: Work) -> None:
    for latency in work.results["measure"]["rows"][2]["latencies"]:
        if latency["conditions"]["runtime"] == "openvino":
            latency.update(median_ms=99.0, p10_ms=99.0, p90_ms=99.0)
    assert [stage.name for stage in page_of(work).stages][-2:] == ["+ tokens in OpenVINO", "+ tokens"]


def test_the_confusion_and_the_samples_are_of_the_last_stage_that_stayed(work: Work) -> None:
    page = page_of(work, samples=1)
    assert page.confusion_base == ((2, 0, 0), (0, 2, 0), (0, 1, 1))
    assert page.confusion_small == ((2, 0, 0), (0, 2, 0), (1, 0, 1))
    assert [(s.label, s.base, s.small) for s in page.samples] == [("cow", "cow", "ant"), ("cow", "bee", "cow")]
    work = dataclasses.replace(work, stages=(*work.stages[:2], dataclasses.replace(work.stages[2], kept=False)))
    page = page_of(work)
    assert page.confusion_small == page.confusion_base and page.tokens == ()
    assert page.stages[2].name == "baseline, exported in OpenVINO"


def test_the_masks_are_what_the_model_kept(work: Work) -> None:
    page = page_of(work)
    assert len(page.tokens) == 2
    sparse: Any = work.stages[2].model
    pixels = torch.from_numpy(work.preprocess(Pictures()[0][0]))[None]
    with dynamicvit.recording(sparse) as blocks, torch.inference_mode():
        sparse(pixels)
        kept = blocks.aside.places[-1][0].tolist()
    mask = np.array(page.tokens[0].stages[-1].mask).reshape(-1)
    assert np.flatnonzero(mask).tolist() == sorted(kept) and mask.sum() == 18


def test_curves_are_the_rows_of_the_metrics_as_numbers(work: Work) -> None:
    assert page_of(work).curves == ()
    (work.folder / "metrics.csv").write_text("stage,epoch,loss,val_top1\n00-load,0,1.5,0.25\n00-load,1,nan,\n")
    first, second = page_of(work).curves
    assert first == {"stage": "00-load", "epoch": 0, "loss": 1.5, "val_top1": 0.25}
    assert "val_top1" not in second and second["loss"] is None


def test_what_was_left_out_and_skipped_is_told_and_names_stay_text(work: Work) -> None:
    page = page_of(work)
    assert "coding: left out" in page.warnings
    assert [item["reason"] for item in page.skipped] == ["corrupt"]
    assert page.budget == "" and page.budget_met is None
    for name in ("report.html", "report.md"):
        text = (work.folder / name).read_text()
        assert "coding: left out" in text, name
        assert "<script>alert" not in text and "\x1b" not in text, name
    assert "tale: baseline to tokens" in page.title


def test_the_recipe_on_the_page_can_be_run(work: Work) -> None:
    page = page_of(work)
    assert recipe.plain(recipe.parse(page.recipe)) == recipe.plain(work.recipe)
    assert page.command.startswith("featherweight run ") and page.command.endswith(f"{work.folder.name}/config.yaml")


def test_without_measurements_there_is_no_page(work: Work) -> None:
    with pytest.raises(OptionError, match="put a step `measure` before it"):
        story.write_report(dataclasses.replace(work, results={}), samples=1)
    assert not (work.folder / "report.html").exists()


def test_a_result_says_it_has_a_page_and_a_card(work: Work) -> None:
    done = story.write_report(work, samples=0)
    assert done.results["report"] is True and "zoo: 3 classes, 6 train / 6 val / 6 test" in done.results["card"]
    told: Any = work.tell
    (event,) = told.of("table")
    assert "tokens" in event["text"] and event["headline"]
    assert SimpleNamespace(**event).event == "table"
