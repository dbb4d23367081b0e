import os
import unicodedata
from pathlib import PurePosixPath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcmtools.model.errors import UsageError
from dcmtools.model.keys import BY_KEYWORD
from dcmtools.model.layout import LAYOUTS, MISSING, parse_layout
from dcmtools.model.names import MAX_BYTES
from tests.builders import make_record, uid

FULL = "{PatientID}/{StudyDate}_{StudyInstanceUID}/{SeriesNumber:04}_{SeriesInstanceUID}/{SOPInstanceUID}.dcm"


def laid(template: str, **keys: Any) -> str:
    return parse_layout(template).path(make_record(**keys))


def test_fields_become_a_path() -> None:
    assert laid(FULL) == f"P1/20240101_{uid(1, 1)}/0001_{uid(1, 1, 1)}/{uid(1, 1, 1, 1)}.dcm"


def test_names_stand_for_templates() -> None:
    assert parse_layout("patient") == parse_layout(LAYOUTS["patient"])
    assert laid("uid") == f"{uid(1, 1)}/{uid(1, 1, 1)}/{uid(1, 1, 1, 1)}.dcm"
    assert laid("date") == f"20240101/{uid(1, 1)}/{uid(1, 1, 1)}/{uid(1, 1, 1, 1)}.dcm"
    assert all(parse_layout(name).tells_instances_apart for name in LAYOUTS)


@pytest.mark.parametrize(
    ("keys", "component"),
    [
        ({"SeriesNumber": 12}, "0012"),
        ({"SeriesNumber": 123456}, "123456"),
        ({"SeriesNumber": -7}, "-007"),
        ({"SeriesNumber": 3.0}, "0003"),
        ({"SeriesNumber": "7"}, "0007"),
        ({"SeriesNumber": "7a"}, "7a"),
        ({"SeriesNumber": None}, MISSING),
        ({"SeriesNumber": ""}, MISSING),
        ({"SeriesNumber": True}, MISSING),
        ({"SeriesNumber": {"a": 1}}, MISSING),
    ],
)
def test_numbers_are_filled_up_and_missing_values_have_a_fixed_word(keys: dict[str, Any], component: str) -> None:
    assert laid("{SeriesNumber:04}/{SOPInstanceUID}", **keys).split("/")[0] == component


@pytest.mark.parametrize(
    ("name", "component"),
    [
        ("Doe^Jane", "Doe_Jane"),
        ("Doe^Jane^^^", "Doe_Jane"),
        ("^^^", MISSING),
        ("=山田^太郎=やまだ^たろう", "山田_太郎"),
        ("Doe^../../etc^x", "Doe_.._.._etc_x"),
        ("../..", "_"),
        (" . ", MISSING),
    ],
)
def test_person_names_are_safe(name: str, component: str) -> None:
    assert laid("{PatientName}/{SOPInstanceUID}", PatientName=name).split("/")[0] == component


def test_several_values_are_joined() -> None:
    assert laid("{ImageType}/{SOPInstanceUID}", ImageType=["ORIGINAL", "PRIMARY", "M"]).startswith(
        "ORIGINAL-PRIMARY-M/"
    )


@pytest.mark.parametrize("name", ["quarantine", "Quarantine", "DICOMDIR", "index.jsonl", "INDEX.sqlite-wal", "CON"])
def test_names_that_mean_something_else_are_avoided(name: str) -> None:
    folder = laid("{PatientID}/{SOPInstanceUID}", PatientID=name).split("/")[0]
    file = laid("{PatientID}", PatientID=name)

    assert folder == file != name
    assert name in {folder.removeprefix("_"), folder.removesuffix("_")}


def test_long_names_are_cut_and_keep_their_suffix_and_their_difference() -> None:
    one, other = (laid("{PatientID}.dcm", PatientID="x" * 200 + end) for end in "ab")

    assert one != other
    assert {len(one), len(other)} == {MAX_BYTES}
    assert one.endswith(".dcm")
    assert other.endswith(".dcm")


