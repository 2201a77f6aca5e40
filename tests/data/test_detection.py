# SPDX-License-Identifier: Apache-2.0
"""Detection sets: three formats found out and read alike, and every odd thing counted, named, repaired or refused."""

from __future__ import annotations

import json

import detection_files as files
import numpy as np
import pytest

from featherweight.data import detection
from featherweight.data.objects import Findings
from featherweight.data.parts import TooManyBad
from featherweight.errors import InputError, OptionError

MAKE = {"coco": files.coco, "yolo": files.yolo, "voc": files.voc}


@pytest.mark.parametrize("kind", MAKE)
def test_the_three_formats_say_the_same(tmp_path, kind):
    found = detection.load(MAKE[kind](tmp_path / "set"))
    assert found.format == kind and not found.findings.counts and not found.skipped
    names = ("cat", "big dog", "牙刷")
    order = [names.index(name) for name in found.classes]  # VOC sorts by name
    assert sorted(order) == [0, 1, 2]
    assert found.category_ids == ((1, 3, 90) if kind == "coco" else (0, 1, 2))
    assert len(found.train) == len(found.val) == 4 and found.test is None
    assert [len(found.train.objects(i)) for i in range(4)] == [3, 3, 3, 0]
    objects = found.train.objects(1)
    wanted = {order.index(label): box for label, *box in files.BOXES}
    for label, box in zip(objects.labels, objects.boxes, strict=True):
        assert np.allclose(box, wanted[int(label)], atol=1e-3)
    assert found.train.picture(0).shape == (files.HEIGHT, files.WIDTH, 3)
    assert found.train.ids[1] == (9 if kind == "coco" else 1)
    assert detection.is_detection(tmp_path / "set")


def test_the_fingerprint_is_of_labels_and_pictures_and_not_of_the_place(tmp_path):
    one, two = (detection.load(files.yolo(tmp_path / name)) for name in "ab")
    assert one.fingerprint == two.fingerprint
    files.put(tmp_path / "b/labels/train/pic 0.txt", files.yolo_rows(files.BOXES[:2]))
    assert detection.load(tmp_path / "b").fingerprint != one.fingerprint


def yolo_with(root, text, *, on_bad="repair"):
    """A set whose first label file is this."""
    files.put(files.yolo(root) / "labels/train/pic 0.txt", text)
    return detection.load(root, on_bad=on_bad, max_bad=1.0)


ODD = {
    "outside": ("0 1.02 0.5 0.2 0.2", "clipped", 2),
    "far outside": ("0 5 5 0.2 0.2", "bad_box", 1),
    "zero area": ("0 0.5 0.5 0 0.2", "bad_box", 1),
    "nan": ("0 nan 0.5 0.2 0.2", "bad_box", 1),
    "class beyond names": ("3 0.5 0.5 0.2 0.2", "bad_class", 1),
    "twice": ("1 0.5 0.5 0.25 0.25", "duplicate_box", 1),
    "words": ("dog 0.5 0.5 0.2 0.2", "bad_row", 1),
}


@pytest.mark.parametrize("what", ODD)
def test_an_odd_row_is_counted_named_and_dropped_alone(tmp_path, what):
    row, reason, boxes = ODD[what]
    text = f"1 0.5 0.5 0.25 0.25\n{row}\n"
    found = yolo_with(tmp_path / "a", text)
    assert len(found.train.objects(0)) == boxes
    (example,) = found.findings.examples
    assert example.reason == reason and "pic 0.txt line 2" in example.text and example.path.endswith("pic 0.png")
    assert len(yolo_with(tmp_path / "b", text, on_bad="skip").train) == 3
    with pytest.raises(InputError, match="line 2") as refused:
        yolo_with(tmp_path / "c", text, on_bad="refuse")
    assert refused.value.reason == reason


def test_boxes_and_outlines_in_one_file_are_read_row_by_row(tmp_path):
    found = yolo_with(tmp_path, "0 0.5 0.5 0.5 0.5\n1 0.1 0.1 0.4 0.1 0.4 0.4 0.1 0.4\n2 0.5 0.5 0.75 0.5 0.5 0.75\n")
    objects = found.train.objects(0)
    shares = objects.boxes / np.tile((files.WIDTH, files.HEIGHT), 2)
    assert np.allclose(shares, [[0.25, 0.25, 0.75, 0.75], [0.1, 0.1, 0.4, 0.4], [0.5, 0.5, 0.75, 0.75]])
    assert [len(outline) for outline in objects.outlines] == [0, 1, 1]
    assert found.train.outlined


