# SPDX-License-Identifier: Apache-2.0
"""The named models: which family, how they differ from its defaults, and what their authors report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..runtime.preprocess import Preprocess

IMAGENET = Preprocess(crop_pct=0.875, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


@dataclass(frozen=True)
class Entry:
    """One named model: the family, how it differs from the family's defaults, and what is known about it."""

    family: str
    config: Mapping[str, Any]
    preprocess: Preprocess
    says: str = ""
    reported_top1: float | None = None  # percent on ImageNet-1k, as its authors report it; not measured by us
    reported_ap: float | None = None  # percent on COCO val2017, box AP, as its authors report it; not measured by us
    task: str = "image-classification"
    source: str = ""
    shipped: bool = False  # weights of our own come with the package
    aliases: tuple[str, ...] = field(default=())
    keep: float | None = None  # DynamicViT: the rate ...
    places: tuple[int, ...] = ()  # ... and before which blocks; `official.create` puts the predictors in
    stage: int | None = None  # of ConvNeXt and Swin, counted from 1


def _deit(size: str, dim: int, heads: int, image: int, distilled: bool, top1: float) -> Entry:
    return Entry(
        "vit",
        {"embed_dim": dim, "num_heads": heads, "image_size": (image, image), "distilled": distilled},
        replace(IMAGENET, size=(image, image)),
        "DeiT, distillation token" if distilled else "DeiT",
        top1,
        source="Touvron 2021, the DeiT repository's table",
        aliases=(f"deit_{size}{'_distilled' if distilled else ''}",) if image == 224 else (),
    )


_LVVIT = {  # embed_dim, depth, num_heads, stem_width, skip_lam, share of the picture that evaluation sees
    "t": (240, 12, 4, 64, 1.0, 0.9),
    "s": (384, 16, 6, 64, 2.0, 0.9),
    "m": (512, 20, 8, 64, 2.0, 1.0),
    "l": (768, 24, 12, 128, 3.0, 1.0),
}


def _lvvit(size: str, image: int, top1: float | None) -> Entry:
    *shape, crop_pct = _LVVIT[size]
    config = dict(zip(("embed_dim", "depth", "num_heads", "stem_width", "skip_lam"), shape, strict=True))
    return Entry(
        "lvvit",
        {**config, "image_size": (image, image)},
        replace(IMAGENET, size=(image, image), crop_pct=crop_pct),
        "LV-ViT, a head on every token",
        top1,
        source="Jiang 2021, the TokenLabeling repository's table" if top1 else "",
    )


_DEITS = (
    ("tiny", 192, 3, 224, False, 72.2),
    ("small", 384, 6, 224, False, 79.9),
    ("base", 768, 12, 224, False, 81.8),
    ("tiny", 192, 3, 224, True, 74.5),
    ("small", 384, 6, 224, True, 81.2),
    ("base", 768, 12, 224, True, 83.4),
    ("base", 768, 12, 384, False, 82.9),
    ("base", 768, 12, 384, True, 85.2),
)
_LVVITS = (
    ("t", 224, 79.1),
    ("s", 224, 83.3),
    ("s", 384, 84.4),
    ("m", 224, 84.0),
    ("m", 384, 85.4),
    ("m", 448, 85.5),
    ("l", 224, None),
    ("l", 448, 86.2),
    ("l", 512, 86.4),
)
_SRET = {  # base_dim, num_heads, mlp_ratio, nll_ratio
    "t": (32, (2, 4, 8), 3.6, 1.0),
    "lt": (32, (2, 4, 8), 4.0, 1.0),
    "s": (42, (3, 6, 12), 3.0, 2.0),
}
_SRETS = (
    ("t", "", 224, 76.0),
    ("lt", "", 224, 76.7),
    ("s", "", 224, 81.9),
    ("lt", "16_14_1", 224, 76.6),
    ("t", "wo_slice", 224, 76.1),
    ("lt", "wo_slice", 224, 76.8),
    ("s", "wo_slice", 224, 82.0),
    ("t", "distill", 224, 77.6),
    ("lt", "distill", 224, 77.7),
    ("t", "wo_slice_distill", 224, 77.7),
    ("lt", "wo_slice_distill", 224, 77.9),
    ("t", "wo_slice_finetune", 384, 79.7),
    ("s", "wo_slice_finetune", 384, 83.8),
    ("s", "wo_slice_finetune", 512, 84.3),
)


def _sret(size: str, form: str, image: int, top1: float) -> Entry:
    config = dict(zip(("base_dim", "num_heads", "mlp_ratio", "nll_ratio"), _SRET[size], strict=True))
    if "wo_slice" in form:
        config.update(groups=(1, 1, 1), groups_recursive=(1, 1, 1))
    elif form == "16_14_1":
        config.update(groups=(16, 14, 1), groups_recursive=(1, 1, 1))
    return Entry(
        "sret",
        {**config, "image_size": (image, image)},
        replace(IMAGENET, size=(image, image)),
        f"SReT, shared blocks{'' if 'wo_slice' in form else ', attention in groups'}"
        f"{', distilled' if 'distill' in form or 'finetune' in form else ''}",
        top1,
        source="Shen 2022, the SReT repository's table",
    )


_SMALL = Preprocess(size=(48, 48), resize="exact", interpolation="bilinear", mean=(0.35,) * 3, std=(0.25,) * 3)
_DIGITS = {
    "vit_digits": Entry(
        "vit",
        {
            "image_size": (48, 48),
            "patch_size": 4,
            "embed_dim": 96,
            "depth": 6,
            "num_heads": 3,
            "stem": "conv",
            "init": "xavier",
            "num_classes": 10,
        },
        _SMALL,
        "the demo's student: 144 tokens",
        shipped=True,
    ),
    "resnet_digits": Entry(
        "resnet",
        {"image_size": (48, 48), "widths": (24, 48, 96), "depths": (1, 1, 1), "stem": "small", "num_classes": 10},
        _SMALL,
        "the demo's teacher",
        shipped=True,
    ),
}


