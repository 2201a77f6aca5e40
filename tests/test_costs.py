# SPDX-License-Identifier: Apache-2.0
"""What a model costs next to another: MACs that are counted, time that is measured in a runtime."""

from __future__ import annotations

import pytest
import torch
from families import PLAIN, SIZE
from torch import Tensor, nn

from featherweight.costs import macs_share, time_share
from featherweight.errors import OptionError

X = torch.zeros(2, 3, SIZE, SIZE)


class Wide(nn.Module):
    """Far more work than `PLAIN`."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 256, 3, padding=1), nn.Conv2d(256, 256, 3, padding=1), nn.Linear(256, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x).relu()).relu().mean((2, 3)))


def test_macs_as_a_share() -> None:
    cost = macs_share(Wide(), X)
    assert cost(Wide()) == 1.0
    assert 0 < cost(PLAIN.make()) < 0.01


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_time_is_measured_in_the_runtime(runtime: str) -> None:
    pytest.importorskip(runtime)
    cost = time_share(Wide().eval(), X, runtime=runtime, threads=1, seconds=0.2)
    assert 0 < cost(PLAIN.make()) < 0.7
    with pytest.raises(OptionError, match="no 'onnx' here"):
        time_share(PLAIN.make(), X, runtime="onnx")
