"""Streams of series are converted: as they come, several at a time, and none stops another."""

import os
import re
import resource
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import pytest

from dcmtools.disk.header import read_header
from dcmtools.images import audit
from dcmtools.images.convert_nifti import ConvertOptions, convert
from dcmtools.images.dcm2niix import Dcm2niix
from dcmtools.model.errors import CannotCreate, ConfigurationError, Locked, UsageError
from dcmtools.model.record import Record, encode, event
from tests.builders import make_record
from tests.images.series_files import write_report, write_slices
from tests.waiting import wait_until


def run(records: list[Record], out: Path, **options: Any) -> list[Record]:
    return list(convert(records, out, ConvertOptions(**options)))


def states(records: list[Record]) -> Counter[tuple[str, str | None]]:
    return Counter((str(record.get("state")), record.get("cause")) for record in records)


def volumes_in(out: Path) -> list[Path]:
    return sorted(out.rglob("*.nii.gz"))


def left_behind(out: Path) -> list[str]:
    return [path.name for path in out.glob(".dcmtools-*") if path.name != ".dcmtools-lock"]


def about(name: str, records: list[Record], level: str = "series", **keys: Any) -> Record:
    uids = {"StudyInstanceUID": records[0]["StudyInstanceUID"]}
    if level == "series":
        uids["SeriesInstanceUID"] = records[0]["SeriesInstanceUID"]
    return event(name, **uids, **keys)


def fake(path: Path, body: str) -> Path:
    """A dcm2niix that runs `body` before the real one; $in is the folder of the series."""
    path.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && { echo v1.0.20250101; exit; }\nfor in; do :; done\n'
        f'{body}\nexec {Dcm2niix.found().binary} "$@"\n'
    )
    path.chmod(0o700)
    return path


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "nifti"


# Real data


def test_all_vendors_convert_and_only_what_is_wrong_is_suspect(data: Path, out: Path) -> None:
    folders = [Path(folder) for folder, _, files in os.walk(data / "vendors") if files]

    records = run(list(_each_folder_its_own(folders)), out)

    series = {record["SeriesInstanceUID"]: (record["state"], record.get("cause")) for record in records}
    assert Counter(series.values()) == {
        ("converted", None): 47,
        ("suspect", "gantry-tilt"): 2,
        ("suspect", "missing-slices"): 1,
        ("suspect", "mosaic-unverified"): 4,  # their vendor's header was stripped; dcm2niix cuts them wrongly
    }
    assert states(records)["converted", None] == 49
    for record in records:
        image = nibabel.Nifti1Image.from_filename(record["path"])
        assert list(image.shape) == record["shape"]
    assert len(volumes_in(out)) == len(records)


def _each_folder_its_own(folders: list[Path]) -> Iterator[Record]:
    """Some folders hold one series in several encodings: with UIDs of their own they are as many series."""
    for number, folder in enumerate(folders):
        for path in sorted(folder.iterdir()):
            record = read_header(path)
            uids = {key: f"{record[key]}.{number}" for key in ("StudyInstanceUID", "SeriesInstanceUID")}
            yield {**record, **uids}


@pytest.mark.parametrize(
    ("folder", "outcome"),
    [
        ("generic/anatomical/001", ("converted", None)),
        ("failing/gantrytilting/001", ("failed", "gantry-tilt")),
        ("failing/slicecount/001", ("failed", "too-few-slices")),
        ("philips_enhanced/dti/001", ("suspect", "empty-volume")),  # three of its four volumes are zero
        ("siemens/fmri/001", ("suspect", "mosaic-unverified")),
    ],
)
def test_the_second_engine_is_audited_too(data: Path, out: Path, folder: str, outcome: tuple[str, str | None]) -> None:
    records = [read_header(path) for path in (data / "vendors" / folder).iterdir()]

    (record,) = run(records, out, engine="dicom2nifti")

    assert (record["state"], record.get("cause")) == outcome


# One never stops another


