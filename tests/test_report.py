# SPDX-License-Identifier: Apache-2.0
"""The page is one safe file with everything in it, tables say what was measured, nothing is claimed too early."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from fake_report import CPU, fake, latency

from featherweight import page, plots, report, tables
from featherweight.compare import average, compare
from featherweight.doors import yaml
from featherweight.errors import InputError, OptionError
from featherweight.measure import Measurement

HOSTILE = (
    "\"'></style></title><script>alert(1)</script><img src=x onerror=alert(1)>\x1b[31m\u202e{{7*7}}$x^2$|`\r\n=cmd"
)


class Page(HTMLParser):
    """Everything a browser could act on."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[str] = []
        self.attributes: set[tuple[str, str]] = set()
        self.references: list[str] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        self.attributes |= {(tag, name) for name, _ in attrs}
        self.references += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "action")]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    report.write(fake(), folder)
    return folder


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("attacked")
    report.write(fake(hostile=HOSTILE), folder)
    return folder


def test_the_page_is_one_small_file_that_asks_for_nothing(written: Path) -> None:
    text = (written / "report.html").read_text(encoding="utf-8")
    parsed = Page(text)
    assert len(text.encode()) < 1_000_000
    assert not re.search(r"https?://|//[a-z]|@import|url\((?!#)", re.sub(r"data:image/jpeg;base64,[\w+/=]*", "", text))
    assert all(r.startswith(("data:image/", "#")) for r in parsed.references)
    assert {"script", "iframe", "link", "object", "form", "base"}.isdisjoint(parsed.elements)
    assert parsed.elements.count("img") == 12
    assert parsed.elements.count("image") == 8 * 4  # token views


def test_the_page_has_its_parts_in_the_order_people_look(written: Path) -> None:
    text = (written / "report.html").read_text(encoding="utf-8")
    parts = [
        "Handwritten digits", "smaller", "budget met", "featherweight run", "Accuracy against cost", "Step by step",
        "What the model looks at", "Right and wrong", "newly wrong", "Layer by layer", "Training", "Latency",
        "Exported files", "To repeat this", "9f2c4b1e", "truncated", "keep: 0.7",
    ]  # fmt: skip
    places = [text.find(part, 0) for part in parts]
    assert -1 not in places
    headings = re.findall(r"<h2>(.*?)</h2>", text)
    assert headings == [
        "Accuracy against cost", "Step by step", "What the model looks at", "Right and wrong", "Layer by layer",
        "Training", "Latency", "Exported files", "To repeat this",
    ]  # fmt: skip
    assert text.count("<figure") == text.count('role="img" aria-label="') - 8 * 4  # every figure says what it shows


def test_hostile_names_add_no_element_and_no_attribute(written: Path, attacked: Path) -> None:
    good, bad = (Page((folder / "report.html").read_text(encoding="utf-8")) for folder in (written, attacked))
    assert set(bad.elements) <= set(good.elements) | {"ul", "li"}
    assert bad.attributes <= good.attributes | {("ul", "class")}
    assert not any(name.startswith("on") for _, name in bad.attributes)
    assert bad.elements.count("img") == good.elements.count("img")
    assert bad.elements.count("style") == good.elements.count("style")
    assert "<script>alert(1)</script>" in bad.text  # it is there, as text
    assert "{{7*7}}" in bad.text
    control = Page("<p>" + HOSTILE + "</p>")
    assert "script" in control.elements and ("img", "onerror") in control.attributes  # the check can fail


def test_no_control_character_reaches_any_file(attacked: Path) -> None:
    files = [f for f in attacked.rglob("*") if f.is_file()]
    assert len(files) >= 9
    for file in files:
        found = set(
            re.findall(r"[^\n\x20-\x7e\u00a0-\u200a\u2010-\u2027\u2030-\uffff]", file.read_text(encoding="utf-8"))
        )
        assert not found, (file.name, found)
    assert not set(tables.table(fake(hostile=HOSTILE).stages)) & set("\x1b\r\u202e")
    assert not set(report.model_card(fake(hostile=HOSTILE))) & set("\x1b\r\u202e")


def test_markdown_keeps_names_from_being_markup(attacked: Path) -> None:
    for text in ((attacked / "report.md").read_text(encoding="utf-8"), report.model_card(fake(hostile=HOSTILE))):
        outside = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
        outside = re.sub(r"\A---\n.*?\n---\n", "", outside, flags=re.DOTALL)
        assert not re.search(r"(?<!\\)<(script|img|/style)", outside)
        rows = [line for line in outside.splitlines() if line.startswith("|")]
        assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows if "baseline" in row} <= {9, 7}
    assert "script" in HOSTILE


