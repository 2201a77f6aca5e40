# SPDX-License-Identifier: Apache-2.0
"""8-bit quantization: the arithmetic to the bit, the choice of ranges, and what a quantized model promises."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from featherweight.errors import Diverged, OptionError
from featherweight.methods import observers
from featherweight.methods.int8 import (
    QuantConv2d,
    QuantLinear,
    dequantize_values,
    quantize_values,
    quantize_weight,
    scale_of,
)
from featherweight.methods.observers import Histogram
from featherweight.methods.quantize import first, plan, quantize, sensitivity
from featherweight.models.vit import VisionTransformer, ViTConfig
from featherweight.runtime.parity import snr_db
from featherweight.surgery import apply, edits_of
from featherweight.tasks.classification import Classification

TASK = Classification(5)


def images(n: int = 8, seed: int = 0) -> Tensor:
    return torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def batches(n: int = 8, seed: int = 0, size: int = 4) -> list[dict[str, Tensor]]:
    return [{"image": part} for part in images(n, seed).split(size)]


@pytest.fixture
def vit() -> nn.Module:
    torch.manual_seed(0)
    config = ViTConfig(image_size=(16, 16), patch_size=4, num_classes=5, embed_dim=32, depth=2, num_heads=2)
    model = VisionTransformer(config)
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


class Tiny(nn.Module):
    """A convolution, a layer that never runs, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.conv, self.idle, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.conv(x)).mean((2, 3)))


# Arithmetic
def test_the_arithmetic_is_that_of_onnx() -> None:
    onnx = pytest.importorskip("onnx")
    from onnx.reference import ReferenceEvaluator

    scale, zero = np.float32(0.5), np.uint8(3)
    x = np.array([-100, -1.75, -1.25, -0.75, -0.25, 0, 0.25, 0.75, 1.25, 1.75, 62.9, 63.1, 126, 500], np.float32)
    h, types = onnx.helper, onnx.TensorProto
    nodes = [h.make_node("QuantizeLinear", ["x", "s", "z"], ["q"])]
    nodes += [h.make_node("DequantizeLinear", ["q", "s", "z"], ["y"])]
    constants = [h.make_tensor("s", types.FLOAT, [], [0.5]), h.make_tensor("z", types.UINT8, [], [3])]
    outputs = [h.make_tensor_value_info("q", types.UINT8, [14]), h.make_tensor_value_info("y", types.FLOAT, [14])]
    graph = h.make_graph(nodes, "g", [h.make_tensor_value_info("x", types.FLOAT, [14])], outputs, constants)
    expected_q, expected_y = ReferenceEvaluator(h.make_model(graph)).run(None, {"x": x})
    q = quantize_values(torch.from_numpy(x), torch.tensor(scale), torch.tensor(zero))
    np.testing.assert_array_equal(q.numpy(), expected_q)
    y = dequantize_values(q, torch.tensor(scale), torch.tensor(zero))
    np.testing.assert_array_equal(y.numpy(), expected_y)
    assert q.tolist()[:4] == [0, 0, 1, 1], "round half to even, saturate at 0"  # -3.5 -> -4, -2.5 -> -2, -1.5 -> -2


def test_weights_are_symmetric_by_channel_and_dead_channels_stay_zero() -> None:
    weight = torch.tensor([[1.0, -2.0, 0.5], [0.0, 0.0, 0.0], [1e-3, 2e-3, -4e-3]])
    q, scale = quantize_weight(weight)
    assert q.dtype == torch.int8
    assert q.abs().amax(1).tolist() == [127, 0, 127]
    assert torch.isfinite(scale).all()
    back = dequantize_values(q, scale)
    assert ((back - weight).abs() <= scale[:, None] / 2 * 1.0001).all()
    assert (back[1] == 0).all()


@pytest.mark.parametrize("limits", [(-1.0, 3.0), (0.5, 2.0), (-3.0, -1.0), (0.0, 0.0), (-0.17, 8.0)])
def test_zero_is_exact_in_every_range(limits: tuple[float, float]) -> None:
    scale, zero = scale_of(limits)
    assert scale > 0
    assert 0 <= zero <= 255
    values = torch.tensor([0.0])
    q = quantize_values(values, torch.tensor(scale), torch.tensor(zero, dtype=torch.uint8))
    assert dequantize_values(q, torch.tensor(scale), torch.tensor(zero, dtype=torch.uint8)).item() == 0


