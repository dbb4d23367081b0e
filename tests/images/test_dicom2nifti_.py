"""The engine dicom2nifti."""

import json
from pathlib import Path
from typing import Any

import nibabel
import pytest

from dcmtools.images.dicom2nifti_ import CAUSES, Dicom2nifti
from dcmtools.images.engine import Limits, Run
from dcmtools.images.staging import staged
from dcmtools.model.record import Record
from tests.images.series_files import write_slices


def run(tmp_path: Path, records: list[Record], source: Record | None = None) -> Run:
    with staged(tmp_path, [Path(record["path"]) for record in records]) as here:
        result = Dicom2nifti.found().run(here, source or {}, Limits())
        for output in result.outputs:
            output.image.rename(tmp_path / "v.nii")
        return result


def test_a_time_series_keeps_its_time_step_and_its_unit(tmp_path: Path) -> None:
    records = write_slices(tmp_path, repeats=2, RepetitionTime=2500)

    result = run(tmp_path, records)

    header: Any = nibabel.Nifti1Image.from_filename(tmp_path / "v.nii").header
    assert not result.cause
    assert header.get_zooms()[3] == pytest.approx(2.5)
    assert header.get_xyzt_units() == ("mm", "sec")


def test_a_time_step_that_no_header_tells_is_not_invented(data: Path, tmp_path: Path) -> None:
    enhanced = data / "vendors" / "philips_enhanced" / "fmri" / "001"

    run(tmp_path, [{"path": str(path)} for path in enhanced.iterdir()])

    image = nibabel.Nifti1Image.from_filename(tmp_path / "v.nii")
    assert image.shape == (64, 64, 8, 4)
    assert image.header["pixdim"][4] == 0


def test_its_sidecar_says_what_index_and_headers_know_in_seconds(tmp_path: Path) -> None:
    records = write_slices(tmp_path, EchoTime=30, InversionTime=900, FlipAngle=8)

    (output,) = run(tmp_path, records, {"Modality": "MR", "SeriesNumber": 7, "EchoTime": 30}).outputs

    assert output.header["Modality"] == "MR"
    assert output.header["SeriesNumber"] == 7
    assert output.header["EchoTime"] == pytest.approx(0.03)
    assert output.header["InversionTime"] == pytest.approx(0.9)
    assert output.header["FlipAngle"] == 8
    assert json.dumps(dict(output.header))


@pytest.mark.parametrize(
    ("keys", "cause"),
    [
        ({"count": 2}, "too-few-slices"),
        ({"missing": [3]}, "uneven-slices"),
        ({"step": (0, 1, 3)}, "gantry-tilt"),
        ({"ImageOrientationPatient": None}, "no-image"),
        ({"PixelSpacing": None}, "engine-failed"),
    ],
)
def test_what_it_refuses_has_a_code_of_ours(tmp_path: Path, keys: Record, cause: str) -> None:
    result = run(tmp_path, write_slices(tmp_path, **keys))

    assert (result.outputs, result.cause) == ((), cause)


def test_all_its_codes_are_known() -> None:
    package = Path(pytest.importorskip("dicom2nifti").__file__).parent
    raised = {
        line.split("(", 1)[1].strip("\n )'\"")
        for path in package.glob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if "raise Conversion" in line
    }

    assert {code for code in raised if code.replace("/", "_").isupper()} <= set(CAUSES)
