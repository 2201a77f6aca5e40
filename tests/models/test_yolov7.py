# SPDX-License-Identifier: Apache-2.0
"""YOLOv7's models: the wiring of every variant, sizes, anchors, biases, forms; compiled and exported."""

from __future__ import annotations

import copy
import math
from typing import Any

import fill
import pytest
import torch
from golden_files import golden
from torch import nn
from torch.export import Dim

import featherweight
from featherweight.errors import OptionError
from featherweight.models import yolov7_graph, yolov7_text, zoo
from featherweight.models.yolov7 import YOLOv7, YOLOv7Config
from featherweight.models.yolov7_blocks import SPPCSPC, ReOrg, Widest
from featherweight.models.yolov7_forms import changed

WIRING = golden("yolo/wiring")
TINY = "C8/3s2 C8/3s2 C8/3s2 C16/3s2 C16/1 C16/1<3 cat<5,4 C16/3 C16/3s2<7 Detect<2,7,8"


def tiny(**config: Any) -> YOLOv7:
    model = zoo.create("yolov7", **{"variant": "custom", "graph": TINY, "num_classes": 2, **config})
    model.load_state_dict(fill.fill_(model.state_dict(), keep=("anchor",)))
    return model.eval()  # type: ignore[return-value]


@pytest.mark.parametrize("name", list(WIRING))
def test_the_wiring_is_the_authors(name: str) -> None:
    variant, form = name.split()
    assert yolov7_text.write(YOLOv7Config(variant=variant, form=form).wired) == WIRING[name]
    assert yolov7_text.parse(WIRING[name]).rows == YOLOv7Config(variant=variant, form=form).wired.rows


def test_scaled_variants_widen_transitions_only() -> None:
    for scaled, base, width in ((yolov7_graph.X, yolov7_graph.V7, 1.25), (yolov7_graph.D6, yolov7_graph.W6, 1.5)):
        for one, other in zip(scaled.stages, base.stages, strict=True):
            assert one[1] == other[1] and one[2] == other[2] * width
    assert [yolov7_graph.E6.depth, yolov7_graph.D6.depth, yolov7_graph.X.depth] == [6, 8, 6]
    with pytest.raises(OptionError, match="variant: no 'yolov7_x'; did you mean 'yolov7x'"):
        YOLOv7Config(variant="yolov7_x")


PARAMETERS = {  # with 80 classes, as counted with the authors' code
    "yolov7": (37_620_125, 37_622_682), "yolov7x": (71_344_389, 71_347_394), "yolov7_w6": (70_426_236, 82_312_436),
    "yolov7_e6": (97_246_652, 111_898_292), "yolov7_d6": (133_810_044, 154_709_364),
    "yolov7_e6e": (151_757_244, 166_408_884),
}  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow) if n in ("yolov7x", "yolov7_e6", "yolov7_d6") else n for n in PARAMETERS],
)
def test_sizes_of_the_larger_variants(name: str) -> None:
    for form, count in zip(("deploy", "training"), PARAMETERS[name], strict=True):
        with torch.device("meta"):
            model = featherweight.create(name, form=form)
            maps = model.train()(torch.zeros(2, 3, 256, 128))
        assert sum(p.numel() for p in model.parameters()) == count
        assert [tuple(m.shape) for m in maps] == [(2, 3, 256 // s, 128 // s, 85) for s in model.head.strides]
        p6 = len(model.head.strides) == 4
        assert ("aux" in model.aside) == (p6 and form == "training")
        if "aux" in model.aside:
            assert [m.shape for m in model.aside.take("aux")] == [m.shape for m in maps]


def test_any_multiple_of_the_stride_and_no_other_size() -> None:
    model = tiny()
    assert model(torch.zeros(1, 3, 32, 96))[2].shape == (1, 3, 1, 3, 7)
    for size in ((32, 100), (16, 32), (0, 32)):
        with pytest.raises(OptionError, match=rf"image_size: {size[0]} x {size[1]} is no multiple of the stride 32; "):
            model(torch.zeros(1, 3, *size))
    with pytest.raises(OptionError, match=r"image_size: \(640, 650\) is not a height and a width in multiples of 32"):
        YOLOv7Config(image_size=(640, 650))
    assert YOLOv7Config(variant="yolov7_w6").image_size == (1280, 1280)
    assert YOLOv7Config(image_size=320).image_size == (320, 320)


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"anchors": 3}, "anchors: must be 3 levels of w, h pairs in pixels, equally many in each, not 3"),
        ({"anchors": [[1, 2], [3, 4]]}, "must be 3 levels"),
        ({"anchors": [[1, 2], [3, 4], [5, -6]]}, r"not \[5, -6\]"),
        ({"anchors": [[1, 2, 3, 4], [3, 4], [5, 6]]}, r"equally many in each, not \[2, 1, 1\]"),
        ({"form": "deployed"}, "form: 'deployed' is not one of deploy, training"),
        ({"activation": "silu2"}, "activation: no 'silu2'; did you mean 'silu'"),
        ({"variant": "custom"}, "graph: belongs to variant='custom', and that variant needs one"),
        ({"num_classes": 0}, "0 is not in 1"),
    ],
)
def test_a_configuration_that_cannot_be_is_told(config: dict[str, Any], text: str) -> None:
    with pytest.raises(OptionError, match=text):
        featherweight.create("yolov7", **config)


