from hypothesis import given
from hypothesis import strategies as st

from dcmtools.model.filters import Filter
from dcmtools.model.levels import group
from dcmtools.model.query import Query
from dcmtools.model.record import Level, Record
from tests.builders import make_record, uid

COUNTS: dict[Level, str] = {
    "patient": "NumberOfPatientRelatedInstances",
    "study": "NumberOfStudyRelatedInstances",
    "series": "NumberOfSeriesRelatedInstances",
}
PLACES = st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 4)), unique=True)


def records(*places: tuple[int, int, int, int]) -> list[Record]:
    return [make_record(*place) for place in places]


def test_study_record_counts_what_is_in_it() -> None:
    found = list(group(records((1, 1, 1, 1), (1, 1, 1, 2), (1, 1, 2, 1)), Query(level="study")))

    assert len(found) == 1
    assert found[0]["type"] == "study"
    assert found[0]["NumberOfStudyRelatedSeries"] == 2
    assert found[0]["NumberOfStudyRelatedInstances"] == 3
    assert found[0]["ModalitiesInStudy"] == ["MR"]
    assert found[0]["PatientID"] == "P1"
    assert "SeriesInstanceUID" not in found[0]
    assert "path" not in found[0]


def test_counts_are_of_all_instances_when_only_some_match() -> None:
    query = Query(level="series", keys={"InstanceNumber": "2"})

    (found,) = group(records((1, 1, 1, 1), (1, 1, 1, 2), (1, 1, 2, 1)), query)

    assert found["SeriesInstanceUID"] == uid(1, 1, 1)
    assert found["NumberOfSeriesRelatedInstances"] == 2


def test_value_of_a_later_instance_fills_what_the_first_lacks() -> None:
    found = list(group([make_record(StudyDescription=None), make_record(instance=2)], Query(level="study")))

    assert found[0]["StudyDescription"] == "Study 1"


def test_modality_of_a_series_finds_its_study() -> None:
    mixed = [make_record(Modality="CT"), make_record(series=2, Modality="SR")]

    (found,) = group(mixed, Query(level="study", keys={"ModalitiesInStudy": "SR"}))

    assert found["ModalitiesInStudy"] == ["CT", "SR"]


def test_instance_level_gives_the_records_themselves() -> None:
    given_records = records((1, 1, 1, 1), (1, 1, 1, 2))

    assert list(group(given_records, Query(level="instance", keys={"InstanceNumber": "2"}))) == given_records[1:]


@given(PLACES)
def test_every_instance_is_counted_once_at_each_level(places: list[tuple[int, int, int, int]]) -> None:
    made = records(*places)

    for level, key in COUNTS.items():
        found = list(group(made, Query(level=level)))
        assert sum(record[key] for record in found) == len(places)
        depth = {"patient": 1, "study": 2, "series": 3}[level]
        assert len(found) == len({place[:depth] for place in places})


def test_filters_look_at_the_answers_and_not_at_the_instances() -> None:
    made = records((1, 1, 1, 1), (1, 1, 2, 1), (1, 2, 1, 1))

    found = list(group(made, Query("study", where=(Filter("NumberOfStudyRelatedSeries", "=", "2"),))))

    assert [one["StudyInstanceUID"] for one in found] == [uid(1, 1)]
    assert len(list(group(made, Query("instance", where=(Filter("SeriesNumber", "=", "2"),))))) == 1
