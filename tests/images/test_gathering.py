"""Series gathered from a stream."""

from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcmtools.images.gathering import Gathering, Passing
from dcmtools.images.series import Series
from dcmtools.model.errors import BadData
from dcmtools.model.record import Record, event
from tests.builders import make_record, uid


def gathered(*records: Record) -> list[Series | Passing]:
    """All that comes out of a stream, until its end."""
    gathering = Gathering()
    return [*(item for record in records for item in gathering.take(record)), *gathering.finish()]


def about(name: str, study: int = 1, series: int | None = None, **keys: Any) -> Record:
    """An event about a study, or about a series of it."""
    uids = {"StudyInstanceUID": uid(1, study)}
    if series is not None:
        uids["SeriesInstanceUID"] = uid(1, study, series)
    return event(name, **uids, **keys)


def series_in(items: Iterable[Series | Passing]) -> list[Series]:
    return [item for item in items if isinstance(item, Series)]


def test_a_series_begins_at_its_series_complete() -> None:
    items = gathered(make_record(1, 1, 1), about("series-complete", series=1), make_record(1, 1, 2))

    assert [type(item) for item in items] == [Series, Passing, Series]
    assert [one.key[1] for one in series_in(items)] == [uid(1, 1, 1), uid(1, 1, 2)]


def test_records_without_events_are_complete_at_the_end() -> None:
    (series,) = gathered(make_record(instance=1), make_record(instance=2))

    assert isinstance(series, Series)
    assert len(series.instances) == 2
    assert not series.incomplete


def test_an_instance_that_comes_twice_counts_once() -> None:
    (series,) = series_in(gathered(make_record(), make_record()))

    assert len(series.instances) == 1


def test_study_complete_closes_the_series_of_that_study_only() -> None:
    gathering = Gathering()
    for record in (make_record(1, 1, 1), make_record(1, 2, 1)):
        assert not list(gathering.take(record))

    items = list(gathering.take(about("study-complete", 1)))

    assert [one.key[0] for one in series_in(items)] == [uid(1, 1)]
    assert isinstance(items[-1], Passing)
    assert items[-1].after == "study"


def test_a_series_that_is_incomplete_says_how_much_arrived() -> None:
    items = gathered(make_record(), about("incomplete", series=1, expected=3, received=1))

    (series,) = series_in(items)
    assert series.incomplete == "1 of 3 instances arrived"


def test_an_incomplete_study_spares_what_was_complete_before() -> None:
    items = gathered(
        make_record(1, 1, 1), about("series-complete", series=1), make_record(1, 1, 2), about("incomplete", expected=9)
    )

    assert [bool(one.incomplete) for one in series_in(items)] == [False, True]


def test_what_is_complete_in_the_end_is_complete() -> None:
    items = gathered(
        make_record(instance=1),
        about("incomplete", series=1),
        make_record(instance=2),
        about("series-complete", series=1),
    )

    assert [bool(one.incomplete) for one in series_in(items)] == [True, False]


def test_a_series_one_of_whose_instances_failed_upstream_is_incomplete() -> None:
    truncated = BadData("too short", cause="truncated").record(
        StudyInstanceUID=uid(1, 1), SeriesInstanceUID=uid(1, 1, 1)
    )

    passing, series = gathered(make_record(), truncated)

    assert isinstance(passing, Passing)
    assert passing.record == truncated
    assert isinstance(series, Series)
    assert series.incomplete


def test_an_error_about_a_study_spoils_those_of_its_series_that_are_under_way() -> None:
    failed = BadData("too short", cause="truncated").record(StudyInstanceUID=uid(1, 1))
    complete, others = about("series-complete", series=1), [make_record(1, 1, 2), make_record(1, 2, 1)]

    items = gathered(make_record(1, 1, 1), complete, *others, failed)

    assert [bool(one.incomplete) for one in series_in(items)] == [False, True, False]


def test_what_is_complete_after_an_error_about_its_study_is_complete() -> None:
    failed = BadData("too short", cause="truncated").record(StudyInstanceUID=uid(1, 1))

    items = gathered(make_record(1, 1, 1), failed, about("series-complete", series=1))

    assert [bool(one.incomplete) for one in series_in(items)] == [False]


@pytest.mark.parametrize("state", ["failed", "refused", "conflict"])
def test_a_series_lacks_an_instance_that_failed_even_if_it_is_complete(state: str) -> None:
    bad = {**make_record(instance=2), "state": state}

    items = gathered(make_record(instance=1), bad, about("series-complete", 1, 1))

    (series,) = series_in(items)
    assert series.incomplete
    assert len(series.instances) == 1


def test_a_late_instance_brings_the_whole_series_again() -> None:
    items = gathered(make_record(instance=1), about("series-complete", series=1), make_record(instance=2))

    assert [len(one.instances) for one in series_in(items)] == [1, 2]


@pytest.mark.parametrize("record", [{"type": "node"}, {"type": "never-seen", "x": 1}, event("listening"), event("odd")])
def test_other_records_pass(record: Record) -> None:
    (item,) = gathered(record)

    assert isinstance(item, Passing)
    assert item.record == record
    assert item.after == "nothing"


def _streams() -> Iterator[st.SearchStrategy[Record]]:
    small = st.integers(1, 2)
    yield st.builds(
        lambda study, series, number: make_record(1, study, series, number), small, small, st.integers(1, 3)
    )
    for name in ("series-complete", "incomplete"):
        yield st.builds(lambda study, series, name=name: about(name, study, series), small, small)
    for name in ("study-complete", "incomplete"):
        yield st.builds(lambda study, name=name: about(name, study), small)


@given(st.lists(st.one_of(*_streams()), max_size=30))
def test_whatever_comes_every_instance_is_in_the_last_of_its_series(records: list[Record]) -> None:
    last = {one.key: set(one.instances) for one in series_in(gathered(*records))}

    for record in records:
        if record["type"] == "instance":
            assert record["SOPInstanceUID"] in last[record["StudyInstanceUID"], record["SeriesInstanceUID"]]
