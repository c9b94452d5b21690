"""Reading, merging and refusing configurations."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
from intern_trainer.config.checks import batch_plan, check_world
from intern_trainer.config.load import load_config, write_config
from intern_trainer.config.schema import Config
from intern_trainer.errors import ConfigError, ConfigErrors

RECIPE = """
model: {image: metanet_debug, image_size: 64}
train: {steps: 10, global_batch: 64}
data: {lanes: 16}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


def test_overrides_win_and_are_typed(recipe: Path) -> None:
    config = load_config(recipe, ["optim.lr=5e-4", "train.steps=20", "train.micro_batch=null", "model.freeze=image"])
    assert (config.optim.lr, config.train.steps, config.train.micro_batch) == (5e-4, 20, None)
    assert config.model.freeze == ["image"]
    assert config.model.image_size == 64


def test_a_brace_range_that_the_shell_expanded_is_one_source(recipe: Path) -> None:
    config = load_config(recipe, [f"data.train=/data/{i:05}.tar" for i in range(3)])
    assert [source.location for source in config.data.train] == [
        ["/data/00000.tar", "/data/00001.tar", "/data/00002.tar"]
    ]


def test_a_brace_range_in_quotes_stays_one_location(recipe: Path) -> None:
    config = load_config(recipe, ["data.train={00000..01242}.tar"])
    assert config.data.train[0].location == ["{00000..01242}.tar"]


def test_weighted_sources(recipe: Path) -> None:
    config = load_config(recipe, ["data.train=[{location: a.tar, weight: 3}, {location: [b.tar, c.tar]}]"])
    assert [(s.location, s.weight) for s in config.data.train] == [(["a.tar"], 3.0), (["b.tar", "c.tar"], 1.0)]


