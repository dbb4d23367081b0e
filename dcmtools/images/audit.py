"""The audit: a volume lies where the headers of its slices say, and holds all of them, or it is suspect (DESIGN §5.11).

For each slice the inverse of the volume's affine takes its first and its last voxel to opposite corners of one plane of
the grid, off by less than 0.1 mm. No engine is believed without it, and no engine is needed for it.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dcmtools.images.planes import Layout, Planes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

TOLERANCE = 0.1  # mm
SHEAR = 0.5  # mm between the first and the last slice, across them: below, it is rounding
FORMS = 0.005  # rad between qform and sform
_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])  # DICOM's patient system to that of NIfTI

# What is wrong with a volume, for people; the most telling first.
REASONS: Mapping[str, str] = {
    "gantry-tilt": "the scanner's gantry was tilted: the slices are sheared, which the volume does not show",
    "missing-slices": "there is a gap between the slices: some are missing",
    "uneven-slices": "the distance between the slices varies",
    "mixed-orientation": "the slices have several orientations",
    "wrong-position": "the volume does not lie where the headers of its slices say",
    "wrong-count": "the volume does not hold all slices of the series, each once",
    "empty-volume": "the volume has a part without any contrast",
    "bad-affine": "the volume's position in space is not usable",
    "short-file": "the volume's file is shorter than its header says",
    "no-time-step": "the time series has no repetition time, which the headers have",
    "wrong-gradients": "the gradient table does not have one entry a volume",
    "mosaic-unverified": "a mosaic without its vendor's header: how it was cut is a guess",
    "unverified": "the headers do not say where the slices lie: nothing tells whether the volume is right",
    "wrong-order": "the slices of the mosaic are not in the order that its header says",
    "two-affines": "the volume's qform and sform disagree",
}


@dataclass(frozen=True, slots=True)
class Volume:
    """One NIfTI file, open."""

    shape: tuple[int, ...]
    zooms: tuple[float, ...]  # mm
    time_step: float | None  # s
    affine: "Array"
    voxels: Any  # as stored, mapped and not read
    flags: tuple[str, ...] = ()

    @property
    def repeats(self) -> int:
        """How many 3D volumes it holds: 1, but for time and diffusion series."""
        return int(np.prod(self.shape[3:], dtype=int))


@dataclass(slots=True)
class Findings:
    """What the audit of one volume found."""

    flags: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Placed:
    """Where the slices of a series fall in one volume."""

    error: "Array"  # mm, one a slice
    index: "NDArray[np.int64]"  # along the axis that a slice lies across
    axes: "NDArray[np.int64]"

    @property
    def axis(self) -> int:
        """The volume's slice axis: that of most of the slices in it."""
        return int(np.bincount(self.axes[self.fits] if self.fits.any() else self.axes).argmax())

    @property
    def fits(self) -> "NDArray[np.bool_]":
        """Which slices lie in the volume."""
        return self.error < TOLERANCE


def open_volume(path: Path) -> Volume:
    """The volume in an uncompressed NIfTI file, with the flags that its header alone deserves."""
    import nibabel

    logging.getLogger("nibabel.global").setLevel(logging.ERROR)  # it tells stderr about each odd header
    image = nibabel.Nifti1Image.from_filename(path, mmap=True)
    header: Any = image.header
    space, time = header.get_xyzt_units()
    zooms = [float(zoom) for zoom in header.get_zooms()]
    to_mm = {"meter": 1000.0, "micron": 0.001}.get(space, 1.0)
    to_seconds = {"msec": 0.001, "usec": 1e-6}.get(time, 1.0)
    shape = tuple(int(size) for size in image.shape)
    return Volume(
        shape=shape,
        zooms=tuple(zoom * to_mm for zoom in zooms[:3]),
        time_step=zooms[3] * to_seconds if len(zooms) > 3 and zooms[3] > 0 else None,
        affine=np.asarray(image.affine, float),
        voxels=image.dataobj,
        flags=tuple(_header_flags(path, image, shape)),
    )


