# SPDX-License-Identifier: Apache-2.0
"""What a run found, as one value, and the files that show it: report.html, report.json, report.md, model card, plots.

The page is one file that opens from disk: no script, no request, figures as SVG, pictures as small data URIs. All that
is in it is data: names are escaped where they are shown, a picture that comes back from JSON must be a JPEG or PNG URI.
`tables` says it as text, `plots` draws it, `compare` lays several runs side by side.
"""

from __future__ import annotations

import base64
import io
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from featherweight import files, page, plots
from featherweight.doors import json as door
from featherweight.errors import InputError
from featherweight.latency import Latency
from featherweight.measure import Measurement, build
from featherweight.page import model_card
from featherweight.tables import show, table

__all__ = [
    "Box", "Export", "Kept", "Report", "Sample", "Scene", "Stage", "TokenView", "load", "model_card", "picture",
    "show", "table", "write",
]  # fmt: skip

SCHEMA = 1
PICTURE_SIDE = 96  # pixels of the longer side of a picture in the page
SCENE_SIDE = 240  # of one with boxes
BACKGROUND = "background"  # the truth of a false alarm, the answer to an object that is not found
PICTURE = re.compile(r"data:image/(?:jpeg|png);base64,[A-Za-z0-9+/]+={0,2}")


def picture(image: np.ndarray | str, *, side: int = PICTURE_SIDE) -> str:
    """uint8 (H, W, 3) or (H, W) as a JPEG data URI of at most `side` pixels; a data URI comes back as it is."""
    if isinstance(image, str):
        if not PICTURE.fullmatch(image):
            raise ValueError("a picture must be a JPEG or PNG data URI")
        return image
    from PIL import Image

    drawn = Image.fromarray(np.asarray(image, dtype=np.uint8)).convert("RGB")
    drawn.thumbnail((side, side), Image.Resampling.LANCZOS)
    stored = io.BytesIO()
    drawn.save(stored, "JPEG", quality=88, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(stored.getvalue()).decode("ascii")


@dataclass(frozen=True)
class Stage:
    """One step of the run: what was measured after it, whether it stayed, and why."""

    name: str
    measurement: Measurement
    kept: bool = True
    reason: str = ""  # of a step left out ("not faster here: 1.02×"), or a remark on one that stayed
    runtime: str | None = None  # whose latency stands in the table; the first that was measured unless named

    def latency(self, batch: int = 1) -> Latency | None:
        return self.measurement.latency(batch=batch, runtime=self.runtime)


@dataclass(frozen=True)
class Sample:
    """One test image with its true class and what the model said before and after."""

    image: str | np.ndarray  # data URI; a uint8 array is turned into one
    label: str
    base: str
    small: str
    score: float  # of the small model's answer, 0..1

    def __post_init__(self) -> None:
        object.__setattr__(self, "image", picture(self.image))


@dataclass(frozen=True)
class Kept:
    """Which patches one stage of a token-dropping model kept of an image: rows of the patch grid, True for kept."""

    name: str
    mask: Any  # tuple of tuples of bool; an array becomes one, a flat one of n * n values becomes n rows
    prediction: str = ""

    def __post_init__(self) -> None:
        grid = np.asarray(self.mask, dtype=bool)
        if grid.ndim == 1:
            side = round(grid.size**0.5)
            grid = grid.reshape(side, -1)
        object.__setattr__(self, "mask", tuple(tuple(bool(v) for v in row) for row in grid))

    @property
    def rate(self) -> float:
        """The share of patches kept."""
        return float(np.mean(self.mask))


@dataclass(frozen=True)
class TokenView:
    """One image and what each stage kept of it."""

    image: str | np.ndarray
    label: str
    stages: tuple[Kept, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "image", picture(self.image))


@dataclass(frozen=True)
class Box:
    """An object in a picture, or what was found there."""

    label: str
    corners: tuple[float, ...]  # x1, y1, x2, y2 in pixels of the picture as it was given
    score: float | None = None  # of what was found

    def __post_init__(self) -> None:
        corners = tuple(round(float(value), 2) for value in self.corners)
        if len(corners) != 4 or not all(map(math.isfinite, corners)):
            raise ValueError(f"a box must be four finite numbers, not {self.corners!r}")
        object.__setattr__(self, "corners", corners)


@dataclass(frozen=True)
class Scene:
    """One test picture of a detector: what lies in it, and what was found before and after."""

    image: str | np.ndarray
    width: int  # of the picture as it was given
    height: int
    truth: tuple[Box, ...] = ()
    base: tuple[Box, ...] = ()
    small: tuple[Box, ...] = ()

    def __post_init__(self) -> None:
        if not all(isinstance(side, int) and side > 0 for side in (self.width, self.height)):
            raise ValueError("a picture must be so many pixels wide and high")
        object.__setattr__(self, "image", picture(self.image, side=SCENE_SIDE))


@dataclass(frozen=True)
class Export:
    """One exported file and how far its answers are from the model's, on real images."""

    file: str
    format: str
    size_bytes: int
    agreement: float | None = None  # share of images, of a detector of predictions, with the same best class
    sqnr_db: float | None = None  # signal-to-noise ratio of the logits, of boxes or scores
    max_abs: float | None = None  # largest difference of one of these numbers
    passed: bool = True
    note: str = ""  # opset, or where the file runs


@dataclass(frozen=True)
class Report:
    """Everything the page shows. Only `title` is needed; a part that is empty is left out of the page."""

    title: str
    command: str = ""  # what to type to see this again
    data: str = ""  # "digits: 1797 handwritten digits on photos, 4000 train / 720 test"
    model: str = ""  # "vit_demo, 0.9 M parameters, 144 tokens"
    budget: str = ""  # "at most 1.0 point, at least 2x"
    budget_met: bool | None = None
    stages: tuple[Stage, ...] = ()
    curves: tuple[Mapping[str, Any], ...] = ()  # rows of metrics.csv: stage, epoch, and numbers by name
    classes: tuple[str, ...] = ()
    confusion_base: tuple[tuple[int, ...], ...] = ()  # rows are the truth; of a detector the last is the background
    confusion_small: tuple[tuple[int, ...], ...] = ()
    samples: tuple[Sample, ...] = ()
    scenes: tuple[Scene, ...] = ()
    per_class: tuple[Mapping[str, Any], ...] = ()  # of a detector {"name", "n" objects, "base", "small" AP in percent}
    tokens: tuple[TokenView, ...] = ()
    sensitivity: tuple[Mapping[str, Any], ...] = ()  # {"layer", "drop" in points, "note"}
    layers: tuple[Mapping[str, Any], ...] = ()  # {"path", "kind", "params", "macs"} of the final model
    exports: tuple[Export, ...] = ()
    environment: Mapping[str, Any] = field(default_factory=dict)  # measure.machine() and whatever else
    recipe: str = ""  # resolved, as YAML text
    fingerprint: str = ""  # of the data
    skipped: tuple[Mapping[str, str], ...] = ()  # {"path", "reason"}
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    license: str = ""  # of data and weights
    seed: int | None = None
    task: str = "image-classification"
    schema: int = SCHEMA

    @property
    def answers(self) -> tuple[str, ...]:
        """The classes, and where the confusion has one more, the background."""
        more = len(self.classes) + 1 in (len(self.confusion_base), len(self.confusion_small))
        return (*self.classes, BACKGROUND) if more else self.classes

    def to_dict(self) -> dict[str, Any]:
        """For JSON: a number that is not finite becomes None, because JSON has no word for it."""
        plain: dict[str, Any] = _plain(asdict(self))
        return plain

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Report:
        """The value back from JSON; ValueError says which key or picture is wrong."""
        if data.get("schema") != SCHEMA:
            raise ValueError(f"report has schema {data.get('schema')!r}; this version reads {SCHEMA}")
        stages = tuple(_stage(item) for item in data.get("stages", ()))
        views = tuple(build(TokenView, {**v, "stages": _all(Kept, v["stages"])}) for v in data.get("tokens", ()))
        samples, exports = _all(Sample, data.get("samples", ())), _all(Export, data.get("exports", ()))
        scenes = tuple(_scene(item) for item in data.get("scenes", ()))
        plain = {key: _tuples(value) for key, value in data.items()}
        parts = {"stages": stages, "tokens": views, "samples": samples, "scenes": scenes, "exports": exports}
        return build(cls, {**plain, **parts})


def _stage(data: Mapping[str, Any]) -> Any:
    return build(Stage, {**data, "measurement": Measurement.from_dict(data["measurement"])})


def _scene(data: Mapping[str, Any]) -> Any:
    return build(Scene, {**data, **{name: _all(Box, data.get(name, ())) for name in ("truth", "base", "small")}})


def _all(kind: Any, items: Sequence[Mapping[str, Any]]) -> tuple[Any, ...]:
    return tuple(build(kind, item) for item in items)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, str):  # half a surrogate pair, from a file name that is not text, has no place in JSON
        return value.encode("utf-8", "backslashreplace").decode()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def load(path: str | os.PathLike[str]) -> Report:
    """A report.json, or the one in a run folder."""
    place = Path(path) / "report.json" if Path(path).is_dir() else Path(path)
    try:
        return Report.from_dict(door.read(place))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(place, "bad_schema", f"not a report of this version: {error}") from error


def write(report: Report, folder: str | os.PathLike[str]) -> Path:
    """Write report.html, .json, .md and plots/*.svg into `folder`, each whole or not at all; the path of the page."""
    place = Path(folder)
    (place / "plots").mkdir(parents=True, exist_ok=True)
    figures = plots.figures(report)
    for name, figure in figures.items():
        files.publish(place / "plots" / f"{name}.svg", figure.file().encode())
        if name == "pareto":
            files.publish(place / "plots" / "pareto-dark.svg", figure.file(dark=True).encode())
    text = json.dumps(report.to_dict(), indent=1, allow_nan=False)
    files.publish(place / "report.json", text.encode())
    files.publish(place / "report.md", page.markdown(report).encode())
    files.publish(place / "report.html", page.html(report, figures).encode())
    return place / "report.html"
