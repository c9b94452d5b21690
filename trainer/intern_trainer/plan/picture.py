"""Memory bars as SVG: one for each stage of the pipeline at its higher moment, cut by what the bytes are for."""

from __future__ import annotations

from html import escape
from itertools import cycle

from intern_trainer.plan import Plan
from intern_trainer.plan.hardware import GIB
from intern_trainer.report.charts import nice_ticks

WIDTH, LEFT, RIGHT, TOP, BAR, GAP, AXIS, LINE = 760, 120, 24, 40, 44, 22, 28, 20
COLOURS = (
    "#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#ff8ab7", "#a463f2", "#97bbf5", "#9c6b4e", "#9498a0",
    "#1f9e89", "#c44e52", "#8172b3",
)  # fmt: skip
"""Observable's palette and three more, one for each part, in the order in which they are met."""


def memory_bars(plan: Plan) -> str:
    """A whole SVG document."""
    bars = [(f"{stage.name}, {len(stage.ranks)} ranks", stage.estimate.memory.parts) for stage in plan.stages]
    capacity = plan.cluster.device.memory
    widest = max(capacity, *(sum(parts.values()) for _, parts in bars)) * 1.02
    colours = dict(zip(dict.fromkeys(name for _, parts in bars for name in parts), cycle(COLOURS), strict=False))
    bottom = TOP + len(bars) * (BAR + GAP)
    height = bottom + AXIS + LINE * -(-len(colours) // 3) + 10

    def place(size: float) -> float:
        return round(LEFT + size / widest * (WIDTH - LEFT - RIGHT), 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" '
        f'font-size="12"><rect width="{WIDTH}" height="{height}" fill="white"/>',
        f'<text x="{LEFT}" y="20">memory of a rank, GiB: {escape(plan.config.model.image)} on '
        f"{plan.cluster.devices} {escape(plan.cluster.device.name)}</text>",
    ]
    for tick in nice_ticks(0, widest / GIB, 8):
        x = place(tick * GIB)
        parts.append(f'<line x1="{x}" x2="{x}" y1="{TOP}" y2="{bottom}" stroke="#ddd"/>')
        parts.append(f'<text x="{x}" y="{bottom + 16}" text-anchor="middle">{tick:g}</text>')
    for index, (name, sizes) in enumerate(bars):
        top, begin = TOP + index * (BAR + GAP) + GAP / 2, 0
        parts.append(f'<text x="{LEFT - 8}" y="{top + BAR / 2 + 4}" text-anchor="end">{escape(name)}</text>')
        for part, size in sizes.items():
            x, end = place(begin), place(begin + size)
            parts.append(
                f'<rect x="{x}" y="{top}" width="{round(end - x, 1)}" height="{BAR}" fill="{colours[part]}">'
                f"<title>{escape(part)}: {size / GIB:.2f} GiB</title></rect>"
            )
            begin += size
    x = place(capacity)
    parts.append(f'<line x1="{x}" x2="{x}" y1="{TOP}" y2="{bottom}" stroke="black" stroke-dasharray="4 3"/>')
    for index, (part, colour) in enumerate(colours.items()):
        x, y = LEFT + (index % 3) * 205, bottom + AXIS + LINE * (index // 3)
        parts.append(f'<rect x="{x}" y="{y}" width="12" height="12" fill="{colour}"/>')
        parts.append(f'<text x="{x + 18}" y="{y + 10}">{escape(part)}</text>')
    return "".join([*parts, "</svg>\n"])