def test_layout_that_does_not_tell_instances_apart_has_other_names_for_them() -> None:
    layout = parse_layout("{PatientID}/IM{InstanceNumber:04}.dcm")
    first, second = make_record(series=1), make_record(series=2)

    assert not layout.tells_instances_apart
    assert layout.path(first) == layout.path(second) == "P1/IM0001.dcm"
    assert layout.distinct_path(first) != layout.distinct_path(second)
    assert layout.distinct_path(first) == layout.distinct_path(first)
    assert PurePosixPath(layout.distinct_path(first)).parent.name == "P1"
    assert layout.distinct_path(first).endswith(".dcm")


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("", "a component is empty"),
        ("{PatientID}//{SOPInstanceUID}", "a component is empty"),
        ("{PatientID}/", "a component is empty"),
        ("/data/{SOPInstanceUID}", "below the folder"),
        ("~/{SOPInstanceUID}", "below the folder"),
        ("../{SOPInstanceUID}", "leave the folder"),
        ("{PatientID}/../{SOPInstanceUID}", "leave the folder"),
        ("{PatientID}/./{SOPInstanceUID}", "leave the folder"),
        (".hidden/{SOPInstanceUID}", "hide in it"),
        ("{PatientId}/{SOPInstanceUID}", "did you mean PatientID?"),
        ("{StudyDat}/{SOPInstanceUID}", "did you mean StudyDate?"),
        ("{Zzz}/{SOPInstanceUID}", "not a key of the index"),
        ("{PatientID", "cannot be part of a name"),
        ("{}/{SOPInstanceUID}", "is no field"),
        ("{SeriesNumber:4}", "is no field"),
        ("{SeriesNumber:>4}", "is no field"),
        ("{SeriesNumber!r}", "is no field"),
        ("{SeriesNumber:099}", "too long"),
        ("id={PatientID}", "cannot be part of a name"),
        ("a\0b/{PatientID}", "cannot be part of a name"),
        ("plain/name", "it has no field"),
        ("/".join(["{PatientID}"] * 13), "more than 12"),
    ],
)
def test_what_is_no_layout_is_told(template: str, words: str) -> None:
    with pytest.raises(UsageError) as raised:
        parse_layout(template)

    assert words in str(raised.value)


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=300),
    st.text(st.sampled_from("./\\~ \0\n:^=aA\u202e\ud800é"), max_size=40),
    st.sampled_from(
        ["..", ".", "CON", "quarantine", "index.jsonl", "index.jsonl.x", ".dcmtools-x", "a/../../b", "AUX.x"]
    ),
    st.lists(st.text(max_size=20), max_size=4),
)
FIELDS = st.sampled_from(sorted(BY_KEYWORD)).map(lambda keyword: f"{{{keyword}}}")
NUMBERS = st.sampled_from(["{SeriesNumber:04}", "{InstanceNumber:020}"])
LITERALS = st.text(st.sampled_from("abC-_. 1é"), min_size=1, max_size=6).filter(lambda text: text.strip(". ") == text)
COMPONENTS = st.lists(FIELDS | NUMBERS | LITERALS, min_size=1, max_size=3).map("".join)
TEMPLATES = st.lists(COMPONENTS, min_size=0, max_size=5).map(lambda parts: "/".join([*parts, "{SOPInstanceUID}.dcm"]))


@given(TEMPLATES, st.dictionaries(st.sampled_from(sorted(BY_KEYWORD)), VALUES))
def test_whatever_a_record_says_the_path_is_safe(template: str, record: dict[str, Any]) -> None:
    layout = parse_layout(template)

    for path in (layout.path(record), layout.distinct_path(record)):
        names = path.split("/")
        assert len(names) == template.count("/") + 1
        assert os.path.normpath(path) == path
        assert not os.path.isabs(path)
        assert path.endswith(".dcm")
        for name in names:
            assert name == name.strip()
            assert not name.startswith((".", "index.jsonl"))
            assert name.casefold() != "quarantine"
            assert not set(name) & set('/\\:*?"<>|\0')
            assert all(unicodedata.category(letter) not in {"Cc", "Cs"} for letter in name)
            assert 0 < len(name.encode()) <= MAX_BYTES + 1


@given(st.lists(st.integers(1, 10**6), min_size=2, max_size=20, unique=True))
def test_instances_never_share_a_name_on_a_file_system_without_case(numbers: list[int]) -> None:
    layout = parse_layout("{PatientID}/{SOPInstanceUID}.dcm")
    records = [{"PatientID": "aA"[number % 2], "SOPInstanceUID": f"1.2.{number}"} for number in numbers]

    assert len({layout.path(record).casefold() for record in records}) == len(numbers)
