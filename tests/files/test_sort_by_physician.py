"""Volumes and instances land in their physician's folder, once, whole, and never on top of anything."""

import json
import os
import resource
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dcmtools.files.sort_by_physician import SortOptions, sort
from dcmtools.model.errors import ConfigurationError, DiskFull, Locked, UsageError
from dcmtools.model.names import short_hash
from dcmtools.model.record import Record, decode, encode, event, path_keys
from tests.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
OTHER_DISK = Path("/dev/shm")
STUDY, SERIES = "1.2.3", "1.2.3.4"


def volume(folder: Path, name: str = "t1.nii.gz", data: bytes = b"voxels", **keys: Any) -> Record:
    """The record of a volume with a sidecar, and both files."""
    folder.mkdir(parents=True, exist_ok=True)
    sidecar = folder / f"{name.partition('.')[0]}.json"
    (folder / name).write_bytes(data)
    sidecar.write_bytes(b'{"about": "%s"}' % data)
    return {
        "type": "volume",
        "state": "converted",
        "path": str(folder / name),
        "files": [str(sidecar)],
        "StudyInstanceUID": STUDY,
        "SeriesInstanceUID": SERIES,
        "StudyDate": "20240102",
        "AccessionNumber": "A1",
        "SeriesNumber": 3,
        "SeriesDescription": "T1",
        "ReferringPhysicianName": "Smith^John",
        **keys,
    }


