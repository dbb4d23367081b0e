from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dcmtools.disk import ordering
from dcmtools.disk.ordering import ordered
from dcmtools.model.query import Query, rank
from dcmtools.model.record import Record

VALUES = (
    st.none()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=5)
    | st.lists(st.text(max_size=3), max_size=2)
)


@given(st.lists(st.fixed_dictionaries({"a": VALUES, "b": VALUES}), max_size=8))
def test_any_values_can_be_sorted_both_ways(records: list[Record]) -> None:
    up = list(ordered(records, Query(sort=(("a", False), ("b", False)))))
    down = list(ordered(records, Query(sort=(("a", True),))))

    assert len(up) == len(down) == len(records)
    empty = [record["a"] in (None, []) for record in up]
    assert empty == sorted(empty, reverse=True)


def test_numbers_sort_as_numbers_and_ties_keep_their_order() -> None:
    records = [{"n": 10, "id": 1}, {"n": 9, "id": 2}, {"n": 10, "id": 3}]

    assert [record["id"] for record in ordered(records, Query(sort=(("n", False),)))] == [2, 1, 3]
    assert [record["id"] for record in ordered(records, Query(sort=(("n", True),)))] == [1, 3, 2]


def test_limit_stops_reading() -> None:
    seen = []

    def endless() -> Iterator[Record]:
        number = 0
        while True:
            seen.append(number)
            yield {"n": number}
            number += 1

    assert len(list(ordered(endless(), Query(limit=3)))) == 3
    assert len(seen) <= 4


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.fixed_dictionaries({"a": VALUES, "n": st.integers(0, 3)}), max_size=30),
    st.sampled_from([(("a", False),), (("n", True), ("a", False)), (("n", False), ("a", True))]),
    st.sampled_from([None, 1, 7, 100]),
)
def test_what_does_not_fit_into_memory_comes_in_the_same_order(
    monkeypatch: pytest.MonkeyPatch, records: list[Record], sort: Any, limit: int | None
) -> None:
    records = [{**record, "id": number} for number, record in enumerate(records)]
    monkeypatch.setattr(ordering, "_RUN", 4)
    expected = list(records)
    for key, descends in reversed(sort):
        expected = sorted(expected, key=lambda record: rank(record.get(key)), reverse=descends)

    assert list(ordered(records, Query(sort=sort, limit=limit))) == expected[:limit]