def test_bad_series_stop_no_other(tmp_path: Path, out: Path) -> None:
    binary = fake(tmp_path / "dcm2niix", 'grep -q CRASH "$in"/* && kill -SEGV $$\ngrep -q SLOW "$in"/* && sleep 60')
    good = [write_slices(tmp_path, patient) for patient in (1, 2)]
    truncated, missing = write_slices(tmp_path, 3), write_slices(tmp_path, 4, missing=[2])
    os.truncate(truncated[1]["path"], truncated[1]["size"] - 10)
    crash = write_slices(tmp_path, 5, StudyDescription="CRASH")
    slow = write_slices(tmp_path, 6, StudyDescription="SLOW")
    stream = [*truncated, *crash, *good[0], *missing, *slow, *write_report(tmp_path, 7), *good[1]]

    records = run(stream, out, dcm2niix=binary, jobs=2, time_limit=5)

    assert states(records) == {
        ("converted", None): 2,
        ("suspect", "missing-slices"): 1,
        ("failed", "truncated"): 1,
        ("failed", "engine-crashed"): 1,
        ("failed", "time-limit"): 1,
        ("skipped", "not-an-image"): 1,
    }
    assert not left_behind(out)


def test_a_defect_in_one_series_stops_no_other(tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: Path) -> audit.Volume:
        if next(opened):
            raise KeyError("a patient's name")
        return real(path)

    real, opened = audit.open_volume, iter([True, False])
    monkeypatch.setattr(audit, "open_volume", broken)

    records = run([*write_slices(tmp_path, 1), *write_slices(tmp_path, 2)], out, jobs=1)

    assert states(records) == {("failed", "internal"): 1, ("converted", None): 1}
    (error,) = [record for record in records if record["type"] == "error"]
    assert re.search(r"KeyError in .*, line \d+", error["reason"])
    assert "patient" not in error["reason"]


def test_equal_number_and_description_of_two_patients_give_two_files(tmp_path: Path, out: Path) -> None:
    same = {"PatientID": "X", "StudyDate": "20240101", "SeriesNumber": 1, "SeriesDescription": "T1"}
    stream = [*write_slices(tmp_path, 1, **same), *write_slices(tmp_path, 2, **same)]

    records = run(stream, out)

    assert len({record["path"] for record in records}) == 2
    assert len(volumes_in(out)) == 2


def test_a_template_that_gives_two_series_one_name_loses_none(tmp_path: Path, out: Path) -> None:
    stream = [*write_slices(tmp_path, 1), *write_slices(tmp_path, 2)]

    for state in ("converted", "unchanged"):
        records = run(stream, out, template="{Modality}")

        assert {record["state"] for record in records} == {state}
        assert [path.name for path in volumes_in(out)] == ["MR.nii.gz", "MR~2.nii.gz"]


# The stream


def test_a_series_that_is_complete_comes_out_before_the_stream_ends(tmp_path: Path, out: Path) -> None:
    first, second = write_slices(tmp_path, 1), write_slices(tmp_path, 2)
    came_out = threading.Event()

    def stream() -> Iterator[Record]:
        yield from first
        yield about("series-complete", first)
        assert came_out.wait(60)
        yield from second

    names = []
    for record in convert(stream(), out):
        names.append(record.get("event") or record["PatientID"])
        came_out.set()

    assert names == ["P1", "series-complete", "P2"]


def test_a_slow_conversion_keeps_nobody_upstream_waiting(tmp_path: Path, out: Path) -> None:
    all_read = tmp_path / "all-read"
    binary = fake(tmp_path / "dcm2niix", f'while [ ! -e "{all_read}" ]; do sleep 0.05; done')
    series = [write_slices(tmp_path, patient) for patient in range(1, 5)]

    def stream() -> Iterator[Record]:
        for records in series:
            yield from records
            yield about("series-complete", records)
        all_read.touch()

    records = list(convert(stream(), out, ConvertOptions(jobs=1, dcm2niix=binary)))

    assert states(records)["converted", None] == 4


def test_a_study_is_complete_once_its_volumes_are_out(tmp_path: Path, out: Path) -> None:
    binary = fake(tmp_path / "dcm2niix", 'grep -q SLOW "$in"/* && sleep 0.5')
    slow, quick = (write_slices(tmp_path, 1, 1, n, StudyDescription=d) for n, d in ((1, "SLOW"), (2, "quick")))
    other = write_slices(tmp_path, 2)
    stream = [*slow, *quick, about("study-complete", slow, "study"), *other, about("study-complete", other, "study")]

    records = list(convert(stream, out, ConvertOptions(jobs=3, dcm2niix=binary)))

    for study in (slow, other):
        of_study = [one for one in records if one["StudyInstanceUID"] == study[0]["StudyInstanceUID"]]
        assert of_study[-1] == about("study-complete", study, "study")
        assert {one["type"] for one in of_study[:-1]} == {"volume"}


