# SPDX-License-Identifier: Apache-2.0
"""Token labelling: the official losses and label maps, any teacher's maps, and labels that follow their picture."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from types import SimpleNamespace

import fill
import numpy as np
import pytest
import torch
from families import CLASSES, FAMILIES, PLAIN, SIZE, Images
from golden_files import agrees, golden
from torch import Tensor, nn
from torch.nn import functional as F

from featherweight.data import Augment, Batches
from featherweight.errors import Diverged, InputError, OptionError
from featherweight.layers import AuxLogits
from featherweight.methods import dynamicvit, label_maps
from featherweight.methods.dense import dense_logits, grid_of
from featherweight.methods.label_crops import cropped, transposed
from featherweight.methods.label_maps import LabelMaps
from featherweight.methods.token_labelling import TokenLabelling, blended, mixed, smoothed, soft_cross_entropy
from featherweight.models import zoo
from featherweight.options import describe
from featherweight.runtime.preprocess import Preprocess
from featherweight.surgery import apply, find
from featherweight.train import Pass, fit

OFFICIAL = golden("functions_lvvit")
LOSSES = [case for case in OFFICIAL["token_label_cross_entropy"] if case.startswith("target")]
LVVIT = FAMILIES["lvvit"]
WHOLE = torch.eye(3)[None, :2], torch.tensor([[0.0, 0.0, 1.0, 1.0]])
FIT = Preprocess(size=(SIZE, SIZE))


# The official numbers -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("case", LOSSES)
def test_losses_are_those_of_the_official_code(case: str) -> None:
    kind, *rest = case.split("|")
    said = dict(part.split("=") for part in rest)
    heads = AuxLogits().train()
    heads.aside.aux_logits = 2 * fill.normal("tl:aux", (2, 16, 10))
    heads.aside.box = torch.tensor(ast.literal_eval(said["bbox"]))
    labels = fill.normal("tl:target", (2, 10, 18)).softmax(1)
    method = TokenLabelling(cls_weight=float(said["cls"]), dense_weight=float(said["dense"]))
    if kind == "target3":
        shares = (0.5, 0.1) if said["ground_truth"] == "True" else (0.0, 0.0)
        label = blended(labels[:, :, 1], labels[:, :, 0], *shares)
        object.__setattr__(method, "targets", lambda *_: (label, labels[:, :, 2:].transpose(1, 2)))
        batch = {}
    else:
        batch = {
            "label": torch.tensor([0, 0]), "soft_label": fill.normal("tl:target2", (2, 10)).softmax(1)
        }  # fmt: skip
    run = Pass(heads, batch, 2 * fill.normal("tl:cls", (2, 10)), lambda model: None, 0.0, ("task",))
    terms = method.loss({"task": torch.tensor(7.0), "other": torch.tensor(0.0)}, run)
    assert list(terms) == ["task", "other", "tokens"]
    assert float(sum(terms.values())) == pytest.approx(OFFICIAL["token_label_cross_entropy"][case], rel=1e-6)


def stored_maps() -> tuple[Tensor, Tensor]:
    return (3 * fill.normal("lm:val", (2, 5, 18, 18))).abs(), fill.normal("lm:idx", (2, 20, 18, 18)).argsort(1)[:, :5]


def of_crop(top: Tensor, left: Tensor, height: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
    zero = torch.zeros_like(top)
    rows = [torch.stack(row, dim=1) for row in ((width, zero, left), (zero, height, top))]
    return torch.stack(rows, dim=1), torch.stack([left, top, left + width, top + height], dim=1)


def test_label_maps_are_cut_as_by_the_official_code() -> None:
    wanted, (scores, classes) = OFFICIAL["label_maps"], stored_maps()
    where = transposed(*of_crop(*torch.tensor(wanted["coords"]).unbind(1)))
    whole = cropped(scores, classes, *(t.expand(2, *t.shape[1:]) for t in WHOLE), (18, 18), 20)
    agrees(whole.transpose(1, 2).unflatten(2, (18, 18)), wanted["dense_map"], atol=2e-6)
    maps = LabelMaps(scores.numpy(), classes.numpy(), num_classes=20, made_from={})
    truth = smoothed(torch.zeros(2, dtype=torch.int64), 20, 0.1)
    assert float(truth[0, 0]) == pytest.approx(wanted["on_value"])
    geometry, crop = of_crop(*torch.tensor(wanted["coords"]).unbind(1))
    for side, name in ((14, "label_size_14"), (1, "label_size_1")):
        batch = {
            "image": torch.zeros(2, 3, 16 * side, 16 * side), "index": torch.arange(2), "geometry": geometry,
            "crop": crop, "label": torch.tensor([0, 0]),
        }  # fmt: skip
        label, tokens = TokenLabelling(maps, official=True).targets(batch, side * side, 20)
        found = torch.cat([label[:, None], tokens], dim=1) if side > 1 else label[:, None]
        flat, at = found.transpose(1, 2), torch.tensor(wanted[name]["at"])
        classes_at, places = at // (found.shape[1] + 1), at % (found.shape[1] + 1)
        of_maps = places > 0  # 0 is the true label
        values = torch.tensor(wanted[name]["values"])
        ours = flat[classes_at // 20, classes_at % 20, (places - 1).clamp(min=0)]
        assert int(of_maps.sum()) > 10
        torch.testing.assert_close(ours[of_maps], values[of_maps], atol=2e-6, rtol=0)
    assert where[0].shape == (2, 2, 3)


def test_the_crop_is_where_the_picture_is_and_the_official_one_is_not() -> None:
    """The quarter at the top right of a map that says how far right, then how far down, a place is."""
    wanted, ramp = OFFICIAL["crop_axis_check"], torch.arange(18.0).expand(18, 18)
    geometry, crop = of_crop(*torch.tensor([[0.0], [0.5], [0.5], [0.5]]))
    for ramps, right, wrong in (
        (ramp, [[10.75, 15.24]] * 2, wanted["value_of_column_index_in_2x2_result"]),
        (ramp.T, [[1.76] * 2, [6.25] * 2], wanted["value_of_row_index_in_2x2_result"]),
    ):
        maps = ramps[None, None].contiguous(), torch.zeros(1, 1, 18, 18, dtype=torch.int64)
        found = cropped(*maps, geometry, crop, (2, 2), 1).view(2, 2)
        torch.testing.assert_close(found, torch.tensor(right), atol=0.011, rtol=0)
        torch.testing.assert_close(
            cropped(*maps, *transposed(geometry, crop), (2, 2), 1).view(2, 2), torch.tensor(wrong), atol=1e-4, rtol=0
        )


@pytest.mark.parametrize("grid", [(2, 3), (4, 2), (1, 1), (4, 6)])
def test_a_whole_picture_is_pooled(grid: tuple[int, int]) -> None:
    scores, classes = fill.normal("scores", (2, 1, 4, 6)), torch.zeros(2, 1, 4, 6, dtype=torch.int64)
    found = cropped(scores, classes, *(t.expand(2, *t.shape[1:]) for t in WHOLE), grid, 3)
    wanted = F.avg_pool2d(scores, (4 // grid[0], 6 // grid[1])).flatten(1)
    torch.testing.assert_close(found[..., 0], wanted)
    assert not found[..., 1:].any()


def test_one_picture_alone_and_mixed_labels() -> None:
    scores, classes = (t[:1] for t in stored_maps())
    assert cropped(scores, classes, *WHOLE, (14, 14), 20).shape == (1, 196, 20)  # the official code: (20, 197)
    label = mixed(smoothed(torch.tensor([4, 1]), 10, 0.1), torch.tensor([0, 0, 1, 3]), 10)
    torch.testing.assert_close(label, torch.tensor(OFFICIAL["mixup_target_plain_labels"]), atol=1e-6, rtol=0)
    logits, soft = 2 * fill.normal("tl:cls", (2, 10)), fill.normal("tl:target2", (2, 10)).softmax(1)
    found = float(soft_cross_entropy(logits, soft))
    assert found == pytest.approx(float(F.cross_entropy(logits, soft)), rel=1e-6)


# Labels follow their picture ------------------------------------------------------------------------------------------
class Pictures:
    """Pictures of colored squares, one class each, and what a perfect teacher says of every square."""

    def __init__(self, n: int = 4, cells: int = 8) -> None:
        self.classes = np.random.default_rng(0).integers(0, CLASSES, (n, cells, cells))
        self.labels = np.zeros(n, np.int64)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
        gray = (self.classes[i] * 60).astype(np.uint8)
        return np.repeat(np.repeat(gray, 12, 0), 8, 1)[..., None].repeat(3, 2), 0

    def names(self, i: int) -> str:
        return str(i)


def perfect(pictures: Pictures) -> LabelMaps:
    ids = pictures.classes[:, None]
    return LabelMaps(np.full(ids.shape, 20.0, np.float16), ids, num_classes=CLASSES, made_from={})


@pytest.mark.parametrize(
    "options",
    [{}, {"flip": 1.0}, {"crop_min": 0.15}, {"crop_min": 0.3, "flip": 1.0, "rotate": 30.0, "shift": 0.1}],
    ids=lambda options: " ".join(options) or "as it is",
)
def test_token_labels_say_what_is_at_their_place(options: dict[str, float]) -> None:
    pictures = Pictures()
    preprocess = Preprocess(size=(160, 160), crop_pct=0.8, interpolation="bilinear")
    batch = next(Batches(pictures, preprocess, batch_size=4, augment=Augment(**options), seed=3).epoch(1))
    label, tokens = TokenLabelling(perfect(pictures), smoothing=0.0).targets(batch, 400, CLASSES)
    assert label.shape == (4, CLASSES)
    assert tokens.shape == (4, 400, CLASSES)
    torch.testing.assert_close(tokens.sum(-1), torch.ones(4, 400))
    seen = F.avg_pool2d((batch["image"][:, :1] * 0.5 + 0.5) * 255 / 60, 8).flatten(1)  # class numbers, mixed at edges
    sure = (tokens.amax(-1) > 0.99) & ((seen - seen.round()).abs() < 0.02)
    assert float(sure.float().mean()) > 0.12
    assert float((tokens.argmax(-1) == seen.round())[sure].float().mean()) > 0.99
    if "crop_min" in options:
        _, wrong = TokenLabelling(perfect(pictures), smoothing=0.0, official=True).targets(batch, 400, CLASSES)
        assert float((wrong.argmax(-1) == seen.round())[sure].float().mean()) < 0.7


def test_what_was_never_seen_has_no_label() -> None:
    geometry, crop = of_crop(*torch.tensor([[0.25], [0.25], [0.5], [0.5]]))
    turned = geometry @ torch.tensor(
        [[1.0, 0, 0.5], [0, 1, 0], [0, 0, 1]]
    )  # moved left by half: the right half is gray
    scores, classes = torch.full((1, 1, 8, 8), 9.0), torch.zeros(1, 1, 8, 8, dtype=torch.int64)
    found = cropped(scores, classes, turned, crop, (4, 4), 3)[0].softmax(-1).T.view(3, 4, 4)
    assert float(found[0, :, :2].min()) > 0.99
    torch.testing.assert_close(found[:, :, 2:], torch.full((3, 4, 2), 1 / 3))


# Any teacher ----------------------------------------------------------------------------------------------------------
def timm_model(name: str) -> nn.Module:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=CLASSES).eval()


def resnet() -> nn.Module:
    return zoo.create("resnet_digits", num_classes=CLASSES).eval()


@pytest.mark.parametrize("name", ["ours", "timm", "transformers", "lvvit"])
@torch.no_grad()
def test_a_transformer_answers_for_each_token(name: str) -> None:
    family, images = FAMILIES[name], fill.normal("pictures", (2, 3, SIZE, SIZE))
    model = family.make()
    found = dense_logits(model, images)
    assert found.shape == (2, CLASSES, 4, 4)
    if name == "lvvit":
        assert torch.equal(found.flatten(2).transpose(1, 2), aux_of(model, images))


def aux_of(model: nn.Module, images: Tensor) -> Tensor:
    seen = []
    model.aux_head.register_forward_hook(lambda _m, _a, output: seen.append(output))
    model(images)
    return seen[0]


@pytest.mark.parametrize("make", [resnet, PLAIN.make, lambda: timm_model("resnet10t")], ids=["ours", "any", "timm"])
@torch.no_grad()
def test_a_convolutional_network_answers_for_each_place_of_its_last_map(make: object) -> None:
    images = fill.normal("pictures", (2, 3, 96, 128))
    model = make()  # type: ignore[operator]
    found = dense_logits(model, images)
    assert found.shape[:2] == (2, CLASSES)
    assert found.shape[2] * 4 == found.shape[3] * 3
    torch.testing.assert_close(found.mean((2, 3)), model(images), atol=1e-4, rtol=1e-4)  # linear after pooling


@pytest.mark.parametrize(
    ("name", "size", "grid"),
    [("convnext_atto", 64, 2), ("mobilenetv3_small_050", 64, 2), ("vit_tiny_patch16_224", 224, 14)],
)
@torch.no_grad()
def test_timms_heads_answer_for_each_place(name: str, size: int, grid: int) -> None:
    found = dense_logits(timm_model(name), fill.normal("pictures", (1, 3, size, size)))
    assert found.shape == (1, CLASSES, grid, grid)
    assert float(found.flatten(2).std(-1).mean()) > 0  # places differ


def test_teachers_that_cannot_be_asked() -> None:
    images = torch.zeros(1, 3, SIZE, SIZE)
    with pytest.raises(OptionError, match="teacher: Sequential has no last map whose mean the classifier reads"):
        dense_logits(nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, 5)), images)
    sparse = apply(LVVIT.make(), dynamicvit.plan(LVVIT.make(), keep=0.6)).eval()
    with pytest.raises(OptionError, match="are no grid; were some dropped or merged"):
        dense_logits(sparse, images)
    assert grid_of(6, torch.zeros(1, 3, 32, 48)) == (2, 3)


# Kept in a file -------------------------------------------------------------------------------------------------------
class Noise(Pictures):
    def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
        return np.random.default_rng(i).integers(0, 256, (20, 24, 3), dtype=np.uint8), 0


def data(n: int = 5, fingerprint: str = "these") -> SimpleNamespace:
    return SimpleNamespace(train=Noise(n), fingerprint=fingerprint, classes=("a",) * CLASSES)


def made(path: Path, *, teacher: nn.Module | None = None, source: object = None, **options: object) -> LabelMaps:
    known = {"preprocess": FIT, "batch_size": 2, "top_k": 3, **options}
    return label_maps.make(teacher or FAMILIES["ours"].make(), source or data(), path, **known)  # type: ignore[arg-type]


def test_maps_keep_the_best_classes_and_the_level_of_the_rest(tmp_path: Path) -> None:
    teacher, steps = FAMILIES["ours"].make().train(), []
    maps = made(tmp_path / "maps.safetensors", teacher=teacher, log=lambda *done: steps.append(done))
    assert teacher.training
    assert steps == [(2, 5), (4, 5), (5, 5)]
    assert maps.count == 5
    whole = Preprocess(size=(SIZE, SIZE), resize="exact")
    images = torch.from_numpy(np.stack([whole(Noise(5)[i][0]) for i in (3, 0)]))
    with torch.no_grad():
        sure = dense_logits(teacher.eval(), images).softmax(1)
    scores, classes = maps.of(torch.tensor([3, 0]))
    assert scores.shape == classes.shape == (2, 3, 4, 4)
    found = cropped(scores, classes, *(t.expand(2, *t.shape[1:]) for t in WHOLE), (4, 4), CLASSES)
    found = found.softmax(-1).transpose(1, 2)
    best = sure.gather(1, classes)
    torch.testing.assert_close(found.unflatten(2, (4, 4)).gather(1, classes), best, atol=2e-3, rtol=0)
    rest = (1 - best.sum(1, keepdim=True)) / (CLASSES - 3)
    others = found.unflatten(2, (4, 4)).scatter(1, classes, 0.0).sum(1, keepdim=True) / (CLASSES - 3)
    torch.testing.assert_close(others, rest, atol=2e-3, rtol=0)


def test_a_teacher_that_does_not_fit_is_found_at_once(tmp_path: Path) -> None:
    others = SimpleNamespace(train=Noise(5), fingerprint="others", classes=("a", "b"))
    with pytest.raises(OptionError, match=r"teacher: answers about places .*needed: \(images, 2 classes, h, w\)"):
        made(tmp_path / "maps", source=others)
    broken = FAMILIES["ours"].make()
    with torch.no_grad():
        broken.head.bias[0] = float("nan")
    with pytest.raises(Diverged, match=r"logits of pictures \[0, 1\], ... are not finite"):
        made(tmp_path / "maps", teacher=broken)
    assert not list(tmp_path.iterdir())


def test_many_classes_are_kept_exactly() -> None:
    logits = fill.normal("many", (1, 40_000, 1, 1))
    assert label_maps.best(logits[:, :900], 4)[1].dtype == np.int16
    _, classes = label_maps.best(logits, 4)
    assert classes.dtype == np.int32
    assert classes[0, 0, 0, 0] == int(logits.argmax())
    scores, _ = label_maps.best(fill.normal("few", (1, 3, 1, 1)), 5)
    assert scores.shape[1] == 3


def test_a_file_is_found_again_and_a_stale_one_refused(tmp_path: Path) -> None:
    path = tmp_path / "maps.safetensors"
    first = made(path)
    before = path.read_bytes()
    again = made(path, log=lambda *_: pytest.fail("made again"))
    index = torch.arange(5)
    assert all(torch.equal(a, b) for a, b in zip(first.of(index), again.of(index), strict=True))
    assert describe(first) == describe(again) == describe(label_maps.read(path))
    for says, options in (
        ("teacher", {"teacher": FAMILIES["ours"].make("another")}),
        ("data", {"source": data(fingerprint="others")}),
        ("setting", {"top_k": 2}),
        ("setting", {"preprocess": Preprocess(size=(SIZE, SIZE), interpolation="bilinear")}),
    ):
        with pytest.raises(InputError, match=f"made from another {says}; remove it"):
            made(path, **options)  # type: ignore[arg-type]
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["maps.safetensors"]
    path.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    with pytest.raises(InputError, match="the bytes differ"):
        label_maps.read(path)
    with pytest.raises(OptionError, match="has no test part"):
        made(tmp_path / "new", part="test")
    with pytest.raises(OptionError, match="there are 5 label maps, and a picture has the number 7"):
        first.of(torch.tensor([7]))


def test_a_file_with_other_content_is_refused(tmp_path: Path) -> None:
    path, good = tmp_path / "maps.safetensors", made(tmp_path / "good")
    label_maps.write(LabelMaps(good._scores, good._classes, num_classes=2, made_from={}), path)
    with pytest.raises(InputError, match=r"a class number is outside 0\.\.1"):
        label_maps.read(path)
    label_maps.write(LabelMaps(good._scores[:2], good._classes, num_classes=5, made_from={}), path)
    with pytest.raises(InputError, match=r"must be \(pictures, k, h, w\)"):
        label_maps.read(path)
    from featherweight import artifact

    artifact.save(LVVIT.make(), tmp_path / "model")
    with pytest.raises(InputError, match="holds no label maps"):
        label_maps.read(tmp_path / "model" / "model.safetensors")
    assert json.loads(json.dumps(good.made_from)) == good.made_from


# In training ----------------------------------------------------------------------------------------------------------
def test_training_with_maps_teaches_every_token(tmp_path: Path) -> None:
    teacher = LVVIT.make("teacher")
    maps = made(tmp_path / "maps", teacher=teacher, source=data(8))
    batches = Batches(data(8).train, FIT, batch_size=4, shuffle=True, augment=Augment(crop_min=0.5, flip=0.5))
    rows: list[dict[str, object]] = []
    method = TokenLabelling(maps)
    model = fit(LVVIT.make(), batches, LVVIT.task, methods=[method], epochs=6, log=rows.append)
    terms = [row["terms"] for row in rows if row["event"] == "epoch"]
    assert all(set(term) == {"task", "tokens"} for term in terms)  # type: ignore[call-overload]
    assert terms[-1]["tokens"] < terms[0]["tokens"]  # type: ignore[index]
    assert not find(model, AuxLogits).mix_token
    assert not torch.equal(model.aux_head.weight, LVVIT.make().aux_head.weight)
    with pytest.raises(OptionError, match="say not where their pictures come from"):
        fit(LVVIT.make(), Images(), LVVIT.task, methods=[method])
    augment = Augment(cutmix=1.0, num_classes=CLASSES)
    with pytest.raises(OptionError, match="label maps cannot follow"):
        fit(LVVIT.make(), Batches(data(8).train, FIT, batch_size=4, augment=augment), LVVIT.task, methods=[method])


def test_without_maps_each_token_learns_its_pictures_label() -> None:
    batch = {"label": torch.tensor([1, 3]), "image": torch.zeros(2, 3, SIZE, SIZE)}
    label, tokens = TokenLabelling(smoothing=0.1).targets(batch, 16, CLASSES)
    torch.testing.assert_close(label, smoothed(batch["label"], CLASSES, 0.1))
    assert torch.equal(tokens[:, 0], label)
    soft = torch.tensor([[0.5, 0.5, 0, 0, 0], [0.1, 0.9, 0, 0, 0]])
    assert torch.equal(TokenLabelling().targets({**batch, "soft_label": soft}, 16, CLASSES)[0], soft)


def test_tokens_that_lost_their_place_are_not_taught_by_maps() -> None:
    batch = next(Batches(Pictures(), FIT, batch_size=4).epoch(0))
    heads = AuxLogits().train()
    heads(torch.zeros(4, CLASSES), torch.zeros(4, 11, CLASSES))
    run = Pass(heads, batch, torch.zeros(4, CLASSES), lambda model: None, 0.0, ("task",))
    assert set(TokenLabelling(perfect(Pictures())).loss({}, run)) == {"task"}
    assert set(TokenLabelling().loss({}, run)) == {"task", "tokens"}  # a picture's label needs no place


def test_it_goes_with_dropping_tokens(tmp_path: Path) -> None:
    maps = made(tmp_path / "maps", source=data(8))
    batches = Batches(data(8).train, FIT, batch_size=4)
    for train in ("mask", "gather"):
        methods = [TokenLabelling(maps, mix_token=False), dynamicvit.DynamicViT(LVVIT.make(), train=train)]
        rows: list[dict[str, object]] = []
        fit(LVVIT.make(), batches, LVVIT.task, methods=methods, log=rows.append)
        assert {"task", "ratio"} <= set(rows[0]["terms"])  # type: ignore[call-overload]


def test_with_nothing_to_teach_the_tokens_it_is_plain_training() -> None:
    plain = fit(LVVIT.make(), Images(), LVVIT.task, epochs=1)
    method = TokenLabelling(dense_weight=0.0, mix_token=False, smoothing=0.0)
    taught = fit(LVVIT.make(), Images(), LVVIT.task, methods=[method], epochs=1)
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(taught.state_dict()[name], tensor, atol=1e-6, rtol=1e-5)


def test_mixing_is_on_while_training_only() -> None:
    model = LVVIT.make()
    ready = TokenLabelling().prepare(model)
    assert find(ready, AuxLogits).mix_token
    assert not find(model, AuxLogits).mix_token
    assert not find(TokenLabelling().finish(ready), AuxLogits).mix_token


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"dense_weight": -1.0}, "dense_weight: -1.0 is not 0 or more"),
        ({"cls_weight": float("nan")}, "cls_weight: nan is not 0 or more"),
        ({"smoothing": 1.5}, "smoothing: 1.5 is not in 0..1"),
        ({"truth_if_not": -0.1}, "truth_if_not: -0.1 is not in 0..1"),
    ],
)
def test_options_that_cannot_be(options: dict[str, float], says: str) -> None:
    with pytest.raises(OptionError, match=says):
        TokenLabelling(**options)  # type: ignore[arg-type]


def test_models_and_teachers_that_do_not_fit() -> None:
    with pytest.raises(LookupError, match="VisionTransformer has no head on every token"):
        TokenLabelling().prepare(FAMILIES["ours"].make())
    maps = LabelMaps(np.zeros((1, 1, 1, 1), np.float16), np.zeros((1, 1, 1, 1), np.int16), num_classes=7, made_from={})
    with pytest.raises(OptionError, match="labels: the teacher has 7 classes, the model 5"):
        TokenLabelling(maps).prepare(LVVIT.make())
