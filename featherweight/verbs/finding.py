# SPDX-License-Identifier: Apache-2.0
"""What a detector finds in pictures, folders, videos and cameras, and how it is kept: drawn, as text, as COCO JSON."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from featherweight.boxes_over import drawn
from featherweight.doors import image
from featherweight.errors import InputError
from featherweight.files import publish
from featherweight.pictures import load
from featherweight.pipelines_detection import ObjectDetection
from featherweight.pipelines_detection_usual import UsualDetection
from featherweight.videos import Video, Writer, is_video

Detector = ObjectDetection | UsualDetection


class Seen(NamedTuple):
    """One picture: the file it is from, the number of the frame if that is a video, its pixels."""

    file: str
    frame: int | None
    pixels: NDArray[np.uint8]
    rate: float = 0.0  # frames a second, of a video


class Found(NamedTuple):
    """A picture and its detections (n, 6) [x1, y1, x2, y2, score, class] in its own pixels, best first."""

    seen: Seen
    rows: NDArray[np.float64]


def expanded(sources: Sequence[str]) -> list[str]:
    """File names in place of patterns such as "photos/*.jpg" that no shell has expanded."""
    found: list[str] = []
    for source in sources:
        if any(sign in source for sign in "*?[") and not os.path.exists(source):
            matches = sorted(glob.glob(source, recursive=True))
            if not matches:
                raise InputError(source, "missing", "matches no file")
            found += matches
        else:
            found.append(source)
    return found


def pictures(
    sources: Sequence[str], *, max_pixels: int, skipped: list[InputError], stdin: Any = None
) -> Iterator[Seen]:
    """Every picture and frame in order. A named file that is none is an error; one in a folder goes to `skipped`."""
    for source in expanded(sources):
        if source == "-" and stdin is not None:
            yield Seen("-", None, load(stdin(), max_pixels=max_pixels))
        elif is_video(source):
            with Video(source) as video:
                for number, frame in enumerate(video):
                    yield Seen(source, number, frame, video.rate)
        elif os.path.isdir(source):
            yield from _of_folder(Path(source), max_pixels, skipped)
        else:
            yield Seen(source, None, load(source, max_pixels=max_pixels))


def _of_folder(folder: Path, max_pixels: int, skipped: list[InputError]) -> Iterator[Seen]:
    files = image.scan(folder)
    if not files:
        raise InputError(folder, "empty", "has no pictures in it (looked for jpg png webp bmp gif tif)")
    good, before = 0, len(skipped)
    for file in files:
        try:
            pixels = load(file, max_pixels=max_pixels)
        except InputError as error:
            skipped.append(error)
            continue
        good += 1
        yield Seen(str(file), None, pixels)
    if not good:
        raise skipped[before]


def find(pipe: Detector, seen: Iterator[Seen], *, batch_size: int | None = None, **options: Any) -> Iterator[Found]:
    """The detections of each picture, read ahead by one batch and no more; the options are those of a call."""
    waiting: list[Seen] = []

    def handed() -> Iterator[NDArray[np.uint8]]:
        for one in seen:
            waiting.append(one)
            yield one.pixels

    for rows in pipe.detections(handed(), batch_size=batch_size, **options):
        yield Found(waiting.pop(0), rows)


@dataclass
class Keeper:
    """Keeps what was found in a folder, as it comes: `drawn/`, `labels/` and, at the end, `detections.json`."""

    folder: Path
    pipe: Detector
    draw: bool = False
    text: bool = False
    coco: bool = False
    _taken: set[Path] = field(default_factory=set)
    _results: list[dict[str, Any]] = field(default_factory=list)
    _images: dict[str, int] = field(default_factory=dict)
    _open: ExitStack = field(default_factory=ExitStack)
    _writers: dict[str, tuple[Path, Writer]] = field(default_factory=dict)

    def keep(self, found: Found) -> Path | None:
        """Write what is asked for of one picture; the path of the drawn one."""
        if self.coco:
            self._results += self._as_coco(found)
        if self.text:
            publish(self._path("labels", found.seen.file, ".txt", found.seen.frame), as_text(found).encode())
        return self._draw(found) if self.draw else None

    def close(self) -> None:
        """Finish videos and write the results file."""
        self._open.close()
        if self.coco:
            publish(self.folder / "detections.json", (json.dumps(self._results) + "\n").encode())

    def _draw(self, found: Found) -> Path:
        seen, pixels = found.seen, drawn(found.seen.pixels, found.rows, self.pipe.label)
        if seen.frame is None:
            path = self._path("drawn", seen.file, ".jpg")
            Image.fromarray(pixels).save(path, quality=92, subsampling=0)
            return path
        if seen.file not in self._writers:
            path = self._path("drawn", seen.file, ".mp4")
            self._writers[seen.file] = path, self._open.enter_context(Writer(path, seen.rate))
        path, writer = self._writers[seen.file]
        writer.write(pixels)
        return path

    def _path(self, kind: str, file: str, ending: str, frame: int | None = None) -> Path:
        """A file of its own for each picture, also where two folders have pictures of one name."""
        stem = "stdin" if file == "-" else Path(file.replace(":", "_")).stem[-150:]
        stem += "" if frame is None else f"_{frame:06d}"
        path, number = self.folder / kind / f"{stem}{ending}", 2
        while path in self._taken:
            path, number = self.folder / kind / f"{stem}-{number}{ending}", number + 1
        self._taken.add(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _as_coco(self, found: Found) -> list[dict[str, Any]]:
        """Rows of a COCO results file; a picture whose name is a number is called by it, others are counted."""
        name = Path(found.seen.file).name + ("" if found.seen.frame is None else f"#{found.seen.frame}")
        key = found.seen.file + ("" if found.seen.frame is None else f"#{found.seen.frame}")
        stem = Path(found.seen.file).stem
        own = int(stem) if stem.isdecimal() and found.seen.frame is None else len(self._images) + 1
        number = self._images.setdefault(key, own)
        return [
            {
                "image_id": number,
                "file_name": name,
                "category_id": category(int(row[5]), self.pipe.classes),
                "category": self.pipe.label(int(row[5])),
                "bbox": [round(float(n), 3) for n in (row[0], row[1], row[2] - row[0], row[3] - row[1])],
                "score": round(float(row[4]), 5),
            }
            for row in found.rows
        ]


def category(number: int, classes: Sequence[str]) -> int:
    """COCO's own id where these are its 80 classes, else the class number."""
    from featherweight.data.coco import COCO91

    return COCO91[number] if len(classes) == len(COCO91) and tuple(classes[:2]) == ("person", "bicycle") else number


def as_text(found: Found) -> str:
    """YOLO's rows: class, center, width and height as shares of the picture, score."""
    height, width = found.seen.pixels.shape[:2]
    lines = []
    for x1, y1, x2, y2, score, number in found.rows.tolist():
        shares = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
        lines.append(f"{int(number)} {' '.join(f'{share:.6f}' for share in shares)} {score:.5f}\n")
    return "".join(lines)


def summary(found: Found, pipe: Detector) -> str:
    """ "3 RBC, 1 WBC"."""
    numbers, counts = np.unique(found.rows[:, 5].astype(int), return_counts=True)
    words = [f"{count} {pipe.label(int(number))}" for number, count in zip(numbers, counts, strict=True)]
    return ", ".join(words) or "nothing found"
