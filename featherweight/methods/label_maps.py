# SPDX-License-Identifier: Apache-2.0
"""Label maps: what a teacher says of each place of each training picture, kept in a file and cut like the picture.

Made once, before training; of each place the best few classes are kept (Yun 2021, 2101.05022). Logits are stored from
the level at which all other classes stand, so that 0 is right for what is not stored. The file says what it was made
from, and one made from another teacher or other pictures is refused. Read by mapping: it need not fit in memory.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .. import distributed
from ..data import Batches, Data
from ..doors import checkpoint
from ..doors.checkpoint import Stored
from ..errors import Diverged, InputError, OptionError, shown
from ..modes import evaluating
from ..options import describe
from ..runtime.preprocess import Preprocess
from .dense import dense_logits

FORMAT = "1"
LARGEST = 65504.0  # of float16
Dense = Callable[[nn.Module, Tensor], Tensor]
Log = Callable[[int, int], object]


class LabelMaps:
    """The best classes of each place: scores (n, k, h, w) float16 and class numbers (n, k, h, w), by picture."""

    def __init__(
        self, scores: NDArray[Any], classes: NDArray[Any], *, num_classes: int, made_from: Mapping[str, str]
    ) -> None:
        self._scores, self._classes = scores, classes
        self.num_classes = num_classes
        self.made_from = dict(made_from)

    @property
    def count(self) -> int:
        """For so many pictures."""
        return len(self._scores)

    def of(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (B, k, h, w) float32 and classes int64 of these pictures, where `index` is."""
        where = index.cpu().numpy()
        if len(where) and not 0 <= where.min() <= where.max() < self.count:
            text = f"there are {self.count} label maps, and a picture has the number {where.max()}: other data?"
            raise OptionError("labels", text)
        scores, classes = self._scores[where].astype(np.float32), self._classes[where].astype(np.int64)
        return torch.from_numpy(scores).to(index.device), torch.from_numpy(classes).to(index.device)


def make(
    teacher: nn.Module,
    data: Data,
    path: str | os.PathLike[str],
    *,
    preprocess: Preprocess,
    part: str = "train",
    top_k: int = 5,
    batch_size: int = 32,
    dense: Dense = dense_logits,
    log: Log | None = None,
) -> LabelMaps:
    """The label maps of a part of the data, by any classifier; found again where `path` holds these very maps.

    The teacher sees each picture whole, stretched to the size of its `preprocess`. dense: what asks it about places,
    images (B, 3, H, W) -> logits (B, K, h, w). log: gets how many pictures are done, of how many. Under `torchrun` one
    process makes them and the others wait. Raises InputError where `path` holds something else, OptionError for a
    teacher that cannot be asked.
    """
    images = getattr(data, part, None)
    if images is None:
        raise OptionError("part", f"the data has no {shown(part)} part")
    if top_k < 1:
        raise OptionError("top_k", f"{top_k!r} is not 1 or more")
    whole = replace(preprocess, resize="exact", crop_pct=1.0)
    made_from = _made_from(data, part, teacher, whole, top_k, dense)
    team = distributed.join(_device(teacher))
    if team.any(not Path(path).exists()):
        if team.leads:
            batches = Batches(images, whole, batch_size=batch_size)
            scores, classes = _asked(teacher, batches, len(data.classes), top_k, dense, log)
            write(LabelMaps(scores, classes, num_classes=len(data.classes), made_from=made_from), path)
        team.wait()
    return read(path, made_from=made_from)


def _asked(
    teacher: nn.Module, batches: Batches, num_classes: int, top_k: int, dense: Dense, log: Log | None
) -> tuple[NDArray[Any], NDArray[Any]]:
    """What the teacher says of all pictures in their order: scores and classes (n, k, h, w)."""
    found: list[tuple[NDArray[Any], NDArray[Any]]] = []
    done, count = 0, batches.samples_per_epoch
    with evaluating(teacher), torch.no_grad():
        for batch in batches.epoch(0):
            logits = dense(teacher, batch["image"].to(_device(teacher)))
            _check_answer(logits, num_classes, batch["index"])
            found.append(best(logits, top_k))
            done += len(logits)
            if log is not None:
                log(done, count)
    scores, classes = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return scores, classes


