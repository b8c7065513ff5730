"""Magnitude by channel as a picture: the few tall channels that are outliers, and where they went.

One panel for each tensor, side by side on one scale: the greatest magnitude of each channel as a
light area, its root mean square as a dark one. As SVG of a few kilobytes, or as HTML to look into.
"""

from __future__ import annotations

import dataclasses
import html
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnxq.errors import MissingDependency

__all__ = ["Panel", "channel_svg", "write_picture"]

Array = np.ndarray[Any, Any]

_WIDTH, _HEIGHT = 1520, 560
_LEFT, _TOP, _BOTTOM, _GAP = 120, 110, 460, 70
_COLOURS = ("#dc2626", "#2563eb", "#16a34a", "#d97706")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Panel:
    """One tensor.

    Attributes:
        label: what stands above it.
        peaks: [channels], the greatest magnitude of each channel.
        roots: [channels], the root mean square of each channel.
    """

    label: str
    peaks: Array
    roots: Array


def write_picture(path: Path, title: str, panels: Sequence[Panel], across: str = "channel") -> None:
    """Write a picture as the ending of the path says: ``.html`` to look into, else SVG.

    Raises:
        MissingDependency: HTML is drawn by plotly, which is not installed.
    """
    is_page = path.suffix.lower() in (".html", ".htm")
    text = _page(title, panels, across) if is_page else channel_svg(title, panels, across)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def channel_svg(title: str, panels: Sequence[Panel], across: str = "channel") -> str:
    """The panels side by side as SVG; all have the scale of the tallest.

    Args:
        title: one line above all.
        panels: one or more.
        across: what is counted from left to right.
    """
    top = max((float(panel.peaks.max(initial=0.0)) for panel in panels), default=0.0) or 1.0
    width = (_WIDTH - _LEFT - 30 - _GAP * (len(panels) - 1)) / len(panels)
    drawn = [_levels(top)]
    for number, panel in enumerate(panels):
        left = _LEFT + number * (width + _GAP)
        drawn.append(_panel(panel, left, width, top, _COLOURS[number % len(_COLOURS)], across))
    middle = (_TOP + _BOTTOM) // 2
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'font-family="sans-serif" font-size="24"><rect width="{_WIDTH}" height="{_HEIGHT}" '
        f'fill="white"/><text x="{_LEFT}" y="36">{html.escape(title)}</text>{"".join(drawn)}'
        f'<text transform="translate(34 {middle}) rotate(-90)" text-anchor="middle">magnitude: '
        "greatest, RMS</text></svg>\n"
    )


def _levels(top: float) -> str:
    """Lines across at round numbers."""
    step = 10.0 ** math.floor(math.log10(top))
    step *= next(part for part in (0.2, 0.5, 1.0) if top / (step * part) <= 6 or part == 1.0)
    marks = []
    for count in range(int(top / step * (1 + 1e-9)) + 1):
        y = _height(count * step, top)
        marks.append(
            f'<path d="M{_LEFT} {y}H{_WIDTH - 30}" stroke="#ddd"/>'
            f'<text x="{_LEFT - 12}" y="{y + 8}" text-anchor="end">{count * step:.4g}</text>'
        )
    return "".join(marks)


def _panel(panel: Panel, left: float, width: float, top: float, colour: str, across: str) -> str:
    middle, right = left + width / 2, left + width
    return (
        f'<text x="{middle:.0f}" y="84" text-anchor="middle" fill="{colour}">'
        f"{html.escape(panel.label)}</text>"
        f'<path d="M{left:.0f} {_TOP}V{_BOTTOM}H{right:.0f}" fill="none" stroke="#aaa"/>'
        f'<g fill="{colour}"><path opacity=".5" d="{_area(panel.peaks, left, width, top)}"/>'
        f'<path d="{_area(panel.roots, left, width, top)}"/></g>'
        f'<text x="{left:.0f}" y="{_BOTTOM + 34}" text-anchor="middle">0</text>'
        f'<text x="{right:.0f}" y="{_BOTTOM + 34}" text-anchor="end">{len(panel.peaks) - 1}</text>'
        f'<text x="{middle:.0f}" y="{_BOTTOM + 70}" text-anchor="middle">{html.escape(across)}'
        "</text>"
    )


def _area(heights: Array, left: float, width: float, top: float) -> str:
    """Steps over the channels; of more channels than there is room for, the tallest of each few."""
    bins = min(len(heights), int(width))
    starts = np.arange(bins) * len(heights) // bins
    levels = [_height(float(value), top) for value in np.maximum.reduceat(heights, starts)]
    edges = [round(left + width * number / bins) for number in range(bins + 1)]
    parts, now = [f"M{edges[0]} {_BOTTOM}"], _BOTTOM
    for number, level in enumerate(levels):
        if level != now:
            parts.append(f"v{level - now}")
            now = level
        parts.append(f"h{edges[number + 1] - edges[number]}")
    return "".join([*parts, f"V{_BOTTOM}z"])


def _height(value: float, top: float) -> int:
    return round(_BOTTOM - (_BOTTOM - _TOP) * value / top)


def _page(title: str, panels: Sequence[Panel], across: str) -> str:
    try:
        from plotly.graph_objects import Scatter
        from plotly.subplots import make_subplots
    except ImportError as error:
        raise MissingDependency("plotly", "plots", "Drawing a picture as HTML") from error
    figure = make_subplots(
        rows=1, cols=len(panels), shared_yaxes=True, subplot_titles=[p.label for p in panels]
    )
    for number, panel in enumerate(panels):
        for name, heights in (("greatest", panel.peaks), ("RMS", panel.roots)):
            area = Scatter(
                y=np.asarray(heights, np.float32).tolist(),
                name=f"{panel.label}: {name}",
                fill="tozeroy",
                line={"shape": "hvh", "width": 1, "color": _COLOURS[number % len(_COLOURS)]},
                opacity=0.5 if name == "greatest" else 1.0,
            )
            figure.add_trace(area, row=1, col=number + 1)
        figure.update_xaxes(title_text=across, row=1, col=number + 1)
    figure.update_layout(title=title, showlegend=False, template="plotly_white")
    return str(figure.to_html(include_plotlyjs=True, full_html=True))
