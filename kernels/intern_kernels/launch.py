"""Every Triton kernel of this package is launched here, so that tests can count launches, and build each kernel with
the very arguments of a real call, for chips that this machine does not have.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Config:
    """How one kernel is built: its block sizes (`constants`, by the names of the kernel's arguments), warps, stages."""

    constants: Mapping[str, int]
    num_warps: int = 4
    num_stages: int = 2
    around: Callable[[Callable[[], None]], None] | None = field(default=None, compare=False)
    """Called with the launch, to run and time it; None: it is just run."""

    def __getitem__(self, name: str) -> int:
        return self.constants[name]


@dataclass(frozen=True)
class Launch:
    """One call: kernel[grid](*arguments, **constants)."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: Sequence[Any]
    constants: Mapping[str, Any]
    num_warps: int
    num_stages: int

    @property
    def name(self) -> str:
        return str(self.kernel.__name__)


@dataclass
class _State:
    counts: Counter[str] = field(default_factory=Counter)
    run: Callable[[Launch], None] | None = None


_state = _State()


def launch(kernel: Any, grid: tuple[int, ...], arguments: Sequence[Any], config: Config, **constants: Any) -> None:
    """Run `kernel` with positional `arguments` (tensors, numbers, None) and keyword constants, those of `config` among
    them. A grid with no program is no launch: an empty batch has nothing to compute.
    """
    if 0 in grid:
        return
    call = Launch(kernel, grid, arguments, {**config.constants, **constants}, config.num_warps, config.num_stages)
    _state.counts[call.name] += 1
    run = _state.run or _run
    if config.around is None:
        run(call)
    else:
        config.around(lambda: run(call))


def _run(call: Launch) -> None:
    call.kernel[call.grid](*call.arguments, **call.constants, num_warps=call.num_warps, num_stages=call.num_stages)


@contextmanager
def counting() -> Iterator[Counter[str]]:
    """Launches by kernel name, of what runs inside."""
    before, _state.counts = _state.counts, Counter()
    try:
        yield _state.counts
    finally:
        inside, _state.counts = _state.counts, before
        before.update(inside)


@contextmanager
def instead(run: Callable[[Launch], None]) -> Iterator[None]:
    """Inside, `run` takes the place of each launch: to note it, or to look at what it does."""
    before, _state.run = _state.run, run
    try:
        yield
    finally:
        _state.run = before


def require_contiguous(**tensors: Tensor | None) -> None:
    """Raises:
    ValueError: a tensor does not lie in memory as its shape says, and how to change that.
    """
    for name, tensor in tensors.items():
        if tensor is not None and not tensor.is_contiguous():
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)} and strides {tensor.stride()}: this kernel takes contiguous "
                f"tensors, channels last; call {name}.contiguous(), or keep maps in torch.channels_last"
            )
