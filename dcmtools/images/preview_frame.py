"""One frame of a DICOM file as a picture, with the pixel transformations of PS3.4 N.2."""

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_voi
from pydicom.pixels.utils import pixel_array
from pydicom.uid import UID

from dcmtools.images.preview_paper import fitted, lettered
from dcmtools.images.windowing import Shades, shades, spread, stretched, windowed
from dcmtools.model.errors import BadData

# What is needed beside group 0028, of which pixel_array keeps all.
_ORIENTATION = 0x00200037
_OTHERS = [_ORIENTATION, 0x00181164, 0x00182010, 0x52009229, 0x52009230]
# The functional groups that say of a frame what other images say of themselves (PS3.3 C.7.6.16.2).
_GROUPS = (
    "PixelMeasuresSequence",
    "PlaneOrientationSequence",
    "PixelValueTransformationSequence",
    "FrameVOILUTSequence",
)
_SPACINGS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelAspectRatio")
# A pixel that is longer than this is a slip in the header.
_MOST_UNEQUAL = 20.0
_SIDES = (("R", "L"), ("A", "P"), ("F", "H"))


def draw(path: Path, frame: int, syntax: str, size: int | None) -> Image.Image:
    """The picture of a frame (counted from 0); `syntax` is the transfer syntax where the file does not say it.

    Raises:
        BadData: there are no pixels (cause no-pixels), or they cannot be decoded.
    """
    with warnings.catch_warnings():  # what is odd about a header is not news: it is drawn or it is not
        warnings.simplefilter("ignore")
        values, header = _decoded(path, frame, syntax)
        _flatten(header, frame)
        picture = Image.fromarray(_coloured(values, header) if _is_colour(values, header) else _grey(values, header))
        picture = fitted(picture, _tall(header), size)
        sides = _sides(header)
    return lettered(picture, *sides) if sides else picture


def _decoded(path: Path, frame: int, syntax: str) -> tuple[NDArray[Any], Dataset]:
    """The stored values of one frame, (rows, columns) or (rows, columns, 3), and what describes them."""
    header = Dataset()
    try:
        return pixel_array(path, ds_out=header, specific_tags=_OTHERS, index=frame), header
    except MemoryError:
        raise BadData("there is not enough memory to decode its pixels", cause="too-large") from None
    except Exception as problem:  # noqa: BLE001 - decoders raise whatever they stumble over
        return _decoded_anyhow(path, frame, syntax, problem)