def test_an_incomplete_series_is_refused_unless_allowed(tmp_path: Path, out: Path) -> None:
    series = write_slices(tmp_path, count=5)
    incomplete = about("incomplete", series, expected=6, received=5, missing=["1.2.3"])

    refused, told = run([*series, incomplete], out)
    allowed, _ = run([*series, incomplete], out, allow_incomplete=True)

    assert (refused["state"], refused["cause"], refused["exit_code"]) == ("failed", "incomplete", 3)
    assert "5 of 6" in refused["reason"]
    assert told == incomplete
    assert (allowed["state"], allowed["incomplete"]) == ("converted", True)


@pytest.mark.parametrize("first", [True, False])
def test_mark_of_an_incomplete_series_comes_and_goes_with_what_the_stream_says(
    tmp_path: Path, out: Path, first: bool
) -> None:
    series = write_slices(tmp_path)
    incomplete = about("incomplete", series, expected=7, received=6)
    marks = []

    for is_incomplete in (first, first, not first, not first):
        volume = run([*series, *([incomplete] if is_incomplete else [])], out, allow_incomplete=True)[0]
        marks.append((volume["state"], volume.get("incomplete", False)))

    assert marks == [
        ("converted", first),
        ("unchanged", first),
        ("converted", not first),
        ("unchanged", not first),
    ]


def test_file_in_conflict_gives_no_pixels(tmp_path: Path, out: Path) -> None:
    series = write_slices(tmp_path / "archive")
    (other,) = write_slices(tmp_path / "quarantine", count=1, start=(0, 0, 900))
    conflict = {**other, "state": "conflict", "duplicate_of": series[0]["path"]}

    for stream in ([conflict, *series], [conflict, *series[1:]], [*series, conflict]):
        (volume,) = run(stream, out, force=True)

        assert (volume["state"], volume["instances"], volume["audit"]["inside"]) == ("converted", 6, 6)


@pytest.mark.parametrize("state", ["removed", "deleted", "skipped"])
def test_instances_that_are_not_there_are_no_input(tmp_path: Path, out: Path, state: str) -> None:
    series = write_slices(tmp_path)
    gone = {**make_record(1, 1, 1, 99), "path": str(tmp_path / "gone.dcm"), "state": state}

    (volume,) = run([gone, *series], out)

    assert (volume["state"], volume["instances"]) == ("converted", 6)


def test_series_of_which_an_instance_failed_before_is_refused(tmp_path: Path, out: Path) -> None:
    series = write_slices(tmp_path)

    (record,) = run([*series[:5], {**series[5], "state": "failed"}], out)

    assert (record["state"], record["cause"]) == ("failed", "incomplete")


def test_archive_is_no_folder_for_volumes(tmp_path: Path) -> None:
    series = write_slices(tmp_path)
    archive = tmp_path / "archive"
    (archive / ".dcmtools-incoming").mkdir(parents=True)
    (archive / "index.jsonl").touch()

    with pytest.raises(CannotCreate, match="archive"):
        run(series, archive)

    assert sorted(path.name for path in archive.iterdir()) == [".dcmtools-incoming", "index.jsonl"]


def test_what_cannot_be_placed_is_named_by_a_key_and_not_in_the_reason(tmp_path: Path, out: Path) -> None:
    series = write_slices(tmp_path, PatientID="PHANTOM-0-001")
    out.mkdir()
    (out / "PHANTOM-0-001").write_text("no folder")

    (record,) = run(series, out, template="{PatientID}/x")

    assert record["state"] == "failed"
    assert "PHANTOM-0-001" not in record["reason"]
    assert Path(record["path"]).is_relative_to(out)


def test_mode_is_given_to_what_is_unchanged_too_and_only_when_it_is_asked_for(tmp_path: Path, out: Path) -> None:
    series = write_slices(tmp_path)

    def modes(**options: Any) -> tuple[str, list[int]]:
        (volume,) = run(series, out, template="P/x", **options)
        paths = [Path(volume["path"]), Path(volume["files"]["sidecar"]), out / "P"]
        return volume["state"], [path.stat().st_mode & 0o777 for path in paths]

    assert modes() == ("converted", [0o600, 0o600, 0o700])
    assert modes(mode=0o640, dry_run=True) == ("unchanged", [0o600, 0o600, 0o700])
    assert modes(mode=0o640) == ("unchanged", [0o640, 0o640, 0o750])
    assert modes() == ("unchanged", [0o640, 0o640, 0o750])
    assert modes(mode=0o600) == ("unchanged", [0o600, 0o600, 0o750])


