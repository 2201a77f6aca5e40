# SPDX-License-Identifier: Apache-2.0
"""Products of factors: exact at full rank, as near as theory says below, and the rank of a matrix under noise."""

from __future__ import annotations

import fill
import pytest
import torch
from torch import Tensor

from featherweight.methods import decompose


def kernel(*shape: int) -> Tensor:
    return fill.normal("kernel", shape or (6, 5, 3, 3)).double()


def of_tucker(parts: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    ins, core, outs = parts
    return torch.einsum("ri,srhw,os->oihw", ins, core, outs)


def of_cp(parts: tuple[Tensor, ...]) -> Tensor:
    return torch.einsum("or,ir,hr,wr->oihw", *parts)


def of_spatial(parts: tuple[Tensor, Tensor]) -> Tensor:
    return torch.einsum("rih,orw->oihw", parts[0][..., 0], parts[1][:, :, 0])


def test_full_rank_is_exact() -> None:
    whole = kernel()
    matrix = whole.flatten(1)
    first, second = decompose.svd(matrix, 6)
    torch.testing.assert_close(second @ first, matrix, atol=1e-12, rtol=0)
    torch.testing.assert_close(of_spatial(decompose.spatial(whole, 15)), whole, atol=1e-12, rtol=0)
    torch.testing.assert_close(of_tucker(decompose.tucker2(whole, (5, 6))), whole, atol=1e-12, rtol=0)
    torch.testing.assert_close(of_cp(decompose.cp(whole, 45, sweeps=2)), whole, atol=1e-8, rtol=0)


def test_svd_and_rows_and_columns_lose_what_the_singular_values_say() -> None:
    whole = kernel()
    first, second = decompose.svd(whole.flatten(1), 3)
    lost = torch.linalg.svdvals(whole.flatten(1))[3:].norm()
    torch.testing.assert_close((second @ first - whole.flatten(1)).norm(), lost)
    torch.testing.assert_close(first.norm(dim=1), second.norm(dim=0))  # as large on either side
    lost = torch.linalg.svdvals(decompose.rows_and_columns(whole))[7:].norm()
    torch.testing.assert_close((of_spatial(decompose.spatial(whole, 7)) - whole).norm(), lost)


def test_tucker_finds_a_kernel_that_has_these_ranks_and_sweeps_help() -> None:
    made = of_tucker((kernel(2, 8), kernel(3, 2, 3, 3), kernel(9, 3)))
    torch.testing.assert_close(of_tucker(decompose.tucker2(made, (2, 3))), made, atol=1e-10, rtol=0)
    whole = kernel(12, 10, 3, 3)
    errors = [float((of_tucker(decompose.tucker2(whole, (3, 3), sweeps=n)) - whole).norm()) for n in (0, 10)]
    assert errors[1] < errors[0]


def test_cp_finds_a_kernel_of_this_rank_whose_factors_are_even() -> None:
    made = of_cp((kernel(7, 2), kernel(6, 2), kernel(3, 2), fill.normal("w", (3, 2)).double()))
    parts = decompose.cp(made, 2, sweeps=200)
    assert float((of_cp(parts) - made).norm() / made.norm()) < 0.02
    norms = torch.stack([part.norm(dim=0) for part in parts])
    torch.testing.assert_close(norms, norms[:1].expand_as(norms))


@pytest.mark.parametrize("shape", [(4, 3, 1, 5), (4, 3, 1, 1)])
def test_cp_of_a_flat_kernel(shape: tuple[int, ...]) -> None:
    whole = kernel(*shape)
    torch.testing.assert_close(of_cp(decompose.cp(whole, 15)), whole, atol=1e-8, rtol=0)


def test_tails_are_shares_of_the_energy() -> None:
    assert decompose.tails(torch.tensor([2.0, 1.0, 0.0])) == pytest.approx([1.0, 0.2, 0.0, 0.0])
    assert decompose.tails(torch.zeros(2)) == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(("rank", "shape"), [(3, (60, 100)), (10, (100, 60)), (1, (40, 40))])
def test_evbmf_finds_the_rank_under_noise(rank: int, shape: tuple[int, int]) -> None:
    signal = fill.normal("a", (shape[0], rank)) @ fill.normal("b", (rank, shape[1]))
    assert decompose.evbmf_rank(signal + 0.3 * fill.normal("noise", shape)) == rank


def test_evbmf_of_noise_or_nothing_is_the_least_rank() -> None:
    assert decompose.evbmf_rank(fill.normal("noise", (50, 80))) == 1
    assert decompose.evbmf_rank(torch.zeros(5, 8)) == 1
