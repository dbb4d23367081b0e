"""Dates as people write them, turned into DICOM ranges (PS3.4 C.2.2.2.5).

Days are calendar days in a zone, never "now minus 24 hours": a night on which clocks change would lose a day.
"""

import re
from datetime import date, datetime, timedelta

from dcmtools.model.errors import ConfigurationError, UsageError

_DAY = re.compile(r"(\d{4})-?(\d{2})-?(\d{2})\Z")
_BACK = re.compile(r"-(\d{1,5})([dwmy])\Z")
_LAST = re.compile(r"last-(\d{1,5})-days\Z")


def today(zone: str | None = None) -> date:
    """The current calendar day in a zone (default: the system's)."""
    from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

    try:
        return datetime.now(ZoneInfo(zone) if zone else None).date()
    except (ValueError, OSError, ZoneInfoNotFoundError):
        raise ConfigurationError(f"'{zone}' is not a time zone", "write for example Europe/Brussels") from None


def date_range(text: str, now: date) -> str:
    """The DICOM range (`20240101-20240131`, `20240101-`, `-20240131`, `20240101`) that a text means.

    Understood: yesterday, today, -2d, -2w, last-7-days, 2024-01-01, 20240101, each alone or joined: A..B, A.., ..B,
    and DICOM's own A-B.
    """
    text = text.strip()
    if match := _LAST.match(text):
        return _span(now - timedelta(days=int(match[1])), now)
    if ".." in text:
        first, _, last = text.partition("..")
        return _checked(_day(first, now) if first.strip() else None, _day(last, now) if last.strip() else None, text)
    if match := re.match(r"(\d{8})?-(\d{8})?\Z", text):
        if not (match[1] or match[2]):
            raise UsageError(f"'{text}' is not a date range", "write for example 20240101-20240131")
        return _checked(_day(match[1], now) if match[1] else None, _day(match[2], now) if match[2] else None, text)
    return _digits(_day(text, now))


def _checked(first: date | None, last: date | None, text: str) -> str:
    if first is None and last is None:
        raise UsageError(f"'{text}' is not a date range", "give at least one end, for example 2024-01-01..")
    if first and last and first > last:
        raise UsageError(f"the range '{text}' ends before it begins", "swap its two ends")
    return _span(first, last)


def _span(first: date | None, last: date | None) -> str:
    return f"{_digits(first)}-{_digits(last)}"


def _digits(day: date | None) -> str:
    return day.isoformat().replace("-", "") if day else ""  # strftime does not pad years below 1000


def _day(text: str, now: date) -> date:
    text = text.strip().lower()
    if text in {"today", "yesterday"}:
        return now - timedelta(days=text == "yesterday")
    if match := _BACK.match(text):
        return _back(now, int(match[1]), match[2])
    if match := _DAY.match(text):
        try:
            return date(int(match[1]), int(match[2]), int(match[3]))
        except ValueError:
            pass
    raise UsageError(f"'{text}' is not a date", "write yesterday, today, -2d, 2024-01-31, 20240131 or a range A..B")


def _back(now: date, count: int, unit: str) -> date:
    days = {"d": 1, "w": 7, "m": 30, "y": 365}[unit] * count
    try:
        return now - timedelta(days=days)
    except OverflowError:
        raise UsageError(f"-{count}{unit} is before the calendar begins", "use a smaller number") from None
