"""A plan for people (tables), and for programs (JSON)."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from intern_trainer.observe.memory import show_bytes
from intern_trainer.observe.phases import show_seconds
from intern_trainer.plan import Plan, Stage
from intern_trainer.plan.estimate import Estimate
from intern_trainer.plan.fit import name_of
from intern_trainer.plan.hardware import GIB
from intern_trainer.plan.stages import bubble_line


def as_json(plan: Plan) -> dict[str, Any]:
    """All figures; bytes and seconds as they are."""
    device, failures = plan.cluster.device, plan.failures
    return {
        "cluster": {
            "gpu": device.name,
            "gpus": plan.cluster.devices,
            "per_node": plan.cluster.per_node,
            "memory": device.memory,
            "efficiency": plan.cluster.efficiency,
            "overlap": plan.cluster.overlap,
        },
        "parameters": {"total": plan.weights.total, "trained": plan.weights.trained},
        "forward_flops": plan.flops,
        "cut": {**vars(plan.cut), "imbalance": plan.cut.imbalance} if plan.cut else None,
        "stages": [_stage(stage) for stage in plan.stages],
        "phases": [{"image_size": side, "share": share, **_pace(e)} for side, share, e in plan.paces],
        "samples": plan.samples,
        "days": plan.days,
        "saves": dict(vars(plan.saves)),
        "failures": dict(vars(failures)),
        "fits": dict(vars(plan.fits)),
        "recommendation": plan.recommendation,
    }


def _stage(stage: Stage) -> dict[str, Any]:
    memory = stage.estimate.memory
    return {
        "name": stage.name,
        "ranks": [stage.ranks.start, stage.ranks.stop],
        "zero_stage": stage.estimate.settings.stage,
        "hpz": stage.estimate.settings.hpz,
        "recompute": stage.estimate.recompute,
        "memory": {
            "resident": memory.resident,
            "backward": memory.backward,
            "update": memory.update,
            "host": memory.host,
            "context": memory.context,
            "peak": memory.peak,
        },
        "collectives": [{**vars(c), "wire": c.wire} for c in stage.estimate.collectives],
    }


def _pace(estimate: Estimate) -> dict[str, Any]:
    batch, pace = estimate.batch, estimate.pace
    return {
        "micro_batch": batch.micro,
        "accumulation": batch.accumulation,
        "pairs_of_a_loss": batch.of_a_loss,
        **vars(pace),
        "step": pace.step,
        "images_per_second": pace.images_per_second,
    }


def show(plan: Plan, console: Console) -> None:
    """Print the plan."""
    console.print(_title(plan), style="bold")
    if plan.cut:
        console.print(f"cut of the model's chain\n{plan.cut.table()}\n", highlight=False, markup=False, soft_wrap=True)
    for stage in plan.stages:
        console.print(_memory(stage, plan))
        if stage.estimate.collectives:
            console.print(_traffic(stage, plan))
    console.print(_speed(plan))
    for line in _lines(plan):
        console.print(line)
    console.print(f"\nrecommended: {plan.recommendation}", style="bold")


def _title(plan: Plan) -> str:
    cluster, first = plan.cluster, plan.stages[0].estimate
    return (
        f"{plan.config.model.image}, {plan.weights.total:,} parameters, "
        f"{name_of(first.settings)} in {plan.config.train.precision} on {cluster.devices} {cluster.device.name}"
        f" ({cluster.nodes} node{'s' if cluster.nodes > 1 else ''})"
    )


def _memory(stage: Stage, plan: Plan) -> Table:
    memory, table = stage.estimate.memory, Table(title=f"memory of a rank, GiB: {stage.name}", title_justify="left")
    for column in ("", "always", "in backward", "in update", "on the host"):
        table.add_column(column, justify="left" if not column else "right")
    names = dict.fromkeys([*memory.resident, *memory.backward, *memory.update, *memory.host])
    for name in names:
        places = (memory.resident, memory.backward, memory.update, memory.host)
        table.add_row(name, *(_gib(place[name]) if name in place else "" for place in places))
    table.add_row("context", _gib(memory.context), "", "", "")
    table.add_section()
    base = sum(memory.resident.values()) + memory.context
    totals = (base, base + sum(memory.backward.values()), base + sum(memory.update.values()))
    table.add_row("together", *map(_gib, totals), _gib(sum(memory.host.values())) if memory.host else "")
    capacity, verdict = plan.cluster.device.memory, "fits" if memory.peak <= plan.cluster.budget else "does not fit"
    table.caption = f"{_gib(memory.peak)} of {_gib(capacity)}, {plan.cluster.reserve:.0%} left free: {verdict}"
    return table


def _traffic(stage: Stage, plan: Plan) -> Table:
    table = Table(title="communication of a step", title_justify="left")
    for column in ("collective", "of", "GB", "GB sent by a rank", "ranks", "seconds"):
        table.add_column(column, justify="right" if column not in ("collective", "of") else "left")
    for c in stage.estimate.collectives:
        table.add_row(
            c.kind, c.what, f"{c.payload / 1e9:.3g}", f"{c.wire / 1e9:.3g}", str(c.ranks),
            f"{c.seconds(plan.cluster):.3g}",
        )  # fmt: skip
    return table


def _speed(plan: Plan) -> Table:
    table = Table(title="speed", title_justify="left")
    columns = ("pixels", "samples", "micro-batch", "accumulation", "s a step", "waiting", "images/s", "MFU")
    for column in columns:
        table.add_column(column, justify="right")
    for side, share, e in plan.paces:
        pace = e.pace
        waiting = pace.exposed + pace.bubble * pace.compute
        table.add_row(
            str(side), f"{share:.0%}", str(e.batch.micro), str(e.batch.accumulation), f"{pace.step:.3g}",
            f"{waiting / pace.step:.0%}", f"{pace.images_per_second:,.0f}", f"{pace.mfu:.1%}",
        )  # fmt: skip
    return table


def _lines(plan: Plan) -> list[str]:
    saves, failures, fits = plan.saves, plan.failures, plan.fits
    measured = "measured" if saves.measured else "from its bytes"
    how = "are written in the background" if saves.in_background else "hold up training while they are written"
    micro = f"largest micro-batch that fits: {fits.largest_micro or 'none'}"
    batch = plan.stages[0].estimate.batch
    return [
        *([bubble_line(plan.config, batch.accumulation)] if plan.cut else []),
        f"{plan.days:.3g} days for {plan.samples:,.0f} samples, failures included",
        f"checkpoints ({show_bytes(saves.state)}) {how}: a copy takes {show_bytes(saves.snapshot)} of host memory for "
        f"each rank, a node has {show_bytes(saves.host_free)} of {show_bytes(saves.host_total)} free; writing takes "
        f"{show_seconds(saves.seconds)} ({measured}), training waits {show_seconds(saves.waits)}",
        f"a failure every {show_seconds(failures.between)}: best save "
        f"every {failures.steps:,} steps ({show_seconds(failures.interval)}; Young {show_seconds(failures.young)})"
        f", goodput {failures.goodput:.2%}",
        f"{micro}; fewest devices that hold the recipe: {fits.smallest or 'none'}",
        f"assumed: {plan.cluster.efficiency:.0%} of the roofline, communication hidden behind up to "
        f"{plan.cluster.overlap:.0%} of the computation",
    ]


def _gib(size: float) -> str:
    return f"{size / GIB:.2f}" if size >= GIB / 100 else f"{size / GIB:.1g}"
