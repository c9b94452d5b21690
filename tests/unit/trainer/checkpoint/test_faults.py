"""Full disks, numbers that are not finite, damaged and foreign files: one clear error on all ranks, nothing lost."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from intern_trainer.checkpoint import (
    CheckpointReader,
    Progress,
    check_data,
    layout,
    load,
    newest_good,
    save,
    shards,
    tidy,
    verify,
)
from intern_trainer.errors import CheckpointError, EnvironmentFault, TrainingError
from intern_trainer.ranks import Ranks
from safetensors.torch import save_file

from tests.unit.trainer.checkpoint.fakes import ALONE, CONFIG, FakeEngine, fresh_state, on_ranks, save_on


def saved(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def forge(path: Path, name: str, change: Callable[[Any], None]) -> None:
    """Change a JSON file of a checkpoint and make the manifest agree with it, as an attacker would."""
    content = json.loads((path / name).read_text())
    change(content)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"][name] = layout.write_json(path / name, content)
    manifest["checksum"] = layout.self_checksum(manifest)
    layout.write_json(path / "manifest.json", manifest)


@pytest.mark.parametrize("failing", [0, 1])
def test_a_disk_that_fills_up_on_one_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int) -> None:
    save_on(2, tmp_path, step=5)
    write = shards.write_slices

    def full(slices: Any, folder: Path, rank: int) -> Any:
        if rank == failing:
            (folder / "begun").write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(slices, folder, rank)

    monkeypatch.setattr("intern_trainer.checkpoint.write.write_slices", full)
    engines = [FakeEngine(fresh_state(), rank, 2) for rank in range(2)]
    errors = on_ranks(2, lambda ranks: save(engines[ranks.rank], Progress(6), tmp_path, ranks, CONFIG))
    assert [type(error) for error in errors] == [EnvironmentFault] * 2
    size = sum(tensor.nbytes for tensors in fresh_state().values() for tensor in tensors.values())
    for words in (f"step-00000006 needs {size:,} bytes", "were free", "checkpoint.keep_last", str(tmp_path)):
        assert words in str(errors[0])
        assert words in str(errors[1])
    assert saved(tmp_path) == ["step-00000005"]
    assert newest_good(tmp_path) == tmp_path / "checkpoints" / "step-00000005"


def test_no_room_is_found_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    monkeypatch.setattr("intern_trainer.checkpoint.write.write_slices", None)
    with pytest.raises(EnvironmentFault, match="1,000 were free"):
        save(FakeEngine(fresh_state()), Progress(6), tmp_path, ALONE, CONFIG)
    assert saved(tmp_path) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs needs root")
def test_a_real_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.system(f"mount -t tmpfs -o size=256k tmpfs {tmp_path} 2>/dev/null"):
        pytest.skip("tmpfs cannot be mounted here")
    try:
        first = save(FakeEngine(fresh_state()), Progress(1), tmp_path, ALONE, CONFIG)
        monkeypatch.setattr(
            "intern_trainer.checkpoint.write.state_bytes", lambda engine: 0
        )  # the check up front is blind to quotas
        big = fresh_state() | {"frozen": {"text.table": torch.zeros(200_000)}}
        with pytest.raises(EnvironmentFault, match="the disk is full"):
            save(FakeEngine(big), Progress(2), tmp_path, ALONE, CONFIG)
        assert saved(tmp_path) == ["step-00000001"]
        verify(first)
    finally:
        os.system(f"umount {tmp_path}")


@pytest.mark.parametrize("progress", [Progress(6, loss=float("nan")), Progress(6, grad_norm=float("inf"))])
def test_a_step_that_is_not_finite_is_refused(tmp_path: Path, progress: Progress) -> None:
    save_on(1, tmp_path, step=5)
    with pytest.raises(TrainingError, match=r"step 6 has loss .* so it is not saved"):
        save(FakeEngine(fresh_state()), progress, tmp_path, ALONE, CONFIG)
    assert saved(tmp_path) == ["step-00000005"]


@pytest.mark.parametrize("kind", ["param", "ema", "optim.exp_avg_sq"])
def test_state_that_is_not_finite_is_refused_on_all_ranks(tmp_path: Path, kind: str) -> None:
    state = fresh_state()
    state[kind]["text.proj"][4, 10] = torch.nan  # on the last rank only
    engines = [FakeEngine(state, rank, 2) for rank in range(2)]
    errors = on_ranks(2, lambda ranks: save(engines[ranks.rank], Progress(6), tmp_path, ranks, CONFIG))
    assert [type(error) for error in errors] == [TrainingError] * 2
    assert "1 value(s) of text.proj" in str(errors[0])
    assert saved(tmp_path) == []


def test_slices_that_do_not_make_up_the_state_are_refused(tmp_path: Path) -> None:
    engines = [FakeEngine(fresh_state(), rank, 3) for rank in (0, 2)]
    errors = on_ranks(2, lambda ranks: save(engines[ranks.rank], Progress(6), tmp_path, ranks, CONFIG))
    assert [type(error) for error in errors] == [CheckpointError] * 2
    assert "elements of" in str(errors[1])


DAMAGES = {
    "rank-00001-weights-0000.safetensors": flip,
    "rank-00000-optim-0000.safetensors": lambda file: os.truncate(file, 100),
    "rank-00001.json": Path.unlink,
    "tensors.json": flip,
    "progress.json": lambda file: file.write_text("{}"),
    "manifest.json": lambda file: file.write_text(file.read_text().replace('"step":20', '"step":21')),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_named_and_the_older_checkpoint_taken(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    good = save_on(2, tmp_path, step=10)
    bad = save_on(2, tmp_path, step=20)
    forget_what_was_verified()
    DAMAGES[name](bad / name)
    with caplog.at_level(logging.WARNING):
        assert on_ranks(2, lambda ranks: newest_good(tmp_path, ranks)) == [good, good]
    assert f"passed over checkpoint {bad}" in caplog.text
    assert str(bad / name) in caplog.text
    assert newest_good(tmp_path) == good
    with pytest.raises(CheckpointError, match=re.escape(name)):
        verify(bad)


@pytest.mark.parametrize("group", ["weights", "optim"])
def test_a_reader_checks_what_it_touches(tmp_path: Path, group: str) -> None:
    path = save_on(2, tmp_path)
    forget_what_was_verified()
    flip(path / f"rank-00001-{group}-0000.safetensors")
    if group == "weights":
        with pytest.raises(CheckpointError, match=r"rank-00001-weights-0000\.safetensors is damaged"):
            dict(CheckpointReader(path).weights())
    else:
        dict(CheckpointReader(path).weights())


def forget_what_was_verified() -> None:
    """What a new process knows."""
    from intern_trainer.checkpoint.verify import _verified

    _verified.clear()


def test_half_written_ones_are_no_checkpoints_and_bad_ones_are_not_buried(tmp_path: Path) -> None:
    assert newest_good(tmp_path) is None
    (tmp_path / "checkpoints" / ".tmp-step-00000020").mkdir(parents=True)
    assert newest_good(tmp_path) is None
    (tmp_path / "checkpoints" / "step-00000030").mkdir()
    with pytest.raises(CheckpointError, match="none of them whole"):
        newest_good(tmp_path)


def test_what_a_killed_start_left_is_cleared_by_its_owner(tmp_path: Path) -> None:
    tidy(tmp_path, ALONE)  # nothing there yet
    path = save_on(1, tmp_path)
    path.rename(layout.sibling(path, "old"))  # death between the two renames of a replacement
    for name in (".tmp-step-00000020", ".gone-step-00000005"):
        (path.parent / name).mkdir()
    assert newest_good(tmp_path) is None  # a reader changes nothing
    tidy(tmp_path, ALONE)
    assert newest_good(tmp_path) == path
    path.with_name(".old-step-00000010").mkdir()  # death after both
    tidy(tmp_path, ALONE)
    assert saved(tmp_path) == [path.name]
    verify(path)


@pytest.mark.parametrize("name", ["../../secret.safetensors", "/etc/passwd", ".hidden", "unlisted.safetensors"])
def test_an_index_cannot_point_outside_the_checkpoint(tmp_path: Path, name: str) -> None:
    path = save_on(1, tmp_path)
    save_file({"param/text.proj[0:55]": torch.zeros(55)}, tmp_path / "secret.safetensors")
    save_file({"param/text.proj[0:55]": torch.zeros(55)}, path / "unlisted.safetensors")
    forge(path, "rank-00000.json", lambda part: part["tensors"]["param"]["text.proj"]["pieces"][0].__setitem__(2, name))
    with pytest.raises(CheckpointError, match=r"plain file names|not a file of this checkpoint"):
        CheckpointReader(path).tensor("param", "text.proj")
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["../../../secret.safetensors"] = {"size": 1, "sha256": ""}
    manifest["checksum"] = layout.self_checksum(manifest)
    layout.write_json(path / "manifest.json", manifest)
    with pytest.raises(CheckpointError, match="plain file names"):
        CheckpointReader(path)


def test_a_configuration_of_another_version(tmp_path: Path) -> None:
    path = save_on(1, tmp_path)
    forge(path, "config.json", lambda config: config["train"].update(warp=9))
    with pytest.raises(CheckpointError, match=r"(?s)written by intern-trainer .*warp"):
        _ = CheckpointReader(path).config
    assert CheckpointReader(path).names("ema")  # its tensors can be read all the same


def test_an_index_that_lies_about_a_place(tmp_path: Path) -> None:
    path = save_on(1, tmp_path)
    forge(path, "rank-00000.json", lambda part: part["tensors"]["param"]["text.proj"].update(pieces=[]))
    with pytest.raises(CheckpointError, match=r"parts of text\.proj"):
        CheckpointReader(path).tensor("param", "text.proj")


def refused(path: Path, change: Callable[[dict[str, dict[str, torch.Tensor]]], None]) -> str:
    state = fresh_state()
    change(state)
    errors = on_ranks(2, lambda ranks: load(FakeEngine(state, ranks.rank, 2, cut="whole"), path, ranks))
    assert [type(error) for error in errors] == [CheckpointError] * 2
    assert str(errors[0]) == str(errors[1])
    return str(errors[0])


def test_a_checkpoint_of_another_model(tmp_path: Path) -> None:
    path = save_on(2, tmp_path)

    def change(state: dict[str, dict[str, torch.Tensor]]) -> None:
        for i in range(5):
            state["param"][f"image.new{i}"] = torch.zeros(2)
        del state["param"]["image.stem.bias"]
        state["param"]["text.proj"] = torch.zeros(5, 12)

    text = refused(path, change)
    assert "5 tensors (image.new0, image.new1, image.new2 and 2 more) missing in it" in text
    assert "1 tensor (image.stem.bias) not in this model" in text
    assert "text.proj (saved [5, 11], now [5, 12])" in text
    assert "model section as in" in text


def test_other_freezing_and_what_the_engine_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_on(2, tmp_path)
    text = refused(path, lambda state: state["frozen"].update({"text.proj": state["param"].pop("text.proj")}))
    assert "1 parameter (text.proj) of this run changed between trained and frozen" in text
    assert "model.freeze" in text

    def refuse(self: FakeEngine, read: Any, scalars: Any) -> None:
        raise CheckpointError("another optimizer", "a rule", "a fix")

    monkeypatch.setattr(FakeEngine, "load", refuse)
    assert f"{path}: another optimizer" in refused(path, lambda state: None)


def test_data_that_changed_is_named(caplog: pytest.LogCaptureFixture) -> None:
    fingerprint = {"seed": 0, "lanes": 64, "sources": [{"name": "a", "weight": 1.0, "shards": [["a-0.tar", 100]]}]}
    progress = Progress(70, data_fingerprint=json.loads(json.dumps(fingerprint)))
    check_data(progress, fingerprint)
    changed = fingerprint | {"lanes": 32, "sources": [{"name": "a", "weight": 1.0, "shards": [["a-0.tar", 101]]}]}
    with pytest.raises(CheckpointError) as caught:
        check_data(progress, changed)
    for words in ("since step 70", "lanes: 64 -> 32", "sources.0.shards.0.1: 100 -> 101", "--new-order"):
        assert words in str(caught.value)
    with caplog.at_level(logging.WARNING):
        check_data(progress, changed, new_order=True)
    assert "lanes: 64 -> 32" in caplog.text


def test_a_folder_that_ranks_do_not_share(tmp_path: Path) -> None:
    def one(ranks: Ranks) -> Path:
        run = tmp_path if ranks.is_main else tmp_path / "elsewhere"
        return save(FakeEngine(fresh_state(), ranks.rank, 2), Progress(6), run, ranks, CONFIG)

    errors = on_ranks(2, one)
    assert [type(error) for error in errors] == [CheckpointError] * 2
    assert "all nodes share" in str(errors[0])
