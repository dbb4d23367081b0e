"""dcmtools convert-nifti as a process: what it takes, and that its stream can be sorted."""

from pathlib import Path

import pytest

from dcmtools.model.record import encode, event
from tests.cli.conftest import Record, records
from tests.conftest import RunDcmtools


@pytest.fixture(scope="module")
def series(filled: Path) -> list[Record]:
    """The instances of one MR series, as a command before this one would write them."""
    from dcmtools.disk.index import Index

    instances = [one for one in Index(filled / "index.jsonl").instances() if one["Modality"] == "MR"]
    first = [one for one in instances if one["SeriesInstanceUID"] == instances[0]["SeriesInstanceUID"]]
    return sorted(first, key=lambda one: int(one["InstanceNumber"]))


def text(*found: Record) -> str:
    return b"".join(map(encode, found)).decode()


def test_selected_series_are_converted_once(dcmtools: RunDcmtools, filled: Path, tmp_path: Path) -> None:
    words = ("convert-nifti", "--archive", filled, "--patient-id", "PHANTOM-0-001", "--out", "nifti")

    first, second = dcmtools(*words), dcmtools(*words)

    assert (first.returncode, second.returncode) == (0, 0), first.stderr
    (volume,) = records(first.stdout, "volume")
    assert volume["state"] == "converted"
    assert Path(volume["path"]).is_relative_to(tmp_path / "nifti")
    assert [one["state"] for one in records(second.stdout, "volume")] == ["unchanged"]
    assert [one["state"] for one in records(first.stdout, "series")] == ["skipped"]  # the report


def test_paths_and_names_on_stdin_are_converted(dcmtools: RunDcmtools, series: list[Record]) -> None:
    folder = Path(series[0]["path"]).parent
    names = "\n".join(str(one["path"]) for one in series)

    of_folder = dcmtools("convert-nifti", folder, "--out", "a")
    of_names = dcmtools("convert-nifti", "-", "--out", "b", stdin=names)

    assert [one["state"] for one in records(of_folder.stdout, "volume")] == ["converted"]
    assert [one["state"] for one in records(of_names.stdout, "volume")] == ["converted"]


def test_studies_on_stdin_stand_for_their_instances(dcmtools: RunDcmtools, filled: Path) -> None:
    studies = dcmtools("find", "--archive", filled, "--patient-id", "PHANTOM-0-001").stdout

    done = dcmtools("convert-nifti", "-", "--archive", filled, "--out", "nifti", stdin=studies)

    assert done.returncode == 0
    assert len(records(done.stdout, "volume")) == 1


def test_series_that_was_cut_off_is_refused_unless_it_is_allowed(dcmtools: RunDcmtools, series: list[Record]) -> None:
    torn = text(event("begin", command="move"), *series[:-2])

    refused = dcmtools("convert-nifti", "-", "--out", "nifti", stdin=torn)
    allowed = dcmtools("convert-nifti", "-", "--out", "nifti", "--allow-incomplete", stdin=torn)

    assert refused.returncode >= 3
    assert records(refused.stdout, "volume") == []
    assert allowed.returncode == 3
    assert [one["state"] for one in records(allowed.stdout, "volume")] == ["converted"]


@pytest.mark.parametrize(("code", "expected"), [(75, 0), (130, 0), (3, 1)])
def test_series_whose_command_was_ended_half_way_is_refused(
    dcmtools: RunDcmtools, series: list[Record], code: int, expected: int
) -> None:
    torn = text(event("begin", command="import"), *series[:-2], event("end", command="import", exit_code=code))

    done = dcmtools("convert-nifti", "-", "--out", "nifti", stdin=torn)

    assert done.returncode >= 3
    assert len(records(done.stdout, "volume")) == expected


def test_series_that_upstream_said_is_complete_is_converted_though_upstream_died(
    dcmtools: RunDcmtools, series: list[Record]
) -> None:
    uids = {key: series[0][key] for key in ("StudyInstanceUID", "SeriesInstanceUID")}
    stream = text(event("begin", command="move"), *series, event("series-complete", **uids))

    done = dcmtools("convert-nifti", "-", "--out", "nifti", stdin=stream)

    assert done.returncode == 3
    assert [one["state"] for one in records(done.stdout, "volume")] == ["converted"]
    assert "broke off" in done.stderr


def test_what_a_command_before_this_one_left_out_is_not_looked_up(dcmtools: RunDcmtools) -> None:
    skipped = {"type": "series", "state": "skipped", "SeriesInstanceUID": "1.2", "reason": "no images"}

    done = dcmtools("convert-nifti", "-", "--out", "nifti", stdin=text(skipped))

    assert done.returncode == 0
    assert records(done.stdout, "series") == [skipped]


