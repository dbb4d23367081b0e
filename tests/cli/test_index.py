"""dcmtools index as a process."""

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.cli.conftest import records
from tests.conftest import RunDcmtools


@pytest.fixture
def scans(tmp_path: Path, phantoms: Path) -> Path:
    """A folder with 75 instances that may be written to."""
    return Path(shutil.copytree(phantoms, tmp_path / "scans"))


def test_files_are_indexed_where_they_lie_and_not_read_again(dcmtools: RunDcmtools, scans: Path) -> None:
    first = dcmtools("index", scans, "--archive", "archive")
    second = dcmtools("index", scans, "--archive", "archive")

    assert (first.returncode, second.returncode, first.stderr) == (0, 0, "")
    assert {one["state"] for one in records(first.stdout)} == {"indexed"}
    assert {one["state"] for one in records(second.stdout)} == {"present"}
    assert len(records(second.stdout)) == 75
    found = dcmtools("find", "--archive", "archive", "--level", "instance", "--format", "paths")
    assert all(Path(path).is_relative_to(scans) for path in found.stdout.splitlines())


def test_records_are_plain_unless_they_are_to_be_framed(dcmtools: RunDcmtools, scans: Path) -> None:
    plain = dcmtools("index", scans, "--index", "a.jsonl")
    framed = dcmtools("index", scans, "--index", "b.jsonl", "--events")

    assert {one["type"] for one in records(plain.stdout)} == {"instance"}
    assert [one["event"] for one in records(framed.stdout, "event")] == ["begin", "end"]


def test_bad_files_among_good_ones_are_told_and_the_rest_is_indexed(dcmtools: RunDcmtools, scans: Path) -> None:
    (scans / "notes.txt").write_text("Doe^John")
    victim = next(scans.rglob("*.dcm"))
    os.truncate(victim, victim.stat().st_size - 100)

    done = dcmtools("index", scans, "--archive", "archive")

    assert done.returncode == 3
    assert {one["cause"] for one in records(done.stdout, "error")} == {"not-dicom", "truncated"}
    assert len(records(done.stdout, "instance")) == 74
    assert "notes.txt" in done.stderr
    assert "Doe" not in done.stderr


def test_nothing_but_bad_files_is_65_and_a_missing_path_66(dcmtools: RunDcmtools, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")

    assert dcmtools("index", "notes.txt", "--archive", "archive").returncode == 65
    assert dcmtools("index", "nowhere", "--archive", "archive").returncode == 66


def test_paths_on_stdin_are_indexed_and_other_records_pass_by(dcmtools: RunDcmtools, scans: Path) -> None:
    paths = sorted(map(str, scans.rglob("*.dcm")))[:3]
    lines = [paths[0], '{"type":"transfer","of":"another day"}', json.dumps({"type": "instance", "path": paths[1]})]

    done = dcmtools("index", "-", "--archive", "archive", stdin="\n".join([*lines, paths[2]]))

    assert done.returncode == 0
    assert [one["path"] for one in records(done.stdout, "instance")] == paths
    assert records(done.stdout, "transfer") == [{"type": "transfer", "of": "another day"}]


def test_dry_run_writes_nothing(dcmtools: RunDcmtools, scans: Path, tmp_path: Path) -> None:
    done = dcmtools("index", scans, "--archive", "archive", "--dry-run")

    assert done.returncode == 0
    assert len(records(done.stdout)) == 75
    assert not (tmp_path / "archive").exists()


def test_words_that_will_be_verbs_are_no_folders(dcmtools: RunDcmtools, scans: Path) -> None:
    scans.rename(scans.with_name("check"))

    assert dcmtools("index", "check", "--archive", "archive").returncode == 2
    assert dcmtools("index", "./check", "--archive", "archive").returncode == 0
