# SPDX-License-Identifier: Apache-2.0
"""Weights in 16, 8, 4, 2 and 1 bits: packing to the bit, grids, files that stay small, and dynamic 8 bits."""

from __future__ import annotations

import copy
from pathlib import Path

import fill
import numpy as np
import pytest
import torch
from families import FAMILIES, IMAGES, PLAIN, SIZE
from torch import Tensor, nn

from featherweight.errors import OptionError
from featherweight.methods import dynamic_int8, half, quantize, weight_only
from featherweight.methods.calibration import enough
from featherweight.methods.rounding import LEVELS, fitted, nearest, rounded, to_codes, to_values, widest
from featherweight.methods.stored import PackedStore, StoredConv2d, StoredLinear, group_of, pack_codes, unpack_codes
from featherweight.runtime.parity import snr_db
from featherweight.surgery import apply, edits_of


def matrix(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# Packing
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("count", [1, 7, 8, 27])
def test_packing_is_exact_and_as_small_as_it_can_be(bits: int, count: int) -> None:
    codes = torch.randint(0, 1 << bits, (5, count), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    packed = pack_codes(codes, bits)
    assert packed.shape == (5, -(-count * bits // 8))
    assert torch.equal(unpack_codes(packed, bits)[:, :count], codes.float())


def test_the_first_code_lies_in_the_lowest_bits() -> None:
    assert pack_codes(torch.tensor([[1, 2, 15]], dtype=torch.uint8), 4).tolist() == [[0x21, 0x0F]]
    assert pack_codes(torch.tensor([[1, 0, 0, 1]], dtype=torch.uint8), 1).tolist() == [[0b1001]]


@pytest.mark.parametrize(("count", "group", "found"), [(768, 64, 64), (480, 64, 60), (131, 64, 131), (27, None, 27)])
def test_a_group_divides_its_row(count: int, group: int | None, found: int) -> None:
    assert group_of(count, group) == found


# Grids
@pytest.mark.parametrize("grid", list(LEVELS))
def test_values_on_the_grid_stay(grid: str) -> None:
    levels = LEVELS[grid]
    codes = torch.arange(levels, dtype=torch.uint8).repeat(2, 3)
    step = torch.tensor([[0.5], [2.0]])
    values = to_values(codes, step, levels)
    assert torch.equal(to_codes(values, step, levels), codes)
    assert bool((values == 0).any()) == (levels % 2 == 1), "an odd number of levels has a zero"
    assert torch.equal(values.sum(1), torch.zeros(2)), "symmetric"


def test_the_nearest_step_beats_the_widest_on_a_tail() -> None:
    rows = matrix(4, 500)
    rows[:, 0] = 10.0
    errors = [
        (to_values(to_codes(rows, step, 15), step, 15) - rows).square().sum()
        for step in (nearest(rows, 15), widest(rows, 15))
    ]
    assert errors[0] < 0.7 * errors[1]


def test_binary_and_ternary_are_the_closed_forms_of_their_papers() -> None:
    rows = torch.tensor([[1.0, -3.0, 0.5, -0.5]])
    codes, step = fitted(rows, 2)
    assert to_values(codes, step, 2).tolist() == [[1.25, -1.25, 1.25, -1.25]]  # the mean magnitude
    codes, step = fitted(rows, 3)  # threshold 0.7 * 1.25 = 0.875; above it 1 and 3
    assert to_values(codes, step, 3).tolist() == [[2.0, -2.0, 0.0, 0.0]]


def test_rows_of_zeros_stay_zero_where_the_grid_has_one() -> None:
    for levels in (255, 15, 3):
        store = PackedStore(torch.zeros(2, 16), levels=levels)
        assert torch.equal(store(), torch.zeros(2, 16))


def test_the_gradients_are_those_of_lsq() -> None:
    values = torch.tensor([-9.0, -0.3, 0.8, 9.0], requires_grad=True)
    step = torch.tensor(0.5, requires_grad=True)
    out = rounded(values, step, 15)
    assert out.tolist() == [-3.5, -0.5, 1.0, 3.5]
    out.backward(torch.tensor([1.0, 1.0, 1.0, 1.0]))
    assert values.grad is not None
    assert values.grad.tolist() == [0.0, 1.0, 1.0, 0.0]
    assert step.grad is not None
    wanted = -7 + (-1 + 0.6) + (2 - 1.6) + 7  # outside the last level, inside round(v / s) - v / s
    torch.testing.assert_close(step.grad, torch.tensor(wanted), atol=1e-5, rtol=0)


def test_a_zero_that_may_lie_anywhere_fits_what_is_not_symmetric() -> None:
    weight = matrix(8, 64).abs() + 1
    errors = {
        symmetric: (PackedStore(weight, levels=levels, group=32, symmetric=symmetric)() - weight).square().mean()
        for symmetric, levels in ((True, 15), (False, 16))
    }
    assert errors[False] < errors[True] / 1.5


def test_steps_too_small_for_16_bits_are_kept_in_32() -> None:
    weight = 1e-7 * matrix(4, 32)
    store = PackedStore(weight, levels=15)
    assert store.scale.dtype == torch.float32
    assert float((store() - weight).norm() / weight.norm()) < 0.15
    assert PackedStore(matrix(4, 32), levels=15).scale.dtype == torch.float16


# Models
def size_of(model: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in model.state_dict().values())


@torch.no_grad()
@pytest.mark.parametrize(("weights", "least_db"), [("int8", 35), ("int4", 10), ("uint4", 14), ("int2", 2)])
@pytest.mark.parametrize("family", ["ours", "plain"])
def test_more_bits_are_nearer_to_the_float_model(weights: str, least_db: float, family: str) -> None:
    model = {**FAMILIES, "plain": PLAIN}[family].make()
    new = weight_only.weight_only(model, weights=weights)
    db = snr_db(model(IMAGES).numpy(), new(IMAGES).numpy())
    assert least_db < db < 70
    edits = edits_of(new)
    assert edits[0].spec["levels"] == edits[-1].spec["levels"] == 255, "both ends in 8 bits"


def test_bytes_are_what_the_bits_say() -> None:
    model = nn.Sequential(nn.Linear(256, 256, bias=False))
    sizes = {w: size_of(weight_only.weight_only(model, weights=w)) for w in ("int8", "int4", "int2", "binary")}
    count = 256 * 256
    groups, rows = 2 * count // 64, 2 * 256
    assert sizes == {
        "int8": count + rows, "int4": count // 2 + groups, "int2": count // 4 + groups, "binary": count // 8 + rows,
    }  # fmt: skip
    assert size_of(half.to_half(model)) == 2 * count


@pytest.mark.parametrize(("dtype", "least_db"), [("float16", 60), ("bfloat16", 40)])
@torch.no_grad()
def test_16_bits(dtype: str, least_db: float) -> None:
    family = FAMILIES["transformers"]
    model = family.make()
    new = half.to_half(model, dtype=dtype)
    assert snr_db(family.logits(model).numpy(), family.logits(new).numpy()) > least_db
    assert {t.dtype for name, t in new.state_dict().items() if name.endswith("store.narrow")} == {getattr(torch, dtype)}
    assert half.plan(model, dtype="float32") == []


def test_replay_needs_no_weights() -> None:
    family = FAMILIES["ours"]
    new = weight_only.weight_only(family.make(), weights="uint4", group=16)
    fresh = apply(family.build(), edits_of(new))
    fresh.load_state_dict(new.state_dict(), assign=True)
    assert torch.equal(family.logits(fresh.eval()), family.logits(new))
    assert torch.equal(family.logits(copy.deepcopy(new)), family.logits(new))


# Files
@pytest.mark.parametrize("weights", ["int8", "int4", "uint4", "int2", "ternary", "binary", "float16", "bfloat16"])
def test_an_exported_file_holds_few_bits_and_answers_alike(weights: str, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    from featherweight.export import onnx, openvino

    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 64, 14), nn.Flatten(), nn.Linear(64, 10)).eval()
    if "float" in weights:
        new = half.to_half(model, dtype=weights)
    else:
        new = weight_only.weight_only(model, weights=weights, ends=None)
    images = fill.normal("exported", (3, 3, SIZE, SIZE))
    made = onnx.export(new, images, tmp_path / "model.onnx", batches=[{"image": images}])
    assert made.parity.snr_db > 80
    assert made.size_bytes < size_of(new) + 6000, "the graph, not the weights in full"
    found = openvino.export(made.path, tmp_path / "openvino_model.xml", model=new, batches=[{"image": images}])
    assert found.parity.snr_db > 80


def test_a_file_for_openvino_says_each_rounding_once(tmp_path: Path) -> None:
    """The reader writes it as four operators, which take half the text of the graph."""
    pytest.importorskip("onnx")
    pytest.importorskip("openvino")
    from featherweight.export import onnx, openvino

    batches = [{"image": fill.normal("calibration", (4, 3, SIZE, SIZE))}]
    new = quantize.quantize(PLAIN.make(), batches, PLAIN.task)
    made = onnx.export(new, batches[0]["image"], tmp_path / "model.onnx", batches=batches)
    xml = tmp_path / "openvino_model.xml"
    found = openvino.export(made.path, xml, model=new, batches=batches)
    assert found.parity.dtype == "int8"
    text = xml.read_text()
    assert text.count('type="FakeQuantize"') >= 2
    assert 'type="Subtract"' not in text


# Dynamic
def test_dynamic_rounding_is_that_of_onnx() -> None:
    onnx = pytest.importorskip("onnx")
    from onnx.reference import ReferenceEvaluator

    h, types = onnx.helper, onnx.TensorProto
    outputs = [h.make_tensor_value_info(n, t, None) for n, t in (("q", types.UINT8), ("s", types.FLOAT), ("z", 2))]
    node = h.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"])
    graph = h.make_graph([node], "g", [h.make_tensor_value_info("x", types.FLOAT, [2, 50])], outputs)
    evaluator = ReferenceEvaluator(h.make_model(graph))
    for x in (matrix(2, 50), matrix(2, 50).abs(), -matrix(2, 50).abs()):
        expected = evaluator.run(None, {"x": x.numpy()})
        for mine, theirs in zip(dynamic_int8.quantize_now(x), expected, strict=True):
            np.testing.assert_array_equal(mine.numpy(), theirs)


def test_a_dynamic_layer_is_near_the_float_one_and_runs_in_integers(tmp_path: Path) -> None:
    onnx_module = pytest.importorskip("onnx")
    from featherweight.export import onnx, openvino

    family = FAMILIES["timm"]
    model = family.make()
    new = dynamic_int8.quantize_dynamic(model, skip=("head",))
    assert snr_db(family.logits(model).numpy(), family.logits(new).numpy()) > 25
    made = onnx.export(new, IMAGES, tmp_path / "model.onnx", batches=[{"image": IMAGES}])
    kinds = {node.op_type for node in onnx_module.load(made.path).graph.node}
    assert {"DynamicQuantizeLinear", "MatMulInteger"} <= kinds
    xml = tmp_path / "openvino_model.xml"
    assert openvino.export(made.path, xml, model=new, batches=[{"image": IMAGES}]).parity.snr_db > 30


# Bad input
def test_what_cannot_be_is_said() -> None:
    model = PLAIN.make()
    with pytest.raises(OptionError, match="weights: no 'int3'; did you mean"):
        weight_only.plan(model, weights="int3")
    with pytest.raises(OptionError, match="group: 12 is not a multiple of 8"):
        weight_only.plan(model, group=12)
    with pytest.raises(OptionError, match="dtype: no 'fp16'"):
        half.plan(model, dtype="fp16")
    with pytest.raises(LookupError, match="no linear layer left"):
        dynamic_int8.plan(nn.Sequential(nn.Conv2d(3, 4, 3)))
    with pytest.raises(OptionError, match="bits: 4"):
        dynamic_int8.plan(model, bits=4)
    with pytest.raises(LookupError, match="no float linear"):
        weight_only.plan(weight_only.weight_only(model))
    with torch.no_grad():
        model.classifier.weight[0, 0] = 1e6
    with pytest.raises(OptionError, match="classifier has a weight beyond 65504"):
        half.plan(model)
    assert weight_only.plan(model, weights="float32") == []


def test_a_calibration_that_is_too_small_or_empty_is_refused() -> None:
    with pytest.raises(OptionError, match="3 images are too few; give 4 or more"):
        enough([{"image": torch.zeros(3, 3, 4, 4)}], 128)
    with pytest.raises(LookupError, match="were there any batches"):
        enough([], 128)


def test_what_is_stored_is_a_layer_of_its_own_kind() -> None:
    new = weight_only.weight_only(PLAIN.make())
    assert {type(new.get_submodule(edit.path)) for edit in edits_of(new)} == {StoredConv2d, StoredLinear}
