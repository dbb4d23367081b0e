"""Windows against the pseudo-code of PS3.3 C.11.2.1.2, and windows that values suggest."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcmtools.images.windowing import shades, spread, stretched, windowed

values = st.floats(-5000, 5000)


def linear(x: float, centre: float, width: float) -> float:
    """The pseudo-code of PS3.3 C.11.2.1.2.1 for an output from 0 to 255."""
    if x <= centre - 0.5 - (width - 1) / 2:
        return 0
    if x > centre - 0.5 + (width - 1) / 2:
        return 255
    return ((x - (centre - 0.5)) / (width - 1) + 0.5) * 255


@given(values, values, st.floats(1.001, 5000))
def test_linear_window_is_that_of_the_standard(x: float, centre: float, width: float) -> None:
    grey = windowed(np.array([x]), centre, width)

    assert grey is not None
    assert abs(int(grey[0]) - linear(x, centre, width)) <= 0.501


@pytest.mark.parametrize(("x", "shade"), [(39.4, 0), (39.5, 0), (39.6, 255)])
def test_window_of_width_one_is_a_threshold(x: float, shade: int) -> None:
    assert windowed(np.array([x]), 40, 1) == np.array([shade])


@pytest.mark.parametrize(
    ("x", "function", "shade"),
    [
        (0, "LINEAR_EXACT", 0),
        (50, "LINEAR_EXACT", 128),
        (100, "LINEAR_EXACT", 255),
        (50, "SIGMOID", 128),
        (1e9, "SIGMOID", 255),
    ],
)
def test_other_functions_have_their_middle_at_the_centre(x: float, function: str, shade: int) -> None:
    assert windowed(np.array([float(x)]), 50, 100, function) == np.array([shade])


@pytest.mark.parametrize(("centre", "width"), [(40, 0), (40, -400), (40, 0.5), (math.nan, 400), (40, math.inf)])
def test_window_that_cannot_be_is_none(centre: float, width: float) -> None:
    assert windowed(np.array([40.0]), centre, width) is None


def test_extremes_do_not_set_the_scale() -> None:
    bulk = np.linspace(100, 200, 1000)

    low, high = spread(np.concatenate([bulk, [-1e6, 1e6]]))

    assert 100 < low < 105
    assert 195 < high < 200


def test_padding_and_what_is_no_number_do_not_count() -> None:
    data = np.array([-2000.0] * 90 + [math.nan, math.inf] + [10.0, 20.0])

    assert spread(data, data > -2000) == pytest.approx((10.2, 19.8))


def test_values_that_hardly_differ_are_spread_to_their_extremes() -> None:
    mask = np.zeros(1000)
    mask[:5] = 1

    assert spread(mask) == (0, 1)
    assert set(stretched(mask, *spread(mask)).tolist()) == {0, 255}


def test_values_that_do_not_differ_are_grey() -> None:
    assert stretched(np.full(3, 7.0), *spread(np.full(3, 7.0))).tolist() == [128] * 3


def test_nothing_to_count_is_no_error() -> None:
    assert spread(np.array([math.nan])) == (0, 1)


@given(st.lists(st.floats(), min_size=1))
def test_any_number_has_a_shade(parts: list[float]) -> None:
    grey = shades(np.array(parts))

    assert grey.dtype == np.uint8