@pytest.mark.parametrize(
    ("graph", "text"),
    [
        ("C8/3", "must have 2 to 2000 words, not 1"),
        ("C8/3 C8/3<1 Detect<0", "'C8/3<1' reads a row that does not stand before it"),
        ("C8/3 B8/3 Detect<0", "row 1: 'B8/3' is no row; known: C, MP"),
        ("C8/3 cat<0 Detect<0", "row 1: 'cat<0' does not say what cat needs"),
        ("C8/4 MP Detect<0", "row 0: 'C8/4' does not say what conv needs"),
        ("C8/3 C8/3", "ends with 'C8/3', not with Detect"),
        ("C8/3 MP C4/3<0 cat<2,1 Detect<3", "row 3: cat of maps that differ"),
        ("C8/3 C4/3 add<1,0 Detect<2", "row 2: add of maps that differ"),
        ("C8/3 C8/3:gelu Detect<1", "activation: no 'gelu'"),
    ],
)
def test_a_graph_that_cannot_be_is_told(graph: str, text: str) -> None:
    with pytest.raises(OptionError, match=text):
        zoo.create("yolov7", variant="custom", graph=graph, anchors=[[8, 8]])


def test_anchors_are_kept_in_strides_and_pixels() -> None:
    head = tiny(anchors=[[8, 16], [[32, 16]], [32, 96]]).head
    assert head.anchors.tolist() == [[[1, 2]], [[2, 1]], [[1, 3]]] and head.num_anchors == 1
    assert head.anchor_grid.shape == (3, 1, 1, 1, 1, 2) and head.strides == (8, 16, 32)
    head.set_anchors(torch.full((3, 1, 2), 64.0))
    assert head.anchors.flatten().tolist() == [8, 8, 4, 4, 2, 2] and head.anchor_grid.unique().tolist() == [64]


@pytest.mark.parametrize("classes", [1, 80])
def test_biases_expect_few_objects(classes: int) -> None:
    torch.manual_seed(0)
    head = tiny(num_classes=classes).head
    for conv, stride in zip(head.m, head.strides, strict=True):
        nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
        assert stride in (8, 16, 32)
    head.init_biases()
    for conv, wanted in zip(head.m, (-6.6846, -5.2983, -3.9120), strict=True):
        bias = conv.bias.detach().view(3, -1)  # type: ignore[operator, union-attr]
        assert bias[:, 4].tolist() == pytest.approx([wanted] * 3, abs=1e-4) and not bias[:, :4].any()
        assert float(bias[0, 5]) == pytest.approx(math.log(0.6 / (classes - 0.99)))
    for conv in head.m:
        nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    head.init_biases(torch.arange(1.0, classes + 1))
    first = head.m[0].bias.detach().view(3, -1)[0, 5:]  # type: ignore[operator, union-attr]
    assert float(first.exp().sum()) == pytest.approx(1.0)


def test_reorg_changes_the_row_first() -> None:
    x = torch.arange(8.0).view(1, 2, 2, 2)
    assert ReOrg()(x).flatten().tolist() == [0, 4, 2, 6, 1, 5, 3, 7]