def instance(folder: Path, number: int, **keys: Any) -> Record:
    """The record of an instance, and its file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"1.2.3.4.{number}.dcm"
    path.write_bytes(b"DICM%d" % number)
    uids = {"StudyInstanceUID": STUDY, "SeriesInstanceUID": SERIES, "SOPInstanceUID": f"1.2.3.4.{number}"}
    return {"path": str(path), **uids, "ReferringPhysicianName": "Smith^John", "StudyDate": "20240102", **keys}


def run(stream: Iterable[Record], out: Path, **options: Any) -> list[Record]:
    return list(sort(stream, out, SortOptions(**options)))


def files(out: Path) -> list[str]:
    """The files below a folder, without our own in its root."""
    return sorted(str(path.relative_to(out)) for path in out.rglob("*") if not path.is_dir() and path.parent != out)


def snapshot(folder: Path) -> dict[str, tuple[int, ...]]:
    """All that a write would change. (The lock says who holds it; that is no data.)"""
    paths = [path for path in folder.rglob("*") if path.name != ".dcmtools-lock"]
    found = {str(path.relative_to(folder)): path.lstat() for path in paths}
    return {
        name: (s.st_ino, s.st_mode, s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_nlink) for name, s in found.items()
    }


def states(records: Iterable[Record]) -> list[str]:
    return [record["state"] for record in records if "state" in record]


def of_type(records: Iterable[Record], kind: str) -> list[Record]:
    return [record for record in records if record.get("type") == kind]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "share"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return tmp_path / "nifti"


class TestTree:
    def test_volume_and_companions_lie_below_physician_study_and_series(self, source: Path, out: Path) -> None:
        records = run([volume(source)], out)

        assert files(out) == [
            f"Smith_John/20240102_A1/0003_T1_{short_hash(SERIES)}/t1.{ending}" for ending in ("json", "nii.gz")
        ]
        assert records[0] == {
            "type": "file",
            "state": "linked",
            "path": str(out / files(out)[1]),
            "source": str(source / "t1.nii.gz"),
            "physician": "Smith_John",
            "StudyInstanceUID": STUDY,
            "SeriesInstanceUID": SERIES,
        }

    def test_companions_may_be_told_by_their_kind(self, source: Path, out: Path) -> None:
        record = volume(source)
        (source / "t1.bval").write_bytes(b"0 1000")

        run([{**record, "files": {"sidecar": record["files"][0], "bval": str(source / "t1.bval")}}], out)

        assert [Path(name).name for name in files(out)] == ["t1.bval", "t1.json", "t1.nii.gz"]

    def test_hard_link_is_the_same_inode(self, source: Path, out: Path) -> None:
        records = run([volume(source)], out)

        assert [os.stat(one["path"]).st_ino for one in records] == [os.stat(one["source"]).st_ino for one in records]

    def test_instances_of_a_series_share_its_folder(self, source: Path, out: Path) -> None:
        records = run([instance(source, number) for number in range(3)], out)

        assert {Path(one["path"]).parent.name for one in records} == {short_hash(SERIES)}
        assert [one["SOPInstanceUID"] for one in records] == ["1.2.3.4.0", "1.2.3.4.1", "1.2.3.4.2"]

    def test_study_without_accession_number_or_date_is_named_by_its_hash(self, source: Path, out: Path) -> None:
        run(
            [volume(source, AccessionNumber=None), volume(source / "b", StudyInstanceUID="9", AccessionNumber=None)],
            out,
        )
        run([volume(source / "c", StudyInstanceUID="8", AccessionNumber="", StudyDate="")], out)

        studies = sorted(path.name for path in (out / "Smith_John").iterdir())
        dated = sorted(f"20240102_{short_hash(uid)}" for uid in (STUDY, "9"))
        assert studies == [*dated, f"undated_{short_hash('8')}"]

    def test_two_studies_with_one_accession_number_stay_two(self, source: Path, out: Path) -> None:
        stream = [volume(source / uid, StudyInstanceUID=uid) for uid in ("1.1", "1.2")]

        run(stream, out)
        again = run(reversed(stream), out)

        assert len(list((out / "Smith_John").iterdir())) == 2
        assert set(states(again)) == {"present"}

    def test_suspect_volume_is_kept_apart(self, source: Path, out: Path) -> None:
        run([volume(source, state="suspect")], out)

        assert files(out)[0].startswith("Smith_John/20240102_A1/_suspect/0003_T1_")

    def test_file_without_any_uid_is_placed_too(self, source: Path, out: Path) -> None:
        record = {**volume(source), "StudyInstanceUID": None, "SeriesInstanceUID": None, "StudyDate": None}

        run([record], out)
        again = run([record], out)

        assert files(out) == ["Smith_John/undated_A1/t1/t1.json", "Smith_John/undated_A1/t1/t1.nii.gz"]
        assert states(again) == ["present", "present"]

    def test_names_that_are_not_utf8_are_placed_and_told(self, source: Path, out: Path) -> None:
        source.mkdir()
        path = os.fsencode(source) + b"/m\xfcller.nii"
        Path(os.fsdecode(path)).write_bytes(b"x")
        record = {**volume(source), **path_keys(os.fsdecode(path)), "files": []}

        first, second = run([record], out), run([record], out)

        assert states([*first, *second]) == ["linked", "present"]
        assert "source_b64" in first[0]
        assert files(out)[0].endswith(".nii")


class TestPhysician:
    def test_spellings_of_one_name_share_a_folder_over_runs(self, source: Path, out: Path) -> None:
        names = ["SMITH^JOHN", "Smith, John", "Smith^John^^^"]
        for number, name in enumerate(names):
            run([volume(source / str(number), StudyInstanceUID=f"1.{number}", ReferringPhysicianName=name)], out)

        assert [path.name for path in out.iterdir() if path.is_dir()] == ["SMITH_JOHN"]
        assert json.loads((out / "physicians.json").read_text()) == {
            "smith john": {"folder": "SMITH_JOHN", "spellings": dict.fromkeys(names, 1)}
        }

    @pytest.mark.parametrize("name", ["", None, "-", "DN", "^^^"])
    def test_nobody_is_unknown(self, source: Path, out: Path, name: str | None) -> None:
        run([volume(source, ReferringPhysicianName=name)], out)

        assert files(out)[0].startswith("_unknown/")
        assert not (out / "physicians.json").exists()

    def test_folder_for_nobody_can_have_another_name(self, source: Path, out: Path) -> None:
        run([volume(source, ReferringPhysicianName="")], out, unknown="../nobody")

        assert files(out)[0].startswith("_nobody/")

    def test_study_goes_where_most_of_its_series_say(self, source: Path, out: Path) -> None:
        names = {"1": "Doe^Jane", "2": "Smith^John", "3": "SMITH^JOHN", "4": ""}
        stream = [
            volume(source / uid, SeriesInstanceUID=uid, ReferringPhysicianName=name) for uid, name in names.items()
        ]

        records = run(stream, out)

        assert {record["physician"] for record in records} == {"Smith_John"}
        assert [(one["event"], one["cause"]) for one in of_type(records, "event")] == [("warning", "physicians-differ")]

    def test_series_without_a_name_is_no_disagreement(self, source: Path, out: Path) -> None:
        stream = [volume(source / n, SeriesInstanceUID=n, ReferringPhysicianName=n and "Doe" * int(n)) for n in "01"]

        records = run(stream, out)

        assert of_type(records, "event") == []
        assert {record["physician"] for record in records} == {"Doe"}

    def test_one_late_series_does_not_carry_the_study_away(self, source: Path, out: Path) -> None:
        run([volume(source / uid, SeriesInstanceUID=uid) for uid in ("1", "2")], out)

        late = run([volume(source / "3", SeriesInstanceUID="3", ReferringPhysicianName="Doe^Jane")], out)

        assert {one["physician"] for one in of_type(late, "file")} == {"Smith_John"}
        assert len(files(out)) == 6

    def test_first_of_several_names_has_the_study_and_the_record_tells_the_others(
        self, source: Path, out: Path
    ) -> None:
        records = run([volume(source, ReferringPhysicianName="Smith^John\\Doe^Jane")], out)

        assert {record["physician"] for record in records} == {"Smith_John"}
        assert records[0]["other_physicians"] == ["Doe^Jane"]

    def test_each_of_several_names_has_a_link_when_asked_for(self, source: Path, out: Path) -> None:
        stream = [volume(source, ReferringPhysicianName="Smith^John\\Doe^Jane")]

        records = run(stream, out, multi="all")
        before = snapshot(out)
        again = run(stream, out, multi="all")

        assert [record["physician"] for record in records] == ["Smith_John"] * 2 + ["Doe_Jane"] * 2
        assert os.stat(source / "t1.nii.gz").st_nlink == 3
        assert states(again) == ["present"] * 4
        assert snapshot(out) == before

    def test_second_link_goes_when_the_second_name_does(self, source: Path, out: Path) -> None:
        run([volume(source, ReferringPhysicianName="Smith^John\\Doe^Jane")], out, multi="all")

        records = run([volume(source, ReferringPhysicianName="Smith^John")], out, multi="all")

        assert sorted(states(records)) == ["present"] * 2 + ["removed"] * 2
        assert not (out / "Doe_Jane").exists()

    def test_merged_name_goes_to_the_folder_of_the_other(self, source: Path, out: Path, tmp_path: Path) -> None:
        (tmp_path / "merge").write_text("Smyth^John=Smith^John\n")
        run([volume(source, ReferringPhysicianName="Smyth^John")], out)

        records = run([volume(source, ReferringPhysicianName="Smyth^John")], out, merge=tmp_path / "merge")

        assert states(records) == ["moved", "moved"]
        assert {path.parts[0] for path in map(Path, files(out))} == {"Smith_John"}


class TestIdempotence:
    @pytest.mark.parametrize("how", ["link", "copy", "symlink", "move"])
    def test_second_run_writes_nothing_and_says_present(self, source: Path, out: Path, how: str) -> None:
        stream = [volume(source), *(instance(source / "d", number, SeriesInstanceUID="7") for number in range(3))]
        run(stream, out, how=how)
        before = snapshot(out)

        again = run(stream, out, how=how)

        assert set(states(again)) == {"present"}
        assert len(again) == 5
        assert snapshot(out) == before

    def test_tree_without_its_ledger_is_adopted(self, source: Path, out: Path) -> None:
        run([volume(source)], out, how="copy")
        (out / "sorted.jsonl").unlink()

        record = volume(source)

        assert states(run([record], out)) == ["present", "present"]
        before = snapshot(out)
        assert states(run([record], out)) == ["present", "present"]
        assert snapshot(out) == before

    def test_torn_and_foreign_lines_of_the_ledger_do_no_harm(self, source: Path, out: Path) -> None:
        record = volume(source)
        run([record], out)
        whole = (out / "sorted.jsonl").read_bytes()
        hostile = {"type": "file", "study": STUDY, "path": "../../nifti/t1.nii.gz", "source": "/x"}
        odd = [{**hostile, "size": 6, "mtime_ns": "1", "placed_ns": "1"}, {"type": "study", "study": STUDY, "votes": 3}]
        noise = b"noise\n[]\n" + b"".join(map(encode, odd)) + b'{"type":"file","study":"1.2'
        (out / "sorted.jsonl").write_bytes(whole + noise)

        records = run([{**record, "ReferringPhysicianName": "Doe^Jane"}], out)

        assert states(records) == ["moved", "moved"]
        assert (source / "t1.nii.gz").exists()
        lines = (out / "sorted.jsonl").read_bytes().splitlines()
        assert all(line.endswith(b"}") or line in {b"noise", b"[]"} for line in lines)

    def test_file_that_was_deleted_in_the_tree_comes_again(self, source: Path, out: Path) -> None:
        record = volume(source)
        run([record], out)
        (out / files(out)[0]).unlink()

        assert sorted(states(run([record], out))) == ["linked", "present"]


class TestChange:
    @pytest.mark.parametrize("how", ["link", "copy"])
    def test_converted_again_is_replaced_in_place(self, source: Path, out: Path, how: str) -> None:
        record = volume(source)
        run([record], out, how=how)
        for path in (source / "t1.nii.gz", source / "t1.json"):
            (source / "new").write_bytes(b"other " + path.read_bytes())
            (source / "new").replace(path)

        records = run([record], out, how=how)

        assert states(records) == ["updated", "updated"]
        assert [(out / name).read_bytes() for name in files(out)] == [b'other {"about": "voxels"}', b"other voxels"]
        assert states(run([record], out, how=how)) == ["present", "present"]

    def test_converted_again_elsewhere_replaces_what_has_lost_its_source(self, source: Path, out: Path) -> None:
        run([volume(source / "a", data=b"1")], out)
        (source / "a").rename(source / "gone")
        for path in (source / "gone").iterdir():
            path.unlink()

        records = run([volume(source / "b", data=b"22")], out)

        assert states(records) == ["updated", "updated"]
        assert len(files(out)) == 2

    def test_other_file_with_this_name_stays_and_ours_gets_a_number(self, source: Path, out: Path) -> None:
        record = volume(source)
        run([record], out)
        theirs = out / files(out)[1]
        theirs.unlink()
        theirs.write_bytes(b"by hand")

        records = run([record], out)

        assert theirs.read_bytes() == b"by hand"
        assert [Path(name).name for name in files(out)] == ["t1.nii.gz", "t1~2.json", "t1~2.nii.gz"]
        assert [one["cause"] for one in of_type(records, "event")] == ["name-taken", "name-taken", "changed-by-hand"]
        before = snapshot(out)
        assert states(run([record], out)) == ["present", "present"]
        assert snapshot(out) == before

    def test_two_volumes_with_one_name_are_both_kept(self, source: Path, out: Path) -> None:
        stream = [volume(source / "a", data=b"1"), volume(source / "b", data=b"2"), volume(source / "c", data=b"1")]

        records = run(stream, out)

        assert [Path(name).name for name in files(out)] == ["t1.json", "t1.nii.gz", "t1~2.json", "t1~2.nii.gz"]
        assert states(of_type(records, "file")) == ["linked"] * 4 + ["present"] * 2
        before = snapshot(out)
        assert set(states(run(stream, out))) == {"present"}
        assert snapshot(out) == before

    @pytest.mark.parametrize("how", ["link", "copy", "symlink", "move"])
    def test_corrected_name_moves_the_study(self, source: Path, out: Path, how: str) -> None:
        stream = [volume(source), *(instance(source / "d", n, SeriesInstanceUID="7") for n in range(2))]
        run(stream, out, how=how)
        old = files(out)

        records = run([{**one, "ReferringPhysicianName": "Doe^Jane"} for one in stream], out, how=how)

        assert states(records) == ["moved"] * 4
        assert sorted(record["from"] for record in records) == [str(out / name) for name in old]
        assert sorted(record["to"] for record in records) == [str(out / name) for name in files(out)]
        assert files(out) == [name.replace("Smith_John", "Doe_Jane") for name in old]
        assert not (out / "Smith_John").exists()

    def test_files_that_the_run_does_not_name_move_along(self, source: Path, out: Path) -> None:
        stream = [volume(source / "a"), volume(source / "b", SeriesInstanceUID="7")]
        run(stream, out)
        (source / "b" / "t1.nii.gz").unlink()

        corrected = {"ReferringPhysicianName": "Doe^Jane"}
        both = [{**stream[0], **corrected}, {**instance(source, 1, SeriesInstanceUID="7"), **corrected}]
        records = run([{**one, "AccessionNumber": "A1"} for one in both], out)

        assert sorted(states(records)) == ["linked"] + ["moved"] * 4
        assert {Path(name).parts[0] for name in files(out)} == {"Doe_Jane"}
        assert len(files(out)) == 5

    def test_corrected_accession_number_moves_the_study_too(self, source: Path, out: Path) -> None:
        run([volume(source)], out)

        assert states(run([volume(source, AccessionNumber="A2")], out)) == ["moved", "moved"]
        assert [path.name for path in (out / "Smith_John").iterdir()] == ["20240102_A2"]

    def test_file_that_was_changed_by_hand_stays_where_it_is(self, source: Path, out: Path) -> None:
        run([volume(source)], out, how="copy")
        edited = out / files(out)[0]
        edited.write_bytes(b'{"edited": true}')

        records = run([volume(source, ReferringPhysicianName="Doe^Jane")], out, how="copy")

        assert edited.read_bytes() == b'{"edited": true}'
        assert [one["cause"] for one in of_type(records, "event")] == ["changed-by-hand"]
        assert len(files(out)) == 3

    def test_counts_follow_a_correction(self, source: Path, out: Path) -> None:
        run([volume(source)], out)
        run([volume(source, ReferringPhysicianName="Doe^Jane")], out)

        physicians = json.loads((out / "physicians.json").read_text())
        assert physicians["smith john"]["spellings"] == {"Smith^John": 0}
        assert physicians["doe jane"]["spellings"] == {"Doe^Jane": 1}

    def test_folder_renamed_only_in_case_keeps_its_files_where_case_is_not_told(self, source: Path, out: Path) -> None:
        record = volume(source)
        run([record], out, how="move")
        (out / "SMITH_JOHN").symlink_to("Smith_John")  # as such a file system has it: two names, one folder
        registry = out / "physicians.json"
        registry.write_text(registry.read_text().replace("Smith_John", "SMITH_JOHN"))

        run([record], out, how="move")
        again = run([record], out, how="move")

        folder = out / "SMITH_JOHN"
        assert [(folder / name).read_bytes() for name in files(folder)] == [b'{"about": "voxels"}', b"voxels"]
        assert states(again) == ["present", "present"]


class TestHow:
    def test_copy_has_its_own_inode_and_the_same_times(self, source: Path, out: Path) -> None:
        (record, _) = run([volume(source)], out, how="copy")

        copied, original = os.stat(record["path"]), os.stat(record["source"])
        assert record["state"] == "copied"
        assert copied.st_ino != original.st_ino
        assert copied.st_mtime_ns == original.st_mtime_ns
        assert stat.S_IMODE(copied.st_mode) == 0o600

    def test_symbolic_link_leads_to_the_source(self, source: Path, out: Path) -> None:
        (record, _) = run([volume(source)], out, how="symlink")

        assert (record["state"], os.readlink(record["path"])) == ("linked", record["source"])

    def test_moved_source_is_gone_and_the_next_run_knows(self, source: Path, out: Path) -> None:
        record = volume(source)

        assert states(run([record], out, how="move")) == ["moved", "moved"]
        assert list(source.iterdir()) == []
        assert states(run([record], out, how="move")) == ["present", "present"]
        assert states(run([{**record, "ReferringPhysicianName": "Doe"}], out, how="move")) == ["moved", "moved"]
        assert (out / files(out)[1]).read_bytes() == b"voxels"

    def test_move_after_symlink_does_not_lose_the_file(self, source: Path, out: Path) -> None:
        record = volume(source)
        run([record], out, how="symlink")

        run([record], out, how="move")

        assert [(out / name).is_symlink() for name in files(out)] == [False, False]
        assert (out / files(out)[1]).read_bytes() == b"voxels"
        assert list(source.iterdir()) == []

    def test_indexed_archive_is_not_moved_away(self, source: Path, out: Path) -> None:
        record = instance(source / "study", 1)
        (source / "index.jsonl").write_bytes(b"")

        (told,) = run([record], out, how="move")

        assert (told["type"], told["exit_code"]) == ("error", 2)
        assert Path(record["path"]).exists()

    def test_output_folder_is_not_sorted_into_itself(self, source: Path, out: Path) -> None:
        (first, _) = run([volume(source)], out)

        (told,) = run([{**instance(source, 1), "path": first["path"]}], out)

        assert (told["type"], told["exit_code"]) == ("error", 2)
        assert len(files(out)) == 2

    @pytest.mark.parametrize("how", ["link", "move"])
    def test_other_file_system_gets_a_copy(self, source: Path, how: str) -> None:
        if not OTHER_DISK.is_dir() or os.stat(OTHER_DISK).st_dev == os.stat(source.parent).st_dev:
            pytest.skip("needs /dev/shm to be another file system than the temporary folder")
        with tempfile.TemporaryDirectory(dir=OTHER_DISK) as other:
            planned = run([volume(source)], Path(other), how="link", dry_run=True)
            records = run([volume(source)], Path(other), how=how)

            assert [record["plan"] for record in planned] == ["copied", "copied"]
            assert set(states(records)) == {"copied" if how == "link" else "moved"}
            assert (source / "t1.nii.gz").exists() == (how == "link")
            assert (Path(other) / files(Path(other))[1]).read_bytes() == b"voxels"

    @pytest.mark.parametrize("how", ["link", "copy", "symlink"])
    def test_physicians_folder_may_be_a_link_to_another_disk(self, source: Path, out: Path, how: str) -> None:
        if not OTHER_DISK.is_dir() or os.stat(OTHER_DISK).st_dev == os.stat(source.parent).st_dev:
            pytest.skip("needs /dev/shm to be another file system than the temporary folder")
        with tempfile.TemporaryDirectory(dir=OTHER_DISK) as other:
            out.mkdir()
            (out / "Smith_John").symlink_to(other)
            run([volume(source)], out, how=how)
            again = volume(source, data=b"again")

            records = run([again], out, how=how)

            assert states(records) == (["present"] * 2 if how == "symlink" else ["updated"] * 2)
            assert [Path(other, name).read_bytes() for name in files(Path(other))] == [b'{"about": "again"}', b"again"]
            assert of_type(run([again], out, how=how), "error") == []

    def test_mode_is_for_files_and_folders_alike(self, source: Path, out: Path) -> None:
        group = os.getgid()
        run([volume(source)], out)

        run([volume(source)], out, mode=0o640, group=str(group))

        assert {stat.S_IMODE((out / name).stat().st_mode) for name in files(out)} == {0o640}
        assert {stat.S_IMODE((out / name).stat().st_mode) for name in ("physicians.json", "sorted.jsonl")} == {0o640}

    def test_new_folders_can_be_looked_into_by_who_may_read(self, source: Path, out: Path) -> None:
        before = os.umask(0o077)
        try:
            run([volume(source)], out, mode=0o640)
        finally:
            os.umask(before)

        assert {stat.S_IMODE(path.stat().st_mode) for path in [out, *out.rglob("*")] if path.is_dir()} == {0o750}

    def test_default_is_private(self, source: Path, out: Path) -> None:
        run([volume(source)], out, how="copy")

        assert {stat.S_IMODE(path.stat().st_mode) for path in [out, *out.rglob("*")]} == {0o600, 0o700}

    def test_group_that_does_not_exist_is_a_usage_error(self, source: Path, out: Path) -> None:
        with pytest.raises(UsageError, match="no such group"):
            run([volume(source)], out, group="nobody-has-this-group")


class TestDryRun:
    def test_plan_is_what_happens_then(self, source: Path, out: Path) -> None:
        stream = [volume(source / "a"), volume(source / "b", data=b"x"), volume(source / "c", StudyInstanceUID="1.9")]

        plan = run(stream, out, dry_run=True)
        assert not out.exists()
        done = run(stream, out)

        assert {record["state"] for record in of_type(plan, "file")} == {"planned"}
        as_done = [{**one, "state": one["plan"]} for one in of_type(plan, "file")]
        assert [{key: one[key] for key in one if key != "plan"} for one in as_done] == of_type(done, "file")

    def test_plan_of_a_correction_changes_nothing(self, source: Path, out: Path) -> None:
        record = volume(source)
        run([record], out)
        before = snapshot(out)

        plan = run([{**record, "ReferringPhysicianName": "Doe"}], out, dry_run=True)

        assert [record["plan"] for record in plan] == ["moved", "moved"]
        assert snapshot(out) == before


class TestStream:
    def test_what_is_no_file_passes_through(self, source: Path, out: Path) -> None:
        others: list[Record] = [
            event("begin", command="move"),
            {"type": "error", "cause": "truncated", "reason": "x", "exit_code": 65},
            event("incomplete", StudyInstanceUID=STUDY, expected=2, received=1, missing=["1"]),
            {"type": "study", "StudyInstanceUID": "1"},
            {"type": "volume", "state": "failed", "path": "/nowhere"},
            {"type": "strange", "path": "/nowhere", "x": [1]},
            event("end", exit_code=0),
        ]

        assert run(others, out) == others

    def test_events_of_a_study_come_after_its_files(self, source: Path, out: Path) -> None:
        complete = [event(name, StudyInstanceUID=STUDY) for name in ("series-complete", "study-complete")]
        incomplete = event("incomplete", StudyInstanceUID=STUDY)

        records = run([volume(source), complete[0], incomplete, complete[1], event("end")], out)

        assert records[0] == incomplete
        assert states(records[1:3]) == ["linked", "linked"]
        assert records[3:] == [*complete, event("end")]

    def test_study_is_placed_as_soon_as_it_is_complete(self, source: Path, out: Path) -> None:
        asked: list[str] = []

        def stream() -> Iterator[Record]:
            yield volume(source)
            yield event("study-complete", StudyInstanceUID=STUDY)
            asked.append("next")
            yield volume(source / "b", StudyInstanceUID="1.9")

        sorting = sort(stream(), out)

        assert [next(sorting).get("state") for _ in range(3)] == ["linked", "linked", None]
        assert (asked, len(files(out))) == ([], 2)

    def test_study_without_its_event_is_placed_before_the_end(self, source: Path, out: Path) -> None:
        records = run([volume(source), event("end")], out)

        assert states(records) == ["linked", "linked"]
        assert records[-1] == event("end")

    def test_stop_is_heard_between_studies(self, source: Path, out: Path) -> None:
        stream = [volume(source / uid, StudyInstanceUID=uid) for uid in ("1", "2")]
        seen: list[Record] = []

        first = [stream[0], event("study-complete", StudyInstanceUID="1")]
        for record in sort([*first, stream[1]], out, stop=partial(any, seen)):
            seen += [record]

        assert states(seen) == ["linked", "linked"]
        assert states(run(stream, out)) == ["present"] * 2 + ["linked"] * 2

    def test_reader_that_goes_away_leaves_a_sound_tree(self, source: Path, out: Path) -> None:
        sorting = sort([volume(source)], out)
        next(sorting)
        sorting.close()  # type: ignore[attr-defined]

        assert json.loads((out / "physicians.json").read_text())["smith john"]["spellings"] == {"Smith^John": 1}
        assert states(run([volume(source)], out)) == ["present", "present"]


class TestFaults:
    def test_missing_file_is_an_error_record_and_the_rest_goes_on(self, source: Path, out: Path) -> None:
        stream = [volume(source / "a"), instance(source, 1), volume(source / "c", SeriesInstanceUID="8")]
        (source / "a" / "t1.json").unlink()
        Path(stream[1]["path"]).unlink()

        records = run(stream, out)

        errors = of_type(records, "error")
        assert [(one["cause"], one["exit_code"], one["state"]) for one in errors] == [("missing", 66, "failed")] * 2
        assert errors[1]["SOPInstanceUID"] == "1.2.3.4.1"
        assert states(of_type(records, "file")) == ["linked"] * 3

    def test_folder_or_pipe_for_a_source_is_an_error_record(self, source: Path, out: Path) -> None:
        stream = [instance(source, 1), instance(source, 2)]
        for record, make in zip(stream, (os.mkdir, os.mkfifo), strict=True):
            os.unlink(record["path"])
            make(record["path"])

        assert [one["cause"] for one in run(stream, out)] == ["not-a-file", "not-a-file"]

    def test_file_where_a_folder_should_be_is_an_error_record(self, source: Path, out: Path) -> None:
        out.mkdir()
        (out / "Smith_John").write_bytes(b"")

        records = run([volume(source), volume(source / "b", StudyInstanceUID="9", ReferringPhysicianName="Doe")], out)

        assert [one["exit_code"] for one in of_type(records, "error")] == [73, 73]
        assert states(of_type(records, "file")) == ["linked", "linked"]

    def test_path_that_is_too_long_is_an_error_record(self, source: Path, tmp_path: Path) -> None:
        deep = tmp_path
        while len(str(deep)) < 3700:
            deep = deep / ("d" * 200)
        long: dict[str, Any] = {
            "SeriesDescription": "s" * 300,
            "ReferringPhysicianName": "p" * 300,
            "AccessionNumber": "a" * 300,
        }

        records = run([volume(source, **long)], deep)

        assert [(one["type"], one["exit_code"]) for one in records] == [("error", 73)] * 2

    def test_full_disk_ends_the_run_after_the_bookkeeping(self, source: Path, out: Path) -> None:
        stream = [instance(source, number) for number in range(3)]
        Path(stream[1]["path"]).write_bytes(b"x" * 200_000)
        seen: list[Record] = []

        with file_size_limit(100_000), pytest.raises(DiskFull):
            seen.extend(sort(stream, out, SortOptions(how="copy")))

        assert states(seen) == ["copied"]
        assert states(run(stream, out, how="copy")) == ["present", "copied", "copied"]
        assert not list(out.rglob(".dcmtools-sort-*"))

    def test_full_disk_in_the_ledger_leaves_no_torn_line(self, source: Path, out: Path) -> None:
        run([volume(source)], out)
        size = (out / "sorted.jsonl").stat().st_size
        more = volume(source / "b", StudyInstanceUID="1.9")

        with file_size_limit(size + 10), pytest.raises(DiskFull):
            run([more], out)

        assert (out / "sorted.jsonl").stat().st_size == size
        assert states(run([more], out)) == ["present", "present"]

    def test_second_run_at_the_same_time_is_told_to_come_later(self, source: Path, out: Path) -> None:
        code = "import sys; from pathlib import Path; from dcmtools.files.sort_by_physician import sort\n"
        code += "list(sort(map(eval, sys.stdin), Path(sys.argv[1])))"
        with subprocess.Popen([sys.executable, "-c", code, str(out)], stdin=subprocess.PIPE, cwd=ROOT) as other:
            lock = out / ".dcmtools-lock"
            wait_until(lambda: lock.exists() and lock.stat().st_size, what="the other run")

            with pytest.raises(Locked) as told:
                run([volume(source)], out)

            assert other.stdin
            other.stdin.close()
            assert other.wait(20) == 0

        assert told.value.exit_code == 75
        assert states(run([volume(source)], out)) == ["linked", "linked"]

    def test_broken_registry_is_a_configuration_error(self, source: Path, out: Path) -> None:
        out.mkdir()
        (out / "physicians.json").write_text("{")

        with pytest.raises(ConfigurationError, match=r"physicians\.json"):
            run([volume(source)], out)

    def test_name_of_our_own_file_is_no_folder_for_nobody(self, source: Path, out: Path) -> None:
        with pytest.raises(UsageError):
            run([volume(source)], out, unknown="physicians.json")


hostile = st.one_of(
    st.text(max_size=40),
    st.sampled_from(
        ["..", "../../x", "/etc", "CON", "nul.txt", "y" * 300, "山" * 200, "a\0b", "\u202e\u200f", ".dcmtools-x"]
    ),
    st.sampled_from(
        ["sorted.jsonl", "physicians.json", "_unknown", "-", "A\\..\\B", "=/=..", ".", " ", "~2", "a" * 119 + "é"]
    ),
)
records_of_hostiles = st.fixed_dictionaries(
    dict.fromkeys(("ReferringPhysicianName", "StudyDate", "AccessionNumber", "StudyInstanceUID"), hostile),
    optional={
        "SeriesInstanceUID": hostile,
        "SeriesDescription": hostile,
        "SeriesNumber": st.one_of(st.integers(), hostile, st.none()),
        "file": st.one_of(
            st.sampled_from(["..nii.gz", "CON.nii", "z" * 240 + ".nii.gz", "a.b.c", "sorted.jsonl"]), hostile
        ),
    },
)


class TestHostileNames:
    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(keys=st.lists(records_of_hostiles, min_size=1, max_size=3), every=st.booleans(), ascii_only=st.booleans())
    def test_nothing_lands_outside_the_folder_whatever_the_names(
        self, keys: list[dict[str, Any]], every: bool, ascii_only: bool
    ) -> None:
        with tempfile.TemporaryDirectory() as folder:
            out, source = Path(folder, "a", "share"), Path(folder, "source")
            stream = [self.made(source / str(number), dict(one)) for number, one in enumerate(keys)]
            before = snapshot(source)

            options = SortOptions(multi="all" if every else "first", ascii=ascii_only, how="copy")
            records = list(sort(stream, out, options))

            assert {one.get("state") for one in of_type(records, "file")} <= {"copied", "present"}
            assert of_type(records, "error") == []
            assert {path.name for path in Path(folder).iterdir()} == {"a", "source"}
            assert [path.name for path in Path(folder, "a").iterdir()] == ["share"]
            assert snapshot(source) == before
            placed = [path for path in out.rglob("*") if path.parent != out or path.is_dir()]
            assert all(len(path.name.encode()) <= 120 for path in placed)
            assert all(Path(one["path"]).resolve().is_relative_to(out.resolve()) for one in of_type(records, "file"))

            whole = snapshot(out)
            assert {one.get("state", "present") for one in sort(stream, out, options)} == {"present"}
            assert snapshot(out) == whole

    @staticmethod
    def made(folder: Path, keys: dict[str, Any]) -> Record:
        folder.mkdir(parents=True)
        name = keys.pop("file", "t1.nii.gz").replace("/", "").replace("\0", "")
        name = name if name.strip(".") and len(name.encode()) < 250 else "odd"
        (folder / name).write_bytes(os.fsencode(folder))
        return {"type": "volume", "path": str(folder / name), **keys}


def test_kill_at_any_file_operation_loses_nothing_and_a_rerun_completes(tmp_path: Path) -> None:
    code = "import sys; from tests.files.test_sort_by_physician import kill_everywhere; kill_everywhere(sys.argv[1])"

    answer = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False, timeout=200
    )

    assert answer.returncode == 0, answer.stderr
    assert min(map(int, answer.stdout.split())) > 10  # so many places to be killed at, for each story


def kill_everywhere(folder: str) -> None:
    """Kills (SIGKILL) each story's last run at its first, second, ... file operation; its own process: it forks."""
    for name, story in STORIES.items():
        killed = 0
        while _killed_at(killed + 1, Path(folder, name, str(killed + 1)), story):
            killed += 1
        sys.stdout.write(f"{killed}\n")


