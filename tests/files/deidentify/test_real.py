"""De-identified real files: pixels and technical attributes are those of the source, and no MR file is refused."""

import subprocess
from collections import Counter
from pathlib import Path
from shutil import which

import pydicom
import pytest

from dcmtools.files.deidentify import table
from dcmtools.files.deidentify.instance import Deidentifier, Settings
from dcmtools.files.deidentify.profile import Profile
from dcmtools.files.deidentify.pseudonyms import Key
from dcmtools.model.errors import DcmtoolsError

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


@pytest.mark.skipif(not (which("dcmdump") and which("gdcmdump")), reason="needs DCMTK and GDCM")
def test_other_tools_read_the_result(data: Path, tmp_path: Path) -> None:
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