# Ranges
def seen(*parts: Tensor) -> Histogram:
    histogram = Histogram()
    for part in parts:
        histogram.add(part)
    return histogram


def test_a_histogram_that_grew_is_the_one_made_at_once() -> None:
    torch.manual_seed(0)
    small, large = torch.rand(1000) - 0.5, 60 * (torch.rand(1000) - 0.5)
    grown, whole = seen(small, large), seen(torch.cat([large, small]))
    assert grown.limit == whole.limit == 32
    np.testing.assert_array_equal(grown.counts, whole.counts)
    assert grown.counts.sum() == 2000


def test_observers_on_a_tail() -> None:
    torch.manual_seed(0)
    values = torch.cat([torch.randn(1_000_000), torch.tensor([20.0])])
    histogram = seen(values)
    assert observers.minmax(histogram) == (values.min().item(), 20.0)
    for observer in (observers.percentile, observers.mse, observers.entropy):
        low, high = observer(histogram)
        assert -6 < low < -2, observer.__name__
        assert 2 < high < 8, observer.__name__


def test_mse_is_no_worse_than_any_other_observer() -> None:
    torch.manual_seed(0)
    for values in (torch.randn(20_000), torch.randn(20_000) ** 3, nn.functional.gelu(3 * torch.randn(20_000))):
        histogram = seen(values)

        def error(limits: tuple[float, float], values: Tensor = values) -> float:
            scale, zero = (torch.tensor(v) for v in scale_of(limits))
            zero = zero.to(torch.uint8)
            back = dequantize_values(quantize_values(values, scale, zero), scale, zero)
            return (back - values).square().mean().item()

        errors = {name: error(observer(histogram)) for name, observer in observers.OBSERVERS.items()}
        # the bins are finite and its ends lie on a grid, so it may miss the best a little
        assert errors["mse"] <= 1.02 * min(errors.values()), errors


def test_a_wrong_observer_is_named(vit: nn.Module) -> None:
    with pytest.raises(OptionError, match="did you mean 'minmax'"):
        quantize(vit, batches(), TASK, observer="minmx")


# Models
@torch.no_grad()
def test_the_model_given_is_untouched_and_the_new_one_is_close(vit: nn.Module) -> None:
    before = copy.deepcopy(vit.state_dict())
    vit.train()
    small = quantize(vit, batches(), TASK)
    assert vit.training
    assert all(torch.equal(value, before[key]) for key, value in vit.state_dict().items())
    assert not any(module._forward_hooks for module in vit.modules())
    vit.eval()
    x = images(16, seed=9)
    close = snr_db(vit(x).numpy(), small(x).numpy())
    assert close > 25
    control = quantize(vit, batches(), TASK, observer=lambda histogram: (histogram.low / 20, histogram.high / 20))
    assert snr_db(vit(x).numpy(), control(x).numpy()) < 10, "ranges must matter"


@torch.no_grad()
def test_weights_are_stored_in_8_bits_and_replay_needs_no_images(vit: nn.Module) -> None:
    small = quantize(vit, batches(), TASK)
    state = small.state_dict()
    linear = [name for name, module in small.named_modules() if isinstance(module, (QuantLinear, QuantConv2d))]
    assert linear == [edit.path for edit in edits_of(small)]
    assert all(state[f"{name}.weight_int8"].dtype == torch.int8 for name in linear)
    inputs = [value for key, value in state.items() if key.endswith("input.zero_point")]
    assert len(inputs) == len(linear) - 1, "what makes tokens of the picture gets it as it is"
    assert all(value.dtype == torch.uint8 for value in inputs)
    torch.manual_seed(5)
    fresh = apply(VisionTransformer(vit.config), edits_of(small)).eval()
    fresh.load_state_dict(state)
    assert torch.equal(fresh(images()), small(images()))
    assert torch.equal(copy.deepcopy(small)(images()), small(images()))


