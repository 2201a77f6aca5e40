# SPDX-License-Identifier: Apache-2.0
"""Count parameters and multiply-adds of every named model, for `featherweight list models`.

    python tools/count_models.py            write featherweight/models/counts.json
    python tools/count_models.py NAME ...   print those models' counts only

A model is made and run without numbers (on PyTorch's meta device), at the size and keep rate of the table, one picture.
Counting them all takes most of a minute, which is why the numbers are kept.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from featherweight import counting, files, official
from featherweight.models import zoo

PLACE = Path(__file__).resolve().parents[1] / "featherweight" / "models" / "counts.json"


def count(name: str) -> dict[str, int]:
    """Parameters, and MACs of one picture."""
    with torch.device("meta"):
        model = official.create(name)
        picture = torch.zeros(1, 3, *zoo.entry(name).preprocess.size)
    return {"params": counting.parameters(model), "macs": counting.macs(model, picture)}


def main(names: list[str]) -> None:
    """The counts of these models, or of all into the file."""
    found = {name: count(name) for name in names or zoo.ZOO}
    if names:
        print(json.dumps(found, indent=1))
    else:
        files.publish_json(PLACE, found)


if __name__ == "__main__":
    main(sys.argv[1:])
