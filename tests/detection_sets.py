# SPDX-License-Identifier: Apache-2.0
"""Random truth and detections, for comparing evaluators."""

import numpy as np

from featherweight.data.objects import Objects


def random_set(seed, *, pictures=8, classes=5, most=130):
    """Truth with crowds and detections near it, with many equal scores; the last class has no object."""
    rng = np.random.default_rng(seed)
    truth, found = [], []
    for i in range(pictures):
        n = 0 if i == 3 else int(rng.integers(1, 12))
        corner, side = rng.uniform(0, 300, (n, 2)).round(2), np.exp(rng.uniform(1.5, 5.3, (n, 2))).round(2)
        labels = rng.integers(0, classes - 1, n)
        boxes = np.concatenate([corner, corner + side], 1)
        area = side.prod(1) * rng.uniform(0.4, 1, n)
        truth.append(Objects(boxes, labels, rng.random(n) < 0.2, area))
        m = int(rng.integers(0, most)) if i else most
        which = rng.integers(0, n, m) if n else np.zeros(0, int)
        shaken = boxes[which] + rng.normal(0, 0.1, (len(which), 4)) * np.tile(side[which], 2)
        low = np.minimum(shaken[:, :2], shaken[:, 2:] - 1)
        label = np.where(rng.random(len(which)) < 0.8, labels[which], rng.integers(0, classes, len(which)))
        rows = np.concatenate([low, shaken[:, 2:], rng.random((len(which), 1)).round(1), label[:, None]], 1)
        found.append(rows)
    return truth, found
