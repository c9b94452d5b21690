"""Build the embedded shards from Debian's `openclipart-png` and `openclipart-svg` (public domain).

    apt-get download openclipart-png openclipart-svg
    for f in openclipart-*.deb; do dpkg-deb -x $f openclipart; done
    python -m intern_trainer.data.embedded.build openclipart/usr/share/openclipart

The same input and Pillow give the same bytes: pictures are chosen and split by rules and hashes, and tar headers carry
no time or owner.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import struct
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageStat

from intern_trainer.data.embedded import titles

SIDE = 96
QUALITY = 60
MAX_PIXELS = 4_000_000  # some pictures are 29,700 pixels wide: looked at in the header, before anything is decoded
MAX_PER_CATEGORY = 170
MAX_PER_GROUP = 2
TEST, VALIDATION = 0.12, 0.08
SHARDS = {"train": 4, "validation": 1, "test": 1}


@dataclass(frozen=True)
class Entry:
    """One picture of the set: its WebP bytes and what is written about it."""

    webp: bytes
    path: str
    title: str
    keywords: list[str]
    category: str

    @property
    def group(self) -> str:
        return titles.group(self.title)


def collect(root: Path) -> Iterator[Entry]:
    """The pictures that the rules let in, in the order of their paths; one of several with the same pixels."""
    seen: set[str] = set()
    for svg in sorted((root / "svg").rglob("*.svg")):
        path = svg.relative_to(root / "svg").with_suffix("").as_posix()
        png, category = root / "png" / f"{path}.png", titles.category(path)
        if category is None or svg.is_symlink() or png.is_symlink() or not png.exists():
            continue
        text = svg.read_bytes().decode("utf-8", "replace")
        work = titles.read_work(path, text)
        title = titles.title(work)
        if title is None or titles.is_refused(work) or not titles.is_public_domain(text) or not _usable_size(png):
            continue
        if "<image" in text:  # refers to a picture outside of the SVG, drawn as "linked image not found"
            continue
        webp = _encode(png)
        if webp is None or (digest := hashlib.sha256(webp).hexdigest()) in seen:
            continue
        seen.add(digest)
        yield Entry(webp, path, title, titles.keywords(work), category)


def split(entries: list[Entry]) -> dict[str, list[Entry]]:
    """Train, validation and test by group of titles, stratified by category; one picture a group outside train."""
    by_group: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        by_group[entry.group].append(entry)
    by_category: dict[str, list[str]] = defaultdict(list)
    for group in sorted(by_group, key=_hash):
        by_category[by_group[group][0].category].append(group)
    splits: dict[str, list[Entry]] = {name: [] for name in SHARDS}
    for _, groups in sorted(by_category.items()):
        groups = groups[:MAX_PER_CATEGORY]
        test, validation = max(2, round(TEST * len(groups))), max(2, round(VALIDATION * len(groups)))
        for at, group in enumerate(groups):
            members = by_group[group]
            if at < test + validation:
                splits["test" if at < test else "validation"].append(members[0])
            else:
                splits["train"].extend(members[:MAX_PER_GROUP])
    return {name: sorted(chosen, key=lambda entry: _hash(entry.path)) for name, chosen in splits.items()}


def write(splits: dict[str, list[Entry]], out: Path) -> None:
    """Write `out/<split>-0000n.tar`, a picture and its json a sample."""
    frequency = Counter(word for chosen in splits.values() for entry in chosen for word in entry.keywords)
    for name, chosen in splits.items():
        for shard in range(SHARDS[name]):
            samples = [_sample(entry, frequency) for entry in chosen[shard :: SHARDS[name]]]
            write_shard(out / f"{name}-{shard:05d}.tar", samples)


def write_shard(path: Path, samples: list[dict[str, bytes]]) -> None:
    """A tar whose bytes depend on nothing but its samples' members, given by extension."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number, members in enumerate(samples):
            for extension, content in members.items():
                member = tarfile.TarInfo(f"{number:05d}.{extension}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def _sample(entry: Entry, frequency: Counter[str]) -> dict[str, bytes]:
    record = {
        "title": entry.title,
        "caption": titles.caption(entry.title, entry.keywords, frequency),
        "keywords": entry.keywords,
        "category": entry.category,
        "source": f"openclipart/{entry.path}",
        "licence": "public domain",
    }
    return {"webp": entry.webp, "json": json.dumps(record, ensure_ascii=False).encode()}


def _usable_size(png: Path) -> bool:
    with png.open("rb") as file:
        header = file.read(24)
    width, height = struct.unpack(">II", header[16:24])
    return min(width, height) >= 24 and width * height <= MAX_PIXELS


def _encode(png: Path) -> bytes | None:
    """The picture, cut to what is drawn, as WebP with alpha, None where white paper shows nothing."""
    picture = Image.open(png).convert("RGBA")
    box = picture.getchannel("A").point(lambda a: 255 if a > 8 else 0).getbbox()
    if box is None:
        return None
    picture = picture.crop(box)
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    page = Image.new("RGB", picture.size, "white")
    page.paste(picture, mask=picture.getchannel("A"))
    if min(picture.size) < 12 or max(ImageStat.Stat(page).stddev) < 8:
        return None
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=QUALITY, alpha_quality=10, method=6)
    return buffer.getvalue()


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="the folder that holds png/ and svg/")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "shards")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    splits = split(list(collect(arguments.root)))
    write(splits, arguments.out)
    for name, chosen in splits.items():
        counts = Counter(entry.category for entry in chosen)
        print(f"{name}: {len(chosen)} pictures, {dict(sorted(counts.items()))}")


if __name__ == "__main__":
    main()
