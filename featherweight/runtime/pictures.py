# SPDX-License-Identifier: Apache-2.0
"""Pictures as they come, uint8 (B, H, W, 3), given to an exported file: what prepares them is part of its graph.

Without `frame` a picture is fitted to the input here (`Preprocess.fit`) and normalized in the graph, in either runtime.
`quick` has OpenCV resize for letterbox, which takes a twentieth of the time and is at most one level of 255 apart.
With `frame`, the one size of all pictures (a camera, a video), OpenVINO also resizes, crops or pads them. Answers are
those of `Preprocess` in NumPy but for rounding: normalized values differ by less than 1e-5, resized ones by at most one
level of 255.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featherweight.doors import protobuf as pb
from featherweight.errors import InputError, OptionError, missing_extra
from featherweight.runtime import graphs, ort, ov, session
from featherweight.runtime.letterbox import GRAY, Letterbox, put
from featherweight.runtime.metadata import preprocess_in
from featherweight.runtime.nms import THRESHOLDS
from featherweight.runtime.preprocess import BUDGET, Preprocess
from featherweight.runtime.session import Array, Arrays, Session

PIXELS = "pixels"


class PictureSession:
    """A `Session` whose first input is pictures; `run` takes them one by one or stacked."""

    def __init__(
        self, inner: Session, preprocess: Preprocess, frame: tuple[int, int] | None, *, quick: bool = False
    ) -> None:
        self.session, self.preprocess, self.frame = inner, preprocess, frame
        self.fit = fitting(preprocess, quick=quick)
        self.input = inner.inputs[0].name

    def run(self, pictures: Sequence[NDArray[np.uint8]], *, copy: bool = True, **more: Array) -> Arrays:
        """Pictures (H, W, 3) uint8, of the frame's size where there is one -> outputs; more: what else it takes."""
        if self.frame is not None:
            for picture in pictures:
                if picture.shape != (*self.frame, 3):
                    text = f"is {picture.shape}, but the graph was made for frames of {self.frame}"
                    raise InputError("picture", "bad_dimensions", text)
        ready = pictures if self.frame is not None else [self.fit(picture) for picture in pictures]
        batch = ready[0][None] if len(ready) == 1 else np.stack(ready)
        return self.session.run({self.input: batch, **more}, copy=copy)


def open_pictures(
    path: str | Path,
    *,
    frame: tuple[int, int] | None = None,
    preprocess: Preprocess | None = None,
    backend: str | None = None,
    quick: bool = False,
    **options: Any,
) -> PictureSession:
    """A file of ours, or one whose `preprocess` you give, that takes pictures; options of `session.open_session`.

    frame: (height, width) of every picture, which OpenVINO then resizes itself. quick: OpenCV resizes for letterbox.
    OptionError where it cannot be, MissingExtra without OpenCV.
    """
    path = Path(path)
    how = session.checked(**options)
    backend = session.backend_of(path, "openvino" if frame is not None and backend is None else backend)
    if how.cache is not None:
        raise OptionError("cache", "is for files as they are; with pictures in the graph it is compiled each time")
    session.silence()
    if backend == "onnxruntime":
        if frame is not None:
            raise OptionError("frame", "needs the openvino backend; onnxruntime normalizes in the graph, no more")
        data = session.graph_bytes(path)
        found = preprocess or preprocess_in(_told(data), path)
        return PictureSession(ort.open_file(path, how, with_pixels(data, found, path)), found, None, quick=quick)
    model = ov.read(path)
    found = preprocess or preprocess_in(ov.metadata(model), path)
    return PictureSession(ov.of_model(_prepared(model, found, frame, path), path, how), found, frame, quick=quick)


