"""dcmtools import as a process."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.cli.conftest import records
from tests.conftest import RunDcmtools


@pytest.fixture
def scans(tmp_path: Path, phantoms: Path) -> Path:
    """A folder with 75 instances that may be written to."""
    return Path(shutil.copytree(phantoms, tmp_path / "scans"))


@pytest.mark.parametrize(
    ("flags", "state", "left"),
    [([], "copied", 75), (["--copy"], "copied", 75), (["--link"], "linked", 75), (["--move"], "moved", 0)],
)
def test_files_come_into_the_archive(
    dcmtools: RunDcmtools, scans: Path, tmp_path: Path, flags: list[str], state: str, left: int
) -> None:
    done = dcmtools("import", scans, "--archive", "archive", *flags)

    assert (done.returncode, done.stderr) == (0, "")
    assert {one["state"] for one in records(done.stdout, "instance")} == {state}
    assert len(list((tmp_path / "archive").rglob("*.dcm"))) == 75
    assert len(list(scans.rglob("*.dcm"))) == left


def test_second_import_does_nothing_and_says_present(dcmtools: RunDcmtools, scans: Path) -> None:
    dcmtools("import", scans, "--archive", "archive")

    again = dcmtools("import", scans, "--archive", "archive")
    changed = dcmtools("import", scans, "--archive", "archive", "--new")

    assert {one["state"] for one in records(again.stdout, "instance")} == {"present"}
    assert records(changed.stdout, "instance") == []
    assert records(changed.stdout)[-1]["counts"] == {"instance": 75}


def test_reference_leaves_the_files_and_takes_another_index(dcmtools: RunDcmtools, scans: Path, tmp_path: Path) -> None:
    done = dcmtools("import", scans, "--reference", "--index", "refs.jsonl")

    assert done.returncode == 0
    assert (tmp_path / "refs.jsonl").exists()
    assert {Path(one["path"]).is_relative_to(scans) for one in records(done.stdout, "instance")} == {True}


def test_another_index_for_copies_and_two_ways_at_once_are_refused(dcmtools: RunDcmtools, scans: Path) -> None:
    for words in (["--index", "refs.jsonl"], ["--copy", "--move"]):
        assert dcmtools("import", scans, "--archive", "archive", *words).returncode == 2


def test_layout_gives_the_files_other_places_in_the_archive(dcmtools: RunDcmtools, scans: Path, tmp_path: Path) -> None:
    done = dcmtools("import", scans, "--archive", "archive", "--layout", "{Modality}/{PatientID}/{SOPInstanceUID}.dcm")
    again = dcmtools("import", scans, "--archive", "archive", "--new")

    assert (done.returncode, again.returncode) == (0, 0)
    found = records(done.stdout, "instance")
    assert {Path(one["path"]).parents[1].name for one in found} == {one["Modality"] for one in found}
    assert records(again.stdout, "instance") == []
    assert len(list((tmp_path / "archive").rglob("*.dcm"))) == 75


@pytest.mark.parametrize(
    "words", [["--layout", "{PatientId}/x"], ["--layout", "/abs/{PatientID}"], ["--layout", "patient", "--reference"]]
)
def test_layout_that_means_nothing_is_refused(
    dcmtools: RunDcmtools, scans: Path, tmp_path: Path, words: list[str]
) -> None:
    done = dcmtools("import", scans, "--archive", "archive", *words)

    assert done.returncode == 2
    assert "layout" in done.stderr
    assert not (tmp_path / "archive").exists()


def test_other_file_of_the_same_uid_is_in_conflict(dcmtools: RunDcmtools, scans: Path) -> None:
    dcmtools("import", scans, "--archive", "archive")
    other = next(scans.rglob("*.dcm"))
    data = bytearray(other.read_bytes())
    data[-1] ^= 1
    other.write_bytes(data)

    done = dcmtools("import", scans, "--archive", "archive")

    assert done.returncode == 3
    assert [one["state"] for one in records(done.stdout, "instance")].count("conflict") == 1


def test_records_of_an_index_elsewhere_are_imported(dcmtools: RunDcmtools, scans: Path, tmp_path: Path) -> None:
    dcmtools("index", scans, "--index", "refs.jsonl")
    found = dcmtools("find", "--index", "refs.jsonl", "--modality", "SR", "--level", "instance").stdout

    done = dcmtools("import", "-", "--archive", "archive", stdin=found)

    assert done.returncode == 0
    assert len(list((tmp_path / "archive").rglob("*.dcm"))) == 3


@pytest.mark.parametrize("mark", ["\n", "\0", "\r\n"])
@pytest.mark.parametrize("source", ["-", "list"])
def test_paths_come_from_a_list(dcmtools: RunDcmtools, scans: Path, tmp_path: Path, mark: str, source: str) -> None:
    paths = [str(path.relative_to(tmp_path)) for path in sorted(scans.rglob("*.dcm"))[:5]]
    listed = "".join(f"{path}{mark}" for path in [*paths, "scans/is not there"])
    (tmp_path / "list").write_bytes(listed.encode())

    done = dcmtools("import", "--files-from", source, "--archive", "archive", stdin=listed if source == "-" else None)

    assert done.returncode == 3
    assert [Path(one["source"]) for one in records(done.stdout, "instance")] == [tmp_path / path for path in paths]
    assert [one["path"] for one in records(done.stdout, "error")] == [str(tmp_path / "scans" / "is not there")]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ([], 2),
        (["scans", "--files-from", "list"], 2),
        (["--files-from", "no list"], 66),
        (["scans", "--reference", "--checksum"], 2),
        (["scans", "--reference", "--on-duplicate", "newest"], 2),
    ],
)
def test_calls_that_mean_nothing_are_refused(
    dcmtools: RunDcmtools, tmp_path: Path, words: list[str], code: int
) -> None:
    assert dcmtools("import", *words, "--archive", "archive").returncode == code
    assert not (tmp_path / "archive").exists()


def test_checksum_is_what_sha256sum_says(dcmtools: RunDcmtools, scans: Path) -> None:
    done = dcmtools("import", scans, "--archive", "archive", "--checksum")

    found = records(done.stdout, "instance")
    listed = "".join(f"{one['sha256']}  {one['path']}\n" for one in found)
    checked = subprocess.run(["sha256sum", "--check", "--quiet"], input=listed, text=True, check=False)
    assert (len(found), checked.returncode) == (75, 0)


def test_archive_that_cannot_be_made_is_named_as_such(dcmtools: RunDcmtools, scans: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    done = dcmtools("import", scans, "--archive", "file/x")

    assert done.returncode == 73
    assert f"making the archive {tmp_path / 'file' / 'x'}: " in done.stderr


def test_imported_and_sorted_instances_have_their_pictures(dcmtools: RunDcmtools, scans: Path, tmp_path: Path) -> None:
    imported = dcmtools("import", scans, "--archive", "archive")
    placed = dcmtools("sort-by-physician", "-", "--out", "share", stdin=imported.stdout)

    done = dcmtools("preview", "-", "--out", "pictures", stdin=placed.stdout)

    assert (done.returncode, done.stderr) == (0, "")
    assert [one["state"] for one in records(done.stdout, "file")].count("drawn") == 3
    assert len(list((tmp_path / "pictures").iterdir())) == 3
