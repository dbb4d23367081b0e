"""The program that runs dicom2nifti on one series: `python -I dicom2nifti_child.py IN OUT.nii`.

It is a program of its own because dicom2nifti keeps its settings in module globals and may take all memory. It imports
nothing of dcmtools: `-I` lets it see the installed packages only. The last line of its output is `refused: CODE`,
`failed: ExceptionName` or `done`; the fields that the headers have for a sidecar go to OUT.json.
"""

import json
import sys
from pathlib import Path
from typing import Any

# Sidecar field, DICOM keyword, factor: BIDS wants seconds where DICOM has milliseconds.
FIELDS: tuple[tuple[str, str, float], ...] = (
    ("MagneticFieldStrength", "MagneticFieldStrength", 1),
    ("ImagingFrequency", "ImagingFrequency", 1),
    ("ScanningSequence", "ScanningSequence", 1),
    ("SequenceVariant", "SequenceVariant", 1),
    ("MRAcquisitionType", "MRAcquisitionType", 1),
    ("SequenceName", "SequenceName", 1),
    ("EchoTime", "EchoTime", 0.001),
    ("RepetitionTime", "RepetitionTime", 0.001),
    ("InversionTime", "InversionTime", 0.001),
    ("FlipAngle", "FlipAngle", 1),
    ("KVP", "KVP", 1),
    ("ConvolutionKernel", "ConvolutionKernel", 1),
)


def main(folder: str, image: str) -> int:
    """Converts the files in a folder to one volume and returns the exit code."""
    from dicom2nifti.exceptions import ConversionError, ConversionValidationError  # type: ignore[import-untyped]

    try:
        convert(folder, Path(image))
    except (ConversionError, ConversionValidationError) as refusal:
        return _end(f"refused: {refusal}", 3)
    except MemoryError:
        return _end("failed: MemoryError", 4)
    except Exception as problem:  # noqa: BLE001 - whatever it stumbles over, its name is all that we want to know
        return _end(f"failed: {type(problem).__name__}", 4)
    return _end("done", 0)


def convert(folder: str, image: Path) -> None:
    """Writes the volume, its header with the time unit that dicom2nifti leaves out, and the sidecar's fields."""
    from dicom2nifti import common, convert_dicom  # type: ignore[import-untyped]
    from dicom2nifti.exceptions import ConversionError

    headers = common.read_dicom_directory(folder)
    if not headers:
        raise ConversionError("NO_DICOM_FILES_FOUND")
    first = headers[0]
    convert_dicom.dicom_array_to_nifti(headers, str(image), reorient_nifti=False)  # reorienting loses the time step
    _set_time(image, first)
    fields = {name: _plain(first.get(keyword), factor) for name, keyword, factor in FIELDS}
    known = {name: value for name, value in fields.items() if value is not None}
    image.with_suffix(".json").write_text(json.dumps(known), encoding="utf-8")


def _set_time(image: Path, first: Any) -> None:
    """Writes units and time step into the header where it stands, without touching the voxels."""
    from nibabel.nifti1 import Nifti1Header

    with image.open("r+b") as file:
        header = Nifti1Header.from_fileobj(file)  # type: ignore[no-untyped-call]
        header.set_xyzt_units("mm", "sec")
        milliseconds = _plain(first.get("RepetitionTime"), 1)
        if len(header.get_data_shape()) > 3:  # where it is not known nibabel says 1 s
            header["pixdim"][4] = milliseconds / 1000 if isinstance(milliseconds, float) else 0
        file.seek(0)
        header.write_to(file)


def _plain(value: Any, factor: float) -> Any:
    """A header's value as JSON knows it; None when there is none."""
    if value is None or value == "":
        return None
    if not isinstance(value, str) and hasattr(value, "__iter__"):
        return [str(one) for one in value]
    try:
        return float(value) * factor
    except (TypeError, ValueError):
        return str(value)


def _end(last: str, code: int) -> int:
    sys.stdout.write(f"\n{last}\n")
    return code


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:3]))