def test_the_neutral_setting_changes_nothing(vit: nn.Module) -> None:
    same = quantize(vit, [], TASK, bits=32)
    assert edits_of(same) == ()
    assert torch.equal(same(images()), vit(images()))


def test_only_as_many_images_are_taken_as_were_asked_for() -> None:
    taken: list[int] = []

    def source() -> Iterator[dict[str, Tensor]]:
        for batch in batches(40):
            taken.append(len(batch["image"]))
            yield batch

    counts = [len(batch["image"]) for batch in first(source(), 10)]
    assert counts == [4, 4, 2]
    assert taken == [4, 4, 4]


def test_skip_and_what_matches_nothing(vit: nn.Module) -> None:
    paths = [edit.path for edit in plan(vit, skip=("head", "blocks.0", "blocks.*.attn.qkv"))]
    assert paths == ["patch_embed.proj", "blocks.1.attn.proj", "blocks.1.mlp.fc1", "blocks.1.mlp.fc2"]
    with pytest.raises(LookupError, match="'haed' matches no"):
        plan(vit, skip=("haed",))
    with pytest.raises(LookupError, match="no float linear"):
        plan(nn.Sequential(nn.ReLU()))
    with pytest.raises(LookupError, match="no float linear"):
        plan(quantize(vit, batches(), TASK))
    with pytest.raises(OptionError, match="bits: 4 is not one of"):
        plan(vit, bits=4)
    with pytest.raises(LookupError, match="were there any batches"):
        quantize(vit, [], TASK)


def test_a_layer_that_never_runs_stays_float_and_so_does_one_with_a_forward_of_its_own() -> None:
    class Doubling(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    model = Tiny()
    model.head = nn.Sequential(Doubling(8, 8), nn.Linear(8, 5))
    small = quantize(model, batches(), TASK)
    assert [edit.path for edit in edits_of(small)] == ["conv", "head.1"]
    assert type(small.idle) is nn.Linear


def test_multi_head_attention_keeps_the_weights_it_reads_itself() -> None:
    class Host(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            tokens = x.flatten(2).transpose(1, 2)[..., :3].repeat(1, 1, 3)[..., :8]
            return self.head(self.attn(tokens, tokens, tokens)[0].mean(1))

    small = quantize(Host(), batches(), TASK)
    assert [edit.path for edit in edits_of(small)] == ["head"]
    small(images())


def test_values_that_are_not_finite_stop_it(vit: nn.Module) -> None:
    bad = images(4)
    bad[0, 0, 0, 0] = torch.nan
    with pytest.raises(Diverged, match=r"calibration: image has a value that is not finite"):
        quantize(vit, [{"image": bad}], TASK)
    with torch.no_grad():
        vit.patch_embed.proj.bias[0] = torch.inf
    with pytest.raises(Diverged, match=r"calibration: blocks.0.attn.qkv has a value that is not finite"):
        quantize(vit, batches(), TASK)


@torch.no_grad()
def test_bias_correction_removes_the_mean_error() -> None:
    model, data = Tiny().eval(), batches(32)
    x = torch.cat([batch["image"] for batch in data])
    errors = {}
    for corrected in (False, True):
        small = quantize(model, data, TASK, bias_correction=corrected, skip=("head",))
        errors[corrected] = (small.conv(x) - model.conv(x)).mean((0, 2, 3)).abs().max().item()
    assert errors[True] < errors[False] / 5  # what is left comes from rounding the output after it


def test_sensitivity_puts_the_worst_layer_first_and_leaves_the_model_alone(vit: nn.Module) -> None:
    with torch.no_grad():
        vit.blocks[1].mlp.fc2.weight[:, 0] = 50.0  # one weight takes the whole range of each channel
        before = vit(images())
    rows = sensitivity(vit, batches(), TASK)
    assert [row["snr_db"] for row in rows] == sorted(row["snr_db"] for row in rows)
    assert {row["layer"] for row in rows} == {edit.path for edit in plan(vit)}
    assert rows[0]["layer"] == "blocks.1.mlp.fc2"
    assert rows[0]["weights"] == 32 * 128
    assert all(0 <= row["top1_agreement"] <= 1 for row in rows)
    assert torch.equal(vit(images()), before)
