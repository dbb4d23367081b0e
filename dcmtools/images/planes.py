"""Where the slices of a series lie, as their headers say: what the audit holds a volume against.

All coordinates are millimetres in the patient's system of DICOM, which points left, posterior and head (PS3.3
C.7.6.2.1.1).
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dcmtools.disk.values import quiet
from dcmtools.model.record import Record, path_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

# Whose frames never have a position: not worth a look into the file (ultrasound, secondary capture, photographs).
_FLAT_SUFFIXES = ("3.1", "6.1", "7", "7.1", "7.2", "7.3", "7.4", "77.1.1", "77.1.1.1", "77.1.2.1", "77.1.4", "77.1.4.1")
FLAT = frozenset(f"1.2.840.10008.5.1.4.1.1.{suffix}" for suffix in _FLAT_SUFFIXES)
# CT, MR and PET, classic, enhanced and converted: whose slices have a position (PS3.3 C.7.6.2, C.7.6.16.2.3).
_PLACED_SUFFIXES = ("2", "2.1", "2.2", "4", "4.1", "4.3", "4.4", "128", "128.1", "130")
_PLACED = frozenset(f"1.2.840.10008.5.1.4.1.1.{suffix}" for suffix in _PLACED_SUFFIXES)
_ONE_AT_A_TIME = (
    threading.Lock()
)  # to silence warnings, which nibabel's reader and pydicom have many of, is for all threads
_PER_FRAME = 0x52009230  # PerFrameFunctionalGroupsSequence
_SHARED = 0x52009229  # SharedFunctionalGroupsSequence


@dataclass(frozen=True, slots=True)
class Planes:
    """The n positioned slices of a series."""

    first: "Array"  # n x 3: the centre of the first voxel of each slice
    last: "Array"  # n x 3: of the voxel at the far end of its diagonal
    normal: "Array"  # n x 3: unit vectors

    def __len__(self) -> int:
        return len(self.first)


@dataclass(frozen=True, slots=True)
class Layout:
    """What went into a series' volumes."""

    planes: Planes  # those slices whose place is known
    frames: int = 0  # slices of pixels, without mosaics
    mosaics: int = 0
    tiles: int = 0  # of each mosaic; 0 when its header does not say
    tile_sums: tuple[float, ...] = ()  # of the first mosaic's voxels, tile by tile; empty when they cannot be decoded
    placeless: bool = False  # no slice tells its place, though each should

    @property
    def complete(self) -> bool:
        """Whether the place of every slice is known."""
        return len(self.planes) == self.frames and not self.mosaics


@dataclass(frozen=True, slots=True)
class Slice:
    """One slice's geometry."""

    position: Sequence[float]
    orientation: Sequence[float]  # the direction of a row, then of a column
    spacing: Sequence[float]  # between rows, between columns
    rows: int
    columns: int


def planes_of(slices: Sequence[Slice]) -> Planes:
    """The slices as arrays."""
    position = np.array([one.position for one in slices], float).reshape(-1, 3)
    along = np.array([one.orientation for one in slices], float).reshape(-1, 2, 3)
    step = np.array([(one.spacing[1], one.spacing[0]) for one in slices], float).reshape(-1, 2)
    count = np.array([(one.columns - 1, one.rows - 1) for one in slices], float).reshape(-1, 2)
    last = position + np.einsum("nk,nkd->nd", step * count, along)
    normal = np.cross(along[:, 0], along[:, 1])
    length = np.linalg.norm(normal, axis=1, keepdims=True)
    return Planes(position, last, normal / np.where(length > 0, length, 1))


def layout_of(records: Sequence[Record]) -> Layout:
    """What the instances of a series hold, and where."""
    if mosaics := [record for record in records if is_mosaic(record)]:
        return _mosaic_layout(mosaics)
    slices = [one for record in records for one in slices_of(record)]
    frames = sum(frames_of(record) for record in records)
    placeless = not slices and any(_should_have_place(record) for record in records)
    return Layout(planes_of(slices), frames=frames, placeless=placeless)


def _should_have_place(record: Record) -> bool:
    """Whether it is of CT, MR or PET, and not in the way of United Imaging: their frames lie in private sequences."""
    kinds = record.get("ImageType") or ()
    return record.get("SOPClassUID") in _PLACED and not ("VFRAME" in kinds or "GRID" in kinds)


