"""A run's folder with one checkpoint, as several ZeRO-3 ranks would have written it, without training anything."""

from __future__ import annotations

from pathlib import Path

import torch
from intern_trainer.checkpoint import Progress, save
from intern_trainer.config.load import write_config
from intern_trainer.config.schema import Config
from intern_trainer.ranks import Ranks
from intern_trainer.run_folder import RunFolder
from intern_trainer.tasks import build_task
from intern_trainer.text import tokenizer_digest
from torch import Tensor, nn

from tests.unit.trainer.checkpoint.fakes import ALONE, FakeEngine, on_ranks

SMALL = {
    "image": "metanet_debug",
    "image_size": 64,
    "embed_dim": 32,
    "text": {"width": 32, "layers": 2, "heads": 2, "context_length": 24},
}


def make_run(
    folder: Path,
    average: bool = True,
    ranks: int = 3,
    model: dict | None = None,
    step: int = 20,
    loss: dict | None = None,
) -> tuple[Config, nn.Module]:
    """Write RUN with one checkpoint whose tensors are cut over `ranks`; gives its configuration and its model."""
    sections = {"model": SMALL | (model or {}), "data": {"train": "embedded:train"}, "loss": loss or {}}
    config = Config.model_validate(sections)
    towers = made_up(build_task(config, ALONE).build_model())
    parameters = {name: parameter.detach() for name, parameter in towers.named_parameters()}
    buffers = {name: tensor for name, tensor in towers.state_dict().items() if name not in parameters}
    state: dict[str, dict[str, Tensor]] = {"param": parameters, "buffer": buffers, "frozen": {}}
    if average:
        state["ema"] = parameters
        state["param"] = {name: tensor + 0.01 for name, tensor in parameters.items()}
    folder.mkdir(parents=True)
    write_config(config, RunFolder(folder).config)

    def one(rank: Ranks) -> Path:
        engine = FakeEngine(state, rank.rank, rank.world_size, "flat")
        progress = Progress(step, samples=step * 8, tokenizer=tokenizer_digest(config.model.text))
        return save(engine, progress, folder, rank, config)

    paths = on_ranks(ranks, one)
    assert all(isinstance(path, Path) for path in paths), paths
    return config, towers.eval()


def made_up(model: nn.Module) -> nn.Module:
    """Weights and statistics as after some training: nothing is zero or one any more."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var"):
                tensor.add_(torch.rand(tensor.shape, generator=generator))
            elif tensor.is_floating_point() and name != "logit_scale":
                tensor.add_(0.05 * torch.randn(tensor.shape, generator=generator))
    return model
