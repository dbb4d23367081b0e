import pytest

from dcmtools.model.errors import UsageError
from dcmtools.model.filters import Filter
from dcmtools.model.query import Query, level_of, parse_key, parse_sort
from dcmtools.model.record import Level


def test_query_without_keys_matches_all_and_selects_nothing() -> None:
    assert Query().matches({})
    assert not Query(keys={"PatientName": "*", "PatientID": ""}).selects


def test_key_that_a_record_cannot_tell_of_does_not_match() -> None:
    assert not Query(keys={"StationName": "MR1"}).matches({"PatientID": "1"})


def test_modality_and_modalities_in_study_answer_each_other() -> None:
    assert Query(keys={"Modality": "CT"}).matches({"ModalitiesInStudy": ["MR", "CT"]})
    assert Query(keys={"ModalitiesInStudy": "CT"}).matches({"Modality": "CT"})


def test_where_filters_as_keys_do() -> None:
    assert Query(where=(Filter("PatientID", "=", "1*"),)).selects
    query = Query(keys={"PatientID": "1*"}, where=(Filter("PatientID", "=", "2*"),))
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
        Query(level, where=(Filter(keyword, "=", "1"),))


@pytest.mark.parametrize(
    ("level", "keyword"),
    [("study", "Modality"), ("study", "NumberOfStudyRelatedSeries"), ("series", "PatientSex"), ("instance", "Rows")],
)
def test_where_on_what_the_answers_tell_is_taken(level: Level, keyword: str) -> None:
    assert Query(level, where=(Filter(keyword, "=", "1"),)).selects


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