def test_pools_after_each_other_are_pools_beside_each_other() -> None:
    x = torch.randn(1, 2, 20, 17)
    five = Widest(5)
    for times, kernel in ((1, 5), (2, 9), (3, 13)):
        x2 = x
        for _ in range(times):
            x2 = five(x2)
        wanted = nn.functional.max_pool2d(x, kernel, 1, kernel // 2)
        assert torch.equal(x2, wanted) and torch.equal(Widest(kernel)(x), wanted)
    assert SPPCSPC(4, 6)(torch.randn(1, 4, 8, 8)).shape == (1, 6, 8, 8)


def test_rows_gives_what_is_asked_and_computes_no_more() -> None:
    model = tiny()
    ran: list[int] = []
    for number, layer in enumerate(model.model):
        layer.register_forward_hook(lambda *_, number=number: ran.append(number))
    first, second = model.rows(torch.zeros(1, 3, 32, 32), (2, 4))
    assert (first.shape[1], second.shape[1]) == (8, 16) == (model.channels(2), model.channels(4))
    assert ran == [0, 1, 2, 3, 4]


def test_aux_goes_aside_in_training_only_and_copies_start_empty() -> None:
    graph = TINY.replace("Detect<2,7,8", "C8/3<2 C8/3<7 C8/3<8 Detect<2,7,8+9,10,11")
    model = tiny(graph=graph, form="training").train()
    images = torch.rand(2, 3, 32, 32)
    maps = model(images)
    assert isinstance(maps, tuple) and [m.shape for m in model.aside.aux] == [m.shape for m in maps]
    assert "aux" not in copy.deepcopy(model).aside
    sum(m.sum() for m in (*maps, *model.aside.take("aux"))).backward()
    assert all(p.grad is not None for p in model.parameters())
    assert isinstance(model.eval()(images), tuple) and "aux" not in model.aside


def test_compiled_without_a_break_and_exported_with_free_sizes() -> None:
    model = tiny(form="training")
    images = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        wanted = model(images)
        compiled = torch.compile(model, backend="eager", fullgraph=True)(images)
    sizes = {0: Dim("batch", min=1, max=8), 2: 32 * Dim("h", min=2, max=9), 3: 32 * Dim("w", min=2, max=9)}
    program = torch.export.export(model, (images,), dynamic_shapes=(sizes,)).module()
    with torch.no_grad():
        again, other = program(images), program(torch.rand(1, 3, 96, 64))
    for one, two, three in zip(wanted, compiled, again, strict=True):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(one, three, atol=1e-5, rtol=1e-5)
    assert other[0].shape == (1, 3, 12, 8, 7)


def test_another_form_or_other_classes_keep_what_fits() -> None:
    model = tiny(form="training")
    told: list[str] = []
    new = changed(model, num_classes=5, anchors=[[1, 2, 3, 4, 5, 6]] * 3, tell=told.append)
    state, own = new.state_dict(), model.state_dict()
    assert told == ["2 classes in the file, 5 here; boxes and objectness stay, the classes start untrained"]
    assert all(torch.equal(state[key], own[key]) for key in own if not key.startswith("model.9."))
    assert new.head.anchor_grid.flatten().tolist() == [1, 2, 3, 4, 5, 6] * 3
    with pytest.raises(TypeError, match="custom has other layers than yolov7"):
        changed(model, variant="yolov7")
    changed(model, num_classes=5, anchors=[[1, 2, 3, 4]] * 3, tell=told.append)
    assert told[1:] == ["2 classes in the file, 5 here, and other anchors; the head starts untrained"]


@torch.no_grad()
@pytest.mark.parametrize("form", ["deploy", "training"])
def test_with_other_classes_boxes_objectness_and_classes_of_the_same_name_answer_as_before(form: str) -> None:
    model, told = tiny(form="training", num_classes=3), list[str]()
    names = {"names": ["cat", "dog", "bird"], "wanted": ["Bird ", "fish", "cow", "cat"]}
    new = changed(model, num_classes=4, form=form, tell=told.append, **names)
    kept = "boxes, objectness and 2 classes of the same name stay"
    assert told == [f"3 classes in the file, 4 here; {kept}, the others start untrained"]
    images = fill.image("classes", (2, 3, 64, 64))
    for before, after, conv in zip(model(images), new(images), new.head.m, strict=True):
        torch.testing.assert_close(after[..., :5], before[..., :5], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(after[..., [5, 8]], before[..., [7, 5]], atol=1e-5, rtol=1e-5)
        fresh = conv.bias.view(3, -1)[:, [6, 7]]  # type: ignore[union-attr, operator]
        assert bool((fresh < math.log(0.6 / 3.01) + 1).all()) and float(fresh.mean()) < -1
        assert not torch.equal(after[..., 6], before[..., 6])


@torch.no_grad()
def test_as_many_other_classes_are_told_apart_by_name() -> None:
    model, told = tiny(form="training"), list[str]()
    images = fill.image("classes", (1, 3, 64, 64))
    same = changed(model, tell=told.append, names=["a", "b"], wanted=["a", "b"])
    assert told == [] and all(map(torch.equal, same(images), model(images)))
    swapped = changed(model, tell=told.append, names=["a", "b"], wanted=["b", "a"])
    assert told == ["2 classes in the file, 2 here; boxes, objectness and 2 classes of the same name stay"]
    for before, after in zip(model(images), swapped(images), strict=True):
        assert torch.equal(after[..., [6, 5]], before[..., 5:]) and torch.equal(after[..., :5], before[..., :5])


@torch.no_grad()
def test_a_single_class_was_never_trained_and_is_not_kept() -> None:
    told: list[str] = []
    new = changed(tiny(num_classes=1), num_classes=2, tell=told.append, names=["a"], wanted=["a", "b"])
    assert told == ["1 class in the file, 2 here; boxes and objectness stay, the classes start untrained"]
    assert new.head.num_classes == 2
