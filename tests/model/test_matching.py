import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcmtools.model.matching import fold_name, matches

PLAIN = st.text(st.characters(codec="utf-8", exclude_characters="*?\\=^"), min_size=1, max_size=20)


@pytest.mark.parametrize(
    ("keyword", "wanted", "value", "answer"),
    [
        ("PatientName", "doe^john", "Doe^John^^^", True),
        ("PatientName", "doe*", "DOE^JANE", True),
        ("PatientName", "*jane", "DOE^JANE", True),
        ("PatientName", "d?e^j*", "Doe^John", True),
        ("PatientName", "doe", "Doe^John", False),
        ("PatientName", "山田*", "Yamada^Tarou=山田^太郎=やまだ^たろう", True),
        ("PatientName", "yamada^tarou", "Yamada^Tarou=山田^太郎=やまだ^たろう", True),
        ("PatientName", "MÜLLER*", "müller^x", True),
        ("PatientName", "müller*", "Mu\u0308ller^X", True),
        ("PatientName", "a.c*", "abc", False),
        ("PatientID", "p1", "P1 ", True),
        ("Modality", "MR\\CT", "CT", True),
        ("Modality", "MR\\CT", "US", False),
        ("ModalitiesInStudy", "CT", ["MR", "CT"], True),
        ("ModalitiesInStudy", "CT", [], False),
        ("StudyInstanceUID", "1.2\\1.3", "1.3", True),
        ("StudyInstanceUID", "1.2", "1.20", False),
        ("StudyDate", "20240101-20240131", "20240131", True),
        ("StudyDate", "20240101-20240131", "20240201", False),
        ("StudyDate", "20240101-", "20991231", True),
        ("StudyDate", "-20240131", "19000101", True),
        ("StudyDate", "20240115", "2024.01.15", True),
        ("StudyDate", "202401*", "20240115", True),
        ("StudyTime", "1000-1200", "120000.5", True),
        ("StudyTime", "1000-1200", "120100", False),
        ("StudyTime", "12", "123456", True),
        ("SeriesNumber", "07", 7, True),
        ("SeriesNumber", "7", 70, False),
        ("StudyDescription", "*Head*", "CT head w/o", True),
        ("StudyDescription", "head", None, False),
        ("StudyDescription", "*", None, True),
        ("StudyDescription", "", "anything", True),
        ("00191001", "x*", "XY", True),
    ],
)
def test_value_matches_as_c_find_does(keyword: str, wanted: str, value: Any, answer: bool) -> None:
    assert matches(keyword, wanted, value) is answer


@given(PLAIN)
def test_text_matches_itself_in_any_case(text: str) -> None:
    assert matches("StudyDescription", text, text)
    assert matches("StudyDescription", text.casefold(), text)


@given(PLAIN, PLAIN)
def test_star_stands_for_what_follows(head: str, tail: str) -> None:
    assert matches("StudyDescription", head.lstrip() + "*", head + "|" + tail)


@given(st.text("ab*?", max_size=8), st.text("abx", max_size=8))
def test_wildcards_mean_what_the_standard_says(wanted: str, value: str) -> None:
    pattern = "".join({"*": ".*", "?": "."}.get(character, character) for character in wanted)

    expected = wanted in {"", "*"} or re.fullmatch(pattern, value) is not None

    assert matches("StudyDescription", wanted, value) == expected


def test_no_pattern_takes_long_to_refuse() -> None:
    assert not matches("PatientName", "*a" * 30 + "c", "a" * 64)


@given(PLAIN)
def test_folded_name_is_folded(text: str) -> None:
    assert fold_name(fold_name(text)) == fold_name(text)
