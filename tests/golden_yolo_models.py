# SPDX-License-Identifier: Apache-2.0
"""What golden files of YOLOv7 models ask: names and shapes, raw and decoded outputs, fused models, layer by layer."""

from __future__ import annotations

import copy
import hashlib
import math
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fill
import torch
from golden_case import Case, at
from golden_models import in_training, parameters
from torch import Tensor, nn

import featherweight
from featherweight import artifact, counting, official
from featherweight.convs import RepConv
from featherweight.convs import fused as fused_block
from featherweight.errors import InputError
from featherweight.methods.fuse import fuse
from featherweight.models.yolov7 import YOLOv7
from featherweight.runtime.nms import Nms
from featherweight.tasks.detection.decode import decode
from featherweight.tasks.detection.tta import augmented

RTOL = 2e-5  # of a tensor's standard deviation: right and wrong differ by 6e-3 and more, two right ones by 5e-6


def detector(case: Case) -> None:
    """A YOLOv7 model with stand-in weights."""
    model = featherweight.create(case.reference["family"], **case.reference["config"])
    _facts(case, model)
    loaded = stand_in(case, model).eval()
    with torch.no_grad():
        fused = fuse(loaded)
        _fused_facts(case, loaded, fused)
        if case.compiled:
            torch.compiler.reset()
            loaded.compile(fullgraph=True)
        for name in case.reference["inputs"]:
            _outputs(case, loaded, f"outputs.{name}", picture(case, name))
            if at(case.reference, f"fused.outputs.{name}"):
                _outputs(case, fused, f"fused.outputs.{name}", picture(case, name))
        _layers(case, model, stand_in(case, model))


def checkpoint(case: Case) -> None:
    """Files in the official layout, which lie beside the golden file or in a folder beside its own."""
    places = {path.name: path for path in sorted(case.path.resolve().parents[1].rglob("*.pt"))}
    here = {name: places[name] for name in case.reference if name in places}
    if not here:
        case.wrong.append(f"none of {', '.join(case.reference)} lies below {case.path.resolve().parents[1]}")
    for name in case.reference:
        if name not in here:
            case.seen.add(name)
            case.told.append(f"{name} is not here")
            continue
        found = official.read(here[name]).detector
        assert found is not None
        variant = found.config["variant"]
        model = featherweight.create("yolov7", variant=variant, weights=here[name], tell=case.told.append)
        _checkpoint(case, name, here[name], model, found.tensors)


def _checkpoint(case: Case, name: str, path: Path, model: nn.Module, tensors: Any) -> None:
    held = case.reference[name]
    head: Any = model.head
    record = artifact.record_of(model)
    values = hashlib.sha256(b"".join(key.encode() + bytes(tensor.data) for key, tensor in tensors.items()))
    facts = {
        "sha256_file": hashlib.sha256(path.read_bytes()).hexdigest(),
        "sha256_names_and_fp16_values": values.hexdigest(),
        "tensors": len(tensors),
        "numbers": sum(math.prod(tensor.shape) for tensor in tensors.values()),
        "params": parameters(model),
        "names_first": list(record.classes[:4]) if record else [],
        "bn_eps": next(m.eps for m in model.modules() if isinstance(m, nn.BatchNorm2d)),
    }
    for fact, value in facts.items():
        if held.get(fact, value) != value:
            case.wrong.append(f"{name}.{fact}: {value}, not {held[fact]}")
    images = fill.image(held["image"], held["shape"])
    with torch.no_grad():
        raw, fused = model(images), fuse(model)
        decoded = decode(raw, head.anchors, head.strides)
        again = decode(fused(images), fused.head.anchors, head.strides)
    compare_all(case, f"{name}.raw", raw)
    compare(case, f"{name}.decoded", decoded)
    compare(case, f"{name}.decoded_fused", again)
    kept = Nms(0.001, 0.65)(decoded[0].double().numpy())
    suppressed = f"{name}.nms_conf0.001_iou0.65_best_class"
    if len(kept) != at(case.reference, f"{suppressed}.count"):
        case.wrong.append(f"{suppressed}: {len(kept)} boxes")
    compare(case, f"{suppressed}.digest", torch.from_numpy(kept))


