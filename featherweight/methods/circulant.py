# SPDX-License-Identifier: Apache-2.0
"""Circulant, block-circulant and Toeplitz-like matrices: equal, or nearly equal, numbers along each diagonal.

They save weights, not time: below about 2,000 columns a dense product on a processor beats the Fourier transform, so
the matrix is written out from its few numbers and multiplied with; exported files hold it written out.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .matrices import Matrix, padded, whole

FFT_FROM = 2048  # columns of a circulant from which on the Fourier transform is used


class Circulant(Matrix):
    """A grid of circulant blocks (b, b), each one column c: W[a, j] = c[(a - j) mod b] (Cheng 2015, 1502.03436).

    Edges that b does not divide are cut off. b as large as the matrix is the circulant matrix itself; about o i / b
    weights. flips: random signs of the inputs before it, as the paper has them where training begins with it.
    """

    quick = False
    signs: Tensor | None

    def __init__(self, outputs: int, inputs: int, *, block: int, flips: bool = False) -> None:
        super().__init__(outputs, inputs)
        self.block = whole("circulant: block", block, 1, max(outputs, inputs))
        self.columns = nn.Parameter(torch.zeros(-(-outputs // block), -(-inputs // block), block))
        self.register_buffer("signs", torch.randint(0, 2, (inputs,)).mul_(2).sub_(1).to(torch.int8) if flips else None)

    @classmethod
    def spec_for(cls, outputs: int, inputs: int, keep: float) -> dict[str, Any]:
        block = 1
        while block < max(outputs, inputs):
            if -(-outputs // block) * -(-inputs // block) * block <= keep * outputs * inputs:
                break
            block += 1
        return {"block": block}

    def forward(self, x: Tensor) -> Tensor:
        if self.block < FFT_FROM:
            return F.linear(x, self.dense())
        return self.by_fourier(x)

    def by_fourier(self, x: Tensor) -> Tensor:
        """The same product: y = IFFT(FFT(c) * FFT(x)), summed over the blocks of a row."""
        x = x if self.signs is None else x * self.signs
        _, blocks, block = self.columns.shape
        x = F.pad(x, (0, blocks * block - self.inputs)).unflatten(-1, (blocks, block))
        spectrum = torch.einsum("...if,oif->...of", torch.fft.rfft(x), torch.fft.rfft(self.columns))
        return torch.fft.irfft(spectrum, n=block).flatten(-2)[..., : self.outputs]

    def dense(self) -> Tensor:
        places = torch.arange(self.block, device=self.columns.device)
        grid = self.columns[:, :, (places[:, None] - places) % self.block]  # (rows, blocks, b, b)
        full = grid.permute(0, 2, 1, 3).flatten(2).flatten(0, 1)[: self.outputs, : self.inputs]
        return full if self.signs is None else full * self.signs

    @torch.no_grad()
    def project(self, weight: Tensor) -> None:
        """The mean along each wrapped diagonal, of the numbers that are there: the nearest such matrix."""
        weight = weight if self.signs is None else weight * self.signs.cpu()
        sums, counts = (self._diagonals(matrix) for matrix in (weight, torch.ones_like(weight)))
        self.columns.copy_(sums / counts.clamp(min=1))

    def _diagonals(self, matrix: Tensor) -> Tensor:
        """Sums along the wrapped diagonals of each block (rows, blocks, b)."""
        rows, blocks, block = self.columns.shape
        grid = padded(matrix, rows * block, blocks * block).reshape(rows, block, blocks, block).permute(0, 2, 1, 3)
        places = torch.arange(block)
        index = (places[:, None] + places) % block  # [d, j]: the row of diagonal d in column j
        return grid.gather(2, index.expand(rows, blocks, block, block)).sum(-1)

    def extra_repr(self) -> str:
        return f"{self.inputs}, {self.outputs}, block={self.block}"


class Toeplitz(Matrix):
    """A matrix of low displacement rank: Z₁ W - W Z₋₁ = G Hᵀ of rank r, 2 n r weights (Sindhwani 2015, 1510.01722).

    Z is the shift by one row, its corner 1 or -1. Toeplitz matrices have r = 2, as have their inverses. n is the longer
    side; the other one is cut off. The displacement tells by how much neighbors on a diagonal differ, so W is summed up
    along its diagonals: as many additions as it has numbers.
    """

    quick = False
    degree = 2

    def __init__(self, outputs: int, inputs: int, *, rank: int = 2) -> None:
        super().__init__(outputs, inputs)
        self.n = max(outputs, inputs)
        rank = whole("toeplitz: rank", rank, 1, self.n)
        self.g, self.h = nn.Parameter(torch.zeros(self.n, rank)), nn.Parameter(torch.zeros(self.n, rank))

    @classmethod
    def spec_for(cls, outputs: int, inputs: int, keep: float) -> dict[str, Any]:
        return {"rank": max(1, min(int(keep * outputs * inputs / (2 * max(outputs, inputs))), max(outputs, inputs)))}

    def dense(self) -> Tensor:
        places = torch.arange(self.n, device=self.g.device)
        steps = (self.g @ self.h.T).gather(0, (places[:, None] + places + 1) % self.n)  # [d, j], along diagonal d
        before = steps.cumsum(1) - steps
        values = steps.sum(1, keepdim=True) / 2 - before
        full = values.gather(0, (places[:, None] - places) % self.n)
        return full[: self.outputs, : self.inputs]

    @torch.no_grad()
    def project(self, weight: Tensor) -> None:
        """The strongest part of its displacement: exact for a matrix of that displacement rank.

        For others what was left out adds up along the diagonals, so the result is scaled to where it is nearest.
        """
        rank = self.g.shape[1]
        full = padded(weight, self.n, self.n)
        right = torch.cat([full[:, 1:], -full[:, :1]], dim=1)  # W Z₋₁
        u, values, v = torch.linalg.svd(full.roll(1, 0) - right, full_matrices=False)
        root = values[:rank].sqrt()
        self.g.copy_(u[:, :rank] * root)
        self.h.copy_(v[:rank].T * root)
        found = self.dense().to(weight)
        self.g.mul_(float((found * weight).sum() / found.square().sum().clamp(min=1e-30)))

    def extra_repr(self) -> str:
        return f"{self.inputs}, {self.outputs}, rank={self.g.shape[1]}"
