# SPDX-License-Identifier: Apache-2.0
"""name -> model: the table of what `create` can build, and of what a file may ask for.

A base is {"name": family, "config": {...}}: enough to build the untouched model again. Names are keys of a fixed table,
numbers are bounded, nothing is imported because a file says so. `timm:NAME` builds one of timm's, where installed.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from torch import nn

from ..errors import OptionError, closest, missing_extra, shown
from ..runtime.preprocess import Preprocess
from . import lvvit, pretrained, resnet, sret, vit, yolov7
from .table import IMAGENET, ZOO, Entry

FAMILIES: dict[str, tuple[Callable[[Any], nn.Module], type]] = {
    "vit": (vit.VisionTransformer, vit.ViTConfig),
    "lvvit": (lvvit.LVViT, lvvit.LVViTConfig),
    "sret": (sret.SReT, sret.SReTConfig),
    "resnet": (resnet.ResNet, resnet.ResNetConfig),
    "yolov7": (yolov7.YOLOv7, yolov7.YOLOv7Config),
}
LIMITS = {
    "depth": 1000,
    "depths": 1000,
    "num_classes": 1_000_000,
    "patch_size": 1024,
    "image_size": 16384,
    "mlp_ratio": 64.0,
    "nll_ratio": 64.0,
}
WIDEST = 65536  # any number of a config that has no limit of its own
TIMM_KEYS = {
    "num_classes",
    "img_size",
    "patch_size",
    "embed_dim",
    "depth",
    "num_heads",
    "mlp_ratio",
    "in_chans",
    "drop_path_rate",
}
_BASE = "_featherweight_base"


_ALIASES = {alias: name for name, entry in ZOO.items() for alias in entry.aliases}


def known() -> tuple[str, ...]:
    """Every name and alias `create` takes, but for timm's."""
    return tuple(sorted([*ZOO, *_ALIASES]))


def find(name: str) -> Entry | None:
    """The table's line of a name or alias, if there is one."""
    return ZOO.get(_ALIASES.get(name, name))


def entry(name: str) -> Entry:
    """The table's line; OptionError with a suggestion for an unknown name."""
    found = find(name)
    if found is None:
        raise OptionError("model", f"no {name!r}; {closest(name, known())}Known: {', '.join(known())}, timm:NAME")
    return found


def counts() -> dict[str, dict[str, int]]:
    """name -> params and macs (of one picture) of each line of the table, as `tools/count_models.py` counted them."""
    text = (files("featherweight") / "models" / "counts.json").read_text()
    return {name: {kind: int(count) for kind, count in found.items()} for name, found in json.loads(text).items()}


def check(name: str, **config: Any) -> None:
    """OptionError for what `create` would refuse, found before anything is built."""
    if name.startswith("timm:"):
        _check_timm(name.removeprefix("timm:"), config)
        return
    if name in FAMILIES:
        _check(config, FAMILIES[name][1], name)
        FAMILIES[name][1](**config)
        return
    line = entry(name)
    if line.family.startswith("timm:"):
        _check_timm(line.family.removeprefix("timm:"), {**line.config, **config})
        return
    fields = FAMILIES[line.family][1]
    _check(config, fields, line.family)
    fields(**{**line.config, **config})


def create(name: str, **config: Any) -> nn.Module:
    """The model of a name, a family or timm's, with random weights; `config` sets fields of its configuration.

    `create("timm", architecture=NAME)` is `create("timm:NAME")`. Of a DynamicViT this is the model that drops no tokens
    yet; `featherweight.create` makes it drop them.
    """
    if name == "timm":
        name = f"timm:{config.pop('architecture', '')}"
    if name in FAMILIES:
        return build({"name": name, "config": config})
    if name.startswith("timm:"):
        return build({"name": name, "config": {k: list(v) if isinstance(v, tuple) else v for k, v in config.items()}})
    line = entry(name)
    return build({"name": line.family, "config": {**line.config, **config}})


def build(base: Mapping[str, Any]) -> nn.Module:
    """The untouched model a base describes. OptionError for an unknown family, field or a number out of bounds."""
    name, config = base["name"], dict(base["config"])
    if name.startswith("timm:"):
        model = _timm(name.removeprefix("timm:"), config)
    elif name.startswith(pretrained.PREFIX):
        return pretrained.build(name, config)
    else:
        if name not in FAMILIES:
            raise OptionError(
                "base.name", f"no family {name!r}; {closest(name, FAMILIES)}Known: {', '.join(FAMILIES)}, timm:NAME"
            )
        make, fields = FAMILIES[name]
        _check(config, fields, name)
        model = make(fields(**config))
        config = _plain(dataclasses.asdict(model.config))  # type: ignore[arg-type, call-overload]
    object.__setattr__(model, _BASE, {"name": name, "config": config})
    return model


