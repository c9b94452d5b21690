"""Weights of every source end where the model computes the same with them; what does not fit is named."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import open_clip
import pytest
import timm
import torch
from intern_trainer.checkpoint import Progress, save
from intern_trainer.config.losses import Loss
from intern_trainer.config.schema import Config
from intern_trainer.errors import CheckpointError
from intern_trainer.init_from import initialise
from intern_trainer.ranks import Ranks
from intern_trainer.slices import Read
from intern_trainer.tasks import build_task
from intern_trainer.text import text_options
from intern_zoo.declip import DeclipTowers
from intern_zoo.two_tower import AUXILIARY, TwoTower, create_two_tower
from safetensors.torch import save_file
from torch import Tensor

ALONE = Ranks(0, 1, 0, torch.device("cpu"))
TEXT = {"width": 32, "layers": 1, "heads": 2, "context_length": 12}
VIT = {"depth": 2, "embed_dim": 64, "num_heads": 1}


def config(
    source: Path | str, image: str = "resnet18", options: dict[str, Any] | None = None, weights: str = "ema"
) -> Config:
    model = {"image": image, "image_options": options or {}, "image_size": 64, "embed_dim": 16, "text": TEXT}
    return Config.model_validate({"init": {"from": str(source), "weights": weights}, "model": model})


def build(settings: Config, seed: int) -> TwoTower:
    torch.manual_seed(seed)
    m = settings.model
    return create_two_tower(m.image, m.image_size, m.embed_dim, text_options(m.text), m.image_options)


class BareEngine:
    """A model and what initialising asks of an engine; it loads in pieces, as ZeRO does."""

    def __init__(self, model: TwoTower) -> None:
        self.module = model
        parameters = dict(model.named_parameters())
        self.tensors = {("param" if n in parameters else "buffer", n): t for n, t in model.state_dict().items()}

    def shapes(self) -> dict[tuple[str, str], tuple[int, ...]]:
        return {key: tuple(tensor.shape) for key, tensor in self.tensors.items()}

    def gathered_state_dict(self) -> Iterator[tuple[str, Tensor]]:
        for (_, name), tensor in self.tensors.items():
            yield name, tensor.clone()

    def load_weights(self, read: Read) -> None:
        for (kind, name), tensor in self.tensors.items():
            half, size = tensor.numel() // 2, tensor.numel()
            tensor.view(-1)[:half] = read(kind, name, 0, half)
            tensor.view(-1)[half:] = read(kind, name, half, size - half)


def checkpoint(run: Path, model: TwoTower, settings: Config) -> Path:
    state: dict[str, dict[str, Tensor]] = {"param": {}, "buffer": {}, "ema": {}}
    for (kind, name), tensor in BareEngine(model).tensors.items():
        state[kind][name] = tensor.clone()
        if kind == "param":
            state["ema"][name] = tensor + 1
    from tests.unit.trainer.checkpoint.fakes import FakeEngine

    return save(FakeEngine(state), Progress(4), run, ALONE, settings)


def start(settings: Config) -> TwoTower:
    model = build(settings, seed=1)
    initialise(BareEngine(model), settings, ALONE)  # type: ignore[arg-type]
    return model.eval()


def same(a: dict[str, Tensor], b: dict[str, Tensor], offset: float = 0) -> bool:
    return all(
        torch.equal(a[name] + (offset if "running" not in name and "num_b" not in name else 0), b[name]) for name in a
    )


def test_a_run_its_checkpoint_and_its_export(tmp_path: Path) -> None:
    origin = build(config(""), seed=0)
    path = checkpoint(tmp_path / "run", origin, config(""))
    assert same(origin.state_dict(), start(config(path, weights="raw")).state_dict())
    assert same(origin.state_dict(), start(config(tmp_path / "run", weights="raw")).state_dict())
    assert same(origin.state_dict(), start(config(path)).state_dict(), offset=1)
    folder = tmp_path / "hf"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "intern_two_tower"}))
    save_file({f"model.{name}": tensor for name, tensor in origin.state_dict().items()}, folder / "model.safetensors")
    assert same(origin.state_dict(), start(config(folder)).state_dict())


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def declip(settings: Config, queue: int) -> Config:
    """The same towers, trained by DeCLIP's loss."""
    loss = Loss.model_validate({"kind": "declip", "declip": {"queue": queue, "projector": 8, "predictor": 4}})
    return settings.model_copy(update={"loss": loss})


