"""Answers a query from the view of an index.

SQL narrows, and never decides: what it leaves is matched by the very rules that a plain scan uses, on the values that
the lines hold. So both give the same answers, and the view is only quicker.
"""

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby, islice
from operator import itemgetter
from typing import Any

from dcmtools.model.keys import BY_KEYWORD
from dcmtools.model.levels import Share, size_of, summary
from dcmtools.model.matching import fold, fold_name, without_accents
from dcmtools.model.query import Query
from dcmtools.model.record import UNIQUE_KEY, Record, decode

Read = Callable[[int, int], Record | None]
Condition = tuple[str, list[str]]

_UIDS = {"StudyInstanceUID": "study", "SeriesInstanceUID": "series"}
_TEXTS = {
    "PatientID": "patient_id",
    "AccessionNumber": "accession",
    "Modality": "modality",
    "ModalitiesInStudy": "modality",
}
_MOST = 500  # values in one condition; more of them narrow nothing
_BATCH = 1000
_HIGHEST = "\U0010ffff"

_WANTED = "CREATE TEMP TABLE wanted (id INTEGER PRIMARY KEY, name TEXT)"
_GROUPS = """
    SELECT p.{0}, p.id, p.record, p.instances, p.size
    FROM part p JOIN (SELECT {0} AS name, min(first) AS first FROM part WHERE instances {1} GROUP BY {0}) g
    ON p.{0} = g.name WHERE p.instances ORDER BY g.first, p.{0}, p.first
"""
_OF_PART = "SELECT offset, length FROM instance WHERE part = ? AND answer ORDER BY offset"
_INSTANCES = "SELECT offset, length FROM {} WHERE answer {} ORDER BY offset"


def answers(view: sqlite3.Connection, query: Query, read: Read) -> Iterator[Record]:
    """The records at the query's level to which a matching instance belongs, in the order in which they were indexed.

    `read` gives the record of the line at an offset. The connection must be nobody else's: it gets a temporary table.
    """
    wanted = {keyword: value for keyword, value in query.keys.items() if value not in {"", "*"}}
    shared = {keyword: value for keyword, value in wanted.items() if not _is_own(keyword)}
    own = {keyword: value for keyword, value in wanted.items() if _is_own(keyword)}
    if query.level == "instance":
        yield from _instances(view, query, shared, own, read)
        return
    if wanted:
        _choose(view, query.level, _parts(view, query, shared, own, read))
    restricted = f"AND {query.level} IN (SELECT name FROM wanted)" if wanted else ""
    rows = view.execute(_GROUPS.format(query.level, restricted))
    for _, parts in groupby(rows, itemgetter(0)):
        shares = (share for _, *part in parts for share in _shares(view, query, part, read))
        record = summary(shares, query.level, query.returns)
        if query.passes(record):
            yield record


def _shares(view: sqlite3.Connection, query: Query, part: Sequence[Any], read: Read) -> Iterator[Share]:
    """A part's share of a group; where values of instances are to be told, that of each of its instances."""
    number, text, instances, size = part
    if not any(map(_is_own, query.returns)):
        yield Share(decode(text), instances, size)
        return
    for place in view.execute(_OF_PART, (number,)):
        if (record := read(*place)) is not None:
            yield Share(record, 1, size_of(record))


def _instances(
    view: sqlite3.Connection, query: Query, shared: dict[str, str], own: dict[str, str], read: Read
) -> Iterator[Record]:
    tables, left = "instance", replace(query, keys=own)
    if shared:
        _choose(view, "series", _parts(view, query, shared, {}, read))
        tables = "wanted CROSS JOIN instance ON part = id"  # in this order
    condition, values = _uid_condition(own)
    for offset, length in view.execute(_INSTANCES.format(tables, condition), values):
        record = read(offset, length)
        if record is not None and left.matches(record) and query.passes(record):
            yield {"type": "instance", **record}


def _choose(view: sqlite3.Connection, level: str, parts: Iterator[tuple[int, Record]]) -> None:
    """Notes the parts that match, and to which group of the level each belongs."""
    unique = UNIQUE_KEY[level]
    view.execute(_WANTED)
    while batch := [(number, str(record.get(unique) or "")) for number, record in islice(parts, _BATCH)]:
        view.executemany("INSERT INTO wanted VALUES (?, ?)", batch)