def test_spreadsheets_see_text_and_numbers_but_no_formula() -> None:
    stages = tuple(
        dataclasses.replace(s, name=n)
        for s, n in zip(fake().stages, ["=1+1", "+a", "-a", "@a", " =x", "b"], strict=True)
    )
    rows = list(csv.reader(io.StringIO(tables.table(stages, style="csv"))))
    assert len(rows) == 1 + len(stages)
    for row in rows[1:]:
        for cell in row:
            assert not cell.lstrip().startswith(("=", "+", "-", "@")), cell
    assert rows[1][0] == "'=1+1" and rows[6][0] == "b"
    assert float(rows[1][1]) == pytest.approx(97.2)


@pytest.mark.parametrize("folder", ["written", "attacked"])
def test_every_figure_is_well_formed_and_names_its_stages(folder: str, request: pytest.FixtureRequest) -> None:
    place: Path = request.getfixturevalue(folder)
    names = {file.stem for file in (place / "plots").glob("*.svg")}
    assert names == {"pareto", "pareto-dark", "pareto-size", "curves", "confusion", "sensitivity", "latency"}
    for file in (place / "plots").glob("*.svg"):
        root = ElementTree.parse(file).getroot()
        assert root.tag.endswith("svg")
        assert not any(node.tag.rpartition("}")[2] in ("script", "foreignObject", "a") for node in root.iter())
        assert int(root.attrib["width"]) > 400 and int(root.attrib["height"]) > 200
        assert "#0101" not in file.read_text(encoding="utf-8")  # no stand-in color is left
    if folder == "written":
        said = "".join(ElementTree.parse(place / "plots" / "pareto.svg").getroot().itertext())
        assert all(stage.name in said for stage in fake().stages)
        assert CPU in said  # the picture travels alone


def test_the_same_numbers_make_the_same_bytes_and_leave_no_trace(written: Path) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    again = (plots.pareto(fake().stages, against="latency"), plots.sensitivity(fake().sensitivity))
    assert dict(matplotlib.rcParams) == before
    for drawing in again:
        assert drawing is not None
        assert (written / "plots" / f"{drawing.name}.svg").read_text(encoding="utf-8") == drawing.file()
        assert not re.search(r"20\d\d-\d\d-\d\d", drawing.svg)


def test_labels_of_crowded_points_do_not_overlap() -> None:
    from featherweight.drawing import canvas
    from featherweight.pareto import Point, place_labels, tidy_log_axis

    rng = np.random.default_rng(3)
    crowd = [
        Point(f"stage number {i}", x, x * 0.98, x * 1.02, y, y - 1, y + 1, 70)
        for i, (x, y) in enumerate(zip(rng.uniform(1, 2.5, 8).tolist(), rng.uniform(96, 98, 8).tolist(), strict=True))
    ]
    with canvas(6.4, 3.9) as (figure, (axes,)):
        axes.set_xscale("log")
        axes.scatter([p.x for p in crowd], [p.y for p in crowd])
        tidy_log_axis(axes, [p.x for p in crowd])
        place_labels(figure, axes, crowd, colors=("#000000", "#777777", "#ffffff"))
        figure.draw_without_rendering()
        boxes = [text.get_window_extent() for text in axes.texts]
        frame = axes.get_window_extent()
    assert len(boxes) == 8
    clashes = [(i, j) for i in range(8) for j in range(i) if boxes[i].overlaps(boxes[j])]
    assert not clashes
    assert all(frame.x0 - 2 <= b.x0 and b.x1 <= frame.x1 + 2 for b in boxes)


def test_a_report_survives_json_and_a_stranger_s_is_checked(written: Path, tmp_path: Path) -> None:
    assert report.load(written) == report.load(written / "report.json")
    assert report.load(written).to_dict() == fake().to_dict()
    good = json.loads((written / "report.json").read_text(encoding="utf-8"))

    def refused(change: dict[str, Any]) -> str:
        file = tmp_path / "report.json"
        file.write_text(json.dumps({**good, **change}), encoding="utf-8")
        with pytest.raises(InputError) as caught:
            report.load(file)
        assert caught.value.reason == "bad_schema" and "\n" not in str(caught.value)
        return str(caught.value)

    assert "did you mean 'stages'" in refused({"stagez": []})
    assert "schema 7" in refused({"schema": 7})
    assert "data URI" in refused({"samples": [{**good["samples"][0], "image": "https://example.org/x.png"}]})
    assert "data URI" in refused({"samples": [{**good["samples"][0], "image": 'data:image/png;base64,AA" onload="x'}]})
    refused({"stages": [{"name": "x"}]})
    refused({"stages": 3})


def test_what_is_not_a_number_is_left_out_of_json_and_of_the_plot(tmp_path: Path) -> None:
    rows = ({"stage": "a", "epoch": 1, "loss": float("nan"), "top1": 0.5}, {"stage": "a", "epoch": 2, "loss": 0.1})
    made = report.Report("x", curves=(*rows, {"stage": "a\udcff", "epoch": 3, "loss": "many"}))
    report.write(made, tmp_path)
    assert report.load(tmp_path).curves[0]["loss"] is None
    assert (tmp_path / "plots" / "curves.svg").exists()