def _check_answer(logits: Tensor, wanted: int, index: Tensor) -> None:
    """OptionError for other classes than the data's, Diverged where something is not finite."""
    if logits.ndim != 4 or logits.shape[1] != wanted:
        text = f"answers about places with logits {tuple(logits.shape)}; needed: (images, {wanted} classes, h, w)"
        raise OptionError("teacher", text)
    if not bool(torch.isfinite(logits).all()):
        raise Diverged(f"label maps: the teacher's logits of pictures {index.tolist()[:8]}, ... are not finite")


def best(logits: Tensor, top_k: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Logits (B, K, h, w) -> scores and classes (B, k, h, w) of the best k, scores above the mean of all others.

    The mean is that of the others' odds, so that with 0 for each of them the softmax is the teacher's, for the best k.
    """
    count = logits.shape[1]
    top_k = min(top_k, count)
    scores, classes = logits.float().topk(top_k, dim=1)
    if top_k < count:
        others = logits.float().scatter(1, classes, -math.inf)
        level = others.logsumexp(dim=1, keepdim=True) - math.log(count - top_k)
    else:
        level = scores.mean(dim=1, keepdim=True)
    kind = np.int16 if count <= np.iinfo(np.int16).max else np.int32
    kept = (scores - level).clamp(-LARGEST, LARGEST).half()
    return kept.cpu().numpy(), classes.cpu().numpy().astype(kind)


def write(maps: LabelMaps, path: str | os.PathLike[str]) -> None:
    """The file, whole or not at all."""
    tensors = {
        name: Stored(array.dtype.name, array.shape, np.ascontiguousarray(array).data.cast("B"))
        for name, array in (("scores", maps._scores), ("classes", maps._classes))
    }
    about = {"format": FORMAT, "num_classes": str(maps.num_classes), "made_from": json.dumps(maps.made_from)}
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    checkpoint.write(path, tensors, about)


def read(path: str | os.PathLike[str], *, made_from: Mapping[str, str] | None = None) -> LabelMaps:
    """The maps in a file that `make` wrote; InputError for another file, or one not made from this."""
    tensors, about = checkpoint.read_sealed(path, mapped=True)
    if about.get("format") != FORMAT or set(tensors) != {"scores", "classes"}:
        raise InputError(path, "not_an_artifact", "holds no label maps of this format; make them anew")
    scores, classes = tensors["scores"].numpy(), tensors["classes"].numpy()
    known = json.loads(about["made_from"])
    if made_from is not None and known != dict(made_from):
        what = ", ".join(key for key in made_from if known.get(key) != made_from[key])
        raise InputError(path, "changed", f"its label maps were made from another {what}; remove it, or choose another")
    _check(scores, classes, int(about["num_classes"]), path)
    return LabelMaps(scores, classes, num_classes=int(about["num_classes"]), made_from=known)


def _check(scores: NDArray[Any], classes: NDArray[Any], num_classes: int, path: object) -> None:
    whole = scores.ndim == 4 and scores.shape == classes.shape and scores.dtype == np.float16
    if not whole or classes.dtype not in (np.int16, np.int32) or not scores.size:
        raise InputError(path, "bad_shape", "scores and classes must be (pictures, k, h, w), float16 and integers")
    if int(classes.min()) < 0 or int(classes.max()) >= num_classes:
        raise InputError(path, "out_of_range", f"a class number is outside 0..{num_classes - 1}")


def _made_from(
    data: Data, part: str, teacher: nn.Module, preprocess: Preprocess, top_k: int, dense: Dense
) -> dict[str, str]:
    """What the maps depend on, by name."""
    how = json.dumps({"preprocess": preprocess.to_dict(), "top_k": top_k, "dense": describe(dense)}, sort_keys=True)
    return {
        "data": f"{data.fingerprint} {part}",
        "teacher": str(describe(teacher)),
        "setting": hashlib.sha256(how.encode()).hexdigest(),
    }


def _device(model: nn.Module) -> torch.device:
    return next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