def _decoded_anyhow(path: Path, frame: int, syntax: str, first: Exception) -> tuple[NDArray[Any], Dataset]:
    """The same of a file whose meta information is missing; else the reason why there is no picture."""
    try:
        header = dcmread(path, force=True)
    except Exception:  # noqa: BLE001 - as above
        raise _undecodable(first, syntax) from first
    if not any(keyword in header for keyword in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise BadData("its pixels are not there", "look at the file; it may be damaged", cause="no-pixels")
    if "TransferSyntaxUID" in header.file_meta:
        raise _undecodable(first, syntax) from first
    header.file_meta.TransferSyntaxUID = UID(syntax)
    try:
        return pixel_array(header, index=frame), header
    except Exception as problem:
        raise _undecodable(problem, syntax) from problem


def _undecodable(problem: Exception, syntax: str) -> BadData:
    """What went wrong, without the decoder's own words: they may quote the header."""
    try:
        get_decoder(UID(syntax))
    except NotImplementedError:
        return BadData(f"no decoder here knows the transfer syntax {syntax}", cause="unknown-syntax")
    kind = type(problem).__name__
    return BadData(f"its pixels cannot be decoded ({kind})", "look at the file; it may be damaged", cause="undecodable")


def _flatten(header: Dataset, frame: int) -> None:
    """Gives the header what the functional groups say of this frame; that of the frame wins over the shared."""
    shared = header.get("SharedFunctionalGroupsSequence") or []
    frames = header.get("PerFrameFunctionalGroupsSequence") or []
    for item in (*shared[:1], *frames[frame : frame + 1]):
        for group in _GROUPS:
            for element in (item.get(group) or [Dataset()])[0]:
                header[element.tag] = element


def _is_colour(values: NDArray[Any], header: Dataset) -> bool:
    return values.ndim == 3 or header.get("PhotometricInterpretation") == "PALETTE COLOR"


def _coloured(values: NDArray[Any], header: Dataset) -> Shades:
    """(rows, columns, 3); pixel_array has turned YBR to RGB."""
    if values.ndim == 2:
        values = apply_color_lut(values, _with_little_endian_tables(header))
        bits = 8 if values.dtype == np.uint8 else 16
    else:
        bits = int(header.get("BitsStored") or 8)
    if values.dtype == np.uint8:
        return np.ascontiguousarray(values[..., :3])
    return shades(values[..., :3].astype(np.float32) / (2.0**bits - 1))


def _with_little_endian_tables(header: Dataset) -> Dataset:
    """The header with palettes as pydicom reads them: it takes those of big endian files for little endian ones."""
    if header.original_encoding[1] is False:
        for colour in ("Red", "Green", "Blue"):
            if table := header.get(f"{colour}PaletteColorLookupTableData"):
                swapped = np.frombuffer(table, ">u2").astype("<u2").tobytes()
                setattr(header, f"{colour}PaletteColorLookupTableData", swapped)
    return header


def _grey(stored: NDArray[Any], header: Dataset) -> Shades:
    """(rows, columns): modality LUT, then the file's window or LUT, else the percentiles; then the presentation."""
    values = _rescaled(stored, header)
    grey = _by_table(values, header)
    grey = _by_window(values, header, real=stored.dtype.kind == "f") if grey is None else grey
    if grey is None:
        grey = stretched(values, *spread(values, ~_padding(stored, header)))
    return 255 - grey if header.get("PhotometricInterpretation") == "MONOCHROME1" else grey


def _rescaled(stored: NDArray[Any], header: Dataset) -> NDArray[Any]:
    try:
        values = apply_modality_lut(stored, header)
    except Exception:  # noqa: BLE001 - a broken table must not hide an image that can be shown without it
        values = stored
    return values if values.dtype.kind == "f" else values.astype(np.float64)


def _by_table(values: NDArray[Any], header: Dataset) -> Shades | None:
    """The shades of a VOI LUT (PS3.3 C.11.2.1.1), as dark and as bright as the table goes."""
    if not header.get("VOILUTSequence"):
        return None
    try:
        looked_up = apply_voi(np.rint(values).astype(np.int64), header).astype(np.float64)
    except Exception:  # noqa: BLE001 - as above
        return None
    low, high = float(looked_up.min()), float(looked_up.max())
    return stretched(looked_up, low, high) if low < high else None


def _by_window(values: NDArray[Any], header: Dataset, *, real: bool) -> Shades | None:
    """The shades of the file's first window; None when it has none or one in which nothing can be seen.

    Where stored values are `real` numbers, there is no half a step between them for LINEAR to allow for.
    """
    centre, width = _first(header.get("WindowCenter")), _first(header.get("WindowWidth"))
    if centre is None or width is None:
        return None
    function = str(header.get("VOILUTFunction") or "LINEAR")
    if real and function == "LINEAR":  # a window of width 1 over values from 0 to 1, as writers mean it
        function = "LINEAR_EXACT"
    grey = windowed(values, centre, width, function)
    blind = grey is not None and grey.min() == grey.max() and values.min() < values.max()
    return None if blind else grey


def _padding(stored: NDArray[Any], header: Dataset) -> NDArray[np.bool_]:
    """Which pixels are no image (PS3.3 C.7.5.1.1.2)."""
    first = _first(header.get("PixelPaddingValue"))
    if first is None:
        return np.zeros(stored.shape, np.bool_)
    last = _first(header.get("PixelPaddingRangeLimit"))
    low, high = sorted((first, first if last is None else last))
    padding: NDArray[np.bool_] = (stored >= low) & (stored <= high)
    return padding


def _tall(header: Dataset) -> float:
    """The height of a pixel by its width; 1 when the header does not say, or says what cannot be."""
    for keyword in _SPACINGS:
        value = header.get(keyword)
        if not isinstance(value, MultiValue) or len(value) != 2:
            continue
        high, wide = (_first(one) or 0.0 for one in value)
        if high > 0 and wide > 0 and 1 / _MOST_UNEQUAL <= high / wide <= _MOST_UNEQUAL:
            return high / wide
    return 1.0


def _sides(header: Dataset) -> tuple[str, str] | None:
    """The letters of the left and the right edge (PS3.3 C.7.6.1.1.1); None when the image lies nowhere."""
    orientation = header.get("ImageOrientationPatient")
    if not isinstance(orientation, MultiValue) or len(orientation) != 6:
        return None
    row = [_first(part) or 0.0 for part in orientation[:3]]
    axis = max(range(3), key=lambda one: abs(row[one]))
    if not row[axis]:
        return None
    low, high = _SIDES[axis]
    return (low, high) if row[axis] > 0 else (high, low)


def _first(value: Any) -> float | None:
    """The first value as a finite number; None when it is none."""
    if isinstance(value, MultiValue):
        value = value[0] if len(value) else None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
