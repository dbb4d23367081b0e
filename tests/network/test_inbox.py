"""The queue between two threads: nothing is lost, nobody waits for ever, and it never grows beyond its limit."""

import threading

from hypothesis import given, settings
from hypothesis import strategies as st

from dcmtools.network.inbox import Inbox


def go_on() -> bool:
    return False


@given(count=st.integers(0, 300), limit=st.integers(1, 40), readers=st.integers(1, 4))
@settings(max_examples=40)
def test_every_item_comes_out_once_and_in_order_however_many_read(count: int, limit: int, readers: int) -> None:
    inbox: Inbox[int] = Inbox(limit, go_on)
    came: list[list[int]] = [[] for _ in range(readers)]
    longest = 0

    def fill() -> None:
        nonlocal longest
        for number in range(1, count + 1):
            inbox.put(number)
            longest = max(longest, len(inbox))
        inbox.close()

    def empty(mine: list[int]) -> None:
        while item := inbox.get(wait=True):
            mine.append(item)

    threads = [threading.Thread(target=fill), *(threading.Thread(target=empty, args=(mine,)) for mine in came)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)

    assert sorted(one for mine in came for one in mine) == list(range(1, count + 1))
    assert all(mine == sorted(mine) for mine in came)
    assert longest <= limit


def test_who_does_not_want_to_wait_gets_nothing_from_an_empty_one() -> None:
    inbox: Inbox[str] = Inbox(3, go_on)

    assert inbox.get(wait=False) is None
    inbox.put("a")
    assert inbox.get(wait=False) == "a"


def test_stop_frees_both_sides() -> None:
    stop = threading.Event()
    inbox: Inbox[int] = Inbox(1, stop.is_set)
    inbox.put(1)
    filler = threading.Thread(target=inbox.put, args=(2,))
    filler.start()

    stop.set()
    filler.join(10)

    assert not filler.is_alive()
    assert inbox.get(wait=True) is None
