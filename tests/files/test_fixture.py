"""Changed copies: what was named is changed, in all files alike; the rest and the originals stay as they are."""

from pathlib import Path

import pytest
from pydicom import Dataset, dcmread

from dcmtools.files.fixture import Fixture, parse
from dcmtools.model.errors import BadData, UsageError
from tests.builders import uid, write_instance


def test_values_are_set_and_all_else_stays_as_it_is(tmp_path: Path) -> None:
    source, copy = write_instance(tmp_path / "a.dcm"), tmp_path / "b.dcm"
    before = source.read_bytes()

    Fixture(parse(["PatientID=TEST=1", "ImageType=ORIGINAL\\PRIMARY", "AccessionNumber=", "Rows=4"]))(source, copy)

    one, other = dcmread(source), dcmread(copy)
    assert (other.PatientID, other.AccessionNumber, other.Rows) == ("TEST=1", "", 4)
    assert list(other.ImageType) == ["ORIGINAL", "PRIMARY"]
    assert other.file_meta.TransferSyntaxUID == one.file_meta.TransferSyntaxUID
    for keyword in ("PatientID", "ImageType", "AccessionNumber"):
        for data_set in (one, other):
            if keyword in data_set:
                delattr(data_set, keyword)
    assert one == other
    assert source.read_bytes() == before


def test_new_uids_hang_together_as_the_old_ones_did(tmp_path: Path) -> None:
    reference = Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.4", uid(1, 1, 1, 1)
    one = write_instance(tmp_path / "1.dcm", FrameOfReferenceUID=uid(9))
    two = write_instance(
        tmp_path / "2.dcm", 1, 1, 1, 2, FrameOfReferenceUID=uid(9), ReferencedImageSequence=[reference]
    )
    change, later = Fixture({}, new_uids=True), Fixture({}, new_uids=True)

    for source in (one, two):
        change(source, source.with_suffix(".new"))
    later(one, tmp_path / "1.later")

    first, second = dcmread(tmp_path / "1.new"), dcmread(tmp_path / "2.new")
    assert first.SOPInstanceUID != second.SOPInstanceUID
    assert first.SOPInstanceUID == second.ReferencedImageSequence[0].ReferencedSOPInstanceUID
    assert second.ReferencedImageSequence[0].ReferencedSOPClassUID == "1.2.840.10008.5.1.4.1.1.4"
    assert first.SOPClassUID == "1.2.840.10008.5.1.4.1.1.4"
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
        assert first[keyword].value == second[keyword].value != dcmread(one)[keyword].value
        assert first[keyword].value.is_valid
    assert first.file_meta.MediaStorageSOPInstanceUID == first.SOPInstanceUID
    assert dcmread(tmp_path / "1.later").SOPInstanceUID != first.SOPInstanceUID


def test_a_name_in_another_script_brings_its_character_set_along(tmp_path: Path) -> None:
    source = write_instance(tmp_path / "a.dcm", SpecificCharacterSet="ISO_IR 100", StudyDescription="Kränk")

    Fixture({"PatientName": "山田^太郎"})(source, tmp_path / "b.dcm")

    made = dcmread(tmp_path / "b.dcm")
    assert made.PatientName == "山田^太郎"
    assert made.StudyDescription == "Kränk"
    assert made.SpecificCharacterSet == "ISO_IR 192"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("PatientID", "has no value"),
        ("=x", "has no value"),
        ("NoSuchThing=1", "no such attribute"),
        ("TransferSyntaxUID=1.2", "no such attribute"),
        ("PixelData=1", "cannot be written as a text"),
        ("ReferencedImageSequence=1", "cannot be written as a text"),
        ("Rows=many", "VR US cannot have that value"),
        ("StudyDate=yesterday", "VR DA cannot have that value"),
        ("StudyInstanceUID=1.2.x", "VR UI cannot have that value"),
    ],
)
def test_what_cannot_be_set_is_a_wrong_call(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Fixture(parse([text]))


def test_a_file_that_cannot_be_changed_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_bytes(b"no DICOM" * 100)

    with pytest.raises(BadData) as caught:
        Fixture({"PatientID": "X"})(tmp_path / "a.dcm", tmp_path / "b.dcm")

    assert caught.value.cause == "not-changed"
