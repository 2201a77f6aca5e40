# SPDX-License-Identifier: Apache-2.0
"""A compact file is a model: for every family, in a recipe, and as a graph that runs where there is no torch."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import fill
import numpy as np
import pytest
import torch
from families import FAMILIES, IMAGES, PLAIN, SIZE, Family

from featherweight import artifact, recipe, sources
from featherweight.coding import opened
from featherweight.coding.graph import is_graph, read_graph, write_graph
from featherweight.coding.tensors import Packed
from featherweight.errors import InputError, OptionError
from featherweight.methods.share import rounded, share
from featherweight.runtime.preprocess import Preprocess
from featherweight.runtime.session import open_session

CLASSES = ("ant", "bee", "cat", "dog", "eel")
PREPROCESS = Preprocess((SIZE, SIZE), resize="exact")


@pytest.mark.parametrize("name", [*FAMILIES, "plain"])
def test_a_compact_file_is_exact_for_every_family(name: str, tmp_path: Path) -> None:
    family: Family = {**FAMILIES, "plain": PLAIN}[name]
    model = share(family.make(), bits=3, scaled=True)
    path = artifact.save(model, tmp_path / "new" / "model.fwz", classes=CLASSES, preprocess=PREPROCESS)
    loaded = artifact.load(path, base=family.base() if name != "plain" else family.build())
    assert torch.equal(family.logits(loaded), family.logits(model))
    assert repr(loaded) == repr(model)
    record = artifact.record_of(loaded)
    assert record is not None
    assert (record.classes, record.preprocess) == (CLASSES, PREPROCESS)
    artifact.save(model, tmp_path / "folder")
    assert path.stat().st_size < 0.8 * (tmp_path / "folder" / "model.safetensors").stat().st_size
    assert artifact.is_artifact(path)


def test_a_model_of_your_own_needs_its_base_and_a_damaged_one_is_refused_whole(tmp_path: Path) -> None:
    path = artifact.save(PLAIN.make(), tmp_path / "model.fwz")
    with pytest.raises(OptionError, match="base="):
        artifact.load(path)
    data = bytearray(path.read_bytes())
    with opened(path) as file:
        place = file.entries["features.3.weight"].begin
    data[place] ^= 4
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"checksum: tensor 'features\.3\.weight'"):
        artifact.load(path, base=PLAIN.build())


def test_shapes_are_compared_before_anything_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = artifact.save(PLAIN.make(), tmp_path / "model.fwz")
    other = PLAIN.build()
    other.classifier = torch.nn.Linear(8, 77)
    monkeypatch.setattr("featherweight.coding.container.unpack", _never)
    with pytest.raises(InputError, match=r"shape_mismatch: tensor 'classifier\.weight'"):
        artifact.load(path, base=other)


def _never(packed: Packed) -> None:
    raise RuntimeError(f"{packed.kind} was decoded")


def test_what_is_not_finite_is_not_saved(tmp_path: Path) -> None:
    model = PLAIN.make()
    model.classifier.bias.data[0] = float("inf")
    with pytest.raises(InputError, match=r"classifier\.bias"):
        artifact.save(model, tmp_path / "model.fwz")
    assert not (tmp_path / "model.fwz").exists()


def test_rounded_floats_take_about_half(tmp_path: Path) -> None:
    model = share(PLAIN.make(), bits=4, scaled=True)
    sizes = [artifact.save(m, tmp_path / f"{i}.fwz").stat().st_size for i, m in enumerate((model, rounded(model)))]
    assert sizes[1] < sizes[0]


# Graphs ---------------------------------------------------------------------------------------------------------------
@functools.cache
def onnx_bytes() -> bytes:
    onnx = pytest.importorskip("featherweight.export.onnx")
    check = pytest.importorskip("featherweight.export.check")
    model = share(FAMILIES["ours"].make(), bits=3, scaled=True)
    metadata = check.describe(task="image-classification", classes=CLASSES, preprocess=PREPROCESS)
    data: bytes = onnx.to_bytes(model, IMAGES, metadata=metadata)
    return data


def test_a_graph_comes_back_bit_for_bit_and_is_much_smaller(tmp_path: Path) -> None:
    path = tmp_path / "graph.fwz"
    write_graph(path, onnx_bytes())
    assert read_graph(path) == onnx_bytes()
    assert is_graph(path)
    assert path.stat().st_size < 0.7 * len(onnx_bytes())
    assert len(onnx_bytes()) < sum(4 * p.numel() for p in FAMILIES["ours"].make().parameters())  # codes, no floats


def test_a_graph_answers_as_the_onnx_file_does(tmp_path: Path) -> None:
    write_graph(tmp_path / "graph.fwz", onnx_bytes())
    (tmp_path / "model.onnx").write_bytes(onnx_bytes())
    images = fill.normal("some", (3, 3, SIZE, SIZE)).numpy()
    answers = [
        next(
            iter(open_session(tmp_path / name, backend="onnxruntime", threads=1).run({"pixel_values": images}).values())
        )
        for name in ("graph.fwz", "model.onnx")
    ]
    assert np.array_equal(*answers)
    model = share(FAMILIES["ours"].make(), bits=3, scaled=True)
    wanted = FAMILIES["ours"].logits(model, torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(answers[0], wanted, atol=1e-4)


def test_which_of_the_two_it_is_decides_what_opens_it(tmp_path: Path) -> None:
    write_graph(tmp_path / "graph.fwz", onnx_bytes())
    artifact.save(FAMILIES["ours"].make(), tmp_path / "model.fwz")
    assert sources.find(tmp_path / "graph.fwz").backend == "onnxruntime"
    assert sources.find(tmp_path / "model.fwz").backend == "torch"
    assert not is_graph(tmp_path / "model.fwz")
    with pytest.raises(InputError, match="holds a graph for ONNX Runtime"):
        artifact.load(tmp_path / "graph.fwz")
    with pytest.raises(InputError, match="holds a model for PyTorch and no graph"):
        open_session(tmp_path / "model.fwz")
    with pytest.raises(OptionError, match=r"torch does not run \.fwz files that hold a graph"):
        sources.find(tmp_path / "graph.fwz", backend="torch")


def test_weights_of_a_graph_that_are_out_of_order_are_refused(tmp_path: Path) -> None:
    from featherweight.coding.container import write

    write_graph(tmp_path / "graph.fwz", onnx_bytes())
    with opened(tmp_path / "graph.fwz") as file:
        tensors, holes = file.tensors(), list(file.graph or ())
    write(tmp_path / "graph.fwz", tensors, graph=holes[::-1])
    with pytest.raises(InputError, match=r"corrupt: .*"):
        read_graph(tmp_path / "graph.fwz")


CHILD = """
import json, sys
sys.modules["torch"] = sys.modules["onnx"] = None
import featherweight
answer = featherweight.pipeline(model=sys.argv[1])(sys.argv[2], top_k=5)
print(json.dumps(answer))
"""


def test_one_line_loads_it_without_torch_and_the_answers_are_identical(tmp_path: Path) -> None:
    from PIL import Image

    import featherweight

    pixels = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    write_graph(tmp_path / "graph.fwz", onnx_bytes())
    (tmp_path / "model.onnx").write_bytes(onnx_bytes())
    child = [sys.executable, "-c", CHILD, str(tmp_path / "graph.fwz"), str(tmp_path / "picture.png")]
    environment = {**os.environ, "PYTHONPATH": str(Path(featherweight.__file__).parents[1])}
    done = subprocess.run(child, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    here = featherweight.pipeline(model=tmp_path / "model.onnx")(str(tmp_path / "picture.png"), top_k=5)
    assert json.loads(done.stdout) == here
    assert {row["label"] for row in here} == set(CLASSES)


# Recipes --------------------------------------------------------------------------------------------------------------
def order(*steps: object) -> dict[str, object]:
    return {"model": "vit_digits", "data": "digits", "steps": list(steps)}


def test_a_recipe_takes_the_steps_and_refuses_the_wrong_order() -> None:
    plan = recipe.parse(order("load", {"share": {"bits": {"*": 5, "head": 8}, "epochs": 1}}, "repair", {"code": {}}))
    assert [step.name for step in plan.steps] == ["load", "share", "repair", "code"]
    with pytest.raises(InputError, match="the right order is `prune`, then `share`"):
        recipe.parse(order("load", "share", "prune"))
    with pytest.raises(InputError, match="out_of_range"):
        recipe.parse(order("load", {"share": {"bits": 9}}))