def fitting(preprocess: Preprocess, *, quick: bool = False) -> Callable[[NDArray[np.uint8]], NDArray[np.uint8]]:
    """`Preprocess.fit`, or with `quick` the same by OpenCV where it is letterbox: at most one level of 255 apart."""
    if not quick or preprocess.resize != "letterbox":
        return preprocess.fit
    try:
        import cv2
    except ImportError:
        raise missing_extra("resizing with OpenCV", "opencv-python-headless", "video") from None
    box = Letterbox(preprocess.size)

    def resize(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
        same = image.shape[:2] == (height, width)
        return image if same else np.asarray(cv2.resize(image, (width, height)), np.uint8)  # bilinear by default

    return lambda image: put(image, box.inner(*image.shape[:2]), box.place(*image.shape[:2]), resize=resize)


def _told(data: bytes) -> dict[str, str]:
    """The metadata of an ONNX file."""
    fields = pb.fields(memoryview(data))
    return dict(pb.texts(part) for number, wire, _, part in fields if (number, wire) == (14, pb.BYTES))


def with_pixels(data: bytes, preprocess: Preprocess, path: object = "model") -> bytes:
    """An ONNX graph whose first input is `pixels`, uint8 (N, h, w, 3), and which normalizes them itself."""
    pieces = []
    for number, wire, count, part in pb.fields(memoryview(data)):
        if number == 7 and wire == pb.BYTES:
            pieces.append(pb.encoded(7, _graph(part, preprocess, path)))
        else:
            pieces.append(_field(number, wire, count, part))
    return b"".join(pieces)


def _graph(graph: memoryview, preprocess: Preprocess, path: object) -> bytes:
    fields = list(pb.fields(graph))
    constants = {_name(part, 8) for number, _, _, part in fields if number == 5}
    names = [_name(part, 1) for number, _, _, part in fields if number == 11]
    images = next((name for name in names if name not in constants and name not in THRESHOLDS), None)
    if images is None:
        raise InputError(path, "bad_shape", "takes no pictures")
    scale, shift = _scale(preprocess)
    nodes = [
        graphs.node("Transpose", [PIXELS], f"{PIXELS}_chw", perm=(0, 3, 1, 2)),
        graphs.node("Cast", [f"{PIXELS}_chw"], f"{PIXELS}_float", to=graphs.FLOAT),
        graphs.node("Mul", [f"{PIXELS}_float", f"{PIXELS}_scale"], f"{PIXELS}_scaled"),
        graphs.node("Add", [f"{PIXELS}_scaled", f"{PIXELS}_shift"], images),
    ]
    pieces = [pb.encoded(1, node) for node in nodes]
    pieces += [pb.encoded(5, graphs.tensor(f"{PIXELS}_{n}", v)) for n, v in (("scale", scale), ("shift", shift))]
    pieces.append(pb.encoded(11, graphs.value(PIXELS, ("batch", *preprocess.size, 3), graphs.UINT8)))
    pieces += [_field(*one) for one in fields if not (one[0] == 11 and _name(one[3], 1) == images)]
    return b"".join(pieces)


def _scale(preprocess: Preprocess) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """What a level is multiplied by and what is added, (3, 1, 1) each."""
    mean, std = np.array(preprocess.mean), np.array(preprocess.std)
    scale, shift = 1 / (255 * std), -mean / std
    return scale.astype(np.float32).reshape(3, 1, 1), shift.astype(np.float32).reshape(3, 1, 1)


def _field(number: int, wire: int, count: int, part: memoryview) -> bytes:
    if wire == pb.VARINT:
        return pb.number(number, count)
    return pb.encoded(number, bytes(part)) if wire == pb.BYTES else pb.fixed(number, bytes(part))


def _name(part: memoryview, field: int) -> str:
    return next((bytes(text).decode() for number, _, _, text in pb.fields(part) if number == field), "")


def _prepared(model: Any, preprocess: Preprocess, frame: tuple[int, int] | None, path: Path) -> Any:
    """OpenVINO's model with the steps in front of it."""
    from openvino import Layout, Type
    from openvino.preprocess import PrePostProcessor

    port = model.inputs[0]
    if port.partial_shape.rank.get_length() != 4:
        raise InputError(path, "bad_shape", "does not take one batch of pictures (B, 3, H, W)")
    batch = port.partial_shape[0]
    model.reshape({port: [-1 if batch.is_dynamic else batch.get_length(), 3, *preprocess.size]})
    steps = PrePostProcessor(model)
    images = steps.input(0)
    images.tensor().set_element_type(Type.u8).set_layout(Layout("NHWC"))
    images.model().set_layout(Layout("NCHW"))
    if frame is not None:
        images.tensor().set_spatial_static_shape(*frame)
    if frame is None or preprocess.resize == "letterbox":  # Pillow's filters round to whole levels, as Pillow does
        images.preprocess().convert_element_type(Type.f32)
    if frame is not None:
        _resized(images.preprocess(), preprocess, frame)
    if frame is not None and preprocess.resize != "letterbox":
        images.preprocess().convert_element_type(Type.f32)
    mean, std = ([255 * float(v) for v in values] for values in (preprocess.mean, preprocess.std))
    images.preprocess().mean(mean).scale(std)
    return steps.build()


def _resized(steps: Any, preprocess: Preprocess, frame: tuple[int, int]) -> None:
    """Resize, crop and pad for pictures of one size, as `Preprocess.fit` does."""
    from openvino.preprocess import PaddingMode, ResizeAlgorithm

    if preprocess.resize == "letterbox":
        box = Letterbox(preprocess.size)
        inner, place = box.inner(*frame), box.place(*frame)
        left, top = int(place.pad[0]), int(place.pad[1])
        if inner != frame:
            steps.resize(ResizeAlgorithm.RESIZE_LINEAR, *inner)
        end = [0, preprocess.size[0] - inner[0] - top, preprocess.size[1] - inner[1] - left, 0]
        if any((top, left, *end)):
            steps.pad([0, top, left, 0], end, float(GRAY), PaddingMode.CONSTANT)
        return
    tall, wide = preprocess.resized(*frame)
    if tall * wide > BUDGET:
        raise OptionError("frame", f"{frame} becomes {tall} x {wide} pixels before its crop; crop it before")
    cubic = preprocess.interpolation == "bicubic"
    if (tall, wide) != frame:
        way = ResizeAlgorithm.RESIZE_BICUBIC_PILLOW if cubic else ResizeAlgorithm.RESIZE_BILINEAR_PILLOW
        steps.resize(way, tall, wide)
    if (tall, wide) != preprocess.size:
        top, left = round((tall - preprocess.size[0]) / 2.0), round((wide - preprocess.size[1]) / 2.0)
        steps.crop([0, top, left, 0], [2**31 - 1, top + preprocess.size[0], left + preprocess.size[1], 3])
