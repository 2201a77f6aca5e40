# SPDX-License-Identifier: Apache-2.0
"""Make a vision model small and fast, and prove it."""

__version__ = "0.1.0"
