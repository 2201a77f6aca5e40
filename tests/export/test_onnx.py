# SPDX-License-Identifier: Apache-2.0
"""The exported .onnx file: answers like the model, stays small, names nothing of this machine, fails when it must."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from featherweight.errors import CheckFailed, FeatherweightError, OptionError
from featherweight.methods import dynamicvit
from featherweight.methods.quantize import quantize
from featherweight.models.vit import VisionTransformer, ViTConfig
from featherweight.runtime.preprocess import Preprocess
from featherweight.runtime.session import open_session
from featherweight.surgery import apply
from featherweight.tasks.classification import Classification

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

from featherweight.export import aten  # noqa: E402
from featherweight.export import onnx as to_onnx  # noqa: E402
from featherweight.export.check import describe  # noqa: E402
from featherweight.export.graph import Unsupported  # noqa: E402
from featherweight.export.translate import program_of, translate  # noqa: E402

TASK = Classification(5)


def images(n: int = 8, size: int = 16) -> Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(n))


@pytest.fixture
def vit() -> VisionTransformer:
    torch.manual_seed(0)
    config = ViTConfig(image_size=(16, 16), patch_size=4, num_classes=5, embed_dim=32, depth=2, num_heads=2)
    model = VisionTransformer(config)
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def optimized(path: Path) -> Counter[str]:
    """How often ONNX Runtime runs each operator after its own rewriting."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(path.with_suffix(".optimized"))
    options.log_severity_level = 4  # it warns that such a file depends on the machine
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)


# Operators: whatever PyTorch computes, the graph computes ------------------------------------------------------------
class Calls(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


F = nn.functional
OPERATORS = {
    "arithmetic": lambda x: (x + 2 * x - x / 3) * (1 - x) ** 2,
    "alpha": lambda x: torch.sub(torch.add(x, x, alpha=2), x, alpha=0.5),
    "integer and float": lambda x: x * torch.arange(16) + torch.tensor(3),
    "unary": lambda x: torch.tanh(x.abs().sqrt() + x.exp().log() - x.neg().sigmoid()),
    "activations": lambda x: F.relu(x) + F.silu(x) + F.gelu(x) + F.gelu(x, approximate="tanh") + F.leaky_relu(x, 0.2),
    "hard activations": lambda x: F.hardswish(x) + F.hardsigmoid(x) + F.relu6(4 * x) + F.hardtanh(x) + x.clamp(-0.5),
    "comparison": lambda x: torch.where((x > 0) & (x <= 1) | (x != x), x, -x).masked_fill(x >= 2, 0.5),
    "views": lambda x: x.flatten(2).unsqueeze(1).squeeze(1).reshape(x.shape[0], 3, 4, 64).view(x.shape[0], -1),
    "permutations": lambda x: x.permute(0, 2, 3, 1).transpose(1, 2).transpose(-1, -2).contiguous(),
    "joins": lambda x: torch.cat([x, torch.stack([x, 2 * x], 1).sum(1)], dim=-1),
    "slices": lambda x: x[:, 1:, ::2, -3:] + x[:, -1:, 1::2, 2:5] + x[:, 0, None, :8, :3],
    "split": lambda x: sum(a * b for a, b in zip(x.chunk(4, 2), x.split([4, 4, 4, 4], 2), strict=True)).sum(3),
    "unbind of a transposed value": lambda x: torch.stack(x.reshape(-1, 3, 2, 8, 16).permute(2, 0, 3, 1, 4).unbind(0)),
    "expand and repeat": lambda x: x[:, :1, :1].expand(-1, 3, 2, -1) + x.repeat(1, 1, 2, 1)[:, :, 15:17],
    "a constant as long as the batch": lambda x: torch.arange(2.0).expand(x.shape[0], -1)[..., None] * x[:, 0, :2],
    "pad and roll": lambda x: F.pad(x, (1, 2, 0, 3), value=0.5).roll((2, -1), (2, 3)),
    "gather by element": lambda x: x.gather(3, x.argsort(dim=3)),
    "gather by row": lambda x: x[:, 0].gather(1, x[:, 1].topk(5, 1).indices[..., :1].sort(1).values.expand(-1, -1, 16)),
    "indexing": lambda x: x[:, :, torch.tensor([3, 1])][:, torch.tensor([[0, 2]])],
    "reductions": lambda x: x.mean((2, 3)) + x.sum(2).amax(-1) - x.amin((2, 3), keepdim=True)[..., 0, 0] + x.mean(),
    "extremes": lambda x: x.max(2).values + x.min(2).indices - x.max(2, True)[1][:, :, 0] + x.max(-x)[..., 0] - x.min(),
    "norms of vectors": lambda x: F.normalize(x, dim=1) + x.norm(p=1, dim=(2, 3), keepdim=True) + x.argmin(-1, True),
    "bounds": lambda x: torch.clamp_min(x, 0.5) + torch.clamp_max(x, -0.5),
    "softmax": lambda x: x.softmax(-1) + x.log_softmax(1) + x.argmax(-1, keepdim=True),
    "pooling": lambda x: F.max_pool2d(x, 3, 2, 1) + F.avg_pool2d(x, 2) + F.adaptive_avg_pool2d(x, 8),
    "global pooling": lambda x: F.adaptive_avg_pool2d(x, 1).flatten(1),
    "upsampling": lambda x: F.interpolate(x, scale_factor=2.0, mode="nearest"),
    "norms": lambda x: F.layer_norm(x, (16,)) + F.group_norm(x, 3, torch.arange(3.0), torch.arange(3.0) - 1),
    "batch norm": lambda x: F.batch_norm(x, torch.tensor([0.1, 0.2, 0.3]), torch.tensor([1.0, 2, 3]), eps=1e-3),
    "products": lambda x: x @ x.transpose(-1, -2) + torch.bmm(x[:, 0], x[:, 1]).unsqueeze(1),
    "attention": lambda x: F.scaled_dot_product_attention(x, 2 * x, x, scale=0.3),
    "attention with a float mask": lambda x: F.scaled_dot_product_attention(x, x, x, torch.eye(16)),
    "attention with a boolean mask": lambda x: F.scaled_dot_product_attention(x, x, x, torch.eye(16).bool()),
    "attention with an empty mask": lambda x: F.scaled_dot_product_attention(x, x, x, torch.ones(1, 1, 16, 16).bool()),
    "convolutions": lambda x: F.conv2d(x, torch.ones(3, 1, 3, 3) / 9, stride=2, padding=1, groups=3),
    "same padding": lambda x: F.conv2d(x, torch.arange(54.0).reshape(2, 3, 3, 3) / 9, padding="same", dilation=3),
    "in place": lambda x: F.relu(x.clone().add_(1), inplace=True).mul_(2) + x,
    "types": lambda x: (x.double() * 2).float() + (x > 0).to(x.dtype) + x.new_ones(x.shape[0], 3, 16, 1),
}


def translated(function: Any) -> Any:
    model = Calls(function).eval()
    return translate(program_of(model, (images(2),)), ["x"], ["y"])


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_are_those_of_pytorch(name: str) -> None:
    proto = translated(OPERATORS[name])
    onnx.checker.check_model(proto, full_check=True)
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    for n in (1, 3):  # neither is the batch size it was exported with
        x = images(n)
        got = session.run(None, {"x": x.numpy()})[0]
        expected = OPERATORS[name](x.clone()).numpy()
        assert got.dtype == expected.dtype
        np.testing.assert_allclose(got, expected, rtol=2e-5, atol=2e-5)  # float32, sums in another order


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (lambda x: x.tan(), "the operator aten.tan"),
        (lambda x: F.max_pool2d(x, 2, dilation=2), "dilation=2|dilation=.2, 2"),
        (lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True), "is_causal=True"),
        (lambda x: x.clone().view(-1, 48, 16).add_(1), "in place on a view"),
        (lambda x: F.batch_norm(x, None, None, training=True), "statistics"),
        (lambda x: F.pad(x, (1, 1, 1, 1), mode="circular"), "circular|operator|in place"),
    ],
)
def test_what_has_no_words_is_refused_not_guessed(function: Any, text: str) -> None:
    with pytest.raises(Unsupported, match=text):
        translated(function)