def place(volume: Volume, planes: Planes) -> Placed:
    """Where the slices fall in the volume, and how far off they are."""
    inverse = np.linalg.inv(volume.affine) @ _TO_RAS
    first, last = (points @ inverse[:3, :3].T + inverse[:3, 3] for points in (planes.first, planes.last))
    zooms = np.linalg.norm(volume.affine[:3, :3], axis=0)
    ends = np.array([_size(volume, side) - 1 for side in range(3)])
    axis = np.argmax(np.abs(planes.normal @ inverse[:3, :3].T) * zooms, axis=1)
    index = np.rint(np.take_along_axis(first, axis[:, None], 1)).clip(0, ends[axis][:, None])
    through = np.maximum(np.abs(first - index), np.abs(last - index))
    straight = np.maximum(np.abs(first), np.abs(last - ends))
    flipped = np.maximum(np.abs(first - ends), np.abs(last))
    away = np.where(np.arange(3) == axis[:, None], through, np.minimum(straight, flipped)) * zooms
    return Placed(away.max(axis=1), index[:, 0].astype(np.int64), axis)


def audit_series(volumes: Sequence[Volume], layout: Layout, derived: Sequence[bool] = ()) -> list[Findings]:
    """What is wrong with each of the volumes that were made of one series.

    `derived` says which volumes the engine resampled or drew: none of their slices is the scanner's, and they are no
    better than what they came from.
    """
    derived = derived or [False] * len(volumes)
    known = {"slices": layout.frames or layout.mosaics, "positions": len(layout.planes)}
    found = [Findings(list(volume.flags), dict(known)) for volume in volumes]
    own = [number for number, flag in enumerate(derived) if not flag]
    if layout.mosaics and not layout.tiles:
        _flag(found, own, "mosaic-unverified")
    if layout.placeless:
        _flag(found, own, "unverified")
    if len(layout.planes) and not any("bad-affine" in found[number].flags for number in own):
        _audit_positions([volumes[number] for number in own], [found[number] for number in own], layout)
    if not _counts_agree([volumes[number] for number in own], layout):
        _flag([one for one in found if not one.flags], range(len(found)), "wrong-count")
    for volume, one in zip(volumes, found, strict=True):
        if "short-file" not in volume.flags and _has_empty_part(volume):
            one.flags.append("empty-volume")
    _flag_derived(found, derived)
    return found


def _flag(found: Sequence[Findings], numbers: Sequence[int], flag: str) -> None:
    for number in numbers:
        if number < len(found):
            found[number].flags.append(flag)


def _flag_derived(found: Sequence[Findings], derived: Sequence[bool]) -> None:
    doubts = [flag for one, also in zip(found, derived, strict=True) if not also for flag in one.flags]
    for one, also in zip(found, derived, strict=True):
        one.flags = list(dict.fromkeys([*one.flags, *(doubts if also else ())]))


def _audit_positions(volumes: Sequence[Volume], found: Sequence[Findings], layout: Layout) -> None:
    """Each slice must lie in some volume, and each plane of a volume must have its slices."""
    placed = [place(volume, layout.planes) for volume in volumes]
    homeless = ~np.any([one.fits for one in placed], axis=0)
    for volume, findings, one in zip(volumes, found, placed, strict=True):
        fitting = one.error if homeless.any() else one.error[one.fits]
        findings.figures.update(inside=int(one.fits.sum()), max_error_mm=_rounded(fitting.max(initial=0.0)))
        if homeless.any():
            findings.flags.append(diagnosis(layout.planes))
        elif layout.complete and (flag := _uncovered(volume, one, alone=len(volumes) == 1)) is not None:
            findings.flags.append(flag)
        elif layout.tile_sums and wrong_order(volume, layout):
            findings.flags.append("wrong-order")


def _uncovered(volume: Volume, placed: Placed, *, alone: bool) -> str | None:
    """What is wrong when a plane of the grid has fewer slices than there are repeats, or more."""
    hits = np.bincount(placed.index[placed.fits], minlength=_size(volume, placed.axis))
    if (hits == volume.repeats).all() if alone else (hits > 0).all():
        return None
    return "missing-slices" if hits.min() < hits.max() else "wrong-count"


def _counts_agree(volumes: Sequence[Volume], layout: Layout) -> bool:
    """Whether the planes of all volumes together are as many as the slices that went in."""
    if layout.mosaics:
        tiles = not layout.tiles or all(layout.tiles in volume.shape[:3] for volume in volumes)
        return tiles and sum(volume.repeats for volume in volumes) == layout.mosaics
    return any(sum(volume.repeats * _size(volume, axis) for volume in volumes) == layout.frames for axis in range(3))


def by_weight(flags: Iterable[str]) -> list[str]:
    """The flags without repetition, the most telling first; what only an engine knows comes last."""
    known = list(REASONS)
    return sorted(dict.fromkeys(flags), key=lambda flag: known.index(flag) if flag in REASONS else len(known))