def _parts(
    view: sqlite3.Connection, query: Query, shared: dict[str, str], own: dict[str, str], read: Read
) -> Iterator[tuple[int, Record]]:
    """The parts that match the keys which their instances share, and of which an instance matches all keys."""
    by_shared, by_all = replace(query, keys=shared), replace(query, keys={**shared, **own})
    where, values = _narrowed(shared, own)
    for number, text in view.execute(f"SELECT id, record FROM part WHERE instances AND {where}", values):
        record = decode(text)
        if by_shared.matches(record) and (not own or _has_instance(view, number, by_all, read)):
            yield number, record


def _has_instance(view: sqlite3.Connection, part: int, query: Query, read: Read) -> bool:
    condition, values = _uid_condition(query.keys)
    rows = view.execute(f"SELECT offset, length FROM instance WHERE part = ? AND answer {condition}", [part, *values])
    return any((record := read(*row)) is not None and query.matches(record) for row in rows)


def _is_own(keyword: str) -> bool:
    """Whether only the lines tell a key: one of instances, or one that is in none of our own lines."""
    key = BY_KEYWORD.get(keyword)
    return key.level == "instance" if key else keyword != "ModalitiesInStudy"


def _uid_condition(keys: Mapping[str, str]) -> Condition:
    """The condition that names the wanted instances, where there are not too many."""
    uids = _values(keys.get("SOPInstanceUID", ""))
    return (f"AND uid IN ({_marks(uids)})", uids) if uids else ("", [])


def _narrowed(shared: dict[str, str], own: dict[str, str]) -> Condition:
    """A condition that every part which can match fulfils; parts with odd values always do."""
    conditions = [one for keyword, wanted in shared.items() if (one := _condition(keyword, wanted))]
    if uids := _values(own.get("SOPInstanceUID", "")):
        conditions.append((f"id IN (SELECT part FROM instance WHERE uid IN ({_marks(uids)}))", uids))
    if not conditions:
        return "1", []
    text = " AND ".join(condition for condition, _ in conditions)
    chosen = f"id IN (SELECT id FROM part WHERE {text} UNION ALL SELECT id FROM part WHERE odd)"
    return chosen, [value for _, values in conditions for value in values]


def _condition(keyword: str, wanted: str) -> Condition | None:
    values = _values(wanted)
    if not values:
        return None
    if keyword in _UIDS:
        return f"{_UIDS[keyword]} IN ({_marks(values)})", values
    if keyword in _TEXTS:
        return _any(_text(_TEXTS[keyword], fold(value)) for value in values)
    if keyword == "PatientName":
        return _any(
            ("patient_name GLOB ?", [_glob(without_accents(fold_name(value)), inside=True)]) for value in values
        )
    if keyword == "StudyDate" and not any(_has_wildcard(value) for value in values):
        return _any(_dates(value.replace(".", "")) for value in values)
    return None


def _any(conditions: Iterable[Condition]) -> Condition:
    several = list(conditions)
    return f"({' OR '.join(text for text, _ in several)})", [value for _, values in several for value in values]


def _text(column: str, wanted: str) -> Condition:
    return (f"{column} GLOB ?", [_glob(wanted)]) if _has_wildcard(wanted) else (f"{column} = ?", [wanted])


def _dates(wanted: str) -> Condition:
    first, dash, last = (part.strip() for part in wanted.partition("-"))
    if not dash:
        return "date = ?", [first]
    return "date BETWEEN ? AND ?", [first, f"{last}{_HIGHEST}"]


def _glob(folded: str, *, inside: bool = False) -> str:
    """SQLite's pattern for a folded text; `?` may have any length in it, for folding may have lengthened what it is."""
    pattern = "".join({"?": "*", "[": "[[]"}.get(one, one) for one in folded)
    return f"*{pattern}*" if inside else pattern


def _values(wanted: str) -> list[str]:
    """The values of a key; none where they narrow nothing."""
    values = [value.strip() for value in wanted.split("\\")] if wanted else []
    return values if all(map(_can_be_bound, values)) and len(values) <= _MOST else []


def _can_be_bound(value: str) -> bool:
    """Whether SQL can compare with a value: not with none, a NUL, or bytes of the command line that are no text."""
    try:
        return bool(value.encode()) and "\0" not in value
    except UnicodeEncodeError:
        return False


def _marks(values: list[str]) -> str:
    return ",".join("?" * len(values))


def _has_wildcard(text: str) -> bool:
    return "*" in text or "?" in text