def test_a_report_may_be_empty_and_any_part_may_be_missing(tmp_path: Path) -> None:
    assert report.write(report.Report("nothing yet"), tmp_path / "a").read_text(encoding="utf-8").count("<h2>") == 1
    full = fake()
    changes: tuple[dict[str, Any], ...] = (
        {"stages": full.stages[:1]},
        {"stages": tuple(dataclasses.replace(s, measurement=Measurement(s.name)) for s in full.stages)},
        {"confusion_base": ()},
        {"classes": ()},
        {"environment": {}},
        {"stages": tuple(dataclasses.replace(s, kept=False) for s in full.stages)},
    )
    for some in changes:
        assert "<h2>" in page.html(dataclasses.replace(full, **some), {})
        assert page.markdown(dataclasses.replace(full, **some))
        assert page.model_card(dataclasses.replace(full, **some))


def test_the_table_says_what_was_measured() -> None:
    stages = fake().stages
    lines = tables.table(stages).splitlines()
    assert len(lines) == 1 + len(stages)
    assert re.split(r"\s{2,}", lines[0].strip()) == list(tables.COLUMNS)
    assert "97.2 ±1.2" in lines[1] and "1.00×" in lines[1]
    assert "+0.4" in lines[2] and "−0.5" in lines[6] and "0.70 MB" in lines[6]
    assert lines[5].endswith("✗ not faster here: 0.99×")
    ends = {line.index("MB") for line in lines[1:]}
    assert len(ends) == 1  # the columns are aligned
    with pytest.raises(OptionError, match="did you mean 'markdown'"):
        tables.table(stages, style="markdwn")


def test_columns_stay_aligned_for_wide_characters() -> None:
    stages = tuple(dataclasses.replace(s, name=n) for s, n in zip(fake().stages[:2], ["基线模型", "ab"], strict=True))
    first, second = tables.table(stages).splitlines()[1:]
    assert first.index("97.2") + 4 == second.index("97.6")  # four characters that are two columns wide each


def test_without_labels_the_table_speaks_of_agreement() -> None:
    measured = Measurement("x", accuracy={"agreement": 0.9, "interval": (0.88, 0.92), "n": 100})
    found = tables.score(measured)
    assert found is not None and found.kind == "agreement" and tables.accuracy(found) == "90.0 ±2.0"
    assert "agreement" in page.html(report.Report("x", stages=(report.Stage("x", measured),)), {})


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_table_is_drawn_on_a_terminal_and_plain_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "TERM", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "160")
    stages = fake(hostile="\x1b[2J").stages
    plain, drawn = io.StringIO(), Terminal()
    tables.show(stages, file=plain)
    tables.show(stages, file=drawn)
    assert plain.getvalue() == tables.table(stages)
    assert "\x1b[" in drawn.getvalue() and "\x1b[2J" not in drawn.getvalue()
    assert "not faster here" in drawn.getvalue()


def headline_with(ratio: float | None, interval: tuple[float, float] | None) -> tables.Figure:
    first, *_, last = fake().stages
    found = dataclasses.replace(last.measurement.latencies[2], ratio=ratio, ratio_interval=interval)
    measured = dataclasses.replace(last.measurement, latencies=(found,))
    return tables.headline((first, dataclasses.replace(last, measurement=measured)))[0]


def test_the_headline_claims_only_what_the_interval_allows() -> None:
    sure = headline_with(2.6, (2.5, 2.7))
    assert (sure.value, sure.word, sure.good) == ("2.6×", "faster", True)
    unsure = headline_with(1.04, (0.99, 1.1))
    assert (unsure.value, unsure.word, unsure.good) == ("1.04×", "not faster here", False)
    slower = headline_with(0.8, (0.75, 0.85))
    assert (slower.word, slower.good) == ("slower here", False)
    assert headline_with(None, None).word == "(not raced)"


def test_a_loss_within_the_noise_of_the_test_set_is_called_that() -> None:
    figures = tables.headline(fake().stages)
    assert [f.word for f in figures] == ["faster", "smaller", "points"]
    assert figures[2].value == "−0.5" and "within the noise" in figures[2].detail and figures[2].good
    worse = dataclasses.replace(
        fake().stages[-1].measurement, accuracy={"top1": 0.9, "interval": [0.88, 0.92], "n": 720}
    )
    stages = (*fake().stages[:-1], dataclasses.replace(fake().stages[-1], measurement=worse))
    assert "noise" not in tables.headline(stages)[2].detail and not tables.headline(stages)[2].good