Story = tuple[str, Callable[[Path], list[Record]], Callable[[Path], list[Record]]]


def _nothing(_: Path) -> list[Record]:
    return []


def _three(source: Path, **keys: Any) -> list[Record]:
    instances = [instance(source / "d", number, SeriesInstanceUID="7", **keys) for number in range(2)]
    return [volume(source / "a", AccessionNumber=None, **keys), *instances]


def _again(source: Path) -> list[Record]:
    """The same, but the volume was made anew by temp + rename."""
    for path in sorted((source / "a").iterdir()):
        (source / "new").write_bytes(b"new")
        (source / "new").replace(path)
    files_there = ["a/t1.nii.gz", "a/t1.json"]
    volumes = [{"type": "volume", "path": str(source / one), "StudyInstanceUID": STUDY} for one in files_there]
    keys = {"SeriesInstanceUID": SERIES, "SeriesNumber": 3, "SeriesDescription": "T1"}
    return [{**one, **keys, "ReferringPhysicianName": "Smith^John"} for one in volumes]


STORIES: dict[str, Story] = {
    "linked": ("link", _nothing, _three),
    "copied": ("copy", _nothing, _three),
    "moved": ("move", _nothing, _three),
    "corrected": ("link", _three, lambda source: _three(source, ReferringPhysicianName="Doe^Jane")),
    "corrected-copy": ("copy", _three, lambda source: _three(source, ReferringPhysicianName="Doe^Jane")),
    "updated": ("link", _three, _again),
}


