import os
import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest

from dcmtools.disk.index import Index
from dcmtools.files.referencing import index_paths
from dcmtools.files.refreshing import known_folders, prune, racily_clean, rebuild
from dcmtools.model.record import Record, event
from tests.builders import uid, write_instance, write_series

HOUR_NS = 3600 * 10**9


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_series(tmp_path / "data" / "a", 3)
    write_series(tmp_path / "data" / "b", 2, 2)
    return tmp_path / "data"


@pytest.fixture
def index(tmp_path: Path, folder: Path) -> Index:
    index = Index(tmp_path / "index" / "index.jsonl")
    list(index_paths([folder], index))
    return index


def states(records: Iterable[Record]) -> Counter[str]:
    return Counter(str(record.get("state") or record["cause"]) for record in records)


def paths(index: Index) -> set[str]:
    return {str(record["path"]) for record in index.instances()}


def test_known_folders_are_the_outermost(index: Index, folder: Path) -> None:
    assert known_folders(index) == [str(folder / "a"), str(folder / "b")]
    write_instance(folder / "top.dcm", 9)
    write_instance(folder / "a-b" / "one.dcm", 8)

    list(index_paths([folder], index))

    assert known_folders(index) == [str(folder)]


def test_file_changed_in_the_tick_of_the_index_is_read_again(index: Index, folder: Path) -> None:
    path = folder / "a" / "1-1-1-1.dcm"
    before = path.stat()
    content = path.read_bytes().replace(uid(1, 1, 1, 1).encode(), uid(1, 1, 1, 7).encode())
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    assert states(index_paths([folder], index)) == {"present": 5}
    assert states(index_paths([folder], index, doubt=racily_clean(index))) == {"present": 4, "indexed": 1}
    assert uid(1, 1, 1, 7) in index.lookup([uid(1, 1, 1, 7)])
    assert not index.lookup([uid(1, 1, 1, 1)])


def test_what_was_read_again_for_nothing_adds_no_line(index: Index, folder: Path) -> None:
    before = index.file.read_bytes()

    assert states(index_paths([folder], index, doubt=racily_clean(index))) == {"present": 5}
    assert index.file.read_bytes() == before


def test_old_files_are_not_doubted(index: Index) -> None:
    record = next(index.instances())

    doubt = racily_clean(index)

    assert doubt(record)
    assert not doubt({**record, "mtime_ns": str(int(record["mtime_ns"]) - HOUR_NS)})


def test_files_that_are_gone_are_taken_out(index: Index, folder: Path) -> None:
    gone = folder / "a" / "1-1-1-1.dcm"
    gone.unlink()

    planned = list(prune(index, [str(folder)], dry_run=True))
    assert [(one["state"], one["plan"], one["path"]) for one in planned] == [("planned", "removed", str(gone))]
    assert len(paths(index)) == 5
    assert [(one["state"], one["path"]) for one in prune(index, [str(folder)])] == [("removed", str(gone))]
    assert len(paths(index)) == 4
    assert list(prune(index, [str(folder)])) == []


def test_when_most_of_a_folder_is_gone_nothing_is_taken_out_unless_confirmed(index: Index, folder: Path) -> None:
    shutil.rmtree(folder / "a")

    (refused,) = prune(index, [str(folder)])

    assert (refused["type"], refused["exit_code"], refused["cause"]) == ("error", 3, "vanished")
    assert len(paths(index)) == 5
    assert states(prune(index, [str(folder)], yes=True)) == {"removed": 3}
    assert paths(index) == {str(path) for path in (folder / "b").iterdir()}


def test_without_a_folder_the_nearest_one_that_is_left_tells_how_much_is_gone(index: Index, folder: Path) -> None:
    shutil.rmtree(folder / "b")
    assert states(prune(index)) == {"removed": 2}

    for path in (folder / "a").iterdir():
        path.unlink()  # as where a disk is not mounted
    (refused,) = prune(index)

    assert (refused["path"], refused["cause"]) == (str(folder / "a"), "vanished")
    assert len(paths(index)) == 3


def test_only_what_lies_below_the_folder_is_taken_out(index: Index, folder: Path) -> None:
    shutil.rmtree(folder / "a")

    assert list(prune(index, [str(folder / "b"), str(folder / "a-b")])) == []
    assert len(paths(index)) == 5


def test_rebuilt_index_is_that_of_the_files_with_the_events_kept(index: Index, folder: Path) -> None:
    (folder / "a" / "1-1-1-1.dcm").unlink()
    index.append([event("series-complete", SeriesInstanceUID=uid(1, 1, 1))])
    other = Index(index.file.parent / "other" / "index.jsonl")
    list(index_paths([folder], other))

    assert states(rebuild(index_paths, [folder], index)) == {"indexed": 4}

    assert list(index.instances()) == list(other.instances())
    assert [one["event"] for one in index.events()] == ["series-complete"]
    left = {path.name for path in index.file.parent.iterdir() if not path.name.startswith("index.sqlite")}
    assert left == {"index.jsonl", "index.lock", "other"}


def test_what_another_adds_during_a_rebuild_is_kept(index: Index, folder: Path) -> None:
    extra = write_instance(folder.parent / "elsewhere.dcm", 9)
    records = rebuild(index_paths, [folder], index)
    next(records)
    list(index_paths([extra], Index(index.file)))

    list(records)

    assert len(paths(index)) == 6
    assert str(extra) in paths(index)


def test_index_stays_when_its_files_are_not_there_or_the_run_is_stopped(index: Index, folder: Path) -> None:
    before = index.file.read_bytes()
    shutil.rmtree(folder / "a")

    (*_, refused) = rebuild(index_paths, [folder], index)
    list(rebuild(index_paths, [folder], index, yes=True, stop=lambda: True))

    assert (refused["cause"], refused["exit_code"]) == ("vanished", 3)
    assert index.file.read_bytes() == before
    assert states(rebuild(index_paths, [folder], index, yes=True)) == {"indexed": 2}
    assert len(paths(index)) == 2


def test_rebuilt_index_keeps_its_mode_and_finds_what_was_a_second_copy(index: Index, folder: Path) -> None:
    copy = folder.parent / "copies" / "same.dcm"
    copy.parent.mkdir()
    copy.write_bytes((folder / "a" / "1-1-1-1.dcm").read_bytes())
    list(index_paths([copy], index))
    index.file.chmod(0o640)

    assert str(copy.parent) in known_folders(index)
    list(rebuild(index_paths, known_folders(index), index))

    assert sorted(len(files) for files in index.everywhere(uids_of(index)).values()) == [1, 1, 1, 1, 2]
    assert index.file.stat().st_mode & 0o777 == 0o640


def test_file_that_came_back_is_not_forgotten(index: Index, folder: Path) -> None:
    path = folder / "a" / "1-1-1-1.dcm"
    content = path.read_bytes()
    path.unlink()

    asked: list[None] = []

    def comes_back() -> bool:  # after all files were looked at, and before anything is forgotten
        asked.append(None)
        if len(asked) > 5:
            path.write_bytes(content)
        return False

    assert list(prune(index, [str(folder)], stop=comes_back)) == []
    assert len(asked) == 6
    assert len(paths(index)) == 5


def uids_of(index: Index) -> list[str]:
    return [record["SOPInstanceUID"] for record in index.instances()]