def audit_time(volume: Volume, source: Mapping[str, Any]) -> list[str]:
    """The flag of a time series that lost its time step although the headers know it."""
    repetition = source.get("RepetitionTime")
    known = isinstance(repetition, (int, float)) and repetition > 0 and source.get("Modality") == "MR"
    return ["no-time-step"] if volume.repeats > 1 and known and volume.time_step is None else []


def audit_gradients(volume: Volume, gradients: Mapping[str, Path]) -> list[str]:
    """The flag of gradient tables without one entry a volume."""
    for kind, lines in (("bval", 1), ("bvec", 3)):
        if kind in gradients:
            rows = [line.split() for line in gradients[kind].read_text().splitlines() if line.strip()]
            if len(rows) != lines or any(len(row) != volume.repeats for row in rows):
                return ["wrong-gradients"]
    return []


def diagnosis(planes: Planes) -> str:
    """Why a volume cannot hold these slices: the most telling of our codes."""
    main = planes.normal[0]
    if (np.abs(planes.normal @ main) < 0.999).any():
        return "mixed-orientation"
    along = planes.first @ main
    order = np.argsort(along, kind="stable")
    across = planes.first - np.outer(along, main)
    if np.linalg.norm(across[order[-1]] - across[order[0]]) > SHEAR:
        return "gantry-tilt"
    gaps = [gap for gap in np.diff(along[order]) if gap > TOLERANCE]
    if not gaps or max(gaps) - min(gaps) <= TOLERANCE:
        return "wrong-position"
    ratios = np.array(gaps) / min(gaps)
    return "missing-slices" if (np.abs(ratios - np.rint(ratios)) < 0.05).all() else "uneven-slices"


def wrong_order(volume: Volume, layout: Layout) -> bool:
    """Whether the tiles of the first mosaic are in none of the volumes in the order of their positions.

    The sum over a slice does not change when it is flipped, so no reorientation has to be undone.
    """
    placed = place(volume, layout.planes)
    data = np.asarray(volume.voxels.get_unscaled())
    data = data.reshape(*data.shape[:3], -1, order="F")
    sums = data.sum(axis=tuple(side for side in range(3) if side != placed.axis), dtype=np.float64)
    rows, expected = placed.index[: layout.tiles], np.asarray(layout.tile_sums)
    return not any(np.allclose(sums[rows, number], expected) for number in range(sums.shape[1]))


def _header_flags(path: Path, image: Any, shape: tuple[int, ...]) -> list[str]:
    flags, affine = [], np.asarray(image.affine, float)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        flags.append("bad-affine")
    elif _forms_disagree(image):
        flags.append("two-affines")
    offset = int(image.dataobj.offset)
    size = int(np.prod(shape, dtype=np.int64)) * image.get_data_dtype().itemsize
    if path.stat().st_size < offset + size:
        flags.append("short-file")
    return flags


def _forms_disagree(image: Any) -> bool:
    """Whether qform and sform, where both are set, differ by more than what a quaternion of floats loses.

    That was measured up to 0.0008 rad; forms that truly disagree (a tilted gantry) do so by 0.01 rad and more.
    """
    rotated, rotated_code = image.get_qform(coded=True)
    sheared, sheared_code = image.get_sform(coded=True)
    if not (rotated_code and sheared_code):
        return False
    difference = rotated - sheared
    lengths = np.linalg.norm(sheared[:3, :3], axis=0)
    turned = np.linalg.norm(difference[:3, :3], axis=0) > FORMS * lengths
    return bool(turned.any() or np.linalg.norm(difference[:3, 3]) > TOLERANCE)


def _has_empty_part(volume: Volume) -> bool:
    """Whether one of the volumes has the same value everywhere."""
    data = volume.voxels.get_unscaled()
    parts = data.reshape(*data.shape[:3], -1, order="F") if data.ndim > 2 else data[..., None, None]
    return any(_is_flat(parts[..., number]) for number in range(parts.shape[3]))


def _is_flat(part: Any) -> bool:
    """Whether all voxels are one value; looked through slice by slice, for most parts differ in the first."""
    first = part.flat[0]
    return part.size > 1 and not any((part[..., number] != first).any() for number in range(part.shape[2]))


def _size(volume: Volume, axis: int) -> int:
    return volume.shape[axis] if axis < len(volume.shape) else 1


def _rounded(value: float) -> float:
    return round(float(value), 4)