def base_of(model: nn.Module) -> dict[str, Any] | None:
    """What `build` was given for this model, or what would build it; None: then only its maker can build it again."""
    return getattr(model, _BASE, None) or pretrained.base_of(model)


def preprocess_of(name: str, model: nn.Module | None = None, config: Mapping[str, Any] | None = None) -> Preprocess:
    """How this model's pictures are prepared: the table's line, timm's own data, or ImageNet's at the model's size."""
    if name.startswith("timm:"):
        own: Any = (config or {}).get("img_size")
        found = _timm_preprocess(model if model is not None else create(name, **(config or {})))
        return found if own is None else replace(found, size=(own, own) if isinstance(own, int) else tuple(own))
    if (line := find(name)) is not None:
        found = line.preprocess
        size: Any = (config or {}).get("image_size")
        return found if size is None else replace(found, size=(size, size) if isinstance(size, int) else tuple(size))
    given = getattr(model, "config", None) or (FAMILIES[name][1](**(config or {})) if name in FAMILIES else None)
    own = getattr(given, "image_size", (224, 224))
    return replace(IMAGENET, size=(own, own) if isinstance(own, int) else tuple(own))


def _timm_preprocess(model: nn.Module) -> Preprocess:
    import timm.data

    found = timm.data.resolve_model_data_config(model)
    kernel = found["interpolation"] if found["interpolation"] in ("bicubic", "bilinear") else "bicubic"
    return Preprocess(
        size=tuple(found["input_size"][1:]),
        crop_pct=found["crop_pct"],
        interpolation=kernel,
        mean=tuple(found["mean"]),
        std=tuple(found["std"]),
    )


def shipped_weights(name: str) -> Path:
    """The file with our own weights of this model."""
    if not entry(name).shipped:
        raise OptionError(
            "weights",
            f"none come with the package for {name!r}, only for {', '.join(n for n, e in ZOO.items() if e.shipped)}",
        )
    with as_file(files("featherweight") / "weights" / f"{_ALIASES.get(name, name)}.safetensors") as path:
        return path


def _check(config: Mapping[str, Any], fields: type, family: str) -> None:
    known_fields = {field.name: field for field in dataclasses.fields(fields)}
    for key, value in config.items():
        if key not in known_fields:
            raise OptionError(
                f"{family}.{key}", f"no such field; {closest(key, known_fields)}Known: {', '.join(known_fields)}"
            )
        if known_fields[key].metadata.get("own_check"):  # by the configuration itself
            continue
        default = known_fields[key].default
        _check_value(f"{family}.{key}", key, value, default)


def _check_value(where: str, key: str, value: Any, default: Any) -> None:
    if isinstance(default, (bool, str)):
        if type(value) is not type(default):
            raise OptionError(where, f"must be of type {type(default).__name__}, not {value!r}")
        return
    values = value if isinstance(value, (list, tuple)) else [value]
    whole = not isinstance(default, float)
    for number in values:
        if isinstance(number, bool) or not isinstance(number, int if whole else (int, float)):
            raise OptionError(where, f"must be {'whole numbers' if whole else 'a number'}, not {value!r}")
        lowest = 0 if not whole else 1
        if not lowest <= number <= LIMITS.get(key, WIDEST):
            raise OptionError(where, f"{number!r} is not in {lowest}..{LIMITS.get(key, WIDEST)}")
    if isinstance(default, tuple) != isinstance(value, (list, tuple)) and key != "image_size":
        raise OptionError(where, f"must look like {default!r}, not {value!r}")


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration as JSON has it: lists all the way down."""

    def listed(value: Any) -> Any:
        return [listed(item) for item in value] if isinstance(value, (list, tuple)) else value

    return {key: listed(value) for key, value in config.items()}


def _timm(name: str, config: Mapping[str, Any]) -> nn.Module:
    _check_timm(name, config)
    import timm

    return timm.create_model(name, pretrained=False, **config)


def _check_timm(name: str, config: Mapping[str, Any]) -> None:
    if not re.fullmatch(r"[a-z0-9_]+(\.[a-z0-9_]+)?", name):
        raise OptionError("model", f"'timm:{shown(name)}' is not a name of timm's: letters, digits, _ and one dot")
    for key, value in config.items():
        if key not in TIMM_KEYS:
            raise OptionError(
                f"timm:{name}.{key}", f"no such field; {closest(key, TIMM_KEYS)}Known: {', '.join(sorted(TIMM_KEYS))}"
            )
        like = 1.0 if key in ("mlp_ratio", "drop_path_rate") else value if isinstance(value, (list, tuple)) else 1
        _check_value(f"timm:{name}.{key}", key, value, like)
    try:
        import timm
    except ImportError:
        raise missing_extra(f"the model timm:{name}", "timm", "timm") from None
    if name.split(".")[0] not in (names := timm.list_models()):
        raise OptionError("model", f"timm has no {name!r}; {closest(name, names)}".strip(" ;"))
