# SPDX-License-Identifier: Apache-2.0
"""Tensors <-> a compact file, lossless, without torch: what is regular in them is found and entropy-coded.

`write` and `opened` are the file (`container`), `tensors` how one tensor becomes streams, `streams` the coders.
"""

from .container import SUFFIX, Container, opened, write
from .streams import CHOICES

__all__ = ["CHOICES", "SUFFIX", "Container", "opened", "write"]
