# SPDX-License-Identifier: Apache-2.0
"""What an exported file says of itself in its metadata: the names of its classes and how its pictures are prepared."""

from __future__ import annotations

from collections.abc import Mapping

from featherweight.doors import json as strict_json
from featherweight.errors import InputError
from featherweight.runtime.preprocess import Preprocess


def names_in(told: Mapping[str, str], path: object) -> tuple[str, ...]:
    """The class names in a file's metadata: a JSON list, or an object from number to name."""
    if "names" not in told:
        return ()
    names = strict_json.parse(told["names"], path)
    if isinstance(names, dict):
        names = [names.get(str(i)) for i in range(len(names))]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(path, "bad_schema", "its 'names' must be a JSON list of class names")
    return tuple(names)


def preprocess_in(told: Mapping[str, str], path: object) -> Preprocess:
    """The preprocessing in a file's metadata: `preprocess`, or imgsz, mean, std and the rest one by one."""
    if "preprocess" in told:
        found = strict_json.parse(told["preprocess"], path)
        if not isinstance(found, dict):
            raise InputError(path, "bad_schema", "its 'preprocess' must be a JSON object")
        return Preprocess.from_dict(found, name=str(path))
    lacking = [key for key in ("imgsz", "mean", "std") if key not in told]
    if lacking:
        text = f"its metadata lack {', '.join(lacking)}, so pictures cannot be prepared; export it with featherweight"
        raise InputError(path, "missing_key", text)
    read = {key: strict_json.parse(told[key], path) for key in ("imgsz", "mean", "std", "crop_pct") if key in told}
    size = read["imgsz"] if isinstance(read["imgsz"], list) else [read["imgsz"]] * 2
    stored = {
        "size": size,
        "mean": read["mean"],
        "std": read["std"],
        "crop_pct": read.get("crop_pct", 1.0),
        "resize": told.get("resize", "shorter"),
        "interpolation": told.get("interpolation", "bicubic"),
    }
    return Preprocess.from_dict(stored, name=str(path))
