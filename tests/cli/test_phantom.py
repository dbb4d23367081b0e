"""dcmtools phantom as a process."""

from pathlib import Path

from tests.cli.conftest import records
from tests.conftest import RunDcmtools

FEW = ("--kinds", "sr", "--date", "2024-01-31")


def test_same_words_make_the_same_bytes_and_a_second_run_nothing(dcmtools: RunDcmtools, tmp_path: Path) -> None:
    first = dcmtools("phantom", "a", *FEW)
    second = dcmtools("phantom", "a", *FEW)
    dcmtools("phantom", "b", *FEW)

    assert (first.returncode, first.stderr) == (0, "")
    assert [one["state"] for one in records(first.stdout, "instance")] == ["made"] * 3
    assert [one["state"] for one in records(second.stdout, "instance")] == ["present"] * 3
    one, other = ({path.name: path.read_bytes() for path in (tmp_path / name).rglob("*.dcm")} for name in "ab")
    assert one == other


def test_number_of_people_and_studies_date_and_seed_are_as_asked_for(dcmtools: RunDcmtools) -> None:
    done = dcmtools("phantom", "out", "--patients", "2", "--studies", "3", "--seed", "5", *FEW)

    found = records(done.stdout, "instance")
    assert len({one["StudyInstanceUID"] for one in found}) == 6
    assert {one["StudyDate"] for one in found} == {"20240131"}
    assert {one["PatientID"] for one in found} == {"PHANTOM-5-001", "PHANTOM-5-002"}


def test_dry_run_writes_nothing(dcmtools: RunDcmtools, tmp_path: Path) -> None:
    done = dcmtools("phantom", "out", "--dry-run", *FEW)

    assert {one["state"] for one in records(done.stdout, "instance")} == {"planned"}
    assert not (tmp_path / "out").exists()


def test_range_of_days_and_unknown_kind_are_refused(dcmtools: RunDcmtools) -> None:
    assert dcmtools("phantom", "out", "--date", "-2d..today").returncode == 2
    assert dcmtools("phantom", "out", "--kinds", "pet").returncode == 2


def test_folder_that_cannot_be_made_is_73(dcmtools: RunDcmtools, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")

    assert dcmtools("phantom", "file/out", *FEW).returncode == 73