def test_what_is_not_ours_passes(tmp_path: Path, out: Path) -> None:
    others: list[Record] = [
        {"type": "node", "name": "PACS"},
        {"type": "never-seen", "x": [1]},
        event("listening", port=1),
    ]

    assert run(others, out) == others


def test_records_that_a_filter_made_thin_are_read_again(tmp_path: Path, out: Path) -> None:
    thin = [{"path": record["path"]} for record in write_slices(tmp_path)]
    (tmp_path / "text").write_text("no image")

    records = run([*thin, {"path": str(tmp_path / "text")}], out)

    assert states(records) == {("converted", None): 1, ("None", "not-dicom"): 1}
    assert records[-1]["audit"]["inside"] == 6


@pytest.mark.parametrize("more", [(), ("ImagePositionPatient",), ("ImageType", "PixelSpacing", "Columns")])
def test_records_without_their_geometry_are_audited_none_the_less(
    tmp_path: Path, out: Path, more: tuple[str, ...]
) -> None:
    uids = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
    kept = ("type", "path", "SOPClassUID", *uids, "Rows", "Modality")
    thin = [{key: record[key] for key in (*kept, *more)} for record in write_slices(tmp_path, missing=[3])]

    records = run(thin, out)

    assert states(records) == {("suspect", "missing-slices"): len(records)}


def test_volume_of_slices_that_tell_no_place_is_suspect(tmp_path: Path, out: Path) -> None:
    nowhere: Record = {"ImagePositionPatient": None, "ImageOrientationPatient": None}

    records = run(write_slices(tmp_path, **nowhere), out)

    assert records
    assert {(record["state"], record["cause"]) for record in records} == {("suspect", "unverified")}


def test_late_instances_bring_the_series_again(tmp_path: Path, out: Path) -> None:
    series = write_slices(tmp_path)

    records = run([*series[:5], about("series-complete", series), *series[5:]], out)

    assert [record.get("instances") for record in records if record["type"] == "volume"] == [5, 6]
    assert len(volumes_in(out)) == 1


def test_a_stream_that_breaks_is_told_after_what_came_before(tmp_path: Path, out: Path) -> None:
    series = write_slices(tmp_path)

    def stream() -> Iterator[Record]:
        yield from series
        yield about("series-complete", series)
        yield from write_slices(tmp_path, 2)
        raise OSError("gone")

    seen: list[Record] = []
    with pytest.raises(OSError, match="gone"):
        seen.extend(convert(stream(), out))

    assert len(volumes_in(out)) == 1


@pytest.mark.parametrize("change", ['cp "$in"/*.1.dcm "$in"/new.dcm', 'touch "$in"/*.1.dcm'])
def test_a_series_that_changes_while_it_is_converted_is_left_for_later(tmp_path: Path, out: Path, change: str) -> None:
    binary = fake(tmp_path / "dcm2niix", change)

    (error,) = run(write_slices(tmp_path), out, dcm2niix=binary)

    assert (error["state"], error["cause"], error["exit_code"]) == ("failed", "changed", 75)
    assert not volumes_in(out)


# Stopping, dying, sharing


def test_after_stop_nothing_is_begun_and_what_runs_is_finished(tmp_path: Path, out: Path) -> None:
    begun, stopped = tmp_path / "begun", threading.Event()
    binary = fake(tmp_path / "dcm2niix", f'touch "{begun}"; sleep 1')
    series = [write_slices(tmp_path, patient) for patient in (1, 2)]

    def stream() -> Iterator[Record]:
        for records in series:
            yield from records
            yield about("series-complete", records)
        wait_until(begun.exists)
        stopped.set()
        yield about("study-complete", series[1], "study")

    options = ConvertOptions(jobs=1, dcm2niix=binary)
    records = list(convert(stream(), out, options, stop=stopped.is_set))

    assert states(records) == {("converted", None): 1, ("None", None): 1, ("failed", "stopped"): 1}
    assert [record["SeriesInstanceUID"] for record in records if record["type"] == "event"] == [
        series[0][0]["SeriesInstanceUID"]
    ]


def test_a_stream_cut_off_by_stop_is_not_taken_for_whole(tmp_path: Path, out: Path) -> None:
    stopped = threading.Event()

    def stream() -> Iterator[Record]:
        yield from write_slices(tmp_path)
        stopped.set()

    assert list(convert(stream(), out, stop=stopped.is_set)) == []
    assert not volumes_in(out)


