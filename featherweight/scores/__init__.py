# SPDX-License-Identifier: Apache-2.0
"""How good detections are: COCO's numbers, curves, confusion, the split of errors. NumPy, never torch."""
