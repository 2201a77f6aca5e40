# SPDX-License-Identifier: Apache-2.0
"""The one reader of pictures: any of six formats, told by their content, to upright RGB.

Decided here once for training, command line and server: EXIF orientation is applied; alpha is dropped as Pillow's
`convert("RGB")` does; 16-bit grey becomes v / 257; of an animation the first frame is taken; half a picture is none.
Float and 32-bit pictures are refused, since nobody can know their range. Color profiles are not applied. Not noticed: a
JPEG that was cut and given an end marker again, because its decoder fills up the rest without a word.
"""

from __future__ import annotations

import contextlib
import os
import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import BmpImagePlugin, GifImagePlugin, Image, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin

from featherweight.doors import door, jpeg, read_input
from featherweight.errors import InputError

MAX_PIXELS = 89_478_485  # where Pillow begins to warn
MAX_BYTES = 512 << 20
EXTENSIONS = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})

Source = str | bytes | os.PathLike[str] | Image.Image | np.ndarray

_READERS: dict[str, Callable[[BytesIO], Image.Image]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "WebP": WebPImagePlugin.WebPImageFile,
}
_OTHERS = {
    b"%!PS": "EPS", b"\xc5\xd0\xd3\xc6": "EPS", b"\0\0\0\x0cjP  ": "JPEG 2000", b"\xff\x4f\xff\x51": "JPEG 2000",
    b"8BPS": "PSD", b"\0\0\1\0": "ICO", b"qoif": "QOI", b"DDS ": "DDS", b"\xff\x0a": "JPEG XL", b"gimp xcf": "XCF",
    b"\0\0\0\x0cJXL ": "JPEG XL", b"#?RADIANCE": "HDR", b"\x76\x2f\x31\x01": "OpenEXR", b"icns": "ICNS",
}  # fmt: skip
_ALLOWED = "JPEG, PNG, WebP, BMP, GIF and TIFF are read"
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_warnings_lock = threading.Lock()


