"""Compute to equal quality: how curves are read, and that open_clip trains the very towers that we judge."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import open_clip
import pytest
import torch
from intern_trainer.config.load import load_config
from open_clip_train.params import parse_args
from safetensors.torch import save_file

from benchmarks import quality
from benchmarks.quality import open_clip_run, our_run
from benchmarks.quality.curve import Curve, final, first_reached, smoothed

CONFIGS = Path(__file__).parents[3] / "configs" / "stage1"


def curve(scores: list[float], flops: float = 10.0) -> Curve:
    spent = [
        dict.fromkeys(("samples", "flops", "padded_flops", "seconds"), flops * (i + 1)) for i in range(len(scores))
    ]
    return [{**point, "score": score} for point, score in zip(spent, scores, strict=True)]


def test_scores_are_smoothed_and_the_level_is_met_between_evaluations() -> None:
    points = curve([0.0, 0.3, 0.3, 0.6])
    assert smoothed(points) == pytest.approx([0.15, 0.2, 0.4, 0.45])
    assert final(points) == pytest.approx(0.45)
    assert first_reached(points, 0.3, "flops") == pytest.approx(25.0)
    assert first_reached(points, 0.075, "flops") == pytest.approx(5.0)
    assert first_reached(points, 0.5, "flops") is None


def test_ratios_are_taken_seed_by_seed_and_a_level_never_reached_is_said() -> None:
    plain, fast, never = curve([0.1, 0.2, 0.3]), curve([0.1, 0.2, 0.3], flops=4.0), curve([0.0, 0.1, 0.1])
    reached = quality.summarise({n: quality.judge({"plain": plain, "fast": fast, "open_clip": plain}) for n in (0, 1)})
    assert reached["ratios"]["fast / plain, FLOPs"] == {
        "values": [pytest.approx(0.4)] * 2, "mean": pytest.approx(0.4), "standard_deviation": 0.0,
    }  # fmt: skip
    assert reached["passed"]
    failed = quality.summarise({0: quality.judge({"plain": plain, "fast": never, "open_clip": never})})
    assert failed["ratios"]["fast / plain, FLOPs"]["values"] == [None]
    assert not failed["passed"]
    assert "not reached" in quality.table(failed)


def test_the_fast_recipe_is_the_default_one_but_for_its_speed() -> None:
    plain, fast = (load_config(CONFIGS / f"{name}.yaml") for name in quality.RECIPES["embedded"])
    text = fast.model.text.model_copy(update={"pack": False})
    same = {
        "model": fast.model.model_copy(update={"text": text}),
        "train": fast.train.model_copy(update={"phases": []}),
    }
    assert fast.model_copy(update=same) == plain


def test_compute_is_counted_by_phase_and_by_the_length_of_captions() -> None:
    fast = load_config(CONFIGS / "debug_fast.yaml", ["train.global_batch=32"])
    spent, padded = our_run.Spent(fast, 1), our_run.Spent(our_run.unpacked(fast), 1)
    first, last = spent.at(1), spent.at(240) - spent.at(239)
    assert first < last
    assert padded.at(1) > 1.4 * first
    assert spent.at(240) == pytest.approx(120 * (first + last))


def test_open_clip_trains_our_towers(tmp_path: Path) -> None:
    config = load_config(CONFIGS / "debug.yaml", our_run.settings(3))
    (tmp_path / "towers.json").write_text(json.dumps(open_clip_run.model_config(config)))
    open_clip.add_model_config(tmp_path / "towers.json")
    theirs = open_clip.create_model("towers").eval()
    with torch.no_grad():
        for buffer in theirs.buffers():  # running statistics that are not those of a fresh model
            if buffer.is_floating_point() and buffer.isfinite().all():
                buffer.add_(torch.rand_like(buffer))
    save_file({name: tensor.contiguous() for name, tensor in theirs.state_dict().items()}, tmp_path / "w.safetensors")
    ours = open_clip_run.towers(tmp_path / "w.safetensors", config).eval()
    image, text = torch.randn(2, 3, 64, 64), open_clip.get_tokenizer("towers")(["a cat", "a dog and more"])
    with torch.no_grad():
        out = ours(image=image, text=text)
        torch.testing.assert_close(out.image_features, theirs.encode_image(image, normalize=True))
        torch.testing.assert_close(out.text_features, theirs.encode_text(text, normalize=True))


@pytest.mark.slow
def test_a_run_of_each_gives_a_curve_and_is_not_made_again(tmp_path: Path) -> None:
    recipe = tmp_path / "tiny.yaml"
    text = (CONFIGS / "debug.yaml").read_text().replace("lanes: 16", "lanes: 8").replace("workers: 1", "workers: 0")
    text = text.replace("steps: 240", "steps: 20").replace("global_batch: 128", "global_batch: 8")
    recipe.write_text(text.replace("warmup_steps: 20", "warmup_steps: 5"))
    curves = [made.curve(recipe, 3, tmp_path / made.__name__) for made in (our_run, open_clip_run)]
    for points in curves:
        assert [point["samples"] for point in points] == [80.0, 160.0]
        assert points[0]["flops"] == pytest.approx(points[1]["flops"] / 2)
        assert 0 < points[0]["seconds"] < points[1]["seconds"]
        assert all(0 <= point["score"] < 0.1 for point in points)
    assert curves[0][1]["flops"] == pytest.approx(curves[1][1]["flops"])
    recipe.unlink()
    assert our_run.curve(recipe, 3, tmp_path / our_run.__name__) == curves[0]
    assert open_clip_run.curve(recipe, 3, tmp_path / open_clip_run.__name__) == curves[1]


def test_open_clip_gets_the_recipe_and_captions_as_its_reader_wants_them(tmp_path: Path) -> None:
    config = load_config(CONFIGS / "debug.yaml", our_run.settings(3))
    model, *words = open_clip_run.arguments(config, 3, tmp_path)
    parsed = parse_args(words)
    assert Path(model).name == "towers.json"
    assert (parsed.epochs * parsed.train_num_samples, parsed.batch_size) == (240 * 128, 128)
    assert (parsed.lr, parsed.wd, parsed.beta2, parsed.warmup, parsed.seed) == (1e-3, 0.5, 0.98, 20, 3)
    assert parsed.aug_cfg == {"scale": (0.6, 1.0)}
    open_clip_run.write_shards(tmp_path / "shards")
    with tarfile.open(tmp_path / "shards" / "00000.tar") as tar:
        picture, caption = tar.next(), tar.next()
        assert picture is not None
        assert caption is not None
        assert (Path(picture.name).suffix, Path(caption.name).suffix) == (".webp", ".txt")
        assert len(tar.extractfile(caption).read()) > 3  # type: ignore[union-attr]
