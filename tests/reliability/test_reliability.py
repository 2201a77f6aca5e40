# SPDX-License-Identifier: Apache-2.0
"""The hostile corpus, 2,000 fuzzed inputs for each surface and every damage to an artifact, through the real doors.

Every input is read in a process of its own kind, under limits of time, memory and address space, with a canary that
must not appear. The expected answers are in expected.json; what a case is about stands there in `line` and `why`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
from special_files import make

HERE = Path(__file__).parent
ADAPTER = HERE / "adapter.py"
CASES = {
    "image": 64,
    "checkpoint": 36,
    "config": 25,
    "onnx": 4,
    "special": 9,
    "coco": 21,
    "yolo": 16,
    "data_yaml": 4,
}  # at least; mode 000 is not for root

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the runner forks")
pytest.importorskip("torch")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    with tarfile.open(HERE / "corpus.tar.gz") as archive:
        archive.extractall(folder, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    found = folder / "corpus"
    (found / "expected.json").write_bytes((HERE / "expected.json").read_bytes())
    make(found)
    pictures = found / "annotations" / "coco"
    shutil.copy(pictures / "a.jpg", pictures / "b.jpg")  # the second picture of the cases
    return found


def run(script: str, *arguments: object, tmp: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, HERE / script, *map(str, arguments)]
    environment = {**os.environ, "TMPDIR": str(tmp), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=600)


@pytest.fixture(scope="module")
def results(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """id -> what came out, of every case of the kinds that are built."""
    tmp = tmp_path_factory.mktemp("results")
    done = run("check_corpus.py", "--corpus", corpus, "--adapter", ADAPTER, "--out", tmp / "out.json", "-v", tmp=tmp)
    assert (tmp / "out.json").exists(), done.stderr
    found = dict(json.loads((tmp / "out.json").read_text()))
    for name in [name for name, result in found.items() if str(result["fail"]).startswith("time")]:
        # The clock of the runner is the wall's; on a busy machine a case gets a second chance, alone.
        again = ("--out", tmp / "again.json", "--only", name)
        run("check_corpus.py", "--corpus", corpus, "--adapter", ADAPTER, *again, tmp=tmp)
        found |= json.loads((tmp / "again.json").read_text())
    return found


@pytest.mark.parametrize("kind", CASES)
def test_every_case_of_the_corpus(corpus: Path, results: dict[str, Any], kind: str) -> None:
    listed = json.loads((corpus / "expected.json").read_text())["cases"]
    cases = {case["id"]: case for case in listed if case["kind"] == kind and case["id"] in results}
    failed = {name: results[name]["fail"] for name in cases if results[name]["fail"]}
    assert not failed
    assert not [name for name in cases if results[name]["code_ran"]]
    assert len(cases) >= CASES[kind]


def test_the_corpus_would_notice_ordinary_code(corpus: Path, tmp_path: Path) -> None:
    naive = tmp_path / "naive.py"
    naive.write_text(
        "import numpy\nfrom PIL import Image\nclass Refused(Exception):\n    reason = ''\n"
        "def load_image(path):\n    return numpy.asarray(Image.open(path).convert('RGB'))\n"
    )
    done = run("check_corpus.py", "--corpus", corpus, "--adapter", naive, "--kind", "image", tmp=tmp_path)
    assert done.returncode == 1
    assert int(done.stdout.split(" fail")[0].split()[-1]) > 20, done.stdout


def test_the_scan_of_the_special_files(corpus: Path) -> None:
    from featherweight.doors import image

    names = [os.fsencode(path.name) for path in image.scan(corpus / "special")]
    assert len(names) == len(set(names))
    assert {b"\xff\xfe_latin.jpg", b"new\nline.jpg", b"esc\x1b[31mred.jpg", b"fifo.jpg", b"loop_a.jpg"} <= set(names)
    assert not [name for name in names if name.endswith(b".exe")]
    whole = image.scan(corpus)  # with a folder in it that links to its parent
    assert len(whole) == len(set(whole)) > 70


@pytest.mark.parametrize("surface", ["image", "checkpoint", "config", "onnx", "yolo"])
def test_two_thousand_fuzzed_inputs(corpus: Path, tmp_path: Path, surface: str) -> None:
    fuzzed(corpus, tmp_path, surface, 2000, seed=0)


@pytest.mark.parametrize("seed", [1, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 3))])
def test_two_thousand_fuzzed_annotations(corpus: Path, tmp_path: Path, seed: int) -> None:
    fuzzed(corpus, tmp_path, "coco", 700, seed=seed)  # in longer runs the fuzzer ties its own trees into knots


def fuzzed(corpus: Path, tmp: Path, surface: str, count: int, *, seed: int) -> None:
    # --limit: seconds by the wall's clock, on a busy machine too
    options = ("--surface", surface, "--n", count, "--seed", seed, "--limit", 20)
    done = run("fuzz.py", "--corpus", corpus, "--adapter", ADAPTER, *options, tmp=tmp)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{surface}: {count} inputs" in done.stdout
    assert " 0 other, code ran: False" in done.stdout


def test_every_damage_to_an_artifact_is_refused(tmp_path: Path) -> None:
    from featherweight import artifact
    from featherweight.models import zoo

    config = {"embed_dim": 16, "depth": 1, "num_heads": 2, "image_size": [16, 16], "patch_size": 8, "num_classes": 3}
    folder = artifact.save(zoo.build({"name": "vit", "config": config}), tmp_path / "model", classes=("a", "b", "c"))
    done = run("mutate.py", "check", folder / "model.safetensors", "--adapter", ADAPTER, tmp=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    count, wrong = done.stdout.split(" cases, ")
    assert int(count) > 1700
    assert wrong.startswith("0 wrong")
