# SPDX-License-Identifier: Apache-2.0
"""Suppression as a graph against `runtime.nms`: the same detections in the same order, in both runtimes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from featherweight.runtime.nms import Nms
from featherweight.runtime.session import open_session

pytest.importorskip("onnx")

import onnx

from featherweight.export import suppression

MOST = 20


def predictions(classes: int, batch: int) -> NDArray[np.float32]:
    """Boxes that overlap, scores that differ."""
    random = np.random.default_rng(classes)
    centers, sizes = random.uniform(0, 100, (batch, 200, 2)), random.uniform(5, 60, (batch, 200, 2))
    return np.concatenate([centers, sizes, random.uniform(0, 1, (batch, 200, 1 + classes))], axis=2, dtype=np.float32)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("multi_label", [True, False])
@pytest.mark.parametrize("classes", [1, 3])
def test_as_ours(classes: int, multi_label: bool, backend: str, tmp_path: Path) -> None:
    graph = suppression.graph(num_classes=classes, multi_label=multi_label, max_detections=MOST)
    onnx.checker.check_model(graph)
    onnx.save(graph, tmp_path / "s.onnx")
    session = open_session(tmp_path / "s.onnx", backend=backend)
    for batch in (1, 3):
        given = predictions(classes, batch)
        for confidence, iou in ((0.3, 0.5), (0.001, 0.65), (1.0, 0.5)):
            thresholds = {"confidence": np.float32([confidence]), "iou": np.float32([iou])}
            rows = session.run({"predictions": given, **thresholds})["detections"]
            ours = Nms(confidence, iou, multi_label=multi_label, max_kept=MOST).batch(given)
            assert rows[:, 0].tolist() == [image for image, found in enumerate(ours) for _ in found]
            expected = np.concatenate(ours)[:, [0, 1, 2, 3, 5, 4]]
            np.testing.assert_allclose(rows[:, 1:], expected, atol=1e-3)
            assert len(rows) == (0 if confidence == 1 else batch * MOST)
