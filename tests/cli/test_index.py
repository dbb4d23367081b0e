"""dcmtools index as a process."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.builders import write_instance, write_series
from tests.cli.conftest import records
from tests.conftest import RunDcmtools, StartDcmtools


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


def test_words_that_are_verbs_are_no_folders(dcmtools: RunDcmtools, scans: Path) -> None:
    scans.rename(scans.with_name("check"))

    assert dcmtools("index", "check", "--archive", "archive").returncode == 66
    assert dcmtools("index", "./check", "--archive", "archive").returncode == 0


IMPORTED = """
import sys
from dcmtools.cli.main import _run
sys.argv = ["dcmtools", "index", sys.argv[1], "--index", "index.jsonl"]
code = _run()
print(*sorted({name.partition(".")[0] for name in sys.modules}), file=sys.stderr)
sys.exit(code)
"""


def test_no_heavy_library_is_imported(tmp_path: Path, environment: dict[str, str]) -> None:
    write_series(tmp_path / "plain", 300)
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", IMPORTED, "plain"],
            capture_output=True,
            check=True,
            text=True,
            env=environment,
            cwd=tmp_path,
        )
        loaded = set(done.stderr.splitlines()[-1].split())
        assert "msgspec" in loaded
        assert not loaded & {"pydicom", "pynetdicom", "numpy", "nibabel", "tqdm", "multiprocessing", "concurrent"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_to_all_its_processes_ends_it_gently_and_the_next_run_goes_on(
    start_dcmtools: StartDcmtools, dcmtools: RunDcmtools, tmp_path: Path, number: int
) -> None:
    sample = write_instance(tmp_path / "sample.dcm")
    (tmp_path / "many").mkdir()
    for count in range(4000):
        os.link(sample, tmp_path / "many" / f"{count:04}.dcm")
    running = start_dcmtools("index", "many", "--index", "index.jsonl", "--jobs", 2)
    assert running.stdout
    running.stdout.readline()

    os.killpg(running.pid, number)
    rest = running.stdout.read()

    assert running.wait(60) == 128 + number
    assert "Traceback" not in (tmp_path / "stderr-1.txt").read_text()
    assert all(one["type"] == "instance" for one in records(rest))
    again = dcmtools("index", "many", "--index", "index.jsonl")
    assert again.returncode == 0
    assert len(records(again.stdout)) == 4000


def test_known_folders_are_looked_at_again_and_rebuilt_without_naming_them(
    dcmtools: RunDcmtools, scans: Path, tmp_path: Path
) -> None:
    index = ("--index", "index.jsonl")
    dcmtools("index", scans, *index)
    gone = next(scans.rglob("*.dcm"))
    gone.unlink()
    write_instance(gone.with_name("new.dcm"))

    again = dcmtools("index", "--refresh", *index)
    assert again.returncode == 0
    assert Counter(one["state"] for one in records(again.stdout)) == {"present": 74, "indexed": 1}
    pruned = dcmtools("index", "--prune-missing", *index, "--new")
    assert [(one["state"], one["path"]) for one in records(pruned.stdout)] == [("removed", str(gone))]
    found = dcmtools("find", "--level", "instance", "--format", "paths", *index).stdout.splitlines()
    rebuilt = dcmtools("index", "--rebuild", *index)
    assert Counter(one["state"] for one in records(rebuilt.stdout)) == {"indexed": 75}
    assert sorted(dcmtools("find", "--level", "instance", "--format", "paths", *index).stdout.splitlines()) == sorted(
        found
    )

    scans.rename(tmp_path / "unmounted")
    refused = dcmtools("index", "--prune-missing", *index)
    assert refused.returncode == 3
    assert "--yes" in refused.stderr
    assert len(dcmtools("find", "--level", "instance", *index).stdout.splitlines()) == 75


def test_words_that_do_not_go_together_are_usage_errors(dcmtools: RunDcmtools, scans: Path) -> None:
    for words in ((), ("--refresh", "-"), (scans, "--rebuild", "--dry-run"), (scans, "--cluster", "here")):
        assert dcmtools("index", *words, "--index", "index.jsonl").returncode == 2
    assert dcmtools("index", "--refresh", "--index", "index.jsonl").returncode == 66
