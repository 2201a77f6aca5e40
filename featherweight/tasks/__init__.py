# SPDX-License-Identifier: Apache-2.0
"""What a model's input and output mean: how it is called, its loss, its answer in words, how good it is."""
