# SPDX-License-Identifier: Apache-2.0
"""YOLOv7 (Wang 2022, 2207.02696): detectors from tiny to E6E in training and deploy form, under the official names.

Written from a sheet of facts and the papers (docs/provenance.md); the wiring is in `yolov7_graph`. Not here: decoding,
loss and assignment (`tasks.detection`), merging for deployment (`methods.fuse`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..convs import ConvNorm, RepConv, activation, fused, shell
from ..errors import OptionError
from ..surgery import Aside
from . import yolov7_graph, yolov7_text
from .yolov7_blocks import SPPCSPC, Add, Cat, DownC, ReOrg, Up, Widest
from .yolov7_graph import Graph, Row
from .yolov7_head import Detect

FORMS, CUSTOM = ("deploy", "training"), "custom"
_P5 = ((12, 16, 19, 36, 40, 28), (36, 75, 76, 55, 72, 146), (142, 110, 192, 243, 459, 401))
_TINY = ((10, 13, 16, 30, 33, 23), (30, 61, 62, 45, 59, 119), (116, 90, 156, 198, 373, 326))
_P6 = (
    (19, 27, 44, 40, 38, 94),
    (96, 68, 86, 152, 180, 137),
    (140, 301, 303, 264, 238, 542),
    (436, 615, 739, 380, 925, 792),
)
Anchors = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class YOLOv7Config:
    variant: str = "yolov7"  # or "custom", with a graph
    form: str = "deploy"  # training: implicit vectors in the head, and auxiliary branches where the authors have them
    num_classes: int = 80
    activation: str = ""  # of plain convolutions; "": the variant's own
    anchors: Anchors = field(default=(), metadata={"own_check": True})  # a row a level: w, h, w, h, ... in pixels
    image_size: tuple[int, ...] = ()  # height, width it is meant for; (): 640, P6 variants 1280. All multiples run
    graph: str = ""  # of a custom variant, as `yolov7_text` writes it

    def __post_init__(self) -> None:
        own = "silu" if self.variant == CUSTOM else yolov7_graph.find(self.variant)[1]
        if self.form not in FORMS:
            raise OptionError("form", f"{self.form!r} is not one of {', '.join(FORMS)}")
        if bool(self.graph) != (self.variant == CUSTOM):
            raise OptionError("graph", f"belongs to variant={CUSTOM!r}, and that variant needs one")
        object.__setattr__(self, "activation", self.activation or own)
        activation(self.activation)
        if self.graph:  # one spelling, so that equal graphs are equal configurations
            object.__setattr__(self, "graph", yolov7_text.write(yolov7_text.parse(self.graph)))
        wired = self.wired
        strides = [shapes(wired.rows)[1][row] for row in wired.lead]
        size: Any = self.image_size or (1280 if max(strides) > 32 else 640)
        object.__setattr__(self, "image_size", (size, size) if isinstance(size, int) else tuple(size))
        if len(self.image_size) != 2 or any(n % max(strides) or n < 1 for n in self.image_size):
            right = f"is not a height and a width in multiples of {max(strides)}"
            raise OptionError("image_size", f"{self.image_size} {right}")
        usual = _TINY if self.variant.startswith("yolov7_tiny") else {3: _P5, 4: _P6}.get(len(strides), ())
        anchors = _checked(self.anchors if self.anchors != () else usual, len(strides))
        object.__setattr__(self, "anchors", tuple(tuple(map(float, level)) for level in anchors))

    @property
    def wired(self) -> Graph:
        """The rows of this variant and form."""
        if self.variant == CUSTOM:
            graph = yolov7_text.parse(self.graph)
            return graph if self.form == "training" else lead_only(graph)
        design, _ = yolov7_graph.find(self.variant)
        return yolov7_graph.wire(design, aux=self.form == "training" and design.reorg)


def _checked(anchors: Any, levels: int) -> Anchors:
    """Anchors as a row of widths and heights per level; pairs may be nested. OptionError for anything else."""
    right = f"{levels} levels of w, h pairs in pixels, equally many in each"
    if not isinstance(anchors, (list, tuple)) or len(anchors) != levels:
        raise OptionError("anchors", f"must be {right}, not {anchors!r}")
    rows: list[tuple[float, ...]] = []
    for level in anchors:
        flat: list[Any] = []
        for item in level if isinstance(level, (list, tuple)) else [None]:
            flat.extend(item if isinstance(item, (list, tuple)) else [item])
        if not all(type(n) in (int, float) and 0 < n < 1e5 for n in flat) or len(flat) % 2 or not flat:
            raise OptionError("anchors", f"must be {right}, not {level!r}")
        rows.append(tuple(flat))
    if len({len(row) for row in rows}) > 1:
        raise OptionError("anchors", f"must be {right}, not {[len(row) // 2 for row in rows]}")
    return tuple(rows)


class YOLOv7(nn.Module):
    """Images (B, 3, H, W) of values 0..1 -> a tuple of raw maps, one per level, finest first.

    Each is (B, A, H_l, W_l, 5 + K): x, y, w, h, objectness, classes before sigmoid; the same in training, which also
    puts the auxiliary branches' maps aside (`aside.aux`), where there are any. H and W are multiples of the largest
    stride; OptionError otherwise.
    """

    def __init__(self, config: YOLOv7Config) -> None:
        super().__init__()
        self.config = config
        self.graph = graph = config.wired
        widths, strides = shapes(graph.rows)
        layers: list[nn.Module] = [_layer(row, widths, config.activation) for row in graph.rows]
        head = Detect(
            [widths[row] for row in graph.lead],
            config.anchors,
            [strides[row] for row in graph.lead],
            config.num_classes,
            implicit=config.form == "training",
            aux_channels=[widths[row] for row in graph.aux],
        )
        self.model = nn.ModuleList([*layers, head])
        self.aside = Aside()

    @property
    def head(self) -> Detect:
        """The head, which knows anchors (L, A, 2) in units of strides, strides and the number of classes."""
        return self.model[-1]  # type: ignore[return-value]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        images = self._checked(images)
        with_aux = self.training and len(self.graph.aux) > 0
        maps = self.rows(images, self.graph.lead + (self.graph.aux if with_aux else ()))
        levels = self.graph.levels
        if with_aux:
            self.aside.aux = self.head.aux(maps[levels:])
        return self.head(maps[:levels])  # type: ignore[no-any-return]

    def rows(self, images: Tensor, wanted: Sequence[int]) -> list[Tensor]:
        """What these rows of the graph put out, (B, C, H / stride, W / stride); only what they need is computed.

        `graph.lead` is what the head reads, `graph.aux_sources` what auxiliary branches would read.
        """
        kept = {-1: images}
        for row, forget in schedule(self.graph.rows, wanted):
            kept[row] = self.model[row](*(kept[source] for source in self.graph.rows[row].sources))
            for source in forget:
                del kept[source]
        return [kept[row] for row in wanted]

    def channels(self, row: int) -> int:
        """The width of a row's output."""
        return shapes(self.graph.rows)[0][row]

    def _checked(self, images: Tensor) -> Tensor:
        """The images, where their size fits; laid out as a CPU is fastest with (a third faster than by channels)."""
        if torch.compiler.is_compiling():
            return images
        stride, (height, width) = max(self.head.strides), images.shape[-2:]
        if height % stride or width % stride or not height or not width:
            fit = [max(stride, -(-n // stride) * stride) for n in (height, width)]
            raise OptionError(
                "image_size", f"{height} x {width} is no multiple of the stride {stride}; {fit[0]} x {fit[1]} is"
            )
        return images.contiguous(memory_format=torch.channels_last) if images.device.type == "cpu" else images


def shapes(rows: Sequence[Row]) -> tuple[list[int], list[int]]:
    """Channels and stride of every row's output. OptionError where inputs do not fit together."""
    widths: list[int] = []
    strides: list[float] = []
    for number, row in enumerate(rows):
        sources = [(3, 1.0) if source < 0 else (widths[source], strides[source]) for source in row.sources]
        channels, stride = sources[0]
        if len({s for _, s in sources}) > 1 or (row.block == "add" and len({c for c, _ in sources}) > 1):
            raise OptionError(f"row {number}", f"{row.block} of maps that differ: channels and strides {sources}")
        if row.block in ("mp", "reorg", "downc"):
            stride *= 2
        stride = stride / 2 if row.block == "up" else stride * row.stride
        joined = sum(c for c, _ in sources) if row.block == "cat" else channels
        widths.append(row.channels or (4 * channels if row.block == "reorg" else joined))
        strides.append(stride)
    return widths, [int(stride) for stride in strides]


def schedule(rows: Sequence[Row], wanted: Iterable[int]) -> list[tuple[int, list[int]]]:
    """The rows to compute for the wanted ones, in order, each with those that nobody needs after it."""
    kept = set(wanted)
    needed = set(kept)
    for row in range(max(needed), -1, -1):
        if row in needed:
            needed.update(rows[row].sources)
    last: dict[int, int] = {}
    for row in sorted(needed - {-1}):
        last |= dict.fromkeys(rows[row].sources, row)
    forget: dict[int, list[int]] = {}
    for source, row in last.items():
        if source not in kept:
            forget.setdefault(row, []).append(source)
    return [(row, forget.get(row, [])) for row in sorted(needed - {-1})]


def _layer(row: Row, widths: Sequence[int], act: str) -> nn.Module:
    inputs = 3 if row.sources[0] < 0 else widths[row.sources[0]]
    if row.block == "conv":
        return ConvNorm(inputs, row.channels, row.kernel, row.stride, act=row.act or act)
    if row.block == "rep":
        return RepConv(inputs, row.channels, row.stride)
    if row.block in ("sppcspc", "downc"):
        return (SPPCSPC if row.block == "sppcspc" else DownC)(inputs, row.channels)
    if row.block == "sp":
        return Widest(row.kernel)
    return nn.MaxPool2d(2) if row.block == "mp" else _PLAIN[row.block]()


_PLAIN: dict[str, type[nn.Module]] = {"up": Up, "cat": Cat, "add": Add, "reorg": ReOrg}


def lead_only(graph: Graph) -> Graph:
    """The graph without auxiliary branches and the rows that only they read; those stand last."""
    needed = [row for row, _ in schedule(graph.rows, graph.lead)]
    if not graph.aux or needed != list(range(len(needed))):
        return graph
    return Graph(graph.rows[: len(needed)], graph.lead, (), graph.aux_sources)


@fused.register
def _(detector: YOLOv7) -> nn.Module | None:
    """The deploy graph: auxiliary branches go with the rows that only they read, and the head moves up."""
    graph = lead_only(detector.graph)
    if graph is detector.graph:
        return None
    new = shell(detector)
    new.graph = graph
    new.model = nn.ModuleList([*detector.model[: len(graph.rows)], fused(detector.head)])  # type: ignore[list-item]
    new.aside = Aside()
    return new
