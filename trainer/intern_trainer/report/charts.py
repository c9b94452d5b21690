"""Line charts as SVG, drawn with the page's own colours, so that they follow its light or dark theme and load
nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 560, 250
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 14, 34
POINTS = 600
"""At most this many points a line are drawn; more cannot be told apart."""


@dataclass(frozen=True)
class Line:
    """One curve. `y` may be shorter than the run where a value was not always there; all y are finite."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    style: str = "line"
    """CSS class of the curve: `line`, `line faint`, `line second`, ..."""
    dots: bool = False


def smoothed(values: Sequence[float], span: float = 0.04) -> list[float]:
    """Exponential moving average over about the share `span` of the curve, without the bias towards 0 at its start."""
    weight = 1 - 1 / max(2.0, span * len(values))
    average, total, result = 0.0, 0.0, []
    for value in values:
        average, total = weight * average + (1 - weight) * value, weight * total + 1 - weight
        result.append(average / total)
    return result


def nice_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers from `low` to `high`, about so many: steps of 1, 2 or 5 times a power of ten."""
    if not high > low:
        return [low]
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def show_number(value: float) -> str:
    """Short and readable: `0`, `0.25`, `1,200`, `5e-4`."""
    if value == 0:
        return "0"
    if abs(value) < 0.01 or abs(value) >= 1e6:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    return f"{value:,.10g}" if abs(value) >= 100 else f"{value:.4g}"


def line_chart(lines: Sequence[Line], x_label: str = "step", y_from_zero: bool = False, percent: bool = False) -> str:
    """An SVG element with axes, grid and a legend where there is more than one line; empty where there is nothing to
    draw.
    """
    drawn = [line for line in lines if len(line.x)]
    if not drawn:
        return ""
    xs, ys = [x for line in drawn for x in line.x], [y for line in drawn for y in line.y]
    x_low, x_high = _range(xs, 0.0)
    y_low, y_high = _range(ys, 0.06)
    if y_from_zero:
        y_low = min(0.0, min(ys))

    def place(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)
        down = HEIGHT - BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)
        return round(across, 1), round(down, 1)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" class="chart">']
    for tick in nice_ticks(y_low, y_high):
        _, y = place(x_low, tick)
        text = f"{tick:.0%}" if percent and y_high > 0.05 else f"{tick:.1%}" if percent else show_number(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{y + 4}" text-anchor="end">{text}</text>')
    for tick in nice_ticks(x_low, x_high, 6):
        x, _ = place(tick, y_low)
        parts.append(
            f'<text class="tick" x="{x}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{show_number(tick)}</text>'
        )
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM}"/>')
    parts.append(f'<text class="tick" x="{WIDTH - RIGHT}" y="{HEIGHT - 3}" text-anchor="end">{escape(x_label)}</text>')
    for line in drawn:
        parts += _curve(line, place)
    return "".join([*parts, "</svg>", _legend(drawn)])


def _curve(line: Line, place: Callable[[float, float], tuple[float, float]]) -> list[str]:
    stride = max(1, math.ceil(len(line.x) / POINTS))
    kept = [*range(0, len(line.x) - 1, stride), len(line.x) - 1]
    points = [place(line.x[i], line.y[i]) for i in kept]
    path = " ".join(f"{x},{y}" for x, y in points)
    parts = [f'<polyline class="{line.style}" points="{path}"/>'] if len(points) > 1 else []
    if line.dots or len(points) == 1:
        for i, (x, y) in zip(kept, points, strict=True):
            told = f"{escape(line.name)}: {line.y[i]:.4g} at {show_number(line.x[i])}"
            parts.append(f'<circle class="{line.style}" cx="{x}" cy="{y}" r="3"><title>{told}</title></circle>')
    return parts


def _legend(lines: Sequence[Line]) -> str:
    if len(lines) < 2:
        return ""
    keys = "".join(
        f'<span><svg viewBox="0 0 20 8" class="key"><line class="{line.style}" x1="0" x2="20" y1="4" y2="4"/></svg>'
        f"{escape(line.name)}</span>"
        for line in lines
    )
    return f'<div class="legend">{keys}</div>'


def _range(values: Sequence[float], margin: float) -> tuple[float, float]:
    """Lowest and highest value, a share of margin added; never empty."""
    low, high = min(values), max(values)
    if low == high:
        pad = abs(low) * 0.1 or 1.0
        return low - pad, high + pad
    return low - margin * (high - low), high + margin * (high - low)
