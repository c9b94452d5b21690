"""Which samples a tool reads, and by how many reads."""

from __future__ import annotations

from pathlib import Path

import pytest
from intern_trainer.config.schema import Data
from intern_trainer.data.storage import Storage
from intern_trainer.data.tools import pieces
from intern_trainer.data.tools.check import check
from intern_trainer.data.tools.pieces import Piece, choose, read

from benchmarks.object_store import Behaviour, folder, serving
from tests.unit.trainer.data.shards import config, good, write_shard, write_shards


def test_a_piece_is_read_by_few_requests_of_a_server(tmp_path: Path) -> None:
    write_shards(tmp_path / "served", [40])
    data = Data(index_dir=tmp_path / "indexes")
    with serving(folder(tmp_path / "served"), Behaviour()) as store:
        remote = list(read(Piece(f"{store.address}/000.tar", range(40)), data))
        assert store.requests <= 6  # its state twice, its index, and one read
        assert check([f"{store.address}/{{000..001}}.tar"], config("x", index_dir=tmp_path / "indexes"), 2) == 1
    assert remote == list(read(Piece(str(tmp_path / "served" / "000.tar"), range(40)), Data()))
    assert [member.key for member in remote] == [f"{n:06d}" for n in range(40)]
    assert remote[7].content == good(7)


@pytest.mark.parametrize(("block", "gap", "reads"), [(1, 1 << 20, 2), (8 << 20, 0, 2), (8 << 20, 64 << 10, 1)])
def test_blocks_change_nothing_but_the_number_of_reads(
    block: int, gap: int, reads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "BLOCK_BYTES", block)
    monkeypatch.setattr(pieces, "GAP_BYTES", gap)
    odd = [good(0), {"other": b"nothing that training reads"}, {"txt": b"t", "mp3": b"~" * 5000, "png": b"p"}, good(3)]
    shard = write_shard(tmp_path / "s.tar", odd)
    found = list(read(Piece(str(shard), [0, 1, 2, 3]), Data()))
    assert [member.content for member in found] == [good(0), {}, {"txt": b"t", "png": b"p"}, good(3)]
    assert found[2].sizes == {"txt": 1, "mp3": 5000, "png": 1}
    spans: list[tuple[int, int]] = []
    at_once = Storage.read
    monkeypatch.setattr(Storage, "read", lambda *given: spans.append(given[2:]) or at_once(*given))
    assert [member.key for member in read(Piece(str(shard), [0, 3]), Data())] == ["000000", "000003"]
    assert len(spans) == reads


def test_all_samples_come_once_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PIECE", 4)
    chosen = choose([write_shards(tmp_path, [9, 4, 1])], Data(), 1)
    assert [(Path(piece.shard).stem, list(piece.samples)) for piece in chosen.pieces] == [
        ("000", [0, 1, 2, 3]),
        ("000", [4, 5, 6, 7]),
        ("000", [8]),
        ("001", [0, 1, 2, 3]),
        ("002", [0]),
    ]


def test_a_draw_from_many_shards_opens_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "SAMPLED_SHARDS", 3)
    location = write_shards(tmp_path, [5] * 10)
    chosen = choose([location], Data(), 1, sample=12, seed=1)
    assert (chosen.shards, chosen.opened, chosen.samples) == (10, 3, 15)
    assert len(list(tmp_path.glob("*.index.npz"))) == 3
    drawn = [(piece.shard, sample) for piece in chosen.pieces for sample in piece.samples]
    assert len(drawn) == len(set(drawn)) == 12
    assert choose([location], Data(), 1, sample=12, seed=1) == chosen
    assert choose([location], Data(), 1, sample=12, seed=2) != chosen
    assert sum(len(piece) for piece in choose([location], Data(), 1, sample=99).pieces) == 15
