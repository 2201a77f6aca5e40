# SPDX-License-Identifier: Apache-2.0
"""Augmentation by name: what a recipe may write instead of, or before, the single options of `Augment`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from featherweight.data.transforms import Augment
from featherweight.errors import OptionError, closest

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "crop": {"crop_min": 0.08, "flip": 0.5},
    "deit": {  # Touvron 2021, 2012.12877, table 9, and the defaults of its code; erasing there is normal noise
        "crop_min": 0.08,
        "flip": 0.5,
        "randaugment": "rand-m9-mstd0.5-inc1",
        "erase": 0.25,
        "mixup": 0.8,
        "cutmix": 1.0,
        "mix_per": "batch",
        "label_smoothing": 0.1,
    },
    "lvvit": {  # Jiang 2021, 2104.10858, and the defaults of its code: label maps could not follow mixup and cutmix
        "crop_min": 0.08,
        "flip": 0.5,
        "randaugment": "rand-m9-mstd0.5-inc1",
        "erase": 0.25,
    },
}
LETTERS = {"m": "randaugment", "n": "randaugment_ops", "mstd": "randaugment_std", "inc": "randaugment_increasing"}


def augmentation(options: Mapping[str, Any], num_classes: int) -> Augment:
    """`Augment` of these options over those of the preset they may name; OptionError for an unknown one."""
    return Augment(**{**expanded(options), "num_classes": num_classes})


def expanded(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options without `preset`, and with RandAugment's usual short form (`rand-m9-mstd0.5-inc1`) written out."""
    given = dict(options)
    name = given.pop("preset", None)
    if name is not None and name not in PRESETS:
        raise OptionError("augment.preset", f"no {name!r}; {closest(str(name), PRESETS)}Known: {', '.join(PRESETS)}")
    found = {**(PRESETS[name] if name is not None else {}), **given}
    short = found.get("randaugment")
    return {**found, **randaugment_of(short)} if isinstance(short, str) else found


def randaugment_of(text: str) -> dict[str, Any]:
    """`rand-m9-n2-mstd0.5-inc1` as options of `Augment`: magnitude, operations, noise, whether more is stronger."""
    head, *parts = text.split("-")
    found: dict[str, Any] = {"randaugment_std": 0.0, "randaugment_increasing": False}
    for part in parts:
        match = re.fullmatch(r"(mstd|inc|m|n)(\d+(?:\.\d+)?)", part)
        if match is None:
            raise OptionError("augment.randaugment", f"no {part!r} in {text!r}; write it as rand-m9-n2-mstd0.5-inc1")
        number = float(match[2])
        found[LETTERS[match[1]]] = {"inc": bool(number), "n": int(number)}.get(match[1], number)
    if head != "rand" or "randaugment" not in found:
        raise OptionError("augment.randaugment", f"{text!r} is not like rand-m9-mstd0.5-inc1")
    return found
