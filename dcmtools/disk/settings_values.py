"""What the texts of settings mean; each function raises ConfigurationError for a text that means nothing to it."""

import re
from collections.abc import Callable

from dcmtools.model.errors import ConfigurationError

_YES, _NO = frozenset({"yes", "true", "on", "1"}), frozenset({"no", "false", "off", "0"})
_NUMBER = re.compile(r"[0-9]{1,9}(\.[0-9]{1,6})?\Z")
_DURATION = re.compile(r"(\d+d)?(\d+h)?(\d+m(in)?)?(\d+(\.\d+)?s?)?\Z", re.ASCII)
_DAY = 86400


def boolean(text: str) -> bool:
    """Yes or no."""
    if (word := text.lower()) in _YES | _NO:
        return word in _YES
    raise ConfigurationError(f"'{text[:60]}' is neither yes nor no")


def whole(text: str) -> int:
    """A number from 1 to 9999."""
    if re.match(r"[0-9]{1,4}\Z", text) and int(text):
        return int(text)
    raise ConfigurationError(f"'{text[:60]}' is not a number from 1 to 9999")


def seconds(text: str) -> float:
    """A number of seconds above zero and within a day."""
    if _NUMBER.match(text) and 0 < float(text) <= _DAY:
        return float(text)
    raise ConfigurationError(f"'{text[:60]}' is not a number of seconds", "write for example 30 or 2.5")


def hours(text: str) -> str:
    """Hours of the day such as 20:00-06:00, several with commas between."""
    spans = [span.strip() for span in text.split(",")]
    if all(re.match(r"([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d\Z", span, re.ASCII) for span in spans):
        return ", ".join(spans)
    raise ConfigurationError(f"'{text[:60]}' are not hours of a day", "write for example 20:00-06:00")


def choice(*words: str) -> Callable[[str], str]:
    """A reader that knows only these words."""

    def read(text: str) -> str:
        if (word := text.lower()) in words:
            return word
        raise ConfigurationError(f"'{text[:60]}' is none of {', '.join(words)}")

    return read


def duration(text: str) -> str:
    """A duration as --deadline takes it: 90s, 10m, 2h, 1h30m, 1d."""
    if text and _DURATION.match(text):
        return text
    raise ConfigurationError(f"'{text[:60]}' is not a duration", "write for example 90s, 10m or 1h30m")


def time_zone(text: str) -> str:
    """A time zone's name in the IANA database."""
    from zoneinfo import ZoneInfo

    try:
        return ZoneInfo(text).key
    except (LookupError, ValueError, OSError):  # unknown; outside the database; a folder of it
        raise ConfigurationError(f"'{text[:60]}' is not a time zone", "write for example Europe/Brussels") from None
