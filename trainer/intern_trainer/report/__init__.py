"""RUN/report.html: what a run did, on one page that loads nothing from elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from intern_trainer.callbacks.sinks import read_records
from intern_trainer.errors import ConfigError
from intern_trainer.observe.memory import show_bytes
from intern_trainer.observe.phases import show_seconds
from intern_trainer.observe.versions import blank_secrets
from intern_trainer.report.charts import Line, line_chart, smoothed
from intern_trainer.report.page import write_page
from intern_trainer.run_folder import RunFolder


def write_report(folder: RunFolder) -> Path:
    """Write the report from what the run's folder holds; gives its path. Works for a run that has not ended, too.

    Raises:
        ConfigError: the run has not logged a step yet.
    """
    records = read_records(folder.metrics)
    if not records:
        raise ConfigError(
            f"{folder.metrics} holds no record yet", "a report shows a run's curves", "train at least log.every steps"
        )
    return write_page(folder.report, "template.html", _content(folder, records))


def _content(folder: RunFolder, records: list[dict[str, float]]) -> dict[str, Any]:
    run, evaluations = folder.read(folder.run, {}), folder.read(folder.evaluation, [])
    last, start = records[-1], (run.get("starts") or [{}])[-1]
    return {
        "name": folder.path.resolve().name,
        "status": run.get("status", "unknown"),
        "tiles": _tiles(run, records),
        "charts": _charts(records, evaluations),
        "evaluations": [_rows(entry) for entry in _newest(evaluations)],
        "samples": folder.read(folder.samples, None),
        "start": start,
        "starts": len(run.get("starts", [])),
        "facts": run.get("facts", {}),
        "phases": {what: show_seconds(seconds) for what, seconds in run.get("phases", {}).items()},
        "config": blank_secrets(folder.config.read_text(encoding="utf-8")),
        "recipe": yaml.safe_load(folder.config.read_text(encoding="utf-8")),
        "ds_config": folder.ds_config.read_text(encoding="utf-8") if folder.ds_config.is_file() else "",
        "last": last,
    }


def _tiles(run: dict[str, Any], records: list[dict[str, float]]) -> list[tuple[str, str]]:
    last, facts = records[-1], run.get("facts", {})
    median = sorted(record["images_per_second"] for record in records)[len(records) // 2]
    tiles = [
        ("steps", f"{last['step']:,} of {run.get('steps', last['step']):,}"),
        ("samples seen", f"{last['samples']:,}"),
        ("last loss", f"{last['loss']:.3f}"),
        ("images / s (median)", f"{median:,.0f}"),
        ("time in the loop", show_seconds(last["seconds"])),
        ("memory of rank 0", show_bytes(max(record["memory_bytes"] for record in records))),
    ]
    if "parameters" in facts:
        tiles.append(("parameters", f"{facts['parameters']:,}"))
    if "mfu" in last:
        tiles.append(("MFU", f"{last['mfu']:.1%}"))
    return tiles


def _charts(records: list[dict[str, float]], evaluations: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """(title, SVG) of each chart that has something to show."""
    steps = [record["step"] for record in records]

    def of(name: str) -> list[float]:
        return [record[name] for record in records]

    loss = of("loss")
    validation = [entry for entry in evaluations if entry["split"] == "validation"]
    charts = [
        (
            "Training loss",
            line_chart([Line("as logged", steps, loss, "line faint"), Line("smoothed", steps, smoothed(loss))]),
        ),
        ("Validation", _validation_chart(validation)),
        ("Learning rate", line_chart([Line("learning rate", steps, of("lr"))], y_from_zero=True)),
        (
            "Gradient norm before clipping",
            line_chart([Line("gradient norm", steps, of("grad_norm"))], y_from_zero=True),
        ),
        ("Images a second", line_chart([Line("images / s", steps, of("images_per_second"))], y_from_zero=True)),
        (
            "Time spent waiting for data",
            line_chart([Line("waiting", steps, of("data_wait"))], y_from_zero=True, percent=True),
        ),
    ]
    return [(title, svg) for title, svg in charts if svg]


def _validation_chart(entries: list[dict[str, Any]]) -> str:
    """The figures that move: top 1 and R@5, one line each."""
    names = [name for name in (entries[0]["results"] if entries else {}) if name.endswith(("/top1", "_R@5"))]
    styles = ("line", "line second", "line third", "line fourth")
    lines = []
    for number, name in enumerate(names):
        having = [entry for entry in entries if name in entry["results"]]
        steps, values = [entry["step"] for entry in having], [entry["results"][name] for entry in having]
        lines.append(Line(name, steps, values, styles[number % len(styles)], dots=True))
    return line_chart(lines, y_from_zero=True, percent=True)


def _newest(evaluations: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The newest evaluation of each split and kind of weights; test first."""
    newest = {
        (entry["split"], entry["weights"]): entry for entry in sorted(evaluations, key=lambda entry: entry["step"])
    }
    return sorted(newest.values(), key=lambda entry: (entry["split"] != "test", entry["weights"]))


def _rows(entry: dict[str, Any]) -> dict[str, Any]:
    """One evaluation as the table shows it: name, figure, chance, how many times chance."""
    rows = []
    for name, value in entry["results"].items():
        chance = entry["chance"].get(name)
        benchmark, metric = name.rsplit("/", 1)
        rows.append((benchmark, metric.replace("_", " "), value, chance, value / chance if chance else None))
    return {**entry, "rows": rows}