@pytest.mark.parametrize(
    "words",
    [
        ["-", "scans"],
        ["scans", "--modality", "MR"],
        ["-", "--template", "{Fruit}"],
        ["-", "--mode", "rw"],
        ["-", "--time-limit", "soon"],
    ],
)
def test_words_that_make_no_sense_together_are_refused(dcmtools: RunDcmtools, words: list[str]) -> None:
    assert dcmtools("convert-nifti", *words, "--out", "nifti").returncode == 2


def test_mode_holds_for_what_was_converted_before(dcmtools: RunDcmtools, series: list[Record]) -> None:
    dcmtools("convert-nifti", "-", "--out", "nifti", stdin=text(*series))

    done = dcmtools("convert-nifti", "-", "--out", "nifti", "--mode", "640", stdin=text(*series))

    (volume,) = records(done.stdout, "volume")
    assert volume["state"] == "unchanged"
    assert Path(volume["path"]).stat().st_mode & 0o777 == 0o640


def test_damaged_series_stops_no_other(dcmtools: RunDcmtools, archive: Path) -> None:
    folder = next(path.parent for path in archive.rglob("*.dcm") if len(list(path.parent.iterdir())) > 1)
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[:500])

    done = dcmtools("convert-nifti", "--archive", archive, "--modality", "MR", "--out", "nifti")

    assert done.returncode == 3
    assert len(records(done.stdout, "error")) == 1
    assert len(records(done.stdout, "volume")) == 2


def test_sorted_volumes_lie_in_a_folder_of_their_physician(dcmtools: RunDcmtools, filled: Path, tmp_path: Path) -> None:
    volumes = dcmtools("convert-nifti", "--archive", filled, "--modality", "MR", "--out", "nifti").stdout

    first = dcmtools("sort-by-physician", "-", "--out", "share", stdin=volumes)
    second = dcmtools("sort-by-physician", "-", "--out", "share", stdin=volumes)

    assert (first.returncode, second.returncode) == (0, 0), first.stderr
    placed = records(first.stdout, "file")
    assert {one["state"] for one in placed} == {"linked"}
    assert {one["state"] for one in records(second.stdout, "file")} == {"present"}
    folders = {Path(one["path"]).relative_to(tmp_path / "share").parts[0].casefold() for one in placed}
    assert folders == {"smith_john", "_unknown"}  # whichever spelling came first


def test_instances_are_sorted_too_by_selectors_or_paths(dcmtools: RunDcmtools, filled: Path, tmp_path: Path) -> None:
    selected = dcmtools("sort-by-physician", "--archive", filled, "--modality", "SR", "--out", "a", "--copy")
    named = dcmtools("sort-by-physician", filled, "--out", "b", "--symlink")

    assert (selected.returncode, named.returncode) == (0, 0), selected.stderr + named.stderr
    assert len(records(selected.stdout, "file")) == 3
    assert len(records(named.stdout, "file")) == 75
    assert all(Path(one["path"]).is_symlink() for one in records(named.stdout, "file"))


def test_pictures_are_made_of_series_and_of_volumes(dcmtools: RunDcmtools, filled: Path) -> None:
    volumes = dcmtools("convert-nifti", "--archive", filled, "--patient-id", "PHANTOM-0-001", "--out", "nifti").stdout

    of_volume = dcmtools("preview", "-", "--out", "pictures", stdin=volumes)
    of_series = dcmtools("preview", "--archive", filled, "--modality", "MR", "--out", "pictures", "--size", "64")
    again = dcmtools("preview", "--archive", filled, "--modality", "MR", "--out", "pictures", "--size", "64")

    assert (of_volume.returncode, of_series.returncode, again.returncode) == (0, 0, 0), of_series.stderr
    drawn = [*records(of_volume.stdout, "file"), *records(of_series.stdout, "file")]
    assert [one["state"] for one in drawn] == ["drawn"] * 4
    assert all(Path(one["path"]).read_bytes().startswith(b"\x89PNG") for one in drawn)
    assert {one["state"] for one in records(again.stdout, "file")} == {"present"}


def test_full_out_folder_names_the_problem(dcmtools: RunDcmtools, filled: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")

    done = dcmtools("convert-nifti", "--archive", filled, "--out", "file/nifti")

    assert done.returncode == 73
    assert str(tmp_path / "file") in done.stderr
