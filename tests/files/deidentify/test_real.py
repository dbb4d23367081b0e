"""De-identified real files: pixels and technical attributes are those of the source, and no MR file is refused."""

import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import dcm2niix  # type: ignore[import-untyped]
import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

from dcmtools.files.deidentify import table
from dcmtools.files.deidentify.instance import Deidentifier, Settings
from dcmtools.files.deidentify.profile import Profile
from dcmtools.files.deidentify.pseudonyms import Key
from dcmtools.model.errors import DcmtoolsError
from tests.builders import write_instance

TECHNICAL = [
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "PixelSpacing",
    "SliceThickness",
    "SpacingBetweenSlices",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "RepetitionTime",
    "EchoTime",
    "InversionTime",
    "FlipAngle",
    "EchoTrainLength",
    "NumberOfAverages",
    "ImagingFrequency",
    "MagneticFieldStrength",
    "PixelBandwidth",
    "Modality",
    "SeriesNumber",
    "InstanceNumber",
    "AcquisitionNumber",
    "RescaleSlope",
    "RescaleIntercept",
    "WindowCenter",
    "WindowWidth",
    "NumberOfFrames",
    "PatientPosition",
    "ScanningSequence",
    "MRAcquisitionType",
]
# Those of which the publisher gave the patient a name that is in technical texts, too.
NAMED_AFTER_THE_TOOL = {"(0018,0024)"}


def test_pixels_and_technical_attributes_of_real_files_stay(data: Path, tmp_path: Path) -> None:
    engine = Deidentifier(Key(b"k" * 32), Settings(Profile()))
    refused: Counter[str] = Counter()
    done = 0
    for number, source in enumerate(sorted(path for path in (data / "vendors").rglob("*") if path.is_file())):
        target = tmp_path / f"{number}.dcm"
        try:
            outcome = engine.deidentify(source, target)
        except DcmtoolsError as problem:
            refused[problem.cause] += 1
            continue
        before, after = pydicom.dcmread(source), pydicom.dcmread(target)
        assert after.file_meta.TransferSyntaxUID == before.file_meta.TransferSyntaxUID
        assert after.PixelData == before.PixelData
        assert set(outcome.cleaned) <= NAMED_AFTER_THE_TOOL
        for keyword in TECHNICAL:
            assert after.get(keyword) == before.get(keyword), (source, keyword)
        done += 1
        target.unlink()
    assert refused == {"burned-in": 4}  # secondary captures
    assert done == 255


def test_odd_files_are_done_or_refused_and_never_break_the_engine(data: Path, tmp_path: Path) -> None:
    engine = Deidentifier(Key(b"k" * 32), Settings(Profile(), burned_in="allow"))
    causes: Counter[str] = Counter()
    for number, source in enumerate(sorted((data / "odd").iterdir())):
        target = tmp_path / f"{number}.dcm"
        try:
            engine.deidentify(source, target)
        except DcmtoolsError as problem:
            causes[problem.cause] += 1
            assert not target.exists()
        else:
            causes["done"] += 1
            read = pydicom.dcmread(target)
            assert not any(row.basic == "X" and tag in read for tag, row in table.rows().items())
            assert read.get("PixelData") == pydicom.dcmread(source, force=True).get("PixelData")
    assert causes["done"] >= 60, causes
    assert set(causes) <= {"done", "bad-uid", "not-dicom", "truncated", "bad-length", "burned-in"}, causes


def test_other_tools_read_the_result(peers: None, data: Path, tmp_path: Path) -> None:
    engine = Deidentifier(Key(b"k" * 32), Settings(Profile()))
    sources = [
        next(path for path in sorted(folder.rglob("*")) if path.is_file())
        for folder in sorted((data / "vendors").iterdir())
    ]
    for number, source in enumerate(sources):
        target = tmp_path / f"{number}.dcm"
        try:
            engine.deidentify(source, target)
        except DcmtoolsError:
            continue
        for program in ("dcmdump", "gdcmdump"):
            done = subprocess.run([program, target], capture_output=True, check=False)
            assert done.returncode == 0, (program, source)
            assert not [line for line in done.stderr.splitlines() if line.startswith(b"E:")], (program, source)


ALL = Profile(
    retain_device_identity=True, retain_institution_identity=True, retain_dates="modified", clean_graphics=True,
    retain_patient_characteristics=True, clean_descriptors=True, clean_structured_content=True,
    retain_safe_private=True,
)  # fmt: skip
# A patient is called as the part of the body is, which goes therefore, so that Laterality is required; and the table
# wants the references of a segmentation to be empty (X/Z/U* where they are of Type 2), of which the series are told.
EXPECTED = {"Type 2C Conditional Element=<Laterality>", "attribute <ReferencedSeriesSequence>"}


