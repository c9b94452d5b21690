"""The facts of `data stats` as text."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from intern_trainer.data.tools.tally import HASHED

EXAMPLES = 5
"""Groups of duplicates that are printed."""
BAR_WIDTH = 40
SPREADS = {
    "shorter side, px": "short_side",
    "longer side, px": "long_side",
    "width / height": "width_by_height",
    "picture, KiB": "picture_kib",
    "caption, characters": "caption_characters",
    "caption, tokens": "caption_tokens",
}
BARS = {name: SPREADS[name] for name in ("shorter side, px", "width / height", "caption, tokens")}


def show(facts: dict[str, Any], console: Console) -> None:
    looked = facts["samples_looked_at"]
    overview = Table(box=None, pad_edge=False, show_header=False)
    overview.add_row("shards", _shards_line(facts))
    overview.add_row("samples", _samples_line(facts))
    overview.add_row("bytes", f"{decimal(facts['bytes'])}, {decimal(facts['bytes'] // max(looked, 1))} a sample")
    overview.add_row("members", _listing(facts["members"]))
    overview.add_row("pictures", _listing(facts["picture_formats"]))
    overview.add_row("captions a picture", _per_picture(facts["captions_per_picture"]))
    overview.add_row("languages", _listing(facts["languages"]) or "not named in the json members")
    overview.add_row("unusable", _listing(facts["bad"]) or "none")
    for what, kind in (("pictures that look alike", "pictures"), ("captions that are the same", "captions")):
        found = facts["duplicates"][kind]
        line = f"{found['superfluous']:,} superfluous in {found['groups']:,} groups" if found["groups"] else "none"
        overview.add_row(what, line)
    if facts["duplicates"]["among"] < looked - sum(facts["bad"].values()):
        overview.add_row("", f"(duplicates were looked for among the first {HASHED:,} samples)")
    console.print(overview, "")
    spreads = _table("", "min", "5 %", "median", "95 %", "max", "mean")
    for what, name in SPREADS.items():
        spreads.add_row(what, *("-" if value is None else f"{value:,}" for value in list(facts[name].values())[:6]))
    console.print(spreads, "")
    if looked:
        console.print(_bars(facts))
    tokens = facts["caption_tokens"]
    if tokens["cut"]:
        limit = tokens["context_length"]
        console.print(f"captions longer than model.text.context_length = {limit}, to be cut: {tokens['cut']:,}")
    for kind in ("pictures", "captions"):
        for group in facts["duplicates"][kind]["largest"][:EXAMPLES]:
            console.print(f"same {kind[:-1]}, {group['size']} times: {' '.join(group['ids'])}", soft_wrap=True)


def _shards_line(facts: dict[str, Any]) -> str:
    unusable, opened = len(facts["shards_unusable"]), facts["shards_opened"]
    line = f"{facts['shards']:,}" + (f", of which {opened:,} were opened" if opened != facts["shards"] else "")
    return line + (f"; {unusable} cannot be used" if unusable else "")


def _samples_line(facts: dict[str, Any]) -> str:
    looked, there = facts["samples_looked_at"], facts["samples_in_opened_shards"]
    if looked == there and facts["shards_opened"] + len(facts["shards_unusable"]) == facts["shards"]:
        return f"{there:,}"
    whole = there * facts["shards"] / max(facts["shards_opened"], 1)
    return f"{looked:,} looked at, of about {whole:,.0f} (--sample, seed {facts['sampled']['seed']})"


def _per_picture(counts: dict[str, int]) -> str:
    """`1 in 800, 2 in 20`; the range alone where there are many."""
    if len(counts) > 6:
        return f"{next(iter(counts))} to {next(reversed(counts))}"
    return ", ".join(f"{number} in {count:,}" for number, count in counts.items())


def _listing(counts: dict[str, int], most: int = 12) -> str:
    shown = ", ".join(f"{name} {count:,}" for name, count in list(counts.items())[:most])
    return shown + (f", {len(counts) - most} more" if len(counts) > most else "")


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number and len(columns) > 2 else "left", overflow="fold")
    return table


def _bars(facts: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    for what, name in BARS.items():
        histogram = facts[name]["histogram"]
        most, whole = max(histogram.values()), sum(histogram.values())
        table.add_row(Text(what, "bold"))
        for label, count in histogram.items():
            if count:
                bar = "█" * max(1, round(BAR_WIDTH * count / most))
                table.add_row(f"  {label}", f"{count:,}", f"{count / whole:.1%}", bar)
        table.add_row("")
    for number in (1, 2):
        table.columns[number].justify = "right"
    return table
