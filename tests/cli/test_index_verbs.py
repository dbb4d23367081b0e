"""dcmtools index check, stats, compact and export as processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dcmtools.disk.index import Index
from dcmtools.model.query import Query
from dcmtools.model.record import event
from tests.cli.conftest import records
from tests.conftest import RunDcmtools


def test_stats_tell_how_much_there_is(dcmtools: RunDcmtools, filled: Path) -> None:
    (told,) = records(dcmtools("index", "stats", "--archive", filled).stdout)

    counts = {key: told[key] for key in ("patients", "studies", "series", "instances", "files", "bad_lines")}
    assert counts == {"patients": 3, "studies": 3, "series": 6, "instances": 75, "files": 75, "bad_lines": 0}
    assert told["modalities"] == {"MR": 72, "SR": 3}
    assert told["size"] == sum(path.stat().st_size for path in filled.rglob("*.dcm"))
    assert told["date_range"] == "20240131"


def test_check_finds_nothing_wrong_with_a_good_archive(dcmtools: RunDcmtools, archive: Path) -> None:
    done = dcmtools("index", "check", "--read", "--archive", archive)

    assert done.returncode == 0, done.stderr
    (told,) = records(done.stdout)
    assert (told["state"], told["lines"], told["instances"], told["problems"]) == ("ok", 75, 75, 0)


def test_check_names_each_thing_that_is_wrong(dcmtools: RunDcmtools, archive: Path) -> None:
    gone, touched, *_ = sorted(archive.rglob("*.dcm"))
    gone.unlink()
    os.utime(touched, ns=(1, 1))
    with (archive / "index.jsonl").open("a") as out:
        out.write("{broken\n")

    done = dcmtools("index", "check", "--archive", archive)

    assert done.returncode == 3
    *problems, told = records(done.stdout)
    assert {(one["cause"], one.get("path", one.get("line"))) for one in problems} == {
        ("bad-line", 76),
        ("vanished", str(gone)),
        ("changed", str(touched)),
    }
    assert all("SOPInstanceUID" in one for one in problems if one["cause"] != "bad-line")
    assert (told["state"], told["problems"]) == ("failed", 3)


def test_check_that_reads_finds_what_size_and_time_do_not_tell(dcmtools: RunDcmtools, archive: Path) -> None:
    path = next(archive.rglob("*.dcm"))
    state = path.stat()
    path.write_bytes(path.read_bytes().replace(b"PHANTOM-0-00", b"PHANTOM-9-00"))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))

    assert dcmtools("index", "check", "--archive", archive).returncode == 0
    done = dcmtools("index", "check", "--read", "--archive", archive)

    assert done.returncode == 3
    assert [one["cause"] for one in records(done.stdout, "error")] == ["changed"]


def test_compacted_index_answers_the_same_with_fewer_lines(dcmtools: RunDcmtools, archive: Path) -> None:
    index = Index(archive / "index.jsonl")
    instances = list(index.instances())
    index.append(instances)
    index.forget(instances[:5])
    index.append([event("incomplete", SeriesInstanceUID="1.2"), {"type": "note", "text": "of a later version"}])
    index.append([event("series-complete", SeriesInstanceUID="1.2"), event("quarantined", path="/x")])
    with index.file.open("a") as out:
        out.write("{broken\n")
    before = [list(index.find(Query(level))) for level in ("patient", "study", "series", "instance")]

    planned = dcmtools("index", "compact", "--archive", archive, "--dry-run")
    size = index.file.stat().st_size
    (plan,) = records(planned.stdout)
    assert (plan["state"], plan["lines"], plan["lines_before"], size) == ("planned", 73, 160, plan["bytes_before"])
    done = dcmtools("index", "compact", "--archive", archive)

    assert done.returncode == 0, done.stderr
    (told,) = records(done.stdout)
    assert (told["lines"], told["bytes"], told["bad_lines"]) == (73, index.file.stat().st_size, 1)
    after = [list(index.find(Query(level))) for level in ("patient", "study", "series", "instance")]
    assert after == before
    assert [one["event"] for one in index.events()] == ["series-complete", "quarantined"]
    assert b"of a later version" in index.file.read_bytes()
    (again,) = records(dcmtools("index", "compact", "--archive", archive).stdout)
    assert (again["lines_before"], again["lines"]) == (73, 73)


WRITER = """
import os, sys
from dcmtools.disk.index import Index
from tests.builders import make_record
index, number = Index(sys.argv[1]), int(sys.argv[2])
for start in range(0, 2000, 20):
    index.append(make_record(number, 1, 1, one, path=f"/{number}/{one}") for one in range(start, start + 20))
    os.write(1, f"{start + 20}\\n".encode())
