# SPDX-License-Identifier: Apache-2.0
"""Butterfly and ACDC: products of sparse factors, as fast transforms are."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .matrices import Matrix, padded, whole

ACDC_SPREAD = 0.061  # standard deviation of new diagonals around 1 (Moczulski 2015)


class Butterfly(Matrix):
    """log2 n factors, each of 2 x 2 blocks that mix numbers 1, 2, 4, ... places apart (Dao 2019, 1903.05895).

    n is the power of two that holds both sides; what is beyond them is cut off. A sum over `terms`, each 2 n log2 n
    weights. A term is fitted to a matrix by singular values of two rows at a time, from the widest factor down (Le
    2022, 2110.01230): exact for a butterfly matrix, greedy for others; each next term is fitted to what is left.
    Few multiplications, but number by number: on a processor the dense product is many times quicker, so for many rows
    the matrix is written out.
    """

    quick = False

    def __init__(self, outputs: int, inputs: int, *, terms: int = 1) -> None:
        super().__init__(outputs, inputs)
        self.levels = max(1, math.ceil(math.log2(max(outputs, inputs, 2))))
        self.n = 1 << self.levels
        terms = whole("butterfly: terms", terms, 1, self.n)
        self.degree = self.levels
        shape = (terms, self.n // 2, 2, 2)  # of each level: blocks, row, column
        self.factors = nn.ParameterList(nn.Parameter(torch.zeros(shape)) for _ in range(self.levels))

    @classmethod
    def spec_for(cls, outputs: int, inputs: int, keep: float) -> dict[str, Any]:
        levels = max(1, math.ceil(math.log2(max(outputs, inputs, 2))))
        each = 2 * levels << levels
        return {"terms": max(1, min(int(keep * outputs * inputs / each), 1 << levels))}

    def forward(self, x: Tensor) -> Tensor:
        if self.many(x):
            return super().forward(x)
        shape = x.shape[:-1]
        y = F.pad(x.reshape(-1, 1, self.inputs), (0, self.n - self.inputs))  # (N, terms, n)
        for level, factor in enumerate(self.factors):
            near = 1 << level  # how far apart the two numbers are
            blocks = factor.reshape(-1, self.n // 2 // near, near, 2, 2)  # (terms, groups, near, 2, 2)
            pair = y.reshape(-1, y.shape[1], self.n // 2 // near, 2, near).transpose(3, 4)[..., None, :]
            y = (blocks * pair).sum(-1).transpose(3, 4).reshape(-1, len(factor), self.n)
        return y.sum(1)[..., : self.outputs].reshape(*shape, self.outputs)

    @torch.no_grad()
    def project(self, weight: Tensor) -> None:
        left = padded(weight, self.n, self.n)
        for term in range(len(self.factors[0])):
            fitted = self._fitted(left)
            for factor, values in zip(self.factors, fitted, strict=True):
                factor[term].copy_(values)
            left = left - _product(fitted)

    def _fitted(self, matrix: Tensor) -> list[Tensor]:
        """The factors (n / 2, 2, 2) of one term, narrowest first: at each level every block is split once more."""
        found: list[Tensor] = []
        blocks = matrix[None]  # (groups, 2 near, 2 near): the butterflies that are left to take apart
        while blocks.shape[1] > 2:
            near = blocks.shape[1] // 2
            rows = blocks.reshape(-1, 2, near, 2, near).permute(0, 3, 2, 1, 4)  # (groups, column, row, 2, near)
            u, values, v = torch.linalg.svd(rows, full_matrices=False)
            factor = u[..., 0].permute(0, 2, 3, 1)  # (groups, row, 2, column)
            found.append(factor.reshape(-1, 2, 2))
            blocks = (values[..., :1] * v[..., 0, :]).flatten(0, 1)  # (groups * 2, near, near)
        found.append(blocks)
        size = math.prod(float(factor.norm()) ** (1 / len(found)) for factor in found)
        return [factor * (size / max(float(factor.norm()), 1e-30)) for factor in reversed(found)]

    def extra_repr(self) -> str:
        return f"{self.inputs}, {self.outputs}, n={self.n}, terms={len(self.factors[0])}"


def _product(factors: list[Tensor]) -> Tensor:
    """The matrix (n, n) that the factors of one term are."""
    n = 2 * len(factors[0])
    y = torch.eye(n, dtype=factors[0].dtype)
    for level, factor in enumerate(factors):
        near = 1 << level
        blocks = factor.reshape(n // 2 // near, near, 2, 2)
        y = torch.einsum("gnab,cgbn->cgan", blocks, y.reshape(n, n // 2 // near, 2, near)).reshape(n, n)
    return y.T


class ACDC(Matrix):
    """y = x A C D C⁻¹, A and D diagonal, C the cosine transform; several in a row (Moczulski 2015, 1511.05946).

    Between two, a fixed permutation and, with `relu`, the non-linearity, with which it is no matrix any more. 2 n depth
    weights, n the longer side. It is not fitted to trained weights, so training begins anew.
    The transform is a product with a constant matrix, which below about 2,000 columns is the quickest way on a
    processor: more multiply-adds than the layer it stands for, and hundreds of times fewer weights. Where it is
    a matrix, it is written out for many rows.
    """

    closed_form = False
    cosines: Tensor

    def __init__(self, outputs: int, inputs: int, *, depth: int = 12, relu: bool = True, seed: int = 0) -> None:
        super().__init__(outputs, inputs)
        self.n, self.relu = max(outputs, inputs), bool(relu)
        depth = whole("acdc: depth", depth, 1, 4096)
        self.linear = depth == 1 or not self.relu
        self.quick = not self.linear  # what has ReLUs inside cannot be written out
        # vectors, so that optimizers which decay matrices leave them alone
        self.a, self.d = (nn.ParameterList(torch.ones(self.n) for _ in range(depth)) for _ in range(2))
        random = torch.Generator().manual_seed(whole("acdc: seed", seed, 0, 2**32 - 1))
        orders = [torch.randperm(self.n, generator=random, device="cpu") for _ in range(depth - 1)]
        self.register_buffer("orders", torch.stack(orders) if orders else None)
        self.register_buffer("cosines", cosine_transform(self.n), persistent=False)

    @classmethod
    def spec_for(cls, outputs: int, inputs: int, keep: float) -> dict[str, Any]:
        return {"depth": max(1, min(12, int(keep * outputs * inputs / (2 * max(outputs, inputs)))))}

    def forward(self, x: Tensor) -> Tensor:
        if self.linear and self.many(x):
            return super().forward(x)
        x = F.pad(x, (0, self.n - self.inputs))
        for layer, (a, d) in enumerate(zip(self.a, self.d, strict=True)):
            if layer:
                x = x[..., self.orders[layer - 1]]  # type: ignore[index]
                x = F.relu(x) if self.relu else x
            x = (F.linear(x * a, self.cosines) * d) @ self.cosines
        return x[..., : self.outputs]

    @torch.no_grad()
    def draw(self, size: float) -> None:
        """Diagonals near 1, whatever the size: what goes in comes out about as large."""
        for parameter in self.parameters():
            parameter.normal_(1.0, ACDC_SPREAD)

    def extra_repr(self) -> str:
        return f"{self.inputs}, {self.outputs}, depth={len(self.a)}, relu={self.relu}"


def cosine_transform(n: int) -> Tensor:
    """The orthonormal DCT-II as a matrix (n, n), float32: row k is the k-th cosine."""
    places = torch.arange(n, dtype=torch.float64)
    cosines = torch.cos(math.pi / n * (places + 0.5) * places[:, None]) * math.sqrt(2 / n)
    cosines[0] /= math.sqrt(2)
    return cosines.float()
