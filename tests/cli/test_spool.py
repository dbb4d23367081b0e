"""Output that nobody waits for: the order stays, a slow reader gets all, a gone one is noticed."""

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcmtools.cli.spool import IN_MEMORY, Spool
from tests.waiting import wait_until


class Pipe:
    """A pipe with a spool at its one end."""

    def __init__(self, folder: Path) -> None:
        self.out, self.into = os.pipe()
        self.gone = threading.Event()
        self.spool = Spool(self.into, folder, lambda _: self.gone.set())

    def read(self) -> bytes:
        """Everything until the spool has ended; called once it is closing."""
        found: list[bytes] = []
        reader = threading.Thread(target=lambda: found.extend(iter(lambda: os.read(self.out, 1 << 20), b"")))
        reader.start()
        assert self.spool.close(30)
        os.close(self.into)
        reader.join()
        return b"".join(found)


@pytest.fixture
def pipe(tmp_path: Path) -> Pipe:
    return Pipe(tmp_path / "state")


def test_bytes_come_at_once(pipe: Pipe) -> None:
    pipe.spool.put(b"one\n")

    assert os.read(pipe.out, 100) == b"one\n"

    pipe.spool.put(b"two\n")
    assert os.read(pipe.out, 100) == b"two\n"


def test_reader_that_sleeps_gets_all_in_its_order_and_keeps_nobody_waiting(pipe: Pipe) -> None:
    lines = [b"%d " % number + b"x" * 1000 + b"\n" for number in range(5000)]

    for line in lines:
        pipe.spool.put(line)  # nobody reads yet

    assert pipe.spool._file is not None
    assert pipe.read() == b"".join(lines)


def test_spool_file_has_no_name(pipe: Pipe, tmp_path: Path) -> None:
    for _ in range(4):  # the writer may hold the first ones in hand
        pipe.spool.put(b"x" * (IN_MEMORY * 2))

    assert pipe.spool._file is not None
    assert list((tmp_path / "state").iterdir()) == []
    assert len(pipe.read()) == 8 * IN_MEMORY


def test_memory_is_free_again_once_the_reader_has_caught_up(pipe: Pipe) -> None:
    for _ in range(40):
        pipe.spool.put(b"x" * (IN_MEMORY // 10))
    left = 4 * IN_MEMORY
    while left > IN_MEMORY // 20:
        left -= len(os.read(pipe.out, 1 << 20))

    wait_until(lambda: pipe.spool._file is None)
    pipe.spool.put(b"end")
    assert pipe.read().endswith(b"end")


def test_full_disk_under_the_spool_loses_nothing(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    real, room = os.pwrite, [3 * IN_MEMORY]

    def pwrite(descriptor: int, data: bytes, offset: int) -> int:
        if not room[0]:
            raise OSError(28, os.strerror(28))
        done = real(descriptor, bytes(data)[: room[0]], offset)
        room[0] -= done
        return done

    monkeypatch.setattr(os, "pwrite", pwrite)
    blocks = [bytes([65 + number % 26]) * (IN_MEMORY // 2) for number in range(20)]
    for block in blocks:
        pipe.spool.put(block)

    assert room == [0]
    assert pipe.read() == b"".join(blocks)


def test_reader_that_goes_is_noticed_while_there_is_nothing_to_write(pipe: Pipe) -> None:
    os.close(pipe.out)

    assert pipe.gone.wait(10)
    pipe.spool.put(b"for nobody")
    assert pipe.spool.close(10)


def test_reader_that_goes_in_the_middle_is_noticed(pipe: Pipe) -> None:
    pipe.spool.put(b"x" * (IN_MEMORY * 3))
    os.read(pipe.out, 1000)
    os.close(pipe.out)

    assert pipe.gone.wait(10)
    assert isinstance(pipe.spool.problem, BrokenPipeError)


def test_close_gives_up_on_a_reader_that_never_reads_after_so_many_seconds(pipe: Pipe) -> None:
    pipe.spool.put(b"x" * (IN_MEMORY * 2))

    assert not pipe.spool.close(0.05)
    os.close(pipe.out)  # for the thread to end


def test_descriptor_that_somebody_made_non_blocking_is_waited_for(tmp_path: Path) -> None:
    pipe = Pipe(tmp_path)
    os.set_blocking(pipe.into, False)

    pipe.spool.put(b"x" * (IN_MEMORY * 3))

    assert len(pipe.read()) == 3 * IN_MEMORY


@pytest.fixture(scope="module")
def pipes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Pipe]]:
    made: list[Pipe] = []

    def make() -> Pipe:
        made.append(Pipe(tmp_path_factory.getbasetemp()))
        return made[-1]

    yield make
    for pipe in made:
        os.close(pipe.out)


@given(sizes=st.lists(st.integers(0, IN_MEMORY), max_size=12), taken=st.lists(st.integers(1, IN_MEMORY), max_size=6))
def test_order_and_bytes_stay_however_writer_and_reader_take_turns(
    pipes: Callable[[], Pipe], sizes: list[int], taken: list[int]
) -> None:
    pipe, sent, got = pipes(), b"", b""
    for number, size in enumerate(sizes):
        block = bytes([number]) * size
        pipe.spool.put(block)
        sent += block
        if number < len(taken) and len(sent) > len(got):
            got += os.read(pipe.out, taken[number])

    assert got + pipe.read() == sent
