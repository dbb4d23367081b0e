import hashlib
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dcmtools.disk.archive import INCOMING, Archive
from dcmtools.disk.copying import copy, same_bytes
from dcmtools.disk.header import read_header
from dcmtools.disk.index import Index
from dcmtools.disk.tree import Skipped
from dcmtools.files import import_
from dcmtools.files.import_ import Mode, import_paths
from dcmtools.files.referencing import header_of
from dcmtools.model.errors import DiskFull
from dcmtools.model.record import Record, encode
from tests.builders import make_instance, uid, write_instance, write_series
from tests.waiting import wait_until

INTO: list[Mode] = ["copy", "link", "move"]
DONE = {"copy": "copied", "link": "linked", "move": "moved"}


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return Archive(tmp_path / "archive")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder with two series of three instances, and three files that are no instances."""
    folder = tmp_path / "source"
    write_series(folder / "a", 3)
    write_series(folder / "b", 3, 2)
    (folder / "readme.txt").write_text("hello")
    (folder / "DICOMDIR").write_text("a list")
    whole = write_instance(folder / "cut.dcm", 9).read_bytes()
    (folder / "cut.dcm").write_bytes(whole[:-5])
    return folder


def states(records: Any) -> Counter[str]:
    return Counter(str(record.get("state") or record["cause"]) for record in records)


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file below a folder with its inode and content, but for the locks and the view of the index."""
    return {
        str(path.relative_to(folder)): (path.stat().st_ino, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock" and not path.name.startswith("index.sqlite")
    }


@pytest.mark.parametrize("mode", INTO)
def test_good_files_get_into_the_archive_and_bad_ones_are_named(archive: Archive, source: Path, mode: Mode) -> None:
    skipped = Skipped()

    records = list(import_paths([source], archive, mode, skipped=skipped))

    assert states(records) == {DONE[mode]: 6, "not-dicom": 1, "truncated": 1}
    assert skipped == {"dicomdir": 1}
    errors = {Path(record["path"]).name: record["exit_code"] for record in records if record["type"] == "error"}
    assert errors == {"readme.txt": 65, "cut.dcm": 65}
    for record in records:
        if record["type"] == "instance":
            assert Path(record["path"]) == archive.path_for(record)
            found = read_header(record["path"])
            assert {**found, "state": DONE[mode], "source": record["source"]} == record
            assert Path(record["source"]).exists() == (mode != "move")
    assert len(list(archive.index.instances())) == 6
    assert (source / "cut.dcm").exists()


@pytest.mark.parametrize("mode", INTO)
def test_second_run_writes_nothing(archive: Archive, source: Path, tmp_path: Path, mode: Mode) -> None:
    shutil.copytree(source, tmp_path / "again")
    list(import_paths([source], archive, mode))
    before = snapshot(archive.root)

    records = list(import_paths([source if mode != "move" else tmp_path / "again"], archive, mode))

    assert states(records) == {"present": 6, "not-dicom": 1, "truncated": 1}
    assert snapshot(archive.root) == before
    assert all(encode(record) for record in records)


def test_copy_is_the_file_byte_for_byte(archive: Archive, tmp_path: Path) -> None:
    path = write_instance(tmp_path / "x")

    (record,) = import_paths([path], archive)

    assert same_bytes(path, Path(record["path"]))
    assert Path(record["path"]).stat().st_ino != path.stat().st_ino
    assert Path(record["path"]).stat().st_mode & 0o777 == 0o600
    assert record["source"] == str(path)


def test_same_data_set_twice_is_one_record(archive: Archive, tmp_path: Path) -> None:
    write_instance(tmp_path / "in" / "1")
    write_instance(tmp_path / "in" / "2")
    shutil.copy(tmp_path / "in" / "1", tmp_path / "in" / "3")

    records = list(import_paths([tmp_path / "in"], archive))

    assert states(records) == {"copied": 1, "present": 2}
    assert {record["path"] for record in records} == {str(archive.path_for(records[0]))}
    assert len(archive.index.file.read_bytes().splitlines()) == 1


@pytest.mark.parametrize("mode", INTO)
def test_other_content_of_one_uid_is_kept_and_reported(archive: Archive, tmp_path: Path, mode: Mode) -> None:
    write_instance(tmp_path / "in" / "1", PatientID="FIRST")
    other = write_instance(tmp_path / "in" / "2", PatientID="OTHER")

    records = list(import_paths([tmp_path / "in"], archive, mode))

    assert states(records) == {DONE[mode]: 1, "conflict": 1}
    assert records[1]["duplicate_of"] == records[0]["path"]
    assert read_header(records[1]["path"])["PatientID"] == "OTHER"
    assert other.exists()
    assert [record["PatientID"] for record in archive.index.instances()] == ["FIRST"]


def test_moved_file_is_gone_only_from_where_it_was(archive: Archive, source: Path) -> None:
    list(import_paths([source], archive, "move"))

    records = list(import_paths([archive.root], archive, "move"))

    assert states(records) == {"present": 6}
    assert all(Path(record["path"]).exists() for record in records)


@pytest.mark.parametrize("target", [".", "study", "study/series"])
def test_link_to_the_archive_below_what_is_moved_costs_nothing(
    archive: Archive, source: Path, tmp_path: Path, target: str
) -> None:
    stored = next(record for record in import_paths([source], archive) if record.get("state") == "copied")
    folders = {".": archive.root, "study": Path(stored["path"]).parents[1], "study/series": Path(stored["path"]).parent}
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    (inbox / "link").symlink_to(folders[target])
    before = snapshot(archive.root)

    records = list(import_paths([inbox], archive, "move", follow=True))

    assert set(states(records)) == {"present"}
    assert snapshot(archive.root) == before


def test_what_lies_in_the_archive_under_another_name_is_not_removed(archive: Archive, tmp_path: Path) -> None:
    list(import_paths([write_instance(tmp_path / "x", 1, 1, 1, 1)], archive))
    inside = [
        write_instance(archive.root / "by-hand" / "same", 1, 1, 1, 1),
        write_instance(archive.root / "by-hand" / "new", 1, 1, 1, 2),
    ]

    records = list(import_paths([archive.root / "by-hand"], archive, "move"))

    assert states(records) == {"present": 1, "copied": 1}
    assert all(path.exists() for path in inside)


def test_move_compares_all_bytes_before_it_removes(archive: Archive, tmp_path: Path) -> None:
    path = write_instance(tmp_path / "x")
    (record,) = import_paths([path], archive)
    state = path.stat()
    whole = bytearray(path.read_bytes())
    whole[-1] ^= 1
    path.write_bytes(whole)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))  # size and time are those of the archive's

    (moved,) = import_paths([path], archive, "move")

    assert moved["state"] == "conflict"
    assert path.exists()
    assert Path(record["path"]).exists()


