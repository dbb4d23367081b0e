"""What the texts of settings mean."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcmtools.disk import settings_values as read
from dcmtools.model.errors import ConfigurationError

READERS: list[Callable[[str], Any]] = [
    read.boolean,
    read.whole,
    read.seconds,
    read.hours,
    read.duration,
    read.time_zone,
    read.choice("a", "b"),
]


@pytest.mark.parametrize(
    ("reader", "text", "meaning"),
    [
        (read.boolean, "Yes", True),
        (read.boolean, "off", False),
        (read.whole, "0042", 42),
        (read.seconds, "2.5", 2.5),
        (read.hours, "20:00-06:00 , 12:00-13:00", "20:00-06:00, 12:00-13:00"),
        (read.duration, "1h30m", "1h30m"),
        (read.duration, "90", "90"),
        (read.time_zone, "Europe/Brussels", "Europe/Brussels"),
        (read.choice("a", "b"), "B", "b"),
    ],
)
def test_text_has_its_meaning(reader: Callable[[str], Any], text: str, meaning: object) -> None:
    assert reader(text) == meaning


@pytest.mark.parametrize(
    ("reader", "text"),
    [
        (read.boolean, "maybe"),
        (read.whole, "0"),
        (read.whole, "1.0"),
        (read.whole, "10000"),
        (read.seconds, "1e3"),
        (read.seconds, "86401"),
        (read.seconds, "nan"),
        (read.hours, "24:00-01:00"),
        (read.hours, "20:00-06:00,"),
        (read.duration, "h"),
        (read.duration, "-5m"),
        (read.time_zone, "Mars"),
        (read.choice("a", "b"), "c"),
    ],
)
def test_text_without_meaning_is_refused(reader: Callable[[str], Any], text: str) -> None:
    with pytest.raises(ConfigurationError):
        reader(text)


@given(st.sampled_from(READERS), st.text(max_size=20))
def test_any_text_has_a_meaning_or_is_refused(reader: Callable[[str], Any], text: str) -> None:
    with suppress(ConfigurationError):
        assert reader(text) is not None
