"""One series becomes volumes: what is in the records, in the files, and in a second run."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from pydicom import dcmread

from dcmtools.images.convert_nifti import ConvertOptions, convert
from dcmtools.model.record import Record, encode
from tests.images.series_files import OBLIQUE, make_mosaic, make_slices, write, write_report, write_slices


def run(records: list[Record], out: Path, **options: Any) -> list[Record]:
    return list(convert(records, out, ConvertOptions(**options)))


def only(records: list[Record]) -> Record:
    (record,) = records
    return record


def files_in(out: Path) -> set[str]:
    """The names of all files but our own."""
    return {path.name for path in out.rglob("*") if path.is_file() and not path.name.startswith(("conv", ".dcm"))}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "nifti"


@pytest.mark.parametrize("engine", ["dcm2niix", "dicom2nifti"])
@pytest.mark.parametrize("orientation", [(1, 0, 0, 0, 1, 0), OBLIQUE, (0, 1, 0, 0, 0, -1)])
def test_every_voxel_lies_where_its_slice_says(
    tmp_path: Path, out: Path, engine: str, orientation: tuple[float, ...]
) -> None:
    records = write_slices(tmp_path, orientation=orientation)

    volume = only(run(records, out, engine=engine))

    image = nibabel.Nifti1Image.from_filename(volume["path"])
    to_voxel = np.linalg.inv(image.affine) @ np.diag([-1, -1, 1, 1])
    for record in records:
        header = dcmread(record["path"])
        place, (along, down) = np.array(header.ImagePositionPatient), np.array(orientation).reshape(2, 3)
        for row, column in ((0, 0), (3, 17), (20, 5)):
            point = place + along * column * 1.5 + down * row * 2
            voxel = tuple(np.rint((to_voxel @ [*point, 1])[:3]).astype(int))
            assert image.dataobj[voxel] == header.pixel_array[row, column]


def test_a_volume_says_what_it_is_and_where_it_comes_from(tmp_path: Path, out: Path) -> None:
    records = write_slices(tmp_path, repeats=2, RepetitionTime=60_000)

    volume = only(run(records, out))

    assert (volume["type"], volume["state"], volume["engine"]) == ("volume", "converted", "dcm2niix")
    assert volume["shape"] == [24, 24, 6, 2]
    assert volume["zooms"] == [1.5, 2.0, 3.0]
    assert volume["tr"] == pytest.approx(60)
    assert volume["instances"] == 12
    assert volume["audit"] == {"slices": 12, "positions": 12, "inside": 12, "max_error_mm": 0.0, "flags": []}
    for key in ("StudyInstanceUID", "SeriesInstanceUID", "PatientID", "PatientName", "StudyDate", "AccessionNumber"):
        assert volume[key] == records[0][key]
    for key in ("ReferringPhysicianName", "Modality", "SeriesNumber", "SeriesDescription", "StudyDescription"):
        assert volume[key] == records[0][key]
    assert volume["sha256"] == hashlib.sha256(Path(volume["path"]).read_bytes()).hexdigest()
    assert encode(volume)


def test_the_sidecar_has_the_engines_fields_and_our_block(tmp_path: Path, out: Path) -> None:
    volume = only(run(write_slices(tmp_path, EchoTime=12), out))

    sidecar = json.loads(Path(volume["files"]["sidecar"]).read_text())

    assert sidecar["EchoTime"] == pytest.approx(0.012)
    assert sidecar["dcmtools"]["digest"] == volume["digest"]
    assert sidecar["dcmtools"]["audit"]["inside"] == 6


def test_equal_input_gives_equal_bytes(tmp_path: Path) -> None:
    records = write_slices(tmp_path)

    one, other = (only(run(records, tmp_path / name)) for name in ("1", "2"))

    for kind in ("path", "sidecar"):
        paths = [volume["path"] if kind == "path" else volume["files"][kind] for volume in (one, other)]
        assert Path(paths[0]).read_bytes() == Path(paths[1]).read_bytes()


def test_files_are_for_their_owner_only_unless_told_otherwise(tmp_path: Path) -> None:
    records = write_slices(tmp_path)

    private = Path(only(run(records, tmp_path / "1"))["path"])
    shared = Path(only(run(records, tmp_path / "2", mode=0o640))["path"])

    assert [path.stat().st_mode & 0o777 for path in (private, private.parent)] == [0o600, 0o700]
    assert [path.stat().st_mode & 0o777 for path in (shared, shared.parent)] == [0o640, 0o750]


# What is not as it should be


@pytest.mark.parametrize(
    ("keys", "cause"), [({"step": (0, 0.7, 3)}, "gantry-tilt"), ({"missing": [3]}, "missing-slices")]
)
def test_what_fails_the_audit_is_kept_apart_and_flagged_again_by_the_next_run(
    tmp_path: Path, out: Path, keys: Record, cause: str
) -> None:
    records = write_slices(tmp_path, **keys)

    for _ in range(2):
        volume = run(records, out)[0]

        assert (volume["state"], volume["cause"], volume["exit_code"]) == ("suspect", cause, 3)
        assert Path(volume["path"]).relative_to(out).parts[0] == "_suspect"
        assert volume["reason"]
        assert volume["advice"]


def test_a_truncated_slice_is_a_failure_that_leaves_nothing(tmp_path: Path, out: Path) -> None:
    records = write_slices(tmp_path)
    os.truncate(records[2]["path"], records[2]["size"] - 300)

    error = only(run(records, out))

    assert (error["type"], error["state"], error["cause"], error["exit_code"]) == ("error", "failed", "truncated", 65)
    assert error["SeriesInstanceUID"] == records[0]["SeriesInstanceUID"]
    assert error["engine"] == "dcm2niix"
    assert error["instances"] == 6
    assert not files_in(out)


def test_a_file_that_is_gone_is_a_failure(tmp_path: Path, out: Path) -> None:
    records = write_slices(tmp_path)
    Path(records[0]["path"]).unlink()

    assert only(run(records, out))["exit_code"] == 66


def test_a_report_is_skipped(tmp_path: Path, out: Path) -> None:
    skipped = only(run(write_report(tmp_path), out))

    assert (skipped["type"], skipped["state"], skipped["cause"]) == ("series", "skipped", "not-an-image")
    assert "exit_code" not in skipped


def test_a_clip_without_a_place_is_skipped_and_no_process_is_started(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = make_slices(
        count=1,
        SOPClassUID="1.2.840.10008.5.1.4.1.1.3.1",
        Modality="US",
        NumberOfFrames=3,
        PixelData=(bytes(range(256)) * 14)[: 24 * 24 * 2 * 3],
        ImagePositionPatient=None,
        ImageOrientationPatient=None,
    )
    monkeypatch.setattr("subprocess.Popen", None)

    skipped = only(run(write(tmp_path, clip), out))

    assert (skipped["state"], skipped["cause"]) == ("skipped", "no-geometry")


@pytest.mark.parametrize(
    ("keys", "outcome"),
    [
        ({}, ("suspect", "unverified")),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "M", "VFRAME"]}, ("converted", None)),  # the engine knows where to look
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.1", "Modality": "CR"}, ("converted", None)),  # none was to be told
    ],
)
def test_an_image_without_a_place_is_converted_where_the_engine_can(
    tmp_path: Path, out: Path, keys: Record, outcome: tuple[str, str | None]
) -> None:
    nowhere: Record = {"ImagePositionPatient": None, "ImageOrientationPatient": None}
    records = write(tmp_path, make_slices(count=1, **nowhere, **keys))

    volume = only(run(records, out))

    assert (volume["state"], volume.get("cause")) == outcome
    assert volume["shape"] == [24, 24, 1]
    assert volume["audit"]["positions"] == 0


def test_an_image_without_a_place_is_skipped_where_the_engine_cannot(tmp_path: Path, out: Path) -> None:
    records = write(tmp_path, make_slices(count=1, ImagePositionPatient=None, ImageOrientationPatient=None))

    for _ in range(2):
        skipped = only(run(records, out, engine="dicom2nifti"))

        assert (skipped["state"], skipped["cause"]) == ("skipped", "no-geometry")


def test_mosaics_are_held_against_a_second_implementation(tmp_path: Path, out: Path) -> None:
    for number, direction in ((1, 1), (2, -1)):
        volume = only(run(write(tmp_path, [make_mosaic(number, normal=(0, 0, direction))]), out))

        assert volume["state"] == "converted"
        assert volume["shape"] == [24, 24, 7]
        assert volume["audit"]["inside"] == 7


# A second run


def test_what_is_unchanged_starts_no_process_and_says_the_same(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [*write_slices(tmp_path, 1), *write_slices(tmp_path, 2), *write_report(tmp_path, 3)]
    first = run(records, out, jobs=1)
    monkeypatch.setattr("subprocess.Popen", None)

    second = run(records, out, jobs=1)

    assert [record["state"] for record in second] == ["unchanged", "unchanged", "skipped"]
    assert [{**record, "state": ""} for record in second] == [{**record, "state": ""} for record in first]


def test_a_corrected_header_is_told_although_nothing_is_converted(tmp_path: Path, out: Path) -> None:
    records = write_slices(tmp_path)
    run(records, out)

    volume = only(run([{**record, "ReferringPhysicianName": "Other^Doctor"} for record in records], out))

    assert (volume["state"], volume["ReferringPhysicianName"]) == ("unchanged", "Other^Doctor")


def _arrive(tmp_path: Path, records: list[Record], out: Path) -> None:
    records += write_slices(tmp_path, count=7)[-1:]


def _touch(tmp_path: Path, records: list[Record], out: Path) -> None:
    os.utime(records[0]["path"], ns=(1, 1))


def _delete(tmp_path: Path, records: list[Record], out: Path) -> None:
    next(out.rglob("*.json")).unlink()


@pytest.mark.parametrize("change", [_arrive, _touch, _delete])
def test_what_changed_is_converted_again_in_place(tmp_path: Path, out: Path, change: Any) -> None:
    records = write_slices(tmp_path)
    names = {path.name for path in map(Path, [only(run(records, out))["path"]])}
    change(tmp_path, records, out)

    volume = only(run(records, out))

    assert volume["state"] == "converted"
    assert Path(volume["path"]).name in names
    assert len(files_in(out)) == 2
    assert only(run(records, out))["state"] == "unchanged"


def test_another_template_moves_the_volume(tmp_path: Path, out: Path) -> None:
    records = write_slices(tmp_path)
    run(records, out)

    volume = only(run(records, out, template="{Modality}/{SeriesNumber:03d}"))

    assert Path(volume["path"]).relative_to(out) == Path("MR/001.nii.gz")
    assert files_in(out) == {"001.nii.gz", "001.json"}
    assert not (out / "P1").exists()


def test_force_converts_again(tmp_path: Path, out: Path) -> None:
    records = write_slices(tmp_path)
    run(records, out)

    assert only(run(records, out, force=True))["state"] == "converted"


def test_a_suspect_series_that_is_mended_leaves_the_suspects(tmp_path: Path, out: Path) -> None:
    records = write_slices(tmp_path, missing=[3])
    run(records, out)

    volume = only(run([*records, *write_slices(tmp_path)], out))

    assert volume["state"] == "converted"
    assert not (out / "_suspect").exists()


def test_a_failure_leaves_what_was_converted_before(tmp_path: Path, out: Path) -> None:
    records = write_slices(tmp_path)
    before = only(run(records, out))
    os.truncate(records[2]["path"], records[2]["size"] - 300)

    assert only(run(records, out))["state"] == "failed"
    assert Path(before["path"]).exists()


def test_a_sidecar_that_a_person_edited_is_kept_and_named(tmp_path: Path, out: Path) -> None:
    records = write_slices(tmp_path)
    sidecar = Path(only(run(records, out))["files"]["sidecar"])
    sidecar.write_text('{"by": "hand"}')

    unchanged = only(run(records, out))
    forced = only(run(records, out, force=True))

    assert (unchanged["state"], unchanged["edited"]) == ("unchanged", [str(sidecar)])
    assert (forced["state"], forced["edited"]) == ("converted", [str(sidecar)])
    assert sidecar.read_text() == '{"by": "hand"}'
    assert "edited" not in only(run(records, out, overwrite_edited=True))
    assert "dcmtools" in sidecar.read_text()


def test_an_output_folder_can_be_moved(tmp_path: Path, out: Path) -> None:
    records = write_slices(tmp_path)
    run(records, out)
    moved = out.rename(tmp_path / "moved")

    volume = only(run(records, moved))

    assert volume["state"] == "unchanged"
    assert Path(volume["path"]).is_relative_to(moved)
    assert Path(volume["path"]).exists()


def test_a_dry_run_says_the_plan_and_writes_nothing(tmp_path: Path, out: Path) -> None:
    planned = only(run(write_slices(tmp_path), out, dry_run=True))

    assert (planned["type"], planned["state"]) == ("series", "planned")
    assert Path(planned["path"]).name.startswith("0001_Series_1_")
    assert not out.exists()