def test_a_reader_that_goes_away_leaves_nothing_half_done(tmp_path: Path, out: Path) -> None:
    stream = [record for patient in range(1, 5) for record in write_slices(tmp_path, patient)]
    records = convert(stream, out, ConvertOptions(jobs=1))

    next(records)
    records.close()  # type: ignore[attr-defined]

    assert not left_behind(out)
    assert "converted" in {record["state"] for record in run(stream, out)}


SCRIPT = """
import sys
from pathlib import Path
from dcmtools.images.convert_nifti import ConvertOptions, convert
from dcmtools.model.record import decode, encode
options = ConvertOptions(jobs=2, dcm2niix=Path(sys.argv[2]) if len(sys.argv) > 2 else None)
for record in convert(map(decode, sys.stdin.buffer.readlines()), Path(sys.argv[1]), options):
    sys.stdout.buffer.write(encode(record))
    sys.stdout.flush()
"""


def test_kill_leaves_no_partial_file_and_the_next_run_does_the_rest(tmp_path: Path, out: Path) -> None:
    pids = tmp_path / "pids"  # from the third on they never end
    binary = fake(tmp_path / "dcm2niix", f'echo $$ >>"{pids}"; [ $(wc -l <"{pids}") -gt 2 ] && exec sleep 60')
    stream = [record for patient in range(1, 9) for record in write_slices(tmp_path, patient, repeats=2)]
    (tmp_path / "stream").write_bytes(b"".join(map(encode, stream)))

    with (tmp_path / "stream").open("rb") as records:
        killed = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, out, binary], stdin=records, stdout=subprocess.PIPE, start_new_session=True
        )
        wait_until(lambda: pids.exists() and len(pids.read_text().split()) == 4, what="the fourth series")
        wait_until(lambda: len(volumes_in(out)) == 2, what="two volumes")
        killed.kill()
        killed.communicate()
        for orphan in pids.read_text().split()[2:]:
            os.kill(int(orphan), signal.SIGKILL)

    assert left_behind(out)
    for path in volumes_in(out):
        nibabel.Nifti1Image.from_filename(path).get_fdata()
        assert path.with_suffix("").with_suffix(".json").exists()
    records_ = run(stream, out)
    assert sum(states(records_).values()) == 8
    assert {state for state, _ in states(records_)} <= {"converted", "unchanged"}
    assert len(volumes_in(out)) == 8
    assert not left_behind(out)


def test_a_full_disk_is_a_failure_of_74_that_leaves_nothing(tmp_path: Path, out: Path) -> None:
    stream = b"".join(map(encode, write_slices(tmp_path, count=40)))  # of 46 kB

    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, out],
        input=stream,
        capture_output=True,
        check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
    )

    assert b'"cause":"disk-full"' in done.stdout
    assert b'"exit_code":74' in done.stdout
    assert not volumes_in(out)
    assert not left_behind(out)
    assert {record["state"] for record in run([read_header(path) for path in tmp_path.glob("*/*.dcm")], out)} == {
        "converted"
    }


def test_two_runs_into_one_folder_do_not_meet(tmp_path: Path, out: Path) -> None:
    first = convert([*write_slices(tmp_path, 1), *write_slices(tmp_path, 2)], out)
    next(first)

    with pytest.raises(Locked) as problem:
        run([], out)

    assert problem.value.exit_code == 75
    assert list(first)
    assert run([], out) == []


@pytest.mark.parametrize(
    ("options", "kind"), [({"engine": "spm"}, ConfigurationError), ({"template": "{x}"}, UsageError)]
)
def test_what_cannot_work_is_said_before_anything_is_made(
    out: Path, options: dict[str, Any], kind: type[Exception]
) -> None:
    with pytest.raises(kind):
        run([], out, **options)

    assert not out.exists()


def test_the_children_of_a_stopped_session_are_not_interrupted(tmp_path: Path, out: Path) -> None:
    """Ctrl-C goes to the whole group of the terminal; the engine must finish the series in hand."""
    binary = fake(tmp_path / "dcm2niix", f'cut -d" " -f5 /proc/$$/stat >"{tmp_path}/group"')

    run(write_slices(tmp_path), out, dcm2niix=binary)

    assert int((tmp_path / "group").read_text()) != os.getpgrp()