def test_the_mask_that_is_drawn_is_the_mask_that_was_kept() -> None:
    rng = np.random.default_rng(0)
    kept = report.Kept("x", rng.random(144) > 0.4)  # flat, as a model returns it
    drawn = np.ones((12, 12), bool)
    for x, y, run in re.findall(r"M(\d+) (\d+)h(\d+)v1H\d+z", page.dropped(kept)):
        assert drawn[int(y), int(x) : int(x) + int(run)].all()
        drawn[int(y), int(x) : int(x) + int(run)] = False
    assert np.array_equal(drawn, np.asarray(kept.mask))
    assert kept.rate == pytest.approx(drawn.mean())


def test_pictures_are_small_and_only_data() -> None:
    uri = report.picture(np.zeros((500, 300, 3), np.uint8))
    assert uri.startswith("data:image/jpeg;base64,") and len(uri) < 4000
    assert report.picture(uri) == uri
    with pytest.raises(ValueError, match="data URI"):
        report.picture("file:///etc/passwd")


def test_the_model_card_is_a_card() -> None:
    text = report.model_card(fake(hostile=""))
    front = text.split("---\n")[1]
    assert yaml.parse(front, "README.md")["license_name"] == fake().license
    hostile = yaml.parse(report.model_card(fake(hostile=HOSTILE)).split("---\n")[1], "README.md")
    assert set(hostile) == {"library_name", "pipeline_tag", "license", "license_name", "tags"}
    for part in ("## Use", "pipeline(", "| + int8 |", "## Limits", CPU):
        assert part in text


def with_accuracy(made: report.Report, seed: int, changes: list[float]) -> report.Report:
    stages = tuple(
        dataclasses.replace(s, measurement=dataclasses.replace(s.measurement, accuracy={"top1": 0.95 + c, "n": 720}))
        for s, c in zip(made.stages, changes, strict=True)
    )
    return dataclasses.replace(made, stages=stages, seed=seed)


def test_three_seeds_are_compared_in_pairs_and_noise_is_called_noise(tmp_path: Path) -> None:
    # the seeds differ by 2 points, the second step's gain is always near 0.5, the third's is anything
    shifts = [(0.0, 0.004, 0.01), (0.02, 0.005, -0.01), (-0.02, 0.006, 0.0)]
    runs = [
        with_accuracy(fake(seed=i), i, [s, s + gain, s + noise, s - 0.05, s - 0.05, s - 0.05])
        for i, (s, gain, noise) in enumerate(shifts)
    ]
    for i, run in enumerate(runs):
        (tmp_path / f"demo-{i}").mkdir()
        (tmp_path / f"demo-{i}" / "report.json").write_text(json.dumps(run.to_dict()), encoding="utf-8")
    found = compare([tmp_path / f"demo-{i}" for i in range(3)], folder=tmp_path / "all")
    assert found.names == ("demo-0", "demo-1", "demo-2")
    assert found.findings[0] == "distilled against baseline over 3 runs: +0.5 ± 0.2 points (95 %): better"
    assert found.findings[1].endswith("0.0 ± 2.5 points (95 %): within noise")
    assert found.findings[2].endswith(": worse")
    assert not found.warnings
    assert {row.kept for row in found.rows} == {0, 3}
    parsed = Page((tmp_path / "all" / "compare.html").read_text(encoding="utf-8"))
    assert "script" not in parsed.elements and "within noise" in parsed.text
    assert "demo-1" in (tmp_path / "all" / "compare.md").read_text(encoding="utf-8") or "within noise" in found.table()
    ElementTree.parse(tmp_path / "all" / "compare.svg")


def test_runs_that_do_not_compare_are_called_that_and_one_run_proves_nothing() -> None:
    other = dataclasses.replace(fake(), fingerprint="other", environment={"cpu": "other"})
    assert len(compare([fake(), other]).warnings) == 2
    alone = compare([fake()])
    assert alone.findings == () and {row.difference.half for row in alone.rows if row.difference} == {None}
    with pytest.raises(OptionError, match="no run"):
        compare([])
    half = average([1.0, 2.0, 3.0])
    assert half is not None and half.half == pytest.approx(4.303 / 3**0.5)


def test_reports_are_made_without_torch() -> None:
    code = """
import sys
sys.modules["torch"] = None
sys.path.insert(0, "tests")
from fake_report import fake
from featherweight import measure, page, tables
assert "<h2>" in page.html(fake(), {}) and tables.table(fake().stages)
assert measure.race({"a": int, "b": int}, budget_s=0.01) and measure.machine()["cores"]
assert "matplotlib" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_latency_knows_its_throughput() -> None:
    found = latency(np.random.default_rng(0), 10.0, base_ms=10.0, runtime="openvino", batch=32, first=True)
    assert found.images_per_s == pytest.approx(32_000 / found.median_ms)
