# SPDX-License-Identifier: Apache-2.0
"""How far the answers of a file are from those of the model it was made of, and how far is too far."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featherweight.errors import CheckFailed, OptionError

# Least top-1 agreement and least signal-to-noise ratio of the logits, by the arithmetic of the runtime. Rounding in
# another order costs float32 about 1e-6 of the values (110-130 dB), so 80 dB leaves a factor 50 and no real mistake
# passes: a wrong constant or axis gives below 40. bfloat16 has 8 bits per number, 28-35 dB were seen after a whole
# network. In an int8 file a value on the edge between two steps may fall to either side, and the next layers carry
# that on, in a deep network up to the error of the quantization itself: 30-140 dB were seen between runtimes that
# compute the same file correctly. How far the model is from itself when its numbers move in the last bits says what to
# expect (`floor`); a factor 2 beyond that is allowed.
LIMITS = {"float32": (0.99, 80.0), "bfloat16": (0.95, 20.0), "int8": (0.97, 20.0), "int8+bfloat16": (0.93, 15.0)}


@dataclass(frozen=True)
class Parity:
    """What came out of comparing n answers."""

    top1_agreement: float  # share of inputs with the same best class
    snr_db: float  # of the logits; inf when they are equal
    max_abs_difference: float
    n: int
    backend: str
    dtype: str

    def to_dict(self) -> dict[str, Any]:
        """For JSON, which has no infinity: a ratio of equal outputs is None."""
        return {**asdict(self), "snr_db": self.snr_db if math.isfinite(self.snr_db) else None}

    def __str__(self) -> str:
        return (
            f"{self.backend} {self.dtype}: {self.top1_agreement:.1%} same top-1, {self.snr_db:.1f} dB, "
            f"largest difference {self.max_abs_difference:.1e} on {self.n} inputs"
        )


def snr_db(reference: NDArray[Any], other: NDArray[Any]) -> float:
    """10 log10 of the power of the reference over the power of the difference."""
    noise = float(np.square(np.float64(other) - np.float64(reference)).sum())
    signal = float(np.square(np.float64(reference)).sum())
    return math.inf if noise == 0 else 10 * math.log10(max(signal, 1e-300) / noise)


def compare(reference: NDArray[Any], other: NDArray[Any], *, backend: str, dtype: str) -> Parity:
    """Logits (N, K) of the model and of the file. CheckFailed when the file's have another shape or are not finite."""
    if other.shape != reference.shape:
        raise CheckFailed(f"{backend} answers with the shape {other.shape}, the model with {reference.shape}")
    if not np.isfinite(other).all():
        raise CheckFailed(f"{backend} answers with numbers that are not finite")
    same = float((reference.argmax(-1) == other.argmax(-1)).mean())
    largest = float(np.abs(np.float64(other) - np.float64(reference)).max())
    return Parity(same, snr_db(reference, other), largest, len(reference), backend, dtype)


def check(
    parity: Parity,
    *,
    floor: Parity | None = None,
    min_agreement: float | None = None,
    min_snr_db: float | None = None,
) -> Parity:
    """The parity itself if it is good enough, else CheckFailed with the figures. Limits by dtype unless given.

    floor: the model compared with itself under rounding noise; no file is asked to be nearer than that.
    """
    if parity.dtype not in LIMITS and None in (min_agreement, min_snr_db):
        raise OptionError("parity", f"no limits are known for {parity.dtype}; give min_agreement and min_snr_db")
    agreement, ratio = LIMITS.get(parity.dtype, (0.0, 0.0))
    if floor is not None:
        agreement, ratio = min(agreement, floor.top1_agreement - 0.03), min(ratio, floor.snr_db - 6)
    agreement = agreement if min_agreement is None else min_agreement
    ratio = ratio if min_snr_db is None else min_snr_db
    # one answer of a small sample may sit on the edge between two classes
    if parity.top1_agreement < min(agreement, 1 - 1 / parity.n) or parity.snr_db < ratio:
        wanted = f"at least {agreement:.0%} and {ratio:g} dB are asked for"
        raise CheckFailed(f"the exported file does not answer like the model: {parity}; {wanted}")
    return parity
