"""Identifiers, held against pydicom in both directions."""

from io import BytesIO
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_dataset

from dcmtools.model.errors import BadData
from dcmtools.model.uids import EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN
from dcmtools.network.identifier import decode, encode, encode_text

SYNTAXES = [EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN]
syntaxes = st.sampled_from(SYNTAXES)

# What each character set can write (PS3.3 C.12.1.1.2), with letters that only it, or few others, have.
SCRIPTS = {
    "ISO_IR 6": "abcABC",
    "ISO_IR 100": "abcäöüÄßéñ",
    "ISO_IR 101": "abčřžŁő",
    "ISO_IR 109": "abĦĝŭ",
    "ISO_IR 110": "abąķõ",
    "ISO_IR 144": "abЖюДя",
    "ISO_IR 127": "abقباني",
    "ISO_IR 126": "abΔιονυσ",
    "ISO_IR 138": "abשרון",
    "ISO_IR 148": "abğŞı",
    "ISO_IR 166": "abกขคฅ",
    "ISO_IR 13": "ﾔﾏﾀﾞ",  # alone: pydicom cannot encode them beside Latin letters
    "ISO_IR 192": "abäЖ山田김王😀",
    "GB18030": "ab王小东",
    "GBK": "ab王小东",
}


def pydicom_reads(data: bytes, syntax: str) -> Dataset:
    return read_dataset(BytesIO(data), is_implicit_VR=syntax == IMPLICIT_VR_LITTLE_ENDIAN, is_little_endian=True)


def pydicom_writes(data_set: Dataset, syntax: str) -> bytes:
    out = DicomBytesIO()
    out.is_little_endian, out.is_implicit_VR = True, syntax == IMPLICIT_VR_LITTLE_ENDIAN
    write_dataset(out, data_set)
    return out.getvalue()


@st.composite
def texts(draw: st.DrawFn) -> tuple[str, str, str]:
    """A character set, and a name and a description that it can write."""
    charset = draw(st.sampled_from(sorted(SCRIPTS)))
    letters = st.text(alphabet=SCRIPTS[charset], min_size=1, max_size=12)
    name = "^".join(draw(st.lists(letters, min_size=1, max_size=5)))
    return charset, name, draw(letters)


uids = st.from_regex(r"\A[1-9][0-9]{0,5}(\.[1-9][0-9]{0,5}){1,8}\Z")


@given(text=texts(), syntax=syntaxes, found=st.lists(uids, min_size=1, max_size=5), number=st.integers(0, 65535))
def test_pydicom_reads_what_we_write(text: tuple[str, str, str], syntax: str, found: list[str], number: int) -> None:
    charset, name, words = text
    keys: dict[str, Any] = {
        "SOPInstanceUID": found if len(found) > 1 else found[0],
        "PatientName": name,
        "StudyDescription": words,
        "SeriesNumber": number,
        "Rows": number,
        "SliceThickness": number / 7,
        "Modality": None,
        "QueryRetrieveLevel": "IMAGE",
    }

    data_set = pydicom_reads(encode(keys, syntax, charset), syntax)

    assert data_set.SpecificCharacterSet == charset
    assert str(data_set.PatientName) == name.rstrip("^")
    assert data_set.StudyDescription == words
    assert data_set.SeriesNumber == data_set.Rows == number
    assert float(data_set.SliceThickness) == pytest.approx(number / 7)
    assert data_set.Modality in {"", None}
    assert [data_set.SOPInstanceUID] if len(found) == 1 else list(data_set.SOPInstanceUID) == found


@given(text=texts(), syntax=syntaxes, modalities=st.lists(st.sampled_from(["MR", "CT", "US"]), max_size=3))
def test_we_read_what_pydicom_writes(text: tuple[str, str, str], syntax: str, modalities: list[str]) -> None:
    charset, name, words = text
    data_set = Dataset()
    data_set.SpecificCharacterSet = charset
    data_set.PatientName = name
    data_set.StudyDescription = words
    data_set.ModalitiesInStudy = modalities
    data_set.NumberOfStudyRelatedInstances = 12
    data_set.StudyDate = "20240131"
    data_set.PatientID = ""

    record = decode(pydicom_writes(data_set, syntax), syntax)

    assert record == {
        "SpecificCharacterSet": [charset],
        "PatientName": name,
        "StudyDescription": words,
        "ModalitiesInStudy": modalities or None,
        "NumberOfStudyRelatedInstances": 12,
        "StudyDate": "20240131",
        "PatientID": None,
    }


