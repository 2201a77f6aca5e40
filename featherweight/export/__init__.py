# SPDX-License-Identifier: Apache-2.0
"""A model as a file that other runtimes read, with how far its answers are from the model's: `onnx`, `openvino`."""
