# SPDX-License-Identifier: Apache-2.0
"""Monarch and Kronecker matrices: two batched products of small matrices, fitted to trained weights in closed form."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import OptionError
from .matrices import Matrix, divisor_near, whole


class Monarch(Matrix):
    """W = P L Pᵀ R: block-diagonal, a transposition, block-diagonal, transposed back (Dao 2022, 2204.00595).

    The input is k blocks of p, the output s times q; every s x p piece of W that belongs to one block of either has the
    rank `rank`: 1 is the paper's, the full one any matrix. rank * (k o + q i) weights.
    """

    degree = 2

    def __init__(self, outputs: int, inputs: int, *, blocks: tuple[int, int] | list[int], rank: int = 1) -> None:
        super().__init__(outputs, inputs)
        if not isinstance(blocks, (tuple, list)) or len(blocks) != 2:
            raise OptionError("monarch", f"blocks {blocks!r} are not two numbers: of the input and of the output")
        self.k, self.q = whole("monarch: blocks", blocks[0], 1, inputs), whole("monarch: blocks", blocks[1], 1, outputs)
        if inputs % self.k or outputs % self.q:
            raise OptionError("monarch", f"blocks {list(blocks)} do not divide {inputs} inputs and {outputs} outputs")
        self.p, self.s = inputs // self.k, outputs // self.q
        self.rank = whole("monarch: rank", rank, 1, min(self.p, self.s))
        self.right = nn.Parameter(torch.zeros(self.k, self.p, self.q * self.rank))
        self.left = nn.Parameter(torch.zeros(self.q, self.k * self.rank, self.s))

    @classmethod
    def spec_for(cls, outputs: int, inputs: int, keep: float) -> dict[str, Any]:
        k, q = divisor_near(inputs, math.sqrt(inputs)), divisor_near(outputs, math.sqrt(outputs))
        rank = int(keep * outputs * inputs / (k * outputs + q * inputs))
        return {"blocks": [k, q], "rank": max(1, min(rank, inputs // k, outputs // q))}

    def forward(self, x: Tensor) -> Tensor:
        shape = x.shape[:-1]
        rows = x.reshape(-1, self.k, self.p).transpose(0, 1)  # (k, N, p)
        between = torch.bmm(rows, self.right).unflatten(2, (self.q, self.rank))  # (k, N, q, r)
        between = between.permute(2, 1, 0, 3).flatten(2)  # (q, N, k r)
        return torch.bmm(between, self.left).permute(1, 2, 0).reshape(*shape, self.outputs)  # (N, s, q)

    @torch.no_grad()
    def project(self, weight: Tensor) -> None:
        """Each piece by its singular values: the nearest Monarch matrix there is."""
        pieces = weight.reshape(self.s, self.q, self.k, self.p).permute(1, 2, 0, 3)  # (q, k, s, p)
        u, values, v = torch.linalg.svd(pieces, full_matrices=False)
        root = values[..., : self.rank].sqrt()  # (q, k, r)
        left = (u[..., : self.rank] * root[..., None, :]).permute(0, 1, 3, 2)  # (q, k, r, s)
        right = (v[..., : self.rank, :] * root[..., None]).permute(1, 3, 0, 2)  # (k, p, q, r)
        self.left.copy_(left.reshape(self.left.shape))
        self.right.copy_(right.reshape(self.right.shape))

    def extra_repr(self) -> str:
        return f"{self.inputs}, {self.outputs}, blocks=({self.k}, {self.q}), rank={self.rank}"


class Kronecker(Matrix):
    """W = Σ A ⊗ B over `terms`, A (o1, i1) and B (o / o1, i / i1); the nearest one by Van Loan's rearrangement.

    (Van Loan and Pitsianis 1993; for networks Tahaei 2021, 2109.06243.) terms * (o1 i1 + o i / (o1 i1)) weights. Few
    terms are multiplied one factor after the other; where these products together cost more than the dense matrix's,
    it is written out.
    """

    degree = 2

    def __init__(self, outputs: int, inputs: int, *, shape: tuple[int, int] | list[int], terms: int = 1) -> None:
        super().__init__(outputs, inputs)
        if not isinstance(shape, (tuple, list)) or len(shape) != 2:
            raise OptionError("kronecker", f"shape {shape!r} is not two numbers: rows and columns of the first factor")
        rows, columns = whole("kronecker: shape", shape[0], 1, outputs), whole("kronecker: shape", shape[1], 1, inputs)
        if outputs % rows or inputs % columns:
            raise OptionError("kronecker", f"shape {list(shape)} does not divide {outputs} x {inputs}")
        first, second = (rows, columns), (outputs // rows, inputs // columns)
        terms = whole("kronecker: terms", terms, 1, min(math.prod(first), math.prod(second)))
        self.quick = terms * (inputs * second[0] + second[0] * columns * rows) < outputs * inputs
        self.first = nn.Parameter(torch.zeros(terms, *first))
        self.second = nn.Parameter(torch.zeros(terms, *second))

    @classmethod
    def spec_for(cls, outputs: int, inputs: int, keep: float) -> dict[str, Any]:
        rows, columns = divisor_near(outputs, math.sqrt(outputs)), divisor_near(inputs, math.sqrt(inputs))
        size = rows * columns
        each = size + outputs * inputs // size
        most = min(size, outputs * inputs // size)
        return {"shape": [rows, columns], "terms": max(1, min(most, int(keep * outputs * inputs / each)))}

    def forward(self, x: Tensor) -> Tensor:
        if not self.quick:
            return super().forward(x)
        terms, rows, columns = self.first.shape
        down, across = self.second.shape[1:]
        shape = x.shape[:-1]
        grid = x.reshape(-1, across)  # rows of (N, i1, i2), one under the other
        within = (grid @ self.second.reshape(terms * down, across).T).reshape(-1, columns, terms, down)
        within = within.permute(0, 3, 2, 1).reshape(-1, terms * columns)  # (N o2, t i1)
        mixed = within @ self.first.permute(0, 2, 1).reshape(terms * columns, rows)  # (N o2, o1)
        return mixed.reshape(-1, down, rows).transpose(1, 2).reshape(*shape, self.outputs)

    def dense(self) -> Tensor:
        _, rows, columns = self.first.shape
        down, across = self.second.shape[1:]
        product = torch.einsum("tab,tcd->acbd", self.first, self.second)
        return product.reshape(rows * down, columns * across)

    @torch.no_grad()
    def project(self, weight: Tensor) -> None:
        """The strongest terms of the rearranged matrix, each of whose rows is one block of W."""
        terms, rows, columns = self.first.shape
        down, across = self.second.shape[1:]
        blocks = weight.reshape(rows, down, columns, across).permute(0, 2, 1, 3).reshape(rows * columns, down * across)
        u, values, v = torch.linalg.svd(blocks, full_matrices=False)
        root = values[:terms].sqrt()
        self.first.copy_((u[:, :terms] * root).T.reshape(self.first.shape))
        self.second.copy_((v[:terms] * root[:, None]).reshape(self.second.shape))

    def extra_repr(self) -> str:
        first, second = tuple(self.first.shape[1:]), tuple(self.second.shape[1:])
        return f"{self.inputs}, {self.outputs}, {first} x {second}, terms={len(self.first)}"