def hostile(path: Path) -> list[str]:
    """What an archive of hostile files says that was not refused with a reason; each is only read."""
    wrong, count = [], 0
    with tarfile.open(path) as archive, tempfile.TemporaryDirectory() as folder:
        for member in archive.getmembers():
            source = archive.extractfile(member)
            if source is None:
                continue
            count += 1
            file = Path(folder) / f"{count}{Path(member.name).suffix}"
            file.write_bytes(source.read())
            try:
                official.read(file)
                wrong.append(f"{member.name} was read")
            except InputError as error:
                if not error.reason or not error.text:
                    wrong.append(f"{member.name}: refused without a reason")
    return wrong or ([] if count else ["holds no file"])


def picture(case: Case, name: str) -> Tensor:
    source = case.reference["inputs"][name]
    return fill.image(source["image"], source["shape"])


def stand_in(case: Case, model: nn.Module) -> nn.Module:
    """A copy with the file's stand-in weights, through a file in the official layout and the reader.

    Kernels outside the head are multiplied by a gain, without which so deep a net forgets its input; multiplicative
    implicit vectors are around 1.
    """
    recipe = case.reference["recipe"]
    state = fill.fill_(model.state_dict(), keep=tuple(recipe["keep"]))
    for key, tensor in state.items():
        if tensor.ndim == 4 and key.endswith(".weight") and not key.startswith(recipe["head"]):
            tensor *= recipe["gain"]
        elif key.startswith(f"{recipe['head']}im."):
            tensor += 1.0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "official.pt"
        torch.save({"model": state}, path)
        return official.load(model, path, tell=lambda text: case.wrong.append(f"adapted: {text}"))


def compare(case: Case, place: str, found: Tensor) -> None:
    """A tensor of ours against a digest, relative to its standard deviation."""
    case.compare(place, found, atol=RTOL * min(1.0, at(case.reference, place)["std"]))


def compare_all(case: Case, place: str, found: Sequence[Tensor]) -> None:
    if len(at(case.reference, place)) != len(found):
        case.wrong.append(f"{place}: {len(found)} levels, not {len(at(case.reference, place))}")
    for level, tensor in enumerate(found):
        compare(case, f"{place}.{level}", tensor)


def _facts(case: Case, model: nn.Module) -> None:
    """Everything about the model that needs no numbers."""
    assert isinstance(model, YOLOv7)
    head, held = model.head, case.reference
    own = [[key, list(t.shape), str(t.dtype).removeprefix("torch.")] for key, t in model.state_dict().items()]
    if own != held["state_dict"]:
        odd = [row for row in own if row not in held["state_dict"]] or held["state_dict"]
        case.wrong.append(f"state_dict: {len(own)} entries, not {len(held['state_dict'])}, or others: {odd[0]}")
    case.equal("params", parameters(model))
    case.equal("layers", len(model.model))
    case.equal("nl", len(head.strides))
    case.equal("nc", head.num_classes)
    case.equal("na", head.num_anchors)
    case.equal("strides", list(map(float, head.strides)))
    if not torch.allclose(head.anchor_grid.flatten(1), torch.tensor(held["anchors_px"]), rtol=1e-6):
        case.wrong.append(f"anchors_px: {head.anchor_grid.flatten(1).tolist()}, not {held['anchors_px']}")
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    case.equal("bn_eps", sorted({m.eps for m in norms}))
    case.equal("bn_momentum", sorted({m.momentum for m in norms}))
    with torch.device("meta"):
        outline = featherweight.create(held["family"], **held["config"])
    _near(case, "gflops_conv_only_640", _gflops(outline, branches=True), rel=1e-6)
    _near(case, "fused.gflops_conv_only_640", _gflops(outline, branches=False), rel=1e-6)


