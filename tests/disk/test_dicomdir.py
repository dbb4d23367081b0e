from pathlib import Path
from typing import Any

import pytest
from pydicom.config import IGNORE
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, MediaStorageDirectoryStorage

from dcmtools.disk.containers import kind_of
from dcmtools.disk.dicomdir import files_listed
from dcmtools.model.errors import BadData
from tests.builders import uid, write_instance
from tests.peers.processes import RunTool


def write_dicomdir(path: Path, *file_ids: Any) -> Path:
    """A DICOMDIR that lists these, whatever lies beside it."""
    listed = Dataset()
    listed.FileSetID = "TEST"
    listed.DirectoryRecordSequence = []
    for file_id in file_ids:
        record = Dataset()
        record.RecordInUseFlag = 0xFFFF
        record.DirectoryRecordType = "IMAGE" if file_id else "PATIENT"
        if file_id:
            record.add(DataElement("ReferencedFileID", "CS", file_id, validation_mode=IGNORE))
        listed.DirectoryRecordSequence.append(record)
    listed.file_meta = FileMetaDataset()
    listed.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    listed.file_meta.MediaStorageSOPClassUID = MediaStorageDirectoryStorage
    listed.file_meta.MediaStorageSOPInstanceUID = UID(uid(9))
    path.parent.mkdir(parents=True, exist_ok=True)
    listed.save_as(path, enforce_file_format=True)
    return path


def test_all_files_of_a_medium_that_dcmtk_made_are_listed(tmp_path: Path, tool: RunTool) -> None:
    there = [
        write_instance(tmp_path / "cd" / f"DIR{series}" / f"IM{number}", 1, 1, series, number, StudyID="1")
        for series in (1, 2)
        for number in (1, 2)
    ]
    made = tool("dcmmkdir", "+D", "cd/DICOMDIR", "+r", "+id", "cd", "--invent")
    assert made.returncode == 0, made.stderr

    assert kind_of(tmp_path / "cd" / "DICOMDIR") == "dicomdir"
    assert sorted(map(str, files_listed(tmp_path / "cd" / "DICOMDIR"))) == sorted(map(str, there))


def test_names_in_other_letters_and_missing_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir" / "im1").touch()
    (tmp_path / "dir" / "IM2.;1").touch()
    path = write_dicomdir(tmp_path / "DICOMDIR", "", ["DIR", "IM1"], ["DIR", "IM2"], ["DIR", "IM3"])

    assert list(files_listed(path)) == [tmp_path / "dir" / name for name in ("im1", "IM2.;1", "IM3")]


@pytest.mark.parametrize("file_id", [["..", "X"], ["A", "..", "..", "X"], "/etc/passwd", ["", "etc"], ["OUT", "X"]])
def test_names_outside_the_folder_are_refused(tmp_path: Path, file_id: Any) -> None:
    (tmp_path / "X").touch()
    (tmp_path / "cd").mkdir()
    (tmp_path / "cd" / "OUT").symlink_to(tmp_path)

    (refused,) = files_listed(write_dicomdir(tmp_path / "cd" / "DICOMDIR", file_id))

    assert isinstance(refused, dict)
    assert (refused["cause"], refused["exit_code"]) == ("bad-name", 65)


@pytest.mark.parametrize("cut", [20, 100])
def test_list_that_was_cut_off_is_an_error(tmp_path: Path, cut: int) -> None:
    path = write_dicomdir(tmp_path / "DICOMDIR", ["A"], ["B"])
    path.write_bytes(path.read_bytes()[:-cut])

    with pytest.raises(BadData) as raised:
        list(files_listed(path))

    assert raised.value.where["path"] == str(path)


def test_dicomdir_without_a_list_is_an_error(tmp_path: Path) -> None:
    path = write_dicomdir(tmp_path / "DICOMDIR")
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"\x04\0\x20\x12SQ")])

    with pytest.raises(BadData, match="cannot be read as a DICOMDIR"):
        list(files_listed(path))
