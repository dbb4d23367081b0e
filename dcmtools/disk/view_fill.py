"""Fills the view of an index from its lines: what is at which path, the answer for each instance, sums for each series.

Tables: `instance` has a row for each instance at each path, under the offset of its line; `part` one for all instances
that share every value above the instance level, which is a series unless its files disagree. So a query for studies
reads some thousand rows where the index has a million lines, and its answers are still exactly those of the lines.
"""

import gc
import io
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import blake2b
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from dcmtools.disk.index_line import CONFLICT, EVENT, TOMBSTONE, Shared, parse, shared_record
from dcmtools.model.matching import fold, fold_name, without_accents
from dcmtools.model.record import Record, encode

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_TABLES = """
CREATE TABLE state (
    inode TEXT, root TEXT, consumed INTEGER, tail BLOB, lines INTEGER, bad INTEGER
);
CREATE TABLE part (
    id INTEGER PRIMARY KEY, digest BLOB UNIQUE, record TEXT,
    patient TEXT, study TEXT, series TEXT,
    patient_name TEXT, patient_id TEXT, accession TEXT, date TEXT, modality TEXT, odd INTEGER,
    instances INTEGER DEFAULT 0, first INTEGER DEFAULT 0, size INTEGER DEFAULT 0
);
CREATE TABLE instance (
    offset INTEGER PRIMARY KEY, length INTEGER, uid TEXT, path TEXT, kind INTEGER, part INTEGER, size INTEGER,
    answer INTEGER
);
CREATE TABLE event (offset INTEGER PRIMARY KEY, length INTEGER);
"""
# Made after the rows when there are many: to sort them once takes a third of the time of a million insertions.
_INDEXES = """
CREATE INDEX part_patient ON part (patient);
CREATE INDEX part_study ON part (study);
CREATE INDEX part_series ON part (series);
CREATE INDEX part_patient_name ON part (patient_name);
CREATE INDEX part_patient_id ON part (patient_id);
CREATE INDEX part_accession ON part (accession);
CREATE INDEX part_date ON part (date, modality);
CREATE INDEX part_odd ON part (id) WHERE odd;
CREATE INDEX instance_uid ON instance (uid);
CREATE INDEX instance_path ON instance (path) WHERE path IS NOT NULL;
CREATE INDEX instance_part ON instance (part) WHERE answer;
"""
_PART = (
    "INSERT INTO part"
    " (digest, record, patient, study, series, patient_name, patient_id, accession, date, modality, odd)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_ROW = "INSERT INTO instance VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
_SUMS = (
    "UPDATE part SET (instances, first, size) ="
    " (SELECT count(*), coalesce(min(offset), 0), CAST(total(size) AS INTEGER)"
    " FROM instance WHERE part = part.id AND answer)"
)
_ONE_MORE = (
    "UPDATE part SET first = CASE WHEN instances THEN first ELSE ? END, instances = instances + 1, size = size + ?"
    " WHERE id = ?"
)
_OF_UID = (
    "SELECT offset, kind, part, path, study, series FROM instance LEFT JOIN part ON part.id = instance.part"
    " WHERE uid = ? ORDER BY offset"
)
_BLOCK = 1 << 20
_NEWLINE = 10
_BATCH = 10_000
_KNOWN = 20_000  # parts whose numbers are kept in memory
_VALUES = ("PatientName", "PatientID", "AccessionNumber", "StudyDate", "Modality")
_UIDS = ("StudyInstanceUID", "SeriesInstanceUID")


def make_tables(view: sqlite3.Connection) -> None:
    """Makes empty tables in place of what is there."""
    for kind, name in view.execute("SELECT type, name FROM sqlite_master WHERE type IN ('table', 'index')").fetchall():
        if not name.startswith("sqlite_"):
            view.execute(f"DROP {kind} IF EXISTS {name}")
    for statement in _TABLES.split(";"):
        view.execute(statement)


def make_indexes(view: sqlite3.Connection) -> None:
    """Makes what finds rows quickly."""
    for statement in _INDEXES.split(";"):
        view.execute(statement)


class Filled(NamedTuple):
    """What was taken in: up to which byte, and how many lines, of which some were no records."""

    consumed: int
    lines: int
    bad: int


# A row of the table `instance`; a named one would take as long to make as its line to read.
_Row = tuple[int, int, str, str | bytes | None, int, int, int, bool]


class Fill:
    """Takes the lines between two offsets of an index file into its view, within the caller's transaction."""

    def __init__(self, view: sqlite3.Connection, key_of: Callable[[str], str]) -> None:
        self._view = view
        self._key_of = key_of
        self._parts: dict[Shared, tuple[int, str]] = {}

    def all(self, descriptor: int, end: int) -> Filled:
        """Takes in a whole file, into tables that are new and have no indexes yet."""
        with _undisturbed():
            return self._all(descriptor, end)

    def _all(self, descriptor: int, end: int) -> Filled:
        rows, counted = self._rows(descriptor, 0, end)
        removed: set[str] = set()
        while batch := list(islice(rows, _BATCH)):
            self._view.executemany(_ROW, batch)
            removed.update(uid for _, _, uid, _, kind, *_ in batch if kind == TOMBSTONE)
        make_indexes(self._view)
        several = self._view.execute("SELECT uid FROM instance GROUP BY uid HAVING count(*) > 1")
        for uid in {*removed, *(uid for (uid,) in several)}:
            self._settle(uid)
        self._view.execute(_SUMS)
        return counted.filled

    def more(self, descriptor: int, start: int, end: int) -> Filled:
        """Takes in what was added to a file."""
        rows, counted = self._rows(descriptor, start, end)
        touched: set[int] = set()
        while batch := list(islice(rows, _BATCH)):
            self._view.executemany(_ROW, batch)
            for row in {row[2]: row for row in batch}.values():
                touched |= self._add(row)
        self._view.executemany(f"{_SUMS} WHERE id = ?", ((part,) for part in touched))
        return counted.filled

    def _rows(self, descriptor: int, start: int, end: int) -> "tuple[Iterator[_Row], _Counted]":
        """The rows of the lines that are instances or tombstones; what is counted is known when they are all there."""
        counted = _Counted(Filled(start, 0, 0))
        return self._each(descriptor, start, end, counted), counted

    def _each(self, descriptor: int, start: int, end: int, counted: "_Counted") -> "Iterator[_Row]":
        consumed, lines, bad = counted.filled
        for raw in whole_lines(descriptor, start, end):
            offset, length = consumed, len(raw) - 1
            consumed, lines = offset + length + 1, lines + 1
            try:
                kind, uid, path, size, shared = parse(raw, self._key_of)
            except ValueError:
                bad += 1
                continue
            if kind < TOMBSTONE:
                part, folder = self._parts.get(shared) or self._part(shared)
                # Where an archive puts it is not written down once more: it would be most of the view.
                place = None if path == f"{folder}{uid}.dcm" else path
                yield offset, length, uid, place and stored(place), kind, part, size, kind < CONFLICT
            elif kind == TOMBSTONE:
                yield offset, length, uid, stored(path), kind, 0, 0, False
            elif kind == EVENT:
                self._view.execute("INSERT INTO event VALUES (?, ?)", (offset, length))
        counted.filled = Filled(consumed, lines, bad)

    def _part(self, shared: Shared) -> tuple[int, str]:
        """The number of a part, and the folder in which an archive keeps it."""
        if len(self._parts) >= _KNOWN:
            self._parts.clear()
        known = self._parts[shared] = self._made_part(shared_record(shared))
        return known

    def _made_part(self, record: Record) -> tuple[int, str]:
        text = encode(record)
        digest = blake2b(text, digest_size=16).digest()
        study, series = (_group_key(record, key) for key in _UIDS)
        found = self._view.execute("SELECT id FROM part WHERE digest = ?", (digest,)).fetchone()
        if found is None:
            columns = (_group_key(record, "PatientID"), study, series, *narrow_values(record), _is_odd(record))
            number = self._view.execute(_PART, (digest, text, *columns)).lastrowid or 0
        else:
            (number,) = found
        return number, f"{study}/{series}/"

    def _add(self, row: "_Row") -> set[int]:
        """Takes the newest row of an instance into account; the parts whose sums have to be made anew."""
        offset, _, uid, _, kind, part, size, is_answer = row
        (count,) = self._view.execute("SELECT count(*) FROM instance WHERE uid = ?", (uid,)).fetchone()
        if count > 1 or kind == TOMBSTONE:
            return self._settle(uid)
        if is_answer:
            self._view.execute(_ONE_MORE, (offset, size, part))
        return set()

    def _settle(self, uid: str) -> set[int]:
        """Leaves the last row of an instance at each path, and marks the answer among them; the parts concerned.

        The answer is the first in the archive, else the first elsewhere, else an alias; a conflict never is.
        """
        last: dict[str | bytes, tuple[int, int]] = {}
        gone: list[tuple[int]] = []
        parts: set[int] = set()
        for offset, kind, part, path, study, series in self._view.execute(_OF_UID, (uid,)).fetchall():
            place = path if path is not None else stored(f"{study}/{series}/{uid}.dcm")
            parts.add(part)
            if place in last:
                gone.append((last.pop(place)[1],))
            if kind == TOMBSTONE:
                gone.append((offset,))
            else:
                last[place] = (kind, offset)
        self._view.executemany("DELETE FROM instance WHERE offset = ?", gone)
        best = min(last.values(), default=(CONFLICT, -1))
        answer = best[1] if best[0] < CONFLICT else -1
        self._view.execute("UPDATE instance SET answer = (offset = ?) WHERE uid = ?", (answer, uid))
        return parts - {0}


class _Counted:
    """Holds what was counted, once the lines went by."""

    def __init__(self, filled: Filled) -> None:
        self.filled = filled


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Keeps Python from looking for circles among a million rows, which have none: a quarter of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


class _Stretch(io.RawIOBase):
    """A stretch of a file, read without moving the descriptor's position, which threads share."""

    def __init__(self, descriptor: int, start: int, end: int) -> None:
        super().__init__()
        self._descriptor, self._position, self._end = descriptor, start, end

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer") -> int:
        view = memoryview(buffer)[: max(0, self._end - self._position)]
        count = os.preadv(self._descriptor, [view], self._position) if view else 0
        self._position += count
        return count


def whole_lines(descriptor: int, start: int, end: int) -> Iterator[bytes]:
    """The lines between two offsets with their newlines; a last one without it is left for later."""
    with io.BufferedReader(_Stretch(descriptor, start, end), _BLOCK) as stretch:
        for line in stretch:
            if line[-1] == _NEWLINE:
                yield line


def stored(path: str) -> str | bytes:
    """A path as the view holds it: its bytes where it is more than ASCII, for they need not be UTF-8."""
    return path if path.isascii() else os.fsencode(path)


def narrow_values(record: Record) -> tuple[str, ...]:
    """What queries are narrowed by: all spellings that matching takes for one are one here."""
    name, patient, accession, date, modality = (str(record.get(key) or "") for key in _VALUES)
    names = {without_accents(fold_name(one)) for one in (name, *name.split("="))}
    return ("\n".join(sorted(names)), fold(patient), fold(accession), date.replace(".", ""), fold(modality))


def _group_key(record: Record, keyword: str) -> str:
    return str(record.get(keyword) or "")


def _is_odd(record: Record) -> bool:
    """Whether a value is none that our own headers give, so that it may match in ways that no column shows."""
    values = [record.get(key) for key in (*_VALUES, *_UIDS)]
    texts = [value for value in values if isinstance(value, str)]
    padded = any(text != text.rstrip() for text in texts[-2:])
    return (
        padded
        or any("\0" in text for text in texts)
        or any(value is not None and not isinstance(value, str) for value in values)
    )