def test_link_shares_the_file_and_a_link_to_it_is_copied(archive: Archive, tmp_path: Path) -> None:
    path, other = write_instance(tmp_path / "1"), write_instance(tmp_path / "2", instance=2)
    (tmp_path / "alias").symlink_to(other)

    linked, copied = import_paths([path, tmp_path / "alias"], archive, "link")

    assert (linked["state"], copied["state"]) == ("linked", "copied")
    assert Path(linked["path"]).samefile(path)
    assert not Path(copied["path"]).is_symlink()
    assert same_bytes(Path(copied["path"]), other)


def test_another_file_system_is_no_hindrance(archive: Archive) -> None:
    if not os.access("/dev/shm", os.W_OK) or Path("/dev/shm").stat().st_dev == archive.root.parent.stat().st_dev:
        pytest.skip("needs a second file system: /dev/shm is none")
    other = Path("/dev/shm") / f"dcmtools-test-{os.getpid()}"
    try:
        for mode in INTO:
            path = write_instance(other / mode, 1, 1, 1, INTO.index(mode) + 1)
            (record,) = import_paths([path], archive, mode)
            assert record["state"] == {"link": "copied"}.get(mode, DONE[mode])
            assert path.exists() == (mode != "move")
            planned = next(iter(import_paths([write_instance(other / "x", 2)], archive, mode, dry_run=True)))
            assert planned["plan"] == record["state"]
    finally:
        shutil.rmtree(other, ignore_errors=True)


