#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Make the weights that ship with the package: the first two steps of the recipe `demo_from_scratch`.

    python tools/make_checkpoints.py --project runs    # about 40 minutes on two cores; goes on if it was stopped

The teacher and the plain student are copied to featherweight/weights, the run's log beside this script.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
from pathlib import Path

from featherweight import recipe, runs
from featherweight.console import Screen

HERE = Path(__file__).resolve().parent
WEIGHTS = HERE.parent / "featherweight" / "weights"
MADE = {"00-teacher": "resnet_digits", "01-baseline": "vit_digits"}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--project", default="runs", help="the folder of all runs")
    project = options.parse_args().project
    plan = recipe.read("demo_from_scratch")
    plan = dataclasses.replace(plan, steps=plan.steps[: len(MADE)], name="make_checkpoints")
    work = runs.run(plan, project=project, progress=Screen().progress)
    WEIGHTS.mkdir(exist_ok=True)
    for step, name in MADE.items():
        shutil.copyfile(work.folder / "steps" / step / "model" / "model.safetensors", WEIGHTS / f"{name}.safetensors")
    shutil.copyfile(work.folder / "log.txt", HERE / "make_checkpoints.log")


if __name__ == "__main__":
    main()
