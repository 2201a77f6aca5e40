# SPDX-License-Identifier: Apache-2.0
"""The package as the corpus runner, the fuzzer and the mutator see it: one function for each kind of input."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

if importlib.util.find_spec("featherweight") is None:  # the runner may be started outside the environment
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from featherweight.errors import InputError


class Refused(Exception):
    """What the runner expects of a refusal: `reason`, and the user's line as str()."""

    def __init__(self, reason: str, line: str) -> None:
        super().__init__(line)
        self.reason = reason


def _through(function: Any, *args: Any) -> Any:
    try:
        return function(*args)
    except InputError as error:
        raise Refused(error.reason, str(error)) from error


def load_checkpoint(path: str, spec: dict[str, Any]) -> dict[str, Any]:
    from featherweight.doors import checkpoint

    def load() -> dict[str, Any]:
        tensors = checkpoint.read(path)
        checkpoint.check(tensors, spec, name=path)
        return {name: tensor.numpy().tolist() for name, tensor in tensors.items()}

    return _through(load)


def load_image(path: str | bytes) -> Any:
    from featherweight.doors import image

    return _through(image.read, path)


def scan_images(folder: str) -> list[str]:
    from featherweight.doors import image

    return [str(path) for path in _through(image.scan, folder)]


def preprocess(picture: Any) -> Any:
    """A picture as the models get it, float32 (3, 224, 224)."""
    from featherweight.runtime.preprocess import Preprocess

    return Preprocess(size=(224, 224))(picture)


def load_config(path: str) -> dict[str, Any]:
    from featherweight import recipe

    return _through(lambda: recipe.flat(recipe.read(path)))


def load_onnx(path: str) -> dict[str, Any]:
    from featherweight.doors import onnx

    return {"bytes": len(_through(onnx.read, path)), "warnings": []}
