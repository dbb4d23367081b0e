"""Names of volumes."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcmtools.images.naming import DEFAULT_TEMPLATE, Template
from dcmtools.model.errors import UsageError
from tests.builders import make_record

TEXT = st.text(max_size=150)


def test_a_name_says_patient_date_number_and_description() -> None:
    source = make_record(SeriesNumber=7, SeriesDescription="T1 MPRAGE sag")

    path = Template().path(source, "_e2")

    assert str(path).startswith("P1/20240101_")
    assert path.name.startswith("0007_T1_MPRAGE_sag_")
    assert path.name.endswith("_e2")


def test_equal_number_and_description_of_two_series_give_two_names() -> None:
    same: dict[str, Any] = {"PatientID": "X", "SeriesNumber": 1, "SeriesDescription": "T1"}

    assert Template().path(make_record(1, **same)) != Template().path(make_record(2, **same))


def test_a_suffix_that_begins_with_a_letter_gets_a_line_before_it() -> None:
    assert Template("A{suffix}").path({}, "a").name == "A_a"


def test_a_template_without_suffix_gets_one() -> None:
    assert Template("A").path({}, "_ph").name == "A_ph"


def test_what_is_missing_is_unknown() -> None:
    path = Template().path({"SeriesInstanceUID": "1.2", "PatientID": None, "SeriesDescription": ""})

    assert path.parts[0] == "unknown"
    assert path.name.startswith("unknown_unknown_")


def test_a_series_number_that_is_no_number_is_taken_as_text() -> None:
    assert Template("{SeriesNumber:04d}").path({"SeriesNumber": "4a"}).name == "4a"


@pytest.mark.parametrize("name", ["_suspect", "conversions.jsonl"])
def test_a_patient_cannot_be_called_as_a_file_of_ours(name: str) -> None:
    assert Template("{PatientID}/A").path({"PatientID": name}).parts[0] == f"_{name}"


@pytest.mark.parametrize(
    "text",
    ["{Nothing}", "{PatientID.__class__}", "{PatientID!r}", "{SeriesNumber:>9999999d}", "a//b", "/a", "../a", "{", ""],
)
def test_what_is_no_template_ends_with_2(text: str) -> None:
    with pytest.raises(UsageError) as problem:
        Template(text)

    assert problem.value.exit_code == 2


@given(patient=TEXT, description=TEXT, number=st.one_of(st.integers(), TEXT, st.none()), suffix=TEXT)
def test_no_value_leads_out_of_the_folder(
    patient: str, description: str, number: int | str | None, suffix: str
) -> None:
    source = {"PatientID": patient, "SeriesDescription": description, "SeriesNumber": number, "StudyDate": patient}

    path = Template(DEFAULT_TEMPLATE).path(source, suffix)

    assert not path.is_absolute()
    assert len(path.parts) == 3
    assert not {".", "..", ""} & set(path.parts)
    assert all(len(part.encode()) <= 121 and not part.startswith(".") for part in path.parts)
