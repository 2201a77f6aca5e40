# SPDX-License-Identifier: Apache-2.0
"""Which models are detectors, wrapped ones too; every door asks the same question."""

from __future__ import annotations

from typing import Any

import pytest
from tiny_detector import small
from torch import nn

from featherweight.tasks.detection.detectors import PARTS, detector_in, detector_of


class Wrapped(nn.Module):
    """As training on several processes wraps a model."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


def test_a_detector_is_found_in_what_wraps_it() -> None:
    model = small()
    for one in (model, Wrapped(model), Wrapped(Wrapped(model))):
        assert detector_in(one) is model and detector_of(one) is model


@pytest.mark.parametrize("part", PARTS)
def test_a_head_without_one_of_its_parts_is_none(part: str) -> None:
    model: Any = small()
    if part == "anchors":
        del model.head._buffers[part]
    else:
        delattr(model.head, part)
    assert detector_in(model) is None
    with pytest.raises(TypeError, match="Small is no detector: it has no head with anchors, strides and num_classes"):
        detector_of(model)


def test_other_models_are_none() -> None:
    for other in (nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2)), Wrapped(nn.ReLU()), None, "yolov7"):
        assert detector_in(other) is None
