# SPDX-License-Identifier: Apache-2.0
"""How the YOLOv7 variants are wired (Wang 2022, 2207.02696): the blocks ELAN, ELAN-H and E-ELAN, and three designs.

A graph is a list of rows; a row is a layer, the absolute rows it reads (-1 is the image) and its width. X, E6, D6 and
E6E are derived from v7 and W6 by compound scaling: deeper chains make a concatenation wider, and only the transition
layers beside it (closing 1x1, down-sampling, head) are widened to match. Row numbers are those of the official files.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..errors import OptionError, closest


@dataclass(frozen=True)
class Row:
    """One layer: which block, the rows it reads, and what the block needs to know."""

    block: str  # conv, mp, sp, up, cat, add, reorg, downc, sppcspc, rep
    sources: tuple[int, ...]
    channels: int = 0  # out; 0 where the block keeps what it gets
    kernel: int = 1
    stride: int = 1
    act: str = ""  # another activation than the model's


@dataclass(frozen=True)
class Graph:
    """All rows but the head's, and which rows the head reads: lead first, then auxiliary, finest level first."""

    rows: tuple[Row, ...]
    lead: tuple[int, ...]
    aux: tuple[int, ...] = ()
    aux_sources: tuple[int, ...] = ()  # what auxiliary branches read, finest level first (E6E: half of a sum)

    @property
    def levels(self) -> int:
        return len(self.lead)


@dataclass(frozen=True)
class Design:
    """What a variant is made of; widths in channels."""

    stem: tuple[tuple[int, int], ...]  # 3x3 convolutions: channels, stride
    stages: tuple[tuple[int, int, int], ...]  # down-sampling to (0: the stem ended with it), width and closing of ELAN
    neck: tuple[tuple[int, int], ...]  # P3, P4, ...: width and closing of ELAN
    depth: int = 4  # 3x3 convolutions in a chain
    every: int = 2  # which of the chain's outputs are concatenated
    halved: bool = True  # ELAN-H in the neck: a chain of half the width, every output concatenated
    doubled: bool = False  # E-ELAN: two of them, summed
    reorg: bool = False  # the image's pixels to channels, first
    down: tuple[str, str] = ("halves", "halves")  # of backbone and neck: pool, conv, halves, downc
    spp: str = "sppcspc"
    head: str = "rep"
    aux_width: float = 1.0  # auxiliary head convolutions, relative to the lead's


TINY = Design(
    stem=((32, 2), (64, 2)),
    stages=((0, 32, 64), (64, 64, 128), (128, 128, 256), (256, 256, 512)),
    neck=((32, 64), (64, 128), (128, 256)),
    depth=2,
    every=1,
    halved=False,
    down=("pool", "conv"),
    spp="light",
    head="conv",
)
V7 = Design(
    stem=((32, 1), (64, 2), (64, 1), (128, 2)),
    stages=((0, 64, 256), (256, 128, 512), (512, 256, 1024), (1024, 256, 1024)),
    neck=((128, 128), (256, 256), (512, 512)),
)
W6 = Design(
    stem=((64, 1),),
    stages=((128, 64, 128), (256, 128, 256), (512, 256, 512), (768, 384, 768), (1024, 512, 1024)),
    neck=((128, 128), (256, 256), (384, 384), (512, 512)),
    reorg=True,
    down=("conv", "conv"),
    head="conv",
    aux_width=1.25,
)


def compound(base: Design, *, depth: float, width: float) -> Design:
    """Chains `depth` times as long, transition layers `width` times as wide; the chains' own width stays."""
    return replace(
        base,
        depth=round(base.depth * depth),
        stem=tuple((round(c * width), stride) for c, stride in base.stem),
        stages=tuple((round(d * width), inner, round(out * width)) for d, inner, out in base.stages),
        neck=tuple((inner, round(out * width)) for inner, out in base.neck),
        aux_width=1.0,
    )


X = replace(compound(V7, depth=1.5, width=1.25), halved=False, head="conv")
E6 = replace(compound(W6, depth=1.5, width=1.25), down=("downc", "downc"))
D6 = replace(compound(W6, depth=2.0, width=1.5), down=("downc", "downc"))
E6E = replace(E6, doubled=True)

VARIANTS: dict[str, tuple[Design, str]] = {  # with the activation that its authors train it with
    "yolov7_tiny": (TINY, "leaky_relu"),
    "yolov7_tiny_silu": (TINY, "silu"),
    "yolov7": (V7, "silu"),
    "yolov7x": (X, "silu"),
    "yolov7_w6": (W6, "silu"),
    "yolov7_e6": (E6, "silu"),
    "yolov7_d6": (D6, "silu"),
    "yolov7_e6e": (E6E, "silu"),
}


