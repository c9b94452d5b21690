"""One loss of several micro-batches, in the memory of one."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from intern_trainer.batch import Batch
from intern_trainer.parallel import Draws
from intern_trainer.steps import accumulate
from intern_zoo.metanet.norm import BatchNorm
from timm.layers import DropPath
from torch import Tensor, nn

CPU = torch.device("cpu")
ROWS, PIXELS = 6, 8


class Noisy(nn.Module):
    """Pictures and numbers to features, with all that a second forward pass could do differently."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3, padding=1), BatchNorm(16)
        self.branch, self.drop_path, self.dropout = nn.Linear(16, 16), DropPath(0.5), nn.Dropout(0.4)
        self.text = nn.Linear(5, 16)
        self.scale = nn.Parameter(torch.tensor([1.2]))

    def forward(self, image: Tensor, text: Tensor) -> dict[str, Tensor]:
        x = F.gelu(self.norm(self.stem(image))).mean(dim=(2, 3))
        x = x + self.drop_path(self.branch(x))
        return {"image": F.normalize(x), "text": F.normalize(self.dropout(self.text(text))), "scale": self.scale.exp()}


class Pairs:
    """CLIP's loss; `kinds` tells of labels that pass through, too."""

    name = "pairs"
    shared = frozenset({"scale"})

    def forward(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        return model(**batch.tensors) | {"kinds": torch.arange(len(batch))}

    def loss(self, outputs: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        assert outputs["kinds"].dtype == torch.int64
        z = outputs["scale"] * outputs["image"] @ outputs["text"].t()
        own = torch.arange(len(z))
        torch.rand(3)  # a loss may draw, too
        return (F.cross_entropy(z, own) + F.cross_entropy(z.t(), own)) / 2, {"rows": torch.tensor(float(len(z)))}


class BareEngine:
    def __init__(self, module: nn.Module, accumulation: int) -> None:
        self.module, self.accumulation, self.pipeline = module.train(), accumulation, None
        self._draws = Draws(module, 7, 0)

    def micro_batch(self, number: int) -> None:
        self._draws.at(0, number)

    def __call__(self, **tensors: Tensor) -> Any:
        return self.module(**tensors)

    def backward(self, loss: Tensor) -> None:
        (loss / self.accumulation).backward()


def batches(count: int) -> list[Batch]:
    generator = torch.Generator().manual_seed(5)
    image = torch.randn(count, ROWS, 3, PIXELS, PIXELS, generator=generator)
    text = torch.randn(count, ROWS, 5, generator=generator)
    return [Batch({"image": i, "text": t}, [""] * ROWS) for i, t in zip(image, text, strict=True)]


def all_graphs_at_once(model: nn.Module, micro_batches: list[Batch], together: int) -> Tensor:
    """The step as it would be with memory for it; gives the loss."""
    task, total, groups = Pairs(), torch.zeros(()), len(micro_batches) // together
    engine = BareEngine(model, groups)
    for first in range(0, len(micro_batches), together):
        parts = []
        for number in range(first, first + together):
            engine.micro_batch(number)
            parts.append(task.forward(engine, micro_batches[number]))
        outputs = {name: torch.cat([p[name] for p in parts]) for name in ("image", "text", "kinds")}
        loss, _ = task.loss(outputs | {"scale": parts[0]["scale"]})
        (loss / groups).backward()
        total += loss.detach() / groups
    return total


@pytest.mark.parametrize("together", [2, 4])
def test_it_equals_the_step_that_keeps_all_graphs(together: int) -> None:
    torch.manual_seed(0)
    model = Noisy()
    twin = copy.deepcopy(model)
    loss = all_graphs_at_once(twin, batches(4), together)
    values = accumulate(Pairs(), BareEngine(model, 4), batches(4), together, CPU)  # type: ignore[arg-type]
    torch.testing.assert_close(values["loss"], loss, rtol=1e-6, atol=0)
    assert values["rows"] == together * ROWS
    for (name, ours), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}")
    for (name, ours), theirs in zip(model.named_buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, msg=lambda m, n=name: f"{n}: {m}")
    assert model.norm.num_batches_tracked == 4


def test_alone_each_micro_batch_has_its_own_loss() -> None:
    torch.manual_seed(0)
    model = Noisy()
    values = accumulate(Pairs(), BareEngine(model, 3), batches(3), 1, CPU)  # type: ignore[arg-type]
    assert values["rows"] == ROWS
    assert model.norm.num_batches_tracked == 3


def _peak_saved_bytes(run: Callable[[], Any]) -> int:
    """Most bytes that graphs held at once for their backward passes."""
    held = peak = 0

    def keep(tensor: Tensor) -> Tensor:
        nonlocal held, peak
        kept, size = tensor.detach().clone(), tensor.numel() * tensor.element_size()  # a graph lets go of its own copy
        held += size
        peak = max(peak, held)

        def gone() -> None:
            nonlocal held
            held -= size

        weakref.finalize(kept, gone)
        return kept

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda kept: kept):
        run()
    return peak


def test_memory_is_that_of_one_micro_batch() -> None:
    """What is more is the loss's own: the features of all."""
    one, eight = batches(1), batches(8)
    cached = _peak_saved_bytes(lambda: accumulate(Pairs(), BareEngine(Noisy(), 8), eight, 8, CPU))  # type: ignore[arg-type]
    alone = _peak_saved_bytes(lambda: accumulate(Pairs(), BareEngine(Noisy(), 1), one, 1, CPU))  # type: ignore[arg-type]
    at_once = _peak_saved_bytes(lambda: all_graphs_at_once(Noisy(), eight, 8))
    assert cached < 1.2 * alone
    assert at_once > 7 * alone
