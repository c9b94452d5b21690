"""Evaluation results as they are kept and shown."""

from __future__ import annotations

from typing import Any

from intern_trainer.evaluate.metrics import chance_levels

_SIZES = ("count", "classes")


def results_entry(split: str, step: int, weights: str, results: dict[str, float]) -> dict[str, Any]:
    """One entry of evaluation.json: figures, what guessing gives, and how many samples and classes they are about."""
    sizes = {name: int(value) for name, value in results.items() if name.rsplit("/", 1)[1] in _SIZES}
    figures = {name: value for name, value in results.items() if name not in sizes}
    return {
        "split": split,
        "step": step,
        "weights": weights,
        "results": figures,
        "chance": chance_levels(results),
        "counts": sizes,
    }


def results_table(entry: dict[str, Any]) -> str:
    """The figures in per cent, with chance beside them, one a line."""
    width = max((len(name) for name in entry["results"]), default=0)
    lines = [f"{entry['split']} at step {entry['step']}, {entry['weights']} weights (ties count as wrong)"]
    for name, value in entry["results"].items():
        chance = entry["chance"].get(name)
        lines.append(f"  {name:<{width}}  {value:7.2%}" + ("" if chance is None else f"   chance {chance:.2%}"))
    lines.append("  " + ", ".join(f"{name} {value}" for name, value in entry["counts"].items()))
    return "\n".join(lines)
