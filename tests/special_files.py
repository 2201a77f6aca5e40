# SPDX-License-Identifier: Apache-2.0
"""The corpus' special files, which no archive should hold: links, pipes, names that are not text."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def make(corpus: Path) -> Path:
    """Fill `corpus`/special; the pictures are upright 48x32 ones of the corpus."""
    folder = corpus / "special"
    folder.mkdir()
    good = corpus / "images" / "exif" / "orientation_1.jpg"
    (folder / "loop_a.jpg").symlink_to("loop_b.jpg")
    (folder / "loop_b.jpg").symlink_to("loop_a.jpg")
    (folder / "dangling.jpg").symlink_to("nothing.jpg")
    (folder / "dev_zero.jpg").symlink_to("/dev/zero")
    os.mkfifo(folder / "fifo.jpg")
    (folder / "folder.jpg").mkdir()
    shutil.copy(good, folder / "mode_000.jpg")
    (folder / "mode_000.jpg").chmod(0)
    (folder / "dir_loop").symlink_to("..", target_is_directory=True)
    for name in (b"\xff\xfe_latin.jpg", b"new\nline.jpg", b"esc\x1b[31mred.jpg", "rtl_\u202egpj.exe".encode()):
        with open(os.path.join(os.fsencode(folder), name), "wb") as out:
            out.write(good.read_bytes())
    return folder
