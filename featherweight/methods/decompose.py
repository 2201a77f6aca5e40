# SPDX-License-Identifier: Apache-2.0
"""Tensors as products of smaller ones, and how many components they need. Pure functions, in double precision.

A matrix by its singular values; a kernel (C', C, h, w) by rows and columns (Jaderberg 2014, 1405.3866), by its channels
(Tucker-2, Kim 2016, 1511.06530) or by all four axes (CP, Lebedev 2015, 1412.6553). The rank of a noisy matrix by
variational Bayes in closed form (Nakajima 2013, JMLR 14). What is made of the parts: `chains`; which rank: `ranks`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

RIDGE = 1e-3  # of the mean diagonal: keeps two components of CP from growing against each other
EVB_EDGE = 2.5129  # where a component starts to be more than noise, over the square root of the matrix's aspect


def svd(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """(o, i) -> (r, i) and (o, r), whose product is the nearest matrix of that rank; each has half of every value."""
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    root = values[:rank].sqrt()
    return root[:, None] * right[:rank], left[:, :rank] * root


def rows_and_columns(kernel: Tensor) -> Tensor:
    """(C', C, h, w) -> the matrix (C h, C' w) whose rank is the number of filters between h x 1 and 1 x w."""
    return kernel.permute(1, 2, 0, 3).flatten(2, 3).flatten(0, 1)


def spatial(kernel: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """(C', C, h, w) -> (r, C, h, 1) and (C', r, 1, w): the nearest pair of convolutions, one along each axis."""
    outputs, inputs, height, width = kernel.shape
    second, first = svd(rows_and_columns(kernel), rank)  # (r, C' w), (C h, r)
    down = first.T.reshape(rank, inputs, height, 1)
    along = second.reshape(rank, outputs, width).permute(1, 0, 2)[:, :, None]  # (C', r, 1, w)
    return down, along.contiguous()


def unfolded(kernel: Tensor, axis: int) -> Tensor:
    """The kernel as a matrix with one row for each index of the axis."""
    return kernel.movedim(axis, 0).flatten(1)


def tucker2(kernel: Tensor, ranks: tuple[int, int], *, sweeps: int = 10) -> tuple[Tensor, Tensor, Tensor]:
    """(C', C, h, w) and ranks (of C, of C') -> (ri, C), core (ro, ri, h, w), (C', ro).

    Higher-order orthogonal iteration: either side in turn takes the directions that hold most of what the other left.
    """
    kernel = kernel.double()
    ins, outs = (_directions(kernel, axis, rank) for axis, rank in zip((1, 0), ranks, strict=True))
    for _ in range(sweeps if min(ranks) < max(kernel.shape[:2]) else 0):
        outs = _directions(torch.einsum("oihw,ir->orhw", kernel, ins), 0, ranks[1])
        ins = _directions(torch.einsum("oihw,or->rihw", kernel, outs), 1, ranks[0])
    core = torch.einsum("oihw,or,is->rshw", kernel, outs, ins)
    return ins.T.contiguous(), core, outs


def _directions(kernel: Tensor, axis: int, rank: int) -> Tensor:
    """The (n, r) orthonormal directions of an axis that hold most of the kernel."""
    matrix = unfolded(kernel, axis)
    if matrix.shape[1] < rank:  # fewer columns than directions asked for
        return torch.linalg.svd(matrix, full_matrices=True)[0][:, :rank]
    return torch.linalg.svd(matrix, full_matrices=False)[0][:, :rank]


def cp(kernel: Tensor, rank: int, *, sweeps: int = 50, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(C', C, h, w) -> (C', R), (C, R), (h, R), (w, R), whose products, added up over R, are near the kernel.

    Alternating least squares with a ridge; the last factor is solved without it. The norms are shared out evenly.
    """
    kernel = kernel.double()
    random = torch.Generator().manual_seed(seed)
    factors = [torch.randn(n, rank, generator=random, dtype=torch.float64).to(kernel.device) for n in kernel.shape]
    axes = [axis for axis in range(4) if kernel.shape[axis] > 1] or [0]
    for axis in set(range(4)) - set(axes):
        factors[axis].fill_(1.0)
    for _ in range(sweeps):
        for axis in axes:
            factors[axis] = _solved(kernel, factors, axis)
            if axis != axes[-1]:
                factors[axis] = factors[axis] / factors[axis].norm(dim=0).clamp(min=1e-12)
    others = _products(factors, 0)  # (C h w, R)
    factors[0] = torch.linalg.lstsq(others, unfolded(kernel, 0).T, driver="gelsd").solution.T
    return _evened(factors)


def _solved(kernel: Tensor, factors: list[Tensor], axis: int) -> Tensor:
    """The factor of one axis that fits best, all others held."""
    others = _products(factors, axis)
    gram = others.T @ others
    ridge = RIDGE * gram.diagonal().mean().clamp(min=1e-12)
    gram = gram + ridge * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return torch.linalg.solve(gram, others.T @ unfolded(kernel, axis).T).T


def _products(factors: list[Tensor], axis: int) -> Tensor:
    """Products of the columns of all factors but one, in the order of `unfolded` (N, R)."""
    first, *rest = [factor for place, factor in enumerate(factors) if place != axis]
    for factor in rest:
        first = (first[:, None] * factor[None]).flatten(0, 1)
    return first


def _evened(factors: list[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    norms = torch.stack([factor.norm(dim=0) for factor in factors]).clamp(min=1e-30)  # (4, R)
    share = norms.log().mean(0).exp()
    first, second, third, fourth = (factor * (share / norm) for factor, norm in zip(factors, norms, strict=True))
    return first, second, third, fourth


# How many components ------------------------------------------------------------------------------------------------
def tails(values: Tensor) -> list[float]:
    """Singular values, largest first -> the share of their squares that is lost with 0, 1, 2, ... components kept."""
    squares = values.double().square()
    total = float(squares.sum())
    if not total:
        return [0.0] * (len(values) + 1)
    left = torch.cat([squares.flip(0).cumsum(0).flip(0), squares.new_zeros(1)])
    return [float(value) / total for value in left]


def evbmf_rank(matrix: Tensor) -> int:
    """How many components are more than noise, whose strength is estimated too: no option to set. At least 1.

    Empirical variational Bayes: the variance that minimizes the free energy, then a threshold on the singular values.
    """
    rows, columns = sorted(matrix.shape)
    squares = torch.linalg.svdvals(matrix.double()).square()  # largest first
    if not float(squares.sum()):
        return 1
    aspect = rows / columns
    tau = EVB_EDGE * math.sqrt(aspect)
    edge = (1 + tau) * (1 + aspect / tau)
    most = max(1, min(math.ceil(rows / (1 + aspect)) - 1, rows) - 1)
    rest = squares[most:] if most < rows else squares[-1:]
    high = float(squares.sum()) / (rows * columns)
    low = max(float(rest[0]) / (columns * edge), float(rest.mean()) / columns)
    low = min(max(low, high * 1e-12), high)
    variance = _least(lambda v: _free_energy(squares / (columns * v), aspect, edge), low, high)
    return max(1, int((squares > columns * variance * edge).sum()))


def _free_energy(x: Tensor, aspect: float, edge: float) -> float:
    """Of singular values whose squares, over the noise's, are x."""
    above = x[x > edge]
    distance = above - (1 + aspect)
    tau = 0.5 * (distance + (distance.square() - 4 * aspect).clamp(min=0).sqrt())
    gain = (tau + 1).log() + aspect * (tau / aspect + 1).log() - tau
    positive = x.clamp(min=1e-300)
    return float((positive - positive.log()).sum() + gain.sum())


def _least(function: Callable[[float], float], low: float, high: float, *, points: int = 100, rounds: int = 4) -> float:
    """Where a function of one positive number is smallest: a grid of ever finer steps, as it may have several dips."""
    start, end = low, high
    best = low
    for _ in range(rounds):
        grid = torch.logspace(math.log10(start), math.log10(end), points, dtype=torch.float64).tolist()
        place = min(range(points), key=lambda i: function(grid[i]))
        best, start, end = grid[place], grid[max(0, place - 1)], grid[min(points - 1, place + 1)]
    return best
