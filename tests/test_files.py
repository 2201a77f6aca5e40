# SPDX-License-Identifier: Apache-2.0
"""Nothing is lost by a kill, a full disk or a second process."""

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from featherweight import files
from featherweight.errors import FeatherweightError, InputError, StorageError

POSIX = pytest.mark.skipif(os.name == "nt", reason="file locks and limits of POSIX")


def test_publish_writes_pieces_and_leaves_nothing_beside(tmp_path: Path) -> None:
    place = tmp_path / "weights.bin"
    files.publish(place, b"old")
    files.publish(place, [b"ne", memoryview(b"w!"), bytearray(b"?")])
    assert place.read_bytes() == b"new!?"
    assert os.listdir(tmp_path) == ["weights.bin"]
    os.umask(mask := os.umask(0))
    assert place.stat().st_mode & 0o777 == 0o666 & ~mask


@POSIX
@pytest.mark.parametrize("limit", [0, 500_000, 999_999])
def test_a_full_disk_leaves_the_old_file_and_says_how_much_is_needed(tmp_path: Path, limit: int) -> None:
    place = tmp_path / "checkpoint.safetensors"
    place.write_bytes(b"old")
    code = f"""
import resource, sys
from featherweight import files
from featherweight.errors import StorageError
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
try:
    files.publish({str(place)!r}, b"x" * 1_000_000)
except StorageError as error:
    sys.exit(str(error))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "disk full" in done.stderr, done.stderr
    assert "1000000" in done.stderr
    assert "bytes free" in done.stderr
    assert str(place)[-40:] in done.stderr
    assert "Traceback" not in done.stderr
    assert place.read_bytes() == b"old"
    assert os.listdir(tmp_path) == [place.name]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failure_at_any_step_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    place = tmp_path / "a"
    place.write_bytes(b"old")

    def fail(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(StorageError, match="disk full"):
        files.publish(place, b"new")
    assert place.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_a_file_that_came_out_short_is_not_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Short:
        st_size = 1

    monkeypatch.setattr(os, "fstat", lambda _: Short())
    with pytest.raises(StorageError, match="shorter"):
        files.publish(tmp_path / "a", b"new")
    assert os.listdir(tmp_path) == []


def test_a_folder_that_is_not_there_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no such file") as caught:
        files.publish(tmp_path / "none" / "a", b"")
    assert "\n" not in str(caught.value)


@POSIX
def test_a_killed_writer_leaves_the_old_file_and_its_rest_is_cleaned(tmp_path: Path) -> None:
    place = tmp_path / "a"
    place.write_bytes(b"old")
    code = f"""
import sys
from pathlib import Path
from featherweight import files
temporary, stream = files._unfinished(Path({str(place)!r}))
stream.write(b"x" * 65536)
stream.flush()
print("half", flush=True)
sys.stdin.read()
"""
    writer = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert writer.stdout is not None
    assert writer.stdout.readline() == b"half\n"
    assert len(os.listdir(tmp_path)) == 2
    files.clean_stale(tmp_path)
    assert len(os.listdir(tmp_path)) == 2, "a file that is still being written was taken away"
    writer.kill()
    writer.communicate()
    assert place.read_bytes() == b"old"
    files.clean_stale(tmp_path)
    assert os.listdir(tmp_path) == ["a"]


def test_clean_stale_touches_only_our_own_files(tmp_path: Path) -> None:
    for name in (".fw-0.tmp", "model.tmp", ".fw-note", "fw-1.tmp"):
        (tmp_path / name).write_bytes(b"")
    if not files.LOCKS:
        os.utime(tmp_path / ".fw-0.tmp", (0, 0))
    files.clean_stale(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".fw-note", "fw-1.tmp", "model.tmp"]


@pytest.mark.parametrize("links", [True, False])
def test_point_moves_and_pointed_follows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    if not links:

        def refuse(*args: object, **options: object) -> None:
            raise OSError(errno.EPERM, "not allowed")

        monkeypatch.setattr(os, "symlink", refuse)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        files.point(tmp_path / "latest", tmp_path / name)
        assert (tmp_path / "latest").is_symlink() == links
        assert files.pointed(tmp_path / "latest").resolve() == (tmp_path / name).resolve()
    assert sorted(os.listdir(tmp_path)) == ["latest", "one", "two"]


def test_a_pointer_survives_the_move_of_its_folder_and_a_dangling_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "runs" / "one").mkdir(parents=True)
    files.point(tmp_path / "runs" / "latest", tmp_path / "runs" / "one")
    (tmp_path / "runs").rename(tmp_path / "moved")
    assert files.pointed(tmp_path / "moved" / "latest").is_dir()
    (tmp_path / "moved" / "one").rmdir()
    with pytest.raises(InputError, match="missing"):
        files.pointed(tmp_path / "moved" / "latest")
    (tmp_path / "real").mkdir()
    with pytest.raises(StorageError, match="folder"):
        files.point(tmp_path / "real", tmp_path / "moved")


@POSIX
def test_a_held_folder_is_refused_at_once_and_free_after(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with files.lock(run):
        with pytest.raises(FeatherweightError, match="in use") as caught, files.lock(run):
            pass
        assert caught.value.exit_code == 1
    with files.lock(run):
        pass


@POSIX
def test_the_lock_of_a_killed_process_does_not_block_though_its_child_lives_on(tmp_path: Path) -> None:
    code = f"""
import os, time
from featherweight import files
with files.lock({str(tmp_path)!r}):
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    print(child, flush=True)
    time.sleep(60)
"""
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    child = int(holder.stdout.readline())
    try:
        with pytest.raises(FeatherweightError, match="in use"), files.lock(tmp_path):
            pass
        holder.kill()
        holder.wait()
        deadline = time.time() + 5
        while True:
            try:
                with files.lock(tmp_path):
                    break
            except FeatherweightError:
                assert time.time() < deadline, "the lock outlived its process"
                time.sleep(0.05)
    finally:
        os.kill(child, 9)
        holder.stdout.close()