# Files ---------------------------------------------------------------------------------------------------------------
def test_a_file_answers_like_its_model_for_any_batch(vit: nn.Module, tmp_path: Path) -> None:
    about = describe(classes="abcde", preprocess=Preprocess((16, 16)), compression=[{"kind": "none"}], license="MIT")
    real = [{"image": images(20)}]
    done = to_onnx.export(vit, images(1), tmp_path / "m.onnx", task=TASK, metadata=about, batches=real)
    assert (done.opset, done.size_bytes, done.parity.n) == (20, done.path.stat().st_size, 20)
    assert done.max_abs_difference < 1e-5  # float32, logits of size 1
    session = open_session(done.path)
    assert session.inputs == (("pixel_values", (None, 3, 16, 16), "float32"),)
    assert session.outputs == (("logits", (None, 5), "float32"),)
    assert session.metadata == about
    assert session.metadata["names"] == '{"0":"a","1":"b","2":"c","3":"d","4":"e"}'
    for n in (1, 7):
        got = session.run({"pixel_values": images(n).numpy()})["logits"]
        np.testing.assert_allclose(got, vit(images(n)).detach().numpy(), atol=1e-5)


def test_equal_models_give_equal_bytes_without_a_trace_of_this_machine(vit: nn.Module) -> None:
    first = to_onnx.to_bytes(vit, images(2))
    assert first == to_onnx.to_bytes(vit, images(2))
    assert first == to_onnx.to_bytes(vit.train(), images(3))
    assert vit.training, "the mode was put back"
    for word in (b".py", b"/home", b"torch", b"stack_trace", str(Path.cwd()).encode(), b"aten"):
        assert word not in first
    proto = onnx.load_from_string(first)
    assert not proto.graph.value_info
    assert not any(node.doc_string or node.metadata_props or node.name for node in proto.graph.node)


