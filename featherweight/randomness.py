# SPDX-License-Identifier: Apache-2.0
"""The global random generators of Python, NumPy and torch: seed them, keep them, put them back.

Dropout, drop path and Gumbel noise draw from them. Data does not: its order is a function of (seed, epoch, index).
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor


def state() -> dict[str, Tensor]:
    """The global random generators of Python, NumPy and torch, as tensors of fixed size."""
    _, words, gauss = random.getstate()
    _, key, position, has, cached = np.random.get_state()  # type: ignore[misc]
    found = {
        "torch": torch.get_rng_state(),
        "python": torch.tensor(words, dtype=torch.int64),
        "numpy": torch.tensor([*np.asarray(key).tolist(), position], dtype=torch.int64),
        "gauss": torch.tensor([gauss is not None, gauss or 0.0, has, cached], dtype=torch.float64),
    }
    if torch.cuda.is_initialized():
        found["cuda"] = torch.cuda.get_rng_state()
    return found


def restore(saved: Mapping[str, Tensor]) -> None:
    """Put the generators where `state` found them."""
    python_has, python_gauss, numpy_has, numpy_gauss = saved["gauss"].tolist()
    random.setstate((3, tuple(saved["python"].tolist()), python_gauss if python_has else None))
    key = saved["numpy"].numpy()
    np.random.set_state(("MT19937", key[:-1].astype(np.uint32), int(key[-1]), int(numpy_has), numpy_gauss))
    torch.set_rng_state(saved["torch"])
    if "cuda" in saved and torch.cuda.is_available():
        torch.cuda.set_rng_state(saved["cuda"])


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Whatever happens inside, the caller's random numbers go on as if nothing had."""
    before = state()
    try:
        yield
    finally:
        restore(before)


def seed(number: int, rank: int) -> None:
    """Seed Python, NumPy and torch; every process its own way."""
    words = np.random.SeedSequence([number, rank]).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))
    torch.manual_seed(int(words[2]))