def read(source: Source, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """A file, its bytes, a PIL image or an array -> upright RGB, uint8 (H, W, 3). Raises InputError."""
    if isinstance(source, np.ndarray):
        return _from_array(source, max_pixels)
    if isinstance(source, Image.Image):
        with door("picture", "corrupt"):
            _check_size(source.size, "picture", max_pixels)
            return _to_rgb(source, "picture")
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _decode(bytes(source), "picture", max_pixels)
    return _decode(read_input(source, max_bytes=MAX_BYTES), source, max_pixels)


def scan(folder: str | os.PathLike[str]) -> list[Path]:
    """Every file under `folder` with a picture's extension, sorted, each once; links to folders are followed but not in
    circles. Whether the files are pictures is seen when they are read."""
    root = Path(folder)
    found: list[Path] = []
    with door(root, "unreadable", "cannot be searched"):
        if not root.is_dir():
            reason = "unreadable" if root.exists() else "missing"
            raise InputError(root, reason, "is not a folder" if root.exists() else "does not exist; check the name")
        _search(root, {os.path.realpath(root)}, found)
    return sorted(found, key=lambda path: path.relative_to(root).parts)


def _search(root: Path, seen: set[str], found: list[Path]) -> None:
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            if os.path.isdir(entry.path):  # not entry.is_dir(), which raises on a link to itself
                real = os.path.realpath(entry.path)
                above = os.path.realpath(folder).startswith(real.rstrip(os.sep) + os.sep)
                if real not in seen and not above:  # a link upwards would lead out of the folder that was asked for
                    seen.add(real)
                    waiting.append(Path(entry.path))
            elif os.path.splitext(entry.name)[1].lower() in EXTENSIONS:
                found.append(Path(entry.path))


def _decode(data: bytes, name: object, max_pixels: int) -> np.ndarray:
    kind = _format(data, name)
    with door(name, "corrupt", f"is a damaged {kind}"), _quiet(kind == "TIFF" or (kind == "PNG" and b"acTL" in data)):
        _check_size(_early_size(data, kind), name, max_pixels)
        if kind == "PNG":
            _check_png(data, name)
        if kind == "JPEG" and jpeg.has_too_many_scans(data):
            raise InputError(name, "too_large", f"has more than {jpeg.MAX_SCANS} scans; save it again")
        try:
            # Not Image.open: it would guess among all plugins, and its own size check only warns.
            with _READERS[kind](BytesIO(data)) as image:
                _check_size(image.size, name, max_pixels)
                found = jpeg.pixels(data, image.size) if kind == "JPEG" else None
                return _to_rgb(image, name) if found is None else _upright(found, image)
        except EOFError as error:
            raise InputError(name, "truncated", f"this {kind} stops early; copy it again") from error
        except (OSError, SyntaxError, ValueError) as error:
            if "truncated" in str(error).lower() or len(data) < 32:
                raise InputError(name, "truncated", f"this {kind} stops early; copy it again") from error
            if "unknown pixel mode" in str(error) or "unknown data organization" in str(error):
                raise InputError(name, "unsupported_format", f"this kind of {kind} is not read") from error
            raise


def _format(data: bytes, name: object) -> str:
    """The format by content; the extension is not looked at."""
    if not data:
        raise InputError(name, "empty", "has no bytes; was the copy interrupted?")
    if data[:2] == b"\xff\xd8":
        return "JPEG"
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return "GIF"
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "TIFF"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WebP"
    if data[:4] == b"\x89PNG":
        return "PNG"
    if data[:2] == b"BM" and (len(data) < 18 or data[15:18] == b"\0\0\0"):
        return "BMP"
    other = next((kind for magic, kind in _OTHERS.items() if data.startswith(magic)), None)
    if data[4:8] == b"ftyp":
        other = "AVIF or HEIC"
    if len(data) > 2 and data[:1] == b"P" and data[1:2] in b"1234567" and data[2:3].isspace():
        other = "PNM"
    if other:
        raise InputError(name, "unsupported_format", f"is {other}; {_ALLOWED}")
    raise InputError(name, "not_an_image", f"is not a picture; {_ALLOWED}")


def _check_size(size: tuple[int, int], name: object, max_pixels: int) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise InputError(name, "bad_dimensions", f"claims to be {width} x {height} pixels")
    if width * height > max_pixels:
        text = f"claims {width} x {height} pixels, the limit is {max_pixels}; make it smaller, or raise max_pixels"
        raise InputError(name, "too_large", text)


def _early_size(data: bytes, kind: str) -> tuple[int, int]:
    """What the header says, where Pillow would set memory aside on opening or misread the number; else 1 x 1."""
    if kind == "PNG" and data[12:16] == b"IHDR" and zlib.crc32(data[12:29]).to_bytes(4, "big") == data[29:33]:
        width, height = struct.unpack_from(">II", data, 16)
        return width, height
    if kind == "BMP" and len(data) >= 26 and data[14] >= 40:
        width, height = struct.unpack_from("<ii", data, 18)
        return width, abs(height)  # a negative height means from top to bottom
    if kind != "WebP":
        return 1, 1
    head = data[12:30].ljust(18, b"\0")
    if head[:4] == b"VP8X":
        return int.from_bytes(head[12:15], "little") + 1, int.from_bytes(head[15:18], "little") + 1
    if head[:4] == b"VP8L":
        bits = int.from_bytes(head[9:13], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = struct.unpack("<HH", head[14:18])
    return max(1, width & 0x3FFF), max(1, height & 0x3FFF)


def _check_png(data: bytes, name: object) -> None:
    """Every chunk whole and with the right checksum; Pillow does not look at those of the pixels."""
    position, pixels = 8, zlib.decompressobj()
    missing = _png_bytes(data)
    while True:
        if position + 12 > len(data):
            raise InputError(name, "truncated", "this PNG stops early; copy it again")
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 8 + length
        if end + 4 > len(data):
            raise InputError(name, "truncated", "this PNG stops early; copy it again")
        if zlib.crc32(memoryview(data)[position + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            raise InputError(name, "corrupt", f"the checksum of its {ascii(kind)[2:-1]} chunk is wrong; copy it again")
        if kind == b"IDAT":
            missing -= _inflated(pixels, data[position + 8 : end], missing)
        if kind == b"IEND":
            break
        position = end + 4
    if missing > 0:
        raise InputError(name, "corrupt", f"the last {missing} bytes of this PNG's pixels are missing; copy it again")


def _png_bytes(data: bytes) -> int:
    """How many bytes the pixels of a PNG inflate to, by its IHDR: rows with one filter byte each."""
    width, height, bits, kind, _, _, interlace = struct.unpack_from(">IIBBBBB", data, 16)
    bits *= {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(kind, 0)
    passes = _ADAM7 if interlace else ((0, 0, 1, 1),)
    sizes = [(-(-(width - x) // dx), -(-(height - y) // dy)) for x, y, dx, dy in passes]
    return sum(h * (1 + (w * bits + 7) // 8) for w, h in sizes if w > 0 and h > 0)


def _inflated(stream: zlib._Decompress, data: bytes, limit: int) -> int:
    """How many bytes come out of the next piece of a stream, in bounded memory, up to `limit`."""
    found = 0
    while data and found < limit and not stream.eof:
        found += len(stream.decompress(data, 1 << 16))
        data = stream.unconsumed_tail
    return found


def _to_rgb(image: Image.Image, name: object) -> np.ndarray:
    """Load, turn upright, convert."""
    image.load()
    depth = {8 if bits in (1, 2, 4, 8) else bits for bits in getattr(image, "tag_v2", {}).get(258, ())}
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        if depth - {16}:
            raise InputError(name, "unsupported_format", f"has {depth} bits a pixel; 8 and 16 are read")
        values = np.asarray(image).astype(np.uint32)
        if getattr(image, "tag_v2", {}).get(262) == 0:  # a TIFF whose white is 0; Pillow turns round only 8 bits
            values = 65535 - values
        image = _turned(Image.fromarray(((values + 128) // 257).astype(np.uint8)), image)
    elif image.mode in ("F", "I"):
        text = "has float or 32-bit pixels, whose range is unknown; save it with 8 or 16 bits"
        raise InputError(name, "unsupported_format", text)
    else:
        image = _turned(image, image)
    image.info.pop("transparency", None)  # dropped in any case; Pillow would warn about it
    return np.array(image.convert("RGB"))


def _upright(pixels: np.ndarray, original: Image.Image) -> np.ndarray:
    """Pixels turned by the EXIF of `original`."""
    turns = _orientation(original.info.get("exif", b"")) in _TURNS
    return np.array(_turned(Image.fromarray(pixels), original)) if turns else pixels


def _turned(image: Image.Image, original: Image.Image) -> Image.Image:
    """Upright by the EXIF of `original`; a TIFF has been turned by Pillow on loading."""
    turn = _TURNS.get(_orientation(original.info.get("exif", b"")))
    return image if turn is None or original.format == "TIFF" else image.transpose(turn)


def _orientation(exif: object) -> int:
    """The orientation entry of an EXIF block, 1 if there is none or it cannot be read."""
    block = exif.removeprefix(b"Exif\0\0") if isinstance(exif, bytes) else b""
    order = {b"II": "<", b"MM": ">"}.get(block[:2])
    if order is None:
        return 1
    with contextlib.suppress(struct.error):
        (start,) = struct.unpack_from(order + "I", block, 4)
        (count,) = struct.unpack_from(order + "H", block, start)
        for i in range(count):
            tag, kind, _, value = struct.unpack_from(order + "HHIH", block, start + 2 + 12 * i)
            if tag == 0x0112 and kind == 3:
                return int(value)
    return 1


def _from_array(array: np.ndarray, max_pixels: int) -> np.ndarray:
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        text = f"is {array.dtype} {array.shape}; an array must be uint8 (H, W), (H, W, 1), (H, W, 3) or (H, W, 4)"
        raise InputError("array", "bad_shape" if array.dtype == np.uint8 else "bad_type", text)
    _check_size((array.shape[1], array.shape[0]), "array", max_pixels)
    if array.ndim == 2 or array.shape[2] == 1:
        array = np.repeat(array.reshape(*array.shape[:2], 1), 3, axis=2)
    return np.array(array[..., :3], order="C")


@contextlib.contextmanager
def _quiet(needed: bool) -> Iterator[None]:
    """Without Pillow's remarks on odd tags: a picture is read or refused. Filters are global, hence the lock."""
    if not needed:
        yield
        return
    with _warnings_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