def _killed_at(operation: int, folder: Path, story: Story) -> bool:
    how, before, after = story
    source, out = folder / "source", folder / "share"
    source.mkdir(parents=True)
    run(before(source), out, how=how)
    stream = after(source)
    contents = {name: (source / name).read_bytes() for name in _names(source)}

    child = os.fork()
    if child == 0:
        _die_at(operation)
        run(stream, out, how=how)
        os._exit(0)
    killed = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL

    kept = [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
    assert all(data in kept for data in contents.values()), "a file was lost"
    visible = [path for path in out.rglob("*") if ".dcmtools" not in str(path.relative_to(out)) and path.parent != out]
    assert all(path.is_dir() or path.read_bytes() in {*contents.values(), *_older(path)} for path in visible), "torn"

    if before is _nothing:
        assert len([path for path in visible if path.is_file()]) in {0, len(contents)}, "half a study"

    records = run(stream, out, how=how)
    assert of_type(records, "error") == [], records
    whole = snapshot(out)
    tree = {Path(name).name: (out / name).read_bytes() for name in files(out)}
    assert tree == {Path(name).name: data for name, data in contents.items()}, (tree, operation)
    assert len({Path(name).parts[0] for name in files(out)}) == 1, (files(out), operation, how)
    assert [path.name for path in out.iterdir() if path.name.startswith(".dcmtools-sort")] == []
    assert set(states(run(stream, out, how=how))) == {"present"}
    assert snapshot(out) == whole
    assert [decode(line) for line in (out / "sorted.jsonl").open()]
    return killed


def _names(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]


def _older(path: Path) -> list[bytes]:
    return [b"voxels", b'{"about": "voxels"}'] if path.suffix in {".gz", ".json"} else []


def _die_at(operation: int) -> None:
    """Sends SIGKILL to this process when its n-th change of the file system is about to happen."""
    count = 0

    def hook(name: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        writes = name in {"os.link", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.symlink", "os.truncate"}
        if writes or (
            name == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_CREAT | os.O_DIRECTORY)
        ):
            count += 1
            if count == operation:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """No file of this process may grow beyond so many bytes: write() then fails as on a full disk (EFBIG)."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class TestSuperseded:
    """A volume that a conversion has replaced does not stand beside the new one."""

    def replaced(self, source: Path, **keys: Any) -> Record:
        """The record of the volume as a later conversion writes it; the older one is gone with its sidecar."""
        for path in source.glob("t1.*"):
            path.unlink()
        return volume(source / "again", "new.nii.gz", **keys)

    def test_volume_that_became_suspect_stands_as_suspect_only(self, source: Path, out: Path) -> None:
        run([volume(source)], out)

        records = run([self.replaced(source, state="suspect")], out)

        assert sorted(states(records)) == ["linked", "linked", "removed", "removed"]
        gone = [one for one in records if one["state"] == "removed"]
        assert {(one["type"], one["SeriesInstanceUID"]) for one in gone} == {("file", SERIES)}
        assert [name.split("/")[2] for name in files(out)] == ["_suspect", "_suspect"]
        assert not list((out / "Smith_John" / "20240102_A1").glob("0003*"))

    def test_changed_description_leaves_no_older_folder(self, source: Path, out: Path) -> None:
        run([volume(source)], out)

        run([self.replaced(source, SeriesDescription="T2")], out)

        assert {name.split("/")[2] for name in files(out)} == {f"0003_T2_{short_hash(SERIES)}"}

    def test_it_goes_when_the_study_goes_to_another_physician(self, source: Path, out: Path) -> None:
        run([volume(source)], out)

        run([self.replaced(source, ReferringPhysicianName="Doe^Jane")], out)

        assert [name.partition("/")[0] + "/" + Path(name).name for name in files(out)] == [
            "Doe_Jane/new.json",
            "Doe_Jane/new.nii.gz",
        ]

    def test_volume_whose_source_is_there_stays(self, source: Path, out: Path) -> None:
        run([volume(source)], out)

        run([volume(source / "b", "second.nii.gz")], out)

        assert len(files(out)) == 4

    def test_other_series_and_instances_stay(self, source: Path, out: Path) -> None:
        run([volume(source), volume(source / "b", "o.nii", SeriesInstanceUID="1.9"), instance(source, 1)], out)
        (source / "b" / "o.nii").unlink()
        (source / "1.2.3.4.1.dcm").unlink()

        run([self.replaced(source)], out)

        assert {Path(name).name for name in files(out)} == {
            "new.json", "new.nii.gz", "o.json", "o.nii", "1.2.3.4.1.dcm",
        }  # fmt: skip

    @pytest.mark.parametrize("first", ["move", "link"])
    def test_volume_that_was_moved_here_stays(self, source: Path, out: Path, first: str) -> None:
        run([volume(source)], out, how=first)
        run([volume(source)], out, how="move")

        run([volume(source / "b", "echo2.nii.gz")], out, how="move")

        assert [Path(name).name for name in files(out)] == ["echo2.json", "echo2.nii.gz", "t1.json", "t1.nii.gz"]

    def test_older_volume_stays_when_the_new_one_cannot_be_placed(self, source: Path, out: Path) -> None:
        run([volume(source)], out)
        new = self.replaced(source)
        Path(new["path"]).unlink()
        Path(new["path"]).mkdir()

        records = run([new], out)

        assert "failed" in states(records)
        assert "t1.nii.gz" in {Path(name).name for name in files(out)}


def test_reason_never_has_the_path_of_a_volume(source: Path, out: Path) -> None:
    gone = volume(source / "DOE_John", "gone.nii.gz")
    Path(gone["path"]).unlink()
    odd = volume(source / "DOE_John" / "b", "odd.nii.gz", SeriesInstanceUID="1.9")
    Path(odd["path"]).unlink()
    Path(odd["path"]).mkdir()
    inside = volume(out / "DOE_John", "inside.nii.gz", SeriesInstanceUID="1.8")

    errors = of_type(run([gone, odd, inside], out), "error")

    assert {gone["path"], odd["path"], inside["path"]} <= {one["path"] for one in errors}
    assert not any("DOE" in one["reason"] for one in errors)
