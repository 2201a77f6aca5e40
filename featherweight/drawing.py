# SPDX-License-Identifier: Apache-2.0
"""A figure as SVG: small, deterministic, readable in light and in dark.

Figures are drawn with colors that stand for roles. In the page the roles become CSS variables, so that the figure
follows the reader's light or dark theme; in a file they become the colors of one theme. Text stays text.
"""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# role: (stand-in while drawing, light, dark). The stand-ins are colors nobody would choose.
ROLES = {
    "ink": ("#010101", "#1c2127", "#e6e9ed"),
    "muted": ("#010102", "#69727d", "#939ca7"),
    "grid": ("#010103", "#e3e7ec", "#2b323b"),
    "page": ("#010104", "#ffffff", "#14181d"),
    "accent": ("#010105", "#0b6bcb", "#5aa9f8"),
    "good": ("#010106", "#0f7b53", "#3fc68d"),
    "bad": ("#010107", "#b3470f", "#f0934f"),
    "s0": ("#010110", "#69727d", "#939ca7"),
    "s1": ("#010111", "#0b6bcb", "#5aa9f8"),
    "s2": ("#010112", "#0f7b53", "#3fc68d"),
    "s3": ("#010113", "#b3470f", "#f0934f"),
    "s4": ("#010114", "#7a4fd0", "#b494f5"),
    "s5": ("#010115", "#a6325a", "#ee7fa5"),
}
INK, MUTED, GRID, PAGE, ACCENT, GOOD, BAD = (
    ROLES[k][0] for k in ("ink", "muted", "grid", "page", "accent", "good", "bad")
)
SERIES = tuple(ROLES[f"s{i}"][0] for i in range(6))
MARGIN = 8  # around a figure in a file, in points
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"


@dataclass(frozen=True)
class Drawing:
    """One figure: its name, the SVG with stand-in colors, and what it shows in words."""

    name: str
    svg: str
    alt: str

    def inline(self) -> str:
        """For the page: colors by CSS variables, ids of its own, no namespace and no header."""
        text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", self.svg)
        for role, (stand_in, _, _) in ROLES.items():
            text = text.replace(stand_in, f"var(--{role})")
        return text

    def file(self, *, dark: bool = False) -> str:
        """For a file: the colors of one theme on its own background, with a margin and a size in pixels."""
        text = self.svg.replace(' aria-hidden="true"', "")
        for stand_in, light, night in ROLES.values():
            text = text.replace(stand_in, night if dark else light)
        head, _, body = text.partition(">")
        width, height = (float(side) + 2 * MARGIN for side in re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', head)[0])
        size = f'width="{1.6 * width:.0f}" height="{1.6 * height:.0f}"'
        head = re.sub(r'viewBox="[^"]*"', f'viewBox="{-MARGIN} {-MARGIN} {width:.1f} {height:.1f}" {size}', head)
        color = ROLES["page"][2 if dark else 1]
        background = f'<rect x="{-MARGIN}" y="{-MARGIN}" width="100%" height="100%" fill="{color}"/>'
        title = f"<title>{html.escape(self.alt)}</title>"
        return f'<?xml version="1.0" encoding="UTF-8"?>\n{head}>{title}{background}{body}\n'


@contextmanager
def canvas(width: float, height: float, *, columns: int = 1, rows: int = 1) -> Iterator[tuple[Figure, list[Axes]]]:
    """A figure in inches, with our style and nothing global changed."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    style: Any = {
        "svg.fonttype": "none", "svg.hashsalt": "featherweight", "text.parse_math": False, "axes.unicode_minus": True,
        "font.family": ["DejaVu Sans"], "font.size": 9.5, "text.color": INK, "axes.labelcolor": MUTED,
        "axes.edgecolor": GRID, "xtick.color": MUTED, "ytick.color": MUTED, "xtick.major.size": 0,
        "ytick.major.size": 0, "axes.grid": True, "grid.color": GRID, "grid.linewidth": 0.8, "axes.axisbelow": True,
        "axes.titlesize": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False,
        "axes.facecolor": "none", "figure.facecolor": "none", "axes.titlelocation": "left", "axes.titlecolor": INK,
        "legend.frameon": False, "legend.labelcolor": INK, "savefig.facecolor": "none",
    }  # fmt: skip
    with matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the reader's fonts draw the text, not ours
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)  # measures text
        axes = figure.subplots(rows, columns, squeeze=False)
        yield figure, list(axes.flat)


def svg(name: str, figure: Figure, alt: str) -> Drawing:
    """The figure without what varies (dates, header) and with ids that no other figure of the page has."""
    stored = io.StringIO()
    metadata: dict[str, Any] = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(stored, format="svg", metadata=metadata)
    text = stored.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.DOTALL)
    head, tag, body = text.partition(">")
    text = re.sub(r'\s(?:width|height)="[^"]*"', "", head) + tag + re.sub(r'\bid="', f'id="{name}-', body)
    text = text.replace('href="#', f'href="#{name}-').replace("url(#", f"url(#{name}-").replace("'DejaVu Sans'", FONT)
    text = text.replace("<svg", '<svg role="img" aria-hidden="true"', 1)
    return Drawing(name, re.sub(r"\n\s*", "\n", text).strip(), alt)
