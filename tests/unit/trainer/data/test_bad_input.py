"""Every kind of bad input: one clear message, a bad sample skipped and counted, and a stop past the limit."""

from __future__ import annotations

import io
import logging
import os
import re
import struct
import zlib
from itertools import islice
from pathlib import Path

import pytest
from intern_trainer.data import build_train_data, image_folder, pairs
from intern_trainer.errors import DataError
from PIL import Image

from tests.unit.trainer.data.shards import ALONE, WORDS, config, good, picture, write_shard


def huge_png(width: int = 8000, height: int = 5000) -> bytes:
    """40 megapixels by its header; its body is never looked at."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"never decoded")


def half_a_jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 90).convert("RGB").save(buffer, "JPEG")
    return buffer.getvalue()[: buffer.tell() // 2]


BAD = {
    "picture corrupt": ({**good(0), "png": b"not a picture"}, "no JPEG, PNG or WebP"),
    "picture corrupt ": ({"jpg": half_a_jpeg(), "txt": b"half"}, "picture corrupt: .*truncated"),
    "picture too large": ({**good(0), "png": huge_png()}, "8000 x 5000 pixels; data.max_pixels is 40000000"),
    "picture too large ": ({**good(0), "png": huge_png(30000, 30000)}, "data.max_pixels"),
    "picture missing": ({"txt": b"no picture here"}, "has no picture"),
    "caption missing": ({"png": picture()}, "none of data.caption_keys"),
    "caption empty": ({**good(0), "txt": b" \n"}, "caption is empty"),
    "caption too long": ({**good(0), "txt": b"x" * 10_000}, "10000 characters"),
    "caption not UTF-8": ({**good(0), "txt": b"caf\xe9 au lait"}, "not UTF-8: .* at byte 3"),
    "json corrupt": ({"png": picture(), "json": b"{broken"}, "json corrupt"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_sample_is_named_counted_and_replaced(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sample, reason = BAD[kind]
    write_shard(tmp_path / "set" / "s0.tar", [good(n) if n != 5 else sample for n in range(16)])
    data = build_train_data(config(f"{tmp_path}/set/s0.tar"), ALONE, WORDS)
    batches = data.batches(0)
    with caplog.at_level(logging.WARNING):
        ids = [id for _ in range(4) for id in next(batches)[0].ids]  # two epochs: one bad sample is always let pass
    assert len(ids) == 32
    assert "set/s0/000005" not in ids
    assert data.report() == {"read": 32, "bad": 1, "bad_by_kind": {kind.strip(): 1}}
    (message,) = [record.getMessage() for record in caplog.records]
    assert "set/s0/000005" in message
    assert re.search(reason, message)


@pytest.mark.parametrize("workers", [0, 2])
def test_substitutes_are_the_same_on_any_number_of_workers(workers: int, tmp_path: Path) -> None:
    write_shard(tmp_path / "s.tar", [good(n) if n % 5 else {"png": picture()} for n in range(40)])

    def ids(number: int) -> list[str]:
        settings = config(f"{tmp_path}/s.tar", workers=number, max_bad_fraction=0.5)
        data = build_train_data(settings, ALONE, WORDS)
        batches = data.batches(0)
        found = [id for _ in range(10) for id in next(batches)[0].ids]
        data.close()
        return found

    assert ids(workers) == ids(1)


def test_more_bad_samples_than_the_limit_stop_the_run(tmp_path: Path) -> None:
    write_shard(tmp_path / "s.tar", [good(n) if n not in (3, 9) else {"png": b"?", "txt": b"x"} for n in range(64)])
    for limit, stops in ((0.01, True), (0.05, False)):
        data = build_train_data(config(f"{tmp_path}/s.tar", max_bad_fraction=limit, workers=1), ALONE, WORDS)
        batches = data.batches(0)
        if stops:
            with pytest.raises(DataError, match=r"2 bad samples among \d+ read .* 2 picture corrupt") as error:
                list(islice(batches, 16))
            assert "data.max_bad_fraction = 0.01" in error.value.rule
        else:
            assert len(list(islice(batches, 16))) == 16
        data.close()


def test_a_source_of_bad_samples_alone_stops_at_once(tmp_path: Path) -> None:
    write_shard(tmp_path / "s.tar", [{"png": picture(n)} for n in range(20)])
    data = build_train_data(config(f"{tmp_path}/s.tar", workers=1), ALONE, WORDS)
    with pytest.raises(DataError, match="tried in its place are bad too"):
        next(data.batches(0))
    data.close()


def test_evaluation_names_what_it_leaves_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_shard(tmp_path / "s.tar", [good(n) if n != 7 else BAD["picture too large"][0] for n in range(20)])
    settings = config(f"{tmp_path}/s.tar")
    found = pairs(list(settings.data.train), settings, ALONE)
    with caplog.at_level(logging.WARNING):
        assert sum(len(batch) for batch in found) == 19
        found.agree()
    assert found.report == {"read": 20, "bad": 1, "bad_by_kind": {"picture too large": 1}}
    assert "s/000007" in caplog.text
    write_shard(tmp_path / "t.tar", [good(n) if n > 1 else {"txt": b"x"} for n in range(20)])
    found = pairs(list(config(f"{tmp_path}/t.tar").data.train), settings, ALONE)
    list(found)
    with pytest.raises(DataError, match="2 bad samples among the 20"):
        found.agree()


def test_evaluations_leave_no_open_files(tmp_path: Path) -> None:
    write_shard(tmp_path / "s.tar", [good(n) for n in range(20)])
    settings = config(f"{tmp_path}/s.tar")
    found = pairs(list(settings.data.train), settings, ALONE)
    before = len(os.listdir("/proc/self/fd"))
    readers = [iter(found) for _ in range(3)]
    assert sum(len(batch) for reader in readers for batch in reader) == 60
    assert len(os.listdir("/proc/self/fd")) == before


def _truncated(tmp_path: Path, keep: float) -> Path:
    whole = write_shard(tmp_path / "cut.tar", [good(n) for n in range(20)])
    whole.write_bytes(whole.read_bytes()[: int(20 * 2048 * keep)])
    return whole


@pytest.mark.parametrize("keep", [0.5, 0.51, 0.999])
def test_a_truncated_tar(keep: float, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cut\.tar is cut short"):
        build_train_data(config(str(_truncated(tmp_path, keep))), ALONE, WORDS)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "cannot be opened: No such file"),
        (lambda path: path.write_bytes(b""), "holds no samples"),
        (lambda path: write_shard(path, []), "holds no samples"),
        (lambda path: path.write_bytes(b"hello" * 1000), "is cut short or is no tar"),
    ],
    ids=["missing", "empty file", "empty tar", "no tar"],
)
def test_a_shard_that_cannot_be_used(make, message: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    make(tmp_path / "x.tar")
    with pytest.raises(DataError, match=rf"x\.tar {message}"):
        build_train_data(config(f"{tmp_path}/x.tar"), ALONE, WORDS)


def test_several_bad_shards_are_named_together(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"00\.tar(.|\n)*02\.tar"):
        build_train_data(config(f"{tmp_path}/{{00..02}}.tar"), ALONE, WORDS)


def test_labelled_folders(tmp_path: Path) -> None:
    settings = config("embedded:train")
    with pytest.raises(DataError, match="is not a folder"):
        image_folder(tmp_path / "none", settings, ALONE)
    with pytest.raises(DataError, match="no sub-folders"):
        image_folder(tmp_path, settings, ALONE)
    for name in ("dog", "cat"):
        (tmp_path / name).mkdir()
    with pytest.raises(DataError, match=r"class cat .* has no pictures"):
        image_folder(tmp_path, settings, ALONE)
    for number, name in enumerate(("dog/1.png", "dog/2.PNG", "cat/1.png")):
        (tmp_path / name).write_bytes(picture(number))
    found = image_folder(tmp_path, settings, ALONE)
    (batch,) = list(found)
    assert found.classes == ["cat", "dog"]
    assert batch.extras["category"] == ["cat", "dog", "dog"]
