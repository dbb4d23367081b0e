import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from dcmtools.disk import scanning
from dcmtools.disk.header import read_header
from dcmtools.disk.index import Index
from dcmtools.disk.parallel import in_processes
from dcmtools.files import referencing
from dcmtools.files.referencing import index_paths
from dcmtools.model.record import encode
from tests.builders import uid, write_instance, write_series


@pytest.fixture
def index(tmp_path: Path) -> Index:
    return Index(tmp_path / "index" / "index.jsonl")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_series(tmp_path / "data" / "a", 3)
    write_series(tmp_path / "data" / "b", 2, 2)
    return tmp_path / "data"


def states(records: Any) -> Counter[str]:
    return Counter(str(record.get("state") or record["cause"]) for record in records)


def paths(index: Index) -> set[str]:
    return {str(record["path"]) for record in index.instances()}


def test_files_are_indexed_where_they_lie(index: Index, folder: Path) -> None:
    records = list(index_paths([folder], index))

    assert states(records) == {"indexed": 5}
    assert list(index.instances()) == [{key: record[key] for key in record if key != "state"} for record in records]
    assert [read_header(record["path"]) for record in index.instances()] == list(index.instances())


def test_unchanged_files_are_not_read_again_and_add_no_line(
    index: Index, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = list(index_paths([folder], index))
    before = index.file.read_bytes()
    monkeypatch.setattr(scanning, "read_header", lambda *_, **__: pytest.fail("it was read"))

    records = list(index_paths([folder], index))

    assert records == [{**record, "state": "present"} for record in first]
    assert index.file.read_bytes() == before


def test_changed_file_is_read_again(index: Index, folder: Path) -> None:
    list(index_paths([folder], index))
    changed = write_instance(folder / "a" / "1-1-1-1.dcm", StudyDescription="corrected")

    records = list(index_paths([folder], index))

    assert states(records) == {"present": 4, "indexed": 1}
    assert index.by_paths([changed])[str(changed)]["StudyDescription"] == "corrected"
    assert len(paths(index)) == 5


def test_file_that_holds_another_instance_now_is_no_longer_the_old_one(index: Index, folder: Path) -> None:
    list(index_paths([folder], index))
    write_instance(folder / "a" / "1-1-1-1.dcm", 7)

    assert states(index_paths([folder], index)) == {"present": 4, "indexed": 1}

    assert index.lookup([uid(1, 1, 1, 1)]) == {}
    assert uid(7, 1, 1, 1) in index.lookup([uid(7, 1, 1, 1)])


def test_file_that_went_bad_is_no_longer_an_answer(index: Index, folder: Path) -> None:
    list(index_paths([folder], index))
    (folder / "a" / "1-1-1-1.dcm").write_text("overwritten")

    assert states(index_paths([folder], index)) == {"present": 4, "not-dicom": 1}
    assert index.lookup([uid(1, 1, 1, 1)]) == {}


def test_folder_that_was_moved_is_found_where_it_is(index: Index, folder: Path) -> None:
    list(index_paths([folder], index))
    moved = folder.rename(folder.with_name("moved"))

    assert states(index_paths([moved], index)) == {"indexed": 5}
    assert all(path.startswith(str(moved)) for path in paths(index))


def test_files_that_are_gone_stay_until_told_otherwise(index: Index, folder: Path) -> None:
    list(index_paths([folder], index))
    shutil.rmtree(folder / "a")

    assert states(index_paths([folder], index)) == {"present": 2}
    assert len(paths(index)) == 5


def test_same_data_set_twice_is_one_record(index: Index, folder: Path) -> None:
    shutil.copytree(folder, folder / "z copy")

    records = list(index_paths([folder], index))
    before = index.file.read_bytes()
    again = list(index_paths([folder], index))

    assert states(records) == {"indexed": 5, "present": 5}
    assert states(again) == {"present": 10}
    for found in (records, again):
        assert {record["path"] for record in found} == paths(index)
    assert {record["source"] for record in records if record["state"] == "present"} == {
        str(path) for path in (folder / "z copy").rglob("*.dcm")
    }
    assert index.file.read_bytes() == before

    shutil.rmtree(folder / "a")
    index.forget(list(index.by_series(uid(1, 1, 1))))
    assert {path for path in paths(index) if "z copy" in path} == {
        str(path) for path in (folder / "z copy" / "a").iterdir()
    }


def test_other_content_of_one_uid_is_kept_and_reported_each_time(index: Index, folder: Path) -> None:
    other = write_instance(folder / "z" / "other.dcm", PatientID="OTHER")

    for run in range(2):
        records = list(index_paths([folder], index))
        assert states(records) == {"present" if run else "indexed": 5, "conflict": 1}
        conflict = next(record for record in records if record["state"] == "conflict")
        assert conflict["path"] == str(other)
        assert conflict["duplicate_of"] == str(folder / "a" / "1-1-1-1.dcm")
    assert str(other) not in paths(index)


def test_bad_files_do_not_stop_the_good_ones(index: Index, folder: Path) -> None:
    (folder / "a" / "text").write_text("hello")
    (folder / "a" / "cut").write_bytes((folder / "a" / "1-1-1-1.dcm").read_bytes()[:-3])
    os.mkfifo(folder / "a" / "fifo")

    records = list(index_paths([folder, folder / "nothing"], index))

    assert states(records) == {"indexed": 5, "not-dicom": 1, "truncated": 1, "missing": 1}
    assert all(encode(record) for record in records)


def test_links_are_indexed_when_they_are_to_be_followed(index: Index, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "a").symlink_to(folder / "a")
    (tmp_path / "links" / "1").symlink_to(folder / "b" / "2-1-1-1.dcm")

    assert states(index_paths([tmp_path / "links"], index)) == {}
    assert states(index_paths([tmp_path / "links"], index, follow=True)) == {"indexed": 4}
    assert states(index_paths([tmp_path / "links"], index, follow=True)) == {"present": 4}
    assert str(tmp_path / "links" / "1") in paths(index)


def test_names_of_any_kind_are_kept(index: Index, folder: Path) -> None:
    odd = folder / os.fsdecode(b"\xff\n.dcm")
    (folder / "a" / "1-1-1-1.dcm").rename(odd)

    assert states(index_paths([folder], index)) == {"indexed": 5}
    assert states(index_paths([folder], index)) == {"present": 5}
    assert index.lookup([uid(1, 1, 1, 1)])[uid(1, 1, 1, 1)]["path"].endswith("/\\xff\n.dcm")


def test_stop_ends_after_what_was_begun(index: Index, folder: Path) -> None:
    asked = itertools.count()

    assert states(index_paths([folder], index, stop=lambda: next(asked) >= 2)) == {"indexed": 2}
    assert len(paths(index)) == 2


def test_records_come_out_when_they_are_durable(index: Index, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(referencing, "BATCH", 2)

    next(index_paths([folder], index))

    assert len(paths(index)) == 2


def test_two_runs_at_once_add_each_file_once(index: Index, folder: Path) -> None:
    """The other run ends while this one has read the files and not yet told of them."""
    other = Index(index.file)
    runs = 0

    def stop() -> bool:
        nonlocal runs
        runs += 1
        if runs == 5:
            assert states(index_paths([folder], other)) == {"indexed": 5}
        return False

    assert states(index_paths([folder], index, stop=stop)) == {"present": 5}
    assert len(index.file.read_bytes().splitlines()) == 5


def test_what_would_be_done_is_planned_and_nothing_is_written(index: Index, folder: Path) -> None:
    records = list(index_paths([folder], index, dry_run=True))

    assert {(record["state"], record["plan"]) for record in records} == {("planned", "indexed")}
    assert not index.file.exists()


def test_processes_find_what_one_finds(index: Index, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "a" / "text").write_text("hello")
    monkeypatch.setattr(referencing, "CHUNK", 2)
    records = list(index_paths([folder], index, dry_run=True))

    assert list(index_paths([folder], index, dry_run=True, spread=partial(in_processes, 2))) == records
    assert len(records) == 6


INDEX = """
    import sys
    from dcmtools.disk.index import Index
    from dcmtools.files import referencing
    referencing.BATCH = 5
    for record in referencing.index_paths([sys.argv[1]], Index(sys.argv[2])):
        print(record["SOPInstanceUID"], flush=True)
"""


def test_kills_at_any_moment_leave_nothing_that_the_next_run_does_not_mend(index: Index, tmp_path: Path) -> None:
    for number in range(1, 4):
        write_series(tmp_path / "data", 60, number)
    shutil.copytree(tmp_path / "data", tmp_path / "data" / "z")
    command = [sys.executable, "-c", textwrap.dedent(INDEX), str(tmp_path / "data")]
    chance = random.Random(3)
    told: set[str] = set()

    for _ in range(8):
        with subprocess.Popen([*command, str(index.file)], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout
            for _ in range(chance.randrange(1, 60)):
                told.add(process.stdout.readline().strip())
            process.send_signal(signal.SIGKILL)
        assert told <= set(index.lookup(told))
    undisturbed = Index(tmp_path / "other" / "index.jsonl")
    for file in (index.file, undisturbed.file):
        subprocess.run([*command, str(file)], check=True, capture_output=True)

    assert list(index.instances()) == list(undisturbed.instances())
    assert index.file.read_bytes() == undisturbed.file.read_bytes()
    assert len(paths(index)) == 180


def test_whole_fmri_series_is_indexed(index: Index, data: Path, tmp_path: Path) -> None:
    if not (packed := data / "fmri-philips-5460.tar.xz").exists():
        pytest.skip("needs fmri-philips-5460.tar.xz in the folder with real data")
    subprocess.run(["tar", "xf", packed, "-C", tmp_path], check=True)

    assert states(index_paths([tmp_path], index)) == {"indexed": 5460}
    assert states(index_paths([tmp_path], index)) == {"present": 5460}


def test_files_that_exchange_their_names_stay_what_they_are(tmp_path: Path) -> None:
    index = Index(tmp_path / "index.jsonl")
    files = [write_instance(tmp_path / "in" / f"IM{number}", 1, 1, 1, number) for number in range(1, 4)]
    for number, path in enumerate(files):
        os.utime(path, ns=(number, number))
    list(index_paths([tmp_path / "in"], index))
    for path in files:
        path.rename(path.with_suffix(".old"))
    for path, other in zip(files, [*files[1:], files[0]], strict=True):
        path.with_suffix(".old").rename(other)

    told = list(index_paths([tmp_path / "in"], index))

    assert [record["state"] for record in told] == ["indexed"] * 3
    answers = {record["InstanceNumber"]: Path(record["path"]).name for record in index.instances()}
    assert answers == {1: "IM2", 2: "IM3", 3: "IM1"}
