"""Results come in the order of the items, however many processes make them."""

import os
from collections.abc import Callable, Iterator

import pytest

from dcmtools.disk.workers import in_order


def make(factor: int) -> Callable[[int], tuple[int, int]]:
    return lambda item: (item * factor, os.getpid())


def fail(message: str) -> Callable[[int], int]:
    def work(item: int) -> int:
        raise ValueError(message)

    return work


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("count", [0, 5, 400])
def test_results_are_in_the_order_of_the_items(jobs: int, count: int) -> None:
    found = [result for result, _ in in_order(range(count), make, (3,), jobs)]

    assert found == [3 * number for number in range(count)]


def test_few_items_are_done_here_and_many_elsewhere() -> None:
    few = {process for _, process in in_order(range(5), make, (1,), 2)}
    many = {process for _, process in in_order(range(400), make, (1,), 2)}

    assert few == {os.getpid()}
    assert os.getpid() not in many


def test_items_are_not_taken_far_ahead_of_the_results() -> None:
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        for number in range(100_000):
            taken = number
            yield number

    results = in_order(items(), make, (1,), 2)
    next(results)

    assert taken < 5_000
    results.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("count", [3, 100])
def test_defect_comes_out_as_it_is(count: int) -> None:
    with pytest.raises(ValueError, match="a defect"):
        list(in_order(range(count), fail, ("a defect",), 2))
