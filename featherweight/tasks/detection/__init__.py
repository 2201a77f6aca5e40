# SPDX-License-Identifier: Apache-2.0
"""Object detection: boxes, decoding, label assignment, the loss, and the task that puts them together."""

from .task import Detection, Maps

__all__ = ["Detection", "Maps"]