def test_the_graph_costs_little(vit: nn.Module) -> None:
    data = to_onnx.to_bytes(vit, images(2))
    proto = onnx.load_from_string(data)
    raw = [tensor.raw_data for tensor in proto.graph.initializer]
    assert len({(t.data_type, tuple(t.dims), t.raw_data) for t in proto.graph.initializer}) == len(raw), "stored twice"
    assert len(data) - sum(map(len, raw)) < 1500 * (2 + 1), "bytes of graph: 1,500 for each block and the rest"
    parameters = sum(parameter.numel() for parameter in vit.parameters())
    assert sum(map(len, raw)) < 4 * parameters + 600  # shapes and scales


def test_int8_weights_stay_int8_and_run_as_int8(vit: nn.Module, tmp_path: Path) -> None:
    small = quantize(vit, [{"image": images()}], TASK)
    done = to_onnx.export(small, images(2), tmp_path / "q.onnx", batches=[{"image": images(32)}])
    assert open_session(done.path).dtype == done.parity.dtype == "int8"
    large = [tensor for tensor in onnx.load(done.path).graph.initializer if np.prod(tensor.dims) >= 512]
    kinds = Counter(tensor.data_type for tensor in large)
    assert kinds == {onnx.TensorProto.INT8: 9, onnx.TensorProto.FLOAT: 1}, "eight layers and the stem; the positions"
    assert done.size_bytes < 0.45 * len(to_onnx.to_bytes(vit, images(2)))
    assert optimized(done.path)["MatMulIntegerToFloat"] == 8, "qkv, proj, fc1 and fc2 of two blocks, in integers"


def test_kept_tokens_are_those_of_the_model(vit: nn.Module, tmp_path: Path) -> None:
    sparse = apply(vit, dynamicvit.plan(vit, keep={1: 0.5})).eval()
    done = to_onnx.export(sparse, images(2), tmp_path / "m.onnx", extra=("kept_tokens",), batches=[{"image": images()}])
    found = open_session(done.path).run({"pixel_values": images().numpy()})
    with dynamicvit.recording(sparse) as record, torch.no_grad():
        sparse(images())
        places = record.aside.places[-1].numpy()
    assert found["kept_tokens"].shape == (8, 8)
    np.testing.assert_array_equal(found["kept_tokens"], places)
    assert "GatherND" in optimized(done.path), "rows are gathered whole"


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("gelu", lambda g, out, *, self, **rest: g.op("Relu", g.read(self))),
        ("add", lambda g, out, *, self, other, **rest: g.read(self)),
        ("layer_norm", lambda g, out, *, input, **rest: g.read(input)),
    ],
)
def test_a_broken_exporter_fails_and_leaves_no_file(
    name: str, wrong: Any, vit: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = quantize(vit, [{"image": images()}], TASK) if name == "gelu" else vit  # the widest limits are those of int8
    to_onnx.export(model, images(2), tmp_path / "good.onnx", batches=[{"image": images(32)}])  # the control
    monkeypatch.setitem(aten.OPERATORS, name, wrong)
    with pytest.raises(CheckFailed, match="does not answer like the model: onnxruntime"):
        to_onnx.export(model, images(2), tmp_path / "bad.onnx", batches=[{"image": images(32)}])
    assert [path.name for path in tmp_path.iterdir()] == ["good.onnx"]


def test_an_operator_without_words_goes_through_pytorch(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(48, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x.tan().mean(3).flatten(1))

    torch.manual_seed(0)
    small = quantize(Odd(), [{"image": images()}], TASK)
    done = to_onnx.export(small, images(2), tmp_path / "m.onnx", batches=[{"image": images(16)}])
    proto = onnx.load(done.path)
    assert {"Tan", "QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in proto.graph.node}
    assert onnx.TensorProto.INT8 in {tensor.data_type for tensor in proto.graph.initializer}
    assert b".py" not in done.path.read_bytes()
    assert not proto.graph.value_info
    assert done.parity.dtype == "int8"


def test_mistakes_are_one_line(vit: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="did you mean 'kept_tokens'"):
        to_onnx.export(vit, images(2), tmp_path / "m.onnx", extra=("kept_token",))
    with pytest.raises(OptionError, match="there are none"):
        to_onnx.export(vit, images(2), tmp_path / "m.onnx", batches=[])
    with pytest.raises(FeatherweightError, match=r"torch\.export cannot follow Calls") as caught:
        to_onnx.export(Calls(lambda x: x if x.sum() > 0 else -x), images(2), tmp_path / "m.onnx")
    assert "\n" not in str(caught.value)
