"""What `data shard` can make shards from: folders of pictures, tables, COCO captions files. Pictures are not read here.

About 500 bytes of memory a picture.
"""

from __future__ import annotations

import csv
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from intern_trainer.data import decode
from intern_trainer.data.captions import UNSAID
from intern_trainer.data.storage import is_remote
from intern_trainer.errors import ConfigError, DataError, EnvironmentFault

TABLES = (".csv", ".tsv", ".parquet")
PICTURES = tuple(f".{extension}" for extension in decode.PICTURES)
OTHER_PICTURES = (".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".svg", ".jxl")


@dataclass(frozen=True, slots=True)
class Entry:
    """One picture.

    Attributes:
        path: or address. name: short, for messages and the sample's json.
        record: what its json is to hold, captions among it.
        beside: text (.txt) and json files of its own, to be read with it.
    """

    path: str
    name: str
    record: dict[str, Any]
    beside: tuple[str, ...] = ()


@dataclass
class Listing:
    """All pictures of a source, in its order, and the files that were passed over, counted by ending."""

    entries: list[Entry]
    passed_over: Counter[str] = field(default_factory=Counter)


def list_source(source: str, root: str | None, path_column: str, caption_columns: list[str], template: str) -> Listing:
    """All pictures of a folder, a table or a COCO captions file.

    Raises:
        DataError: there is no such source, or it is none of these. ConfigError: an option that does not fit.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return list_folder(path, template)
    if not path.is_file():
        raise DataError(f"{source} does not exist", "shards are made from a folder or a file", "correct SOURCE")
    base = root if root is not None else str(path.parent)
    if path.suffix.lower() in TABLES:
        return Listing(list_table(path, base, path_column, caption_columns))
    if path.suffix.lower() == ".json":
        return Listing(list_coco(path, base))
    raise DataError(
        f"{source} is no folder and none of {', '.join(TABLES)}, .json",
        "shards are made from a folder, a table or a COCO captions file",
        "intern-trainer data shard --help shows each of them",
    )


def list_folder(folder: Path, template: str) -> Listing:
    """Pictures of a folder and those below, sorted by name. Where any has a text or json beside it, those are the
    captions; else the name of its folder is (`class_name` in the json), put into the template.

    Raises:
        ConfigError: the template has no place for the class. DataError: no pictures, or neither texts nor classes.
    """
    listing, beside = Listing([]), dict[str, list[str]]()
    found: list[Path] = []
    for path in sorted(_files(folder), key=lambda path: path.as_posix()):
        ending = path.suffix.lower()
        if ending in PICTURES:
            found.append(path)
        elif ending in (".txt", ".json"):
            beside.setdefault(str(path.with_suffix("")), []).append(str(path))
        elif ending in OTHER_PICTURES:
            listing.passed_over[ending] += 1
    if not found:
        others = ", ".join(f"{count} {ending}" for ending, count in listing.passed_over.items())
        fix = f"make {PICTURES[0]} of the others" if others else "correct SOURCE"
        raise DataError(
            f"{folder} holds no pictures{f', only {others}' if others else ''}",
            f"pictures are {', '.join(PICTURES)}",
            fix,
        )
    texts = {str(path): tuple(beside.get(str(path.with_suffix("")), ())) for path in found}
    by_class = not any(texts.values())
    if by_class and all(path.parent == folder for path in found):
        raise DataError(
            f"{folder}: none of {len(found)} pictures has a text beside it, and none lies in a folder of its class",
            "a picture's caption is in X.txt or X.json beside X.jpg, or is the name of its folder",
            "add the texts, or take a table of paths and captions",
        )
    if by_class and "{}" not in template:
        raise ConfigError(f"--template {template!r}", "a template has a {} where the class goes", "'a picture of a {}'")
    for path in found:
        name, record = path.relative_to(folder).as_posix(), dict[str, Any]()
        if by_class and path.parent != folder:
            label = path.parent.name.replace("_", " ")
            record = {"class_name": label, "captions": [template.replace("{}", label)]}
        listing.entries.append(Entry(str(path), name, record, texts[str(path)]))
    return listing


def list_table(table: Path, root: str, path_column: str, caption_columns: list[str]) -> list[Entry]:
    """One picture a row.

    Args:
        caption_columns: `NAME` or `LANGUAGE=NAME`, all of one kind.

    Raises:
        DataError: columns are missing, or the file cannot be read. EnvironmentFault: Parquet without pyarrow.
    """
    languages = [part[0] if part[1] else UNSAID for part in (column.rpartition("=") for column in caption_columns)]
    columns = [column.rpartition("=")[2] for column in caption_columns]
    if UNSAID in languages and any(languages):
        raise ConfigError(
            f"--caption-column {' '.join(caption_columns)}",
            "all caption columns name their language, or none does",
            "write LANGUAGE=NAME for each",
        )
    entries = []
    for row in _rows(table, [path_column, *columns]):
        captions: dict[str, list[str]] = {}
        for language, column in zip(languages, columns, strict=True):
            if row[column]:
                captions.setdefault(language, []).append(str(row[column]))
        name = str(row[path_column] or "")
        entries.append(Entry(_under(root, name), name, {"captions": captions.get(UNSAID, captions)}))
    return entries


def list_coco(file: Path, root: str) -> list[Entry]:
    """One entry an image, with all of its captions, in the file's order.

    Raises:
        DataError: the file is none in COCO's format.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        captions: dict[Any, list[str]] = {image["id"]: [] for image in content["images"]}
        for annotation in content["annotations"]:
            captions[annotation["image_id"]].append(annotation["caption"])
        return [
            Entry(_under(root, image["file_name"]), image["file_name"], {"captions": captions[image["id"]]})
            for image in content["images"]
        ]
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise DataError(
            f"{file} is no COCO captions file: {type(error).__name__} {error}",
            "it holds images (id, file_name) and annotations (image_id, caption)",
            "take a captions_*.json, not the one of boxes or of people",
        ) from error


def _files(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(parent, name) for name in names if not name.startswith("."))


def _under(root: str, name: str) -> str:
    if is_remote(name) or os.path.isabs(name):
        return name
    return f"{root.rstrip('/')}/{name}"


def _rows(table: Path, columns: list[str]) -> Iterator[dict[str, Any]]:
    if table.suffix.lower() == ".parquet":
        yield from _parquet_rows(table, columns)
        return
    tabs = table.suffix.lower() == ".tsv"
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            # tab-separated captions are seldom quoted, but often hold quotation marks
            options: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if tabs else {}
            reader = csv.DictReader(file, **options)
            _require(table, columns, reader.fieldnames or ())
            yield from reader
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table} cannot be read: {error}", "a table is UTF-8 text", "save it as such") from error


def _parquet_rows(table: Path, columns: list[str]) -> Iterator[dict[str, Any]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise EnvironmentFault(
            f"{table} is read by pyarrow, which is not installed",
            "",
            "pip install 'intern-trainer[data]', or take a CSV",
        ) from error
    try:
        with parquet.ParquetFile(table) as file:
            _require(table, columns, file.schema_arrow.names)
            for batch in file.iter_batches(columns=list(dict.fromkeys(columns))):
                yield from batch.to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{table} cannot be read: {error}", "", "make the file again") from error


def _require(table: Path, columns: Iterable[str], there: Iterable[str]) -> None:
    missing = [column for column in columns if column not in set(there)]
    if missing:
        raise DataError(
            f"{table} has no column {', '.join(missing)}; it has {', '.join(there)}",
            "a table has a column of picture paths and at least one of captions",
            "--path-column NAME --caption-column NAME",
        )
