"""One outcome on all ranks: what fails on one is the error on every rank, so that none waits for ever."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from intern_trainer.errors import CheckpointError, UserError
from intern_trainer.ranks import Ranks

T = TypeVar("T")


def agreed(ranks: Ranks, action: Callable[[], T], failed: Callable[[OSError], UserError]) -> list[T]:
    """Run `action` (no collective in it) on every rank and give all results, in rank order.

    Raises:
        UserError: the first failure by rank order, on every rank; a bare OSError is put into words by `failed`.
    """
    result: T | None = None
    failure: UserError | None = None
    try:
        result = action()
    except UserError as error:
        failure = error
    except OSError as error:
        failure = failed(error)
    except Exception as error:  # a bug of ours: still one outcome for all, with its name
        failure = CheckpointError(
            f"rank {ranks.rank}: {type(error).__name__}: {error}", fix="please report this as a bug"
        )
        failure.__cause__ = error
    outcomes = ranks.gather((result, failure))
    for _, other in outcomes:
        if other is not None:
            raise failure or other
    return [value for value, _ in outcomes]
