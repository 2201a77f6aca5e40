# SPDX-License-Identifier: Apache-2.0
"""Every family and what leaves it fewer tokens: one file for any batch, as exact as float32 is, in each runtime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import fill
import numpy as np
import pytest
import torch
from families import CLASSES, CONFIG, FAMILIES, LVVIT, SIZE, SRET_CONFIG
from torch import Tensor, nn

from featherweight.methods import dynamicvit, grouping, tome
from featherweight.models import zoo
from featherweight.runtime.session import open_session
from featherweight.surgery import apply

pytest.importorskip("onnx")

from featherweight.export import onnx as to_onnx
from featherweight.export.translate import program_of, translate

DISTILLED = {**CONFIG, "depth": 2, "distilled": True}
IMAGES = fill.normal("images of three", (3, 3, SIZE, SIZE))


def built(name: str, config: dict[str, Any]) -> nn.Module:
    return zoo.build({"name": name, "config": config})


def hierarchical(name: str, **sizes: Any) -> nn.Module:
    timm = pytest.importorskip("timm")
    return timm.create_model(name, num_classes=CLASSES, **sizes)


def dropping(model: nn.Module, **options: Any) -> nn.Module:
    return apply(model, dynamicvit.plan(model, **(options or {"keep": {1: 0.5}})))


HOSTS: dict[str, Callable[[], nn.Module]] = {
    "vit": lambda: built("vit", {**CONFIG, "depth": 2}),
    "vit distilled": lambda: built("vit", DISTILLED),
    "vit, convolutions first, fixed positions": lambda: built(
        "vit", {**CONFIG, "depth": 2, "stem": "conv", "position": "sinusoidal", "image_size": (16, 24)}
    ),
    "vit grouped": lambda: apply(m := FAMILIES["ours"].make(), grouping.plan(m, groups=4)),
    "dynamicvit": lambda: dropping(built("vit", DISTILLED)),
    "dynamicvit by attention": lambda: dropping(built("vit", DISTILLED), keep={1: 0.5}, score="attention"),
    "tome": lambda: tome.merged(built("vit", DISTILLED), r=5),
    "tome, timm": lambda: tome.merged(FAMILIES["timm"].make(), r=[3, 2]),
    "lvvit": lambda: built("lvvit", {**LVVIT["config"], "depth": 2}),  # type: ignore[dict-item]
    "lvvit dynamicvit": lambda: dropping(built("lvvit", {**LVVIT["config"], "depth": 2})),  # type: ignore[dict-item]
    "lvvit tome": lambda: tome.merged(built("lvvit", {**LVVIT["config"], "depth": 2}), r=4),  # type: ignore[dict-item]
    "sret": lambda: built("sret", SRET_CONFIG),
    "sret, not sliced": lambda: built("sret", {**SRET_CONFIG, "groups": (1, 1), "groups_recursive": (1, 1)}),
    "dynamic convnext": lambda: dropping(
        hierarchical("convnext_atto", depths=(1, 1, 3, 1), dims=(8, 8, 16, 16)), keep=[0.6, 0.3], at=[1, 2]
    ),
    "dynamic swin": lambda: dropping(
        hierarchical("swin_tiny_patch4_window7_224", img_size=64, window_size=2, embed_dim=8, depths=(1, 1, 3, 1),
                     num_heads=(1, 1, 2, 2)), keep=[0.6, 0.3], at=[1, 2]
    ),
}  # fmt: skip
SIZES = {"vit, convolutions first, fixed positions": (16, 24), "dynamic convnext": (64, 64), "dynamic swin": (64, 64)}


OFTEN = (
    "vit, convolutions first, fixed positions",
    "dynamicvit",
    "tome",
    "lvvit dynamicvit",
    "sret",
    "dynamic convnext",
)


def some(*names: str) -> list[Any]:
    """Every host; those that are not named are run with the slow tests."""
    return [name if name in names else pytest.param(name, marks=pytest.mark.slow) for name in HOSTS]


def made(name: str) -> tuple[nn.Module, Tensor]:
    model = HOSTS[name]()
    model.load_state_dict({key: fill.tensor(key, t.shape, t.dtype) if t.is_floating_point() else t
                           for key, t in model.state_dict().items()})  # fmt: skip
    return model.eval(), fill.normal("images of three", (3, 3, *SIZES.get(name, (SIZE, SIZE))))


@pytest.mark.parametrize("name", some(*OFTEN))
@torch.no_grad()
def test_one_file_for_any_batch(name: str, tmp_path: Path) -> None:
    model, images = made(name)
    program = program_of(model, (images[:2],))
    proto = translate(program, [to_onnx.INPUT], [to_onnx.OUTPUT])  # with our words alone
    path = tmp_path / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    sessions = [open_session(path, backend=backend, threads=1) for backend in ("onnxruntime", "openvino")]
    for count in (1, 2, 3):
        wanted = model(images[:count])
        torch.testing.assert_close(program.module()(images[:count]), wanted, atol=1e-5, rtol=0)
        for session in sessions:
            found = session.run({to_onnx.INPUT: images[:count].numpy()})[to_onnx.OUTPUT]
            np.testing.assert_allclose(found, wanted.numpy(), atol=1e-4, rtol=0, err_msg=f"{session.backend} {count}")


@pytest.mark.parametrize("name", some("dynamicvit", "tome"))
@torch.no_grad()
def test_compiling_needs_no_break(name: str) -> None:
    """TorchDynamo follows the whole model, in evaluation; what a compiler makes of it is tested with the slow ones."""
    model, images = made(name)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="eager")(images), model(images))


@pytest.mark.slow
@pytest.mark.parametrize("name", list(HOSTS))
@torch.no_grad()
def test_compiled_models_answer_alike(name: str) -> None:
    model, images = made(name)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True)
    for count in (1, 2, 3):
        torch.testing.assert_close(compiled(images[:count]), model(images[:count]), atol=1e-4, rtol=0)
