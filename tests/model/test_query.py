import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcmtools.model.errors import UsageError
from dcmtools.model.query import Query, level_of, parse_key, parse_sort
from dcmtools.model.record import Level

VALUES = (
    st.none()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=5)
    | st.lists(st.text(max_size=3), max_size=2)
)


def test_query_without_keys_matches_all_and_selects_nothing() -> None:
    assert Query().matches({})
    assert not Query(keys={"PatientName": "*", "PatientID": ""}).selects


def test_key_that_a_record_cannot_tell_of_does_not_match() -> None:
    assert not Query(keys={"StationName": "MR1"}).matches({"PatientID": "1"})


def test_modality_and_modalities_in_study_answer_each_other() -> None:
    assert Query(keys={"Modality": "CT"}).matches({"ModalitiesInStudy": ["MR", "CT"]})
    assert Query(keys={"ModalitiesInStudy": "CT"}).matches({"Modality": "CT"})


def test_where_filters_as_keys_do() -> None:
    assert Query(where={"PatientID": "1*"}).selects
    query = Query(keys={"PatientID": "1*"}, where={"PatientID": "2*"})
    assert query.matches({"PatientID": "12"})
    assert not query.passes({"PatientID": "12"})


@pytest.mark.parametrize(
    ("level", "keyword"),
    [
        ("patient", "StudyDate"),
        ("patient", "Modality"),
        ("study", "SeriesDescription"),
        ("series", "InstanceNumber"),
        ("series", "NumberOfStudyRelatedSeries"),
        ("instance", "NumberOfSeriesRelatedInstances"),
    ],
)
def test_where_on_what_the_answers_do_not_tell_is_a_usage_error(level: Level, keyword: str) -> None:
    with pytest.raises(UsageError, match=f"a {level} does not tell {keyword}"):
        Query(level, where={keyword: "1"})


@pytest.mark.parametrize(
    ("level", "keyword"),
    [("study", "Modality"), ("study", "NumberOfStudyRelatedSeries"), ("series", "PatientSex"), ("instance", "Rows")],
)
def test_where_on_what_the_answers_tell_is_taken(level: Level, keyword: str) -> None:
    assert Query(level, where={keyword: "1"}).selects


@given(st.lists(st.fixed_dictionaries({"a": VALUES, "b": VALUES}), max_size=8))
def test_any_values_can_be_sorted_both_ways(records: list[dict[str, object]]) -> None:
    up = list(Query(sort=(("a", False), ("b", False))).ordered(records))
    down = list(Query(sort=(("a", True),)).ordered(records))

    assert len(up) == len(down) == len(records)
    empty = [record["a"] in (None, []) for record in up]
    assert empty == sorted(empty, reverse=True)


def test_numbers_sort_as_numbers_and_ties_keep_their_order() -> None:
    records = [{"n": 10, "id": 1}, {"n": 9, "id": 2}, {"n": 10, "id": 3}]

    assert [record["id"] for record in Query(sort=(("n", False),)).ordered(records)] == [2, 1, 3]
    assert [record["id"] for record in Query(sort=(("n", True),)).ordered(records)] == [1, 3, 2]


def test_limit_stops_reading() -> None:
    seen = []

    def endless() -> object:
        number = 0
        while True:
            seen.append(number)
            yield {"n": number}
            number += 1

    assert len(list(Query(limit=3).ordered(endless()))) == 3  # type: ignore[arg-type]
    assert len(seen) <= 4


@pytest.mark.parametrize(
    ("text", "key"), [("StationName=MR 1", ("StationName", "MR 1")), (" PatientID = 7", ("PatientID", "7"))]
)
def test_key_is_keyword_and_value(text: str, key: tuple[str, str]) -> None:
    assert parse_key(text) == key


@pytest.mark.parametrize(
    ("text", "help_with"), [("StationName", "KEYWORD=VALUE"), ("PatientNam=x", "PatientName"), ("=x", "DICOM keyword")]
)
def test_bad_key_is_a_usage_error_with_help(text: str, help_with: str) -> None:
    with pytest.raises(UsageError, match=help_with):
        parse_key(text)


def test_sort_has_keys_and_directions() -> None:
    assert parse_sort("-StudyDate, PatientName,+SeriesNumber") == (
        ("StudyDate", True),
        ("PatientName", False),
        ("SeriesNumber", False),
    )


def test_image_means_instance() -> None:
    assert level_of("IMAGE") == "instance"
    with pytest.raises(UsageError):
        level_of("slice")
