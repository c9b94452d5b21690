"""What a pipeline costs beside its passes: time that its ranks wait, and parameters that ZeRO gathers for it.

bubble   2 and 4 gloo ranks whose passes wait for a fixed time (forward once, backward twice `--milliseconds`; half of
         it for each of two pieces a rank): the share of a step in which a rank is in no pass, against
         (p - 1) / (v m + p - 1), and the time of a step over that of torch's own `distributed.pipelining` with the same
         pieces. By turns, medians.
gathers  two stages of two ranks, the debug towers: elements all-gathered in a step, and those whole at once, both over
         the stage's parameters; counted, so no other load changes them. 87 % of the second stage's are one embedding.

About two minutes on 2 cores.
"""

from __future__ import annotations

import argparse
import os
from typing import Any

from benchmarks.pipeline.ranks import on_ranks
from benchmarks.results import save

Row = dict[str, Any]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks pipeline", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--milliseconds", type=float, default=10, help="of a rank's forward passes (default 10)")
    parser.add_argument("--repeats", type=int, default=7, help="steps of each kind (default 7)")
    parser.add_argument("--only", choices=("bubble", "gathers"), help="the other one is not measured, nothing is saved")
    chosen = parser.parse_args(arguments)
    load, figures = os.getloadavg()[0], dict[str, Any]()
    if chosen.only != "gathers":
        given = {"seconds": chosen.milliseconds / 1000, "repeats": chosen.repeats}
        cases = [(stages, given | {"micro_batches": [stages, 2 * stages, 4 * stages]}) for stages in (2, 4)]
        figures["bubble"] = [row for stages, case in cases for row in on_ranks("bubble", stages, case)]
        print(bubble_table(figures["bubble"]))
    if chosen.only != "bubble":
        figures["gathers"] = on_ranks("gathers", 4, {"steps": [("1f1b", 2), ("1f1b", 4), ("gpipe", 4)]})
        print(gathers_table(figures["gathers"]))
    if chosen.only is None:
        settings = {"what": __doc__, "milliseconds": chosen.milliseconds, "repeats": chosen.repeats}
        print(save("pipeline", {**settings, "load_before": round(load, 2), **figures}))
    return 0


def bubble_table(rows: list[Row]) -> str:
    lines = [
        "| stages | schedule | pieces a rank | micro-batches | formula | idle | torch's | step over torch's |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        what = f"| {row['stages']} | {row['schedule']} | {row['chunks']} | {row['micro_batches']} "
        shares = f"| {row['bubble']:.1%} | {row['idle']:.1%} | {row['torch_idle']:.1%} "
        lines.append(f"{what}{shares}| {row['seconds_over_torch']:.3f} |")
    return "\n".join(lines)


def gathers_table(rows: list[Row]) -> str:
    lines = [
        "| ZeRO | schedule | micro-batches | gathered a step / parameters, by stage | whole at once, by stage |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        gathered = ", ".join(f"{stage['gathered']:.2f}" for stage in row["stages"])
        whole = ", ".join(f"{stage['whole']:.0%}" for stage in row["stages"])
        lines.append(f"| {row['case']} | {row['schedule']} | {row['micro_batches']} | {gathered} | {whole} |")
    return "\n".join(lines)
