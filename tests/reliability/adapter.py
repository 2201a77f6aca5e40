# SPDX-License-Identifier: Apache-2.0
"""The package as the corpus runner, the fuzzer and the mutator see it: one function for each kind of input."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

if importlib.util.find_spec("featherweight") is None:  # the runner may be started outside the environment
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

# All at the start, so that the processes the runner forks measure the reading and not the importing.
from featherweight import artifact, recipe
from featherweight.data import coco, scenes, yolo
from featherweight.data.objects import Findings, Objects, settle
from featherweight.doors import checkpoint, image
from featherweight.errors import InputError
from featherweight.runtime.preprocess import Preprocess
from featherweight.runtime.session import open_session, silence

silence()
import onnxruntime  # noqa: E402, F401


class Refused(Exception):
    """What the runner expects of a refusal: `reason`, and the user's line as str()."""

    def __init__(self, reason: str, line: str) -> None:
        super().__init__(line)
        self.reason = reason


def _through(read: Callable[[], Any]) -> Any:
    """The answer of a door; only InputError is a refusal, anything else is a defect and shall be seen."""
    try:
        return read()
    except InputError as error:
        raise Refused(error.reason, str(error)) from error


def load_image(path: str | bytes) -> Any:
    return _through(lambda: image.read(os.fsdecode(path)))  # bytes would be the picture itself


def preprocess(picture: Any) -> Any:
    return Preprocess(size=(224, 224))(picture)


def scan_images(folder: str) -> list[str]:
    return _through(lambda: [str(path) for path in image.scan(folder)])


def load_checkpoint(path: str, spec: dict[str, Any]) -> dict[str, Any]:
    def load() -> dict[str, Any]:
        tensors = checkpoint.read(path)
        checkpoint.check(tensors, spec, name=path)
        return {name: tensor.numpy().tolist() for name, tensor in tensors.items()}

    return _through(load)


def load_onnx(path: str) -> dict[str, Any]:
    """As a user meets it: the door, then ONNX Runtime on the bytes that came through."""

    def load() -> dict[str, Any]:
        session = open_session(path, backend="onnxruntime", threads=1)
        return {"inputs": [port.name for port in session.inputs], "outputs": [port.name for port in session.outputs]}

    return _through(load)


def load_config(path: str) -> dict[str, Any]:
    return _through(lambda: recipe.flat(recipe.read(path)))


def load_coco(path: str) -> dict[str, Any]:
    """The annotations with their pictures, as training takes them."""

    def load() -> dict[str, Any]:
        findings = Findings()
        part, categories = coco.read(Path(path), None, findings)
        found = scenes.settled(part, len(categories.names), findings)
        every = [found.pictures.objects(i) for i in range(len(found.pictures))]
        boxes = [box for one in every for box in one.targets().boxes.tolist()]
        return {
            **_told(findings),
            "images": len(every),
            "boxes": len(boxes),
            "crowd": sum(int(one.crowd.sum()) for one in every),
            "names": list(categories.names),
            "labels": [label for one in every for label in one.targets().labels.tolist()],
            "xywh": [[x1, y1, x2 - x1, y2 - y1] for x1, y1, x2, y2 in boxes],
        }

    return _through(load)


def load_yolo(path: str) -> dict[str, Any]:
    """One label file of a picture of 48 x 32, with three classes."""

    def load() -> dict[str, Any]:
        findings = Findings()
        rows = yolo.rows(Path(path), 3, findings)
        found: Objects = settle(rows, name=path, size=(32, 48), classes=3, findings=findings)
        centers = [[(x1 + x2) / 96, (y1 + y2) / 64, (x2 - x1) / 48, (y2 - y1) / 32] for x1, y1, x2, y2 in found.boxes]
        return {
            **_told(findings),
            "boxes": len(found),
            "labels": found.labels.tolist(),
            "xywhn": [[float(side) for side in one] for one in centers],
        }

    return _through(load)


def load_data_yaml(path: str) -> dict[str, Any]:
    def load() -> dict[str, Any]:
        findings = Findings()
        names, parts, _ = yolo.description(Path(path), findings)
        return {**_told(findings), "names": list(names), "parts": sorted(parts)}

    return _through(load)


def _told(findings: Findings) -> dict[str, Any]:
    return {"warnings": list(findings.reasons), "dropped": findings.total("dropped")}


def load_artifact(path: str) -> dict[str, str]:
    """The digest of every tensor of the loaded model, which two loads can be compared by."""

    def load() -> dict[str, str]:
        state = artifact.load(path).state_dict()
        return {name: hashlib.sha256(tensor.numpy().tobytes()).hexdigest() for name, tensor in state.items()}

    return _through(load)
