# SPDX-License-Identifier: Apache-2.0
"""predict with a detector: pictures, folders, patterns and videos in; drawings, text and COCO results out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_detector import Told

from featherweight import cli, pipeline, pipelines
from featherweight.errors import InputError
from featherweight.runtime.preprocess import Preprocess
from featherweight.verbs import finding
from featherweight.videos import Video, Writer

LETTERBOX = Preprocess(
    size=(64, 64), resize="letterbox", interpolation="bilinear", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)
)
SEEN = [(10.25, 20.25, 40.25, 44.25, 0.75, 1), (4.25, 18.25, 20.25, 30.25, 0.625, 0)]
CLASSES = ("cat", "dog")
TEXT = "1 0.394531 0.507812 0.468750 0.750000 0.75000\n0 0.191406 0.257812 0.250000 0.375000 0.62500\n"


def found(**options: Any) -> Any:
    return pipeline("object-detection", Told(SEEN, 2), preprocess=LETTERBOX, classes=CLASSES, **options)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two good pictures, one broken, in a folder with a space in its name."""
    folder = tmp_path / "my photos"
    (folder / "more").mkdir(parents=True)
    for name in ("7.png", "more/ü.jpg"):
        Image.new("RGB", (128, 64), (90, 120, 150)).save(folder / name)
    (folder / "broken.png").write_bytes(b"not a picture")
    return folder


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The command, with a detector that finds the same everywhere."""
    monkeypatch.setattr(pipelines, "pipeline", lambda **options: found())
    monkeypatch.chdir(tmp_path)
    return lambda *words: cli.main(["predict", "any", *words])


def test_a_folder_is_looked_through_and_what_is_broken_is_told(
    run: Any, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--source", str(photos), "--draw", "boxes", "--save-txt", "--save-json", "--name", "here") == 0
    said = capsys.readouterr()
    assert said.out.count("1 cat, 1 dog") == 2 and "broken.png" in said.err
    kept = Path("runs/here")
    assert (kept / "labels" / "7.txt").read_text() == TEXT
    drawn = np.asarray(Image.open(kept / "drawn" / "ü.jpg"))
    plain = np.asarray(Image.open(photos / "more" / "ü.jpg"))
    changed = np.abs(drawn.astype(int) - plain).max(2) > 30
    assert changed[8:56, 20:22].any(1).mean() > 0.9 and not changed[:, 100:].any()  # the dog's left side
    results = json.loads((kept / "detections.json").read_text())
    assert [(one["image_id"], one["category_id"], one["category"]) for one in results] == [
        (7, 1, "dog"), (7, 0, "cat"), (2, 1, "dog"), (2, 0, "cat"),
    ]  # fmt: skip
    assert results[0]["bbox"] == [20.5, 8.5, 60.0, 48.0] and results[0]["score"] == 0.75


def test_patterns_and_thresholds(run: Any, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--source", str(photos / "**" / "*.jpg"), "--conf", "0.7", "--json") == 0
    (one,) = json.loads(capsys.readouterr().out)
    assert one["file"].endswith("ü.jpg")
    assert [(o["label"], o["box"]["xmin"]) for o in one["objects"]] == [("dog", 20)]
    assert run("--source", str(photos / "*.gif")) != 0
    assert "matches no file" in capsys.readouterr().err


def test_pictures_of_one_name_keep_a_file_each(tmp_path: Path) -> None:
    keeper = finding.Keeper(tmp_path, found(), text=True)
    for folder in ("a", "b"):
        seen = finding.Seen(f"{folder}/x.png", None, np.zeros((64, 128, 3), np.uint8))
        keeper.keep(next(finding.find(found(), iter([seen]))))
    assert sorted(path.name for path in (tmp_path / "labels").iterdir()) == ["x-2.txt", "x.txt"]


def test_a_video_goes_through_frame_by_frame(tmp_path: Path) -> None:
    pytest.importorskip("cv2")
    path = tmp_path / "clip.mp4"
    with Writer(path, 12.0) as writer:
        for i in range(5):
            writer.write(np.full((64, 128, 3), 40 * i, np.uint8))
    with Video(str(path)) as video:
        assert video.rate == pytest.approx(12.0)
        assert [round(float(frame.mean()) / 40) for frame in video] == [0, 1, 2, 3, 4]
    keeper, pipe = finding.Keeper(tmp_path / "out", found(), draw=True, text=True, coco=True), found()
    seen = finding.pictures([str(path)], max_pixels=10**6, skipped=[])
    for one in finding.find(pipe, seen, batch_size=2):
        keeper.keep(one)
    keeper.close()
    with Video(str(tmp_path / "out" / "drawn" / "clip.mp4")) as video:
        assert len(list(video)) == 5
    assert sorted(path.name for path in (tmp_path / "out" / "labels").iterdir())[4] == "clip_000004.txt"
    results = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert {one["image_id"] for one in results} == {1, 2, 3, 4, 5} and results[-1]["file_name"] == "clip.mp4#4"


def test_what_is_no_video_is_one_error(tmp_path: Path) -> None:
    pytest.importorskip("cv2")
    (tmp_path / "bad.mp4").write_bytes(b"nothing" * 50)
    for name, words in (("bad.mp4", "no video"), ("gone.mp4", "does not exist")):
        with pytest.raises(InputError, match=words):
            list(finding.pictures([str(tmp_path / name)], max_pixels=10**6, skipped=[]))


def test_options_of_the_other_kind_are_refused(run: Any, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--top-k", "3"], ["--draw", "tokens"], ["--show-tokens"]):
        assert run("--source", str(photos), *words) == 2
        assert "are of classifiers" in capsys.readouterr().err


def test_classes_of_coco_get_its_ids() -> None:
    from featherweight.data.coco import COCO91

    names = ["person", "bicycle", *(f"class {i}" for i in range(78))]
    assert finding.category(79, names) == COCO91[79] == 90 and finding.category(1, CLASSES) == 1