"""


@pytest.mark.timeout(120)
def test_four_writers_one_killed_and_compaction_meanwhile_lose_nothing(dcmtools: RunDcmtools, tmp_path: Path) -> None:
    index = Index(tmp_path / "index.jsonl")
    run = [sys.executable, "-c", WRITER, str(index.file)]
    writers = [
        subprocess.Popen([*run, str(number)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
        for number in range(4)
    ]
    told = ["", "", "", ""]
    for number, writer in enumerate(writers):
        assert writer.stdout is not None
        told[number] = writer.stdout.readline().decode()

    compactions = [dcmtools("index", "compact", "--index", index.file)]
    writers[0].kill()
    while any(writer.poll() is None for writer in writers):
        compactions.append(dcmtools("index", "compact", "--index", index.file))
    compactions.append(dcmtools("index", "compact", "--index", index.file))

    assert [done.returncode for done in compactions] == [0] * len(compactions)
    acknowledged = [
        int((text + writer.communicate()[0].decode()).split()[-1]) for text, writer in zip(told, writers, strict=True)
    ]
    assert acknowledged[1:] == [2000, 2000, 2000]
    counts = {one["PatientID"]: one["NumberOfPatientRelatedInstances"] for one in index.find(Query("patient"))}
    assert counts.pop("P0") >= acknowledged[0]
    assert counts == {"P1": 2000, "P2": 2000, "P3": 2000}
    assert index.bad_lines == 0
    assert list(index.find(Query("series"))) == list(index.scan(Query("series")))


def test_parquet_has_a_row_for_each_instance(dcmtools: RunDcmtools, archive: Path, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    done = dcmtools("index", "export", "--archive", archive, "--parquet", tmp_path / "index.parquet")

    assert done.returncode == 0, done.stderr
    rows = pq.read_table(tmp_path / "index.parquet").to_pylist()
    instances = list(Index(archive / "index.jsonl").instances())
    assert len(rows) == 75
    for row, record in zip(rows, instances, strict=True):
        assert {key: value for key, value in row.items() if value is not None} == {
            key: value for key, value in record.items() if value is not None and key != "type"
        }


def test_merged_index_has_what_the_others_have_each_file_once(
    dcmtools: RunDcmtools, archive: Path, phantoms: Path, tmp_path: Path
) -> None:
    dcmtools("index", phantoms, "--index", tmp_path / "one.jsonl")
    merge = ("index", "merge", archive, tmp_path / "one.jsonl", "--index", tmp_path / "all.jsonl")
    gone = next(archive.rglob("*.dcm"))
    gone.unlink()

    first = dcmtools(*merge)
    again = dcmtools(*merge)

    assert first.returncode == again.returncode == 3
    assert [one["cause"] for one in records(first.stdout, "error")] == ["vanished"]
    states = [one["state"] for one in records(first.stdout, "instance")]
    assert (states.count("indexed"), states.count("present")) == (75, 74)
    assert {one["state"] for one in records(again.stdout, "instance")} == {"present"}
    assert sum(one["NumberOfStudyRelatedInstances"] for one in Index(tmp_path / "all.jsonl").find(Query())) == 75
    assert dcmtools("index", "merge", tmp_path / "none", "--index", tmp_path / "all.jsonl").returncode == 66


@pytest.mark.parametrize("verb", ["check", "stats", "compact", "export"])
def test_index_that_is_not_there_ends_with_66(dcmtools: RunDcmtools, tmp_path: Path, verb: str) -> None:
    more = ["--parquet", tmp_path / "x.parquet"] if verb == "export" else []

    done = dcmtools("index", verb, *more, "--archive", tmp_path / "none")

    assert done.returncode == 66
    assert json.loads(done.stdout.splitlines()[-1] if "exit_code" in done.stdout else "{}")["exit_code"] == 66
