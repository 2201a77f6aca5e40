# SPDX-License-Identifier: Apache-2.0
"""Structured matrices: each equal to its dense matrix, each fitted exactly to a matrix of its own kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fill
import pytest
import torch
from families import FAMILIES, PLAIN
from torch import Tensor, nn

from featherweight import artifact, counting
from featherweight.errors import InputError, OptionError
from featherweight.layers import expanded
from featherweight.methods import circulant, structured
from featherweight.methods.butterfly import cosine_transform
from featherweight.methods.structured import MATRICES
from featherweight.surgery import Edit, all_of, apply, edits_of, record

OPTIONS: dict[str, dict[str, Any]] = {
    "monarch": {"blocks": [4, 6], "rank": 2},
    "kronecker": {"shape": [3, 4], "terms": 2},
    "circulant": {"block": 5},
    "toeplitz": {"rank": 3},
    "butterfly": {"terms": 2},
    "acdc": {"depth": 3, "relu": False},
}
CLOSED = [name for name, matrix in MATRICES.items() if matrix.closed_form]


def made(name: str, outputs: int = 18, inputs: int = 20, **options: Any) -> Any:
    """The matrix in double precision with random values."""
    torch.manual_seed(0)
    matrix = MATRICES[name](outputs, inputs, **(options or OPTIONS[name])).double()
    matrix.draw(float(outputs))
    return matrix


@pytest.mark.parametrize("name", list(MATRICES))
@pytest.mark.parametrize("shape", [(18, 20), (20, 18), (12, 12)], ids=str)
def test_a_product_is_that_with_the_dense_matrix(name: str, shape: tuple[int, int]) -> None:
    sizes = {"kronecker": {"shape": [2, 2], "terms": 3}, "monarch": {"blocks": [2, 2], "rank": 4}}
    matrix = made(name, *shape, **sizes.get(name, OPTIONS[name]))
    x = fill.normal("x", (2, 3, shape[1])).double()
    assert matrix.dense().shape == shape
    assert matrix.dense().norm() > 1
    torch.testing.assert_close(matrix(x), x @ matrix.dense().T, atol=1e-10, rtol=0)


@pytest.mark.parametrize("name", list(MATRICES))
@pytest.mark.parametrize("rows", [3, 300])
def test_many_rows_have_the_same_product(name: str, rows: int) -> None:
    """Some matrices are written out for them."""
    matrix = made(name)
    x = fill.normal("x", (rows, 20)).double()
    torch.testing.assert_close(matrix(x), torch.cat([matrix(row[None]) for row in x]), atol=1e-10, rtol=0)


def test_kronecker_is_written_out_where_its_terms_cost_more(monkeypatch: pytest.MonkeyPatch) -> None:
    few, several = made("kronecker", shape=[3, 4], terms=1), made("kronecker", shape=[3, 4], terms=3)
    x = fill.normal("x", (5, 20)).double()
    assert few.quick
    assert not several.quick
    torch.testing.assert_close(few(x), x @ few.dense().T, atol=1e-10, rtol=0)
    torch.testing.assert_close(several(x), x @ several.dense().T, atol=1e-10, rtol=0)
    monkeypatch.setattr(type(few), "dense", lambda self: pytest.fail("was written out"))
    assert few(x).shape == (5, 18)


@pytest.mark.parametrize("name", CLOSED)
def test_a_matrix_of_the_kind_is_fitted_exactly(name: str) -> None:
    options = {"terms": 1} if name == "butterfly" else OPTIONS[name]
    shape = (16, 16) if name in ("butterfly", "toeplitz") else (18, 20)
    dense = made(name, *shape, **options).dense().detach()
    other = MATRICES[name](*shape, **options).double()
    other.project(dense)
    torch.testing.assert_close(other.dense(), dense, atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", [name for name in CLOSED if name != "acdc"])
def test_more_weights_fit_a_random_matrix_better_and_all_of_them_exactly(name: str) -> None:
    dense = fill.normal("dense", (16, 16)).double()
    errors = []
    for options in {
        "monarch": ({"blocks": [4, 4], "rank": r} for r in (1, 2, 4)),
        "kronecker": ({"shape": [4, 4], "terms": t} for t in (1, 4, 16)),
        "circulant": ({"block": b} for b in (16, 4, 1)),
        "toeplitz": ({"rank": r} for r in (1, 8, 16)),
        "butterfly": ({"terms": t} for t in (1, 2, 12)),
    }[name]:
        matrix = MATRICES[name](16, 16, **options).double()
        matrix.project(dense)
        errors.append(float((matrix.dense().detach() - dense).norm() / dense.norm()))
    assert 1 > errors[0] > errors[1] > errors[2]  # never farther than nothing is
    assert errors[2] < (0.5 if name == "butterfly" else 1e-9)  # a sum of butterflies is fitted greedily


def test_the_fit_is_the_nearest_one() -> None:
    """Where theory says so: no small step from it comes nearer."""
    dense = fill.normal("dense", (18, 20)).double()
    for name in ("monarch", "kronecker", "circulant"):
        matrix = MATRICES[name](18, 20, **OPTIONS[name]).double()
        matrix.project(dense)
        error = (matrix.dense() - dense).square().sum()
        gradients = torch.autograd.grad(error, list(matrix.parameters()))
        assert max(float(g.abs().max()) for g in gradients) < 1e-9, name


def test_circulant_is_its_definition_and_its_fourier_form() -> None:
    matrix = made("circulant", 6, 6, block=6)
    column = matrix.columns[0, 0].detach()
    expected = torch.stack([column.roll(j) for j in range(6)], dim=1)
    torch.testing.assert_close(matrix.dense(), expected)
    grid = made("circulant", 18, 20, block=5, flips=True)
    x = fill.normal("x", (3, 20)).double()
    torch.testing.assert_close(grid.by_fourier(x), x @ grid.dense().T, atol=1e-10, rtol=0)


def test_large_circulants_go_by_fourier(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(circulant, "FFT_FROM", 8)
    monkeypatch.setattr(circulant.Circulant, "dense", lambda self: pytest.fail("was written out"))
    assert circulant.Circulant(8, 8, block=8)(torch.ones(1, 8)).shape == (1, 8)


def test_toeplitz_has_its_displacement_and_holds_toeplitz_matrices_and_their_inverses() -> None:
    matrix = made("toeplitz", 9, 9, rank=2)
    w = matrix.dense()
    up, down = torch.eye(9).double().roll(1, 0), torch.eye(9).double().roll(1, 0)
    down[0, -1] = -1
    torch.testing.assert_close(up @ w - w @ down, matrix.g @ matrix.h.T, atol=1e-10, rtol=0)
    values = fill.normal("t", (17,)).double()
    places = torch.arange(9)
    dense = values[places[:, None] - places + 8] + 9 * torch.eye(9).double()
    for one in (dense, torch.linalg.inv(dense)):
        matrix.project(one)
        torch.testing.assert_close(matrix.dense(), one, atol=1e-10, rtol=0)


def test_a_butterfly_holds_the_hadamard_transform() -> None:
    hadamard = torch.ones(1, 1).double()
    for _ in range(4):
        hadamard = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]]).double(), hadamard)
    matrix = MATRICES["butterfly"](16, 16).double()
    matrix.project(hadamard)
    torch.testing.assert_close(matrix.dense(), hadamard, atol=1e-10, rtol=0)
    assert sum(p.numel() for p in matrix.parameters()) == 2 * 16 * 4


def test_the_cosine_transform_is_orthonormal_and_scipys() -> None:
    fft = pytest.importorskip("scipy.fft")
    cosines = cosine_transform(13).double()
    torch.testing.assert_close(cosines @ cosines.T, torch.eye(13).double(), atol=1e-6, rtol=0)
    x = fill.normal("x", (13,)).double()
    torch.testing.assert_close(cosines @ x, torch.from_numpy(fft.dct(x.numpy(), norm="ortho")), atol=1e-6, rtol=0)


def test_acdc_is_near_the_identity_at_first_and_never_fitted() -> None:
    matrix = made("acdc", 16, 16, depth=1)
    torch.testing.assert_close(matrix.dense(), torch.eye(16).double(), atol=0.5, rtol=0)
    with pytest.raises(OptionError, match="no closed form"):
        matrix.project(torch.eye(16))


def test_drawn_values_are_as_large_as_the_layer_was() -> None:
    layer = nn.Linear(24, 36)
    for name in CLOSED:
        torch.manual_seed(1)
        edits = structured.plan(layer, matrix=name, fresh=True)  # type: ignore[arg-type]
        new: Any = apply(layer, edits)
        torch.testing.assert_close(new.weight.norm(), layer.weight.norm(), rtol=1e-3, atol=0)


@pytest.mark.parametrize("name", list(MATRICES))
@pytest.mark.parametrize("keep", [0.1, 0.25, 0.5])
def test_keep_is_about_what_is_kept(name: Any, keep: float) -> None:
    layer = nn.Linear(192, 256)
    (edit,) = structured.plan(layer, matrix=name, keep=keep)
    share = counting.parameters(apply(layer, [edit]).matrix) / layer.weight.numel()
    least = {"butterfly": 0.08, "acdc": 0.0}.get(name, 0.6 * keep)
    most = max(keep, 0.126) if name == "monarch" else keep  # rank 1 has an eighth here, and there is no less
    assert least < share <= most * 1.001


def test_layers_hold_it_and_are_written_out_alike() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(6, 32, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 64))
    x = fill.normal("x", (2, 6, 8, 8))
    for name in MATRICES:
        options = {"relu": False} if name == "acdc" else {}
        new = structured.structure(net, matrix=name, keep=0.5, convolutions=True, **options)
        assert {e.path for e in edits_of(new)} == {"0", "3"}
        written = expanded(new)
        torch.testing.assert_close(written(x), new(x), atol=1e-5, rtol=1e-5)
        plain = {type(m) for m in written.modules()}
        assert nn.Conv2d in plain
        assert (nn.Linear in plain) == (name != "monarch")
    assert expanded(net) is net


def test_fitted_layers_are_nearer_with_more_weights() -> None:
    for family in FAMILIES.values():
        model = family.make()
        answer = family.logits(model)
        errors = [
            float((family.logits(structured.structure(model, keep=keep)) - answer).norm()) for keep in (0.25, 0.9)
        ]
        assert errors[1] < errors[0]


def test_neutral_and_what_is_left() -> None:
    model = PLAIN.make()
    assert structured.plan(model, keep=1.0) == []
    assert [e.path for e in structured.plan(model, convolutions=True)] == ["features.0", "features.3", "classifier"]
    assert [e.path for e in structured.plan(model, convolutions=True, skip=["features"])] == ["classifier"]
    grouped = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.Linear(32, 32))
    assert [e.path for e in structured.plan(grouped, convolutions=True)] == ["1"]


@pytest.mark.parametrize(
    ("layer", "options", "says"),
    [
        (nn.Linear(8, 8), {"matrix": "hankel"}, "'hankel' is not one of monarch"),
        (nn.Linear(8, 8), {"keep": 1.5}, r"1.5 is not in \(0, 1\]"),
        (nn.Linear(8, 8), {"blocks": [3, 2]}, r"blocks \[3, 2\] do not divide 8 inputs and 8 outputs"),
        (nn.Linear(8, 8), {"rank": 9}, "monarch: rank: 9 is not a whole number from 1 to"),
        (nn.Linear(8, 8), {"relu": False}, r"\['blocks', 'rank', 'relu'\] are not the options of 'monarch'"),
        (nn.Linear(8, 8), {"terms": 2}, "are not the options of 'monarch'"),
        (nn.Linear(8, 8), {"matrix": "circulant", "block": 9}, "circulant: block: 9 is not a whole number from 1 to 8"),
        (
            nn.Conv2d(8, 8, 3),
            {"matrix": "acdc", "convolutions": True, "depth": 2},
            "acdc with ReLUs inside is no matrix",
        ),
    ],
)
def test_wrong_options_are_said(layer: nn.Module, options: dict[str, Any], says: str) -> None:
    with pytest.raises(OptionError, match=says):
        structured.plan(layer, **options)
    with pytest.raises(OptionError, match="a BatchNorm2d has no such factors"):
        apply(nn.BatchNorm2d(4), [Edit("", "structured_matrix", {"matrix": "monarch"})])
    with pytest.raises(LookupError, match="has no layer left for a structured matrix"):
        structured.plan(nn.Conv2d(3, 8, 3))


@pytest.mark.parametrize("name", list(MATRICES))
def test_saving_and_loading_keeps_every_matrix(name: Any, tmp_path: Path) -> None:
    """Random signs and orders too."""
    options = {"flips": True} if name == "circulant" else {}
    new = structured.structure(FAMILIES["ours"].make(), matrix=name, fresh=True, **options)
    loaded = artifact.load(artifact.save(new, tmp_path))
    assert torch.equal(FAMILIES["ours"].logits(loaded), FAMILIES["ours"].logits(new))


def test_a_matrix_that_a_file_makes_up_is_refused(tmp_path: Path) -> None:
    new = structured.structure(PLAIN.make(), matrix="circulant")
    record(new, [Edit(e.path, e.kind, {**e.spec, "block": 10**9}) for e in edits_of(new)])
    with pytest.raises(InputError, match="block: 1000000000 is not a whole number"):
        artifact.load(artifact.save(new, tmp_path), base=PLAIN.build())


def test_gradients_reach_every_weight() -> None:
    x: Tensor = fill.normal("x", (4, 24))
    for name in MATRICES:
        new: Any = structured.structure(nn.Linear(24, 36), matrix=name, keep=0.5, fresh=True)
        new(x).square().sum().backward()
        assert all(p.grad is not None and float(p.grad.abs().sum()) > 0 for p in new.parameters()), name
    assert all_of(new, structured.StructuredLinear)
