"""The command line of `intern-trainer data`: tools for shards. No torch: it is loaded by the verb that runs."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from intern_trainer.config.load import load_config
from intern_trainer.config.schema import Config

_SETTING = re.compile(r"(data|model|train)\.[a-z0-9_.]+=")
_NAMING = """\
SHARD is a tar file: a path, a glob, a brace range such as /data/{000..199}.tar, an address (s3:// gs:// http(s)://), or
embedded:train. Without one the recipe's data.train is taken. KEY=VALUE changes a setting, such as
data.max_pixels=20000000 (a word that begins with data. model. or train. is one).
"""
_SHARD = """\
SOURCE is one of
  a folder of pictures with X.txt or X.json beside X.jpg (json: caption, or captions: [...] or {language: [...]})
  a folder of class folders with pictures: the caption is the class, or --template with it
  a .csv, .tsv or .parquet table with a column of picture paths and one or more of captions
  a COCO captions file (.json)

examples:
  intern-trainer data shard pictures/ --to shards/ --shuffle 0
  intern-trainer data shard pairs.csv --to shards/ --path-column file --caption-column title
  intern-trainer data shard pairs.parquet --to shards/ --caption-column en=text --caption-column zh=text_zh
  intern-trainer data shard annotations/captions_train2017.json --root train2017 --to shards/ --resize 256

The same command goes on where it was interrupted. Unusable pictures are named, counted, and left out.
"""


def add_verbs(data: argparse.ArgumentParser) -> None:
    """Mount the verbs under `intern-trainer data`."""
    tools = data.add_subparsers(dest="tool", required=True, metavar="TOOL")

    def add(verb: str, summary: str, epilog: str) -> argparse.ArgumentParser:
        text = argparse.RawDescriptionHelpFormatter
        tool = tools.add_parser(verb, help=summary, description=summary, epilog=epilog, formatter_class=text)
        tool.add_argument("--workers", type=_positive, metavar="N", help="processes (default: one a core)")
        return tool

    def add_reader(verb: str, summary: str) -> argparse.ArgumentParser:
        tool = add(verb, summary, _NAMING)
        # `settings`, as the command line collects words in any order under that name
        tool.add_argument("settings", nargs="*", metavar="SHARD", help="what to read, see below")
        tool.add_argument("--config", type=Path, metavar="FILE", help="recipe; default: configs/stage1/debug.yaml")
        tool.add_argument("--index-dir", type=Path, metavar="DIR", help="where indexes go if not beside the shards")
        return tool

    add_reader("index", "make the indexes of WebDataset shards")

    stats = add_reader("stats", "count samples, sizes, captions, languages, duplicates")
    stats.add_argument("--json", type=Path, metavar="FILE", help="write the figures here, too")
    stats.add_argument(
        "--sample", type=_positive, metavar="N", help="look at N samples only, drawn evenly from at most 512 shards"
    )
    stats.add_argument("--seed", type=int, default=0, help="of the draw (default 0)")

    check = add_reader("check", "read every sample as training would; exit code 1 if any is bad")
    check.add_argument("--jsonl", type=Path, metavar="FILE", help="write the bad samples here, one a line")

    preview = add_reader("preview", "write a page with some samples, as they are and as training sees them")
    preview.add_argument("--to", type=Path, default=Path("preview.html"), metavar="FILE", help="default: preview.html")
    preview.add_argument("--count", type=_positive, default=64, metavar="N", help="samples on it (default 64)")
    preview.add_argument("--seed", type=int, default=0, help="of the choice, and of the augmentation (default 0)")

    tokenizer = add_reader("tokenizer", "learn byte pairs from the captions, for model.text.tokenizer")
    tokenizer.add_argument("--to", type=Path, required=True, metavar="DIR", help="folder for its files")
    tokenizer.add_argument("--vocab", type=_positive, default=8000, metavar="N", help="tokens (default 8000)")
    tokenizer.add_argument(
        "--sample",
        type=_positive,
        default=1_000_000,
        metavar="N",
        help="learn from N samples at most (default 1000000)",
    )

    shard = add("shard", "make WebDataset shards from pictures and captions", _SHARD)
    shard.add_argument("source", metavar="SOURCE", help="folder, table or COCO captions file, see below")
    shard.add_argument("--to", type=Path, required=True, metavar="DIR", help="folder for the shards")
    size = shard.add_mutually_exclusive_group()
    size.add_argument("--samples-per-shard", type=_positive, default=10_000, metavar="N", help="default 10000")
    size.add_argument("--max-bytes", type=_positive, metavar="N", help="pictures' bytes of a shard, instead")
    shard.add_argument("--shuffle", type=int, metavar="SEED", help="seeded random order; default: the source's order")
    shard.add_argument("--root", metavar="DIR", help="where relative picture paths begin; default: beside the table")
    shard.add_argument("--path-column", default="path", metavar="NAME", help="of a table (default path)")
    shard.add_argument(
        "--caption-column",
        action="append",
        metavar="[LANGUAGE=]NAME",
        help="of a table (default caption); several times for several captions",
    )
    shard.add_argument("--template", default="{}", metavar="TEXT", help="caption of a class, as 'a picture of a {}'")
    shard.add_argument("--resize", type=_positive, metavar="PX", help="shrink to this shorter side; default: as it is")
    shard.add_argument("--quality", type=_percent, default=90, help="of the JPEG that --resize makes (default 90)")


def run(chosen: argparse.Namespace) -> int:
    """Run one of the verbs; gives the exit code."""
    try:
        return _run(chosen)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130


def _run(chosen: argparse.Namespace) -> int:
    from intern_trainer.data.tools.pool import default_workers

    workers = chosen.workers or default_workers()
    if chosen.tool == "shard":
        from intern_trainer.data.tools.shard import Options, shard

        return shard(Options.of(chosen), workers)
    settings = [word for word in chosen.settings if _SETTING.match(word)]
    config = _config(chosen, settings)
    named = [word for word in chosen.settings if word not in settings]
    if chosen.tool == "index":
        from intern_trainer.data.tools.index import index_command

        # a large source has a catalogue of its own
        sources = [named] if named else [source.location for source in config.data.train]
        return max(index_command(source, config.data.index_dir, workers) for source in sources)
    named = named or [location for source in config.data.train for location in source.location]
    if chosen.tool == "stats":
        from intern_trainer.data.tools.stats import stats

        return stats(named, config, workers, chosen.json, chosen.sample, chosen.seed)
    if chosen.tool == "check":
        from intern_trainer.data.tools.check import check

        return check(named, config, workers, chosen.jsonl)
    if chosen.tool == "tokenizer":
        from intern_trainer.data.tools.tokenizer import learn_tokenizer

        return learn_tokenizer(named, config, workers, chosen.to, chosen.vocab, chosen.sample)
    from intern_trainer.data.tools.preview import preview

    print(preview(named, config, workers, chosen.to, chosen.count, chosen.seed))
    return 0


def _config(chosen: argparse.Namespace, settings: list[str]) -> Config:
    if chosen.index_dir is not None:
        settings = [*settings, f"data.index_dir={chosen.index_dir}"]
    return load_config(chosen.config, settings)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number


def _percent(text: str) -> int:
    number = int(text)
    if not 1 <= number <= 100:
        raise argparse.ArgumentTypeError(f"{text} is not within 1 to 100")
    return number
