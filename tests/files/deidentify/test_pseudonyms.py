"""What takes the place of UIDs."""

from pathlib import Path

import pydicom
import pytest

from dcmtools.files.deidentify.instance import Deidentifier, Settings
from dcmtools.files.deidentify.profile import Profile
from dcmtools.files.deidentify.pseudonyms import Key
from tests.builders import write_instance

KEY = Key(b"k" * 32)
BORROWED = "1.2.840.10008.777.20110923.4711"
TALAIRACH = "1.2.840.10008.1.4.1.1"


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID"])
def test_uid_of_an_instance_is_replaced_also_below_the_standards_root(keyword: str, tmp_path: Path) -> None:
    source = write_instance(tmp_path / "in.dcm", **{keyword: BORROWED})

    Deidentifier(KEY, Settings(Profile())).deidentify(source, tmp_path / "out.dcm")

    read = pydicom.dcmread(tmp_path / "out.dcm")
    assert read[keyword].value == KEY.uid(BORROWED) != BORROWED
    assert BORROWED.encode() not in (tmp_path / "out.dcm").read_bytes()
    assert read.SOPClassUID == pydicom.uid.MRImageStorage


def test_well_known_frame_of_reference_stays(tmp_path: Path) -> None:
    source = write_instance(tmp_path / "in.dcm", FrameOfReferenceUID=TALAIRACH)

    Deidentifier(KEY, Settings(Profile())).deidentify(source, tmp_path / "out.dcm")

    assert pydicom.dcmread(tmp_path / "out.dcm").FrameOfReferenceUID == TALAIRACH