@pytest.mark.parametrize("mode", INTO)
def test_dry_run_tells_what_the_run_then_does(archive: Archive, source: Path, mode: Mode) -> None:
    write_instance(source / "b" / "x", 2)
    write_instance(source / "b" / "y", 2, PatientID="OTHER")

    planned = list(import_paths([source], archive, mode, dry_run=True))
    assert not archive.root.exists()
    done = list(import_paths([source], archive, mode))

    assert states(planned) == {"planned": 7, "present": 1, "not-dicom": 1, "truncated": 1}
    for plan, record in zip(planned, done, strict=True):
        assert plan.get("plan", plan.get("state")) == record.get("state")
        assert plan.get("source") == record.get("source")
        assert plan["path"] == record["path"] or record["state"] == "conflict"
    if mode != "move":
        again = states(import_paths([source], archive, mode, dry_run=True))
        assert again == {"present": 7, "planned": 1, "not-dicom": 1, "truncated": 1}


def test_dry_run_of_reference_does_nothing(archive: Archive, source: Path) -> None:
    records = list(import_paths([source], archive, "reference", dry_run=True))

    assert len(records) == 8
    assert not archive.root.exists()


def test_reference_leaves_files_where_they_are(archive: Archive, source: Path) -> None:
    records = list(import_paths([source], archive, "reference"))

    assert states(records) == {"indexed": 6, "not-dicom": 1, "truncated": 1}
    assert {path.name for path in archive.root.iterdir()} == {"index.jsonl", "index.lock"}
    assert states(import_paths([source], archive)) == {"copied": 6, "not-dicom": 1, "truncated": 1}
    assert all(record["path"].startswith(str(archive.root)) for record in archive.index.instances())


def aged(folder: Path) -> None:
    """Makes files an hour older: what was just written is read again, as it may change again in the same instant."""
    for path in folder.rglob("*"):
        state = path.stat()
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns - 3_600_000_000_000))


@pytest.mark.parametrize("mode", ["copy", "link"])
def test_unchanged_files_are_not_read_again(archive: Archive, source: Path, mode: Mode) -> None:
    write_instance(source / "b" / "x", 2, PatientID="OTHER")
    aged(source)
    first = list(import_paths([source / "a", source / "b"], archive, mode))
    before = snapshot(archive.root)
    for path in source.rglob("*"):
        path.chmod(0o700 if path.is_dir() else 0o600)  # as good as new, to whom it may concern
    list(import_paths([source / "a", source / "b"], archive, mode))
    with patch_header_of() as read:
        again = list(import_paths([source / "a", source / "b"], archive, mode))

    assert read == []
    assert states(again) == {"present": 6, "conflict": 1}
    assert snapshot(archive.root) == before
    for one, other in zip(first, again, strict=True):
        assert {**one, "state": ""} == {**other, "state": ""}


def test_what_is_recalled_is_held_against_the_archive(archive: Archive, source: Path) -> None:
    aged(source)
    records = list(import_paths([source / "a"], archive))
    gone, cut, unknown = (Path(record["path"]) for record in records)
    gone.unlink()
    cut.write_bytes(cut.read_bytes()[:-3])
    archive.index.forget([record for record in records if record["path"] == str(unknown)])

    again = list(import_paths([source / "a"], archive))

    assert [record["state"] for record in again] == ["copied", "copied", "present"]
    assert {record["path"]: record["size"] for record in archive.index.instances()} == {
        record["path"]: record["size"] for record in records
    }


def test_move_reads_what_it_removes_though_it_was_imported_before(archive: Archive, source: Path) -> None:
    aged(source)
    list(import_paths([source / "a"], archive))

    with patch_header_of() as read:
        records = list(import_paths([source / "a"], archive, "move"))

    assert states(records) == {"present": 3}
    assert len(read) == 3
    assert list((source / "a").iterdir()) == []


