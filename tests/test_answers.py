# SPDX-License-Identifier: Apache-2.0
"""A teacher's remembered answers are those it would give, to the bit; another teacher's are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_training as tiny
import torch
from torch import Tensor, nn

from featherweight import answers, train
from featherweight.answers import remember
from featherweight.data.batches import Batches
from featherweight.data.transforms import Augment
from featherweight.errors import InputError, OptionError
from featherweight.methods.deit import TokenDistill
from featherweight.methods.distill import Distill, kl
from featherweight.models import zoo
from featherweight.tasks.classification import Classification

TASK = Classification(4)
MIXED = Augment(crop_min=0.3, flip=0.5, mixup=0.8, cutmix=1.0, num_classes=4)


class Asked(nn.Module):
    """A teacher that counts how often it is asked."""

    def __init__(self, seed: int = 1) -> None:
        super().__init__()
        self.network = tiny.network(seed=seed)
        self.times = [0]

    def forward(self, x: Tensor) -> Tensor:
        self.times[0] += 1
        return self.network(x)


def batches(cycle: int | None = 2, **options: Any) -> Batches:
    return tiny.batches(augment=MIXED, cycle=cycle, **options)


def student() -> nn.Module:
    config = {"image_size": [8, 8], "patch_size": 4, "embed_dim": 8, "num_heads": 2, "depth": 2, "num_classes": 4}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return zoo.build({"name": "vit", "config": config})


def taught(teacher: nn.Module, *, data: Batches | None = None, **options: Any) -> dict[str, Tensor]:
    known = {"methods": [TokenDistill(teacher, distance=kl)], "epochs": 4, **options}
    return train.fit(student(), data or batches(), TASK, **known).state_dict()


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_student_of_remembered_answers_is_the_student_of_the_teacher(tmp_path: Path, precision: str) -> None:
    """Mixing, shuffling, an uneven last batch and four epochs of two augmentations included."""
    teacher, live = Asked(), Asked()
    remembered = remember(teacher, batches(), TASK, folder=tmp_path, precision=train.PRECISIONS[precision])
    asked = teacher.times[0]
    assert asked == 2 * tiny.STEPS
    found, wanted = taught(remembered, precision=precision), taught(live, precision=precision)
    assert same(found, wanted)
    assert teacher.times[0] == asked, "it was asked again"
    assert live.times[0] == 4 * tiny.STEPS
    assert not same(found, taught(Asked(seed=2), precision=precision)), "the control: another teacher"


def test_answers_are_found_again_part_by_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "PART", 12)  # three batches a file
    first = Asked()
    remember(first, batches(), TASK, folder=tmp_path)
    files = sorted(tmp_path.glob("answers-*"))
    assert len(files) == 2 * 4
    whole = [file.read_bytes() for file in files]
    files[2].unlink()
    again = Asked()
    remembered = remember(again, batches(), TASK, folder=tmp_path)
    assert [file.read_bytes() for file in files] == whole
    assert 0 < again.times[0] < first.times[0]
    assert same(taught(remembered), taught(Asked()))
    assert remember(Asked(), batches(workers=2), TASK, folder=tmp_path).teacher.times == [0]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"teacher": Asked(seed=2)}, "teacher was Asked"),
        ({"data": batches(seed=3)}, r"data\.seed was 0, is 3"),
        ({"data": batches(batch_size=5)}, r"data\.batch_size was 4, is 5"),
        ({"data": batches(cycle=3)}, r"data\.cycle was 2, is 3"),
        ({"data": tiny.batches(cycle=2)}, r"data\.augment was Augment, is None"),
        ({"fingerprint": "other pictures"}, "fingerprint was , is other pictures"),
        ({"precision": torch.bfloat16}, "precision was torch.float32, is torch.bfloat16"),
    ],
)
def test_stale_answers_are_refused(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    known: dict[str, Any] = {"teacher": Asked(), "data": batches()}
    remember(known.pop("teacher"), known.pop("data"), TASK, folder=tmp_path)
    other: dict[str, Any] = {"teacher": Asked(), "data": batches(), **change}
    with pytest.raises(InputError, match=rf"facts\.json: changed: .*{told}.*; take another folder"):
        remember(other.pop("teacher"), other.pop("data"), TASK, folder=tmp_path, **other)


def test_other_batches_than_those_remembered_are_refused(tmp_path: Path) -> None:
    remembered = remember(Asked(), batches(), TASK, folder=tmp_path)
    for data, told in (
        (batches(cycle=None), "come but once"),
        (batches(seed=1), "these batches are others"),
        (tiny.batches(cycle=2), "these batches are others"),
    ):
        with pytest.raises(OptionError, match=told):
            train.fit(tiny.network(), data, TASK, methods=[Distill(remembered)])
    with pytest.raises(OptionError, match="say how many epochs of augmentation"):
        remember(Asked(), batches(cycle=None), TASK, folder=tmp_path)


def test_a_damaged_part_is_refused(tmp_path: Path) -> None:
    remembered = remember(Asked(), batches(), TASK, folder=tmp_path)
    path = sorted(tmp_path.glob("answers-*"))[0]
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(InputError, match="checksum"):
        train.fit(tiny.network(), batches(), TASK, methods=[Distill(remembered)])
