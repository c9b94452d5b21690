from __future__ import annotations

from intern_trainer.evaluate.results import results_entry, results_table


def test_an_entry_has_figures_chance_and_counts_apart() -> None:
    results = {"zs/top1": 0.25, "zs/classes": 4.0, "zs/count": 80.0, "rt/text_to_image_R@5": 0.5, "rt/count": 50.0}
    entry = results_entry("test", 7, "ema", results)
    assert entry["results"] == {"zs/top1": 0.25, "rt/text_to_image_R@5": 0.5}
    assert entry["chance"] == {"zs/top1": 0.25, "rt/text_to_image_R@5": 0.1}
    assert entry["counts"] == {"zs/classes": 4, "zs/count": 80, "rt/count": 50}
    assert (entry["split"], entry["step"], entry["weights"]) == ("test", 7, "ema")
    table = results_table(entry)
    assert "25.00%   chance 25.00%" in table
    assert "rt/count 50" in table