def build_declip(settings: Config, seed: int) -> TwoTower:
    torch.manual_seed(seed)
    model = build_task(settings, ALONE).build_model()
    assert isinstance(model, DeclipTowers)
    model.heads.queue.push(torch.randn(3, 16))
    return model


def test_runs_of_clip_and_declip_start_each_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clip, other = build(config(""), seed=0), build_declip(declip(config(""), 8), seed=2)
    checkpoint(tmp_path / "clip", clip, config(""))
    checkpoint(tmp_path / "declip", other, declip(config(""), 8))
    from_clip, from_declip = config(tmp_path / "clip", weights="raw"), config(tmp_path / "declip", weights="raw")

    assert same(start(from_declip).state_dict(), other.state_dict())  # its heads are left out
    assert not warnings(caplog)
    heads = [name for name in other.state_dict() if name.startswith(AUXILIARY)]
    cases = [(from_clip, 8, clip, True), (from_declip, 8, other, False), (from_declip, 9, other, True)]
    for settings, queue, origin, fresh in cases:  # another length of queue: none of the heads is taken over
        model, untouched = (build_declip(declip(settings, queue), seed=1) for _ in range(2))
        initialise(BareEngine(model), declip(settings, queue), ALONE)  # type: ignore[arg-type]
        towers = {name: tensor for name, tensor in origin.state_dict().items() if name not in heads}
        assert same(towers, model.state_dict())
        expected = (untouched if fresh else other).state_dict()
        assert all(torch.equal(model.state_dict()[name], expected[name]) for name in heads)
    assert caplog.text.count("they start fresh: heads, text.token_embedding.mask") == 2


def test_the_bias_of_siglip_comes_and_goes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """From a run of CLIP it starts as configured; from a run of SigLIP, or open_clip's file of one, it is taken over;
    CLIP leaves it there.
    """

    def built(settings: Config) -> TwoTower:
        settings = settings.model_copy(update={"loss": Loss.model_validate({"kind": "siglip", "initial_bias": -7})})
        model = build_task(settings, ALONE).build_model()
        if settings.init.from_:
            initialise(BareEngine(model), settings, ALONE)  # type: ignore[arg-type]
        return model  # type: ignore[return-value]

    clip, sigmoid = build(config(""), seed=0), built(config(""))
    with torch.no_grad():
        sigmoid.logit_bias.fill_(-3.0)
    checkpoint(tmp_path / "clip", clip, config(""))
    checkpoint(tmp_path / "siglip", sigmoid, config(""))
    assert start(config(tmp_path / "siglip", weights="raw")).logit_bias is None
    assert not warnings(caplog)
    assert built(config(tmp_path / "siglip", weights="raw")).logit_bias.tolist() == [-3.0]
    assert not warnings(caplog)
    fresh = built(config(tmp_path / "clip", weights="raw"))
    assert fresh.logit_bias.tolist() == [-7.0]
    assert same(clip.state_dict(), fresh.state_dict())
    assert "they start fresh: logit_bias" in caplog.text
    local = config(tmp_path / "siglip", weights="raw").model_copy(update={"task": "local"})
    assert built(local).logit_bias.tolist() == [-3.0]  # type: ignore[union-attr]  # although the heads start fresh
    theirs, settings = open_clip_model("timm")
    tensors = {name: t.contiguous() for name, t in theirs.state_dict().items()} | {"logit_bias": torch.tensor(-2.0)}
    save_file(tensors, tmp_path / "open.safetensors")
    init = settings.init.model_copy(update={"from_": str(tmp_path / "open.safetensors")})
    assert built(settings.model_copy(update={"init": init})).logit_bias.tolist() == [-2.0]
    assert start(settings.model_copy(update={"init": init})).logit_bias is None


