# SPDX-License-Identifier: Apache-2.0
"""Pictures whose right pixels are known, in every mode and turned every way; and what must not pass for a picture."""

import io
import os
import struct
import time
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from door_files import chunk, encoded, picture, png, tiff
from PIL import Image, ImageFile

from featherweight.doors import image as door
from featherweight.errors import InputError

P = Image.fromarray(picture())
RAMP = np.tile(np.linspace(0, 65535, 48).round().astype(np.uint16), (32, 1))
WIDTH = struct.pack("<HHIHH", 256, 3, 1, 48, 0)  # as `tiff` writes it
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (80, 96, 3), dtype=np.uint8))
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP")


def reason(data: door.Source, **options: int) -> str:
    with pytest.raises(InputError) as caught:
        door.read(data, **options)
    return caught.value.reason


def rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=2).astype(np.uint8)


def with_alpha() -> Image.Image:
    image = P.convert("RGBA")
    image.putalpha(Image.fromarray(np.tile(np.arange(48, dtype=np.uint8) * 5, (32, 1))))
    return image


@pytest.mark.parametrize(
    "data",
    [
        encoded(P.convert("CMYK"), "JPEG", quality=95),
        encoded(P.convert("CMYK"), "TIFF"),
        encoded(with_alpha(), "PNG"),
        encoded(with_alpha(), "WEBP", lossless=True, exact=True),
        encoded(with_alpha(), "TIFF"),
        encoded(P.quantize(4), "PNG"),
        encoded(P.quantize(4), "PNG", transparency=bytes([0, 128, 255, 3])),
        encoded(P.quantize(4), "GIF", transparency=1),
        encoded(P.quantize(4), "BMP"),
        encoded(P, "PNG", transparency=(220, 30, 30)),
        encoded(P, "TIFF", compression="tiff_lzw"),
        *(
            encoded(P, kind, save_all=True, append_images=[Image.fromarray(255 - picture())] * 3, **more)
            for kind, more in (("GIF", {}), ("PNG", {}), ("PNG", {"default_image": True}), ("WEBP", {"lossless": True}))
        ),
        encoded(P, "TIFF", save_all=True, append_images=[P.rotate(180)]),
    ],
)
def test_every_mode_becomes_the_same_rgb(data: bytes) -> None:
    found = door.read(data)
    assert found.dtype == np.uint8
    assert np.array_equal(found, picture())
    assert found.flags.writeable


@pytest.mark.parametrize("turn", range(10))
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG", "TIFF"])
def test_orientation_is_applied_and_nonsense_is_ignored(kind: str, turn: int) -> None:
    # How upright pixels are stored so that this orientation turns them back.
    way = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_90"}
    way |= {7: "TRANSVERSE", 8: "ROTATE_270"}
    stored = P.transpose(Image.Transpose[way[turn]]) if turn in way else P
    exif = Image.Exif()
    exif[0x0112] = turn
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 98, "subsampling": 0}}.get(kind, {})
    tag = {"tiffinfo": {274: turn}} if kind == "TIFF" else {"exif": exif.tobytes()}
    found = door.read(encoded(stored, kind, **options, **tag))
    assert found.shape == (32, 48, 3)
    assert np.abs(found.astype(int) - picture()).max() <= (3 if kind == "JPEG" else 0)
    # The same through an image somebody else opened.
    with Image.open(io.BytesIO(encoded(stored, kind, **options, **tag))) as opened:
        assert np.array_equal(door.read(opened), found)


@pytest.mark.parametrize("order", ["big", "little", "broken", "far", "long"])
def test_an_exif_block_is_read_by_its_own_rules_or_not_at_all(order: str) -> None:
    e = ">" if order == "big" else "<"
    block = (b"MM\0*" if order == "big" else b"II*\0") + struct.pack(e + "IHHHIHH", 8, 1, 0x0112, 3, 1, 6, 0)
    odd = {"broken": block[:19], "far": b"II*\0" + struct.pack("<I", 1 << 31), "long": block[:8] + b"\xff" * 9}
    block = odd.get(order, block)
    data = bytearray(encoded(P.transpose(Image.Transpose.ROTATE_90), "PNG"))
    data[33:33] = chunk(b"eXIf", block)
    upright = order in ("big", "little")
    assert door.read(bytes(data)).shape == ((32, 48, 3) if upright else (48, 32, 3))


