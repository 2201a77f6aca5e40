# SPDX-License-Identifier: Apache-2.0
"""One thread, no network, and the families of models that every method must work on."""

from __future__ import annotations

import importlib.util
import os

import pytest

for name in (
    "HF_HUB_OFFLINE",
    "TRANSFORMERS_OFFLINE",
    "HF_DATASETS_OFFLINE",
    "HF_HUB_DISABLE_TELEMETRY",
    "DO_NOT_TRACK",
):
    os.environ[name] = "1"

if importlib.util.find_spec("torch"):  # the runtime half is tested without it
    import torch
    from families import FAMILIES, Family

    torch.set_num_threads(1)

    @pytest.fixture(params=list(FAMILIES))
    def family(request: pytest.FixtureRequest) -> Family:
        """One family of transformers after the other."""
        return FAMILIES[request.param]
