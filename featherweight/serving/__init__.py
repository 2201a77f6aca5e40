# SPDX-License-Identifier: Apache-2.0
"""A local page and a JSON endpoint for one model, or two side by side; for exported files without torch."""
