"""A NIfTI volume as a picture: its three mid planes, seen in RAS (x to the right, y to the front, z to the head)."""

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel import affines, orientations
from numpy.typing import NDArray
from PIL import Image

from dcmtools.images.preview_paper import LARGEST, lettered
from dcmtools.images.windowing import Shades, spread, stretched
from dcmtools.model.errors import BadData

_affines: Any = affines  # nibabel has no types for them
_orientations: Any = orientations

MOST_VOXELS = 1 << 29  # of the one volume that is read; 4 GiB as numbers
_GAP = 4  # pixels between the planes
# Which axis each plane leaves out, and the letters of its left and right edges.
_PLANES = ((0, "P", "A"), (1, "L", "R"), (2, "L", "R"))


def draw(path: Path, size: int | None) -> Image.Image:
    """The sagittal, the coronal and the axial mid plane of a file's first volume, at one scale.

    Raises:
        BadData: it cannot be read (cause unreadable), has no voxels, or too many (cause too-large).
    """
    try:
        volume, steps = _read(path)
    except BadData:
        raise
    except MemoryError:
        raise BadData("there is not enough memory to read it", cause="too-large") from None
    except Exception as problem:  # nibabel and zlib raise a dozen kinds for damaged files
        kind = type(problem).__name__
        raise BadData(
            f"it cannot be read as NIfTI ({kind})", "convert its series again", cause="unreadable"
        ) from problem
    return _beside([_plane(volume, steps, axis) for axis, _, _ in _PLANES], size or LARGEST)


def _read(path: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    """The first volume in RAS as shades or colours, (x, y, z) or (x, y, z, 3), and the mm between its voxels."""
    image: Any = nibabel.load(path)
    shape = (*image.shape, 1, 1, 1)[:3]
    if not all(image.shape) or len(image.shape) < 2:
        raise BadData("it has no voxels", cause="no-pixels")
    if np.prod(shape, dtype=np.float64) > MOST_VOXELS:
        raise BadData("it has too many voxels for a picture", cause="too-large")
    values = np.asanyarray(image.dataobj[(slice(None),) * min(3, len(image.shape)) + (0,) * (len(image.shape) - 3)])
    shown = _shades(values).reshape(*shape, -1)
    turn, steps = _turn(image.affine, shape)
    turned: NDArray[Any] = _orientations.apply_orientation(shown, turn)
    return turned, steps


def _turn(affine: Any, shape: tuple[int, ...]) -> tuple[NDArray[Any], NDArray[Any]]:
    """How the axes must be turned to RAS, and the mm between voxels then; voxels without a place lie as they are."""
    turn = _orientations.io_orientation(affine) if np.isfinite(affine).all() else None
    if turn is None or np.isnan(turn).any():
        affine, turn = np.eye(4), _orientations.io_orientation(np.eye(4))
    steps = _affines.voxel_sizes(affine @ _orientations.inv_ornt_aff(turn, shape))
    return turn, np.where(steps > 0, steps, 1.0)


def _shades(values: NDArray[Any]) -> Shades:
    if values.dtype.names:  # RGB24 and RGBA32
        return np.stack([values[name] for name in values.dtype.names[:3]], axis=-1).astype(np.uint8)
    real = np.abs(values) if values.dtype.kind == "c" else values
    numbers = real.astype(np.float32)
    return stretched(numbers, *spread(numbers))


def _plane(volume: NDArray[Any], steps: NDArray[Any], axis: int) -> tuple[Image.Image, float, float]:
    """The mid plane across an axis, with its width and height in mm."""
    middle = np.take(volume, volume.shape[axis] // 2, axis=axis)
    pixels = np.flip(np.swapaxes(middle, 0, 1), axis=0)  # the second axis goes up
    pixels = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
    wide, high = (step for other, step in enumerate(steps) if other != axis)
    return Image.fromarray(np.ascontiguousarray(pixels)), pixels.shape[1] * wide, pixels.shape[0] * high


def _beside(planes: list[tuple[Image.Image, float, float]], size: int) -> Image.Image:
    """The planes next to each other, `size` pixels along the longer side of the sheet."""
    width, height = sum(wide for _, wide, _ in planes), max(high for _, _, high in planes)
    scale = min((size - _GAP * (len(planes) - 1)) / width, size / height)
    pictures = [
        plane.resize((max(1, int(wide * scale)), max(1, int(high * scale))), Image.Resampling.BICUBIC)
        for plane, wide, high in planes
    ]
    full = sum(picture.width for picture in pictures) + _GAP * (len(pictures) - 1)
    sheet = Image.new(pictures[0].mode, (full, max(picture.height for picture in pictures)))
    left = 0
    for picture, (_, *letters) in zip(pictures, _PLANES, strict=True):
        sheet.paste(lettered(picture, *letters), (left, (sheet.height - picture.height) // 2))
        left += picture.width + _GAP
    return sheet
