"""DeCLIP's terms, each beside a plain reference in fp64, on any number of ranks; training in every ZeRO stage."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from intern_zoo.declip import NOTHING
from torch import Tensor

from tests.distributed.declip_worker import FEATURES, QUEUE, STEPS, global_batch, parameters
from tests.distributed.spawn import run_ranks

TARGET = "tests.distributed.declip_worker:losses_and_gradients"
ENGINES = "tests.distributed.declip_engine_worker:cases"
TERMS = ("clip", "nearest", "simsiam", "mlm")
DEFAULT = {"clip": 0.4, "nearest": 0.2, "simsiam": 0.2, "mlm": 0.2}
WEIGHTS = [DEFAULT, *({term: float(term == one) for term in TERMS} for one in TERMS)]


def unit(x: Tensor) -> Tensor:
    return x / (x * x).sum(dim=-1, keepdim=True).sqrt()


def cross_entropy(scores: Tensor) -> Tensor:
    """Of picking, in each row, what is on the diagonal."""
    return -(scores.diagonal() - scores.exp().sum(dim=1).log()).sum() / len(scores)


def reference(step: int, w: dict[str, Tensor], seen: list[Tensor]) -> dict[str, Tensor]:
    """The paper's terms of a whole batch; `seen` are the features of captions in the queue, the oldest first."""
    batch, scale = global_batch(step), w["scale"].exp()
    raw = [batch[name] @ w["image"] for name in ("image", "image2")]
    images = [unit(x) for x in raw]
    texts = [unit(batch[name].mean(dim=1) @ w["text"]) for name in ("text", "text2")]
    clip, nearest = [], []
    for image in images:
        for text in texts:
            scores = scale * image @ text.T
            clip.append((cross_entropy(scores) + cross_entropy(scores.T)) / 2)
            neighbours = [max(seen, key=lambda old, t=t: float(old @ t), default=t) for t in text.detach()]
            nearest.append(cross_entropy(scale * image @ torch.stack(neighbours).T))
    targets = [(x @ w["project"]).detach() for x in raw]
    guesses = [x @ w["project"] @ w["predict"] for x in raw]
    alike = [
        (unit(guess) * unit(target)).sum(dim=1).mean() for guess, target in zip(guesses, targets[::-1], strict=True)
    ]
    words, count = torch.zeros((), dtype=torch.float64), 0
    for row, place in (batch["text_labels"] != NOTHING).nonzero().tolist():
        scores = batch["text"][row, place] @ w["words"]
        words = words - (scores[batch["text_labels"][row, place]] - scores.exp().sum().log())
        count += 1
    seen.extend([*texts[1].detach(), *texts[0].detach()])
    del seen[:-QUEUE]
    return {
        "clip": sum(clip) / 4,
        "nearest": sum(nearest) / 4,
        "simsiam": -sum(alike) / 2,
        "mlm": words / count,
    }  # type: ignore[dict-item]


def expected(weights: dict[str, float]) -> list[dict[str, Tensor]]:
    w = {name: tensor.requires_grad_() for name, tensor in parameters().items()}
    seen: list[Tensor] = []
    steps = []
    for step in range(STEPS):
        terms = reference(step, w, seen)
        loss = sum(weights[name] * term for name, term in terms.items())
        gradients = torch.autograd.grad(loss, [w[name] for name in FEATURES], allow_unused=True)  # type: ignore[arg-type]
        zeros = [torch.zeros_like(w[n]) if g is None else g for n, g in zip(FEATURES, gradients, strict=True)]
        steps.append({"loss": loss, **terms, **dict(zip(FEATURES, zeros, strict=True))})
        steps[-1]["queue"] = torch.stack(seen)  # type: ignore[assignment]
    return steps  # type: ignore[return-value]


SLOW = pytest.mark.slow


@pytest.mark.parametrize("ranks", [pytest.param(1, marks=SLOW), 2, pytest.param(4, marks=SLOW)])
def test_each_term_and_its_gradients_are_the_references(ranks: int) -> None:
    results = run_ranks(TARGET, ranks=ranks, payload=WEIGHTS, timeout=300)  # 4 ranks wait for each other on few cores
    for rank, cases in enumerate(results):
        for weights, steps in zip(WEIGHTS, cases, strict=True):
            for step, (found, wanted) in enumerate(zip(steps, expected(weights), strict=True)):
                assert found.keys() == wanted.keys()
                for name, value in wanted.items():
                    got = torch.tensor(found[name], dtype=torch.float64)
                    message = f"{name} at step {step}, rank {rank} of {ranks}, {weights}"
                    torch.testing.assert_close(
                        got, value.detach(), rtol=1e-9, atol=1e-11, msg=lambda m, a=message: f"{a}: {m}"
                    )


@SLOW
def test_engines_train_it_alike_and_a_resumed_run_goes_on_with_the_same_queue(tmp_path: Path) -> None:
    """ZeRO-3 runs every module on both ranks, of which one has no masked word; two losses of micro-batches are one."""
    resume = [("0", "0"), ("0", "3"), ("3", "3")]
    first, second = run_ranks(ENGINES, ranks=2, payload={"folder": str(tmp_path), "resume": resume}, timeout=240)
    assert first == second
    trained = first["trained"]
    assert trained["0"]["before"]["pushed"] == [64]
    for part in ("before", "after"):
        assert trained["3"][part]["losses"] == pytest.approx(trained["0"][part]["losses"], rel=1e-5)
    for wrote, reads in resume:
        found = first["resumed"][f"{wrote} to {reads}"]
        assert found["start"]["queue"] == trained[wrote]["before"]["queue"]
        if wrote == reads:
            assert found["after"] == trained[wrote]["after"]  # to the bit
        assert found["after"]["losses"] == pytest.approx(trained[wrote]["after"]["losses"], rel=1e-5)
    for differences in first["cached"].values():  # largest in biases before batch norms, whose gradients are rounding
        assert max(differences.values()) < 1e-3, differences
