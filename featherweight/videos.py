# SPDX-License-Identifier: Apache-2.0
"""Videos and cameras as pictures one after the other, and pictures as a video, with OpenCV."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featherweight.errors import InputError, missing_extra

ENDINGS = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg")
CAMERA = re.compile(r"camera(?::(\d{1,3}))?")
RATE = 25.0  # frames a second, where the source does not say


def is_video(source: str) -> bool:
    """Whether this names a video file or a camera ("camera", "camera:1")."""
    return CAMERA.fullmatch(source) is not None or Path(source).suffix.lower() in ENDINGS


class Video:
    """The frames (H, W, 3) uint8 RGB of a file or a camera, upright, in order; use it with `with`."""

    def __init__(self, source: str) -> None:
        self.source = source
        camera = CAMERA.fullmatch(source)
        if camera is None and not Path(source).is_file():
            raise InputError(source, "missing", "does not exist; check the name")
        self._opened = _cv2().VideoCapture(int(camera[1] or 0) if camera else source)
        if not self._opened.isOpened():
            self._opened.release()
            what = "no camera of that number can be opened" if camera else "is no video that OpenCV can read"
            raise InputError(source, "unsupported_format", what)

    @property
    def rate(self) -> float:
        """Frames a second."""
        found = float(self._opened.get(_cv2().CAP_PROP_FPS))
        return found if 0 < found < 1000 else RATE

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        count = 0
        while True:
            there, frame = self._opened.read()
            if not there:
                break
            count += 1
            yield np.ascontiguousarray(frame[..., ::-1])
        if not count:
            raise InputError(self.source, "corrupt", "has no frame that can be read")

    def __enter__(self) -> Video:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._opened.release()


class Writer:
    """Frames (H, W, 3) uint8 RGB into an .mp4 file; the first one decides the size. Use it with `with`."""

    def __init__(self, path: Path, rate: float) -> None:
        self.path, self.rate = path, rate
        self._to: Any = None

    def write(self, frame: NDArray[np.uint8]) -> None:
        """The next frame."""
        if self._to is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            code = _cv2().VideoWriter_fourcc(*"mp4v")
            self._to = _cv2().VideoWriter(str(self.path), code, self.rate, (frame.shape[1], frame.shape[0]))
            if not self._to.isOpened():
                raise InputError(self.path, "unreadable", "cannot be written as a video")
        self._to.write(np.ascontiguousarray(frame[..., ::-1]))

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._to is not None:
            self._to.release()


def _cv2() -> Any:
    os.environ.setdefault("OPENCV_LOG_LEVEL", "ERROR")  # a file that is no video is our error, not its page of text
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    try:
        import cv2
    except ImportError:
        raise missing_extra("reading videos and cameras", "opencv-python-headless", "video") from None
    return cv2
