# SPDX-License-Identifier: Apache-2.0
"""What the command line does with one model, as functions that return values.

They take whatever names a model (`sources`). Carrying out recipes is elsewhere (recipe, runs); printing is the command
line's.
"""

from featherweight.verbs.accuracy import val
from featherweight.verbs.converting import convert
from featherweight.verbs.looking import info
from featherweight.verbs.racing import bench, layers
from featherweight.verbs.shipping import export
from featherweight.verbs.showing import draw
from featherweight.verbs.training import model_spec, training_recipe

__all__ = ["bench", "convert", "draw", "export", "info", "layers", "model_spec", "training_recipe", "val"]
