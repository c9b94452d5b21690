"""Work spread over processes: order, errors, death of a worker."""

from __future__ import annotations

import os
import signal

import pytest
from intern_trainer.data.tools.pool import each
from intern_trainer.errors import DataError, EnvironmentFault


def square(number: int) -> tuple[int, int]:
    return number * number, os.getpid()


def fail_at_3(number: int) -> int:
    if number == 3:
        raise DataError("number 3", "numbers are good", "leave it out")
    return number


def die_at_3(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


@pytest.mark.parametrize("workers", [1, 3])
def test_results_come_in_order(workers: int) -> None:
    found = list(each(square, range(50), workers, "numbers"))
    assert [value for value, _ in found] == [n * n for n in range(50)]
    assert (os.getpid() in {pid for _, pid in found}) is (workers == 1)


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_of_the_work_is_the_commands(workers: int) -> None:
    with pytest.raises(DataError, match="number 3") as error:
        list(each(fail_at_3, range(50), workers, "numbers"))
    assert error.value.fix == "leave it out"


def test_a_worker_that_dies_is_told() -> None:
    with pytest.raises(EnvironmentFault, match="a worker process died"):
        list(each(die_at_3, range(50), 2, "numbers"))


def test_nothing_to_do() -> None:
    assert list(each(square, [], 4, "numbers")) == []
