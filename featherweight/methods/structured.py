# SPDX-License-Identifier: Apache-2.0
"""Structured matrices in place of dense ones: Monarch, Kronecker, block-circulant, Toeplitz-like, butterfly, ACDC.

Linear layers of any model, and convolutions whose kernel is then a structured matrix (C', C h w). Trained weights are
fitted in closed form where one exists, which is everywhere but for ACDC. The matrices: `monarch`, `circulant`,
`butterfly`; the layers that hold them: `matrices`. Left as they are: grouped and transposed convolutions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import nn

from ..errors import OptionError
from ..surgery import Edit, apply, edit_kind, has_values
from .butterfly import ACDC, Butterfly
from .chains import fit_for
from .circulant import Circulant, Toeplitz
from .matrices import Matrix, StructuredConv2d, StructuredLinear
from .monarch import Kronecker, Monarch
from .plain import Layer, plain_layers

Name = Literal["monarch", "kronecker", "circulant", "toeplitz", "butterfly", "acdc"]
MATRICES: dict[str, type[Matrix]] = {
    "monarch": Monarch,
    "kronecker": Kronecker,
    "circulant": Circulant,
    "toeplitz": Toeplitz,
    "butterfly": Butterfly,
    "acdc": ACDC,
}


@edit_kind
def structured_matrix(layer: nn.Module, matrix: Name, fresh: bool = False, **options: Any) -> nn.Module:
    """The layer with this matrix for its weight: fitted to it, or `fresh` and as large as it."""
    plain = fit_for("structured", layer)
    made = matrix_for(plain, matrix, options)
    if has_values(plain.weight):
        weight = plain.weight.detach().double().cpu().flatten(1)
        if fresh or not made.closed_form:
            made.draw(float(weight.norm()))
        else:
            made.project(weight)
    made = made.to(device=plain.weight.device, dtype=plain.weight.dtype)
    made.requires_grad_(plain.weight.requires_grad)
    if isinstance(plain, nn.Linear):
        return StructuredLinear(plain, made)
    return StructuredConv2d(plain, made)


def plan(
    model: nn.Module,
    *,
    matrix: Name = "monarch",
    keep: float = 0.25,
    fresh: bool = False,
    convolutions: bool = False,
    relu: bool = True,
    skip: Sequence[str] = (),
    **options: Any,
) -> list[Edit]:
    """The edits that put a structured matrix in place of each weight; nothing is touched.

    keep: the share of each layer's weights to keep, as near as the matrix's sizes go; 1 keeps the model as it is. A
    layer that would not get smaller stays. fresh: random values for training from the start, not those that fit.
    convolutions: also those of a kernel without groups. relu: of ACDC; without them it is a matrix like the others, and
    written out for speed. options: of the matrix, over what `keep` chose (`block`, `rank`, `terms`, `depth` ...). skip:
    see `plain_layers`. Raises OptionError, and LookupError without such a layer.
    """
    cls = _known(matrix)
    if not relu:
        options["relu"] = False
    if isinstance(keep, bool) or not isinstance(keep, (int, float)) or not 0 < keep <= 1:
        raise OptionError("keep", f"{keep!r} is not in (0, 1]; it is the share of the weights that is kept")
    layers = {
        path: layer
        for path, layer in plain_layers(model, skip=skip).items()
        if isinstance(layer, nn.Linear) or (convolutions and layer.groups == 1)
    }
    if not layers:
        raise LookupError(f"{type(model).__name__} has no layer left for a structured matrix")
    edits = []
    for path, layer in layers.items() if keep < 1 else ():
        outputs, inputs = layer.weight.flatten(1).shape
        spec = {**cls.spec_for(outputs, inputs, keep), **options}
        with torch.device("meta"):
            weights = sum(parameter.numel() for parameter in matrix_for(layer, matrix, spec).parameters())
        if weights < layer.weight.numel():
            edits.append(Edit(path, "structured_matrix", {"matrix": matrix, "fresh": fresh, **spec}))
    return edits


def structure(model: nn.Module, **options: Any) -> nn.Module:
    """A copy with structured matrices; the options are those of `plan`."""
    return apply(model, plan(model, **options))


def matrix_for(layer: Layer, matrix: Name, options: Mapping[str, Any]) -> Matrix:
    """A matrix of the layer's size, without its values yet."""
    try:
        made = _known(matrix)(layer.weight.shape[0], layer.weight[0].numel(), **options)
    except TypeError:
        raise OptionError("structured", f"{sorted(options)} are not the options of {matrix!r}") from None
    if isinstance(layer, nn.Conv2d) and not made.linear:
        raise OptionError("structured", f"{matrix} with ReLUs inside is no matrix, as a convolution's kernel must be")
    return made


def _known(matrix: str) -> type[Matrix]:
    if matrix not in MATRICES:
        raise OptionError("matrix", f"{matrix!r} is not one of {', '.join(get_args(Name))}")
    return MATRICES[matrix]
