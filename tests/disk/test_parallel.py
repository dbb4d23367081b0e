import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dcmtools.disk.parallel import Lost, each, in_processes, on_executor, serially
from tests.waiting import wait_until


def items(count: int) -> Iterator[tuple[int, str]]:
    return ((number, f"item {number}") for number in range(count))


def squared(number: int) -> int:
    return number * number


def process(number: int) -> int:
    return os.getpid()


def killed_by_seven(number: int) -> int:
    if number == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def refused_by_five(number: int) -> int:
    if number == 5:
        raise ValueError("five")
    return number


class Unpackable(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__("no pickle can make it again")


def unpackable(number: int) -> int:
    if number:
        raise Unpackable(1, 2)
    return number


@pytest.mark.parametrize("count", [0, 1, 2, 3, 100])
@pytest.mark.parametrize("jobs", [1, 2, 5])
def test_results_come_in_the_order_of_the_items(count: int, jobs: int) -> None:
    expected = [(f"item {number}", number * number) for number in range(count)]

    assert list(in_processes(jobs, squared, items(count))) == expected
    assert list(serially(squared, items(count))) == expected
    with ThreadPoolExecutor(jobs) as executor:
        assert list(on_executor(executor, 3, (), squared, items(count))) == expected


def test_so_many_processes_work_as_there_are_jobs() -> None:
    used = {one for _, one in in_processes(3, process, items(50))}

    assert os.getpid() in used
    assert 2 <= len(used) <= 4
    assert {one for _, one in in_processes(1, process, items(50))} == {os.getpid()}
    assert {one for _, one in in_processes(3, process, items(1))} == {os.getpid()}


def test_item_whose_process_is_killed_is_lost_and_no_other() -> None:
    results = [result for _, result in in_processes(2, killed_by_seven, items(40))]

    assert isinstance(results.pop(7), Lost)
    assert results == [number for number in range(40) if number != 7]


def test_exception_is_raised_where_the_results_are_read() -> None:
    with pytest.raises(ValueError, match="five"):
        list(in_processes(2, refused_by_five, items(40)))
    with pytest.raises(RuntimeError, match="Unpackable: no pickle can make it again"):
        list(in_processes(2, unpackable, items(2)))


def test_item_whose_worker_elsewhere_is_gone_is_lost() -> None:
    with ThreadPoolExecutor(2) as executor:
        results = [one for _, one in on_executor(executor, 3, (ValueError,), refused_by_five, items(9))]

    assert isinstance(results.pop(5), Lost)
    assert results == [0, 1, 2, 3, 4, 6, 7, 8]


def test_only_a_few_items_are_taken_ahead() -> None:
    taken: list[int] = []

    def source() -> Iterator[tuple[int, None]]:
        for number in range(1000):
            taken.append(number)
            yield number, None

    results = in_processes(2, squared, source())
    for _ in range(10):
        next(results)
    results.close()  # type: ignore[attr-defined]  # it is a generator

    assert len(taken) <= 10 + 3 * 2 + 2


@pytest.mark.parametrize("jobs", [1, 3])
@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 100])
def test_small_items_go_together_and_come_back_one_by_one(count: int, jobs: int) -> None:
    results = list(each(jobs, squared, range(count), at_once=8, ahead=5))

    assert results == [(number, number * number) for number in range(count)]


def test_of_items_that_go_together_only_the_killer_is_lost() -> None:
    items = [*range(10, 20), *range(40)]
    results = dict(each(2, killed_by_seven, items, at_once=10, ahead=9))

    assert isinstance(results.pop(7), Lost)
    assert results == {number: number for number in items if number != 7}


def test_items_that_wait_for_a_process_that_dies_are_done_by_another() -> None:
    results = [result for _, result in in_processes(2, killed_by_seven, items(200), ahead=30)]

    assert isinstance(results.pop(7), Lost)
    assert results == [number for number in range(200) if number != 7]


def test_worker_goes_on_while_nobody_reads_its_results(tmp_path: Path) -> None:
    def noted(number: int) -> bytes:
        (tmp_path / str(number)).touch()
        return bytes(10_000)

    results = in_processes(2, noted, items(1000), ahead=20)
    next(results)  # made here
    next(results)
    wait_until(lambda: len(os.listdir(tmp_path)) >= 40)

    results.close()  # type: ignore[attr-defined]  # it is a generator


def test_items_and_results_larger_than_a_pipe_pass() -> None:
    big = [(bytes([number]) * (1 << 20), number) for number in range(6)]

    assert list(in_processes(2, bytes, big)) == [(number, one) for one, number in big]


def test_no_process_and_no_descriptor_is_left() -> None:
    before = os.listdir("/proc/self/fd")

    list(in_processes(3, killed_by_seven, items(20)))
    half = in_processes(3, squared, items(1000))
    next(half)
    half.close()  # type: ignore[attr-defined]  # it is a generator

    assert len(os.listdir("/proc/self/fd")) == len(before)
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_beside_a_thread_it_warns_of_nothing(recwarn: pytest.WarningsRecorder) -> None:
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        assert len(list(in_processes(2, squared, items(20)))) == 20
    finally:
        done.set()
        thread.join()
    assert not recwarn.list


PROGRAM = r"""
    import os, sys
    from dcmtools.disk.parallel import in_processes
    def work(number):
        os.write(1, f"{os.getpid()}\n".encode())  # in one piece: others write, too
        if number:
            sys.stdin.read()
    list(in_processes(3, work, ((number, None) for number in range(9))))
"""


def test_workers_end_with_the_process_that_owns_them(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(PROGRAM))
    with subprocess.Popen(
        [sys.executable, str(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdin
        assert owner.stdout
        pids = {int(owner.stdout.readline()) for _ in range(4)}
        owner.kill()
        owner.wait()
        owner.stdin.close()  # what they were doing ends
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids - {owner.pid}))
