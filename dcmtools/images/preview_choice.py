"""Which slice shows a series best: the one in the middle, along the normal of the slices."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from dcmtools.model.record import Record

_FIRST_IN_TIME = ("TemporalPositionIdentifier", "AcquisitionNumber", "InstanceNumber")
_MR_SPECTROSCOPY = "1.2.840.10008.5.1.4.1.1.4.2"
Vector = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class View:
    """A picture to be: the frame (from 0) of one instance, that stands for all of `sources`; `name` is its UID."""

    record: Record
    frame: int
    sources: Sequence[Record]
    name: str

    @property
    def is_one_frame(self) -> bool:
        """Whether it shows one of the frames of one instance, and not one image of a series."""
        return _frames(self.record) > 1


def is_image(record: Record) -> bool:
    """Whether an instance has pixels: SR, RT structures or PDF have no rows, spectra have other ones."""
    is_spectrum = record.get("SOPClassUID") == _MR_SPECTROSCOPY
    return bool(record.get("Rows") and record.get("Columns")) and not is_spectrum


def views(series: Sequence[Record]) -> Iterator[View]:
    """The pictures of a series: one of all its single frames, and one of each multi-frame instance."""
    single = [record for record in series if is_image(record) and _frames(record) < 2]
    if single:
        yield View(middle(single), 0, single, str(single[0].get("SeriesInstanceUID")))
    for record in series:
        if is_image(record) and (frames := _frames(record)) > 1:
            yield View(record, frames // 2, [record], str(record.get("SOPInstanceUID")))


def middle(images: Sequence[Record]) -> Record:
    """The image in the middle of the largest stack; the first in time of those at the same place.

    Images that lie nowhere are taken in the order of their numbers.
    """
    stacks: dict[Any, list[tuple[float, Record]]] = defaultdict(list)
    for record in images:
        row, column = _vectors(record.get("ImageOrientationPatient"), 6)
        (position,) = _vectors(record.get("ImagePositionPatient"), 3)
        if row and column and position:
            normal = _cross(row, column)
            along = sum(here * there for here, there in zip(position, normal, strict=True))
            stacks[tuple(round(part, 2) for part in (*row, *column))].append((round(along, 3), record))
    if not stacks:
        ordered = sorted(images, key=_in_time)
        return ordered[len(ordered) // 2]
    stack = max(stacks.values(), key=len)
    places = sorted({along for along, _ in stack})
    chosen = places[len(places) // 2]
    return min((record for along, record in stack if along == chosen), key=_in_time)


def _frames(record: Record) -> int:
    frames = record.get("NumberOfFrames")
    return frames if isinstance(frames, int) else 1


def _vectors(value: Any, count: int) -> list[Vector | None]:
    """The values of an attribute in threes; None for each when they are not so many numbers."""
    if isinstance(value, list) and len(value) == count and all(isinstance(part, (int, float)) for part in value):
        return [(value[at], value[at + 1], value[at + 2]) for at in range(0, count, 3)]
    return [None] * (count // 3)


def _cross(one: Vector, other: Vector) -> Vector:
    (a, b, c), (d, e, f) = one, other
    return (b * f - c * e, c * d - a * f, a * e - b * d)


def _in_time(record: Record) -> tuple[float | str, ...]:
    numbers = (record.get(keyword) for keyword in _FIRST_IN_TIME)
    known = [float(number) if isinstance(number, (int, float)) else 0.0 for number in numbers]
    return (*known, str(record.get("SOPInstanceUID")))