@pytest.mark.parametrize(
    "data",
    [
        encoded(Image.fromarray(RAMP), "PNG"),
        encoded(Image.fromarray(RAMP), "TIFF"),
        tiff("II", 16, 1, RAMP.astype("<u2").tobytes()),
        tiff("MM", 16, 1, RAMP.astype(">u2").tobytes()),
        tiff("II", 16, 0, (65535 - RAMP).astype("<u2").tobytes()),
    ],
)
def test_sixteen_bit_grey_is_scaled_exactly(data: bytes) -> None:
    assert np.array_equal(door.read(data), rgb(np.round(RAMP / 257)))


@pytest.mark.parametrize(("kind", "channels"), [(2, 3), (6, 4), (4, 2)])
def test_sixteen_bit_color_is_scaled_to_one_step(kind: int, channels: int) -> None:
    wide = np.repeat(RAMP[..., None], channels, axis=2).astype(">u2")
    found = door.read(png(48, 32, 16, kind, [row.tobytes() for row in wide]))
    assert np.abs(found.astype(int) - rgb(np.round(RAMP / 257))).max() <= 1


@pytest.mark.parametrize(
    "data",
    [
        tiff("II", 32, 1, RAMP.astype("<f4").tobytes(), sample=3),
        tiff("II", 64, 1, RAMP.astype("<f8").tobytes(), sample=3),
        tiff("II", 32, 1, RAMP.astype("<u4").tobytes()),
        tiff("II", 16, 1, RAMP.astype("<i2").tobytes(), sample=2),
        tiff("II", 12, 1, bytes(48 * 32 * 3 // 2)),
        b"%!PS-Adobe-3.0 EPSF-3.0\n",
        b"\0\0\0 ftypavif" + bytes(30),
        b"\0\0\0\x0cjP  \r\n\x87\n",
        b"P6\n1 1\n255\n\0\0\0",
        b"8BPS" + bytes(40),
        encoded(P, "ICO"),
    ],
)
def test_what_is_not_on_the_list_is_refused_by_name(data: bytes) -> None:
    assert reason(data) == "unsupported_format"


@pytest.mark.parametrize(
    "data", [b'{"a": 1}', b"%PDF-1.7\n", b"GIF", b"RIFF\0\0\0\0WAVEfmt ", b"BMW is a maker of cars", b"\0"]
)
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    assert reason(data) == "not_an_image"
    assert reason(b"") == "empty"


@pytest.mark.parametrize("kind", FORMATS)
def test_a_picture_cut_anywhere_is_refused(kind: str) -> None:
    data = encoded(NOISE, kind)
    ends = [*range(len(data) - 3), len(data) - 3][:: max(1, len(data) // 150)]
    for end in ends:
        assert reason(data[:end]) in ("truncated", "corrupt", "not_an_image", "empty"), f"cut at {end} of {len(data)}"
    assert np.array_equal(door.read(data)[..., 0].shape, (80, 96))


def test_pixels_that_end_early_are_refused_though_the_png_is_whole() -> None:
    rows = [row.tobytes() for row in picture()]
    assert reason(png(48, 32, 8, 2, rows[:31])) == "corrupt"
    assert np.array_equal(door.read(png(48, 32, 8, 2, rows)), picture())
    for mode in ("1", "L", "P", "RGB", "RGBA"):
        door.read(encoded(P.convert(mode), "PNG"))


def test_every_checksum_of_a_png_is_looked_at() -> None:
    good = png(48, 32, 8, 2, [row.tobytes() for row in picture()], extra=chunk(b"tEXt", b"a\0b"))
    door.read(good)
    for kind in (b"IHDR", b"tEXt", b"IDAT", b"IEND"):
        data = bytearray(good)
        place = data.index(kind)
        data[place + 4 + struct.unpack(">I", data[place - 4 : place])[0]] ^= 1
        assert reason(bytes(data)) == "corrupt", kind


def bomb_webp() -> bytes:
    canvas = (16382).to_bytes(3, "little") * 2
    return b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + canvas


@pytest.mark.parametrize(
    "data",
    [
        png(20000, 20000, 1, 0, [b""]),
        bomb_webp(),
        encoded(P, "BMP")[:18] + struct.pack("<ii", 30000, -30000) + encoded(P, "BMP")[26:],
        encoded(P, "GIF")[:6] + struct.pack("<HH", 65535, 65535) + encoded(P, "GIF")[10:],
        tiff("II", 8, 1, bytes(99)).replace(WIDTH, struct.pack("<HHII", 256, 4, 1, 1 << 30)),
    ],
)
def test_a_bomb_is_refused_from_its_header(data: bytes) -> None:
    assert reason(data) == "too_large"


def test_the_limit_is_an_option_and_the_library_stays_as_it_was() -> None:
    data = encoded(P, "PNG")
    door.read(data, max_pixels=48 * 32)
    assert reason(data, max_pixels=48 * 32 - 1) == "too_large"
    assert reason(picture(), max_pixels=100) == "too_large"
    assert reason(P, max_pixels=100) == "too_large"
    assert Image.MAX_IMAGE_PIXELS == door.MAX_PIXELS
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


@pytest.mark.parametrize(("width", "height"), [(0, 32), (48, 0), (-48, 32)])
def test_sizes_that_cannot_be(width: int, height: int) -> None:
    data = encoded(P, "BMP")
    assert reason(data[:18] + struct.pack("<ii", width, height) + data[26:]) == "bad_dimensions"
    if min(width, height) >= 0:
        assert reason(png(width, height, 8, 2, [])) == "bad_dimensions"


def test_a_text_bomb_is_not_unpacked() -> None:
    bomb = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(8 << 20)))
    with pytest.raises(InputError):
        door.read(png(48, 32, 8, 2, [row.tobytes() for row in picture()], extra=bomb))


def test_odd_tags_make_no_warnings() -> None:
    apng = encoded(P, "PNG", save_all=True, append_images=[P.rotate(180)])
    broken = apng.replace(chunk(b"acTL", struct.pack(">II", 2, 0)), chunk(b"acTL", struct.pack(">II", 0, 0)))
    assert broken != apng
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(door.read(broken), picture())


def test_arrays_are_taken_as_pictures_only_if_they_are() -> None:
    assert np.array_equal(door.read(picture()), picture())
    assert door.read(picture()) is not picture()
    assert np.array_equal(door.read(picture()[..., 0]), rgb(picture()[..., 0]))
    assert np.array_equal(door.read(picture()[..., :1]), rgb(picture()[..., 0]))
    assert np.array_equal(door.read(np.dstack([picture(), picture()[..., 0]])), picture())
    assert reason(picture().astype(np.float32)) == "bad_type"
    assert reason(np.zeros((2, 2, 2), np.uint8)) == "bad_shape"
    assert reason(np.zeros((0, 2, 3), np.uint8)) == "bad_dimensions"


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    good = tmp_path / "good.jpg"
    good.write_bytes(encoded(P, "JPEG"))
    (tmp_path / "folder.jpg").mkdir()
    assert reason(tmp_path / "folder.jpg") == "not_regular_file"
    assert reason(tmp_path / "none.jpg") == "missing"
    assert reason(good / "below.jpg") == "missing"
    assert reason(str(tmp_path / "nul\0.jpg")) == "unreadable"
    if os.name != "nt":
        os.mkfifo(tmp_path / "pipe.jpg")
        assert reason(tmp_path / "pipe.jpg") == "not_regular_file"
        assert reason("/dev/zero") == "not_regular_file"
        (tmp_path / "link.jpg").symlink_to(good)
        assert door.read(tmp_path / "link.jpg").shape == (32, 48, 3)
        (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
        assert reason(tmp_path / "loop.jpg") == "unreadable"


def test_scan_finds_each_picture_once_and_does_not_leave_the_folder(tmp_path: Path) -> None:
    root = tmp_path / "data" / "root"
    (root / "b" / "deep").mkdir(parents=True)
    (root / "a.jpg").mkdir()
    outside = tmp_path / "elsewhere"
    outside.mkdir()
    for path in (root / "z.PNG", root / "b" / "deep" / "1.jpeg", root / "a.jpg" / "x.webp", root / "notes.txt"):
        path.write_bytes(b"x")
    for path in (root / "evil\u202egpj.exe", tmp_path / "data" / "beside.jpg", outside / "linked.bmp"):
        path.write_bytes(b"x")
    (root / "b" / "up").symlink_to(root, target_is_directory=True)
    (root / "b" / "upper").symlink_to(tmp_path / "data", target_is_directory=True)
    (root / "linked").symlink_to(outside, target_is_directory=True)
    (root / "again").symlink_to(outside, target_is_directory=True)
    (root / "dangling.gif").symlink_to(root / "nothing")
    found = [path.relative_to(root).as_posix() for path in door.scan(root)]
    linked = [name for name in found if name.endswith("linked.bmp")]
    assert len(linked) == 1
    assert [n for n in found if n not in linked] == ["a.jpg/x.webp", "b/deep/1.jpeg", "dangling.gif", "z.PNG"]
    assert door.scan(root) == door.scan(root)
    with pytest.raises(InputError, match="missing"):
        door.scan(root / "none")
    with pytest.raises(InputError, match="not a folder"):
        door.scan(root / "z.PNG")


@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_a_quicker_decoder_gives_the_same_pixels(subsampling: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("simplejpeg")
    from featherweight.doors import jpeg

    rng = np.random.default_rng(0)
    big = Image.fromarray(rng.integers(0, 256, (40, 56, 3), np.uint8)).resize((229, 163), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    cases = [encoded(big, "JPEG", subsampling=subsampling, quality=q) for q in (60, 95)]
    cases.append(encoded(big, "JPEG", subsampling=subsampling, progressive=True))
    for turn in range(1, 9):
        exif[0x0112] = turn
        cases.append(encoded(big, "JPEG", subsampling=subsampling, exif=exif.tobytes()))
    cases += [encoded(big.convert(mode), "JPEG") for mode in ("L", "CMYK")]
    quick = [door.read(case) for case in cases]
    assert jpeg.pixels(cases[0], big.size) is not None  # the control: it was taken
    assert jpeg.pixels(cases[0], (1, 1)) is None and jpeg.pixels(cases[-1], big.size) is None
    assert jpeg.pixels(cases[0][:-400], big.size) is None and reason(cases[0][:-400]) == "truncated"
    monkeypatch.setattr(jpeg, "pixels", lambda *_: None)
    for case, found in zip(cases, quick, strict=True):
        assert found.flags.writeable and np.array_equal(found, door.read(case))


@pytest.mark.parametrize("between", [b"", b"\xff\xff", b"\0junk"])
def test_a_jpeg_of_few_bytes_does_not_take_minutes(between: bytes) -> None:
    """Each scan is a pass over all pixels; a decoder takes any number of them and skips what lies between."""
    gray = Image.fromarray(np.zeros((2000, 2000, 3), np.uint8))
    whole = encoded(gray, "JPEG", progressive=True)
    last = between + whole[whole.rfind(b"\xff\xc4", 0, whole.rfind(b"\xff\xda")) : -2]
    few, many = (whole[:-2] + last * count + whole[-2:] for count in (20, 120))
    assert np.array_equal(door.read(few), door.read(whole))
    began = time.process_time()
    assert reason(many) == "too_large"
    assert time.process_time() - began < 0.5
    assert np.array_equal(door.read(whole + b"\xff\xda" * 200), door.read(whole))  # a film behind the picture
