# SPDX-License-Identifier: Apache-2.0
"""What golden files of detection training ask: overlaps of boxes, assignments, losses and their gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import fill
import torch
from golden_case import Case, at
from torch import Tensor

from featherweight.tasks.detection import Detection, Maps, assign, boxes, candidates
from featherweight.tasks.detection.loss import Gains

RTOL = 2e-5  # of losses in float32, and of a gradient's standard deviation


def close(case: Case, place: str, found: Any, wanted: Any, *, rtol: float = RTOL, atol: float = 1e-6) -> None:
    """Numbers, also nested in lists, against those of the file."""
    mine, theirs = (torch.as_tensor(x, dtype=torch.float64) for x in (found, wanted))
    if mine.shape != theirs.shape or not torch.allclose(mine, theirs, rtol=rtol, atol=atol):
        case.wrong.append(f"{place}: {str(found)[:80]}, not {str(wanted)[:80]}")
    case.seen.add(place)


# ---- overlaps ------------------------------------------------------------------------------------------------------


def overlaps(case: Case) -> None:
    """IoU, GIoU, DIoU, CIoU of pairs, and their gradients."""
    pred, true = (torch.tensor(case.reference[f"boxes_xywh_{name}"]) for name in ("pred", "true"))
    for name in ("iou", "giou", "diou", "ciou"):
        if name in case.reference:
            given = pred.clone().requires_grad_()
            found = getattr(boxes, name)(boxes.xyxy_of(given), boxes.xyxy_of(true), eps=case.reference["eps"])
            (grad,) = torch.autograd.grad(found.sum(), given)
            close(case, name, found.tolist(), case.reference[name])
            close(case, f"{name}_grad_pred", grad.tolist(), case.reference[f"{name}_grad_pred"])


# ---- losses --------------------------------------------------------------------------------------------------------


def task_of(reference: Mapping[str, Any], **options: Any) -> Detection:
    """The task with the options that a file of a loss names."""
    raw = reference["hyp_raw"]
    gains = Gains(
        **{name: raw[name] for name in ("box", "cls", "obj")},
        label_smoothing=reference.get("label_smoothing", 0.0),
        focal_gamma=raw.get("fl_gamma", 0.0),
        cls_weight=raw.get("cls_pw", 1.0),
        obj_weight=raw.get("obj_pw", 1.0),
        overlap_share=reference.get("gr", 1.0),
        balance=tuple(reference.get("balance", ())),
    )
    return Detection(
        reference["nc"],
        gains=gains,
        assign="plain" if reference["kind"] == "plain" else "lead",
        anchor_ratio=raw.get("anchor_t", 4.0),
        image_size=reference["hyp_imgsz"],
        **options,
    )


def losses(case: Case) -> None:
    """Candidates, assignment, terms and gradients of a loss on given maps."""
    reference = case.reference
    levels = len(reference["strides"])
    anchors = torch.tensor(reference["anchors_px"], dtype=torch.float32).view(levels, -1, 2)
    anchors = anchors / torch.tensor(reference["strides"])[:, None, None]
    close(case, "anchors_in_stride_units", anchors.flatten(1).tolist(), reference["anchors_in_stride_units"])
    raw = [fill.normal(p["fill.normal"], p["shape"]).requires_grad_() for p in reference["preds"]]
    maps = Maps.of(raw[:levels], anchors, reference["strides"], raw[levels:])
    targets = torch.tensor(reference["targets"], dtype=torch.float32).reshape(-1, 6)
    official_height = _by_height(reference, maps, targets)
    task = task_of(reference, duplicates=True, official_height=official_height)
    gains = task.gains.scaled(levels=levels, classes=reference["nc"], size=reference["hyp_imgsz"])
    close(case, "hyp_scaled", [getattr(gains, n) for n in reference["hyp_scaled"]], [*reference["hyp_scaled"].values()])
    _proposed(case, task, maps, targets)
    tied = at(reference, "tie_check.same_assignment")
    if tied is None or tied == at(reference, "tie_check.candidate_orders_tried"):
        _chosen(case, task, maps, targets, "")
    else:  # what the official code gives here depends on the order of equal columns; `dedup` says what is well defined
        case.seen.update(f"grad.{number}" for number in range(len(raw)))
    if "dedup" in reference:
        _chosen(case, task_of(reference, official_height=official_height), maps, targets, "dedup.")


def _proposed(case: Case, task: Detection, maps: Maps, targets: Tensor) -> None:
    """Candidates of the lead head and of auxiliary heads, and how many come twice."""
    shapes = [raw.shape[2:4] for raw in maps]
    for name, reach in (("lead", 0.5), ("aux", 1.0)):
        options: dict[str, Any] = {"reach": reach, "ratio": task.anchor_ratio}
        found = candidates.candidates(targets, maps.anchors, shapes, duplicates=True, **options)
        rows = [[cells.image, cells.anchor, cells.row, cells.column] for cells in found]
        listed = [torch.stack(fields, dim=1).tolist() for fields in rows]
        wanted = case.reference.get(f"candidates_{name}")
        if wanted and isinstance(wanted[0], int):
            case.equal(f"candidates_{name}", [len(level) for level in listed])
            wanted = case.reference.get(f"candidates_{name}_rows")
        if wanted is not None and [sorted(level) for level in listed] != [sorted(level) for level in wanted]:
            case.wrong.append(f"candidates_{name}: other cells")
        twice = [len(level) - len({tuple(row) for row in level}) for level in listed]
        case.equal(f"candidate_duplicates_{name}", twice)
        if name == "lead" and case.reference["kind"] == "plain":
            case.equal("duplicates_per_level", twice)
        if f"per_image_{name}" in case.reference:
            _per_image(case, task, maps, targets, found, name)


def _by_height(reference: Mapping[str, Any], maps: Maps, targets: Tensor) -> bool:
    """Whether the file's IoUs of a picture that is not square are those of targets scaled by its height alone."""
    height, width = maps.size
    images = [image for image in reference.get("per_image_lead", ()) if image.get("candidates")]
    if height == width or not images:
        return False
    found = candidates.candidates(
        targets, maps.anchors, [m.shape[2:4] for m in maps], ratio=reference["hyp_raw"]["anchor_t"], duplicates=True
    )
    columns = assign._columns(maps, found, maps.anchors, maps.strides)
    first = columns.image == columns.image[0]
    wanted = torch.tensor(images[0]["iou_topk_sum"])
    off = []
    for side in (width, height):
        own = boxes.xyxy_of(targets[:, 2:6] * targets.new_tensor([side, height, side, height]))
        overlap = boxes.iou_matrix(own[targets[:, 0] == columns.image[0]], columns.box[first])
        best = overlap.topk(min(20 if maps.aux else 10, overlap.shape[1])).values.sum(1)
        off.append(float((best - wanted).abs().sum()))
    return off[1] < off[0]


