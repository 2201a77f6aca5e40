# SPDX-License-Identifier: Apache-2.0
"""The search for a compression that meets a budget: knobs of recipe steps, successive halving, latency in the loop.

limits      "5ms", "2MB" as numbers               space     what a model lets vary, as recipe steps
forecast    latency before a model exists         points    a point trained, exported, measured
study       which point is next, in a storage     worker    until the time is up
ground      the start, measured once              outcome   the models worth having, saved with recipes
front       what no other beats, and the pick     page      the report with its plot
domain      pictures of another domain            searching `fit`
"""

from featherweight.search.outcome import Search
from featherweight.search.searching import fit

__all__ = ["Search", "fit"]