_SMALLER = Preprocess(size=(32, 32), resize="exact", mean=(0.49, 0.48, 0.45), std=(0.25, 0.24, 0.26))
_TOKENS_16 = {
    "image_size": (32, 32),
    "patch_size": 8,
    "embed_dim": 64,
    "depth": 6,
    "num_heads": 2,
    "mlp_ratio": 2.0,
    "init": "xavier",
    "num_classes": 10,
}
_CIFAR = {  # of the study of the papers' claims: a training takes minutes on one core
    "vit_cifar": Entry("vit", {**_TOKENS_16, "stem": "conv"}, _SMALLER, "the study's student: 16 tokens"),
    "lvvit_cifar": Entry("lvvit", {**_TOKENS_16, "stem_width": 16}, _SMALLER, "the same in LV-ViT's form"),
    "resnet_cifar": Entry(
        "resnet",
        {"image_size": (32, 32), "widths": (16, 32, 64), "depths": (1, 1, 1), "stem": "small", "num_classes": 10},
        _SMALLER,
        "the study's teacher",
    ),
}


def _resnet(depths: tuple[int, ...], top1: float) -> Entry:
    bilinear = replace(IMAGENET, interpolation="bilinear")
    return Entry("resnet", {"depths": depths}, bilinear, "as torchvision's", top1, source="torchvision's table")


def _dynamic(family: str, config: Mapping[str, Any], places: tuple[int, ...], top1: float) -> Entry:
    return Entry(
        family,
        config,
        IMAGENET,
        "DynamicViT, keeps 0.7 of the tokens at each stage",
        top1,
        source="Rao 2021, the DynamicViT repository's table",
        keep=0.7,
        places=places,
        stage=3 if family.startswith("timm:") else None,
    )


_DYNAMIC = {
    "deit_256": _dynamic("vit", {"embed_dim": 256, "num_heads": 4}, (3, 6, 9), 76.53),
    "deit_small": _dynamic("vit", {"embed_dim": 384, "num_heads": 6}, (3, 6, 9), 79.32),
    "deit_base": _dynamic("vit", {"embed_dim": 768, "num_heads": 12}, (3, 6, 9), 81.43),
    "lvvit_s": _dynamic("lvvit", _lvvit("s", 224, None).config, (4, 8, 12), 83.08),
    "lvvit_m": _dynamic("lvvit", _lvvit("m", 224, None).config, (5, 10, 15), 83.82),
    "convnext_tiny": _dynamic("timm:convnext_tiny", {}, (1, 2, 3), 81.59),
    "convnext_small": _dynamic("timm:convnext_small", {}, (3, 6, 9), 82.57),
    "convnext_base": _dynamic("timm:convnext_base", {}, (3, 6, 9), 83.45),
    "swin_tiny": _dynamic("timm:swin_tiny_patch4_window7_224", {}, (1, 2, 3), 80.91),
    "swin_small": _dynamic("timm:swin_small_patch4_window7_224", {}, (2, 4, 6), 83.21),
    "swin_base": _dynamic("timm:swin_base_patch4_window7_224", {}, (2, 4, 6), 83.43),
}

DETECTOR = Preprocess(
    size=(640, 640), resize="letterbox", interpolation="bilinear", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)
)


def _yolov7(variant: str, ap: float | None, says: str) -> Entry:
    side = 1280 if variant.endswith(("w6", "e6", "d6", "e6e")) else 640
    return Entry(
        "yolov7",
        {"variant": variant},
        replace(DETECTOR, size=(side, side)),
        says,
        reported_ap=ap,
        task="object-detection",
        source="Wang 2022, table 2, val2017" if ap else "",
    )


_YOLOV7S = (
    ("yolov7_tiny", None, "LeakyReLU; its authors give no AP at 640"),
    ("yolov7_tiny_silu", 38.7, "as yolov7_tiny, SiLU"),
    ("yolov7", 51.2, "ELAN, planned RepConv"),
    ("yolov7x", 52.9, "yolov7 scaled: depth 1.5, width 1.25"),
    ("yolov7_w6", 54.6, "four levels, for 1280 x 1280"),
    ("yolov7_e6", 55.9, "w6 scaled: depth 1.5, width 1.25"),
    ("yolov7_d6", 56.3, "w6 scaled: depth 2, width 1.5"),
    ("yolov7_e6e", 56.8, "e6 with E-ELAN: every ELAN twice, summed"),
)

ZOO: dict[str, Entry] = {
    **{f"deit_{line[0]}_{'distilled_' if line[4] else ''}patch16_{line[3]}": _deit(*line) for line in _DEITS},
    **{f"lvvit_{line[0]}{'' if line[1] == 224 else f'_{line[1]}'}": _lvvit(*line) for line in _LVVITS},
    **{
        "_".join(["sret", *filter(None, [n, form]), *([str(i)] * (i != 224))]): _sret(n, form, i, top1)
        for n, form, i, top1 in _SRETS
    },
    **{f"dynamicvit_{name}": line for name, line in _DYNAMIC.items()},
    **{variant: _yolov7(variant, ap, says) for variant, ap, says in _YOLOV7S},
    **_DIGITS,
    **_CIFAR,
    "resnet18": _resnet((2, 2, 2, 2), 69.8),
    "resnet34": _resnet((3, 4, 6, 3), 73.3),
}
