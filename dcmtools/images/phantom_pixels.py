"""What the phantoms look like: bodies made of ellipsoids in the patient's own coordinates, sampled by any geometry.

Coordinates are DICOM's (PS3.3 C.7.6.2.1.1): mm, x to the patient's left, y to the back, z to the head. Nothing in a
body is symmetric: the left side has a marker, the front a nose or a heart, so that each flip shows. Only additions,
multiplications, divisions and comparisons are used, and the noise is a hash: the bytes are the same on every machine.
"""

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Vector = tuple[float, float, float]
Grid = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]
Quaternion = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Geometry:
    """Where the voxels of a volume lie, in mm: `origin` is the centre of the first voxel of the first slice.

    `row` is the direction in which the column index grows, `column` that in which the row index grows; `between` are
    the distances of rows, columns (PS3.3 10.7.1.3) and slices.
    """

    rows: int
    columns: int
    slices: int
    between: Vector
    row: Vector
    column: Vector
    origin: Vector

    @property
    def shape(self) -> tuple[int, int, int]:
        """Slices, rows, columns."""
        return (self.slices, self.rows, self.columns)

    @property
    def normal(self) -> Vector:
        """The direction in which the slices follow each other."""
        (a, b, c), (d, e, f) = self.row, self.column
        return (b * f - c * e, c * d - a * f, a * e - b * d)

    def position(self, row: float, column: float, slice_: float) -> Vector:
        """The centre of a voxel (PS3.3 C.7.6.2.1-1)."""
        steps = (column * self.between[1], row * self.between[0], slice_ * self.between[2])
        x, y, z = (
            start + steps[0] * along + steps[1] * down + steps[2] * through
            for start, along, down, through in zip(self.origin, self.row, self.column, self.normal, strict=True)
        )
        return (x, y, z)

    def grid(self, slice_: int) -> Grid:
        """The patient coordinates of all voxels of a slice, each (rows, columns)."""
        down, along = np.ogrid[: self.rows, : self.columns]
        start = self.position(0, 0, slice_)
        x, y, z = (
            start[axis] + along * (self.between[1] * self.row[axis]) + down * (self.between[0] * self.column[axis])
            for axis in range(3)
        )
        return (x, y, z)

    def affine(self) -> tuple[tuple[float, float, float, float], ...]:
        """From (column, row, slice) to NIfTI's coordinates: mm, x to the right, y to the front, z to the head."""
        first, column, row, slice_ = (self.position(*index) for index in ((0, 0, 0), (0, 1, 0), (1, 0, 0), (0, 0, 1)))
        return tuple(
            (
                sign * (column[axis] - first[axis]),
                sign * (row[axis] - first[axis]),
                sign * (slice_[axis] - first[axis]),
                sign * first[axis],
            )
            for axis, sign in enumerate((-1, -1, 1))
        )


def geometry(size: tuple[int, int, int], between: Vector, turn: Quaternion, centre: Vector) -> Geometry:
    """The geometry of rows x columns x slices around a centre; axial when `turn` is (1, 0, 0, 0).

    The turn is a quaternion of integers, so that its matrix is rational and needs no sine (PS3.3 C.7.6.2.1.1).
    """
    row, column = _turned(turn)
    still = Geometry(*size, between, row, column, (0.0, 0.0, 0.0))
    middle = still.position((size[0] - 1) / 2, (size[1] - 1) / 2, (size[2] - 1) / 2)
    x, y, z = (round(wanted - now, 4) for wanted, now in zip(centre, middle, strict=True))
    return Geometry(*size, between, row, column, (x, y, z))


def _turned(turn: Quaternion) -> tuple[Vector, Vector]:
    a, b, c, d = turn
    norm = a * a + b * b + c * c + d * d
    row = (a * a + b * b - c * c - d * d, 2 * (b * c + a * d), 2 * (b * d - a * c))
    column = (2 * (b * c - a * d), a * a - b * b + c * c - d * d, 2 * (c * d + a * b))
    return (row[0] / norm, row[1] / norm, row[2] / norm), (column[0] / norm, column[1] / norm, column[2] / norm)


@dataclass(frozen=True, slots=True)
class Part:
    """One ellipsoid of a body; later parts lie on top of earlier ones. An infinite radius makes a cylinder."""

    value: int
    centre: Vector
    radii: Vector

    def holds(self, grid: Grid, scale: float) -> NDArray[np.bool_]:
        """Which points lie inside, when the whole body is `scale` times as large."""
        distance: Any = 0.0
        for points, middle, radius in zip(grid, self.centre, self.radii, strict=True):
            if radius != math.inf:
                offset = (points - middle * scale) / (radius * scale)
                distance = distance + offset * offset
        held: NDArray[np.bool_] = distance <= 1.0
        return held


