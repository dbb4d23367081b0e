"""The way of received objects into the archive: in which order, what stays, and what happens when something is off."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dcmtools.disk.archive import Archive
from dcmtools.disk.desk import Desk, Temporary
from dcmtools.disk.header import read_header
from dcmtools.model.errors import CannotCreate, NoInput
from dcmtools.model.record import Record
from tests.builders import encode_file, uid
from tests.network.storing import encoded

PLACE = f"{uid(1, 1)}/{uid(1, 1, 1)}"


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return Archive(tmp_path / "archive")


@pytest.fixture
def desk(archive: Archive) -> Iterator[Desk]:
    with archive.incoming() as incoming:
        made = Desk(archive, incoming)
        yield made
        made.close()


def handed_in(desk: Desk, instance: int = 1, **keys: Any) -> tuple[Temporary, Record]:
    data = encoded(1, 1, 1, instance, **keys)
    file = desk.temporary()
    file.write(encode_file(data[:50], instance=uid(1, 1, 1, instance)), b"")
    for at in range(50, len(data), 7):
        file.write(data[at : at + 7])
    file.flush()
    record = read_header(file.path)
    return file, {key: value for key, value in record.items() if key not in {"path", "size", "mtime_ns"}}


def test_an_object_gets_its_name_and_its_line_and_its_temporary_goes_at_the_end(archive: Archive, desk: Desk) -> None:
    file, record = handed_in(desk)

    committed = desk.admit(file, record)
    desk.clear(file)

    assert committed.state == "received"
    assert committed.path == archive.root / PLACE / f"{uid(1, 1, 1, 1)}.dcm"
    assert os.stat(committed.path).st_nlink == 1
    (indexed,) = archive.index.instances()
    assert indexed["path"] == os.fspath(committed.path)
    assert indexed["size"] == committed.path.stat().st_size
    assert indexed["mtime_ns"] == str(committed.path.stat().st_mtime_ns)
    assert not file.path.exists()


def test_the_same_and_other_data_under_one_uid_are_told_apart(archive: Archive, desk: Desk) -> None:
    states = []
    versions: list[dict[str, Any]] = [
        {},
        {},
        {"PatientName": "Other^One"},
        {"StudyInstanceUID": uid(7, 7)},
    ]
    for keys in versions:
        file, record = handed_in(desk, **keys)
        states.append(desk.admit(file, record).state)
        desk.clear(file)

    assert states == ["received", "present", "conflict", "conflict"]
    assert len(list(archive.index.instances())) == 1
    assert len(list((archive.root / "quarantine").iterdir())) == 2


def test_a_folder_that_was_taken_away_is_made_again(archive: Archive, desk: Desk) -> None:
    first = desk.admit(*handed_in(desk, 1)).path
    shutil.move(archive.root / uid(1, 1), archive.root.parent / "elsewhere")

    second = desk.admit(*handed_in(desk, 2)).path

    assert not first.exists()
    assert second.is_file()
    assert [path.name for path in (archive.root.parent / "elsewhere").rglob("*.dcm")] == [first.name]


def test_a_link_in_the_place_of_its_folder_is_not_followed(archive: Archive, desk: Desk, tmp_path: Path) -> None:
    desk.admit(*handed_in(desk, 1))
    shutil.move(archive.root / PLACE, tmp_path / "outside")
    (archive.root / PLACE).symlink_to(tmp_path / "outside")

    with pytest.raises(CannotCreate, match="not a folder but a link"):
        desk.admit(*handed_in(desk, 2))
    assert len(list((tmp_path / "outside").iterdir())) == 1


def test_an_archive_that_was_removed_is_an_error(archive: Archive, desk: Desk) -> None:
    file, record = handed_in(desk, 1)
    shutil.rmtree(archive.root)

    with pytest.raises((NoInput, CannotCreate)):
        desk.admit(file, record)


def test_a_folder_for_temporaries_that_was_removed_is_made_again_where_the_archive_still_is(
    archive: Archive, desk: Desk
) -> None:
    shutil.rmtree(archive.root / ".dcmtools-incoming")

    committed = desk.admit(*handed_in(desk, 1))
    with archive.incoming():  # sweeps what nobody holds
        again = desk.admit(*handed_in(desk, 2))
    shutil.rmtree(archive.root)

    assert committed.state == again.state == "received"
    with pytest.raises(FileNotFoundError):
        desk.temporary()
    assert not archive.root.exists()  # its disk may only be away


def test_a_file_that_somebody_put_at_the_name_is_never_overwritten(archive: Archive, desk: Desk) -> None:
    place = archive.root / PLACE / f"{uid(1, 1, 1, 1)}.dcm"
    place.parent.mkdir(parents=True)
    place.write_bytes(encode_file(encoded(PatientName="Was^There")))

    committed = desk.admit(*handed_in(desk))

    assert committed.state == "conflict"
    assert place.read_bytes() == encode_file(encoded(PatientName="Was^There"))


def test_a_full_disk_is_an_error_at_once() -> None:
    full = Temporary(Path("/dev/full"), os.open("/dev/full", os.O_WRONLY))

    with pytest.raises(OSError, match="No space left"):
        full.write(b"x" * 100, b"y" * 100_000)
    os.close(full.descriptor)


def test_the_next_temporary_is_there_before_it_is_asked_for(archive: Archive, desk: Desk) -> None:
    file, record = handed_in(desk, 1)
    desk.admit(file, record)
    desk.clear(file)

    (ready,) = [path for path in file.path.parent.iterdir() if path.name != ".lock"]

    assert ready == desk.temporary().path
    assert ready.stat().st_size == 0