@contextmanager
def patch_header_of() -> Iterator[list[Path]]:
    """The files whose headers are read meanwhile."""
    read: list[Path] = []

    def noted(path: Path) -> Record:
        read.append(path)
        return header_of(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(import_, "header_of", noted)
        yield read


def test_newest_becomes_the_answer_and_the_older_is_kept(tmp_path: Path) -> None:
    archive = Archive(tmp_path / "archive", on_duplicate="newest")
    first, second = write_instance(tmp_path / "1"), write_instance(tmp_path / "2", PatientID="CORRECTED")
    (before,) = import_paths([first], archive)

    (planned,) = import_paths([second], archive, dry_run=True)
    (record,) = import_paths([second], archive)

    assert (planned["state"], planned["plan"]) == ("planned", "copied")
    assert (record["state"], record["path"]) == ("copied", before["path"])
    assert read_header(record["path"])["PatientID"] == "CORRECTED"
    assert same_bytes(Path(record["replaces"]), first)
    (answer,) = archive.index.instances()
    assert answer == read_header(record["path"])
    kept = archive.index.everywhere([uid(1, 1, 1, 1)])[uid(1, 1, 1, 1)]
    assert {one["path"]: one.get("state") for one in kept} == {record["path"]: None, record["replaces"]: "conflict"}


def test_versions_do_not_change_places_again(tmp_path: Path) -> None:
    archive = Archive(tmp_path / "archive", on_duplicate="newest")
    paths = [write_instance(tmp_path / str(number), PatientID=f"V{number}") for number in range(3)]
    list(import_paths(paths, archive))
    before = snapshot(archive.root)

    again = list(import_paths(paths, archive))

    assert states(again) == {"present": 3}
    assert {record["PatientID"] for record in again} == {"V2"}
    assert snapshot(archive.root) == before
    assert [record["PatientID"] for record in archive.index.instances()] == ["V2"]
    assert states(import_paths(paths, archive, dry_run=True)) == {"present": 3}
    assert len(list((archive.root / "quarantine").iterdir())) == 2


def test_newest_may_belong_to_another_study(tmp_path: Path) -> None:
    archive = Archive(tmp_path / "archive", on_duplicate="newest")
    (before,) = import_paths([write_instance(tmp_path / "1")], archive)

    (record,) = import_paths([write_instance(tmp_path / "2", StudyInstanceUID=uid(1, 2))], archive)

    assert record["path"] != before["path"]
    assert not Path(before["path"]).exists()
    assert list(archive.index.instances()) == [read_header(record["path"])]


def test_checksums_are_those_of_the_files_in_the_archive(archive: Archive, source: Path) -> None:
    records = list(import_paths([source / "a"], archive, extras={"checksum"}))
    again = list(import_paths([source / "a"], archive))

    for record in [*records, *again, *archive.index.instances()]:
        assert record["sha256"] == hashlib.sha256(Path(record["path"]).read_bytes()).hexdigest()


def test_checksum_is_added_once_to_what_is_there(archive: Archive, source: Path) -> None:
    list(import_paths([source / "a"], archive))

    records = list(import_paths([source / "a"], archive, extras={"checksum"}))
    before = snapshot(archive.root)
    list(import_paths([source / "a"], archive, extras={"checksum"}))

    assert states(records) == {"present": 3}
    assert all("sha256" in record for record in [*records, *archive.index.instances()])
    assert snapshot(archive.root) == before


def test_damaged_files_are_copied_into_the_quarantine(archive: Archive, source: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(source / "x.zip", "w") as packed:
        packed.writestr("cut too", (source / "cut.dcm").read_bytes()[:-1])

    records = list(import_paths([source], archive, "copy", extras={"quarantine"}))
    before = snapshot(archive.root)
    again = list(import_paths([source], archive, "copy", extras={"quarantine"}))

    kept = [record for record in records if "quarantine" in record]
    assert [record["cause"] for record in kept] == ["truncated", "truncated"]
    assert [Path(record["quarantine"]).parent for record in kept] == [archive.root / "quarantine"] * 2
    assert same_bytes(Path(kept[0]["quarantine"]), source / "cut.dcm")
    assert (source / "cut.dcm").exists()
    assert [record["quarantine"] for record in again if "quarantine" in record] == [one["quarantine"] for one in kept]
    assert snapshot(archive.root) == before
    assert len([one for one in archive.index.events() if one["event"] == "quarantined"]) == 2


def test_moved_folder_keeps_its_damaged_files(archive: Archive, source: Path) -> None:
    records = list(import_paths([source], archive, "move", extras={"quarantine"}))

    assert [record["cause"] for record in records if "quarantine" in record] == ["truncated"]
    assert (source / "cut.dcm").exists()


PATIENT = "{PatientID}/{StudyDate}/{SeriesNumber:04}_{SeriesInstanceUID}/{SOPInstanceUID}.dcm"


def test_layout_says_where_instances_lie_and_the_index_what_is_there(tmp_path: Path, source: Path) -> None:
    archive = Archive(tmp_path / "archive", PATIENT)

    records = list(import_paths([source / "a"], archive))
    before = snapshot(archive.root)
    again = [*import_paths([source / "a"], archive), *import_paths([source / "a"], Archive(archive.root))]

    assert records[0]["path"] == str(
        archive.root / "P1" / "20240101" / f"0001_{uid(1, 1, 1)}" / f"{uid(1, 1, 1, 1)}.dcm"
    )
    assert states(again) == {"present": 6}
    assert {record["path"] for record in again} == {record["path"] for record in records}
    assert snapshot(archive.root) == before


@pytest.mark.parametrize("template", ["IM{InstanceNumber:04}.dcm", "{Modality}/x"])
def test_layout_that_gives_one_name_to_all_loses_none(tmp_path: Path, source: Path, template: str) -> None:
    archive = Archive(tmp_path / "archive", template)
    write_instance(source / "b" / "other", 2, PatientID="OTHER")

    records = list(import_paths([source / "a", source / "b"], archive))
    before = snapshot(archive.root)
    again = list(import_paths([source / "a", source / "b"], archive))

    assert states(records) == {"copied": 6, "conflict": 1}
    assert states(again) == {"present": 6, "conflict": 1}
    assert {read_header(record["path"])["SOPInstanceUID"] for record in archive.index.instances()} == {
        record["SOPInstanceUID"] for record in records
    }
    assert snapshot(archive.root) == before


def test_file_of_a_layout_without_its_line_is_not_copied_again(tmp_path: Path, source: Path) -> None:
    archive = Archive(tmp_path / "archive", "IM{InstanceNumber:04}.dcm")
    list(import_paths([source / "a", source / "b"], archive))
    before = {name: inode for name, (inode, _) in snapshot(archive.root).items() if name.endswith(".dcm")}
    archive.index.file.unlink()

    assert states(import_paths([source / "a", source / "b"], archive)) == {"present": 6}

    assert {name: inode for name, (inode, _) in snapshot(archive.root).items() if name.endswith(".dcm")} == before
    assert len(list(archive.index.instances())) == 6


@pytest.mark.parametrize("value", ["../../outside", "/etc", "quarantine", "index.jsonl", ".hidden", "a\\b:c", "x" * 64])
def test_no_value_of_a_layout_leaves_the_archive_or_hides_in_it(tmp_path: Path, value: str) -> None:
    archive = Archive(tmp_path / "archive", "{PatientID}/{SOPInstanceUID}")

    (record,) = import_paths([write_instance(tmp_path / "x", PatientID=value)], archive)

    assert Path(record["path"]).is_relative_to(archive.root)
    assert states(import_paths([archive.root], archive)) == {"present": 1}


def test_stop_ends_after_what_was_begun(archive: Archive, tmp_path: Path) -> None:
    write_series(tmp_path / "in", 10)
    asked = itertools.count()

    records = list(import_paths([tmp_path / "in"], archive, stop=lambda: next(asked) >= 4))

    assert states(records) == {"copied": 4}
    assert len(list(archive.index.instances())) == 4


def test_records_come_out_before_all_is_read(archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_series(tmp_path / "in", 5)
    monkeypatch.setattr(import_, "BATCH", 2)

    first = next(import_paths([tmp_path / "in"], archive, "move"))

    assert first["state"] == "moved"
    assert len(list(archive.index.instances())) == 2
    assert len(list((tmp_path / "in").iterdir())) == 4


def test_file_without_its_line_is_not_copied_again(archive: Archive, source: Path) -> None:
    list(import_paths([source], archive))
    lines = sorted(archive.index.file.read_bytes().splitlines())
    before = {name: inode for name, (inode, _) in snapshot(archive.root).items() if name.endswith(".dcm")}
    archive.index.file.unlink()

    assert states(import_paths([source / "a", source / "b"], archive)) == {"present": 6}

    assert sorted(archive.index.file.read_bytes().splitlines()) == lines
    assert {name: inode for name, (inode, _) in snapshot(archive.root).items() if name.endswith(".dcm")} == before


def test_link_planted_in_the_archive_stops_one_study_only(archive: Archive, source: Path, tmp_path: Path) -> None:
    archive.root.mkdir()
    (tmp_path / "outside").mkdir()
    (archive.root / uid(1, 1)).symlink_to(tmp_path / "outside")

    records = list(import_paths([source / "a", source / "b"], archive))

    assert states(records) == {"cannot-create": 3, "copied": 3}
    assert {record["path"] for record in records if record["type"] == "error"} == {
        str(path) for path in (source / "a").iterdir()
    }
    assert list((tmp_path / "outside").iterdir()) == []


IMPORT = """
    import sys, time
    from dcmtools.disk.archive import Archive
    from dcmtools.files import import_
    from dcmtools.files.import_ import import_paths
    import_.BATCH = 7
    for record in import_paths([sys.argv[1]], Archive(sys.argv[2]), sys.argv[3]):
        print(record.get("state"), record.get("SOPInstanceUID"), flush=True)
"""


def importing(source: Path, archive: Archive, mode: str, limit: int | None = None) -> list[str]:
    code = textwrap.dedent(IMPORT)
    if limit:
        code = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n" + code
    return [sys.executable, "-c", code, str(source), str(archive.root), mode]


def live(archive: Archive) -> list[Record]:
    """What the index answers, in the order of UIDs and without what differs between two copies of one file."""
    found = sorted(archive.index.instances(), key=lambda record: str(record["SOPInstanceUID"]))
    return [{**record, "path": os.path.relpath(record["path"], archive.root)} for record in found]


@pytest.mark.parametrize("mode", INTO)
def test_kills_at_any_moment_leave_nothing_that_the_next_run_does_not_mend(tmp_path: Path, mode: Mode) -> None:
    killed, undisturbed = Archive(tmp_path / "killed"), Archive(tmp_path / "undisturbed")
    for number in range(1, 4):
        write_series(tmp_path / "in", 40, number)
        write_instance(tmp_path / "in" / f"{number} again", number, 1, 1, 5)
        write_instance(tmp_path / "in" / f"{number} other", number, 1, 1, 6, PatientID="OTHER")
    shutil.copytree(tmp_path / "in", tmp_path / "in again")
    chance = random.Random(mode)

    told: set[str] = set()
    for _ in range(7):
        with subprocess.Popen(importing(tmp_path / "in", killed, mode), stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout
            for _ in range(chance.randrange(1, 40)):
                told |= set(process.stdout.readline().split()[1:])
            time.sleep(chance.random() * 0.01)  # to hit it anywhere, not only after a line
            process.send_signal(signal.SIGKILL)
        assert told <= set(killed.index.lookup(told))
    subprocess.run(importing(tmp_path / "in", killed, mode), check=True, capture_output=True)
    subprocess.run(importing(tmp_path / "in again", undisturbed, mode), check=True, capture_output=True)

    assert [without_times(record) for record in live(killed)] == [without_times(record) for record in live(undisturbed)]
    assert files(killed) == files(undisturbed)
    assert [path.name for path in (killed.root / INCOMING).iterdir()] == [".lock"]
    left = {path.name for path in (tmp_path / "in").iterdir()}
    assert len(left) == (3 if mode == "move" else 126)  # a conflict stays where it was
    assert all(read_header(record["path"]) == record for record in killed.index.instances())


def test_kills_while_versions_are_exchanged_lose_none(tmp_path: Path) -> None:
    archive = Archive(tmp_path / "archive", on_duplicate="newest")
    write_series(tmp_path / "old", 30)
    write_series(tmp_path / "new", 30, PatientID="CORRECTED")
    list(import_paths([tmp_path / "old"], archive))
    code = textwrap.dedent(IMPORT).replace("Archive(sys.argv[2])", 'Archive(sys.argv[2], on_duplicate="newest")')
    words = [sys.executable, "-c", code, str(tmp_path / "new"), str(archive.root), "copy"]
    chance = random.Random(1)

    for _ in range(6):
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout
            for _ in range(chance.randrange(1, 9)):
                process.stdout.readline()
            time.sleep(chance.random() * 0.02)
            process.send_signal(signal.SIGKILL)
    subprocess.run(words, check=True, capture_output=True)

    answers = list(archive.index.instances())
    assert [record["PatientID"] for record in answers] == ["CORRECTED"] * 30
    assert all(read_header(record["path"]) == record for record in answers)
    kept = [read_header(path) for path in (archive.root / "quarantine").iterdir()]
    assert {record["SOPInstanceUID"] for record in kept} == {record["SOPInstanceUID"] for record in answers}
    known = archive.index.everywhere([record["SOPInstanceUID"] for record in answers])
    told = {one["path"] for records in known.values() for one in records if one.get("state") == "conflict"}
    assert told == {record["path"] for record in kept}
    assert {record["PatientID"] for record in kept} == {"P1"}


def test_kills_while_an_archive_is_unpacked_leave_nothing(archive: Archive, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as packed:
        for path in write_series(tmp_path / "in", 40):
            packed.write(path, path.name)
    chance = random.Random(2)

    for _ in range(5):
        words = importing(tmp_path / "x.zip", archive, "copy")
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout
            for _ in range(chance.randrange(1, 12)):
                process.stdout.readline()
            process.send_signal(signal.SIGKILL)

    assert set(states(import_paths([tmp_path / "x.zip"], archive))) <= {"copied", "present"}
    assert len(list(archive.index.instances())) == 40
    assert len(list(archive.root.glob("*/*/*.dcm"))) == 40
    assert [path.name for path in (archive.root / INCOMING).iterdir()] == [".lock"]


def without_times(record: Record) -> Record:
    return {key: value for key, value in record.items() if key != "mtime_ns"}


def files(archive: Archive) -> dict[str, bytes]:
    return {name: content for name, (_, content) in snapshot(archive.root).items() if name.endswith(".dcm")}


def test_full_disk_ends_with_74_and_the_next_run_goes_on(archive: Archive, tmp_path: Path) -> None:
    write_series(tmp_path / "in", 60)

    done = subprocess.run(
        importing(tmp_path / "in", archive, "copy", limit=20_000), check=False, capture_output=True, text=True
    )

    assert "DiskFull" in done.stderr
    indexed = set(archive.index.lookup([line.split()[-1] for line in done.stdout.splitlines()]))
    assert indexed == {line.split()[-1] for line in done.stdout.splitlines()}
    assert 0 < len(indexed) < 60
    assert archive.index.bad_lines == 0

    records = list(import_paths([tmp_path / "in"], archive))
    assert set(states(records)) == {"present", "copied"}
    assert len(list(archive.index.instances())) == 60


def test_full_disk_while_copying_keeps_what_was_done(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_series(tmp_path / "in", 5)
    copied = itertools.count(1)

    def failing_copy(source: Path, target: Path) -> None:
        if next(copied) > 3:
            raise OSError(28, "No space left on device")
        copy(source, target)

    monkeypatch.setattr(import_, "copy", failing_copy)
    records: list[Record] = []

    with pytest.raises(DiskFull):
        records.extend(import_paths([tmp_path / "in"], archive))

    assert states(records) == {"copied": 3}
    assert len(list(archive.index.instances())) == 3


def test_two_imports_at_once_lose_nothing(archive: Archive, tmp_path: Path) -> None:
    write_series(tmp_path / "in", 80)

    both = [
        subprocess.Popen(importing(tmp_path / "in", archive, mode), stdout=subprocess.PIPE, text=True)
        for mode in ("copy", "link")
    ]
    said = [process.communicate(timeout=60)[0].splitlines() for process in both]

    assert [process.returncode for process in both] == [0, 0]
    assert [len(lines) for lines in said] == [80, 80]
    assert not [line for lines in said for line in lines if line.split()[0] not in {"copied", "linked", "present"}]
    assert len(list(archive.index.instances())) == 80
    assert not (archive.root / "quarantine").exists()


def test_source_that_changes_while_it_is_copied_is_left_out(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_instance(tmp_path / "x")

    def header_then_change(source: Path) -> Record:
        record = header_of(source)
        make_instance(PatientID="LATER").save_as(source, enforce_file_format=True)
        return record

    monkeypatch.setattr(import_, "header_of", header_then_change)

    (record,) = import_paths([path], archive)

    assert record["cause"] == "changed"
    assert list(archive.index.instances()) == []


def test_real_data_come_in_and_are_found(archive: Archive, data: Path) -> None:
    records = list(import_paths([data / "vendors"], archive, "link"))

    found = states(records)
    assert found["linked"] + found["present"] + found["conflict"] == 259
    assert len(list(archive.index.instances())) == found["linked"]
    assert {str(path) for path in archive.root.glob("*/*/*.dcm")} == {
        record["path"] for record in Index(archive.index.file).instances()
    }


def test_import_waits_for_nobody(archive: Archive, source: Path) -> None:
    process = subprocess.Popen(importing(source, archive, "copy"), stdout=subprocess.PIPE, text=True)
    wait_until(lambda: process.poll() is not None)

    assert process.communicate()[0].count("copied") == 6
