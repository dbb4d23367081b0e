"""The way of received objects into the archive: in which order, what stays, and what happens when something is off."""

import errno
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from dcmtools.disk import index
from dcmtools.disk.archive import Archive, Committed
from dcmtools.disk.desk import Desk, Temporary
from dcmtools.disk.header import read_header
from dcmtools.model.errors import CannotCreate, DcmtoolsError, IOFailure, NoInput
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


def admitted(desk: Desk, file: Temporary, record: Record) -> Committed:
    (outcome,) = desk.admit([(file, record)])
    if isinstance(outcome, DcmtoolsError):
        raise outcome
    return outcome


def test_objects_that_came_together_are_told_apart(archive: Archive, desk: Desk) -> None:
    versions: list[dict[str, Any]] = [
        {"instance": 1},
        {"instance": 2},
        {"instance": 1, "StudyInstanceUID": uid(7, 7)},
        {"instance": 2},
        {"instance": 3, "SeriesInstanceUID": uid(7, 7, 7)},
    ]
    together = [handed_in(desk, **keys) for keys in versions]

    outcomes = desk.admit(together)
    for file, _ in together:
        desk.clear(file)

    assert [one.state for one in outcomes if isinstance(one, Committed)] == [
        "received",
        "received",
        "conflict",
        "present",
        "received",
    ]
    assert [record["SOPInstanceUID"] for record in archive.index.instances()] == [uid(1, 1, 1, n) for n in (1, 2, 3)]
    assert all(Path(record["path"]).is_file() for record in archive.index.files())
    assert not [path for path in together[0][0].path.parent.iterdir() if path in {file.path for file, _ in together}]


def test_one_that_cannot_be_stored_leaves_the_others_of_its_group(archive: Archive, desk: Desk, tmp_path: Path) -> None:
    (archive.root / uid(8, 8)).symlink_to(tmp_path)
    together = [handed_in(desk, 1), handed_in(desk, 2, StudyInstanceUID=uid(8, 8)), handed_in(desk, 3)]

    first, second, third = desk.admit(together)

    assert isinstance(first, Committed)
    assert isinstance(second, CannotCreate)
    assert isinstance(third, Committed)
    assert len(list(archive.index.instances())) == 2
    assert not (tmp_path / uid(1, 1, 1)).exists()


