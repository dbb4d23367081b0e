"""From stored values to shades of grey: the window that a file asks for, else one that its values suggest."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.floating[Any]]
Shades = NDArray[np.uint8]

# The darkest and the brightest hundredths are often an air gap, a marker, metal: they do not set the scale.
PERCENTILES = (2.0, 98.0)
# Enough of a large volume to know its percentiles by.
_SAMPLE = 4_000_000


def windowed(values: Values, centre: float, width: float, function: str = "LINEAR") -> Shades | None:
    """The shades that a window of the VOI LUT module gives (PS3.3 C.11.2.1.2, C.11.2.1.3).

    None when the window cannot be: not finite, or narrower than the function allows.
    """
    if not (np.isfinite(centre) and np.isfinite(width)) or width <= 0:
        return None
    if function == "SIGMOID":
        with np.errstate(over="ignore"):
            return shades(1 / (1 + np.exp(-4 * (values - centre) / width)))
    if function == "LINEAR_EXACT":
        return shades((values - centre) / width + 0.5)
    if width < 1:
        return None
    if width == 1:  # a threshold: the formula would divide by zero
        return shades(np.where(values > centre - 0.5, 1.0, 0.0))
    return shades((values - (centre - 0.5)) / (width - 1) + 0.5)


def spread(values: Values, shown: NDArray[np.bool_] | None = None) -> tuple[float, float]:
    """The values that become black and white: the percentiles, or the extremes of values that hardly differ.

    Only finite values count, and of them only those `shown`: padding around an image says nothing about it.
    """
    finite = np.isfinite(values)
    counted = values[finite & shown] if shown is not None and (finite & shown).any() else values[finite]
    if not counted.size:
        return 0.0, 1.0
    sample = counted[:: counted.size // _SAMPLE + 1]
    low, high = (float(one) for one in np.percentile(sample, PERCENTILES))
    return (low, high) if low < high else (float(counted.min()), float(counted.max()))


def stretched(values: Values, low: float, high: float) -> Shades:
    """The shades with `low` as black and `high` as white; mid-grey when there is nothing between them."""
    if not low < high:
        return np.full(values.shape, 128, np.uint8)
    return shades((values - low) / (high - low))


def shades(parts: Any) -> Shades:
    """From 0 to 1 to 0 to 255; what is no number is black."""
    scaled: Shades = (np.nan_to_num(np.clip(parts, 0.0, 1.0), nan=0.0) * 255 + 0.5).astype(np.uint8)
    return scaled