@given(text=texts(), syntax=syntaxes)
def test_what_we_write_we_read_again(text: tuple[str, str, str], syntax: str) -> None:
    charset, name, words = text

    record = decode(encode({"PatientName": name, "PatientID": words, "StudyDate": ""}, syntax, charset), syntax)

    assert record == {
        "SpecificCharacterSet": [charset],
        "PatientName": name,
        "PatientID": words,
        "StudyDate": None,
    }


@pytest.mark.parametrize("name", ["Yamada^Tarou=山田^太郎=やまだ^たろう", "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎=やまだ^たろう"])
@pytest.mark.parametrize("syntax", SYNTAXES)
def test_code_extensions_are_written_and_read(name: str, syntax: str) -> None:
    charset = "ISO 2022 IR 13\\ISO 2022 IR 87"

    data = encode({"PatientName": name, "PatientID": "太郎\\山"}, syntax, charset)

    assert str(pydicom_reads(data, syntax).PatientName) == name
    assert decode(data, syntax)["PatientName"] == name


def test_korean_names_are_written_with_code_extensions() -> None:
    charset, name = "\\ISO 2022 IR 149", "Hong^Gildong=洪^吉洞=홍^길동"

    data = encode({"PatientName": name}, IMPLICIT_VR_LITTLE_ENDIAN, charset)

    assert decode(data, IMPLICIT_VR_LITTLE_ENDIAN)["PatientName"] == name


@pytest.mark.parametrize(
    ("text", "charset", "written"),
    [
        ("Müller*", "ISO_IR 144", b"M*ller*"),
        ("Жanna", "ISO_IR 100", b"*anna"),
        ("Jo山田", "ISO_IR 100", b"Jo*"),
        ("Müller", "", b"M*ller"),
        ("\ud800x", "ISO_IR 192", b"*x"),
        ("", "ISO_IR 100", b""),
    ],
)
def test_what_a_character_set_does_not_have_becomes_a_wildcard(text: str, charset: str, written: bytes) -> None:
    assert encode_text(text, charset) == written


def test_a_number_that_is_none_is_asked_for_in_all_its_values() -> None:
    data_set = pydicom_reads(encode({"Rows": "5*", "SeriesNumber": "5*"}, SYNTAXES[0], "ISO_IR 192"), SYNTAXES[0])

    assert data_set.Rows is None
    assert data_set.get_item("SeriesNumber").value == b"5*"


def test_more_uids_than_a_short_length_can_tell_are_written_all_the_same() -> None:
    failed = [f"1.2.826.0.1.3680043.8.498.{number:038d}" for number in range(1, 1200)]
    for syntax in SYNTAXES:
        data = encode({"FailedSOPInstanceUIDList": failed}, syntax, "")

        assert decode(data, syntax)["FailedSOPInstanceUIDList"] == failed
        assert "SpecificCharacterSet" not in decode(data, syntax)


def test_several_values_are_an_array_only_where_the_dictionary_allows_them() -> None:
    data = encode({"ModalitiesInStudy": "MR", "ImageType": ["ORIGINAL", "PRIMARY"]}, SYNTAXES[0], "")

    assert decode(data, SYNTAXES[0]) == {"ModalitiesInStudy": ["MR"], "ImageType": ["ORIGINAL", "PRIMARY"]}


def test_attributes_that_nobody_knows_are_passed_over() -> None:
    data_set = Dataset()
    data_set.PatientID = "P1"
    data_set.RequestedProcedureDescription = "MRI"
    data_set.ReferencedStudySequence = [Dataset()]

    assert decode(pydicom_writes(data_set, SYNTAXES[0]), SYNTAXES[0]) == {"PatientID": "P1"}


def test_an_unknown_keyword_is_a_defect_of_the_caller() -> None:
    with pytest.raises(KeyError):
        encode({"NoSuchKeyword": ""}, SYNTAXES[0], "")


@given(data=st.binary(max_size=200), syntax=syntaxes)
def test_bytes_that_are_no_data_set_are_bad_data_and_nothing_else(data: bytes, syntax: str) -> None:
    try:
        record = decode(data, syntax)
    except BadData:
        return

    assert isinstance(record, dict)
