"""Writes one shard: reads its pictures, looks at each as training will, and packs those that it can use."""

from __future__ import annotations

import io
import json
import os
import tarfile
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from intern_trainer.config.schema import Data
from intern_trainer.data import captions, decode, index
from intern_trainer.data.captions import CaptionRules
from intern_trainer.data.decode import BadSample
from intern_trainer.data.storage import Storage, write_atomically
from intern_trainer.data.tools.listing import Entry
from intern_trainer.errors import DataError, EnvironmentFault

RULES = CaptionRules.of(Data(caption_keys=["txt", "json.captions", "json.caption", "json.title"]))
SEVERAL = replace(RULES, keys=("json.captions",))
EXTENSIONS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}


@dataclass(frozen=True)
class Job:
    """One shard to write. first: number of its first entry among all. resize: shorter side in pixels."""

    path: Path
    first: int
    entries: list[Entry]
    resize: int | None
    quality: int


@dataclass(frozen=True)
class Skipped:
    """A picture that was left out."""

    name: str
    kind: str
    reason: str


@dataclass(frozen=True)
class Packed:
    """What a shard holds: samples, samples with more than one caption, bytes; and what was left out."""

    samples: int
    several: int
    bytes: int
    skipped: list[Skipped]


def pack(job: Job) -> Packed:
    """Write the shard, its index, and X.packed.json (what it gives back), unless they are there already.

    Raises:
        EnvironmentFault: the shard cannot be written.
    """
    note = job.path.with_suffix(".packed.json")
    try:
        if job.path.is_file() and note.is_file():
            known = json.loads(note.read_bytes())
            return Packed(**{**known, "skipped": [Skipped(**one) for one in known["skipped"]]})
        done = _write(job)
        write_atomically(note, json.dumps(asdict(done), ensure_ascii=False).encode())
        return done
    except OSError as error:
        raise EnvironmentFault(
            f"{job.path} cannot be written: {error.strerror}",
            "finished shards are kept",
            "make room, or mend the folder; the same command goes on",
        ) from error


def _write(job: Job) -> Packed:
    storage, skipped, samples, several = Storage(), list[Skipped](), 0, 0
    beside = job.path.with_name(f".{job.path.name}.{os.getpid()}")
    try:
        with beside.open("wb") as file:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
                for number, entry in enumerate(job.entries, job.first):
                    try:
                        members = _members(entry, storage, job)
                    except BadSample as bad:
                        skipped.append(Skipped(entry.name, bad.kind, bad.reason))
                        continue
                    samples += 1
                    several += "captions" in json.loads(members["json"])
                    for extension, content in members.items():
                        _add(tar, f"{number:09d}.{extension}", content)
            file.flush()
            os.fsync(file.fileno())
        if samples:
            beside.replace(job.path)
            index.find_or_build(storage, str(job.path), None)
    finally:
        beside.unlink(missing_ok=True)
        storage.close()
    return Packed(samples, several, job.path.stat().st_size if samples else 0, skipped)


def _members(entry: Entry, storage: Storage, job: Job) -> dict[str, bytes]:
    if not (entry.beside or entry.record):
        raise BadSample("caption missing", "no .txt or .json lies beside it")
    content = _read(entry.path, storage)
    record, texts = dict(entry.record), dict[str, bytes]()
    for path in entry.beside:
        text = _read(path, storage)
        if path.lower().endswith(".json"):
            record |= captions.record({"json": text})
        else:
            texts["txt"] = text
    caption, by_language = _captions(texts, record)
    record.pop("captions", None)
    if list(by_language) != [captions.UNSAID]:
        record["captions"] = by_language
    elif len(by_language[captions.UNSAID]) > 1:
        record["captions"] = by_language[captions.UNSAID]
    image = decode.open_image(content, Data().max_pixels)
    (width, height), kind = image.size, str(image.format)  # before a JPEG is decoded smaller
    picture = decode.load_rgb(image, (2 * job.resize, 2 * job.resize) if job.resize else None)
    if job.resize and min(width, height) > job.resize:
        content, (width, height), kind = *_shrunk(picture, (width, height), job.resize, job.quality), "JPEG"
    record |= {"source": entry.name, "width": width, "height": height}
    return {
        EXTENSIONS[kind]: content,
        "txt": caption.encode(),
        "json": json.dumps(record, ensure_ascii=False).encode(),
    }


def _captions(texts: dict[str, bytes], record: dict[str, Any]) -> tuple[str, dict[str, list[str]]]:
    """The one for the `txt`, and all by language: the text file's first, then those of its json. Languages are kept
    apart from captions without one: of the two only the languages go into the json.

    Raises:
        BadSample: there is none that can be used.
    """
    found = captions.captions(texts, record, RULES)
    text = next(iter(found.values()))[0]
    if texts:
        with suppress(BadSample):  # the text alone is enough
            more = captions.captions({}, record, SEVERAL)
            if (captions.UNSAID in found) == (captions.UNSAID in more):
                for language, others in more.items():
                    found[language] = list(dict.fromkeys([*found.get(language, ()), *others]))
            elif captions.UNSAID in found:
                found = more
    return text, found


def _read(path: str, storage: Storage) -> bytes:
    try:
        return storage.whole(path)
    except DataError as error:
        raise BadSample("file missing", error.found) from error


def _shrunk(picture: Image.Image, size: tuple[int, int], side: int, quality: int) -> tuple[bytes, tuple[int, int]]:
    """A JPEG whose shorter side is `side`; `size` is the original's, of which `picture` may be a smaller decode."""
    short = min(size)
    smaller = (max(1, round(size[0] * side / short)), max(1, round(size[1] * side / short)))
    buffer = io.BytesIO()
    picture.resize(smaller, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue(), smaller


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Nothing of the machine or the hour goes in: the same input makes the same bytes."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