def _per_image(
    case: Case, task: Detection, maps: Maps, targets: Tensor, found: Sequence[candidates.Cells], name: str
) -> None:
    """Of each image: how many columns, the sums of the best IoUs, k."""
    columns = assign._columns(maps, found, maps.anchors, maps.strides)
    height, width = maps.size
    width = height if task.official_height else width
    own = boxes.xyxy_of(targets[:, 2:6] * targets.new_tensor([width, height, width, height]))
    shared, by_class = columns.costs(torch.arange(len(columns.image)))
    place = f"per_image_{name}"
    wanted = [image for image in case.reference[place] if image.get("candidates")]
    numbers = [n for n in range(len(maps[0])) if bool((columns.image == n).any())]
    for image, said in zip(numbers, wanted, strict=True):
        mine, theirs = columns.image == image, targets[:, 0] == image
        overlap = boxes.iou_matrix(own[theirs], columns.box[mine])
        best = overlap.topk(min(20 if maps.aux else 10, overlap.shape[1])).values.sum(1)
        cost = by_class[:, mine][targets[theirs, 1].long()] + shared[mine] - 3 * torch.log(overlap + 1e-8)
        if said["candidates"] != int(mine.sum()) or said["k"] != best.long().clamp(min=1).tolist():
            case.wrong.append(f"{place}.{image}: {int(mine.sum())} candidates, k {best.long().tolist()}, not {said}")
        close(case, f"{place}.{image}.iou_topk_sum", best.tolist(), said["iou_topk_sum"])
        spread = torch.stack((cost.amin(1), cost.mean(1), cost.amax(1)), dim=1)
        close(case, f"{place}.{image}.cost", spread.tolist(), said["cost"])


def _chosen(case: Case, task: Detection, maps: Maps, targets: Tensor, prefix: str) -> None:
    """Assignment, terms, sum and gradients."""
    heads = (("lead", 0.5), ("aux", 1.0)) if maps.aux else (("lead", 0.5),)
    for name, reach in heads:
        found = task.positives(maps, targets, reach=reach, top=20 if maps.aux else 10)
        key = f"{prefix}assignment" + ("" if task.assign == "plain" else f"_{name}")
        listed = [torch.stack(tuple(vars(cells).values()), dim=1).tolist() for cells in found]
        wanted = at(case.reference, key)
        if wanted is not None and [sorted(level) for level in listed] != [sorted(level) for level in wanted]:
            case.wrong.append(f"{key}: other positives")
    found_terms = task.loss(maps, {"targets": targets})
    total = torch.stack(list(found_terms.values())).sum()
    items = [
        sum(float(t.detach()) for n, t in found_terms.items() if n.endswith(name)) for name in ("box", "obj", "cls")
    ]
    close(
        case, f"{prefix}items", [*items, float(total.detach())], at(case.reference, f"{prefix}items_box_obj_cls_total")
    )
    batch = len(maps[0])
    close(case, f"{prefix}loss", float(total.detach()) * batch, at(case.reference, f"{prefix}loss_times_batch"))
    if not prefix:
        leaves = [*maps, *maps.aux]
        for number, grad in enumerate(torch.autograd.grad(total * batch, leaves)):
            std = case.reference["grad"][number]["std"]
            case.compare(f"grad.{number}", grad, atol=RTOL * std)


def items_of(terms: Mapping[str, Tensor]) -> list[float]:
    """Box, objectness, class, each with its auxiliary part, and their sum."""
    values = {name: float(term.detach()) for name, term in terms.items()}
    items = [sum(value for name, value in values.items() if name.endswith(kind)) for kind in ("box", "obj", "cls")]
    return [*items, sum(items)]
