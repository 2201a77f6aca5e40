# SPDX-License-Identifier: Apache-2.0
"""What golden files of detection data ask: augmentation, letterbox and back, suppression, anchors, precision."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from golden_case import Case
from numpy.typing import NDArray

from featherweight.data import anchors, color, detection_batches, mosaic, warp
from featherweight.data import coco as coco_data
from featherweight.data.objects import Objects
from featherweight.runtime.letterbox import Letterbox, Placement
from featherweight.runtime.nms import Nms
from featherweight.scores import coco, published

Array = NDArray[Any]
GRAYS = 0.02  # of a picture's mean: how OpenCV rounds between pixels differs with its version and the processor
PIXELS = 1e-4  # of a box: the authors' are in float32


def near(case: Case, place: str, found: Any, wanted: Any, *, atol: float, rtol: float = 0.0) -> None:
    """Numbers, also nested in lists, against those of the file."""
    mine, theirs = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    mine, theirs = (a.reshape(0) if not a.size else a for a in (mine, theirs))
    if mine.shape != theirs.shape or not np.allclose(mine, theirs, atol=atol, rtol=rtol):
        case.wrong.append(f"{place}: {str(mine.tolist())[:80]}, not {str(theirs.tolist())[:80]}")
    case.seen.add(place)


def tiled(height: int, width: int, add: int = 0) -> Array:
    """The files' picture: (3 (y // 8) + 5 (x // 8) + 40 c + add) mod 256."""
    y, x, c = np.ogrid[:height, :width, :3]
    return ((3 * (y // 8) + 5 * (x // 8) + 40 * c + add) % 256).astype(np.uint8)


def rows_of(scene: warp.Scene) -> Array:
    return np.concatenate([scene.labels[:, None], scene.boxes], axis=1)


# ---- augmentation ----------------------------------------------------------------------------------------------------


def augmentation(case: Case) -> None:
    """Affine and perspective moves, mosaics of four and nine, color."""
    held = case.reference
    for i, one in enumerate(held["affine"]["cases"]):
        _affine(case, f"affine.cases.{i}", one, np.array(held["affine"]["boxes_cls_xyxy"]))
    for name in ("mosaic4", "mosaic9"):
        for i, one in enumerate(held.get(name, {}).get("cases", ())):
            _mosaic(case, f"{name}.cases.{i}", name, one, held[name])
    for i, one in enumerate(held.get("hsv", {}).get("cases", ())):
        found = color.hsv_changed(tiled(64, 96)[..., ::-1], tuple(one["gains"]))[..., ::-1]
        near(case, f"hsv.cases.{i}.mean_bgr", found.reshape(-1, 3).mean(0), one["mean_bgr"], atol=1e-6)
        for y, x, value in one["samples"]:
            near(case, f"hsv.cases.{i}.samples", found[y, x], value, atol=0)


def _affine(case: Case, place: str, one: Mapping[str, Any], boxes: Array) -> None:
    outlines = tuple((_diamond(*box),) if one["with_polygons"] else () for box in boxes[:, 1:])
    scene = warp.Scene(tiled(640, 640), boxes[:, 1:], boxes[:, 0].astype(np.int64), outlines)
    drawn = one["drawn"]
    view = (drawn["px"], drawn["py"]) if one["perspective_on"] else (0.0, 0.0)
    move = warp.Move(view, drawn["deg"], drawn["s"], (drawn["shx"], drawn["shy"]), (drawn["tx"], drawn["ty"]))
    found = warp.warped(scene, move, tuple(one["out_hw"]))
    near(case, f"{place}.boxes", rows_of(found), one["boxes"], atol=PIXELS)
    near(case, f"{place}.image_mean", found.picture.mean(), one["image_mean"], atol=GRAYS)


def _diamond(x1: float, y1: float, x2: float, y2: float) -> Array:
    x, y = (x1 + x2) / 2, (y1 + y2) / 2
    return np.array([[x1, y], [x, y1], [x2, y], [x, y2]])


def _mosaic(case: Case, place: str, name: str, one: Mapping[str, Any], held: Mapping[str, Any]) -> None:
    tiles = []
    for i in one["tiles"]:
        height, width = held["tile_hw"][i]
        shares = np.array([[0.25, 0.25, 0.75, 0.75], [0.8, 0.0, 1.0, 0.2]])
        boxes = shares * (width, height, width, height)
        tiles.append(warp.Scene(tiled(height, width, 20 * i), boxes, np.full(2, i % 4), ((), ())))
    size = (held["img_size"], held["img_size"])
    if name == "mosaic4":
        found = mosaic.mosaic4(tiles, tuple(one["centre_xy"]), size)
    else:
        found = mosaic.mosaic9(tiles, tuple(one["crop_origin_xy"]), size)
    near(case, f"{place}.labels", rows_of(found), one["labels_cls_xyxy"], atol=PIXELS)
    near(case, f"{place}.out_hw", found.picture.shape[:2], one["out_hw"], atol=0)
    near(case, f"{place}.mean", found.picture.mean(), one["mean"], atol=1e-5)
    near(case, f"{place}.share_114", (found.picture == 114).all(-1).mean(), one["share_114"], atol=1e-6)
    for y, x, value in one.get("samples", ()):
        near(case, f"{place}.samples", found.picture[y, x], value, atol=0)


# ---- before and after the network ------------------------------------------------------------------------------------


def pre_post(case: Case) -> None:
    """Letterbox, the way back, rectangular batches, suppression, anchors, which boxes stay."""
    held = case.reference
    defaults = held["letterbox"]["defaults"]
    for i, one in enumerate(held["letterbox"]["cases"]):
        _letterbox(case, f"letterbox.cases.{i}", one, {**defaults, **one["args"]})
    for i, one in enumerate(held.get("scale_back", ())):
        _back(case, f"scale_back.{i}", one)
    for i, one in enumerate(held.get("rect_batches", {}).get("cases", ())):
        _rectangular(case, f"rect_batches.cases.{i}", one, held["rect_batches"]["images_hw"])
    for i, one in enumerate(held.get("nms", {}).get("cases", ())):
        for j, name in enumerate(one["names"]):
            _suppression(case, f"nms.cases.{i}", j, name, one)
    if "anchors" in held:
        _anchors(case, held["anchors"])
    if "coco91" in held:
        near(case, "coco91", coco_data.COCO91, held["coco91"], atol=0)
    if "fitness" in held:
        one = held["fitness"]
        near(case, "fitness", published.fitness(*one["example_in"][2:]), one["example_out"], atol=1e-9)
    if "box_candidates" in held:
        before, after = (np.array(held["box_candidates"][name]) for name in ("before", "after"))
        for key in ("0.1", "0.01"):
            wanted = held["box_candidates"][f"keep_area{key}"]
            near(case, f"box_candidates.{key}", warp.worth(before, after, least=float(key)), wanted, atol=0)


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def _letterbox(case: Case, place: str, one: Mapping[str, Any], args: Mapping[str, Any]) -> None:
    box = Letterbox(
        _pair(args["new_shape"]), auto=args["auto"], scale_up=args["scaleup"], stretch=args["scaleFill"],
        stride=args["stride"], color=args["color"],
    )  # fmt: skip
    picture, placement = box(tiled(*one["in_hw"]))
    near(case, f"{place}.out_hw", picture.shape[:2], one["out_hw"], atol=0)
    near(case, f"{place}.ratio_wh", box.ratio(*one["in_hw"]), one["ratio_wh"], atol=1e-7)
    near(case, f"{place}.pad_wh", _halves(box, placement), one["pad_wh"], atol=1e-9)
    near(case, f"{place}.mean", picture.mean(), one["mean"], atol=GRAYS)


def _halves(box: Letterbox, placement: Placement) -> tuple[float, float]:
    """Half the padding along x and y, as the authors state it; ours is in whole pixels."""
    high, wide = box.inner(*placement.image)
    return (placement.net[1] - wide) / 2, (placement.net[0] - high) / 2


def _back(case: Case, place: str, one: Mapping[str, Any]) -> None:
    net, image = tuple(one["net_hw"]), tuple(one["image_hw"])
    placement = Placement.centered(net, image)
    if one["ratio_pad"] is not None:  # the authors take the height's ratio for both axes
        (down, _), pad = one["ratio_pad"]
        placement = Placement(image, net, (down, down), tuple(pad))
    near(case, f"{place}.out", placement.back(np.array(one["in"])), one["out"], atol=PIXELS)


class _Sizes:
    """Pictures that have nothing but a size and, but for number 4, one object."""

    outlined = False

    def __init__(self, sizes: Any) -> None:
        self.sizes = np.array(sizes, np.int64)
        self.ids = np.arange(len(self.sizes))

    def __len__(self) -> int:
        return len(self.sizes)

    def objects(self, i: int) -> Objects:
        height, width = self.sizes[i].tolist()
        box = np.array([[0.25 * width, 0.1 * height, 0.75 * width, 0.4 * height]])
        return Objects.of(box[: i != 4], np.array([i % 3])[: i != 4])


def _rectangular(case: Case, place: str, one: Mapping[str, Any], sizes: Any) -> None:
    scenes: Any = _Sizes(sizes)
    batches = detection_batches.DetectionBatches(
        scenes, size=one["img_size"], batch_size=one["batch"], stride=one["stride"], rectangular=True,
        rectangular_pad=one["pad"],
    )  # fmt: skip
    order = batches.order(0)[:, 0]
    steps = [order[i : i + one["batch"]] for i in range(0, len(order), one["batch"])]
    near(case, f"{place}.shapes", [batches.net_of(some) for some in steps], one["batch_shapes_hw"], atol=0)
    near(case, f"{place}.order", order, [int(item["file"].split(".")[0]) for item in one["items"]], atol=0)
    for item, index in zip(one["items"], order.tolist(), strict=True):
        where, image = f"{place}.{item['file']}", tuple(sizes[index])
        loaded = batches.loader.resized(*image)
        box = Letterbox(tuple(item["net_hw"]), scale_up=False)
        inner = box.place(*loaded)
        nominal = dataclasses.replace(inner, pad=_halves(box, inner))
        near(case, f"{where}.pad", nominal.pad, item["pad_wh"], atol=1e-6)
        gain = [loaded[0] / image[0] * box.ratio(*loaded)[1], loaded[1] / image[1] * box.ratio(*loaded)[0]]
        near(case, f"{where}.ratio", gain, item["ratio_hw"], atol=1e-6)
        scale = np.tile([loaded[1] / image[1], loaded[0] / image[0]], 2)
        moved = nominal.forward(scenes.objects(index).boxes * scale)
        rows = detection_batches.targets_of(_scene(item["net_hw"], moved, index % 3), 0)[:, 1:]
        near(case, f"{where}.labels", rows, item["labels"], atol=1e-6)


def _scene(net: Any, boxes: Array, label: int) -> warp.Scene:
    picture = np.zeros((*net, 3), np.uint8)
    return warp.Scene(picture, boxes, np.full(len(boxes), label), ((),) * len(boxes))


def _predictions(name: str, one: Mapping[str, Any]) -> Array:
    r, n, count = np.random.RandomState(zlib.crc32(name.encode())), one["n"], one["K"]
    centers, sides = r.uniform(40, one["size"] - 40, (count, 2)), r.uniform(20, 90, (count, 2))
    k = np.arange(n) % count
    xy = centers[k] + r.standard_normal((n, 2)) * one["spread"]
    wh = sides[k] * np.exp(0.15 * r.standard_normal((n, 2)))
    scores = [1 / (1 + np.exp(-(2 * r.standard_normal((n, m)) - b))) for m, b in ((1, 1), (one["nc"], 0))]
    return np.concatenate([xy, wh, *scores], axis=1).astype(np.float32)


def _suppression(case: Case, place: str, j: int, name: str, one: Mapping[str, Any]) -> None:
    args = dict(one["args"])
    classes = tuple(args["classes"]) if args.get("classes") is not None else None
    options = {name: args[name] for name in ("multi_label", "agnostic") if name in args}
    nms = Nms(args.get("conf_thres", 0.25), args.get("iou_thres", 0.45), classes=classes, **options)
    found = nms(_predictions(name, one))
    near(case, f"{place}.count.{j}", len(found), one["count"][j], atol=0)
    wanted = np.array(one["detections"][j]).reshape(-1, 6)
    near(case, f"{place}.detections.{j}", found[: len(wanted)], wanted, atol=1e-5, rtol=1e-6)
    if one["digest"][j] is not None:
        case.compare(f"{place}.digest.{j}", torch.from_numpy(found), atol=1e-5)
    counts = np.bincount(found[:, 5].astype(int), minlength=one["nc"])
    near(case, f"{place}.class_count.{j}", counts, one["class_count"][j], atol=0)


PUBLISHED = {
    "tiny": "10,13 16,30 33,23 30,61 62,45 59,119 116,90 156,198 373,326",
    "p5": "12,16 19,36 40,28 36,75 76,55 72,146 142,110 192,243 459,401",
    "p6": "19,27 44,40 38,94 96,68 86,152 180,137 140,301 303,264 238,542 436,615 739,380 925,792",
}


def _anchors(case: Case, held: Mapping[str, Any]) -> None:
    r = np.random.RandomState(zlib.crc32(b"anchors:wh"))
    sides = np.exp(r.uniform(np.log(6), np.log(420), (400, 1)) + 0.35 * r.standard_normal((400, 2)))
    sides = sides.astype(np.float32).clip(3, 600)
    case.compare("anchors.wh_digest", torch.from_numpy(sides))
    for name, wanted in held["metric_thr4"].items():
        pairs = np.array([pair.split(",") for pair in PUBLISHED[name].split()], np.float64)
        fit = anchors.fit_of(sides.astype(np.float64), pairs)
        numbers = (fit.best_possible_recall, fit.anchors_above_threshold, fit.fitness)
        near(case, f"anchors.{name}", numbers, [wanted[key] for key in ("bpr", "aat", "fitness")], atol=1e-6)
    for generations, floor in held["kmeans_then_evolve_seed0"].items():
        found = anchors.fitted(sides.astype(np.float64), len(floor["anchors"]), generations=int(generations))
        fitness = anchors.fit_of(sides.astype(np.float64), found).fitness
        if fitness < floor["fitness"]:
            case.wrong.append(
                f"anchors after {generations} generations: fitness {fitness:.4f} < {floor['fitness']:.4f}"
            )
        case.seen.add(f"anchors.kmeans_then_evolve_seed0.{generations}")


# ---- average precision -----------------------------------------------------------------------------------------------


def metrics(case: Case) -> None:
    """COCO's twelve numbers and those of each class; the authors' own average precision."""
    for name, held in case.reference.items():
        if isinstance(held, dict) and "gt" in held:
            _set(case, name, held)
        elif isinstance(held, dict) and "recipe" in held:
            _recipe(case, name, held)


def _set(case: Case, name: str, held: Mapping[str, Any]) -> None:
    truth, found = [], []
    columns = {key: held["gt_columns"].index(key) for key in held["gt_columns"]}
    theirs, ours = (np.array(held[key], np.float64) for key in ("gt", "det"))
    for image in np.unique(np.concatenate([theirs[:, 0], ours[:, 0]])):
        g, d = (rows[rows[:, 0] == image] for rows in (theirs, ours))
        boxes = np.concatenate([g[:, 2:4], g[:, 2:4] + g[:, 4:6]], axis=1)
        crowd = g[:, columns["iscrowd"]].astype(bool) if "iscrowd" in columns else np.zeros(len(g), bool)
        areas = g[:, columns["area"]] if "area" in columns else g[:, 4] * g[:, 5]
        truth.append(Objects(boxes, g[:, 1].astype(np.int64), crowd, areas))
        found.append(np.concatenate([d[:, 2:4], d[:, 2:4] + d[:, 4:6], d[:, 6:7], d[:, 1:2]], axis=1))
    if "pycocotools" in held:
        wanted = held["pycocotools"]
        classes = 1 + int(max(theirs[:, 1].max(), ours[:, 1].max(), *map(int, wanted["AP_per_category"])))
        scores = coco.evaluate(truth, found, classes=classes)
        for key, value in scores.stats.items():
            near(case, f"{name}.pycocotools.{key}", value, wanted[key], atol=1e-6)
        for key in ("AP", "AP50"):
            mine = [scores.per_class()[label][key] for label in wanted[f"{key}_per_category"]]
            near(case, f"{name}.{key}_per_category", mine, list(wanted[f"{key}_per_category"].values()), atol=1e-6)
    for metric, wanted in ((m, w) for m, w in held.get("official_loop", {}).items() if m in ("default", "v5_metric")):
        curves = published.evaluate(truth, found, ramp=metric == "v5_metric")
        average = curves.average_precision
        numbers = (curves.precision.mean(), curves.recall.mean(), average[:, 0].mean(), average.mean())
        totals = [wanted[key] for key in ("P", "R", "mAP50", "mAP")]
        near(case, f"{name}.official_loop.{metric}", numbers, totals, atol=1e-6)
        rows = zip(curves.precision, curves.recall, average[:, 0], average.mean(1), curves.f1, strict=True)
        theirs_by = [[w[key] for key in ("P", "R", "AP50", "AP", "F1")] for w in wanted["per_class"].values()]
        near(case, f"{name}.official_loop.{metric}.per_class", list(rows), theirs_by, atol=1e-6)


def _recipe(case: Case, name: str, held: Mapping[str, Any]) -> None:
    z = np.random.RandomState(zlib.crc32(f"ap:{name}".encode()))
    scores, labels, targets, level = z.random_sample(60), z.randint(0, 3, 60), z.randint(0, 3, 40), z.randint(0, 11, 60)
    right = np.arange(10) < level[:, None]
    for metric in ("default", "v5_metric"):
        found = published.curves(right, scores, labels, targets, ramp=metric == "v5_metric")
        for key, mine in (
            ("P", found.precision), ("R", found.recall), ("AP", found.average_precision), ("F1", found.f1),
            ("classes", found.classes),
        ):  # fmt: skip
            near(case, f"{name}.{metric}.{key}", mine, held[metric][key], atol=1e-6)
