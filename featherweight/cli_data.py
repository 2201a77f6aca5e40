# SPDX-License-Identifier: Apache-2.0
"""The verb `data check`: what a data set holds and what is odd in it, and a repaired copy of a detection set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from featherweight import cli_options as options
from featherweight.console import bar, columns, current, line
from featherweight.errors import OptionError, clean, shown

NAMED = 3  # examples of each kind of finding on the screen; the sheet and --json have more


def check(
    path: Annotated[
        str,
        Parameter(
            name=("--data", "--path"),
            help="digits, a folder of class folders, a parquet or a CSV; digits-det, COCO, YOLO or VOC",
        ),
    ],
    *,
    max_bad: options.MaxBad = 0.01,
    on_bad: Annotated[str, Parameter(help="boxes that are wrong: repair, skip their picture, or refuse")] = "repair",
    sheet: Annotated[
        str | None, Parameter(help="an HTML file with pictures of a detection set, odd ones first")
    ] = None,
    repair: Annotated[str | None, Parameter(help="a new folder for a repaired copy of a detection set")] = None,
    layout: Annotated[str, Parameter(name=("--layout", "--as"), help="of the copy: coco or yolo")] = "coco",
) -> int:
    """Format, counts, classes and broken files of a data set."""
    from featherweight.data import detection

    if detection.is_detection(Path(path)):
        return _detection(path, max_bad=max_bad, on_bad=on_bad, sheet=sheet, repair=repair, layout=layout)
    for name, value in (("sheet", sheet), ("repair", repair)):
        if value is not None:
            raise OptionError(f"--{name}", f"is for detection sets; {shown(path)} does not look like one")
    return _classification(path, max_bad)


def _classification(path: str, max_bad: float) -> int:
    from featherweight import data

    screen = current()
    found = data.describe(data.load(path, max_bad=1.0))
    counts = " / ".join(f"{count} {part}" for part, count in found["counts"].items())
    screen.answer(line("data", f"{found['name']}: {found['format']}, {len(found['classes'])} classes, {counts}"))
    if found["note"]:
        screen.say(line("", found["note"]))
    _histogram(found["classes"], list(found["counts"]))
    bad = _skipped(found, sum(found["counts"].values()), max_bad)
    screen.next(
        f"featherweight train MODEL --data {shown(path)}",
        f"featherweight compress MODEL --data {shown(path)} --max-drop 1%",
    )
    return 1 if bad else 0


def _detection(path: str, *, max_bad: float, on_bad: str, sheet: str | None, repair: str | None, layout: str) -> int:
    from featherweight.data import detection, detection_copy, detection_report, detection_sheet

    screen = current()
    given: dict[str, Any] = {"max_bad": 1.0, "on_bad": on_bad}
    loaded = detection.load(path, **({} if path in detection.BUILT_IN else given))
    found = detection_report.describe(loaded)
    counts = " / ".join(f"{one['images']} {part}" for part, one in found["parts"].items())
    screen.answer(line("data", f"{found['name']}: {found['format']}, {len(found['classes'])} classes, {counts}"))
    if found["note"]:
        screen.say(line("", found["note"]))
    for part, one in found["parts"].items():
        screen.answer(line(part, _summary(one)))
    boxes = {name: {part: row["boxes"] for part, row in rows.items()} for name, rows in found["classes"].items()}
    _histogram(boxes, list(found["parts"]))
    for one in found["findings"]:
        screen.answer(f"  ✗ {one['reason']}: {one['count']} {one['done']}")
        for example in one["examples"][:NAMED]:
            screen.answer(f"      {example['path']}: {example['text']}")
    for one in found["odd"]:
        if one["boxes"]:
            some = ", ".join(one["examples"][:NAMED])
            screen.answer(f"  ? {one['what']}: {one['boxes']} boxes in {one['pictures']} pictures ({some})")
    made: dict[str, Any] = {}
    if sheet is not None:
        made["sheet"] = str(detection_sheet.write(loaded, sheet))
        screen.answer(line("sheet", shown(made["sheet"])))
    if repair is not None:
        made["repaired"] = {"folder": repair, **detection_copy.write(loaded, repair, layout=layout)}
        left = made["repaired"]["left_out"]
        lost = f", {left} crowds left out" if left else ""
        what = f"{made['repaired']['pictures']} pictures, {made['repaired']['boxes']} boxes{lost}"
        screen.answer(line("copy", f"{shown(repair)}: {what}"))
    bad = _skipped({**found, **made}, sum(one["images"] for one in found["parts"].values()), max_bad, listed=False)
    screen.next(*_nexts(path, found, sheet, repair))
    return 1 if bad else 0


def _nexts(path: str, found: dict[str, Any], sheet: str | None, repair: str | None) -> list[str]:
    """What to do now: look, repair where something is wrong, train."""
    nexts = [f"featherweight data check {shown(path)} --sheet sheet.html"] if sheet is None else []
    if repair is None and any(one["done"] in ("repaired", "dropped") for one in found["findings"]):
        nexts.append(f"featherweight data check {shown(path)} --repair repaired")
    return [*nexts, f"featherweight train yolov7_tiny --data {shown(repair or path)}"]


def _summary(one: dict[str, Any]) -> str:
    """A part in one line."""
    sizes = one["sizes"]
    text = f"{one['boxes']} boxes ({sizes['small']} small, {sizes['medium']} medium, {sizes['large']} large), "
    text += f"{one['boxes_per_image']['mean']:.1f} a picture, at most {one['boxes_per_image']['most']}"
    for key, word in (("background", "pictures without any"), ("crowds", "crowds"), ("outlines", "outlines")):
        text += f", {one[key]} {word}" if one[key] else ""
    spans = " x ".join(
        str(span["least"]) if span["least"] == span["most"] else f"{span['least']}-{span['most']}"
        for span in (one["width"], one["height"])
    )
    return f"{text}; {spans} pixels"


def _histogram(classes: dict[str, dict[str, int]], parts: list[str]) -> None:
    """Classes with their counts in each part, and bars of those in train."""
    most = max((count for row in classes.values() for count in row.values()), default=1) or 1
    rows = [(shown(name, limit=40), *(str(row[part]) for part in parts)) for name, row in classes.items()]
    text = columns([("class", *parts), *rows]).split("\n")
    bars = ["", *(bar(row.get("train", 0) / most) for row in classes.values())]
    current().answer("\n" + "\n".join(f"{left}  {drawn}".rstrip() for left, drawn in zip(text, bars, strict=True)))


def _skipped(found: dict[str, Any], used: int, max_bad: float, *, listed: bool = True) -> bool:
    """Name what cannot be used and put out the JSON; whether it is too much."""
    screen = current()
    for one in found["skipped"] if listed else ():
        screen.answer(f"  ✗ {one['path']}: {one['reason']}: {clean(one['text'])}")
    total = used + len(found["skipped"])
    bad = len(found["skipped"]) > max_bad * total
    screen.emit({**found, "passed": not bad})
    if bad:
        text = f"{len(found['skipped'])} of {total} files cannot be used, more than --max-bad {max_bad:g} allows"
        screen.problem(text)
    return bad