def test_a_tilde_is_the_users_home(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    data = load_config(recipe, ["data.cache_dir=~/cache", "data.index_dir=/x/~y"]).data
    assert (data.cache_dir, data.index_dir) == (Path("/home/me/cache"), Path("/x/~y"))


def test_written_configuration_reads_back_equal(recipe: Path, tmp_path: Path) -> None:
    ds_config = tmp_path / "ds.json"
    ds_config.write_text(json.dumps({"zero_optimization": {"stage": 2}}))
    config = load_config(recipe, ["init.from=somewhere", "log.wandb={project: x}"], ds_config)
    write_config(config, tmp_path / "written.yaml")
    assert load_config(tmp_path / "written.yaml") == config
    assert config.ds == {"zero_optimization": {"stage": 2}}


def test_every_default_recipe_of_the_repository_is_valid() -> None:
    recipes = sorted(Path(__file__).parents[4].glob("configs/stage1/*.yaml"))
    assert recipes
    for path in recipes:
        load_config(path)


def test_all_errors_come_at_once(recipe: Path) -> None:
    with pytest.raises(ConfigErrors) as caught:
        load_config(recipe, ["optim.lrr=1", "train.steps=many", "nonsense", "train.global_batch=-1"])
    text = str(caught.value)
    assert len(caught.value.errors) == 4
    for part in (
        "unknown key optim.lrr",
        "did you mean optim.lr?",
        "train.steps is 'many'",
        "argument 'nonsense'",
        "train.global_batch is -1",
    ):
        assert part in text


WRONG = [
    (["optimizer.lr=1"], "unknown key optimizer", "did you mean optim"),
    (["lr=1"], "unknown key lr", "did you mean optim.lr?"),
    (["train.lr=1"], "unknown key train.lr", "did you mean optim.lr?"),
    (["data.worker=3"], "unknown key data.worker", "did you mean data.workers?"),
    (["model.text.heads=7"], "model.text.width 512 over model.text.heads 7", "model.text.heads=4"),
    (["data.lanes=48"], "data.lanes 48 does not divide train.global_batch 64", "data.lanes=32"),
    (["optim.schedule.warmup_steps=50"], "warmup_steps 50 is more than train.steps 10", "warmup_steps=1"),
    (["loss.declip.queue=8"], "loss.declip is set, and loss.kind is clip", "loss.kind=declip"),
    (["loss.kind=declip", "data.augment.drop_tokens=0.5"], "drop_tokens is 0.5, and loss.kind", "drop_tokens=0"),
    (["task=local", "loss.kind=declip"], "task is local, and loss.kind is declip", "loss.kind=clip or siglip"),
    (["task=local", "model.image_options={patch_drop_rate: 0.5}"], "drops patches", "without patch_drop_rate"),
    (["local.overlap=0"], "local.overlap is 0", "greater than 0"),
    (["loss.initial_bias=-7"], "initial_bias is set, and loss.kind is clip", "loss.kind=siglip"),
    (["loss.initial_scale=200"], "initial_scale 200 is not between", "loss.initial_scale=100"),
    (["train.cached_micro_batches=1"], "train.cached_micro_batches is 1", "greater than or equal to 2"),
    (["model.min_logit_scale=200"], "200 is more than model.max_logit_scale 100", "min_logit_scale=20"),
    (["optim.schedule.start_lr=1"], "start_lr 1.0 is more than optim.lr 0.001", "start_lr=1e-05"),
    (["optim.schedule.min_lr=1"], "min_lr 1.0 is more than optim.lr 0.001", "min_lr=1e-05"),
    (["log.profile={first: 5, last: 3}"], "steps 5 to 3 of 10", "log.profile={first: 5, last: 8}"),
    (["train.precision=bf8"], "train.precision is 'bf8'", "'fp32', 'bf16' or 'fp16'"),
    (["optim.lr=0"], "optim.lr is 0", "greater than 0"),
    (["optim.name=lion"], "optim.name is 'lion'", "adamw"),
    (["train.steps=5", "train.steps=6"], "train.steps is given 2 times: 5, 6", "give it once"),
    (["train=5"], "train is 5", "change train"),
    (["train.steps.more=1"], "train.steps holds 10", "only sections have keys"),
    (["data.augment.crop_scale=[0.9,0.1]"], "data.augment.crop_scale is [0.9, 0.1]", "0 < low <= high"),
    (["data.train=[]"], "data.train is []", "at least 1 item"),
    (["data.train=[{weight: 2}]"], "data.train.0.location is missing", "set data.train.0.location"),
    (["data.std=[1,0,1]"], "data.std is [1.0, 0.0, 1.0]", "positive"),
    (
        ["evaluate.every=5", "checkpoint.best_metric=accuracy/top1"],
        "best_metric accuracy/top1 is not among",
        "zero_shot",
    ),
    (["evaluate.test.zero_shot=[{data: a}, {data: b}]"], "evaluate.test has 2 entries named zero_shot", "`name`"),
    (["guard.hang_seconds=2000"], "slow_seconds 1500 is less than guard.hang_seconds 2000", "guard.slow_seconds=4000"),
    (
        ["guard.spike={deviations: 5, back: 40}", "checkpoint.every=10"],
        "guard.spike.back is 40, and checkpoints reach 30 steps back",
        "guard.spike.back=30",
    ),
    (["guard.on_hang=wait"], "guard.on_hang is 'wait'", "'report' or 'stop'"),
    (["log.wandb={}"], "log.wandb.project is missing", "set log.wandb.project"),
]


@pytest.mark.parametrize(("overrides", "found", "fix"), WRONG, ids=[w[0][-1] for w in WRONG])
def test_wrong_settings(recipe: Path, overrides: list[str], found: str, fix: str) -> None:
    with pytest.raises(ConfigErrors) as caught:
        load_config(recipe, overrides)
    assert len(caught.value.errors) == 1, str(caught.value)
    assert found in str(caught.value)
    assert fix in str(caught.value)


def test_missing_and_broken_files(tmp_path: Path) -> None:
    (tmp_path / "near.yaml").write_text("train: {steps: [")
    with pytest.raises(ConfigErrors, match=r"recipe .*nera.yaml does not exist\n.*near.yaml"):
        load_config(tmp_path / "nera.yaml")
    with pytest.raises(ConfigErrors, match="is not YAML"):
        load_config(tmp_path / "near.yaml")
    (tmp_path / "ds.json").write_text("{,}")
    with pytest.raises(ConfigErrors, match="is not JSON"):
        load_config(None, [], tmp_path / "ds.json")


def _sized(global_batch: int, micro: int | None = None, lanes: int = 1, cached: int | None = None) -> Config:
    train = {"global_batch": global_batch, "micro_batch": micro, "cached_micro_batches": cached}
    return Config.model_validate({"train": train, "data": {"lanes": lanes}})


def test_batch_plan_divides() -> None:
    plan = batch_plan(_sized(64, 8, 4), 4)
    assert (plan.micro, plan.accumulation, plan.per_rank) == (8, 2, 16)
    assert batch_plan(_sized(64, None, 4), 2).accumulation == 1
    assert batch_plan(_sized(96, None, 32), 24).per_rank == 4  # ranks may share a lane
    assert batch_plan(_sized(64, 4, 4, cached=2), 4).of_a_loss == 32


def test_errors_reach_other_ranks_whole() -> None:
    both = ConfigErrors([ConfigError("found", "rule", "fix"), ConfigError("more")])
    assert str(pickle.loads(pickle.dumps(both))) == str(both)


@pytest.mark.parametrize(
    ("config", "world", "found", "fix"),
    [
        (_sized(64, None, 3), 3, "train.global_batch 64 over 3 ranks leaves 1 samples", "train.global_batch=63"),
        (_sized(64, 12, 2), 2, "train.micro_batch 12 does not divide the 32 samples a rank", "train.micro_batch=8"),
        (
            _sized(64, 8, 2, cached=4),
            4,
            "train.cached_micro_batches 4 does not divide the 2 micro-batches a rank (train.global_batch 64 / 4 ranks "
            "/ train.micro_batch 8)",
            "train.micro_batch=4, or train.cached_micro_batches=2",
        ),
        (_sized(63, None, 3, cached=4), 3, "does not divide the 1 micro-batches a rank", "leave it out"),
    ],
)
def test_world_size_must_divide(config: Config, world: int, found: str, fix: str) -> None:
    (error,) = check_world(config, world)
    assert found in str(error)
    assert fix in str(error)
    with pytest.raises(ConfigError):
        batch_plan(config, world)