# Signal of a T1-weighted head; its centre is that of the brain.
HEAD = (
    Part(260, (0, 12, -110), (48, 52, 80)),  # neck
    Part(420, (0, -92, -28), (13, 22, 20)),  # nose: the front
    Part(620, (0, 0, 0), (77, 97, 88)),  # scalp, bright as fat is
    Part(60, (0, 0, 0), (72, 92, 83)),  # skull
    Part(150, (0, 0, 2), (67, 87, 78)),  # liquor
    Part(380, (0, 0, 4), (64, 84, 74)),  # grey matter
    Part(540, (0, 0, 6), (53, 72, 60)),  # white matter
    Part(300, (28, 6, -2), (9, 18, 14)),  # basal ganglia
    Part(300, (-28, 6, -2), (9, 18, 14)),
    Part(120, (12, -14, 12), (7, 26, 12)),  # ventricles
    Part(120, (-12, -14, 12), (7, 26, 12)),
    Part(120, (17, 30, 8), (6, 16, 10)),
    Part(120, (-17, 30, 8), (6, 16, 10)),
    Part(760, (30, -42, 18), (9, 9, 9)),  # a lesion, left and in front
    Part(90, (32, -82, -34), (13, 13, 13)),  # eyes
    Part(90, (-32, -82, -34), (13, 13, 13)),
    Part(1000, (86, 4, 14), (8, 8, 26)),  # a capsule taped to the left temple: the left marker
)

# T2*-weighted: liquor is bright, bone and fat are dark, and the marker is water. From one signal to the other.
_T2 = {620: 120, 60: 30, 150: 900, 380: 520, 540: 400, 300: 380, 120: 960, 760: 820, 90: 850}
HEAD_T2 = tuple(Part(_T2.get(part.value, part.value), part.centre, part.radii) for part in HEAD)
ACTIVE = Part(1, (-36, 52, 22), (16, 14, 14))  # what lights up in the block design: right, back

# Hounsfield units of a chest; z runs along the whole body.
AIR = -1000
CHEST = (
    Part(-90, (0, 0, 0), (165, 112, math.inf)),  # skin and fat
    Part(50, (0, 0, 0), (152, 99, math.inf)),  # muscle
    Part(700, (0, 0, 20), (140, 90, 190)),  # the cage of the ribs, as one shell of bone
    Part(50, (0, 0, 20), (133, 83, 184)),
    Part(-850, (72, 4, 30), (56, 70, 150)),  # lungs; the left one is smaller
    Part(-850, (-74, 4, 36), (60, 74, 156)),
    Part(45, (28, -28, 0), (52, 44, 62)),  # heart: left and in front
    Part(180, (20, -24, 6), (20, 18, 26)),  # with contrast medium
    Part(60, (-60, -5, -150), (95, 72, 62)),  # liver: right, below
    Part(60, (0, 80, 0), (30, 24, math.inf)),
    Part(600, (0, 66, 0), (22, 19, math.inf)),  # vertebrae
    Part(160, (0, 66, 0), (17, 14, math.inf)),
    Part(30, (0, 88, 0), (9, 7, math.inf)),  # spinal canal
    Part(650, (0, -91, 60), (16, 6, 90)),  # breastbone
    Part(-150, (0, 150, 0), (200, 22, math.inf)),  # table
    Part(2000, (160, -40, 0), (7, 12, 24)),  # metal on the left side: the left marker
)


def noise(key: str, shape: tuple[int, ...], amplitude: int) -> NDArray[np.int32]:
    """Whole numbers from -amplitude to amplitude, a triangle in distribution, that depend on nothing but the key."""
    count = math.prod(shape)
    raw = np.frombuffer(hashlib.shake_256(key.encode()).digest(2 * count), np.uint8).astype(np.int32)
    both = raw[:count] + raw[count:] - 255
    return (both * amplitude // 255).reshape(shape)


def paint(parts: tuple[Part, ...], grid: Grid, *, scale: float = 1.0, empty: int = 0) -> NDArray[np.int32]:
    """The values of a body at these points."""
    values = np.full(np.broadcast_shapes(*(points.shape for points in grid)), empty, np.int32)
    for part in parts:
        values[part.holds(grid, scale)] = part.value
    return values


def fan(frame: int, frames: int, key: str, size: tuple[int, int]) -> NDArray[np.uint8]:
    """One frame of a sector scan in colour, (rows, columns, 3): a vessel that beats, its flow, a marker at the left."""
    rows, columns = size
    down, along = np.ogrid[4 : rows + 4, :columns]
    across = along - (columns - 1) / 2
    depth = down * down + across * across
    inside = (np.abs(across) <= 0.72 * down) & (depth >= 14 * 14) & (depth <= (rows - 6) * (rows - 6))
    tissue = 70 + noise(key, size, 55) + (depth // 400 % 2 == 0) * 18 - down * 30 // rows
    swing = abs(2 * frame - frames)  # frames at the beginning and the end, 0 in the middle
    vessel = _disc(down - 72, across + 14, 15 + 5 * swing // frames)
    tissue = np.where(vessel, 12 + noise(key + "blood", size, 8), tissue)
    tissue = np.where(_disc(down - 44, across - 20, 9), 190, tissue)  # a stone, and its shadow below
    tissue = np.where((np.abs(across * 44 - 20 * down) < 9 * 30) & (down > 54), tissue // 4, tissue)
    picture = np.repeat(np.where(inside, tissue, 0)[..., None], 3, axis=2)
    flow = _disc(down - 72, across + 14, 8 + 4 * swing // frames) & inside
    picture[flow] = (210, 60 + 80 * swing // frames, 30)
    picture[4:14, 6:12] = (90, 220, 120)  # the probe's marker
    finished: NDArray[np.uint8] = picture.clip(0, 255).astype(np.uint8)
    return finished


def _disc(down: Any, across: Any, radius: float) -> Any:
    return down * down + across * across <= radius * radius
