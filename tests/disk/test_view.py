import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from dcmtools.disk import view, view_place
from dcmtools.disk.index import Index
from dcmtools.disk.view_place import cached_view
from dcmtools.model.query import Query
from dcmtools.model.record import Record, encode
from tests.builders import make_record, uid


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def index(tmp_path: Path) -> Index:
    index = Index(tmp_path / "archive" / "index.jsonl")
    index.append(inside(index, number) for number in range(5))
    return index


def inside(index: Index, number: int) -> Record:
    record = make_record(1, 1, 1, number)
    return {**record, "path": f"{index.root}/{record['SOPInstanceUID']}.dcm"}


def view_of(index: Index) -> Path:
    return index.file.with_suffix(".sqlite")


def found(index: Index) -> list[Any]:
    """The numbers of all instances, as a process that has not seen the index before finds them."""
    return [record["InstanceNumber"] for record in Index(index.file).instances()]


def test_view_lies_beside_the_index_and_is_nobody_elses_to_read(index: Index) -> None:
    assert found(index) == [0, 1, 2, 3, 4]

    assert view_of(index).stat().st_mode & 0o777 == 0o600
    assert not cached_view(index.file).exists()


@pytest.mark.parametrize("damage", ["header", "middle", "empty", "cut", "other version"])
def test_damaged_view_is_made_anew(index: Index, damage: str) -> None:
    found(index)
    view = view_of(index)
    content = view.read_bytes()
    match damage:
        case "header":
            view.write_bytes(content[:20] + b"\xff" * 20 + content[40:])
        case "middle":
            view.write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))
        case "empty":
            view.write_bytes(b"")
        case "cut":
            view.write_bytes(content[: len(content) // 2])
        case "other version":
            with sqlite3.connect(view) as connection:
                connection.execute("PRAGMA user_version = 99")
            connection.close()

    index.append([inside(index, 5)])

    assert found(index) == [0, 1, 2, 3, 4, 5]
    assert found(index) == [0, 1, 2, 3, 4, 5]


def test_file_of_somebody_else_under_the_name_of_the_view_is_left_alone(index: Index) -> None:
    with sqlite3.connect(view_of(index)) as theirs:
        theirs.execute("CREATE TABLE precious (value)")
    theirs.close()
    before = view_of(index).read_bytes()

    assert found(index) == [0, 1, 2, 3, 4]

    assert view_of(index).read_bytes() == before
    assert cached_view(index.file).exists()


def test_view_of_an_archive_on_a_network_file_system_lies_in_the_cache(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = tmp_path / "mountinfo"
    point = str(index.file.parent).replace(" ", "\\040")
    mounts.write_text(f"22 1 0:21 / / rw shared:1 - ext4 /dev/vda rw\n36 22 0:32 / {point} rw - nfs4 server:/x rw\n")
    monkeypatch.setattr(view_place, "_MOUNTS", str(mounts))

    assert found(index) == [0, 1, 2, 3, 4]

    assert not view_of(index).exists()
    assert cached_view(index.file).stat().st_mode & 0o777 == 0o600


def test_where_no_view_can_be_written_the_answers_are_the_same(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    view_of(index).mkdir()
    (tmp_path / "no-folder").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "no-folder"))
    other = Index(index.file)

    assert [one["InstanceNumber"] for one in other.instances()] == [0, 1, 2, 3, 4]
    index.append([inside(index, 5)])
    assert [one["InstanceNumber"] for one in other.instances()] == [0, 1, 2, 3, 4, 5]
    assert list(other.lookup([uid(1, 1, 1, 5)])) == [uid(1, 1, 1, 5)]


def test_moved_archive_answers_with_its_new_paths(index: Index, tmp_path: Path) -> None:
    found(index)
    moved = (tmp_path / "archive").rename(tmp_path / "moved")

    (first, *_) = Index(moved / "index.jsonl").instances()

    assert first["path"].startswith(f"{moved}/")


def test_restored_index_of_the_same_size_is_noticed(index: Index) -> None:
    found(index)
    content = index.file.read_bytes()

    index.file.write_bytes(content.replace(b'"InstanceNumber":4', b'"InstanceNumber":9'))

    assert found(index) == [0, 1, 2, 3, 9]


def test_long_reader_is_not_disturbed_and_disturbs_nobody(index: Index) -> None:
    index.append(inside(index, number) for number in range(5, 200))
    reader = Index(index.file).instances()
    first = next(reader)

    index.append([inside(index, 200)])
    assert len(found(index)) == 201
    index.file.with_name("new").write_bytes(encode(inside(index, 7)))
    index.file.with_name("new").rename(index.file)
    assert found(index) == [7]

    assert [one["InstanceNumber"] for one in (first, *reader)] == list(range(200))


def test_process_killed_while_it_makes_the_view_leaves_nothing_to_mend(index: Index) -> None:
    index.append(inside(index, number) for number in range(5, 3000))
    code = textwrap.dedent("""
        import os, signal, sys
        from dcmtools.disk import view_fill
        view_fill.make_indexes = lambda view: os.kill(os.getpid(), signal.SIGKILL)
        from dcmtools.disk.index import Index
        list(Index(sys.argv[1]).instances())
    """)

    done = subprocess.run([sys.executable, "-c", code, str(index.file)], check=False)

    assert done.returncode == -signal.SIGKILL
    assert view_of(index).exists()
    assert len(found(index)) == 3000


def test_many_processes_make_and_catch_up_one_view(index: Index) -> None:
    code = textwrap.dedent("""
        import sys
        from dcmtools.disk.index import Index
        from dcmtools.model.query import Query
        from tests.builders import make_record
        index, number = Index(sys.argv[1]), int(sys.argv[2])
        for instance in range(30):
            record = make_record(number, 1, 1, instance)
            index.append([{**record, "path": f"{index.root}/{record['SOPInstanceUID']}.dcm"}])
            if instance % 5 == 0:
                (study,) = index.find(Query("study", {"PatientID": f"P{number}"}))
                assert study["NumberOfStudyRelatedInstances"] == instance + 1
    """)
    run = [sys.executable, "-c", code, str(index.file)]

    workers = [subprocess.Popen([*run, str(number)], cwd=Path(__file__).parents[2]) for number in range(2, 6)]

    assert [worker.wait() for worker in workers] == [0, 0, 0, 0]
    assert len(found(index)) == 125
    assert list(index.find(Query())) == list(index.scan(Query()))


def test_descriptors_are_given_back(index: Index) -> None:
    list(index.instances())
    before = len(os.listdir("/proc/self/fd"))

    for number in range(20):
        index.append([inside(index, 5 + number)])
        list(index.instances())
        index.lookup([uid(1, 1, 1, number)])
        next(index.instances())

    assert len(os.listdir("/proc/self/fd")) <= before


def test_view_that_somebody_removes_is_made_anew(index: Index) -> None:
    assert len(list(index.instances())) == 5
    for file in index.file.parent.glob("index.sqlite*"):
        file.unlink()
    assert len(list(index.instances())) == 5

    for file in index.file.parent.glob("index.sqlite*"):
        file.unlink()
    assert len(found(index)) == 5  # by somebody else, who made another one
    index.append([inside(index, 5)])
    assert len(list(index.instances())) == 6
    assert index.compact().lines == 6
    assert len(list(index.instances())) == 6


def test_newest_lines_are_those_of_the_file_that_is_there_now(index: Index) -> None:
    uids = [uid(1, 1, 1, number) for number in range(12)]
    assert set(index.lookup(uids)) == set(uids[:5])  # before there is any view

    new = index.file.with_name("new")
    new.write_bytes(b"".join(encode(inside(index, number)) for number in range(4, 12)))
    new.rename(index.file)
    assert set(index.lookup(uids)) == set(uids[4:])
    assert all(record["SOPInstanceUID"] == name for name, record in index.lookup(uids).items())

    index.file.write_bytes(b"".join(encode(inside(index, number)) for number in (11, 10, 9, 8, 7, 6, 5, 4)))
    assert all(record["SOPInstanceUID"] == name for name, record in index.lookup(uids).items())


@pytest.mark.parametrize(
    "line",
    [
        '{"PatientID":5,"x":' + "[" * 5000 + "]" * 5000 + "}",
        '{"type":"event","x":' + "[" * 5000 + "]" * 5000 + "}",
        '{"SOPInstanceUID":"1.2.3","path":"/x/a\\u0000b.dcm","mtime_ns":"x"}',
        '{"SOPInstanceUID":"1.2.3","path":"/x","size":' + "9" * 40 + "}",
    ],
)
def test_hostile_line_harms_nobody(index: Index, line: str) -> None:
    with index.file.open("a") as out:
        out.write(f"{line}\n")

    index.append([inside(index, 5)])

    assert len([one for one in index.instances() if one["SOPInstanceUID"] != "1.2.3"]) == 6
    assert len(index.catch_up()) >= 6
    assert list(index.find(Query())) == list(index.scan(Query()))


def test_sizes_beyond_all_measure_are_added_up(index: Index) -> None:
    index.append({**inside(index, number), "size": (1 << 60) - 1} for number in range(20))

    assert len(list(index.find(Query("series")))) == 1


def test_reader_of_another_process_is_never_told_of_other_instances_during_compactions(index: Index) -> None:
    code = textwrap.dedent("""
        import sys
        from dcmtools.disk.index import Index
        from tests.builders import make_record
        index = Index(sys.argv[1])
        for number in range(60):
            index.append(make_record(2, 1, 1, number, path=f"/{number}/{again}") for again in range(3))
            index.forget([make_record(2, 1, 1, number, path=f"/{number}/0")])
            index.compact()
    """)
    wanted = [uid(1, 1, 1, number) for number in range(5)]

    with subprocess.Popen([sys.executable, "-c", code, str(index.file)], cwd=Path(__file__).parents[2]) as other:
        while other.poll() is None:
            assert {name: one["SOPInstanceUID"] for name, one in index.lookup(wanted).items()} == dict(
                zip(wanted, wanted, strict=True)
            )
            assert {one["SOPInstanceUID"] for one in index.by_series(uid(1, 1, 1))} == set(wanted)

    assert other.returncode == 0
    assert list(index.find(Query())) == list(index.scan(Query()))


def test_view_stays_where_it_is_when_one_writer_adds_more_than_is_looked_at_in_memory(
    index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(view, "LONGEST", 2000)
    assert len(list(index.instances())) == 5

    for start in range(5, 105, 20):
        index.append(inside(index, number) for number in range(start, start + 20))
        assert len(index.lookup([uid(1, 1, 1, number) for number in range(start + 20)])) == start + 20

    assert index.statistics()["view"] == str(view_of(index))
    assert not cached_view(index.file).exists()
