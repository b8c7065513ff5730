"""Charts of the page, as SVG of a few kilobytes each.

They are drawn here and not by plotly: its script alone is 4.8 MB, one file of a report has to carry
it, and it knows one theme at a time. These take their colours from the page, so they follow its
light and dark theme and print as lines; a mark tells its figures when the pointer rests on it.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

from markupsafe import Markup

__all__ = ["Series", "bars", "bits_class", "dumbbells", "lines", "scatter"]

Series = tuple[str, Sequence[tuple[float, float, str]]]
"""A name, and (x, y, what the pointer is told) for each mark."""

_WIDTH, _HEIGHT = 920, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 74, 900, 16, 244
_BITS = (2.6, 3.6, 5.5, 9.0)


def bits_class(bits: float | None) -> str:
    """The colour class of a number of bits: ``b2``, ``b3``, ``b4``, ``b8`` or ``b16``."""
    if bits is None:
        return "b16"
    names = ("b2", "b3", "b4", "b8")
    return next((name for name, top in zip(names, _BITS, strict=True) if bits <= top), "b16")


def bars(rows: Sequence[tuple[float, str, str]], label: str, across: str) -> Markup:
    """A bar for each row: height, colour class, and what the pointer is told; 0 is the bottom.

    Args:
        rows: one or more.
        label: what the height is.
        across: what is counted from left to right.
    """
    scale = _Scale(0.0, max((row[0] for row in rows), default=0.0) or 1.0)
    step = (_RIGHT - _LEFT) / max(len(rows), 1)
    width = max(1.0, min(step * 0.8, 40.0))
    drawn = []
    for number, (height, colour, told) in enumerate(rows):
        x = _LEFT + step * (number + 0.5) - width / 2
        y = min(scale.at(max(height, 0.0)), _BOTTOM - 1)
        drawn.append(
            f'<rect class="{colour}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" '
            f'height="{_BOTTOM - y:.1f}">{_told(told)}</rect>'
        )
    return _framed([*scale.marks(), *drawn], label, across)


def lines(series: Sequence[Series], label: str, across: str, *, top: float | None = None) -> Markup:
    """One line for each series over the same places; y may be any number.

    Args:
        series: x is the number of the place.
        label: what y is.
        across: what is counted from left to right.
        top: the greatest y that is drawn; None takes the greatest there is.
    """
    ys = [y for _, marks in series for _, y, _ in marks if math.isfinite(y)]
    xs = [x for _, marks in series for x, _, _ in marks]
    high = max(ys, default=1.0) if top is None else top
    scale = _Scale(min([0.0, *ys]), high)
    last = max(xs, default=0.0) or 1.0
    drawn = []
    for number, (_, marks) in enumerate(series):
        points = [
            (_LEFT + (_RIGHT - _LEFT) * x / last, scale.at(min(y, high)), told)
            for x, y, told in marks
            if not math.isnan(y)
        ]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y, _ in points)
        drawn.append(f'<path class="line s{number % 6}" d="M{path}"/>' if points else "")
        drawn += [
            f'<circle class="s{number % 6}" cx="{x:.1f}" cy="{y:.1f}" r="2.6">{_told(told)}'
            "</circle>"
            for x, y, told in points
        ]
    return _framed([*scale.marks(), *drawn], label, across)


def dumbbells(rows: Sequence[tuple[str, float, float]], label: str) -> Markup:
    """Before and after of each row, on one logarithmic scale, a line between the two.

    Args:
        rows: name, before, after; both above 0.
        label: what the numbers are.
    """
    values = [value for _, *pair in rows for value in pair]
    scale = _Scale(min(values), max(values), is_log=True, low=330, high=_RIGHT - 10)
    height = 26 * len(rows) + 56
    drawn = [
        f'<path class="grid" d="M{x:.1f} 8V{height - 44}"/>'
        f'<text x="{x:.1f}" y="{height - 26}" text-anchor="middle">{_figure(value)}</text>'
        for value, x in scale.levels()
    ]
    for number, (name, before, after) in enumerate(rows):
        y = 20 + 26 * number
        a, b = scale.at(before), scale.at(after)
        told = _told(f"{name}: {_figure(before)} before, {_figure(after)} after")
        drawn.append(
            f'<g>{told}<text x="316" y="{y + 5}" text-anchor="end">{_short(name)}</text>'
            f'<path class="stem" d="M{a:.1f} {y}H{b:.1f}"/>'
            f'<circle class="before" cx="{a:.1f}" cy="{y}" r="5"/>'
            f'<circle class="after" cx="{b:.1f}" cy="{y}" r="5"/></g>'
        )
    drawn.append(
        f'<text x="{(330 + _RIGHT) // 2}" y="{height - 4}" text-anchor="middle">'
        f"{html.escape(label)}</text>"
    )
    return _svg(drawn, height)


def scatter(
    series: Sequence[Series], label: str, across: str, *, joined: Sequence[int] = ()
) -> Markup:
    """Points by two figures; y is logarithmic where it can be, and what is 0 lies at the bottom.

    Args:
        series: the points of one kind each; the name stands beside a single point.
        label: what y is.
        across: what x is.
        joined: numbers of series that are drawn as a line.
    """
    marks = [mark for _, points in series for mark in points]
    positive = [y for _, y, _ in marks if y > 0 and math.isfinite(y)]
    low, high = (min(positive), max(positive)) if positive else (0.1, 1.0)
    scale = _Scale(low / 2, high * 1.6, is_log=True)
    along = _Scale(0.0, max((x for x, _, _ in marks), default=1.0) * 1.12, low=_LEFT, high=_RIGHT)
    drawn = [*scale.marks(), *along.marks(is_across=True)]
    for number, (name, points) in enumerate(series):
        placed = [
            (along.at(x), scale.at(min(max(y, low / 2), high * 1.6)), told) for x, y, told in points
        ]
        if number in joined and placed:
            path = "L".join(f"{x:.1f} {y:.1f}" for x, y, _ in placed)
            drawn.append(f'<path class="line s{number % 6} dashed" d="M{path}"/>')
        for x, y, told in placed:
            size = 2.5 if number in joined else 6
            drawn.append(
                f'<circle class="s{number % 6}" cx="{x:.1f}" cy="{y:.1f}" r="{size}">{_told(told)}'
                "</circle>"
            )
        if len(placed) == 1:
            x, y, _ = placed[0]
            end = f'text-anchor="end" x="{x - 10:.1f}"' if x > 620 else f'x="{x + 10:.1f}"'
            drawn.append(f'<text class="name" {end} y="{y - 8:.1f}">{html.escape(name)}</text>')
    return _framed(drawn, label, across)


class _Scale:
    """From figures to places; up the page unless two places are given."""

    def __init__(
        self,
        least: float,
        most: float,
        *,
        is_log: bool = False,
        low: float = _BOTTOM,
        high: float = _TOP,
    ) -> None:
        self._is_log = is_log and least > 0
        if most <= least:
            most = least * 1.1 if self._is_log else least + 1.0
        self._least, self._most = (
            (math.log10(least), math.log10(most)) if self._is_log else (least, most)
        )
        self._low, self._high = low, high

    def at(self, value: float) -> float:
        """The place of a figure."""
        placed = math.log10(value) if self._is_log else value
        share = (placed - self._least) / (self._most - self._least)
        return self._low + (self._high - self._low) * share

    def levels(self) -> list[tuple[float, float]]:
        """Round figures in reach, with their places."""
        if self._is_log:
            decades = range(math.floor(self._least), math.ceil(self._most) + 1)
            digits = (1.0,) if self._most - self._least > 3 else (1.0, 2.0, 5.0)
            values = [digit * 10.0**decade for decade in decades for digit in digits]
            inside = [v for v in values if self._least <= math.log10(v) <= self._most + 1e-9]
            return [(value, self.at(value)) for value in inside]
        step = 10.0 ** math.floor(math.log10((self._most - self._least) / 2))
        step *= next(
            (part for part in (1, 2, 5) if (self._most - self._least) / (step * part) <= 6), 5
        )
        first = math.ceil(self._least / step)
        last = math.floor(self._most / step + 1e-9)
        return [(count * step, self.at(count * step)) for count in range(first, last + 1)]

    def marks(self, *, is_across: bool = False) -> list[str]:
        """Lines and figures for an axis."""
        if is_across:
            return [
                f'<text x="{x:.1f}" y="{_BOTTOM + 20}" text-anchor="middle">{_figure(value)}</text>'
                for value, x in self.levels()
            ]
        return [
            f'<path class="grid" d="M{_LEFT} {y:.1f}H{_RIGHT}"/>'
            f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{_figure(value)}</text>'
            for value, y in self.levels()
        ]


def _framed(drawn: Sequence[str], label: str, across: str) -> Markup:
    middle = (_LEFT + _RIGHT) // 2, (_TOP + _BOTTOM) // 2
    return _svg(
        [
            *drawn,
            f'<path class="axis" d="M{_LEFT} {_TOP}V{_BOTTOM}H{_RIGHT}"/>',
            f'<text x="{middle[0]}" y="{_HEIGHT - 14}" text-anchor="middle">{html.escape(across)}'
            "</text>",
            f'<text transform="translate(16 {middle[1]}) rotate(-90)" text-anchor="middle">'
            f"{html.escape(label)}</text>",
        ],
        _HEIGHT,
    )


def _svg(drawn: Sequence[str], height: float) -> Markup:
    inner = "".join(drawn)
    return Markup(f'<svg role="img" viewBox="0 0 {_WIDTH} {height:.0f}">{inner}</svg>')


def _told(text: str) -> str:
    return f"<title>{html.escape(text)}</title>"


def _figure(value: float) -> str:
    return f"{value:.3g}"


def _short(name: str, most: int = 38) -> str:
    return html.escape(name if len(name) <= most else f"…{name[1 - most :]}")