def _mosaic_layout(mosaics: Sequence[Record]) -> Layout:
    """Reading a mosaic's private header takes milliseconds: it is done once for each place and not for each mosaic."""
    places: dict[str, Record] = {}
    for record in mosaics:
        places.setdefault(str([record.get("ImagePositionPatient"), record.get("ImageOrientationPatient")]), record)
    tiles = [_positioned(_tiles, record) for record in places.values()]
    count = len(tiles[0])
    if any(len(one) != count for one in tiles):
        return Layout(planes_of([]), mosaics=len(mosaics))
    sums = _tile_sums(mosaics[0]) if count else ()
    return Layout(planes_of([tile for one in tiles for tile in one]), mosaics=len(mosaics), tiles=count, tile_sums=sums)


def slices_of(record: Record) -> list[Slice]:
    """The positioned slices of an instance that is no mosaic: its own or its frames'; none when it has none."""
    if record.get("ImagePositionPatient") and frames_of(record) == 1:
        return _classic(record)
    return _positioned(_frames, record) if record.get("SOPClassUID") not in FLAT else []


def _positioned(read: Callable[[Record], Iterator[Slice]], record: Record) -> list[Slice]:
    try:
        with _ONE_AT_A_TIME, quiet():
            return list(read(record))
    except Exception:  # noqa: BLE001 - nibabel and pydicom raise what they like on a header that has no position
        return []


def frames_of(record: Record) -> int:
    """How many slices of pixels an instance holds; a mosaic counts as one."""
    try:
        return max(1, int(record.get("NumberOfFrames") or 1))
    except (TypeError, ValueError):
        return 1


def is_mosaic(record: Record) -> bool:
    """Whether the instance is a Siemens mosaic: a whole volume laid out in one picture."""
    kinds = record.get("ImageType") or ()
    return "MOSAIC" in kinds and frames_of(record) == 1


def _classic(record: Record) -> list[Slice]:
    spacing, orientation = record.get("PixelSpacing"), record.get("ImageOrientationPatient")
    position = record.get("ImagePositionPatient")
    if not (_numbers(spacing, 2) and _numbers(orientation, 6) and _numbers(position, 3)):
        return []
    return [_slice(position, orientation, spacing, record.get("Rows"), record.get("Columns"))]


def _slice(position: Any, orientation: Any, spacing: Any, rows: Any, columns: Any) -> Slice:
    def floats(values: Any) -> tuple[float, ...]:
        return tuple(float(value) for value in values)

    return Slice(floats(position), floats(orientation), floats(spacing), int(rows or 1), int(columns or 1))


def _numbers(value: object, count: int) -> bool:
    return isinstance(value, list) and len(value) == count and all(isinstance(one, (int, float)) for one in value)


def _frames(record: Record) -> Iterator[Slice]:
    """The frames of an enhanced image, from its functional groups (PS3.3 C.7.6.16)."""
    header = _header(record, _PER_FRAME, _SHARED, 0x00280010, 0x00280011)
    shared = list(header.get("SharedFunctionalGroupsSequence") or [])[:1]
    for frame in header.PerFrameFunctionalGroupsSequence:
        groups = [frame, *shared]

        def of(sequence: str, keyword: str, groups: Sequence[Any] = groups) -> Any:
            group = next(one for one in groups if sequence in one)
            return group[sequence].value[0][keyword].value

        yield _slice(
            of("PlanePositionSequence", "ImagePositionPatient"),
            of("PlaneOrientationSequence", "ImageOrientationPatient"),
            of("PixelMeasuresSequence", "PixelSpacing"),
            header.Rows,
            header.Columns,
        )


def _tiles(record: Record) -> Iterator[Slice]:
    """The tiles of a Siemens mosaic, read by a second implementation: nibabel's, from the vendor's private header."""
    mosaic = _mosaic(record)
    rows, columns, count = mosaic.image_shape
    spacing = mosaic.get("PixelSpacing")
    orientation = mosaic.get("ImageOrientationPatient")
    for number in range(int(count)):
        yield _slice(mosaic.affine[:3] @ [0, 0, number, 1], orientation, spacing, rows, columns)


def _tile_sums(record: Record) -> tuple[float, ...]:
    try:
        with _ONE_AT_A_TIME, quiet():
            data = _mosaic(record, pixels=True).get_unscaled_data()
    except Exception:  # noqa: BLE001 - a syntax without decoder, a length that does not fit: then there is no such check
        return ()
    return tuple(float(one) for one in data.sum(axis=(0, 1), dtype=np.float64))


def _mosaic(record: Record, *, pixels: bool = False) -> Any:
    from nibabel.nicom.dicomwrappers import MosaicWrapper

    return MosaicWrapper(_header(record, pixels=pixels))  # type: ignore[no-untyped-call]


def _header(record: Record, *tags: int, pixels: bool = False) -> Any:
    from pydicom import dcmread

    return dcmread(path_of(record) or "", stop_before_pixels=not pixels, specific_tags=list(tags) or None)
