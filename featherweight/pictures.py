# SPDX-License-Identifier: Apache-2.0
"""What a pipeline takes for a picture, and how one, a list or a stream of them is answered."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featherweight.doors import image
from featherweight.errors import InputError, OptionError


def each(inputs: Any, stream: Callable[[Iterable[Any]], Iterator[Any]]) -> Any:
    """What `stream` makes of the inputs: one answer for a picture, a list for a list, a generator for what yields."""
    if isinstance(inputs, list):
        if any(isinstance(item, list) for item in inputs):
            return [each(item, stream) for item in inputs]
        return list(stream(inputs))
    if is_picture(inputs):
        return next(stream([inputs]))
    if isinstance(inputs, Iterable) and not isinstance(inputs, Mapping):
        return stream(inputs)
    raise _no_picture(inputs)


def check_batch_size(batch_size: object) -> None:
    """OptionError for what is no number of pictures."""
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise OptionError("batch_size", f"must be 1 or more, not {batch_size!r}")


def is_picture(value: Any) -> bool:
    """Whether this is one picture, not something that yields pictures."""
    kinds = (str, bytes, bytearray, memoryview, os.PathLike, np.ndarray)
    return isinstance(value, kinds) or _is_pil(value) or _is_tensor(value)


def _is_pil(value: Any) -> bool:
    from PIL import Image

    return isinstance(value, Image.Image)


def _is_tensor(value: Any) -> bool:
    return type(value).__module__.partition(".")[0] == "torch" and hasattr(value, "detach")


def load(picture: Any, *, max_pixels: int = image.MAX_PIXELS) -> NDArray[np.uint8]:
    """Anything that is a picture -> uint8 (H, W, 3). Raises InputError, for an address too."""
    if isinstance(picture, str):
        if "://" in picture or picture.startswith("data:"):
            text = "is an address; nothing is downloaded: save the picture and give its path"
            raise InputError(picture, "unsafe_path", text)
        picture = Path(picture)
    if _is_tensor(picture):
        picture = _from_tensor(picture.detach().cpu().numpy())
    if not is_picture(picture):
        raise _no_picture(picture)
    return image.read(picture, max_pixels=max_pixels)


def _no_picture(value: Any) -> InputError:
    known = "a path, bytes, PIL image, array or tensor, or a list of them"
    return InputError("picture", "bad_type", f"{type(value).__name__} is no picture; give {known}")


def _from_tensor(values: NDArray[Any]) -> NDArray[Any]:
    """A tensor (3, H, W) or (1, H, W), uint8 or float of 0..1 as torchvision makes it, -> uint8 (H, W, C)."""
    if values.ndim == 3 and values.shape[0] in (1, 3) and values.shape[2] not in (1, 3):
        values = values.transpose(1, 2, 0)
    if values.dtype.kind == "f":
        if not np.isfinite(values).all() or values.size == 0 or values.min() < 0 or values.max() > 1:
            text = "float pixels must be 0..1; normalizing is done here, so give the picture before it"
            raise InputError("tensor", "out_of_range", text)
        values = np.round(values * 255).astype(np.uint8)
    return values