def test_a_timm_file_fills_the_trunk_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trunk = timm.create_model("resnet18")
    save_file(trunk.state_dict(), tmp_path / "r.safetensors")
    settings = config(tmp_path / "r.safetensors")
    with caplog.at_level(logging.INFO):
        model = start(settings)
    assert "left out fc.weight" in caplog.text
    assert "they start fresh: image.projection, text, logit_scale" in caplog.text
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(model.image.trunk(x), trunk.eval().forward_head(trunk.forward_features(x), pre_logits=True))
    fresh = build(settings, seed=1)
    assert same(fresh.text.state_dict(), model.text.state_dict())


def open_clip_model(kind: str) -> tuple[torch.nn.Module, Config]:
    text = {"vocab_size": 49408, **TEXT}
    if kind == "vit":
        vision = {"layers": 2, "width": 64, "head_width": 64, "patch_size": 32, "image_size": 64}
        model = open_clip.CLIP(embed_dim=16, vision_cfg=vision, text_cfg=text)
        settings = config("", "vit_base_patch32_clip_224", VIT)
    else:
        vision = {"timm_model_name": "resnet18", "timm_pool": "", "timm_proj": "linear", "image_size": 64}
        model = open_clip.CustomTextCLIP(embed_dim=16, vision_cfg=vision, text_cfg=text)
        settings = config("", "resnet18")
    return model.eval(), settings


@pytest.mark.parametrize("kind", ["vit", "timm"])
def test_an_open_clip_file_gives_open_clips_features(tmp_path: Path, kind: str) -> None:
    torch.manual_seed(3)
    theirs, settings = open_clip_model(kind)
    with torch.no_grad():
        theirs.logit_scale.fill_(1.5)
    save_file({name: t.contiguous() for name, t in theirs.state_dict().items()}, tmp_path / "clip.safetensors")
    init = settings.init.model_copy(update={"from_": str(tmp_path / "clip.safetensors")})
    model = start(settings.model_copy(update={"init": init}))
    image, text = torch.randn(2, 3, 64, 64), torch.randint(1, 49407, (3, 12))
    text[:, -1] = 49407  # where both read the feature
    with torch.no_grad():
        out = model(image=image, text=text)
        assert torch.allclose(out.image_features, theirs.encode_image(image, normalize=True), atol=1e-6)
        assert torch.allclose(out.text_features, theirs.encode_text(text, normalize=True), atol=1e-6)
    assert model.logit_scale.tolist() == [1.5]


def refused(settings: Config) -> str:
    with pytest.raises(CheckpointError) as caught:
        start(settings)
    return str(caught.value)


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    save_file(timm.create_model("resnet18").state_dict(), tmp_path / "r.safetensors")
    text = refused(config(tmp_path / "r.safetensors", image="resnet26"))
    assert "too much (" in text or "missing (" in text
    assert "set the model section" in text
    path = checkpoint(tmp_path / "run", build(config(""), 0), config(""))
    wider = config(path).model_copy(update={"model": config("").model.model_copy(update={"embed_dim": 8})})
    assert "image.projection.weight (there [16, 512], here [8, 512])" in refused(wider)


def test_sources_of_no_known_kind(tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(b"pickle")
    (tmp_path / "broken.safetensors").write_bytes(b"12345678 not json")
    assert "does not exist" in refused(config(tmp_path / "nothing"))
    assert "is a folder of another kind" in refused(config(tmp_path))
    assert "pickles, which can run any program" in refused(config(tmp_path / "w.pt"))
    assert "cannot be read as safetensors" in refused(config(tmp_path / "broken.safetensors"))


def test_one_rank_that_cannot_read_is_the_error_of_all(tmp_path: Path) -> None:
    from tests.unit.trainer.checkpoint.fakes import on_ranks

    save_file(timm.create_model("resnet18").state_dict(), tmp_path / "r.safetensors")
    engine = SimpleNamespace(shapes=lambda: {}, load_weights=lambda read: None)
    errors = on_ranks(
        2, lambda ranks: initialise(engine, config(tmp_path / ("r.safetensors" if ranks.is_main else "x")), ranks)
    )  # type: ignore[arg-type]
    assert [type(error) for error in errors] == [CheckpointError] * 2
