# SPDX-License-Identifier: Apache-2.0
"""Run an exported file: pre- and post-processing in NumPy, ONNX Runtime, OpenVINO. Never torch."""