def test_missing_labels_and_pictures_and_sizes_that_disagree(tmp_path):
    root = files.yolo(tmp_path / "yolo")
    (root / "labels/train/pic 1.txt").unlink()
    found = detection.load(root)
    assert found.findings.counts == {("missing", "kept"): 1} and len(found.train.objects(1)) == 0
    root = files.coco(tmp_path / "coco", pictures=8)
    path = root / "annotations/instances_train2017.json"
    tree = json.loads(path.read_text())
    tree["images"][2]["width"], tree["images"][2]["height"] = files.HEIGHT, files.WIDTH
    tree["images"].append({"id": 900, "file_name": "nowhere.png", "width": 5, "height": 5})
    path.write_text(json.dumps(tree))
    with pytest.raises(TooManyBad, match=r"nowhere.png \(missing\)"):
        detection.load(root)
    found = detection.load(root, max_bad=0.2)
    assert found.findings.counts == {("size_mismatch", "repaired"): 1, ("missing", "skipped"): 1}
    assert "swapped" in next(e.text for e in found.findings.examples if e.reason == "size_mismatch")
    assert [one.path for one in found.skipped] == ["nowhere.png"]
    assert len(found.train.objects(2)) == 3, "the picture's own size counts"


def test_labels_that_cannot_be_read_are_not_background(tmp_path):
    root = files.yolo(tmp_path, pictures=30)
    files.put(root / "labels/train/pic 1.txt", b"0 0.5 0.5 0.2 0.2 \xff\xfe\n")
    found = detection.load(root, max_bad=0.05)
    assert len(found.train) == 29 and [(one.path, one.reason) for one in found.skipped] == [
        ("images/train/pic 1.png", "encoding")
    ]
    with pytest.raises(TooManyBad):
        detection.load(root)


@pytest.mark.parametrize("cached", [False, True])
def test_skipping_leaves_out_pictures_with_dropped_rows(tmp_path, cached):
    root = files.yolo(tmp_path / "set")
    files.put(root / "labels/train/pic 0.txt", "9 0.5 0.5 0.2 0.2\n")
    options = {"on_bad": "skip", "max_bad": 0.5, "cache": tmp_path / "cache" if cached else None}
    for _ in range(2):
        found = detection.load(root, **options)
        assert len(found.train) == 3 and [one.path for one in found.skipped] == ["images/train/pic 0.png"]


def test_coco_crowds_outlines_and_categories(tmp_path):
    ring = [4, 6, 20, 6, 12, 30]
    rows = [
        files.annotation(1, 7, 0, (4, 6, 20, 30), segmentation=[ring], area=150.5),
        files.annotation(2, 7, 1, (0, 0, 40, 40), iscrowd=1, segmentation={"counts": [0, 9], "size": [48, 64]}),
        files.annotation(3, 9, 1, (0, 0, 40, 40), segmentation={"counts": "~~", "size": [1 << 40, 1 << 40]}),
    ]
    for i, name in enumerate(["a.png", "sub folder/b.png"]):
        files.put(tmp_path / name, files.picture(i))
    path = files.put(tmp_path / "all.json", json.dumps(files.coco_tree(["a.png", "sub folder\\b.png"], rows)))
    found = detection.load(path, val_share=0.5)
    assert "no validation part" in found.note
    every = {part.names(i): part.objects(i) for part in (found.train, found.val) for i in range(len(part))}
    objects = every["a.png"]
    assert objects.crowd.tolist() == [False, True] and objects.areas.tolist() == [150.5, 1600]
    assert len(objects.targets()) == 1 and np.array_equal(objects.outlines[0][0], np.reshape(ring, (3, 2)))
    assert len(every["sub folder/b.png"].targets()) == 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: t["images"].append({**t["images"][0], "file_name": "x.png"}), "duplicate_id"),
        (lambda t: t["categories"].append(dict(t["categories"][0])), "duplicate_id"),
        (lambda t: t.pop("categories"), "bad_schema"),
        (lambda t: t["images"][0].pop("file_name"), "bad_schema"),
        (lambda t: t["categories"][0].update(id="1"), "bad_schema"),
    ],
)
def test_what_makes_a_coco_file_ambiguous_is_refused(tmp_path, change, reason):
    root = files.coco(tmp_path)
    path = root / "annotations/instances_train2017.json"
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))
    with pytest.raises(InputError) as refused:
        detection.load(root)
    assert refused.value.reason == reason and "\n" not in str(refused.value)


def test_truncated_and_hostile_files_are_refused_in_one_line(tmp_path):
    root = files.coco(tmp_path / "coco")
    path = root / "annotations/instances_train2017.json"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match="bad_json"):
        detection.load(root)
    root = files.voc(tmp_path / "voc", pictures=40)
    laughs = '<!DOCTYPE a [<!ENTITY b "bbb"><!ENTITY c "&b;&b;">]><annotation>&c;</annotation>'
    files.put(root / "Annotations/train_0.xml", laughs)
    files.put(root / "Annotations/train_1.xml", "<annotation><object>")
    found = detection.load(root, max_bad=0.1)
    assert {e.reason for e in found.findings.examples} == {"bad_xml", "truncated"} and len(found.train) == 38
    root = files.yolo(tmp_path / "yolo")
    with (root / "data.yaml").open("a") as stream:
        stream.write("download: |\n  import os\n")
    with pytest.raises(InputError, match="download"):
        detection.load(root)


