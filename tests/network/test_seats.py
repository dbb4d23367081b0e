"""Places for associations: never more than there are, whoever takes them."""

import os
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcmtools.network.seats import Seats, SharedSeats, seats_file

HOSTS = ("10.0.0.1", "10.0.0.2", "fe80::1%eth0", "127.0.0.1")


def shared(total: int, per_host: int | None, rows: int) -> list[SharedSeats]:
    file = seats_file(total, rows)
    return [SharedSeats(total, per_host, file, row) for row in range(rows)]


@given(
    total=st.integers(1, 8),
    per_host=st.none() | st.integers(1, 4),
    rows=st.integers(1, 3),
    steps=st.lists(st.tuples(st.booleans(), st.integers(0, 2), st.sampled_from(HOSTS)), max_size=60),
)
def test_they_hold_as_many_as_they_should_in_whichever_process_they_are_taken(
    total: int, per_host: int | None, rows: int, steps: list[tuple[bool, int, str]]
) -> None:
    seats = shared(total, per_host, rows)
    inside: Counter[tuple[int, str]] = Counter()

    for comes, row, host in [(comes, row % rows, host) for comes, row, host in steps]:
        of_host = sum(count for (_, name), count in inside.items() if name == host)
        share = total if per_host is None and host == "127.0.0.1" else per_host or max(1, total // 4)
        if comes:
            refused = seats[row].take(host)
            assert bool(refused) == (inside.total() >= total or of_host >= share)
            inside[row, host] += not refused
        elif inside[row, host]:
            seats[row].leave(host)
            inside[row, host] -= 1
        assert {one.taken for one in seats} == {inside.total()}
    os.close(seats[0].file)


def test_the_places_of_one_that_died_are_free_again_and_those_of_others_stay() -> None:
    one, other = shared(3, 3, 2)
    for seats in (one, one, other):
        assert not seats.take("10.0.0.1")
    assert "3 associations are open" in other.take("10.0.0.2")

    other.clear(0)

    assert other.taken == one.taken == 1
    assert not other.take("10.0.0.2")


def test_where_nobody_gives_the_lock_back_nobody_is_let_in(monkeypatch: pytest.MonkeyPatch) -> None:
    one, _ = shared(3, 3, 2)
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        import fcntl

        fcntl.lockf(one.file, fcntl.LOCK_EX)
        os.write(writer, b"!")
        os.read(os.pipe()[0], 1)
    os.read(reader, 1)
    monkeypatch.setattr("dcmtools.network.seats._PATIENCE", 0.05)

    refused = one.take("10.0.0.1")
    os.kill(child, 9)
    os.waitpid(child, 0)

    assert refused == "the other workers do not answer"
    assert not one.take("10.0.0.1")


def test_alone_it_is_the_same() -> None:
    seats = Seats(2, 1)

    assert not seats.take("10.0.0.1")
    assert "which is its share" in seats.take("10.0.0.1")
    assert not seats.take("10.0.0.2")
    assert "2 associations are open" in seats.take("10.0.0.3")
    seats.leave("10.0.0.1")
    assert seats.taken == 1