class _Everything(nn.Module):
    """A detector that computes every row, also those of auxiliary branches, and with `branches` their heads too."""

    def __init__(self, model: YOLOv7, branches: bool) -> None:
        super().__init__()
        self.detector, self.branches = model, branches

    def forward(self, images: Tensor) -> Any:
        graph, head = self.detector.graph, self.detector.head
        maps = self.detector.rows(images, graph.lead + graph.aux)
        more = head.aux(maps[graph.levels :]) if self.branches and graph.aux else ()
        return head(maps[: graph.levels]), more


def _gflops(outline: YOLOv7, *, branches: bool) -> float:
    """As the authors count, convolutions only: the fused model keeps dead rows and has lost the auxiliary heads."""
    if not branches:
        outline = copy.deepcopy(outline)
        for row, layer in enumerate(outline.model[:-1]):
            if isinstance(layer, RepConv):
                outline.model[row] = fused_block(layer)
    with torch.device("meta"):
        return 2e-9 * counting.macs(_Everything(outline, branches), torch.zeros(1, 3, 640, 640))


def _near(case: Case, place: str, found: float, *, rel: float) -> None:
    wanted = at(case.reference, place)
    if wanted is not None and not abs(found - wanted) <= rel * abs(wanted):
        case.wrong.append(f"{place}: {found:.9g}, not {wanted:.9g}")


def _outputs(case: Case, model: nn.Module, place: str, images: Tensor) -> None:
    """Raw maps, what they decode to, auxiliary maps, and the answer to three sizes."""
    raw = model(images)
    head: Any = model.head
    decoded = decode(raw, head.anchors, head.strides)
    compare_all(case, f"{place}.raw", raw)
    for name, found in (("decoded", decoded), ("boxes", decoded[..., :4]), ("scores", decoded[..., 4:])):
        if at(case.reference, f"{place}.{name}"):
            compare(case, f"{place}.{name}", found)
    if at(case.reference, f"{place}.aux"):
        training = in_training(model, norms=False)
        training(images)
        compare_all(case, f"{place}.aux", training.aside.take("aux"))
        model.eval()
    if at(case.reference, f"{place}.tta"):
        compare(case, f"{place}.tta", augmented(model, images))


def _fused_facts(case: Case, loaded: nn.Module, fused: nn.Module) -> None:
    """Counts and kernels of the deployed model, which has neither implicit vectors nor auxiliary branches."""
    held = case.reference["fused"]
    case.equal("fused.params_trainable_path", parameters(fused))
    assert isinstance(loaded, YOLOv7) and isinstance(fused, YOLOv7)
    dropped = 2 * len(loaded.head.ia) + 2 * len(loaded.head.m2) + 2 * len(loaded.graph.aux)
    case.equal("fused.state_dict_entries", len(fused.state_dict()) + dropped)
    for name, tensor in fused.head.m[0].named_parameters():
        compare(case, f"fused.head_m0.{name}", tensor)
    for number, (index, kernels) in enumerate(held["repconv"]):
        for name in kernels:
            compare(case, f"fused.repconv.{number}.1.{name}", getattr(fused.model[index].conv, name))


def _layers(case: Case, model: nn.Module, loaded: nn.Module) -> None:
    """Mean and deviation of every layer's output, the first wrong one alone: what follows it is wrong by it."""
    seen: dict[int, Tensor] = {}
    layers: Any = loaded.model
    handles = [
        layer.register_forward_hook(lambda _m, _a, out, index=index: seen.__setitem__(index, out))
        for index, layer in enumerate(layers[:-1])
    ]
    in_training(loaded, norms=False)(picture(case, "sq"))  # in evaluation rows of auxiliary branches do not run
    for handle in handles:
        handle.remove()
    for index, _, _, shape, mean, std in case.reference["layer_stats_sq"]:
        out = seen[index][0].double()
        near = abs(float(out.mean()) - mean) <= 1e-4 * std and abs(float(out.std(unbiased=False)) - std) <= 1e-4 * std
        if list(out.shape) != shape or not near:
            case.wrong.append(f"layer {index}: {list(out.shape)}, {float(out.mean()):.6g} {float(out.std()):.6g}")
            return
