# SPDX-License-Identifier: Apache-2.0
"""Boxes, candidates, assignment and loss of detectors: what must hold beside the golden numbers."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from featherweight.errors import Diverged, OptionError
from featherweight.tasks.detection import Detection, Maps, assign, boxes
from featherweight.tasks.detection.candidates import Cells, candidates
from featherweight.tasks.detection.decode import decode, scored
from featherweight.tasks.detection.loss import Gains

ANCHORS = torch.tensor([[[1.5, 2.0], [2.4, 4.5], [5.0, 3.5]], [[2.2, 4.7], [4.7, 3.4], [4.5, 9.1]]])
STRIDES = (8, 16)


def maps_of(
    *, seed: int = 0, images: int = 3, classes: int = 4, size: tuple[int, int] = (64, 96), scale: float = 1.0
) -> Maps:
    drawn = torch.Generator().manual_seed(seed)
    shapes = [(images, 3, size[0] // s, size[1] // s, 5 + classes) for s in STRIDES]
    return Maps.of([scale * torch.randn(shape, generator=drawn) for shape in shapes], ANCHORS, STRIDES)


def targets_of(counts: tuple[int, ...], *, classes: int = 4, seed: int = 1) -> Tensor:
    drawn = torch.Generator().manual_seed(seed)
    rows = []
    for image, count in enumerate(counts):
        middle, sides = torch.rand(count, 2, generator=drawn), 0.1 + 0.4 * torch.rand(count, 2, generator=drawn)
        kinds = torch.randint(classes, (count, 1), generator=drawn)
        rows.append(torch.cat((torch.full((count, 1), image), kinds, middle, sides), dim=1))
    return torch.cat(rows)


def rows_of(cells: Cells) -> set[tuple[int, ...]]:
    return {tuple(row) for row in torch.stack(tuple(vars(cells).values()), dim=1).tolist()}


def within(place: tuple[int, ...], target: Tensor, size: tuple[int, int]) -> bool:
    """Whether the cell `place` (level, image, anchor, row, column) can make the box of a target, written out."""
    level, _, anchor, row, column = place
    stride, sides = STRIDES[level], ANCHORS[place[0], anchor].tolist()
    x, y, wide, high = (float(v) * n / stride for v, n in zip(target[2:6], (*size[::-1], *size[::-1]), strict=True))
    near = -0.5 < x - column < 1.5 and -0.5 < y - row < 1.5
    return near and wide < 4 * sides[0] and high < 4 * sides[1]


def slowly(maps: Maps, targets: Tensor, top: int = 10, *, reachable: bool = False) -> list[set[tuple[int, ...]]]:
    """The same assignment image by image, with the cost written out over all classes."""
    found = candidates(targets, maps.anchors, [raw.shape[2:4] for raw in maps])
    picked: list[set[tuple[int, ...]]] = [set() for _ in maps]
    height, width = maps.size
    for image in range(len(maps[0])):
        places = [
            (level, *place)
            for level, cells in enumerate(found)
            for place in sorted({row[:4] for row in rows_of(cells) if row[0] == image})
        ]
        mine = (targets[:, 0] == image).nonzero()[:, 0]
        if not places or not len(mine):
            continue
        raw = torch.stack([maps[p[0]][p[1], p[2], p[3], p[4]] for p in places])
        start = [sum(3 * m.shape[2] * m.shape[3] for m in maps[:level]) for level in range(len(maps))]
        flat = [start[p[0]] + (p[2] * maps[p[0]].shape[2] + p[3]) * maps[p[0]].shape[3] + p[4] for p in places]
        own = boxes.xyxy_of(decode(maps, ANCHORS, STRIDES)[image, flat, :4])
        true = boxes.xyxy_of(targets[mine, 2:6] * targets.new_tensor([width, height, width, height]))
        overlap = boxes.iou_matrix(true, own)
        can = torch.tensor([[not reachable or within(p, targets[m], maps.size) for p in places] for m in mine.tolist()])
        overlap = overlap * can
        ks = overlap.topk(min(top, len(places))).values.sum(1).long().clamp(min=1).tolist()
        y = (raw[:, 5:].sigmoid() * raw[:, 4:5].sigmoid()).sqrt().expand(len(mine), -1, -1)
        hot = F.one_hot(targets[mine, 1].long(), raw.shape[1] - 5).float()[:, None].expand_as(y)
        cost = F.binary_cross_entropy(y, hot, reduction="none").sum(-1) - 3 * torch.log(overlap + 1e-8)
        cost[~can] = torch.inf
        taken = torch.zeros_like(cost, dtype=torch.bool)
        for row, k in enumerate(ks):
            taken[row, cost[row].argsort(stable=True)[:k]] = True
        taken &= can
        for column in taken.any(0).nonzero()[:, 0].tolist():
            takers = taken[:, column].nonzero()[:, 0]
            row = int(takers[0]) if len(takers) == 1 else int(cost[:, column].argmin())
            picked[places[column][0]].add((*places[column][1:], int(mine[row])))
    return picked


@pytest.mark.parametrize("counts", [(3, 2, 4), (0, 7, 1), (12, 0, 0)])
def test_the_assignment_is_that_of_the_formula(counts: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    maps, targets = maps_of(), targets_of(counts)
    task = Detection(4)
    found = [rows_of(cells) for cells in task.positives(maps, targets)]
    assert found == slowly(maps, targets) and sum(map(len, found)) >= sum(c > 0 for c in counts)
    monkeypatch.setattr(assign, "PAIRS", 50)  # in many small pieces
    assert [rows_of(cells) for cells in task.positives(maps, targets)] == found


def test_the_assignment_does_not_depend_on_the_order_of_targets() -> None:
    maps, targets = maps_of(), targets_of((9, 1, 5))
    task = Detection(4)
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(3))
    wanted = [rows_of(cells) for cells in task.positives(maps, targets)]
    mixed = task.positives(maps, targets[order])
    assert [{(*row[:4], int(order[row[4]])) for row in rows_of(cells)} for cells in mixed] == wanted


def test_equal_costs_are_settled_by_place() -> None:
    maps = Maps.of([torch.zeros_like(raw) for raw in maps_of()], ANCHORS, STRIDES)
    targets = targets_of((6, 6, 6))
    assert [rows_of(c) for c in Detection(4).positives(maps, targets)] == slowly(maps, targets)


@pytest.mark.parametrize("counts", [(3, 2, 4), (0, 7, 1), (12, 0, 30)])
@pytest.mark.parametrize("aux", [False, True])
def test_on_demand_a_cell_learns_only_boxes_it_can_make(counts: tuple[int, ...], aux: bool) -> None:
    maps, targets = maps_of(), targets_of(counts)
    task = Detection(4, reachable=True)
    found = [rows_of(cells) for cells in task.positives(maps, targets, **({"reach": 1.0, "top": 20} if aux else {}))]
    for level, rows in enumerate(found):
        assert rows and all(within((level, *row[:4]), targets[row[4]], maps.size) for row in rows)
    if not aux:
        assert found == slowly(maps, targets, reachable=True)
    anywhere = [rows_of(cells) for cells in Detection(4).positives(maps, targets)]
    assert any(
        not within((level, *row[:4]), targets[row[4]], maps.size) for level, rows in enumerate(anywhere) for row in rows
    )


def test_on_demand_a_target_that_no_cell_reaches_takes_none() -> None:
    maps = maps_of(images=1)
    far = torch.tensor([[0, 1, 0.2, 0.2, 0.3, 0.3], [0, 2, 0.9, 0.9, 0.004, 0.004]])  # the second fits no anchor
    for reachable, taken in ((False, {0, 1}), (True, {0})):
        found = Detection(4, reachable=reachable).positives(maps, far)
        assert {row[4] for cells in found for row in rows_of(cells)} == taken


def test_on_demand_coarse_candidates_too_are_those_that_can_reach() -> None:
    maps, targets = maps_of(), targets_of((9, 9, 9))
    task = Detection(4, assign="plain", reachable=True)
    for level, (cells, every) in enumerate(
        zip(*(one.positives(maps, targets, reach=1.0) for one in (task, Detection(4, assign="plain"))), strict=True)
    ):
        mine = {row for row in rows_of(every) if within((level, *row[:4]), targets[row[4]], maps.size)}
        assert rows_of(cells) == mine and len(mine) < len(rows_of(every))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_extreme_predictions_cost_something_finite(dtype: torch.dtype) -> None:
    for scale in (0.0, 30.0, 5000.0):
        raw = [(scale * map_.sign()).to(dtype).requires_grad_() for map_ in maps_of()]
        found = Detection(4).loss(Maps.of(raw, ANCHORS, STRIDES), {"targets": targets_of((3, 3, 3))})
        total = torch.stack(list(found.values())).sum()
        total.backward()
        assert bool(torch.isfinite(total)) and all(
            bool(torch.isfinite(r.grad).all()) for r in raw if r.grad is not None
        )


@pytest.mark.parametrize("rows", [[], [[0, 1, 0.5, 0.5, 0.001, 0.001]], [[1, 2, 0.5, 0.5, 0.0, 0.2]]])
@pytest.mark.parametrize("how", ["lead", "plain"])
def test_a_batch_without_positives_has_only_objectness(rows: list[list[float]], how: str) -> None:
    raw = [m.requires_grad_() for m in maps_of()]
    maps = Maps.of(raw, ANCHORS, STRIDES, raw)
    found = Detection(4, assign=how).loss(maps, {"targets": torch.tensor(rows).reshape(-1, 6)})
    assert {name for name, term in found.items() if float(term.detach()) != 0} == {"obj", "aux_obj"}
    torch.stack(list(found.values())).sum().backward()


def test_a_target_outside_stays_inside_the_grid() -> None:
    maps = maps_of()
    targets = torch.tensor([[0, 1, 1.4, 1.2, 0.3, 0.3], [1, 0, -0.2, 0.5, 0.3, 0.3]])
    for cells, raw in zip(Detection(4, assign="plain").positives(maps, targets), maps, strict=True):
        assert len(cells) and int(cells.row.max()) < raw.shape[2] and int(cells.column.max()) < raw.shape[3]
        assert int(cells.row.min()) >= 0 and int(cells.column.min()) >= 0


NONSENSE = {
    "classes 4..4, the detector has 4: 0..3": [0, 4, 0.5, 0.5, 0.3, 0.3],
    "images 3..3": [3, 0, 0.5, 0.5, 0.3, 0.3],
    "classes -1..-1": [0, -1, 0.5, 0.5, 0.3, 0.3],
    "classes nan": [0, float("nan"), 0.5, 0.5, 0.3, 0.3],
}


@pytest.mark.parametrize("said", NONSENSE)
def test_targets_that_make_no_sense_are_named(said: str) -> None:
    with pytest.raises(OptionError, match=said):
        Detection(4).loss(maps_of(), {"targets": torch.tensor([NONSENSE[said]])})


@pytest.mark.parametrize(
    "options", [{"assign": "led"}, {"anchor_ratio": 0.5}, {"aux_weight": float("nan")}, {"gains": {"box": -1.0}}]
)
def test_options_are_checked(options: dict[str, Any]) -> None:
    def made() -> Detection:
        known: dict[str, Any] = {k: Gains(**v) if k == "gains" else v for k, v in options.items()}
        return Detection(4, **known)

    with pytest.raises(OptionError):
        made()


def test_a_single_class_has_no_class_term() -> None:
    found = Detection(1).loss(maps_of(classes=1), {"targets": targets_of((2, 2, 2), classes=1)})
    assert float(found["cls"]) == 0 and float(found["box"]) > 0
    box, score = scored(maps_of(classes=1).decoded())
    assert score.shape[-1] == 1 and box.shape[-1] == 4
    assert torch.equal(score, maps_of(classes=1).decoded()[..., 4:5])


def test_decoding_is_in_float32_and_in_the_order_of_the_maps() -> None:
    maps = maps_of()
    half = Maps.of([m.half() for m in maps], ANCHORS, STRIDES)
    decoded = maps.decoded()
    assert half.decoded().dtype == torch.float32 and decoded.shape == (3, 3 * (8 * 12 + 4 * 6), 9)
    level, image, anchor, row, column = 1, 2, 1, 3, 5
    raw = maps[level][image, anchor, row, column].sigmoid()
    wanted = torch.cat((
        (2 * raw[:2] - 0.5 + torch.tensor([column, row])) * STRIDES[level],
        (2 * raw[2:4]) ** 2 * ANCHORS[level, anchor] * STRIDES[level],
        raw[4:],
    ))  # fmt: skip
    torch.testing.assert_close(decoded[image, 3 * 96 + (anchor * 4 + row) * 6 + column], wanted)


def test_overlaps_of_pairs_and_of_all_agree() -> None:
    some = torch.tensor([[0.0, 0.0, 10.0, 10.0], [5.0, 5.0, 20.0, 15.0], [40.0, 0.0, 50.0, 5.0], [3.0, 3.0, 3.0, 3.0]])
    matrix = boxes.iou_matrix(some, some)
    for a, b in itertools.product(range(3), range(3)):
        torch.testing.assert_close(matrix[a, b], boxes.iou(some[a], some[b]))
    assert matrix[3].tolist() == [0.0] * 4
    torch.testing.assert_close(boxes.xyxy_of(boxes.cxcywh_of(some)), some)


def test_nothing_is_made_on_another_device_than_the_maps() -> None:
    """What is made without a device would be on the default one, which knows shapes only: mixing the two fails."""
    raw = maps_of()
    maps, targets = Maps.of(raw, ANCHORS, STRIDES, raw), targets_of((5, 0, 3))
    wanted = Detection(4).loss(maps, {"targets": targets})
    with torch.device("meta"):
        for how in ("lead", "plain"):
            found = Detection(4, assign=how, duplicates=how == "plain").loss(maps, {"targets": targets})
            assert all(term.device.type == "cpu" for term in found.values())
            assert how == "plain" or all(torch.equal(found[name], wanted[name]) for name in wanted)
            Detection(4, assign=how).loss(maps, {"targets": targets[:0]})
        assert maps.decoded().device.type == "cpu"


def test_maps_may_lie_in_memory_in_any_order() -> None:
    maps, batch = maps_of(), {"targets": targets_of((3, 3, 3))}
    strange = Maps.of([m.permute(0, 2, 3, 1, 4).contiguous().permute(0, 3, 1, 2, 4) for m in maps], ANCHORS, STRIDES)
    wanted, found = Detection(4).loss(maps, batch), Detection(4).loss(strange, batch)
    assert all(torch.allclose(wanted[name], found[name], rtol=1e-6) for name in wanted)


def test_focal_and_smoothing_change_what_they_should() -> None:
    maps, batch = maps_of(), {"targets": targets_of((3, 3, 3))}
    plain = Detection(4).loss(maps, batch)
    smooth = Detection(4, gains=Gains(label_smoothing=0.1)).loss(maps, batch)
    focal = Detection(4, gains=Gains(focal_gamma=1.5)).loss(maps, batch)
    assert smooth["cls"] != plain["cls"] and smooth["box"] == plain["box"]
    assert focal["obj"] < plain["obj"] and focal["cls"] < plain["cls"] and focal["box"] == plain["box"]


class Knowing(nn.Module):
    """A detector that has been told what it will see: the boxes of `targets`, as raw maps."""

    def __init__(self, targets: Tensor, size: tuple[int, int]) -> None:
        super().__init__()
        self.targets, self.size = targets, size
        self.head = nn.Module()
        self.head.register_buffer("anchors", ANCHORS)
        self.head.strides, self.head.num_classes = STRIDES, 4  # type: ignore[assignment]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        maps = [torch.full((len(images), 3, self.size[0] // s, self.size[1] // s, 9), -12.0) for s in STRIDES]
        side = torch.tensor([self.size[1], self.size[0]])
        for image, label, *box in self.targets.tolist():
            middle, sides = torch.tensor(box[:2]) * side, torch.tensor(box[2:]) * side
            shares = torch.stack([sides / (own * stride) for own, stride in zip(ANCHORS, STRIDES, strict=True)])
            worst = torch.maximum(shares, 1 / shares).amax(-1)
            level, anchor = divmod(int(worst.argmin()), 3)
            cell = (middle / STRIDES[level]).floor()
            local = torch.cat(((middle / STRIDES[level] - cell + 0.5) / 2, shares[level, anchor].sqrt() / 2))
            raw = torch.cat((torch.logit(local), torch.tensor([12.0]), torch.full((4,), -12.0)))
            raw[5 + int(label)] = 12.0
            maps[level][int(image), anchor, int(cell[1]), int(cell[0])] = raw
        return tuple(maps)


def test_a_detector_that_knows_has_an_average_precision_of_one() -> None:
    targets = targets_of((3, 1, 2), seed=4)
    targets[:, 2:4] = 0.3 + 0.4 * targets[:, 2:4]
    batch = {"image": torch.zeros(3, 3, 64, 96), "targets": targets, "index": torch.arange(3)}
    place = {"size": torch.tensor([[100, 200]] * 3), "shape": torch.tensor([[0.45, 0.45, 3.0, 9.5, 64.0, 96.0]] * 3)}
    model, task = Knowing(targets, (64, 96)), Detection(["a", "b", "c", "d"])
    for one in (batch, {**batch, **place}, {**batch, "image": torch.zeros(3, 3, 64, 96, dtype=torch.uint8)}):
        found = task.evaluate(model, [one])
        assert found["AP"] == found["AP50"] == pytest.approx(1.0) and next(iter(found)) == "AP"
    boxes_found, truth = task.predictions(model, [{**batch, **place}])
    assert boxes_found[0][:, 2].max() <= 200 and len(truth[0]) == 3
    answer = task.decode(task.forward(model, batch))
    assert [len(rows) for rows in answer] == [3, 1, 2] and answer[1][0]["label"] in task.classes
    wrong = task.evaluate(Knowing(targets.flip(0), (64, 96)), [{**batch, "targets": torch.cat((targets, targets[:1]))}])
    assert wrong["AP"] < 1
    broken = tuple(raw * float("nan") for raw in model(batch["image"]))
    model.forward = lambda images: broken  # type: ignore[method-assign]
    with pytest.raises(Diverged, match="not finite"):
        task.evaluate(model, [batch])
