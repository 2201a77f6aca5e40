# SPDX-License-Identifier: Apache-2.0
"""Reading the files of YOLOv7's authors: live modules, taken as data and rebuilt; everything else is refused."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import fill
import pytest
import torch
import yolo_files
from torch import Tensor, nn

import featherweight
from featherweight import artifact, official, sources
from featherweight.errors import InputError, OptionError
from featherweight.models import zoo
from featherweight.models.yolov7 import YOLOv7
from featherweight.verbs.converting import convert

SMALL = "C8/3s2 C8/3s2 C16/3s2 ReOrg C16/3:relu DownC16 Rep16 MP SPPCSPC16 UP cat<9,6 SP5 C16/1 C16/1<10 add<13,12"
GRAPHS = {
    "plain": f"{SMALL} Detect<14,8",
    "auxiliary": f"{SMALL} C16/3<14 C16/3<8 C8/3<10 C8/3<8 Detect<15,16+17,18",
}


def detector(form: str = "deploy", *, graph: str = "plain", **config: Any) -> YOLOv7:
    """A small detector of a graph of its own, with weights of sensible size that fp16 holds exactly."""
    own = {"anchors": [[10, 20, 30, 41.5], [50, 60, 70.25, 80]], "variant": "custom", "graph": GRAPHS[graph]}
    model = zoo.create("yolov7", form=form, **{"num_classes": 3, **own, **config})
    state = fill.fill_(model.state_dict(), keep=("anchor",))
    model.load_state_dict({key: t.half() if t.is_floating_point() else t for key, t in state.items()})
    return model.eval()  # type: ignore[return-value]


def same(one: nn.Module, other: nn.Module) -> bool:
    own, theirs = one.state_dict(), other.state_dict()
    return own.keys() == theirs.keys() and all(torch.equal(own[key], theirs[key]) for key in own)


@torch.no_grad()
def maps(model: nn.Module) -> tuple[Tensor, ...]:
    return model(fill.image("yolo", (2, 3, 128, 64)))


def create(path: Path, **config: Any) -> YOLOv7:
    return featherweight.create("yolov7", variant="custom", weights=path, **config)


@pytest.mark.parametrize(("form", "graph"), [("deploy", "plain"), ("training", "plain"), ("training", "auxiliary")])
def test_a_graph_of_its_own_comes_back_with_classes_anchors_and_names(tmp_path: Path, form: str, graph: str) -> None:
    model = detector(form, graph=graph)
    again = create(yolo_files.write(tmp_path / "x.pt", model))
    assert again.config == model.config
    assert same(again, model) and not again.training
    assert artifact.record_of(again).classes == ("kind 0", "kind 1", "kind 2")  # type: ignore[union-attr]
    assert all(torch.equal(one, other) for one, other in zip(maps(model), maps(again), strict=True))


@pytest.mark.parametrize("name", ["yolov7_tiny", "yolov7_tiny_silu"])
def test_the_variant_is_recognised_and_another_is_named(tmp_path: Path, name: str) -> None:
    model = zoo.create(name, form="training", num_classes=2)
    path = yolo_files.write(tmp_path / "x.pt", model)
    again = featherweight.create(name, weights=path)
    assert again.config == model.config
    others = {"yolov7_tiny": "yolov7_tiny_silu", "yolov7_tiny_silu": "yolov7"}
    with pytest.raises(InputError, match=rf"holds {name} \(training form, 2 classes\), not {others[name]}; create"):
        featherweight.create(others[name], weights=path)
    with pytest.raises(InputError, match=f"holds {name} .* not a VisionTransformer"):
        featherweight.create("deit_tiny", weights=path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["yolov7", "yolov7_w6", "yolov7_e6e"])
def test_larger_variants_are_recognised(tmp_path: Path, name: str) -> None:
    for form in ("deploy", "training"):
        model = zoo.create(name, form=form, num_classes=1)
        assert featherweight.create(name, weights=yolo_files.write(tmp_path / "x.pt", model)).config == model.config


def test_an_interrupted_run_gives_its_average(tmp_path: Path) -> None:
    model, average = detector("training"), detector("training")
    with torch.no_grad():
        average.head.m[0].bias.fill_(0.5)
    told: list[str] = []
    again = create(yolo_files.write(tmp_path / "x.pt", model, ema=average), tell=told.append)
    assert same(again, average) and "took its moving average" in told[0]


def test_another_number_of_classes_is_a_note_and_the_rest_stays(tmp_path: Path) -> None:
    model = detector()
    path = yolo_files.write(tmp_path / "x.pt", model)
    told: list[str] = []
    again = create(path, num_classes=7, form="training", tell=told.append)
    assert again.head.num_classes == 7 and len(again.head.ia) == 2
    assert told == [f"{path}: 3 classes in the file, 7 here; boxes and objectness stay, the classes start untrained"]
    for before, after in zip(maps(model), maps(again), strict=True):
        torch.testing.assert_close(after[..., :5], before[..., :5], atol=1e-5, rtol=1e-5)
    state, found = model.state_dict(), again.state_dict()
    assert all(torch.equal(state[key], found[key]) for key in state if not key.startswith("model.15.m."))
    assert torch.equal(again.head.anchors, model.head.anchors)


def test_a_model_that_names_its_classes_keeps_those_of_a_file_by_name(tmp_path: Path) -> None:
    model, told = detector("training"), list[str]()
    path = yolo_files.write(tmp_path / "x.pt", model)
    mine = detector("training", num_classes=2)
    artifact.remember(mine, classes=("other", "kind 2"))
    again = official.load(mine, path, tell=told.append)
    assert "boxes, objectness and 1 class of the same name stay, the others start untrained" in told[-1]
    assert artifact.record_of(again).classes == ("other", "kind 2")  # type: ignore[union-attr]
    for before, after in zip(maps(model), maps(again), strict=True):
        torch.testing.assert_close(
            after[..., [0, 1, 2, 3, 4, 6]], before[..., [0, 1, 2, 3, 4, 7]], atol=1e-5, rtol=1e-5
        )


def test_training_becomes_deploy_and_back_with_the_same_answer(tmp_path: Path) -> None:
    model = detector("training", graph="auxiliary")
    deployed = create(yolo_files.write(tmp_path / "x.pt", model), form="deploy")
    assert len(deployed.model) == len(model.model) - 2 and not deployed.head.ia and not deployed.head.m2
    for one, other in zip(maps(model), maps(deployed), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    told: list[str] = []
    again = create(yolo_files.write(tmp_path / "y.pt", deployed), form="training", tell=told.append)
    for one, other in zip(maps(again), maps(deployed), strict=True):
        torch.testing.assert_close(one, other, atol=2e-3, rtol=2e-3)  # the file has fp16


def test_a_state_dict_tells_form_classes_and_anchors(tmp_path: Path) -> None:
    model = zoo.create("yolov7_tiny", form="training", num_classes=4, anchors=[[1, 2], [3, 4], [5, 6]])
    torch.save({"model": model.state_dict()}, tmp_path / "x.pt")
    again = featherweight.create("yolov7_tiny", weights=tmp_path / "x.pt")
    assert again.config == model.config and same(again, model)
    loaded = official.load(zoo.create("yolov7_tiny", num_classes=4), tmp_path / "x.pt")
    assert loaded.config.form == "deploy" and loaded.config.anchors == model.config.anchors
    with pytest.raises(InputError, match=r"its tensors are those of yolov7_tiny \(training form\), not of yolov7"):
        featherweight.create("yolov7", weights=tmp_path / "x.pt")


def test_convert_writes_a_folder(tmp_path: Path) -> None:
    model = detector("training")
    path = yolo_files.write(tmp_path / "x.pt", model, names={0: "cell", 1: "plate", 2: "white"})
    found = convert(path, tmp_path / "out", fused=True)
    assert found["classes"] == ["cell", "plate", "white"] and found["model"].startswith("custom (training form")
    again = artifact.load(tmp_path / "out")
    record = artifact.record_of(again)
    assert record is not None and record.task == "object-detection" and record.preprocess.resize == "letterbox"
    assert record.preprocess.size == again.config.image_size and record.note["converted_from"]["file"] == "x.pt"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"model.json", "model.safetensors"}
    for one, other in zip(maps(model), maps(again), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_a_file_is_a_model_wherever_one_is_named(tmp_path: Path) -> None:
    path = yolo_files.write(tmp_path / "x.pt", detector("training"))
    assert same(sources.module(sources.find(path)), detector("training"))
    torch.save({"model": detector().state_dict()}, path)
    with pytest.raises(OptionError, match=r"arch: is missing: .* holds weights only"):
        sources.module(sources.find(path))


def unknown(live: nn.Module, kinds: Any) -> None:
    live.model[4].__class__ = kinds["Foreign"]


def bent(live: nn.Module, kinds: Any) -> None:
    live.model[2].f = 7


def eps(live: nn.Module, kinds: Any) -> None:
    live.model[1].bn.eps = 1e-5


def slope(live: nn.Module, kinds: Any) -> None:
    live.model[0].act = nn.LeakyReLU(0.2)


def lacking(live: nn.Module, kinds: Any) -> None:
    live.model[1].conv.weight = nn.Parameter(torch.zeros(8, 8, 5, 3))


def strides(live: nn.Module, kinds: Any) -> None:
    live.model[-1].stride = torch.tensor([8.0, 16.0])


def classes(live: nn.Module, kinds: Any) -> None:
    live.model[-1].nc = 80


def not_finite(live: nn.Module, kinds: Any) -> None:
    live.model[0].conv.weight.data[0] = float("nan")


def no_head(live: nn.Module, kinds: Any) -> None:
    live.model = live.model[:-1]


def itself(live: nn.Module, kinds: Any) -> None:
    live.model[4]._modules["part"] = live.model[4]


def text(live: nn.Module, kinds: Any) -> None:
    live.model[4]._parameters["weight"] = "text"


REFUSED = {
    unknown: "layer 4 is a Foreign; blocks known here: Conv, RepConv",
    bent: "layer 2 reads 7, which is not before it",
    eps: "layer 1, Conv, is not as ours: BatchNorm2d with eps 1e-05",
    slope: "layer 0, Conv, is not as ours: the activation LeakyReLU 0.2",
    lacking: "tensor 'model.1.conv.weight' has shape",
    strides: r"says its strides are \[8.0, 16.0\], but its layers make",
    classes: "tensor 'model.15.m.0.weight' has shape",
    not_finite: "holds NaN or infinity",
    no_head: "ends with Shortcut; heads known here: Detect",
    text: "'model.model.4.weight' is not a tensor",
    itself: "its modules lie more than 16 deep",
}


@pytest.mark.parametrize("change", list(REFUSED), ids=lambda change: change.__name__)
def test_what_is_not_ours_is_refused_with_the_reason(tmp_path: Path, change: Any) -> None:
    path = yolo_files.write(tmp_path / "x.pt", detector(), change=change)
    with pytest.raises(InputError, match=REFUSED[change]):
        create(path)


HOSTILE = {
    "a call": b"cposix\nsystem\n(X\x04\x00\x00\x00truetR",
    "a dotted name": b"cmodels.yolo\nModel.__init__.__globals__\n",
    "arguments for a module": b"cmodels.common\nsystem\n(X\x04\x00\x00\x00truetR",
    "state for a class": b"cmodels.yolo\nModel\n}b",
    "a class of torch's that is no layer": b"ctorch.nn.modules.module\n_global_forward_hooks\n",
    "a package beside": b"cmodels_evil.yolo\nModel\n)\x81",
    "attributes": b"c__builtin__\ngetattr\n(cmodels.yolo\nModel\nX\x01\x00\x00\x00atR",
}


@pytest.mark.parametrize("place", ["model", "optimizer"])
@pytest.mark.parametrize("name", list(HOSTILE))
def test_hostile_files_are_refused_wherever_it_stands(tmp_path: Path, name: str, place: str) -> None:
    text = place.encode()
    program = b"\x80\x02}X" + len(text).to_bytes(4, "little") + text + HOSTILE[name] + b"s."
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/version", "3\n")
    with pytest.raises(InputError) as caught:
        featherweight.create("yolov7_tiny", weights=tmp_path / "x.pt")
    assert caught.value.reason == "unsafe_pickle"


def test_names_come_from_the_model_where_its_average_has_none(tmp_path: Path) -> None:
    def unnamed(live: nn.Module, kinds: Any) -> None:
        live.names = ["a", "b", "c"]

    path = yolo_files.write(tmp_path / "x.pt", detector(), ema=detector(), change=unnamed, names=None)
    again = create(path)
    assert artifact.record_of(again).classes == ("a", "b", "c")  # type: ignore[union-attr]


def test_anchors_that_disagree_are_those_of_the_boxes(tmp_path: Path) -> None:
    def lost(live: nn.Module, kinds: Any) -> None:
        live.model[-1].anchors.fill_(1.0)

    told: list[str] = []
    model = detector()
    again = create(yolo_files.write(tmp_path / "x.pt", model, change=lost), tell=told.append)
    assert torch.equal(again.head.anchors, model.head.anchors) and "anchors and anchor_grid disagree" in told[0]