def find(variant: str) -> tuple[Design, str]:
    """A variant's design and activation; OptionError for an unknown name."""
    if variant not in VARIANTS:
        raise OptionError("variant", f"no {variant!r}; {closest(variant, VARIANTS)}Known: {', '.join(VARIANTS)}")
    return VARIANTS[variant]


class _Wire:
    """Rows while they are listed; every method returns the number of the row it added."""

    def __init__(self, design: Design) -> None:
        self.design = design
        self.rows: list[Row] = []

    def add(self, block: str, *sources: int, channels: int = 0, kernel: int = 1, stride: int = 1) -> int:
        self.rows.append(Row(block, sources, channels, kernel, stride))
        return len(self.rows) - 1

    def conv(self, source: int, channels: int, kernel: int = 1, stride: int = 1) -> int:
        return self.add("conv", source, channels=channels, kernel=kernel, stride=stride)

    def cat(self, *sources: int) -> int:
        return sources[0] if len(sources) == 1 else self.add("cat", *sources)

    def elan(self, x: int, width: int, inner: int, every: int, out: int) -> int:
        """Two 1x1 on x, a chain of 3x3 on the second; chosen outputs, newest first, and both 1x1; a 1x1 closes."""

        def one() -> int:
            first = self.conv(x, width)
            chain = [self.conv(x, width)]
            for _ in range(self.design.depth):
                chain.append(self.conv(chain[-1], inner, 3))
            taps = chain[every::every]
            return self.conv(self.cat(*reversed(taps), chain[0], first), out)

        if not self.design.doubled:
            return one()
        halves = one(), one()
        return self.add("add", halves[1], halves[0])

    def neck_elan(self, x: int, level: int) -> int:
        width, out = self.design.neck[level]
        if self.design.halved:
            return self.elan(x, width, width // 2, 1, out)
        return self.elan(x, width, width, self.design.every, out)

    def down(self, x: int, kind: str, out: int) -> tuple[int, ...]:
        """Half the resolution and `out` channels, as the rows to concatenate."""
        if kind == "pool":
            return (self.add("mp", x),)
        if kind == "conv":
            return (self.conv(x, out, 3, 2),)
        if kind == "downc":
            return (self.add("downc", x, channels=out),)
        pooled = self.conv(self.add("mp", x), out // 2)
        return self.conv(self.conv(x, out // 2), out // 2, 3, 2), pooled

    def spp(self, x: int, out: int) -> int:
        """Max pools of several windows beside each other; in the light form plain rows, 9 and 13 as pools of pools."""
        if self.design.spp == "sppcspc":
            return self.add("sppcspc", x, channels=out)
        side, main = self.conv(x, out), self.conv(x, out)
        pools = [self.add("sp", main, kernel=kernel) for kernel in (5, 9, 13)]
        closed = self.conv(self.cat(*reversed(pools), main), out)
        return self.conv(self.cat(closed, side), out)


def wire(design: Design, *, aux: bool = False) -> Graph:
    """The graph of a design, with the convolutions before auxiliary heads or without."""
    g = _Wire(design)
    x = g.add("reorg", -1) if design.reorg else -1
    for channels, stride in design.stem:
        x = g.conv(x, channels, 3, stride)
    stages = []
    for down, width, out in design.stages:  # backbone: 1/4, 1/8, ... of the image
        if down:
            x = g.cat(*g.down(x, design.down[0], down))
        x = g.elan(x, width, width, design.every, out)
        stages.append(x)
    outs = [out for _, out in design.neck]
    top = len(outs) - 1
    stages = stages[-len(outs) :]  # P3, P4, ...
    maps = {top: g.spp(x, outs[top])}
    for level in reversed(range(top)):  # top-down
        up = g.add("up", g.conv(maps[level + 1], outs[level]))
        maps[level] = g.neck_elan(g.cat(g.conv(stages[level], outs[level]), up), level)
    lead = [maps[0]]
    for level in range(1, top + 1):  # bottom-up
        halves = g.down(lead[-1], design.down[1], outs[level])
        lead.append(g.neck_elan(g.cat(*halves, maps[level]), level))
    # partial auxiliary heads: of a sum they read the second half only
    sources = tuple(g.rows[maps[k]].sources[0] if g.rows[maps[k]].block == "add" else maps[k] for k in range(top + 1))
    heads = [g.add(design.head, x, channels=2 * out, kernel=3) for x, out in zip(lead, outs, strict=True)]
    widths = [round(2 * out * design.aux_width) for out in outs]
    helpers = [g.conv(x, width, 3) for x, width in zip(sources, widths, strict=True)] if aux else []
    return Graph(tuple(g.rows), tuple(heads), tuple(helpers), sources)
