from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest
from intern_trainer.report.charts import POINTS, Line, line_chart, nice_ticks, show_number, smoothed


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 10, [0, 2, 4, 6, 8, 10]),
        (0.13, 0.52, [0.2, 0.3, 0.4, 0.5]),
        (3, 3, [3]),
        (0, 0.002, [0, 0.0005, 0.001, 0.0015, 0.002]),
    ],
)
def test_ticks_are_round(low: float, high: float, ticks: list[float]) -> None:
    assert nice_ticks(low, high) == pytest.approx(ticks)


@pytest.mark.parametrize(
    ("value", "shown"), [(0, "0"), (0.25, "0.25"), (1200, "1,200"), (0.0005, "5e-4"), (2.5e7, "2.5e7")]
)
def test_numbers_are_short(value: float, shown: str) -> None:
    assert show_number(value) == shown


def test_smoothing_has_no_bias_at_the_start() -> None:
    assert smoothed([4.0] * 5) == pytest.approx([4.0] * 5)
    assert smoothed([0.0, 1.0])[1] == pytest.approx(0.5 / 0.75)


def test_the_highest_point_is_drawn_highest_and_the_last_is_there() -> None:
    steps = list(range(1, 5001))
    values = [1.0] * 4999 + [9.0]
    root = ElementTree.fromstring(line_chart([Line("loss", steps, values)]))
    polyline = next(node for node in root.iter() if node.tag.endswith("polyline"))
    points = [tuple(map(float, point.split(","))) for point in polyline.attrib["points"].split()]
    assert len(points) <= POINTS + 1
    assert points[-1][0] == max(x for x, _ in points)
    assert points[-1][1] < points[0][1]


def test_nothing_to_draw() -> None:
    assert line_chart([Line("loss", [], [])]) == ""


def test_names_are_escaped_and_a_single_point_is_a_dot() -> None:
    svg = line_chart([Line("a<b", [1], [0.5], dots=True), Line("c", [1], [0.6], dots=True)])
    assert "a&lt;b" in svg
    assert "<circle" in svg
    assert "a<b" not in svg
