# SPDX-License-Identifier: Apache-2.0
"""What the authors of YOLOv7 trained with, by kind of model (fact sheet, section 7)."""

from __future__ import annotations

from dataclasses import dataclass

from .loss import Gains


@dataclass(frozen=True)
class Published:
    """Numbers that differ between the kinds; what is the same for all is the default where it is used."""

    gains: Gains
    final_lr: float  # a share of the first
    image_size: int


PUBLISHED = {
    "p5": Published(Gains(), 0.1, 640),
    "p6": Published(Gains(), 0.2, 1280),
    "tiny": Published(Gains(obj=1.0, cls=0.5), 0.01, 640),
    "custom": Published(Gains(), 0.1, 640),
}


def kind_of(levels: int, *, tiny: bool) -> str:
    """The kind of a detector of so many levels."""
    return "tiny" if tiny else "p6" if levels > 3 else "p5"
