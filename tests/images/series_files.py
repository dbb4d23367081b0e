"""Series with a place in space and pixels that tell slices apart, made for the tests of conversion."""

import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset

from dcmtools.disk.header import read_header
from dcmtools.model.record import Record
from tests.builders import make_instance

SIDE = 24
OBLIQUE = (0.9383886256, 0.2559241706, 0.2322274882, -0.3127962085, 0.9146919431, 0.2559241706)


def make_slices(
    *numbers: int,
    count: int = 6,
    orientation: Sequence[float] = (1, 0, 0, 0, 1, 0),
    step: Sequence[float] | None = None,
    start: Sequence[float] = (-10, -20, 30),
    repeats: int = 1,
    missing: Iterable[int] = (),
    **keys: Any,
) -> list[Dataset]:
    """The data sets of a series: `repeats` volumes of `count` slices, each a `step` (mm) after the last.

    The default is a step of 3 mm along the normal.
    """
    made = []
    move = 3 * np.cross(orientation[:3], orientation[3:]) if step is None else np.array(step, float)
    for instance in range(1, count * repeats + 1):
        if instance in set(missing):
            continue
        place = (np.array(start, float) + ((instance - 1) % count) * move).round(4)
        told: dict[str, Any] = {
            "ImageType": ["ORIGINAL", "PRIMARY"],
            "ImagePositionPatient": list(place),
            "ImageOrientationPatient": list(orientation),
            "PixelSpacing": [2, 1.5],
            "SliceThickness": 3,
            "EchoTime": 30,
            "RepetitionTime": 60_000,
            "PixelData": _pixels(instance),
            "Manufacturer": "dcmtools",
            "PatientPosition": "HFS",
            "AcquisitionNumber": 1 + (instance - 1) // count,
            "TemporalPositionIdentifier": 1 + (instance - 1) // count,
            "AcquisitionTime": f"12{(instance - 1) // count:02d}00",
            "ProtocolName": "test",
        }
        made.append(make_instance(*_four(numbers, instance), side=SIDE, **{**told, **keys}))
    return made


def write_slices(folder: Path, *numbers: int, **keys: Any) -> list[Record]:
    """Writes what `make_slices` makes, and returns the index' records of it."""
    return write(folder, make_slices(*numbers, **keys))


def write(folder: Path, slices: Iterable[Dataset]) -> list[Record]:
    """Writes data sets below a folder of their series, and returns the index' records of them."""
    records = []
    for one in slices:
        path = folder / one.SeriesInstanceUID / f"{one.SOPInstanceUID}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        one.save_as(path, enforce_file_format=True)
        records.append(read_header(path))
    return records


def write_report(folder: Path, *numbers: int, **keys: Any) -> list[Record]:
    """Writes a structured report, which has no picture."""
    told: dict[str, Any] = dict.fromkeys(("Rows", "Columns", "PixelData", "ImagePositionPatient", "PixelSpacing"))
    told.update(SOPClassUID="1.2.840.10008.5.1.4.1.1.88.22", Modality="SR")
    return write(folder, [make_instance(*numbers, **{**told, **keys})])


def make_mosaic(*numbers: int, tiles: int = 7, normal: Sequence[float] = (0, 0, 1), **keys: Any) -> Dataset:
    """A Siemens mosaic of an axial volume with the part of its private header that says how to cut it."""
    grid = int(np.ceil(np.sqrt(tiles)))
    slab = np.zeros((grid * SIDE, grid * SIDE), np.uint16)
    for tile in range(tiles):
        row, column = divmod(tile, grid)
        slab[row * SIDE : (row + 1) * SIDE, column * SIDE : (column + 1) * SIDE] = _picture(tile + 1)
    told: dict[str, Any] = {
        "ImageType": ["ORIGINAL", "PRIMARY", "M", "MOSAIC"],
        "Manufacturer": "SIEMENS",
        "ImagePositionPatient": [-50, -60, 10],
        "PixelSpacing": [2, 2],
        "SliceThickness": 3,
        "SpacingBetweenSlices": 3,
        "RepetitionTime": 2000,
        "EchoTime": 30,
        "MRAcquisitionType": "2D",
        "PatientPosition": "HFS",
        "ProtocolName": "test",
        "PixelData": slab.tobytes(),
        "Rows": grid * SIDE,
        "Columns": grid * SIDE,
    }
    mosaic = make_instance(*_four(numbers, 1), side=SIDE, **{**told, **keys})
    block = mosaic.private_block(0x0029, "SIEMENS CSA HEADER", create=True)
    block.add_new(0x10, "OB", _csa(NumberOfImagesInMosaic=[str(tiles)], SliceNormalVector=[f"{x:.8f}" for x in normal]))
    return mosaic


def _four(numbers: tuple[int, ...], instance: int) -> tuple[int, ...]:
    return (*(*numbers, 1, 1, 1)[:3], instance)


def _picture(number: int) -> "np.ndarray[Any, np.dtype[np.uint16]]":
    """A picture without symmetry, brighter from slice to slice."""
    rows, columns = np.mgrid[0:SIDE, 0:SIDE]
    return np.asarray(100 * number + 3 * rows + columns, np.uint16)


def _pixels(number: int) -> bytes:
    return _picture(number).tobytes()


def _csa(**tags: Sequence[str]) -> bytes:
    """A CSA2 header, as Siemens has it in (0029,1010)."""
    made = b"SV10\4\3\2\1" + struct.pack("<II", len(tags), 77)
    for name, values in tags.items():
        kind = b"US\0\0" if len(values) == 1 else b"FD\0\0"
        made += struct.pack("<64si4siii", name.encode(), len(values), kind, 4, max(6, len(values)), 77)
        for number in range(max(6, len(values))):
            value = values[number].encode() + b"\0" if number < len(values) else b""
            made += struct.pack("<iiii", len(value), len(value), 77, len(value)) + value + bytes(-len(value) % 4)
    return made
