# SPDX-License-Identifier: Apache-2.0
"""Detectors measured and reported: AP and AP50 with an interval, boxes on the page, all of it from a recipe."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_runs
from numpy.typing import NDArray
from tiny_detector import Told

from featherweight import artifact, compare, deploy, deploy_detection, judge, page, recipe, report, runs, story, tables
from featherweight.data.objects import Objects
from featherweight.data.scenes import Findings, Scenery
from featherweight.deploy import EAGER, RUNTIMES
from featherweight.errors import OptionError
from featherweight.files import publish_json
from featherweight.latency import Conditions, Latency
from featherweight.measure import Measurement
from featherweight.models import zoo
from featherweight.report import Box, Report, Scene, Stage
from featherweight.runtime.preprocess import Preprocess
from featherweight.scores import jackknife
from featherweight.tasks.detection import Detection
from featherweight.verbs.shaping import landscape
from featherweight.work import Stage as Made
from featherweight.work import Work

CLASSES = ("cat", "dog", "kite")
LETTERBOX = Preprocess((64, 64), "letterbox", interpolation="bilinear", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
THERE = np.array([[10.0, 20.0, 40.0, 44.0], [4.0, 2.0, 20.0, 14.0]])
FOUND = [(*THERE[0], 0.75, 1), (*THERE[1], 0.5, 2)]
EVIL = "<script>alert(1)</script>\x1b[2J"


class Pictures:
    """So many pictures, of one shade each, with a dog and a kite at the same places."""

    outlined = False

    def __init__(self, count: int = 24, labels: tuple[int, ...] = (1, 2)) -> None:
        self.count, self.labels = count, np.array(labels)
        self.sizes = np.full((count, 2), 64)

    def __len__(self) -> int:
        return self.count

    def picture(self, i: int) -> NDArray[np.uint8]:
        return np.full((64, 64, 3), 9 * i % 256, np.uint8)

    def objects(self, i: int) -> Objects:
        return Objects.of(THERE, self.labels)

    def names(self, i: int) -> str:
        return f"picture {i}"


def work_of(folder: Path, models: list[Any], count: int = 24) -> Work:
    """A run of detectors, the last stage in use."""
    plan = recipe.parse({"task": "detect", "model": "yolov7_tiny", "data": "digits-det", "steps": ["load"]}, "tale")
    pictures: Any = Pictures(count)
    data = Scenery("zoo", "coco", CLASSES, pictures, pictures, pictures, "f", (0, 1, 2), Findings())
    stages = [Made(f"stage {i}", folder / f"0{i}-load", model) for i, model in enumerate(models)]
    settings: dict[str, Any] = {"model": models[-1], "stages": tuple(stages)}
    return Work(plan, folder, data, Detection(CLASSES), LETTERBOX, tiny_runs.Told(), **settings)


def row_of(folder: Path, found: Any, count: int = 24) -> dict[str, Any]:
    work = work_of(folder, [Told(found)], count)
    return deploy_detection.accuracy(work, work.stages[0], "test", {RUNTIMES[0]: Told(found), EAGER: Told(found)})


def test_what_is_found_where_it_lies_is_worth_all(tmp_path: Path) -> None:
    row = row_of(tmp_path, FOUND)
    for runtime in (RUNTIMES[0], EAGER):
        figures = row["accuracy"][runtime]
        assert (figures["AP50"], figures["n"], figures["interval"]) == (1.0, 24, [figures["AP"]] * 2)
        assert figures["AP"] > 0.95
    assert row["right"] == [2] * 24 and np.array(row["confusion"]).tolist() == np.diag([0, 24, 24, 0]).tolist()
    assert row["classes"]["dog"]["boxes"] == 24 and row["classes"]["cat"]["boxes"] == 0
    missing = row_of(tmp_path, FOUND[:1])
    assert (
        missing["accuracy"][EAGER]["AP50"] == 0.5 and missing["confusion"][2][3] == 24 and missing["right"] == [1] * 24
    )
    assert deploy.right(row["accuracy"][EAGER]) > 2 * deploy.right(missing["accuracy"][EAGER]) - 1e-9


def test_few_pictures_have_no_interval(tmp_path: Path) -> None:
    row = row_of(tmp_path, FOUND, count=19)
    assert row["left_out"] == [] and row["accuracy"][EAGER]["interval"] is None
    text = deploy_detection.gain(row, row_of(tmp_path, FOUND[:1], count=19), EAGER)
    assert text.startswith("+") and "noise" not in text


def test_the_jackknife_of_a_mean_is_its_standard_error() -> None:
    values = np.random.default_rng(0).normal(size=jackknife.GROUPS)
    without = [float(np.delete(values, i).mean()) for i in range(len(values))]
    wanted = jackknife.STUDENT * values.std(ddof=1) / len(values) ** 0.5
    assert jackknife.half_width(without) == pytest.approx(wanted)
    assert jackknife.half_width([]) is None


def test_a_gain_is_noise_where_groups_of_pictures_disagree() -> None:
    def row(ap: float, outside: list[float]) -> dict[str, Any]:
        return {"accuracy": {EAGER: {"AP": ap}}, "left_out": outside}

    steady, before = row(0.6, [0.6] * 20), row(0.5, [0.5] * 20)
    assert deploy_detection.gain(steady, before, EAGER) == "+10.0 points of AP over the step before"
    shaky = row(0.6, [0.5, 0.7] * 10)
    assert deploy_detection.gain(shaky, before, EAGER).endswith("over the step before, within noise")


# the table and the page -----------------------------------------------------------------------------------------------
def stage(name: str, ap: float, ms: float, interval: list[float] | None = None) -> Stage:
    figures = {"AP": ap, "AP50": ap + 0.2, "interval": interval, "n": 40}
    times = (Latency(ms, ms, ms, conditions=Conditions(runtime="onnxruntime", cores=2)),)
    return Stage(name, Measurement(name, 1000, 2_000_000, 4000, figures, times))


STAGES = (stage("baseline", 0.41, 4.0, [0.35, 0.47]), stage("+ int8", 0.4, 2.0, [0.34, 0.46]))


def test_the_table_of_detectors_has_ap_and_ap50() -> None:
    head, first, second = tables.table(STAGES).splitlines()
    assert head.split()[:6] == ["step", "AP", "%", "AP50", "%", "Δ"]
    assert first.split()[1:4] == ["41.0", "±6.0", "61.0"] and second.split()[2:6] == ["40.0", "±6.0", "60.0", "−1.0"]
    lines = tables.table(STAGES, style="markdown").splitlines()
    assert len({line.count("|") for line in lines}) == 1 and "| AP50 % |" in lines[0]
    assert tables.table(STAGES, style="csv").splitlines()[0].startswith("step,AP,low,high,n,AP50,macs")
    assert "40.0  " in tables.table((STAGES[0], stage("alone", 0.4, 2.0)))  # no interval, and none is made up
    (figure,) = [f for f in tables.headline(STAGES) if f.word == "points"]
    assert figure.value == "−1.0" and "41.0 → 40.0 % AP on 40 images" in figure.detail
    assert figure.detail.endswith("AP50 61.0 → 60.0 %")


def test_runs_of_detectors_are_compared_by_ap() -> None:
    one = Report(title="a", stages=STAGES, task="object-detection", fingerprint="f")
    found = compare.compare([one, one, dataclasses.replace(one, title="b")])
    assert found.what == "AP" and "AP %" in found.table().splitlines()[0]
    classifier = Stage("c", Measurement("c", accuracy={"top1": 0.9, "n": 3}))
    mixed = compare.compare([one, Report(title="c", stages=(classifier,))])
    assert any("others of detectors" in warning for warning in mixed.warnings)


def scenes(label: str = "cat") -> tuple[Scene, ...]:
    found = Box(label, (1.0, 2.5, 30.0, 40.0), 0.75)
    picture = np.zeros((48, 64, 3), np.uint8)
    return (Scene(picture, 64, 48, (Box(label, (1, 2, 31, 40)),), (found,), ()),)


def test_the_page_shows_boxes_and_comes_back(tmp_path: Path) -> None:
    per_class = ({"name": "cat", "n": 7, "base": 41.0, "small": 40.0},)
    made = Report(
        title="boxes", stages=STAGES, scenes=scenes(), per_class=per_class, classes=CLASSES, task="object-detection",
        confusion_base=((1, 0, 0, 2),) * 4, confusion_small=((0, 0, 0, 3),) * 4,
    )  # fmt: skip
    text = report.write(made, tmp_path).read_text(encoding="utf-8")
    assert report.load(tmp_path).scenes == made.scenes and made.answers == (*CLASSES, "background")
    assert "<h2>AP against cost</h2>" in text and "<h2>What it finds</h2>" in text
    assert text.count('<rect x="1.0"') == 2 and 'width="29.0" height="37.5"' in text and "cat 0.75" in text
    assert page.most_confused(made)[0] == ("cat", "background", 2, 3) or page.most_confused(made)[0][3] == 3
    assert "AP before %" in text and "41.0" in text and "AP50 %" in text
    card = report.model_card(made)
    assert 'pipeline_tag: "object-detection"' in card and "detect(" in card and "classify" not in card


def test_names_and_boxes_from_a_file_stay_data(tmp_path: Path) -> None:
    made = Report(title="x", stages=STAGES, scenes=scenes(EVIL), task="object-detection", classes=(EVIL,))
    text = report.write(made, tmp_path).read_text(encoding="utf-8")
    assert "<script>alert" not in text and "\x1b" not in text and "&lt;script&gt;" in text
    for field, bad in (("corners", ["1", "2"]), ("corners", [0, 0, 1, "1e999"])):
        plain = json.loads((tmp_path / "report.json").read_text())
        plain["scenes"][0]["truth"][0][field] = bad
        with pytest.raises(ValueError, match="four finite numbers"):
            Report.from_dict(plain)
    plain = json.loads((tmp_path / "report.json").read_text())
    plain["scenes"][0]["width"] = '1" onload="x'
    with pytest.raises(ValueError, match="pixels wide and high"):
        Report.from_dict(plain)


def test_a_run_of_detectors_becomes_its_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = work_of(tmp_path, [Told(FOUND), Told(FOUND[:1])])
    rows = []
    for made in work.stages:
        row = deploy_detection.accuracy(work, made, "test", dict.fromkeys((*RUNTIMES, EAGER), made.model))
        times = [
            Latency(4.0, 4.0, 4.0, conditions=Conditions(runtime=r, cores=2)).to_dict() for r in (EAGER, *RUNTIMES)
        ]
        sizes = {EAGER: 400, "file": 300}
        counts = {"title": made.title, "place": made.place.name, "params": 1000, "macs": 2000, "sizes": sizes}
        rows.append({**counts, **row, "latencies": times})
    publish_json(tmp_path / "env.json", {"cpu": "some", "threads": 1})
    work = dataclasses.replace(work, results={"measure": {"part": "test", "labels": [], "rows": rows, "remarks": {}}})
    monkeypatch.setattr("featherweight.story_detection.exported", lambda _work, stage: stage.model)
    monkeypatch.setattr(deploy_detection, "open_runner", opened(deploy_detection.open_runner))
    story.write_report(work, samples=3)
    found = report.load(tmp_path)
    assert [s.name for s in found.stages][:2] == ["stage 0, torch", "stage 0, exported"]
    assert found.task == "object-detection" and tables.kind(found.stages) == "AP"
    assert [len(scene.truth) for scene in found.scenes] == [2, 2, 2]
    assert [(len(scene.base), len(scene.small)) for scene in found.scenes] == [(2, 1)] * 3
    assert [one["name"] for one in found.per_class] == ["dog", "kite"] and found.per_class[1]["small"] == 0
    assert found.data.endswith("AP on test") and found.answers[-1] == "background"


def opened(real: Any) -> Any:
    """`open_runner` for models that stand where files would."""

    def start(model: Any, *, backend: str = "auto", **known: Any) -> Any:
        return real(model, **{"classes": CLASSES, "preprocess": LETTERBOX, **known})

    return start


def test_pictures_with_losses_come_first() -> None:
    from featherweight.story_detection import _order

    assert _order([3, 2, 2, 5, 1], [3, 1, 4, 2, 1]) == [3, 1, 2, 0, 4]


def test_a_budget_of_a_detector_is_of_ap(tmp_path: Path) -> None:
    work = work_of(tmp_path, [Told(FOUND)])
    work = dataclasses.replace(work, recipe=dataclasses.replace(work.recipe, budget=recipe.Budget("2%")))
    assert judge.outcome(work).asked == "at most 2% of AP lost"


def test_compress_takes_the_steps_that_are_for_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plans: list[recipe.Recipe] = []
    monkeypatch.setattr(runs, "run", lambda plan, **_: plans.append(plan))
    detector = zoo.create("yolov7_tiny", num_classes=3)
    artifact.save(detector, tmp_path / "model", classes=CLASSES, preprocess=LETTERBOX)
    runs.compress(tmp_path / "model", "digits-det")
    runs.compress(detector, "digits-det", preprocess=LETTERBOX)
    runs.compress("vit_digits", "digits")
    names = [[step.name for step in plan.steps] for plan in plans]
    assert names[0] == names[1] == ["load", "fuse", "quantize", "export", "measure", "report"]
    assert [plan.task for plan in plans] == ["object-detection"] * 2 + ["image-classification"]
    assert plans[2].name == "compress" and all(plan.budget and plan.budget.max_drop == "1%" for plan in plans)
    with pytest.raises(OptionError, match="is for object-detection; the landscape is that of a classifier"):
        landscape(tmp_path / "model", "digits")


# a whole run ----------------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_a_run_measures_and_reports_a_detector(tmp_path: Path) -> None:
    steps = [
        "train", "fuse", {"quantize": {"calibration_images": 4}}, {"export": {"images": 2}},
        {"measure": {"batch": [1, 2], "repeats": 6, "budget_s": 0.1}}, {"report": {"samples": 2}},
    ]  # fmt: skip
    data = {"source": "digits-det", "n_train": 8, "n_val": 4, "n_test": 20, "size": 64}
    plan = recipe.parse(
        {
            "task": "detect", "model": {"name": "yolov7_tiny", "config": {"image_size": 64}}, "data": data,
            "train": {"epochs": 1, "batch_size": 4, "augment": {"preset": "custom"}}, "steps": steps,
            "output": str(tmp_path), "threads": 1, "name": "detect",
        },
        "detect",
    )  # fmt: skip
    work = runs.run(plan)
    found = report.load(tmp_path / "detect")
    names = ["trained, torch", "trained, exported", "+ fused", "+ int8", "+ int8 in OpenVINO"]
    assert sorted(s.name for s in found.stages) == sorted(names)
    for made in found.stages:
        mine = tables.score(made.measurement)
        assert mine is not None and mine.kind == "AP" and mine.n == 20 and mine.ap50 is not None
        assert made.latency(1) is not None and made.latency(2) is not None and made.measurement.size_bytes
    sizes = {s.name: s.measurement.size_bytes for s in found.stages}
    assert sizes["+ int8"] < 0.5 * sizes["+ fused"]
    assert len(found.scenes) == 2 and found.curves and found.layers and len(found.exports) == 2
    assert "val_AP" in found.curves[0]
    text = (tmp_path / "detect" / "report.html").read_text(encoding="utf-8")
    assert "AP against cost" in text and "What it finds" in text and "validation AP %" in text
    assert (tmp_path / "detect" / "model" / "README.md").is_file() and work.results["report"] is True
    with pytest.raises(OptionError, match="nothing to report yet"):
        story.write_report(dataclasses.replace(work, results={}), samples=1)