def test_exif_orientation_turns_the_picture_and_the_labels_are_of_the_upright_one(tmp_path):
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    root = files.yolo(tmp_path)
    files.put(root / "images/train/turned.jpg", files.picture(0, size=(48, 64), form="JPEG", exif=exif))
    files.put(root / "labels/train/turned.txt", "0 0.5 0.5 1 1\n")
    found = detection.load(root)
    place = next(i for i in range(len(found.train)) if found.train.names(i).endswith("turned.jpg"))
    assert found.train.sizes[place].tolist() == [48, 64]
    assert found.train.objects(place).boxes.tolist() == [[0, 0, 64, 48]]


def test_difficult_objects_are_crowds_and_unknown_classes_are_dropped(tmp_path):
    root = files.voc(tmp_path)
    files.put(root / "Annotations/train_0.xml", files.voc_page("train_0.png", difficult=(1,)))
    page = files.voc_page("val_0.png").replace("big dog", "wolf")
    files.put(root / "Annotations/val_0.xml", page)
    found = detection.load(root)
    assert found.train.objects(0).crowd.tolist() == [False, True, False]
    assert len(found.val.objects(0)) == 2
    assert found.findings.counts == {("unknown_category", "dropped"): 1}


def test_the_cache_gives_the_same_and_notices_a_change(tmp_path):
    root, cache = files.coco(tmp_path / "coco"), tmp_path / "cache"
    plain = detection.load(root)
    detection.load(root, cache=cache)
    entries = sorted(cache.iterdir())
    again = detection.load(root, cache=cache)
    assert again.fingerprint == plain.fingerprint and sorted(cache.iterdir()) == entries
    assert [one.suffix for one in entries] == [".safetensors"] * 2
    entries[0].write_bytes(entries[0].read_bytes()[:-1] + b"x")
    assert detection.load(root, cache=cache).fingerprint == plain.fingerprint
    from featherweight.doors import checkpoint

    checkpoint.write(entries[1], {}, {"other": "things"})
    assert detection.load(root, cache=cache).fingerprint == plain.fingerprint
    files.put(root / "train2017/train 0 é.png", files.picture(999))
    changed = detection.load(root, cache=cache)
    assert changed.fingerprint == detection.load(root).fingerprint != plain.fingerprint


def test_options_and_places_are_checked(tmp_path):
    with pytest.raises(OptionError, match="did you mean 'on_bad'"):
        detection.load(tmp_path, on_bat="skip")
    with pytest.raises(OptionError, match="repair, skip, refuse"):
        Findings("mend")
    with pytest.raises(InputError, match="no detection set"):
        detection.load(tmp_path)
    with pytest.raises(InputError, match="digits-det"):
        detection.load(tmp_path / "digit-det")


def test_layouts_that_exports_write(tmp_path):
    """Folders of Roboflow's kind, list files, COCO files beside their pictures, XML beside pictures."""
    for part in ("train", "valid"):
        for i in range(2):
            files.put(tmp_path / f"robo/{part}/images/{i}.png", files.picture(i + 9 * (part == "valid")))
            files.put(tmp_path / f"robo/{part}/labels/{i}.txt", files.yolo_rows())
    text = "train: ../train/images\nval: ../valid/images\nnc: 3\nnames: ['a', 'b', 'c']\nroboflow:\n  license: MIT\n"
    files.put(tmp_path / "robo/data.yaml", text)
    found = detection.load(tmp_path / "robo")
    assert len(found.train) == len(found.val) == 2 and len(found.train.objects(0)) == 3

    files.yolo(tmp_path / "lists")
    files.put(tmp_path / "lists/train.txt", "./images/train/pic 0.png\nimages\\train\\pic 1.png\n../../x.png\n")
    files.put(tmp_path / "lists/data.yaml", "train: train.txt\nval: images/val\nnames: {0: a, 1: b, 2: c}\n")
    found = detection.load(tmp_path / "lists", max_bad=0.5)
    assert len(found.train) == 2 and [one.reason for one in found.skipped] == ["unsafe_path"]

    for part in ("train", "valid"):
        rows = [files.annotation(1, 7, 0, files.BOXES[0][1:])]
        tree = files.coco_tree([f"{part}.png"], rows)
        files.put(tmp_path / f"beside/{part}/_annotations.coco.json", json.dumps(tree))
        files.put(tmp_path / f"beside/{part}/{part}.png", files.picture(len(part)))
        files.put(tmp_path / f"xml/{part}/{part}.png", files.picture(len(part)))
        files.put(tmp_path / f"xml/{part}/{part}.xml", files.voc_page(f"{part}.png"))
    for kind in ("beside", "xml"):
        found = detection.load(tmp_path / kind)
        assert len(found.train) == len(found.val) == 1 and len(found.val.objects(0)) >= 1, kind
