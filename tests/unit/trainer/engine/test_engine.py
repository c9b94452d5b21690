"""The engine on one rank, and the parts that need none."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from intern_trainer.determinism import seed_of_rank, set_deterministic
from intern_trainer.engine.average import Average
from intern_trainer.engine.layout import Piece

from tests.distributed.spawn import run_ranks
from tests.distributed.towers import make_config


def test_a_piece_reads_and_writes_its_elements_of_a_holder() -> None:
    holder = torch.arange(10.0)
    piece = Piece("weight", (2, 4), 3, 4, 0, offset=5)
    assert piece.of(holder).tolist() == [5, 6, 7, 8]
    piece.put(holder, torch.tensor([-1.0, -2.0, -3.0, -4.0]))
    assert holder.tolist() == [0, 1, 2, 3, 4, -1, -2, -3, -4, 9]


def test_a_channels_last_weight_keeps_its_order_and_its_format() -> None:
    weight = torch.arange(24.0).reshape(2, 3, 2, 2)
    holder = weight.contiguous(memory_format=torch.channels_last)
    piece = Piece("weight", tuple(weight.shape), 0, 24, 0)
    assert torch.equal(piece.of(holder), weight.reshape(-1))
    piece.put(holder, weight.reshape(-1) * 2)
    assert torch.equal(holder, weight * 2)
    assert holder.is_contiguous(memory_format=torch.channels_last)


def test_the_average_exchanges_twice_to_the_bit() -> None:
    masters = [torch.randn(5), torch.randn(3)]
    average = Average(masters, 0.9)
    for master in masters:
        master.add_(1.0)
    average.update(masters)
    kept, averaged = [m.clone() for m in masters], [v.clone() for v in average.values]
    average.exchange(masters)
    assert all(torch.equal(a, b) for a, b in zip(masters, averaged, strict=True))
    average.exchange(masters)
    assert all(torch.equal(a, b) for a, b in zip(masters + average.values, kept + averaged, strict=True))


def test_ranks_have_seeds_of_their_own() -> None:
    config = make_config(train={"seed": 3})
    seeds = {seed_of_rank(config, rank) for rank in range(64)}
    assert len(seeds) == 64
    assert 3 not in seeds


def test_deterministic_names_an_operation_that_is_not() -> None:
    try:
        set_deterministic(make_config(train={"deterministic": True}))
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        set_deterministic(make_config(train={"deterministic": False}))
    assert not torch.are_deterministic_algorithms_enabled()


def test_fp16_where_there_is_none_says_what_to_take() -> None:
    if torch.ops.mkldnn._is_mkldnn_fp16_supported():
        pytest.skip("this CPU has fp16 arithmetic")
    message = run_ranks("tests.distributed.engine_worker:fp16_message", 1, None, timeout=60)[0]
    assert "train.precision is fp16, and this cpu has no fp16 arithmetic" in message
    assert "train.precision=bf16" in message


def test_only_the_engine_imports_deepspeed() -> None:
    root = Path(__file__).parents[4] / "trainer" / "intern_trainer"
    importers = {
        str(path.relative_to(root).parts[0])
        for path in root.rglob("*.py")
        if any(
            line.lstrip().startswith(("import deepspeed", "from deepspeed")) for line in path.read_text().splitlines()
        )
    }
    assert importers == {"engine"}


def test_the_configuration_loads_no_torch() -> None:
    code = (
        "import sys, json, intern_trainer.config.ds;"
        "print(json.dumps([m for m in ('torch', 'deepspeed') if m in sys.modules]))"
    )
    root = Path(__file__).parents[4] / "trainer"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
