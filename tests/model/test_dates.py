from datetime import UTC, date, datetime, timedelta, tzinfo
from typing import Self

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcmtools.model import dates
from dcmtools.model.dates import date_range, today
from dcmtools.model.errors import ConfigurationError, UsageError

NOW = date(2024, 3, 15)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("yesterday", "20240314"),
        ("Today", "20240315"),
        ("-2d", "20240313"),
        ("-2w", "20240301"),
        ("-2d..today", "20240313-20240315"),
        ("last-7-days", "20240308-20240315"),
        ("20240101-20240131", "20240101-20240131"),
        ("20240101-", "20240101-"),
        ("-20240131", "-20240131"),
        ("2024-01-01", "20240101"),
        ("2024-01-01..", "20240101-"),
        ("..2024-01-31", "-20240131"),
        (" 2024-01-01 .. yesterday ", "20240101-20240314"),
        ("2024-02-29", "20240229"),
        ("0001-01-01", "00010101"),
    ],
)
def test_text_means_a_dicom_range(text: str, meant: str) -> None:
    assert date_range(text, NOW) == meant


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-",
        "..",
        "2023-02-29",
        "20241301",
        "tomorrow",
        "yesterday..20240101",
        "20240131-20240101",
        "-9999999d",
        "-99999y",
        "1.5",
    ],
)
def test_anything_else_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError):
        date_range(text, NOW)


@given(st.text(max_size=30))
def test_no_text_raises_anything_but_a_usage_error(text: str) -> None:
    try:
        meant = date_range(text, NOW)
    except UsageError:
        return
    assert set(meant) <= set("0123456789-")
    assert 8 <= len(meant) <= 17


@given(st.dates(), st.dates())
def test_two_days_are_a_range_in_their_order(one: date, other: date) -> None:
    first, last = sorted((one, other))
    expected = f"{first.isoformat()}-{last.isoformat()}".replace("-", "")

    assert date_range(f"{first}..{last}", NOW).replace("-", "") == expected


@given(st.dates(min_value=date(1900, 1, 1)))
def test_yesterday_is_the_calendar_day_before(day: date) -> None:
    assert date_range("yesterday", day) == f"{day - timedelta(days=1):%Y%m%d}"


class Clock(datetime):
    """A datetime whose now is what the test says."""

    moment = datetime(1970, 1, 1, tzinfo=UTC)

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Self:
        return cls.fromtimestamp(cls.moment.timestamp(), tz)


@pytest.mark.parametrize(("changed", "hours"), [(date(2026, 3, 29), 23), (date(2026, 10, 25), 25)])
def test_a_job_in_brussels_asks_for_each_day_when_clocks_change(
    monkeypatch: pytest.MonkeyPatch, changed: date, hours: int
) -> None:
    monkeypatch.setattr(dates, "datetime", Clock)
    start = datetime(changed.year, changed.month, changed.day, tzinfo=UTC) - timedelta(hours=36)

    asked = []
    for step in range(4 * 48):
        Clock.moment = start + timedelta(minutes=30 * step)
        asked.append(date_range("yesterday", today("Europe/Brussels")))

    first = changed - timedelta(days=3)
    assert list(dict.fromkeys(asked)) == [f"{first + timedelta(days=number):%Y%m%d}" for number in range(5)]
    # The day before is "yesterday" for as long as the day of the change lasts.
    assert asked.count(f"{changed - timedelta(days=1):%Y%m%d}") == 2 * hours


def test_the_day_is_that_of_the_zone() -> None:
    assert today("Pacific/Kiritimati") - today("Etc/GMT+12") in {timedelta(days=1), timedelta(days=2)}


@pytest.mark.parametrize("zone", ["Europe/Nowhere", "../../etc/passwd", "Europe"])
def test_unknown_zone_is_a_configuration_error(zone: str) -> None:
    with pytest.raises(ConfigurationError):
        today(zone)
