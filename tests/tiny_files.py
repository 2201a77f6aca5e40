# SPDX-License-Identifier: Apache-2.0
"""A tiny token-dropping classifier as a model folder, a run folder, an .onnx and an .xml file; pictures and data."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from featherweight import artifact
from featherweight.export import onnx, openvino
from featherweight.export.check import describe
from featherweight.files import point
from featherweight.methods import dynamicvit
from featherweight.models import zoo
from featherweight.runtime.preprocess import Preprocess
from featherweight.surgery import apply

CLASSES = ("ant", "bee", "cow", "dog", "elk", "fox", "gnu")
PATCHES = 36
PREPROCESS = Preprocess(size=(24, 24), resize="exact", interpolation="bilinear")
CONFIG = {"image_size": (24, 24), "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 7}


def model() -> nn.Module:
    """The classifier, with weights large enough for its answers to differ."""
    torch.manual_seed(0)
    made = zoo.create("vit_digits", **CONFIG).eval()
    made = apply(made, dynamicvit.plan(made, keep={1: 0.5}))
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.2)
    return made.eval()


def picture(seed: int = 0, size: tuple[int, int] = (30, 40)) -> np.ndarray:
    """uint8 (H, W, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def write(folder: Path) -> Path:
    """folder/{model, run, latest, pictures, data}; the run has the model and both exports."""
    made = model()
    artifact.save(made, folder / "model", classes=CLASSES, preprocess=PREPROCESS)
    run = folder / "run"
    (run / "export").mkdir(parents=True)
    shutil.copytree(folder / "model", run / "model")
    images = torch.stack([torch.from_numpy(PREPROCESS(picture(seed))) for seed in range(4)])
    about = describe(classes=CLASSES, preprocess=PREPROCESS)
    known = {"batches": [{"image": images}], "min_agreement": 0.0, "min_snr_db": 20.0}
    target = run / "export" / "model.onnx"
    onnx.export(made, images, target, metadata=about, extra=("kept_tokens",), **known)
    openvino.export(target, run / "export" / "openvino_model.xml", model=made, **known)
    point(folder / "latest", run)
    for seed in range(3):
        (folder / "pictures").mkdir(exist_ok=True)
        Image.fromarray(picture(seed)).save(folder / "pictures" / f"{seed}.png")
    whole = (folder / "pictures" / "0.png").read_bytes()
    (folder / "pictures" / "broken.png").write_bytes(whole[: len(whole) // 2])
    for part, count in (("train", 4), ("val", 2)):
        for number, name in enumerate(CLASSES):
            place = folder / "data" / part / name
            place.mkdir(parents=True)
            for i in range(count):
                seed = 100 * number + i + (50 if part == "val" else 0)
                Image.fromarray(picture(seed, (24, 24))).save(place / f"{i}.png")
    return folder
