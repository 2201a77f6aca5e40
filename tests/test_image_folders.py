# SPDX-License-Identifier: Apache-2.0
"""Folders of the transformers library with an image classifier: the same answers, and clear words where that fails."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_text
import torch
from PIL import Image

import featherweight
from featherweight import artifact, cli, counting, explain, pipeline, recipe, runs, sources
from featherweight.errors import InputError
from featherweight.methods.lowrank import factorize
from featherweight.methods.prune import prune
from featherweight.models import pretrained_images
from featherweight.runtime.preprocess import Preprocess

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)).resize((140, 90))
BOTH = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.25]}
PREPARED: dict[str, tuple[str, dict[str, Any]]] = {
    "stretched": ("ViTImageProcessor", {"size": {"height": 32, "width": 32}, **BOTH}),
    "stretched and cropped": (
        "DeiTImageProcessor",
        {"size": {"height": 40, "width": 40}, "crop_size": {"height": 32, "width": 32}, **BOTH},
    ),
    "shorter side and cropped": (
        "BitImageProcessor",
        {"size": {"shortest_edge": 36}, "crop_size": {"height": 32, "width": 32}},
    ),
    "ConvNeXt's": ("ConvNextImageProcessor", {"size": {"shortest_edge": 32}, "crop_pct": 0.875}),
    "not normalized": ("ViTImageProcessor", {"size": {"height": 32, "width": 32}, "do_normalize": False}),
    "MobileNetV2's": (
        "MobileNetV2ImageProcessor",
        {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}},
    ),
    "BEiT's": ("BeitImageProcessor", {"size": {"height": 32, "width": 32}, "do_center_crop": False}),
}


def made(folder: Path, *, processor: str = "stretched", **config: Any) -> Path:
    torch.manual_seed(0)
    known: dict[str, Any] = {
        "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 32,
        "patch_size": 8, "id2label": dict(enumerate("uvwxyz")), "label2id": {n: i for i, n in enumerate("uvwxyz")},
    }  # fmt: skip
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**{**known, **config})).eval()
    torch.nn.init.normal_(model.classifier.weight)
    model.save_pretrained(folder)
    kind, options = PREPARED[processor]
    getattr(transformers, kind)(**options).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("processor", PREPARED)
def test_pictures_are_prepared_as_transformers_does(tmp_path: Path, processor: str) -> None:
    folder = made(tmp_path, processor=processor)
    theirs = transformers.AutoImageProcessor.from_pretrained(folder)(PICTURE, return_tensors="np")["pixel_values"][0]
    ours = pretrained_images.preprocess_in(folder)
    level = 1 / 255 / min(ours.std)  # resizing may round a value to its neighbor
    found = ours(np.asarray(PICTURE))
    assert found.shape == theirs.shape == (3, 32, 32)
    assert np.abs(found - theirs).max() <= 1.01 * level
    assert np.abs(found - theirs).mean() <= 0.1 * level


@pytest.mark.parametrize("kind", ["single_label_classification", "multi_label_classification"])
def test_answers_are_those_of_transformers(tmp_path: Path, kind: str) -> None:
    folder = made(tmp_path, problem_type=kind)
    theirs = transformers.pipeline("image-classification", str(folder), device="cpu")
    ours = pipeline("image-classification", folder)
    small = PICTURE.resize((32, 32))  # what fits is not resized: then they are equal but for the last bits
    for options in ({}, {"top_k": 2}, {"function_to_apply": "none"}):
        for one, other in zip(ours(small, **options), theirs(small, **options), strict=True):
            assert one["label"] == other["label"] and one["score"] == pytest.approx(other["score"], abs=1e-5)
    assert [one["label"] for one in ours(PICTURE)] == [one["label"] for one in theirs(PICTURE)]


def test_the_folder_is_a_model_elsewhere_too(tmp_path: Path) -> None:
    folder = made(tmp_path)
    source = sources.find(folder)
    model = sources.module(source)
    record = artifact.record_of(model)
    assert record is not None and record.classes == tuple("uvwxyz")
    assert sources.preprocess_of(source, model) == Preprocess(
        (32, 32), "exact", 1.0, "bilinear", (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
    )


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"resample": 1}, "bilinear"),
        ({"do_rescale": False}, "0..1"),
        ({"image_processor_type": "MobileViTImageProcessor"}, "known: "),
        ({"size": {"shortest_edge": 32}}, "fixed size"),
        ({"image_processor_type": "None such"}, "cannot read"),
    ],
)
def test_what_cannot_be_prepared_is_said(tmp_path: Path, change: dict[str, Any], match: str) -> None:
    path = made(tmp_path) / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(InputError, match=match):
        pipeline("image-classification", tmp_path)


def test_a_folder_without_its_parts_is_said(tmp_path: Path) -> None:
    folder = made(tmp_path)
    (folder / "preprocessor_config.json").rename(folder / "elsewhere")
    with pytest.raises(InputError, match=r"preprocessor_config\.json"):
        pipeline("image-classification", folder)
    (folder / "elsewhere").rename(folder / "preprocessor_config.json")
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match="safetensors"):
        pipeline("image-classification", folder)


@pytest.mark.parametrize("kind", ["ViT", "ResNet"])
def test_a_folder_is_made_small_and_exported(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    names = {"id2label": dict(enumerate("uv")), "label2id": {"u": 0, "v": 1}}
    folder = made(tmp_path / "theirs", **names)
    if kind == "ResNet":
        sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
        torch.manual_seed(0)
        transformers.ResNetForImageClassification(transformers.ResNetConfig(**sizes, **names)).save_pretrained(folder)
    rng = np.random.default_rng(0)
    for part, count in (("train", 8), ("val", 4)):
        for name in "uv":
            (tmp_path / "data" / part / name).mkdir(parents=True)
            for i in range(count):
                picture = Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))
                picture.save(tmp_path / "data" / part / name / f"{i}.png")
    cut = {"prune": {"mlp": 0.5, "heads": 0.0, "epochs": 1}}
    steps = ["teacher", "load", cut if kind == "ViT" else "quantize", {"export": {"formats": ["onnx"]}}]
    plan = {"model": str(folder), "teacher": str(folder), "data": str(tmp_path / "data"), "steps": steps}
    read = recipe.parse({**plan, "train": {"batch_size": 8}, "output": str(tmp_path / "runs"), "threads": 1}, "test")
    told = explain.explain(read)
    done = runs.run(read)
    loaded = featherweight.load(folder)
    assert done.teacher is not None  # as it came, not trained here
    assert all(torch.equal(a, b) for a, b in zip(done.teacher.parameters(), loaded.parameters(), strict=True))
    assert told[1].params == counting.parameters(done.stages[0].model)
    small = featherweight.load(done.folder / "model")
    assert (done.folder / "model/config.json").exists() == (kind == "ViT")  # the other one has integers
    assert type(small) is type(loaded)
    answers = [
        pipeline(model=one)(PICTURE) for one in (small, done.folder / "model", done.folder / "export/model.onnx")
    ]
    assert answers[0] == answers[1] and [one["label"] for one in answers[2]] == [one["label"] for one in answers[0]]
    assert cli.main(["val", str(folder), "--data", str(tmp_path / "data")]) == 0
    assert cli.main(["export", str(folder), "--out", str(tmp_path / "out"), "--format", "onnx"]) == 0
    capsys.readouterr()
    assert pipeline(model=tmp_path / "out/model.onnx").classes == ("u", "v")


@pytest.mark.parametrize("processor", PREPARED)
def test_what_we_write_prepares_as_what_we_read(tmp_path: Path, processor: str) -> None:
    folder = made(tmp_path, processor=processor)
    theirs = transformers.AutoImageProcessor.from_pretrained(folder)
    told = pretrained_images.told(pretrained_images.described(theirs))
    (folder / "preprocessor_config.json").write_text(json.dumps(told))
    again = transformers.AutoImageProcessor.from_pretrained(folder)
    for picture in (PICTURE, PICTURE.rotate(90, expand=True)):
        one, other = (found(picture, return_tensors="pt")["pixel_values"] for found in (theirs, again))
        assert torch.allclose(one, other, atol=1e-6)


ALONE: dict[str, Callable[[Any], Any]] = {
    "as it was": lambda model: model,
    "neurons": lambda model: prune(model, mlp=0.5, heads=0.0),
    "heads and neurons, in bfloat16": lambda model: prune(model, mlp=0.5, heads=0.5).bfloat16(),
}


@pytest.mark.parametrize("change", ALONE)
def test_plain_transformers_loads_what_still_has_its_shape(tmp_path: Path, change: str) -> None:
    folder = made(tmp_path / "theirs", num_hidden_layers=2, problem_type="multi_label_classification")
    small = ALONE[change](featherweight.load(folder))
    names = [f"{name}!" for name in "uvwxyz"]
    artifact.save(small, tmp_path / "ours", classes=names)
    ours = pipeline("image-classification", tmp_path / "ours")
    theirs = transformers.pipeline("image-classification", str(tmp_path / "ours"), device="cpu")
    fits = PICTURE.resize((32, 32))
    for one, other in zip(ours(fits, top_k=6), theirs(fits, top_k=6), strict=True):
        assert one["label"] == other["label"] and one["score"] == pytest.approx(other["score"], abs=1e-5)
    assert {one["label"] for one in theirs(fits, top_k=6)} == set(names)
    assert theirs.model.dtype == (torch.bfloat16 if "bfloat16" in change else torch.float32)
    assert "Plain transformers" in (tmp_path / "ours/README.md").read_text(encoding="utf-8")


def test_what_no_config_can_say_is_ours_alone(tmp_path: Path) -> None:
    folder = made(tmp_path / "theirs", num_hidden_layers=2)
    model, place = featherweight.load(folder), tmp_path / "ours"
    told = ("config.json", "preprocessor_config.json")
    boxed, larger = Preprocess((32, 32), "letterbox", 1.0, "bilinear"), Preprocess((48, 48), "exact")
    for wrong, preprocess in ((factorize(model, keep=0.5), None), (model, boxed), (model, larger)):
        artifact.save(model, place)
        assert all((place / name).is_file() for name in told)
        artifact.save(wrong, place, preprocess=preprocess)
        assert not any((place / name).exists() for name in told)
        assert "Plain transformers" not in (place / "README.md").read_text(encoding="utf-8")
        assert type(featherweight.load(place)) is type(model)


def test_a_new_classifier_has_the_classes_of_the_data(tmp_path: Path) -> None:
    model = featherweight.load(made(tmp_path / "theirs"))
    new = artifact.with_classes(model, ["ant", "bee"])
    assert new(torch.zeros(1, 3, 32, 32)).logits.shape == (1, 2)
    assert torch.equal(new.vit.embeddings.cls_token, model.vit.embeddings.cls_token)
    artifact.save(new, tmp_path / "ours", classes=["ant", "bee"], preprocess=Preprocess((32, 32), "exact"))
    found = transformers.pipeline("image-classification", str(tmp_path / "ours"))(PICTURE)
    assert {one["label"] for one in found} == {"ant", "bee"}


def test_load_takes_text_folders_too(tmp_path: Path) -> None:
    tiny_text.model(transformers, kind="BertForSequenceClassification").save_pretrained(tmp_path)
    tiny_text.tokenizer(transformers).save_pretrained(tmp_path)
    assert pipeline(model=featherweight.load(tmp_path))("king") == pipeline(model=tmp_path)("king")
