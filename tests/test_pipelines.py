# SPDX-License-Identifier: Apache-2.0
"""Answers shaped as the transformers library shapes them, from every kind of model and every kind of picture."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_files
import torch
from PIL import Image

import featherweight
from featherweight import artifact, pipeline
from featherweight.errors import FeatherweightError, InputError, OptionError
from featherweight.methods.dynamicvit import recording
from featherweight.models import zoo
from featherweight.pictures import load
from featherweight.runtime.preprocess import Preprocess

BACKENDS = ("torch", "onnxruntime", "openvino")
PICTURE = tiny_files.picture()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_files.write(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def classify(files: Path) -> Any:
    return pipeline("image-classification", files / "run", backend="onnxruntime")


def test_one_picture_gives_a_list_of_five_best_first(classify: Any) -> None:
    answer = classify(PICTURE)
    assert [list(one) for one in answer] == [["label", "score"]] * 5
    assert [type(one["score"]) for one in answer] == [float] * 5
    assert sorted(answer, key=lambda one: -one["score"]) == answer
    assert {one["label"] for one in answer} <= set(tiny_files.CLASSES)
    assert json.loads(json.dumps(answer)) == answer


def test_a_list_gives_a_list_of_lists_a_list_of_one_too(classify: Any) -> None:
    one = classify(PICTURE)
    assert classify([PICTURE]) == [one]
    assert classify([PICTURE, PICTURE]) == [one, one]
    assert classify([[PICTURE], [PICTURE]]) == [[one], [one]]
    assert classify([]) == []


def test_top_k(classify: Any) -> None:
    assert [len(classify(PICTURE, top_k=k)) for k in (1, 2, None, 7, 99)] == [1, 2, 5, 7, 7]
    assert classify(PICTURE, top_k=2) == classify(PICTURE)[:2]
    assert sum(one["score"] for one in classify(PICTURE, top_k=7)) == pytest.approx(1)


def test_function_to_apply(classify: Any) -> None:
    raw = {one["label"]: one["score"] for one in classify(PICTURE, top_k=7, function_to_apply="none")}
    sigmoid = {one["label"]: one["score"] for one in classify(PICTURE, top_k=7, function_to_apply="sigmoid")}
    softmax = {one["label"]: one["score"] for one in classify(PICTURE, top_k=7, function_to_apply="SOFTMAX")}
    total = sum(np.exp(value) for value in raw.values())
    for label, value in raw.items():
        assert sigmoid[label] == pytest.approx(1 / (1 + np.exp(-value)))
        assert softmax[label] == pytest.approx(np.exp(value) / total)


def test_one_output_gets_a_sigmoid(classify: Any) -> None:
    assert classify.postprocess(np.array([0.0], np.float32))[0]["score"] == 0.5


def test_a_generator_is_read_one_batch_ahead_and_no_more(classify: Any) -> None:
    taken = []

    def pictures() -> Iterator[np.ndarray]:
        for number in range(1000):
            taken.append(number)
            yield PICTURE

    answers = classify(pictures(), batch_size=4)
    assert taken == []
    assert [one["label"] for one in next(answers)] == [one["label"] for one in classify(PICTURE)]
    assert len(taken) == 4
    for _ in range(4):
        next(answers)
    assert len(taken) == 8


def inputs() -> dict[str, Any]:
    stored = io.BytesIO()
    Image.fromarray(PICTURE).save(stored, "PNG")
    tensor = torch.from_numpy(PICTURE)
    return {
        "bytes": stored.getvalue(),
        "pil": Image.fromarray(PICTURE),
        "array": PICTURE,
        "tensor HWC": tensor,
        "tensor CHW": tensor.permute(2, 0, 1),
        "tensor float": tensor.permute(2, 0, 1) / 255,
    }


@pytest.mark.parametrize("kind", inputs())
def test_every_kind_of_picture_gives_the_same_answer(classify: Any, kind: str) -> None:
    assert classify(inputs()[kind]) == classify(PICTURE)


def test_paths_and_grey_pictures(classify: Any, files: Path) -> None:
    path = files / "pictures" / "0.png"
    assert classify(path) == classify(str(path)) == classify(PICTURE)
    grey = PICTURE[..., 0]
    assert classify(grey) == classify(np.stack([grey] * 3, axis=-1)) == classify(torch.from_numpy(grey)[None])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_batch_of_one_answers_as_a_batch_of_many(files: Path, backend: str) -> None:
    pipe = pipeline(model=files / "run", backend=backend, top_k=7)
    pictures = [tiny_files.picture(seed) for seed in range(9)]
    alone, together = pipe(pictures), pipe(pictures, batch_size=4)
    for one, other in zip(alone, together, strict=True):
        scores = {item["label"]: item["score"] for item in other}
        assert {item["label"]: item["score"] for item in one} == pytest.approx(scores, abs=1e-5)


def test_backends_agree(files: Path) -> None:
    answers = {name: pipeline(model=files / "run", backend=name, top_k=7)(PICTURE) for name in BACKENDS}
    torch_scores = {one["label"]: one["score"] for one in answers["torch"]}
    for name in BACKENDS:
        assert {one["label"]: one["score"] for one in answers[name]} == pytest.approx(torch_scores, abs=1e-4)


@pytest.mark.parametrize(
    ("place", "backend", "taken"),
    [
        ("model", "auto", "torch"),
        ("run", "auto", "onnxruntime"),
        ("latest", "auto", "onnxruntime"),
        ("run", "torch", "torch"),
        ("run", "openvino", "openvino"),
        ("run/export", "auto", "onnxruntime"),
        ("run/export/model.onnx", "openvino", "openvino"),
        ("run/export/openvino_model.xml", "auto", "openvino"),
        ("model/model.safetensors", "auto", "torch"),
    ],
)
def test_what_a_model_may_be(files: Path, place: str, backend: str, taken: str) -> None:
    pipe = pipeline("image-classification", str(files / place), backend=backend)
    assert pipe.runner.backend == taken
    assert pipe.classes == tiny_files.CLASSES
    assert pipe.runner.preprocess == tiny_files.PREPROCESS


def test_latest_may_be_a_text_file(files: Path, tmp_path: Path) -> None:
    (tmp_path / "latest").write_text(str(files / "run") + "\n")
    assert pipeline(model=tmp_path / "latest")(PICTURE, top_k=1)


def test_a_run_without_exports_uses_its_model(files: Path, tmp_path: Path) -> None:
    shutil.copytree(files / "run" / "model", tmp_path / "run" / "model")
    assert pipeline(model=tmp_path / "run").runner.backend == "torch"


def test_a_module_in_memory_is_used_as_it_is(files: Path, classify: Any) -> None:
    model = tiny_files.model().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    pipe = pipeline(model=model, classes=tiny_files.CLASSES, preprocess=tiny_files.PREPROCESS.to_dict())
    assert [one["label"] for one in pipe(PICTURE)] == [one["label"] for one in classify(PICTURE)]
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    loaded = artifact.load(files / "model")  # its record knows classes and preprocessing
    assert pipeline(model=loaded)(PICTURE) == pipe(PICTURE)
    with pytest.raises(OptionError, match="preprocess"):
        pipeline(model=tiny_files.model())


def test_a_weights_file_with_arch(tmp_path: Path) -> None:
    torch.save(zoo.create("resnet_digits").state_dict(), tmp_path / "weights.pt")
    pipe = pipeline(model=tmp_path / "weights.pt", arch="resnet_digits")
    assert len(pipe(PICTURE, top_k=10)) == 10
    with pytest.raises(OptionError, match="arch"):
        pipeline(model=tmp_path / "weights.pt")


@pytest.mark.parametrize("backend", BACKENDS)
def test_kept_tokens_are_those_of_the_model(files: Path, backend: str) -> None:
    answer = pipeline(model=files / "run", backend=backend)(PICTURE, return_tokens=True)
    model = tiny_files.model()
    with recording(model) as sparse, torch.no_grad():
        model(torch.from_numpy(tiny_files.PREPROCESS(PICTURE))[None])
        places = sparse.aside.places[-1][0].tolist()
    assert len(places) == tiny_files.PATCHES // 2
    for one in answer:
        assert one["kept"] == [[place in places for place in range(tiny_files.PATCHES)]]
        assert all(type(value) is bool for value in one["kept"][0])


def test_a_model_that_keeps_all_says_nothing_of_tokens() -> None:
    plain = zoo.create("vit_digits", **tiny_files.CONFIG)
    pipe = pipeline(model=plain, preprocess=tiny_files.PREPROCESS)
    assert "kept" not in pipe(PICTURE, return_tokens=True)[0]


@pytest.mark.parametrize(
    ("picture", "words"),
    [
        ("nope.png", "nope.png: missing"),
        ("http://example.org/cat.png", "nothing is downloaded"),
        ("data:image/png;base64,AAAA", "nothing is downloaded"),
        (b"not a picture", "not_an_image"),
        (7, "int is no picture"),
        ({"image": 1}, "dict is no picture"),
        (np.zeros((2, 2, 3), np.float32), "must be uint8"),
        (torch.full((3, 4, 4), 2.0), "must be 0..1"),
        (torch.full((3, 4, 4), float("nan")), "must be 0..1"),
    ],
)
def test_what_is_no_picture_is_refused_in_one_line(classify: Any, picture: Any, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        classify(picture)
    assert "\n" not in str(caught.value)


def test_how_an_exported_file_is_run(files: Path, tmp_path: Path) -> None:
    plain = pipeline(model=files / "run", backend="openvino")(PICTURE)
    for warm in (False, True):
        pipe = pipeline(model=files / "run", backend="openvino", precision="f32", cache=tmp_path / "cache")
        assert pipe.runner.session.warm == warm and pipe(PICTURE) == plain
    assert pipeline(model=files / "run", backend="openvino", precision="bf16").runner.dtype in ("bfloat16", "float32")
    with pytest.raises(OptionError, match="precision: goes with exported files"):
        pipeline(model=files / "model", precision="bf16")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"task": "image-clasification"}, "did you mean 'image-classification'"),
        ({"task": "object-detection"}, "made for 'image-classification'"),
        ({"model": None}, "model"),
        ({"model": "vit_digts"}, "did you mean 'vit_digits'"),
        ({"model": "deit_tiny"}, "without weights"),
        ({"model": "hf://x/y"}, "nothing is downloaded"),
        ({"model": "runs/nowhere"}, "missing"),
        ({"backend": "onnxruntim"}, "did you mean 'onnxruntime'"),
        ({"batch_size": 0}, "batch_size"),
        ({"threads": 0}, "threads"),
        ({"device": "cuda:7"}, "device"),
        ({"top_kk": 3}, "did you mean 'top_k'"),
        ({"top_k": 0}, "top_k"),
        ({"function_to_apply": "sofmax"}, "did you mean 'softmax'"),
    ],
)
def test_a_wrong_option_is_one_line(files: Path, options: dict[str, Any], words: str) -> None:
    known = {"task": "image-classification", "model": files / "model", **options}
    with pytest.raises(FeatherweightError, match=words) as caught:
        pipeline(known.pop("task"), **known)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_folder_of_the_transformers_library_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(InputError, match="another library"):
        pipeline(model=tmp_path)


def test_names_that_do_not_fit_the_model(files: Path) -> None:
    pipe = pipeline(model=files / "model", classes=["one", "two"])
    with pytest.raises(OptionError, match="2 names, but the model answers with 7"):
        pipe(PICTURE)


def test_a_file_without_metadata_needs_to_be_told(files: Path, tmp_path: Path) -> None:
    import onnx

    made = onnx.load(files / "run" / "export" / "model.onnx")
    del made.metadata_props[:]
    onnx.save(made, tmp_path / "bare.onnx")
    with pytest.raises(InputError, match="missing_key"):
        pipeline(model=tmp_path / "bare.onnx")
    pipe = pipeline(model=tmp_path / "bare.onnx", preprocess=tiny_files.PREPROCESS)
    assert [one["label"] for one in pipe(PICTURE, top_k=7)] != list(tiny_files.CLASSES)
    assert {one["label"] for one in pipe(PICTURE, top_k=7)} == set("0123456")


def test_shapes_and_scores_are_those_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=8,
        num_labels=6, id2label=dict(enumerate("uvwxyz")),
    )  # fmt: skip
    model = transformers.ViTForImageClassification(config).eval()
    processor = transformers.ViTImageProcessor(size={"height": 32, "width": 32}, resample=Image.Resampling.BILINEAR)
    theirs = transformers.pipeline("image-classification", model=model, image_processor=processor, device="cpu")
    ours = pipeline("image-classification", model, preprocess=Preprocess((32, 32), "exact", 1.0, "bilinear"))
    small = Image.fromarray(tiny_files.picture(size=(32, 32)))  # no resizing, which differs by a rounding
    for options in ({}, {"top_k": 2}, {"top_k": 99}, {"function_to_apply": "sigmoid"}, {"function_to_apply": "none"}):
        same(ours(small, **options), theirs(small, **options))
    given = pipeline("image-classification", model, image_processor=processor)
    same(given(small, timeout=3, num_workers=0), theirs(small, timeout=3, num_workers=0))
    same(ours([small]), theirs([small]))
    same(ours([small, small], batch_size=2), theirs([small, small], batch_size=2))


def same(ours: Any, theirs: Any) -> None:
    """Equal but for the last bits of the scores."""
    assert type(ours) is type(theirs)
    if isinstance(ours, list):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            same(one, other)
    else:
        assert list(ours) == list(theirs) == ["label", "score"]
        assert ours["label"] == theirs["label"]
        assert type(ours["score"]) is type(theirs["score"])
        assert ours["score"] == pytest.approx(theirs["score"], abs=1e-5)


def test_nothing_heavy_is_imported(files: Path) -> None:
    code = """
import sys
import featherweight
heavy = {"torch", "transformers", "timm", "numpy", "onnxruntime", "openvino"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
answer = featherweight.pipeline("image-classification", sys.argv[1])(sys.argv[2])
assert len(answer) == 5
assert not {"torch", "transformers", "timm"} & set(sys.modules)
"""
    arguments = [str(files / "run"), str(files / "pictures" / "0.png")]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_package_offers_its_functions() -> None:
    assert set(featherweight.__all__) <= set(dir(featherweight))
    for name in featherweight.__all__:
        assert getattr(featherweight, name) is not None
    with pytest.raises(AttributeError, match="pipelin"):
        featherweight.pipelin  # noqa: B018


def test_load_keeps_the_picture_as_it_is() -> None:
    assert np.array_equal(load(torch.from_numpy(PICTURE).permute(2, 0, 1) / 255), PICTURE)
