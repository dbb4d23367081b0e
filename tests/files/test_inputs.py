"""Archives of files and lists of files as what is imported."""

import shutil
import tarfile
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dcmtools.disk.archive import INCOMING, Archive
from dcmtools.disk.header import read_header
from dcmtools.files import inputs
from dcmtools.files.import_ import Mode, import_paths
from dcmtools.model.errors import DiskFull
from dcmtools.model.record import Record
from tests.builders import write_instance, write_series
from tests.disk.test_dicomdir import write_dicomdir


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return Archive(tmp_path / "archive")


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """A zip archive, in a folder, with five instances, one of them twice, a damaged one and a text."""
    series = write_series(tmp_path / "series", 5)
    (tmp_path / "in").mkdir()
    with zipfile.ZipFile(tmp_path / "in" / "study.zip", "w") as packed:
        for path in series:
            packed.write(path, f"DICOM/{path.name}")
        packed.write(series[0], "again.dcm")
        packed.writestr("cut.dcm", series[0].read_bytes()[:-5])
        packed.writestr("readme.txt", "hello")
    return tmp_path / "in" / "study.zip"


def states(records: Any) -> Counter[str]:
    return Counter(str(record.get("state") or record["cause"]) for record in records)


@pytest.mark.parametrize("mode", ["copy", "link"])
def test_zip_is_copied_into_the_archive(archive: Archive, packed: Path, tmp_path: Path, mode: Mode) -> None:
    before = packed.read_bytes()

    records = list(import_paths([packed], archive, mode))
    again = list(import_paths([packed.parent], archive, mode))

    assert states(records) == {"copied": 5, "present": 1, "truncated": 1, "not-dicom": 1}
    assert states(again) == {"present": 6, "truncated": 1, "not-dicom": 1}
    assert packed.read_bytes() == before
    for record in records:
        assert record["source"].startswith(f"{packed}!")
        if record["type"] == "error":
            assert record["path"] == str(packed)
            assert str(archive.root) not in record["reason"]
        else:
            assert Path(record["path"]) == archive.path_for(record)
            source = tmp_path / "series" / Path(record["path"]).name.rpartition(".")[0]
            assert read_header(record["path"])["InstanceNumber"] == record["InstanceNumber"], source
    assert len(list(archive.index.instances())) == 5
    assert [path.name for path in (archive.root / INCOMING).iterdir()] == [".lock"]


def test_other_content_in_an_archive_is_kept_and_named(archive: Archive, packed: Path, tmp_path: Path) -> None:
    list(import_paths([write_instance(tmp_path / "other", PatientID="OTHER")], archive))

    records = list(import_paths([packed], archive))

    assert states(records)["conflict"] == 2
    conflict = next(record for record in records if record.get("state") == "conflict")
    assert Path(conflict["path"]).parent.name == "quarantine"
    assert conflict["source"] == f"{packed}!DICOM/1-1-1-1.dcm"


def test_full_disk_while_unpacking_keeps_what_was_done(
    archive: Archive, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_series(packed.parent / "before", 300, 2)

    def full(*_: object) -> Iterator[Record]:
        yield from ()
        raise DiskFull("no space left on device")

    monkeypatch.setattr(inputs, "members_of", full)
    records: list[Record] = []
    with pytest.raises(DiskFull):
        records.extend(import_paths([packed.parent / "before", packed], archive))

    assert len(records) >= 256
    assert states(records) == {"copied": len(records)}
    assert len(list(archive.index.instances())) == len(records)
    assert [path.name for path in (archive.root / INCOMING).iterdir()] == [".lock"]


@pytest.mark.parametrize("mode", ["move", "reference"])
@pytest.mark.parametrize("named", [True, False])
def test_archive_of_files_cannot_be_moved_or_referenced(
    archive: Archive, packed: Path, mode: Mode, named: bool
) -> None:
    write_instance(packed.parent / "x.dcm", 2)

    records = list(import_paths([packed, packed.parent / "x.dcm"] if named else [packed.parent], archive, mode))

    refused = next(record for record in records if record["type"] == "error")
    assert refused["path"] == str(packed)
    assert refused["cause"] == ("not-dicom" if mode == "reference" and not named else "container")
    assert packed.exists()
    assert len(list(archive.index.instances())) == 1


def test_dry_run_of_an_archive_tells_the_plan(
    archive: Archive, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))

    records = list(import_paths([packed], archive, dry_run=True))

    assert states(records) == {"planned": 5, "present": 1, "truncated": 1, "not-dicom": 1}
    assert not archive.root.exists()
    assert list((tmp_path / "tmp").iterdir()) == []


def test_archive_below_a_folder_is_known_by_its_name_and_a_named_one_by_its_content(
    archive: Archive, packed: Path, tmp_path: Path
) -> None:
    other = packed.with_name("report.docx")
    shutil.move(packed, other)

    assert states(import_paths([packed.parent], archive)) == {"not-dicom": 1}
    assert states(import_paths([other], archive))["copied"] == 5

    with tarfile.open(tmp_path / "in" / "series.TAR.GZ", "w:gz") as packed_again:
        packed_again.add(tmp_path / "series", "series")
    assert states(import_paths([packed.parent], archive)) == {"not-dicom": 1, "present": 5}


def test_dicomdir_is_a_list_of_files(archive: Archive, tmp_path: Path) -> None:
    write_instance(tmp_path / "cd" / "IMAGES" / "IM1")
    write_instance(tmp_path / "cd" / "IMAGES" / "IM2", instance=2)
    write_instance(tmp_path / "cd" / "UNLISTED", instance=3)
    write_instance(tmp_path / "OUTSIDE", instance=4)
    path = write_dicomdir(tmp_path / "cd" / "DICOMDIR", ["IMAGES", "IM1"], ["IMAGES", "GONE"], ["..", "OUTSIDE"])

    records = list(import_paths([path], archive))
    assert states(records) == {"copied": 1, "missing": 1, "bad-name": 1}
    missing = next(record for record in records if record.get("cause") == "missing")
    assert missing["path"] == str(tmp_path / "cd" / "IMAGES" / "GONE")

    assert states(import_paths([path.parent], archive)) == {"present": 1, "copied": 2}


@pytest.mark.parametrize("mode", ["move", "reference", "link"])
def test_dicomdir_goes_with_every_mode(archive: Archive, tmp_path: Path, mode: Mode) -> None:
    source = write_instance(tmp_path / "cd" / "IM1")
    path = write_dicomdir(tmp_path / "cd" / "DICOMDIR", ["IM1"], ["..", "X"])

    records = list(import_paths([path], archive, mode))

    assert len(records) == 2
    assert len(list(archive.index.instances())) == 1
    assert source.exists() == (mode != "move")
    assert path.exists()


def test_damaged_dicomdir_is_an_error(archive: Archive, tmp_path: Path) -> None:
    path = write_dicomdir(tmp_path / "cd" / "DICOMDIR", ["IM1"])
    path.write_bytes(path.read_bytes()[:-20])

    (record,) = import_paths([path], archive)

    assert (record["type"], record["path"], record["exit_code"]) == ("error", str(path), 65)
