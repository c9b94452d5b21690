"""What each link of a model's chain costs: each is measured by itself, forward and backward, and links that are alike
once. A model of ten billion parameters has some hundred links, and two dozen that differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from intern_zoo.chain import Carry, Link
from intern_zoo.metanet.layers import DropPath
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from intern_trainer.plan.measure import OUTSIDE, Cost, Inputs, Meter, Unit, described, largest_parameter, make_fake


@dataclass(frozen=True)
class LinkCost:
    """Attributes:
    unit: its operations and what it saves. sent: bytes of what it hands on, the model's inputs aside; owed: of those of
        them that get a gradient.
    working: the most bytes that its backward pass holds at once beyond what it saved. largest_gradient: among them.
    """

    unit: Unit
    tower: str
    sent: int
    owed: int
    working: int
    largest_gradient: int


def measure_links(links: Sequence[Link], inputs: Inputs, dtype: torch.dtype) -> list[LinkCost]:
    """Of a chain on meta, in its order.

    Args:
        inputs: makes what the first link gets; called among fake tensors.
        dtype: of the parameters and of floating inputs.
    """
    found: list[LinkCost] = []
    known: dict[Any, tuple[LinkCost, Carry]] = {}
    with FakeTensorMode():
        make_fake(nn.ModuleList(links), dtype)
        carry = {name: t.to(dtype) if t.is_floating_point() else t for name, t in inputs().items()}
        own = set(carry)
        for link in links:
            link.train()
            key = _likeness(link), *((name, t.shape, t.stride(), t.requires_grad) for name, t in carry.items())
            if key not in known:
                known[key] = _measure(link, carry, own)
            cost, carry = known[key]
            found.append(replace(cost, unit=replace(cost.unit, name=link.unit, **described(link))))
    return found


def _measure(link: Link, carry: Carry, own: set[str]) -> tuple[LinkCost, Carry]:
    """What comes from another link gets a gradient, as it would from another process."""
    given = {name: t.detach().requires_grad_(t.requires_grad) for name, t in carry.items()}
    meter = Meter(link, [])
    result: Carry = meter.run(lambda: link(given), list(given.values()))
    unit = replace(meter.units[OUTSIDE], given=_bytes(given, own))
    cost = LinkCost(
        unit, link.tower, _bytes(result, own), _bytes(_trained(result), own), meter.working, largest_parameter(link)
    )
    return cost, {name: t.detach().requires_grad_(t.requires_grad) for name, t in result.items()}


def _bytes(carry: Carry, own: set[str]) -> int:
    return sum(t.nbytes for name, t in carry.items() if name not in own)


def _trained(carry: Carry) -> Carry:
    return {name: t for name, t in carry.items() if t.requires_grad}


def _likeness(link: nn.Module) -> tuple[Any, ...]:
    """The same of links that cost the same: classes, whole numbers and words of all modules in them, shapes of what
    they own. Of fractions, such as rates, it only matters whether they are 0, but where they say how many rows go
    through."""
    return tuple((type(module), *_settings(module), *_shapes(module)) for module in link.modules())


def _settings(module: nn.Module) -> list[tuple[str, Any]]:
    exact = isinstance(module, DropPath) and module.mode == "rows"
    return [
        (name, value if exact or not isinstance(value, float) else value != 0)
        for name, value in vars(module).items()
        if isinstance(value, int | str | float | tuple) and name != "unit"
    ]


def _shapes(module: nn.Module) -> list[tuple[str, Any, bool]]:
    own: list[tuple[str, Tensor]] = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    return [(name, tensor.shape, tensor.requires_grad) for name, tensor in own]


def chain_cost(costs: Sequence[LinkCost], samples: int) -> Cost:
    """Of links that run one after another as one: a backward pass that begins with the last of them, and so has freed
    what those behind it had saved."""
    working, freed = 0, 0
    for cost in reversed(costs):
        working = max(working, cost.working - freed)
        freed += cost.unit.saved
    return Cost(samples, [cost.unit for cost in costs], working, max(cost.largest_gradient for cost in costs))