def _errors(path: Path) -> Counter[str]:
    done = subprocess.run(["dciodvfy", path], capture_output=True, check=False)
    said = (done.stdout + done.stderr).decode("latin_1").splitlines()
    return Counter(line for line in said if line.startswith("Error"))


def test_result_has_no_error_that_the_source_has_not(peers: None, data: Path, tmp_path: Path) -> None:
    engines = [Deidentifier(Key(b"k" * 32), Settings(profile, burned_in="allow")) for profile in (Profile(), ALL)]
    sources = [*_one_of_each_series(data), *sorted((data / "odd").iterdir())]
    new: Counter[str] = Counter()
    done = 0
    for source in sources:
        before: Counter[str] | None = None
        for engine in engines:
            target = tmp_path / "result.dcm"
            target.unlink(missing_ok=True)
            try:
                engine.deidentify(source, target)
            except DcmtoolsError:
                continue
            before = _errors(source) if before is None else before
            new += _errors(target) - before
            done += 1
    assert done >= 240
    assert {line for line in new if not any(one in line for one in EXPECTED)} == set()


def _one_of_each_series(data: Path) -> list[Path]:
    folders = sorted({path.parent for path in (data / "vendors").rglob("*") if path.is_file()})
    return [next(path for path in sorted(folder.iterdir()) if path.is_file()) for folder in folders]


# Of these the scale is in private elements, or the tiles of a mosaic are; none has a creator that says whose they are.
NEEDS_PRIVATE = {
    "philips/anatomical/002", "philips_enhanced/anatomical/001", "philips_enhanced/dti/001",
    "philips_enhanced/fmri/001", "siemens/dti/001",
}  # fmt: skip


def test_result_converts_to_the_same_nifti(data: Path, tmp_path: Path) -> None:
    engine = Deidentifier(Key(b"k" * 32), Settings(Profile(), burned_in="allow"))
    root = data / "vendors"
    series = sorted({path.parent for path in root.rglob("*") if path.is_file() and "_implicit" not in str(path)})
    different = set()
    for number, folder in enumerate(series):
        result = tmp_path / f"{number}"
        result.mkdir()
        for place, source in enumerate(sorted(path for path in folder.iterdir() if path.is_file())):
            engine.deidentify(source, result / f"{place}.dcm")
        before, after = (_converted(one, tmp_path / f"{number}-{at}") for at, one in enumerate((folder, result)))
        if not (len(before) == len(after) and all(map(_is_same, before, after))):
            different.add(folder.relative_to(root).as_posix())
        shutil.rmtree(result)
    assert len(series) >= 30
    assert different == NEEDS_PRIVATE


def _converted(folder: Path, out: Path) -> list[nib.Nifti1Image]:
    out.mkdir()
    subprocess.run(
        [dcm2niix.bin, "-f", "%r_%s", "-b", "n", "-z", "n", "-o", out, folder], capture_output=True, check=True
    )
    return [nib.Nifti1Image.from_filename(path) for path in sorted(out.glob("*.nii"))]


def _is_same(one: nib.Nifti1Image, other: nib.Nifti1Image) -> bool:
    return bool(
        np.allclose(one.affine, other.affine, atol=1e-4)
        and np.array_equal(np.asanyarray(one.dataobj), np.asanyarray(other.dataobj))
    )


MEASURED = """
import re, sys
from pathlib import Path
from dcmtools.files.deidentify.instance import Deidentifier, Settings
from dcmtools.files.deidentify.profile import Profile
from dcmtools.files.deidentify.pseudonyms import Key

Deidentifier(Key(b"k" * 32), Settings(Profile())).deidentify(sys.argv[1], Path(sys.argv[2]))
print(re.search("VmHWM: *(\\d+)", Path("/proc/self/status").read_text().replace("\\t", " "))[1])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian])
def test_memory_is_far_below_the_size_of_the_pixels(syntax: str, tmp_path: Path) -> None:
    source = write_instance(tmp_path / "in.dcm", syntax=syntax, side=1024, NumberOfFrames=128, PatientName="Zwenti^Q")
    read = pydicom.dcmread(source)
    read.PixelData = bytes(range(256)) * (1024 * 1024 * 128 * read.BitsAllocated // 8 // 256)
    read.save_as(source)
    size = len(read.PixelData)

    done = subprocess.run(
        [sys.executable, "-c", MEASURED, source, tmp_path / "out.dcm"], capture_output=True, check=True, text=True
    )

    assert size >= 128 << 20
    assert int(done.stdout) << 10 < 100 << 20
    assert pydicom.dcmread(tmp_path / "out.dcm").PixelData == read.PixelData
