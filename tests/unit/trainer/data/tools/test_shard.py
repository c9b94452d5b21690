"""`data shard`: every kind of source, what lands in the shards, and going on after an interruption."""

from __future__ import annotations

import csv
import io
import json
import random
import tarfile
from pathlib import Path
from typing import Any

import pytest
from intern_trainer.config.schema import Source
from intern_trainer.data import build_train_data, storage
from intern_trainer.data.sources import catalogues
from intern_trainer.data.tools import pack as packing
from intern_trainer.data.tools.shard import Options, shard
from intern_trainer.errors import ConfigError, DataError, EnvironmentFault
from PIL import Image

from benchmarks import object_store
from tests.unit.trainer.data.shards import ALONE, WORDS, config, picture


def make(source: Path, to: Path, workers: int = 1, **options: Any) -> list[dict[str, Any]]:
    """The samples of all shards in order: key, json's content, text, bytes of the picture."""
    assert shard(Options(str(source), to, **options), workers) == 0
    return samples(to)


def samples(folder: Path) -> list[dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, extension = member.name.split(".")
                content = tar.extractfile(member).read()  # type: ignore[union-attr]
                one = found.setdefault(key, {"key": key, "shard": path.stem})
                one |= json.loads(content) if extension == "json" else {extension: content}
    return list(found.values())


def pictures(folder: Path, count: int = 5, texts: bool = True) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for n in range(count):
        (folder / f"{n}.jpg").write_bytes(picture(n, (40, 30), "JPEG"))
        if texts:
            (folder / f"{n}.txt").write_text(f"picture {n}\n")
    return folder


def test_a_folder_with_texts_byte_for_byte(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = pictures(tmp_path / "in")
    (folder / "deep").mkdir()
    (folder / "deep" / "x.PNG").write_bytes(picture(9))
    (folder / "deep" / "x.json").write_text('{"captions": {"en": ["nine"], "de": ["neun", "9"]}, "artist": "me"}')
    (folder / "deep" / "y.gif").write_bytes(b"GIF")
    found = make(folder, tmp_path / "out", samples_per_shard=4)
    assert [one["source"] for one in found] == ["0.jpg", "1.jpg", "2.jpg", "3.jpg", "4.jpg", "deep/x.PNG"]
    assert [one["shard"] for one in found] == ["00000"] * 4 + ["00001"] * 2
    assert [one["txt"] for one in found] == [b"picture %d" % n for n in range(5)] + [b"nine"]
    assert found[1]["jpg"] == (folder / "1.jpg").read_bytes()
    assert found[5]["png"] == picture(9)
    assert (found[5]["captions"], found[5]["artist"]) == ({"en": ["nine"], "de": ["neun", "9"]}, "me")
    assert (found[1]["width"], found[1]["height"]) == (40, 30)
    shown = capsys.readouterr().out
    assert "passed over: 1 .gif" in shown
    assert f"data.train={tmp_path}/out/{{00000..00001}}.tar" in shown
    assert "1 have several captions" in shown


@pytest.mark.parametrize(
    ("text", "given", "kept"),
    [
        ("one", ["two", "one", "three"], ["one", "two", "three"]),
        ("one", {"en": ["two"], "de": ["zwei"]}, {"en": ["two"], "de": ["zwei"]}),
        ("one\nde.utf8=eins", {"en": ["two"]}, {"en": ["one", "two"], "de": ["eins"]}),
        ("one\nde.utf8=eins", ["two"], {"en": ["one"], "de": ["eins"]}),
        ("one", [], None),
    ],
)
def test_captions_of_a_json_stay_beside_those_of_a_text(tmp_path: Path, text: str, given: Any, kept: Any) -> None:
    folder = pictures(tmp_path / "in", 1)
    (folder / "0.txt").write_text(text)
    (folder / "0.json").write_text(json.dumps({"captions": given}))
    [one] = make(folder, tmp_path / "out")
    assert one["txt"] == b"one"
    assert one.get("captions") == kept


def test_training_reads_what_was_made(tmp_path: Path) -> None:
    make(pictures(tmp_path / "in", 9), tmp_path / "out", samples_per_shard=5)
    location = f"{tmp_path}/out/{{00000..00001}}.tar"
    batch = next(build_train_data(config(location), ALONE, WORDS).batches(0))[0]
    assert len(batch.ids) == 8
    assert all(caption.startswith("picture ") for caption in batch.extras["caption"])
    assert len(list((tmp_path / "out").glob("*.index.npz"))) == 2
    assert catalogues([Source(location=[location])], None, ALONE)[0].total == 9


def test_class_folders(tmp_path: Path) -> None:
    pictures(tmp_path / "in" / "red_fox", 2, texts=False)
    pictures(tmp_path / "in" / "bird", 1, texts=False)
    found = make(tmp_path / "in", tmp_path / "out", template="a picture of a {}")
    assert [one["txt"] for one in found] == [b"a picture of a bird"] + [b"a picture of a red fox"] * 2
    assert [one["class_name"] for one in found] == ["bird", "red fox", "red fox"]
    with pytest.raises(ConfigError, match="--template 'a picture'"):
        make(tmp_path / "in", tmp_path / "other", template="a picture")


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet"])
def test_tables(kind: str, tmp_path: Path) -> None:
    pictures(tmp_path / "in", 3)
    rows = [(f"in/{n}.jpg", f'a "{n}", said', f"ein {n}" if n else None) for n in range(3)]
    path = tmp_path / f"table.{kind}"
    if kind == "parquet":
        pyarrow = pytest.importorskip("pyarrow")
        columns = dict(zip(("file", "en", "de"), map(list, zip(*rows, strict=True)), strict=True))
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.table(columns), path)
    elif kind == "csv":
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([("file", "en", "de"), *rows])
    else:
        path.write_text("".join("\t".join(cell or "" for cell in row) + "\n" for row in [("file", "en", "de"), *rows]))
    found = make(path, tmp_path / "out", path_column="file", caption_column=("en=en", "de=de"))
    assert [one["txt"] for one in found] == [b'a "%d", said' % n for n in range(3)]
    assert found[0]["captions"] == {"en": ['a "0", said']}
    assert found[2]["captions"] == {"en": ['a "2", said'], "de": ["ein 2"]}
    one_language = make(path, tmp_path / "one", path_column="file", caption_column=("en",))
    assert "captions" not in one_language[0]
    two = make(path, tmp_path / "two", path_column="file", caption_column=("en", "de"))
    assert two[1]["captions"] == ['a "1", said', "ein 1"]


def test_coco_keeps_all_captions(tmp_path: Path) -> None:
    pictures(tmp_path / "train2017", 2)
    file = tmp_path / "captions.json"
    notes = [{"image_id": n, "caption": f"{word} {n}"} for word in ("one", "two") for n in (0, 1)]
    file.write_text(json.dumps({"images": [{"id": n, "file_name": f"{n}.jpg"} for n in (1, 0)], "annotations": notes}))
    found = make(file, tmp_path / "out", root=str(tmp_path / "train2017"))
    assert [one["source"] for one in found] == ["1.jpg", "0.jpg"]
    assert [one["captions"] for one in found] == [["one 1", "two 1"], ["one 0", "two 0"]]


def test_bad_pictures_are_named_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = pictures(tmp_path / "in", 6)
    (folder / "1.jpg").write_bytes(b"\xff\xd8 broken")
    (folder / "2.txt").unlink()
    (folder / "3.txt").write_text(" ")
    found = make(folder, tmp_path / "out", samples_per_shard=3)
    assert [one["key"] for one in found] == ["000000000", "000000004", "000000005"]
    shown = capsys.readouterr()
    assert "3 left out: 1 picture corrupt, 1 caption missing, 1 caption empty" in shown.out
    for reason in ("1.jpg: picture corrupt", "2.jpg: no .txt or .json lies beside it", "3.jpg: caption is empty"):
        assert reason in shown.err
    assert make(folder, tmp_path / "out", samples_per_shard=3) == found  # finished: told again, though nothing is read
    assert "3 left out" in capsys.readouterr().out


def test_a_table_of_addresses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(storage, "WAITS", (0.0, 0.0))
    pictures(tmp_path / "served", 6, texts=False)
    behaviour = object_store.Behaviour(chance=random.Random(3), cuts=0.3)
    with (
        object_store.serving(object_store.folder(tmp_path / "served"), behaviour) as store,
        (tmp_path / "t.csv").open("w", newline="") as file,
    ):
        csv.writer(file).writerows(
            [("path", "caption"), *[(f"{store.address}/{n}.jpg", f"picture {n}") for n in range(6)]]
        )
        file.flush()
        assert len(make(tmp_path / "t.csv", tmp_path / "out")) == 6
        assert store.faults
        behaviour.cuts = 1.0
        with pytest.raises(DataError):
            make(tmp_path / "t.csv", tmp_path / "none")
    assert "0.jpg cannot be reached" in capsys.readouterr().err


def test_resize_shrinks_what_is_larger_and_leaves_the_rest(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "in", 1)
    (folder / "big.png").write_bytes(picture(5, (400, 201), "PNG"))
    (folder / "big.txt").write_text("big")
    small, big = make(folder, tmp_path / "out", resize=100)
    assert small["jpg"] == (folder / "0.jpg").read_bytes()
    assert Image.open(io.BytesIO(big["jpg"])).size == (199, 100) == (big["width"], big["height"])


def test_shards_by_bytes(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "in", 7)
    size = (folder / "0.jpg").stat().st_size
    found = make(folder, tmp_path / "out", max_bytes=size * 5 // 2)
    assert [one["shard"] for one in found] == ["00000", "00000", "00001", "00001", "00002", "00002", "00003"]


def test_the_same_input_makes_the_same_bytes_in_any_number_of_processes(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "in", 12)
    orders = {}
    for name, workers, seed in (("a", 1, 3), ("b", 2, 3), ("c", 1, 4)):
        found = make(folder, tmp_path / name, workers, samples_per_shard=3, shuffle=seed)
        orders[name] = (
            [one["source"] for one in found],
            [p.read_bytes() for p in sorted((tmp_path / name).glob("*.tar"))],
        )
    assert orders["a"] == orders["b"]
    assert orders["a"][0] != orders["c"][0]
    assert sorted(orders["a"][0]) == sorted(orders["c"][0])


def test_an_interrupted_command_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = pictures(tmp_path / "in", 9)
    whole = make(folder, tmp_path / "whole", samples_per_shard=3)
    add, written = packing._add, []

    def full_disk(tar: tarfile.TarFile, name: str, content: bytes) -> None:
        written.append(name)
        if len(written) == 14:
            raise OSError(28, "No space left on device")
        add(tar, name, content)

    monkeypatch.setattr(packing, "_add", full_disk)
    with pytest.raises(EnvironmentFault, match=r"00001\.tar cannot be written: No space left on device"):
        make(folder, tmp_path / "out", samples_per_shard=3)
    assert [path.name for path in sorted((tmp_path / "out").glob("*.tar"))] == ["00000.tar"]
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]
    before = (tmp_path / "out" / "00000.tar").stat().st_mtime_ns
    assert make(folder, tmp_path / "out", samples_per_shard=3) == whole
    assert (tmp_path / "out" / "00000.tar").stat().st_mtime_ns == before
    assert len(written) == 14 + 18


def test_another_plan_needs_another_folder(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "in", 4)
    make(folder, tmp_path / "out")
    with pytest.raises(DataError, match="made otherwise: samples_per_shard 10000 -> 2, shuffle None -> 1"):
        make(folder, tmp_path / "out", samples_per_shard=2, shuffle=1)
    table = tmp_path / "table.csv"
    table.write_text("path,caption\n0.jpg,a\n")
    make(table, tmp_path / "rooted", root=str(folder))
    with pytest.raises(DataError, match="made otherwise: list of pictures"):
        make(table, tmp_path / "rooted", root=str(pictures(tmp_path / "other", 1)))
    (tmp_path / "out" / "shards.json").unlink()
    with pytest.raises(DataError, match="holds other shards"):
        make(folder, tmp_path / "out")


def test_sources_that_cannot_be_used(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(DataError, match="does not exist"):
        make(tmp_path / "no", out)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no pictures"):
        make(tmp_path / "empty", out)
    with pytest.raises(DataError, match="none of 2 pictures has a text beside it"):
        make(pictures(tmp_path / "bare", 2, texts=False), out)
    table = tmp_path / "t.csv"
    table.write_text("path,text\nno.jpg,x\n")
    with pytest.raises(DataError, match="has no column caption; it has path, text"):
        make(table, out)
    with pytest.raises(DataError, match="none of the first 1 pictures exists"):
        make(table, out, caption_column=("text",))
    with pytest.raises(ConfigError, match="all caption columns name their language"):
        make(table, out, caption_column=("text", "en=path"))
    (tmp_path / "boxes.json").write_text('{"images": [{"id": 1, "file_name": "a.jpg"}]}')
    with pytest.raises(DataError, match="is no COCO captions file"):
        make(tmp_path / "boxes.json", out)
    (tmp_path / "x.zip").write_bytes(b"")
    with pytest.raises(DataError, match=r"is no folder and none of \.csv"):
        make(tmp_path / "x.zip", out)
    assert not out.exists()
