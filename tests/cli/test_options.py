"""What selectors and other words of the command line mean."""

from datetime import date

import pytest
from hypothesis import given as given_any
from hypothesis import strategies as st

from dcmtools.cli.options import Selectors, check_input, duration, given, mode_of, one_of, query_of
from dcmtools.model.errors import UsageError
from dcmtools.model.filters import Filter
from dcmtools.model.record import Level

TODAY = date(2024, 3, 1)


@pytest.mark.parametrize(
    ("selectors", "keys"),
    [
        (Selectors(patient_name="DOE^J*", patient_id="P?"), {"PatientName": "DOE^J*", "PatientID": "P?"}),
        (Selectors(modality="MR, CT"), {"Modality": "MR\\CT"}),
        (Selectors(modality="mr"), {"Modality": "MR"}),
        (Selectors(study_uid="1.2,1.3"), {"StudyInstanceUID": "1.2\\1.3"}),
        (Selectors(date="yesterday"), {"StudyDate": "20240229"}),
        (Selectors(since="-2d"), {"StudyDate": "20240228-"}),
        (Selectors(until="2024-02-01"), {"StudyDate": "-20240201"}),
        (Selectors(since="20240101", until="today"), {"StudyDate": "20240101-20240301"}),
        (
            Selectors(accession="A,1", physician="HOUSE*"),
            {"AccessionNumber": "A,1", "ReferringPhysicianName": "HOUSE*"},
        ),
        (Selectors(key=["StationName=MR1", "Rows=512"]), {"StationName": "MR1", "Rows": "512"}),
        (Selectors(description="Head*"), {"StudyDescription": "Head*"}),
        (Selectors(description="T1*", level="series"), {"SeriesDescription": "T1*"}),
        (Selectors(description="T1*", level="image"), {"SeriesDescription": "T1*"}),
        (Selectors(), {}),
    ],
)
def test_selectors_mean_matching_keys(selectors: Selectors, keys: dict[str, str]) -> None:
    assert query_of(selectors, TODAY).keys == keys


@pytest.mark.parametrize(
    ("selectors", "default", "level"),
    [
        (Selectors(), None, "study"),
        (Selectors(), "series", "series"),
        (Selectors(instance_uid="1.2"), "series", "instance"),
        (Selectors(instance_uid="1.2"), None, "study"),
        (Selectors(instance_uid="1.2", level="series"), "series", "series"),
        (Selectors(level="IMAGE"), None, "instance"),
    ],
)
def test_level_is_as_given_else_the_commands_else_study(
    selectors: Selectors, default: Level | None, level: Level
) -> None:
    assert query_of(selectors, TODAY, default).level == level


def test_order_limit_and_filters_shape_the_query() -> None:
    query = query_of(Selectors(sort="-StudyDate,PatientID", limit=5, where=["Modality=MR"]), TODAY)

    assert query.sort == (("StudyDate", True), ("PatientID", False))
    assert (query.limit, query.where, query.keys) == (5, (Filter("Modality", "=", "MR"),), {})


@pytest.mark.parametrize(
    ("selectors", "chose"),
    [
        (Selectors(), False),
        (Selectors(level="series", sort="StudyDate", limit=3), False),
        (Selectors(all=True), True),
        (Selectors(where=["Modality=MR"]), True),
    ],
)
def test_shaping_is_no_choice(selectors: Selectors, *, chose: bool) -> None:
    assert given(selectors) is chose


@given_any(st.integers(0, 99), st.integers(0, 99), st.integers(0, 99), st.integers(0, 99))
def test_durations_add_up(days: int, hours: int, minutes: int, seconds: int) -> None:
    text = f"{days}d{hours}h{minutes}m{seconds}s"

    assert duration(text) == ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    assert duration(f"{seconds}") == seconds


@pytest.mark.parametrize("text", ["", " ", "soon", "-5s", "1s1h", "10 m", "1.5h"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        duration(text)


def test_mode_is_octal() -> None:
    assert (mode_of("640"), mode_of("0755"), mode_of(None)) == (0o640, 0o755, None)
    for text in ("999", "64", "rw", "-640"):
        with pytest.raises(UsageError):
            mode_of(text)


def test_of_flags_that_exclude_each_other_one_may_be_set() -> None:
    assert one_of({"copy": False, "link": False}) == "copy"
    assert one_of({"copy": False, "link": True}) == "link"
    with pytest.raises(UsageError, match="--copy does not go together with --link"):
        one_of({"copy": True, "link": True})


@pytest.mark.parametrize(
    "selectors",
    [
        Selectors(study_uid=""),
        Selectors(study_uid=" , "),
        Selectors(modality=",", patient_id="P1"),
        Selectors(patient_id=""),
        Selectors(date=" "),
        Selectors(physician="", all=True),
    ],
)
def test_selector_without_a_value_is_refused_and_does_not_mean_all(selectors: Selectors) -> None:
    for use in (lambda: query_of(selectors, TODAY), lambda: given(selectors), lambda: check_input(["-"], selectors)):
        with pytest.raises(UsageError, match="has no value"):
            use()


@pytest.mark.parametrize("selectors", [Selectors(limit=2), Selectors(sort="StudyDate"), Selectors(level="series")])
@pytest.mark.parametrize("inputs", [["-"], ["folder"]])
def test_what_shapes_a_choice_is_refused_beside_input(inputs: list[str], selectors: Selectors) -> None:
    with pytest.raises(UsageError, match="does not go together with - or paths"):
        check_input(inputs, selectors)


def test_input_is_checked_once_for_all_commands() -> None:
    check_input(["a", "b"], Selectors(), need=True)
    check_input([], Selectors(limit=2, all=True), need=True)
    check_input([], Selectors())
    for inputs, selectors in ((["-", "a"], Selectors()), (["-"], Selectors(all=True)), ([], Selectors(limit=2))):
        with pytest.raises(UsageError):
            check_input(inputs, selectors, need=True)
