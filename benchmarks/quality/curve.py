"""Quality over compute, and where it first reaches a level."""

from __future__ import annotations

Point = dict[str, float]
"""`samples`, `flops`, `padded_flops` (as if captions were not packed), `seconds` and `score` at one evaluation."""
Curve = list[Point]


def smoothed(points: Curve) -> list[float]:
    """Scores, each the mean of itself and its neighbours: of a few hundred pairs, one or two are luck."""
    scores = [point["score"] for point in points]
    return [sum(near) / len(near) for near in (scores[max(0, i - 1) : i + 2] for i in range(len(scores)))]


def final(points: Curve) -> float:
    """The score at the end."""
    return smoothed(points)[-1]


def first_reached(points: Curve, level: float, spent: str) -> float | None:
    """`spent` when the smoothed score first is `level`, interpolated between evaluations; None: never.

    The curve begins at nothing spent and a score of 0.
    """
    before_x, before_y = 0.0, 0.0
    for point, score in zip(points, smoothed(points), strict=True):
        if score >= level:
            share = (level - before_y) / (score - before_y) if score > before_y else 1.0
            return before_x + share * (point[spent] - before_x)
        before_x, before_y = point[spent], score
    return None
