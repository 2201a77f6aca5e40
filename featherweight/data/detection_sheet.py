# SPDX-License-Identifier: Apache-2.0
"""A detection set as one HTML file: pictures with their boxes, those with something odd first. Opens offline.

Names and texts come from files, so all of them are escaped; pictures are drawn anew and held in the page.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from featherweight.data.detection_report import ODD, describe, oddities, parts_of
from featherweight.data.scenes import Scenery, Scenes
from featherweight.errors import InputError, shown
from featherweight.files import publish

SIDE = 420  # pixels of the longer side of a picture in the page
PER_KIND, SAMPLES = 6, 12  # pictures of each kind; plain ones of each part
COLORS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#42d4f4", "#f032e6", "#808000", "#469990", "#9a6324")
POLICY = "default-src 'none';img-src data:;style-src 'unsafe-inline'"
STYLE = """
:root{color-scheme:light dark}body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:1320px;padding:0 1rem}
table{border-collapse:collapse;margin:1rem 0}td,th{padding:.2rem .8rem;text-align:right;border-bottom:1px solid #8884}
td:first-child,th:first-child{text-align:left}.row{display:flex;flex-wrap:wrap;gap:12px}
figure{margin:0;max-width:420px}figcaption{font-size:12px;overflow-wrap:anywhere}img{max-width:100%;display:block}
li{overflow-wrap:anywhere}h2{margin-top:2rem}
"""


def color(label: int) -> str:
    """The color of a class."""
    return COLORS[label % len(COLORS)]


def write(data: Scenery, path: str | Path) -> Path:
    """Publish the sheet; StorageError if the disk would not take it."""
    publish(path, page(data).encode("utf-8"))
    return Path(path)


def page(data: Scenery) -> str:
    """The whole page."""
    found = describe(data)
    pieces = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{_text(found['name'])}</title><style>{STYLE}</style>",
        f'<meta http-equiv=Content-Security-Policy content="{POLICY}">',
        f"<h1>{_text(found['name'])}</h1>",
        f"<p>{_text(found['format'])}, {len(data.classes)} classes. {_text(found['note'])}",
        _classes(data),
    ]
    pieces += _problems(data, found["findings"])
    pieces += _odd(data)
    for part, scenes in parts_of(data).items():
        which = np.unique(np.linspace(0, len(scenes) - 1, min(SAMPLES, len(scenes))).round().astype(int)).tolist()
        figures = "".join(_figure(scenes, i, data.classes) for i in which)
        pieces.append(f"<h2>{part}: {len(scenes)} pictures</h2><div class=row>{figures}</div>")
    return "\n".join(pieces) + "\n"


def _classes(data: Scenery) -> str:
    parts = list(parts_of(data))
    head = "".join(f"<th>{part} boxes<th>pictures" for part in parts)
    rows = []
    for k, (name, row) in enumerate(describe(data)["classes"].items()):
        cells = "".join(f"<td>{row[part]['boxes']}<td>{row[part]['images']}" for part in parts)
        rows.append(f"<tr><td><span style='color:{color(k)}'>&#9632;</span> {_text(name)}{cells}")
    return f"<table><tr><th>class{head}{''.join(rows)}</table>"


def _problems(data: Scenery, findings: list[dict[str, object]]) -> Iterator[str]:
    """What was found wrong, with pictures where the picture itself can be shown."""
    places = {}
    for scenes in parts_of(data).values():
        places.update({scenes.names(i): (scenes, i) for i in range(len(scenes))})
    for one in findings:
        yield f"<h2>{_text(one['reason'])}: {one['count']} {_text(one['done'])}</h2><ul>"
        examples = [e for e in data.findings.examples if (e.reason, e.done) == (one["reason"], one["done"])]
        yield "".join(f"<li><b>{_text(e.path)}</b>: {_text(e.text)}" for e in examples[: 3 * PER_KIND]) + "</ul>"
        names = list(dict.fromkeys(e.path for e in examples if e.path in places))[:PER_KIND]
        figures = "".join(_figure(*places[name], data.classes) for name in names)
        yield f"<div class=row>{figures}</div>"


def _odd(data: Scenery) -> Iterator[str]:
    every, parts = oddities(data), parts_of(data)
    for kind, what in ODD.items():
        mine = [one for one in every if one.kind == kind]
        if mine:
            figures = "".join(_figure(parts[one.part], one.index, data.classes) for one in mine[:PER_KIND])
            boxes = sum(one.boxes for one in mine)
            head = f"{_text(what)}: {boxes} boxes in {len(mine)} pictures"
            yield f"<h2>worth a look: {head}</h2><div class=row>{figures}</div>"


def _figure(scenes: Scenes, i: int, classes: tuple[str, ...]) -> str:
    """A picture with its boxes, and its name."""
    try:
        picture = drawn(scenes, i)
    except InputError as error:
        return f"<figure><figcaption>{_text(error)}</figcaption></figure>"
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=80)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    objects = scenes.objects(i)
    names = sorted({classes[k] for k in objects.labels.tolist()})
    caption = f"{_text(scenes.names(i))}: {len(objects)} boxes; {_text(', '.join(names))}"
    size = f"width={picture.width} height={picture.height}"
    return f'<figure><img alt="" {size} src="data:image/jpeg;base64,{data}"><figcaption>{caption}</figcaption></figure>'


def drawn(scenes: Scenes, i: int, *, side: int = SIDE) -> Image.Image:
    """Picture i no larger than `side`, its boxes in the colors of their classes, crowds dashed by double lines."""
    pixels, objects = scenes.picture(i), scenes.objects(i)
    gain = min(1.0, side / max(pixels.shape[:2]))
    size = (max(1, round(pixels.shape[1] * gain)), max(1, round(pixels.shape[0] * gain)))
    picture = Image.fromarray(np.ascontiguousarray(pixels)).resize(size, Image.Resampling.BOX)
    draw = ImageDraw.Draw(picture)
    for box, label, crowd in zip(objects.boxes * gain, objects.labels.tolist(), objects.crowd.tolist(), strict=True):
        x1, y1, x2, y2 = (round(side) for side in box.tolist())
        draw.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=color(label), width=2)
        if crowd and x2 - x1 > 8 and y2 - y1 > 8:
            draw.rectangle((x1 + 3, y1 + 3, x2 - 4, y2 - 4), outline=color(label))
    return picture


def _text(value: object) -> str:
    return html.escape(shown(value, limit=300))
