# SPDX-License-Identifier: Apache-2.0
"""Detectors of the transformers library: that library's own answers, from folders and modules, in any batch."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import featherweight
from featherweight import cli, pipeline, recipe, sources
from featherweight.errors import InputError, OptionError
from featherweight.pipelines_detection_usual import UsualDetection

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")

RNG = np.random.default_rng(0)
PICTURES = [
    Image.fromarray(RNG.integers(0, 256, (height, width, 3), dtype=np.uint8))
    for height, width in ((50, 70), (70, 50), (50, 70), (64, 64))
]
NAMES = dict(enumerate("uvw"))
EDGES, SQUARE = {"shortest_edge": 64, "longest_edge": 96}, {"height": 64, "width": 64}


def resnet(kind: str = "ResNetConfig", levels: int = 1) -> Any:
    stages = [f"stage{number}" for number in range(5 - levels, 5)]
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 8, 16, 16], "depths": [1] * 4, "layer_type": "basic"}
    return getattr(transformers, kind)(**sizes, out_features=stages)


def detr(**more: Any) -> dict[str, Any]:
    sides = {f"{side}_{name}": n for side in ("encoder", "decoder") for name, n in (("layers", 1), ("ffn_dim", 16))}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    known = {"use_timm_backbone": False, "use_pretrained_backbone": False, "backbone_config": resnet()}
    return {"d_model": 16, "num_queries": 9, **sides, **heads, **known, **more}


def rt_detr(backbone: str = "RTDetrResNetConfig") -> dict[str, Any]:
    return {
        "backbone_config": resnet(backbone, 3), "encoder_hidden_dim": 16, "encoder_in_channels": [8, 16, 16],
        "feat_strides": [8, 16, 32], "encoder_layers": 1, "encoder_ffn_dim": 16, "encoder_attention_heads": 2,
        "decoder_in_channels": [16] * 3, "num_feature_levels": 3, "d_model": 16, "num_queries": 9,
        "decoder_ffn_dim": 16, "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_n_points": 2,
        "num_denoising": 0,
    }  # fmt: skip


YOLOS = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
MODELS: dict[str, tuple[str, Any, str, dict[str, Any]]] = {  # class, its numbers, image processor, its options
    "DETR": ("Detr", detr, "Detr", {"size": EDGES}),
    "DETR, padded": ("Detr", detr, "Detr", {"size": EDGES, "pad_size": {"height": 100, "width": 100}}),
    "conditional DETR": ("ConditionalDetr", detr, "ConditionalDetr", {"size": EDGES}),
    "DAB-DETR": ("DabDetr", lambda: {**detr(), "hidden_size": 16}, "ConditionalDetr", {"size": EDGES}),
    "deformable DETR": (
        "DeformableDetr",
        lambda: detr(d_model=32, decoder_layers=2, num_feature_levels=3, backbone_config=resnet(levels=3)),
        "DeformableDetr",
        {"size": EDGES},
    ),
    "YOLOS": (
        "Yolos",
        lambda: {**YOLOS, "image_size": [64, 96], "patch_size": 16, "num_detection_tokens": 7},
        "Yolos",
        {"size": EDGES},
    ),
    "RT-DETR": ("RTDetr", rt_detr, "RTDetr", {"size": SQUARE}),
    "RT-DETRv2": ("RTDetrV2", lambda: {**rt_detr(), "decoder_layers": 2}, "RTDetr", {"size": SQUARE}),
    "D-FINE": ("DFine", lambda: {**rt_detr("ResNetConfig"), "decoder_layers": 2}, "RTDetr", {"size": SQUARE}),
}
SLOW = ("DAB-DETR", "RT-DETRv2", "D-FINE")


def made(folder: Path, kind: str = "YOLOS") -> Path:
    """A folder with random weights, large enough that objects differ."""
    name, numbers, processor, options = MODELS[kind]
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**numbers(), id2label=NAMES)
    model = getattr(transformers, f"{name}ForObjectDetection")(config).eval()
    with torch.no_grad():
        for value in model.parameters():
            if value.ndim > 1 and value.numel():
                value.normal_(std=value[0].numel() ** -0.5)
    model.save_pretrained(folder)
    getattr(transformers, f"{processor}ImageProcessor")(**options).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def yolos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("yolos"))


def agree(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> bool:
    for one, other in zip(ours, theirs, strict=True):
        assert list(one) == list(other) and list(one["box"]) == list(other["box"])
        assert one["score"] == pytest.approx(other["score"], abs=1e-5)
        assert one["label"] == other["label"] and one["box"] == other["box"]
    return True


@pytest.mark.parametrize("kind", [pytest.param(k, marks=pytest.mark.slow) if k in SLOW else k for k in MODELS])
def test_answers_are_those_of_transformers(tmp_path: Path, kind: str) -> None:
    folder = made(tmp_path, kind)
    theirs = transformers.pipeline("object-detection", str(folder), device="cpu")
    ours = pipeline("object-detection", folder)
    in_memory = pipeline("object-detection", theirs.model, image_processor=theirs.image_processor)
    all_of_them = [theirs(picture, threshold=0.0) for picture in PICTURES]
    assert min(map(len, all_of_them)) > 6 and len({str(found) for found in all_of_them[0]}) > 3
    for picture, wanted in zip(PICTURES, all_of_them, strict=True):
        assert agree(ours(picture, threshold=0.0), wanted)
    assert all(map(agree, in_memory(PICTURES), [theirs(picture) for picture in PICTURES]))
    alone = list(ours.detections(PICTURES, threshold=0.0))
    together = list(in_memory.detections(PICTURES, threshold=0.0, batch_size=4))  # two sizes, two shapes
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(one[:, 4], other[:, 4], atol=1e-5)
        np.testing.assert_allclose(one[:, :4], other[:, :4], atol=1e-3)


def test_pictures_in_every_form(yolos: Path, tmp_path: Path) -> None:
    theirs, ours = transformers.pipeline("object-detection", str(yolos)), pipeline(model=yolos, threshold=0.0)
    assert isinstance(ours, UsualDetection) and ours.task == "object-detection" and ours.classes == ("u", "v", "w")
    turned, clear = tmp_path / "turned.jpg", tmp_path / "clear.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    PICTURES[0].save(turned, exif=exif)
    PICTURES[0].convert("LA").save(clear)
    for path in (turned, clear):
        wanted = theirs(str(path), threshold=0.0)
        with path.open("rb") as stream:
            for given in (str(path), path, stream.read(), Image.open(path)):
                assert agree(ours(given), wanted)
    upright = ours(turned)
    assert ours([turned]) == [upright] and ours([[turned], [turned]]) == [[upright], [upright]]
    stream = ours(turned for _ in range(3))
    assert next(stream) == upright and len(list(stream)) == 2
    assert agree(ours(np.asarray(PICTURES[1])), theirs(PICTURES[1], threshold=0.0))


def test_a_stream_is_read_ahead_by_one_batch(yolos: Path) -> None:
    taken: list[int] = []

    def many() -> Iterator[Image.Image]:
        for number in range(10_000):
            taken.append(number)
            yield PICTURES[0]

    answers = pipeline(model=yolos, batch_size=3)(many())
    for _ in range(7):
        next(answers)
    assert len(taken) == 9


def test_half_precision_answers_as_theirs(yolos: Path) -> None:
    model = transformers.YolosForObjectDetection.from_pretrained(yolos).bfloat16().eval()
    processor = transformers.AutoImageProcessor.from_pretrained(yolos)
    theirs = transformers.pipeline("object-detection", model, image_processor=processor)
    ours = pipeline("object-detection", model, image_processor=yolos, device="cpu")
    assert ours.runner.dtype == "bfloat16" and agree(ours(PICTURES[0]), theirs(PICTURES[0]))


def test_names_threshold_and_training_mode(yolos: Path) -> None:
    model = featherweight.load(yolos)
    assert type(model).__name__ == "YolosForObjectDetection" and not model.training
    found = pipeline(model=model)(PICTURES[0], threshold=0.0)
    assert pipeline("object-detection", copy.deepcopy(model), threads=1)(PICTURES[0], threshold=0.0) == found
    scores = sorted(one["score"] for one in found)
    assert len(pipeline(model=model, threshold=scores[3])(PICTURES[0])) == len([s for s in scores if s > scores[3]])
    named = pipeline(model=model, classes=["红细胞", "白细胞", "血小板"])(PICTURES[0], threshold=0.0)
    assert {one["label"] for one in named} <= {"红细胞", "白细胞", "血小板"}
    assert [one["score"] for one in named] == [one["score"] for one in found]
    assert pipeline(model=model.train())(PICTURES[0], threshold=0.0) == found and model.training


def test_predict_draws_what_was_found(yolos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    PICTURES[0].save(tmp_path / "one.png")
    asked = ["--source", str(tmp_path / "one.png"), "--threshold", "0", "--draw", "boxes", "--json"]
    assert cli.main(["predict", str(yolos), *asked, "--project", str(tmp_path / "runs")]) == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert agree(told["objects"], pipeline(model=yolos)(PICTURES[0], threshold=0.0)) and Path(told["drawn"]).is_file()
    assert cli.main(["predict", str(yolos), "--source", str(tmp_path / "one.png"), "--iou", "0.5"]) == 2
    assert "Known: threshold" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"threshold": 1.5}, "threshold: must be 0..1, not 1.5"),
        ({"threshold": float("nan")}, "threshold"),
        ({"threshold": "half"}, "threshold"),
        ({"treshold": 0.5}, "did you mean 'threshold'"),
        ({"iou": 0.5}, "Known: threshold"),
        ({"top_k": 3}, "top_k"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_wrong_options(yolos: Path, options: dict[str, Any], says: str) -> None:
    with pytest.raises(OptionError, match=says):
        pipeline("object-detection", yolos, **options)
    with pytest.raises(OptionError, match=says):
        pipeline("object-detection", yolos)(PICTURES[0], **options)


@pytest.mark.parametrize(
    ("task", "options", "says"),
    [
        ("image-classification", {}, "made for 'object-detection'"),
        ("text-classification", {}, "made for 'object-detection'"),
        (None, {"tokenizer": "somewhere"}, "tokenizer: goes with a text model"),
        (None, {"backend": "onnxruntime"}, "backend: .* runs in torch"),
        (None, {"classes": ["one"]}, "classes: there are 1 names, but the model has 3"),
        (None, {"preprocess": {"size": (64, 64)}}, "image_processor: dict is no image processor of a detector"),
        (None, {"threads": 0}, "threads"),
        (None, {"arch": "yolov7"}, "arch"),
        (None, {"precision": "bf16"}, "precision"),
        (None, {"device": "tpu"}, "device"),
    ],
)
def test_what_does_not_go_with_such_a_model(yolos: Path, task: str | None, options: dict[str, Any], says: str) -> None:
    with pytest.raises(OptionError, match=says):
        pipeline(task, yolos, **options)


def test_what_a_folder_or_module_lacks_is_said(yolos: Path, tmp_path: Path) -> None:
    model = transformers.YolosForObjectDetection.from_pretrained(yolos)
    with pytest.raises(OptionError, match="image_processor: is missing"):
        pipeline("object-detection", model)
    with pytest.raises(OptionError, match="image_processor"):
        pipeline("image-classification", "vit_digits", image_processor=yolos)
    folder = made(tmp_path / "made")
    described = folder / "preprocessor_config.json"
    before = described.read_text()
    described.write_text(json.dumps({"image_processor_type": "ViTImageProcessor"}))
    with pytest.raises(InputError, match=r"preprocessor_config\.json: unsupported_format: ViT.* of a detector"):
        pipeline("object-detection", folder)
    described.unlink()
    with pytest.raises(InputError, match="has no preprocessor_config"):
        pipeline("object-detection", folder)
    assert pipeline("object-detection", folder, image_processor=yolos)(PICTURES[0], threshold=1.0) == []
    described.write_text(before)
    plan = {"data": "digits-det", "task": "object-detection", "steps": ["train"]}
    for verb in (sources.find, featherweight.info, lambda place: recipe.parse({"model": str(place), **plan}, "test")):
        with pytest.raises(InputError, match="is a detector of transformers"):
            verb(folder)


def test_broken_weights_and_configurations_are_said(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = made(tmp_path)
    path, config = folder / "model.safetensors", folder / "config.json"
    told, weights = json.loads(config.read_text()), load_file(path)
    missing = next(name for name in weights if name.startswith("class_labels_classifier"))
    save_file({name: value for name, value in weights.items() if name != missing}, path, {"format": "pt"})
    with pytest.raises(InputError, match=f"corrupt: its weights lack {missing}"):
        pipeline("object-detection", folder)
    save_file({**weights, missing: weights[missing] * float("nan")}, path, {"format": "pt"})
    with pytest.raises(OptionError, match="not finite"):
        pipeline("object-detection", folder)(PICTURES[0])
    asked_with_words = {"architectures": ["OwlViTForObjectDetection"], "model_type": "owlvit"}
    for change in (
        asked_with_words,
        {"hidden_size": "wide"},
        {"auto_map": {"AutoConfig": "a.B"}, "model_type": "mine"},
    ):
        config.write_text(json.dumps({**told, **change}))
        with pytest.raises(InputError, match="corrupt: transformers cannot load it"):
            pipeline("object-detection", folder)
    config.write_text(json.dumps({**told, "backbone": "owner/resnet", "use_timm_backbone": False}))
    with pytest.raises(InputError, match="nothing is downloaded"):
        pipeline("object-detection", folder)
    path.rename(folder / "pytorch_model.bin")
    config.write_text(json.dumps(told))
    with pytest.raises(InputError, match="safetensors"):
        pipeline("object-detection", folder)


def test_pictures_that_are_none(yolos: Path) -> None:
    pipe = pipeline("object-detection", yolos)
    for wrong, says in (("nope.png", "does not exist"), (None, "no picture"), ("https://a.b/c.png", "is an address")):
        with pytest.raises(InputError, match=says):
            pipe(wrong)
    with pytest.raises(InputError, match="cannot be prepared"):
        pipe(np.zeros((1, 500, 3), np.uint8))
    unbounded = transformers.YolosImageProcessor(size={"shortest_edge": 800})
    with pytest.raises(InputError, match="too_large"):
        pipeline("object-detection", yolos, image_processor=unbounded)(np.zeros((1, 9000, 3), np.uint8))


def test_they_are_neither_looked_at_nor_raced_in_memory(yolos: Path) -> None:
    model = transformers.AutoModelForObjectDetection.from_pretrained(yolos)
    for ask in (lambda: featherweight.info(model), lambda: featherweight.bench([model], resolution=(64, 64))):
        with pytest.raises(OptionError, match="model: YolosForObjectDetection is a detector of transformers"):
            ask()


def test_they_are_not_served(yolos: Path) -> None:
    pytest.importorskip("uvicorn")
    from featherweight.serving.server import open_models

    with pytest.raises(OptionError, match="only ours are served"):
        open_models([yolos])