def test_names_in_a_folder_that_cannot_be_synced_are_not_told_and_those_in_others_are(
    archive: Archive, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = [handed_in(desk, 1), handed_in(desk, 2, SeriesInstanceUID=uid(7, 7, 7)), handed_in(desk, 3)]
    real = os.fsync
    told: list[int] = []

    def fsync(descriptor: int) -> None:
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith(PLACE) and not told:
            told.append(descriptor)  # once, as the kernel tells of what it could not write
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    first, second, third = desk.admit(together)

    assert isinstance(first, IOFailure)
    assert isinstance(second, Committed)
    assert isinstance(third, IOFailure)
    assert [record["SOPInstanceUID"] for record in archive.index.instances()] == [uid(1, 1, 1, 2)]
    assert admitted(desk, *handed_in(desk, 1)).state == "present"  # when its sender tries again
    assert {record["SOPInstanceUID"] for record in archive.index.instances()} == {uid(1, 1, 1, 1), uid(1, 1, 1, 2)}


def test_many_at_once_never_wait_for_each_other_for_ever(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "_MOST", 20)  # what is remembered is often let go of

    def bring(study: int) -> None:
        desk = Desk(archive, incoming)
        for number in range(60):
            file = desk.temporary()
            file.write(b"x")
            uids = {"StudyInstanceUID": "1.4", "SeriesInstanceUID": f"1.3.{study}"}
            record = {"type": "instance", **uids, "SOPInstanceUID": f"1.2.{study}.{number + 1}"}
            assert admitted(desk, file, record).state == "received"
            desk.clear(file)
        desk.close()

    with archive.incoming() as incoming, ThreadPoolExecutor(8) as threads:
        list(threads.map(bring, range(1, 9), timeout=120))

    assert len(list(archive.index.instances())) == 480


def test_a_view_that_was_damaged_refuses_nothing(archive: Archive, desk: Desk) -> None:
    admitted(desk, *handed_in(desk, 1))
    next(archive.index.instances())
    admitted(desk, *handed_in(desk, 2))
    for end in ("", "-wal"):
        os.truncate(archive.root / f"index.sqlite{end}", 0)

    assert admitted(desk, *handed_in(desk, 3)).state == "received"
    assert admitted(desk, *handed_in(desk, 1)).state == "present"


def test_what_another_process_adds_meanwhile_is_seen(archive: Archive, desk: Desk) -> None:
    other = Archive(archive.root)
    states = []
    for number in range(1, 6):
        with other.incoming() as incoming:  # as another receiver, under another study
            theirs = incoming.new_path()
            theirs.write_bytes(encode_file(encoded(1, 1, 1, number, StudyInstanceUID=uid(9, 9))))
            if number % 2:
                other.commit(theirs, read_header(theirs))
        states.append(admitted(desk, *handed_in(desk, number)).state)

    assert states == ["conflict", "received", "conflict", "received", "conflict"]


def test_an_object_gets_its_name_and_its_line_and_its_temporary_goes_at_the_end(archive: Archive, desk: Desk) -> None:
    file, record = handed_in(desk)

    committed = admitted(desk, file, record)
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
        states.append(admitted(desk, file, record).state)
        desk.clear(file)

    assert states == ["received", "present", "conflict", "conflict"]
    assert len(list(archive.index.instances())) == 1
    assert len(list((archive.root / "quarantine").iterdir())) == 2


def test_a_folder_that_was_taken_away_is_made_again(archive: Archive, desk: Desk) -> None:
    first = admitted(desk, *handed_in(desk, 1)).path
    shutil.move(archive.root / uid(1, 1), archive.root.parent / "elsewhere")

    second = admitted(desk, *handed_in(desk, 2)).path

    assert not first.exists()
    assert second.is_file()
    assert [path.name for path in (archive.root.parent / "elsewhere").rglob("*.dcm")] == [first.name]


def test_a_link_in_the_place_of_its_folder_is_not_followed(archive: Archive, desk: Desk, tmp_path: Path) -> None:
    admitted(desk, *handed_in(desk, 1))
    shutil.move(archive.root / PLACE, tmp_path / "outside")
    (archive.root / PLACE).symlink_to(tmp_path / "outside")

    with pytest.raises(CannotCreate, match="not a folder but a link"):
        admitted(desk, *handed_in(desk, 2))
    assert len(list((tmp_path / "outside").iterdir())) == 1


def test_an_archive_that_was_removed_is_an_error(archive: Archive, desk: Desk) -> None:
    file, record = handed_in(desk, 1)
    shutil.rmtree(archive.root)

    with pytest.raises((NoInput, CannotCreate)):
        admitted(desk, file, record)


def test_a_folder_for_temporaries_that_was_removed_is_made_again_where_the_archive_still_is(
    archive: Archive, desk: Desk
) -> None:
    shutil.rmtree(archive.root / ".dcmtools-incoming")

    committed = admitted(desk, *handed_in(desk, 1))
    with archive.incoming():  # sweeps what nobody holds
        again = admitted(desk, *handed_in(desk, 2))
    shutil.rmtree(archive.root)

    assert committed.state == again.state == "received"
    with pytest.raises(FileNotFoundError):
        desk.temporary()
    assert not archive.root.exists()  # its disk may only be away


def test_a_file_that_somebody_put_at_the_name_is_never_overwritten(archive: Archive, desk: Desk) -> None:
    place = archive.root / PLACE / f"{uid(1, 1, 1, 1)}.dcm"
    place.parent.mkdir(parents=True)
    place.write_bytes(encode_file(encoded(PatientName="Was^There")))

    committed = admitted(desk, *handed_in(desk))

    assert committed.state == "conflict"
    assert place.read_bytes() == encode_file(encoded(PatientName="Was^There"))


def test_a_full_disk_is_an_error_at_once() -> None:
    full = Temporary("/dev/full", os.open("/dev/full", os.O_WRONLY))

    with pytest.raises(OSError, match="No space left"):
        full.write(b"x" * 100, b"y" * 100_000)
    os.close(full.descriptor)


def test_the_next_temporary_is_there_before_it_is_asked_for(archive: Archive, desk: Desk) -> None:
    file, record = handed_in(desk, 1)
    admitted(desk, file, record)
    desk.clear(file)

    (ready,) = [path for path in file.path.parent.iterdir() if path.name != ".lock"]

    assert ready == desk.temporary().path
    assert ready.stat().st_size == 0
