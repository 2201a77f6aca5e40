# SPDX-License-Identifier: Apache-2.0
"""Options that several verbs share, under the names that people know from elsewhere, and how their values are read."""

from __future__ import annotations

import datetime
import itertools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from featherweight.errors import OptionError, StorageError, shown

Model = Annotated[
    str,
    Parameter(
        name=("--model", "-m"),
        help="a name (featherweight list models), timm:NAME, a model or run folder, a .onnx or .xml file, "
        "or a weights file with --arch",
    ),
]
Arch = Annotated[str | None, Parameter(help="whose weights a .pt, .pth or plain .safetensors file holds")]
Data = Annotated[
    str,
    Parameter(
        name=("--data", "--data-dir", "--dataset", "-d"),
        help="digits, a folder of class folders, a parquet, a CSV of paths, tar shards or a saved Hugging Face set",
    ),
]
Sets = Annotated[
    list[str] | None,
    Parameter(name="--set", negative=(), help="any field of the recipe, such as train.lr=1e-3 or prune.mlp=0.4"),
]
Seed = Annotated[int | None, Parameter(help="of everything that is drawn at random")]
Threads = Annotated[int | None, Parameter(help="all that this process may use unless given")]
Batch = Annotated[int | None, Parameter(name=("--batch", "--batch-size", "-b"), help="pictures at a time")]
Backend = Annotated[str, Parameter(help="torch, onnxruntime or openvino; auto takes what the model comes with")]
Device = Annotated[str | None, Parameter(help="cpu, 0, cuda:0 or auto, for torch models")]
Project = Annotated[str, Parameter(name=("--project", "--output"), help="the folder of all runs")]
Name = Annotated[str | None, Parameter(name=("--name", "--experiment"), help="of the run; made up unless given")]
MaxBad = Annotated[float, Parameter(help="largest share of unreadable files that is skipped over")]
Limit = Annotated[int | None, Parameter(help="use that many pictures, evenly spaced")]


Pictures = Annotated[
    list[str], Parameter(name=("--source", "-s"), negative=(), help="a picture, a folder of pictures, or - for stdin")
]
WeightsFile = Annotated[str | None, Parameter(help="a weights file for the named model, or shipped")]
ResetHead = Annotated[bool, Parameter(help="a new classifier where the weights have other classes")]
Skipped = Annotated[float | None, Parameter(help="largest share of unreadable files that is skipped over")]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Training:
    """How a model is trained; what is not given is left to the recipe's defaults."""

    teacher: Annotated[
        str | None, Parameter(name=("--teacher", "--teacher-model"), help="a model that teaches: a folder, or a name")
    ] = None
    distill: Annotated[
        str | None,
        Parameter(name=("--distill", "--distillation-type"), help="hard, soft, token, token-soft, mse or none"),
    ] = None
    alpha: Annotated[
        float | None, Parameter(name=("--alpha", "--distillation-alpha"), help="the teacher's share of the loss")
    ] = None
    temperature: Annotated[
        float | None, Parameter(name=("--temperature", "--distillation-tau"), help="of soft answers")
    ] = None
    weights: Annotated[
        str | None, Parameter(name=("--weights", "--pretrained"), help="a weights file to start from, or shipped")
    ] = None
    reset_head: ResetHead = False
    image_size: Annotated[
        int | None,
        Parameter(name=("--image-size", "--imgsz"), help="side of the pictures; the model's own if not given"),
    ] = None
    aux_heads: Annotated[bool, Parameter(help="of detectors: auxiliary heads while training")] = False
    epochs: int | None = None
    batch_size: Batch = None
    lr: Annotated[float | None, Parameter(name=("--lr", "--lr0"), help="learning rate")] = None
    optimizer: Annotated[str | None, Parameter(name=("--optimizer", "--opt"), help="adamw or sgd")] = None
    weight_decay: float | None = None
    warmup: Annotated[float | None, Parameter(help="share of the steps")] = None
    ema: Annotated[float | None, Parameter(help="decay of a moving average of the weights, such as 0.999")] = None
    clip: Annotated[float | None, Parameter(help="largest gradient norm")] = None
    precision: Annotated[str | None, Parameter(help="float32 or bfloat16")] = None
    label_smoothing: float | None = None
    images: Annotated[int | None, Parameter(help="per epoch; all of them unless given")] = None
    arch: Arch = None
    max_bad: Skipped = None


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Running:
    """Where a run is, and what every recipe has."""

    seed: Seed = None
    threads: Threads = None
    project: Annotated[
        str | None, Parameter(name=("--project", "--output"), help="the folder of all runs; runs unless given")
    ] = None
    name: Name = None
    sets: Sets = None

    def overrides(self, **more: Any) -> list[str]:
        """The fields of the recipe that were given, as key=value."""
        given = {**more, "seed": self.seed, "threads": self.threads}
        return [*(f"{key}={value}" for key, value in given.items() if value is not None), *(self.sets or [])]


TRAINING, RUNNING = Training(), Running()


def given(known: dict[str, Any]) -> dict[str, Any]:
    """What was given; the functions have their own defaults for the rest."""
    return {key: value for key, value in known.items() if value is not None}


def numbers(option: str, text: str) -> tuple[int, ...]:
    """ "1,32" -> (1, 32)."""
    try:
        found = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise OptionError(option, f"{text!r} is not a list of whole numbers, such as 1,32") from None
    if min(found) < 1:
        raise OptionError(option, f"{min(found)} is not 1 or more")
    return found


def words(option: str, text: str, known: tuple[str, ...]) -> tuple[str, ...]:
    """ "onnx,openvino" -> ("onnx", "openvino"), each of them known."""
    from featherweight.errors import closest

    found = tuple(part.strip() for part in text.split(",") if part.strip())
    for part in found:
        if part not in known:
            raise OptionError(option, f"no {part!r}; {closest(part, known)}Known: {', '.join(known)}")
    if not found:
        raise OptionError(option, f"is empty; give some of {', '.join(known)}")
    return found


def fresh_name(project: str, verb: str, data: str) -> str:
    """A name that no run has yet: train-digits-2026-11-22-1."""
    about = re.sub(r"[^A-Za-z0-9_]+", "-", Path(data).resolve().name if data not in ("", "digits") else data).strip("-")
    stem = "-".join(part for part in (verb, about[:40], datetime.date.today().isoformat()) if part)
    return next(name for n in itertools.count(1) if not (Path(project) / (name := f"{stem}-{n}")).exists())


def new_folder(project: str, name: str | None, verb: str, data: str = "") -> Path:
    """A folder of this command's own, made now."""
    while True:
        folder = Path(project) / (name or fresh_name(project, verb, data))
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            if name is None:
                continue  # another process was quicker
            raise OptionError("--name", f"{shown(folder)} exists already; choose another name") from None
        except OSError as error:
            raise StorageError(f"{shown(folder)} cannot be made: {error.strerror}; choose another --project") from error
        return folder
