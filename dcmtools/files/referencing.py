"""Takes files into an index where they lie (DESIGN §4)."""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeVar

from dcmtools.disk.index import Index
from dcmtools.disk.parallel import serially
from dcmtools.disk.part10 import same_data_set
from dcmtools.disk.scanning import CHUNK, Spread, header_of, scan
from dcmtools.disk.tree import Skipped, names_below
from dcmtools.model.errors import BadData
from dcmtools.model.record import Record, name_of, path_keys, pick

__all__ = [
    "BATCH",
    "SECONDS",
    "References",
    "Stop",
    "conflicting",
    "header_of",
    "holds_same",
    "index_paths",
    "is_error",
    "never",
]

Stop = Callable[[], bool]

# What goes to the disk together: many enough for one sync to be cheap, few enough for the lines to come out steadily.
BATCH = 1000
SECONDS = 1.0
# Errors that tell of our reading and not of the file.
_MAY_BE_THERE = frozenset({"unreadable", "changed", "vanished", "temporary"})
# What a line of the index says beside what was read.
_MARKS = frozenset({"duplicate_of", "state"})

_T = TypeVar("_T")


def never() -> bool:
    """Says that nobody wants to stop."""
    return False


def trust(known: Record) -> bool:  # noqa: ARG001 - the signature of doubt
    """Doubts nothing."""
    return False


def index_paths(
    paths: Iterable[Path | str],
    index: Index,
    *,
    follow: bool = False,
    dry_run: bool = False,
    stop: Stop = never,
    skipped: Skipped | None = None,
    spread: Spread = serially,
    doubt: Callable[[Record], bool] = trust,
) -> Iterator[Record]:
    """A record for each file, which stays where it is: its instance, or why there is none.

    The `state` is indexed, present (unchanged since, by size and time, or the same data set as a file that the index
    has; the record is then that file's) or conflict (another file has this UID, with other content). A `dry_run`
    writes nothing; the state is then planned, and the `plan` what it would be. `spread` is how the files are read; of
    what the index knows, what is to `doubt` is read again, however unchanged it looks.
    """
    references = References(index, dry_run=dry_run)
    found = until(stop, names_below(paths, follow=follow, skipped=skipped))
    for entries, headers in scan(_looked_up(found, index, doubt), spread):
        unread = iter(headers)
        for entry in entries:
            yield from references.add(next(unread) if entry.to_read else entry.found, entry.known)
    yield from references.flush()


class _Entry(NamedTuple):
    """A file, or what is told of it at once, with what the index has of its path."""

    found: str | Record
    known: Record | None
    to_read: bool


def _looked_up(
    found: Iterable[str | Record], index: Index, doubt: Callable[[Record], bool]
) -> Iterator[tuple[list[str], list[_Entry]]]:
    """Chunks of files: those that must be read, and all."""
    for chunk in _chunks(found, CHUNK):
        known = index.by_paths(one for one in chunk if isinstance(one, str))
        entries = [_entry(one, known, doubt) for one in chunk]
        yield [one.found for one in entries if one.to_read and isinstance(one.found, str)], entries


def _entry(found: str | Record, known_at: dict[str, Record], doubt: Callable[[Record], bool]) -> _Entry:
    if not isinstance(found, str):
        return _Entry(found, None, to_read=False)
    known = known_at.get(found)
    return _Entry(found, known, to_read=known is None or doubt(known) or not is_unchanged(found, known))


def until(stop: Stop, items: Iterable[_T]) -> Iterator[_T]:
    """The items, until somebody wants to stop."""
    for item in items:
        if stop():
            return
        yield item


def _chunks(items: Iterable[_T], size: int) -> Iterator[list[_T]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


def is_error(record: Record) -> bool:
    """Whether a record tells of a failure."""
    return record.get("type") == "error"


def shown(path: Path) -> str:
    """A path as text that JSON can hold."""
    return str(path_keys(path)["path"])


def holds_same(one: str | os.PathLike[str], other: str | os.PathLike[str]) -> bool:
    """Whether two files hold the same data set; one that is damaged, or a link in the second place, holds none."""
    try:
        return same_data_set(os.path.realpath(one), other)
    except BadData:
        return False


class References:
    """Files that are indexed where they lie, a batch at a time."""

    def __init__(self, index: Index, *, dry_run: bool) -> None:
        self._index = index
        self._dry_run = dry_run
        self._items: list[tuple[Record, Record | None]] = []
        self._since = time.monotonic()
        self._same: dict[tuple[str, str], bool] = {}
        self._still: dict[tuple[str, str], bool] = {}

    def add(self, found: str | Record, known: Record | None) -> Iterator[Record]:
        """Takes in what was read, or a path that is as the index knows it; the records of the batch when it is due."""
        if not isinstance(found, str):
            self._items.append((found, known))
        elif known:
            self._items.append((self._told_again(known), None))
        if len(self._items) >= BATCH or time.monotonic() - self._since >= SECONDS:
            yield from self.flush()

    def flush(self) -> Iterator[Record]:
        """Appends the batch's lines and tells of it."""
        items, self._items = self._items, []
        told: list[Record] = []

        def look() -> list[Record]:
            lines: list[Record] = []
            told.extend(self._decided(items, lines))
            return lines

        if self._dry_run or not any(known or _is_new(record) for record, known in items):
            look()
        else:  # while nobody else writes: what another run has added meanwhile is not added again
            self._compare(items)
            self._index.append_after(look)
        yield from map(_planned, told) if self._dry_run else told
        self._since = time.monotonic()

    def _compare(self, items: list[tuple[Record, Record | None]]) -> None:
        """Finds out, before others are kept from writing, which files hold the same data set as those of the index."""
        self._same.clear()
        self._still.clear()
        firsts = self._firsts(items)
        for record, _ in items:
            first = firsts.get(str(record.get("SOPInstanceUID"))) if _is_new(record) else None
            path, there = name_of(record), name_of(first) if first else None
            if first and path and there and path != there and self._is_still_there(first, there):
                self._holds_same(path, there)

    def _is_still_there(self, first: Record, there: str) -> bool:
        """Whether a file is still that instance: files that changed their names may have taken each other's."""
        if is_gone(there):
            return False
        uid = str(first["SOPInstanceUID"])
        if is_unchanged(there, first):
            return True
        if (uid, there) not in self._still:
            self._still[uid, there] = header_of(there).get("SOPInstanceUID") == uid
        return self._still[uid, there]

    def _holds_same(self, path: str, there: str) -> bool:
        pair = (path, there)
        if pair not in self._same:
            self._same[pair] = holds_same(Path(path), Path(os.path.realpath(there)))
        return self._same[pair]

    def _firsts(self, items: list[tuple[Record, Record | None]]) -> dict[str, Record]:
        return self._index.lookup({str(record["SOPInstanceUID"]) for record, _ in items if _is_new(record)})

    def _decided(self, items: list[tuple[Record, Record | None]], lines: list[Record]) -> list[Record]:
        """The records to tell of a batch; what the index has to learn goes to `lines`."""
        firsts = self._firsts(items)
        read = [path for record, known in items if (known or _is_new(record)) and (path := name_of(record))]
        there = self._index.by_paths(read) if read else {}
        return [self._taken(record, there, firsts, lines) for record, _ in items]

    def _told_again(self, known: Record) -> Record:
        if known.get("state") == "conflict":  # until somebody has looked at it, it is said again
            return conflicting(known)
        if "duplicate_of" in known:
            known = self._index.lookup((known["SOPInstanceUID"],)).get(known["SOPInstanceUID"], known)
        return {**known, "state": "present"}

    def _taken(
        self, record: Record, known_at: dict[str, Record], firsts: dict[str, Record], lines: list[Record]
    ) -> Record:
        path = name_of(record)
        known = known_at.get(path) if path and "state" not in record else None
        if known and _has_gone_bad(record):
            lines.append(tombstone(known))
        if not _is_new(record) or path is None:
            return record
        if known and _says_the_same(known, record):
            return self._told_again(known)
        uid = str(record["SOPInstanceUID"])
        if known and known["SOPInstanceUID"] != uid:
            lines.append(tombstone(known))
        line = self._line(record, path, firsts, lines)
        lines.append(line)
        known_at[path] = line
        if line.get("state") == "conflict":
            return conflicting(line)
        return (
            {**firsts[uid], "state": "present", "source": str(path_keys(path)["path"])}
            if line is not record
            else {**record, "state": "indexed"}
        )

    def _line(self, record: Record, path: str, firsts: dict[str, Record], lines: list[Record]) -> Record:
        """The line of a file that is new, or new in what it holds: its record, marked if another is the answer."""
        uid = str(record["SOPInstanceUID"])
        first = firsts.get(uid)
        there = name_of(first) if first else None
        if first and there and there != path and not self._is_still_there(first, there):  # it was moved here
            lines.append(tombstone(first))
            first = None
        if first is None or there is None or there == path:
            firsts[uid] = record
            return record
        mark = {"duplicate_of": there}
        return {**record, **mark} if self._holds_same(path, there) else {**record, **mark, "state": "conflict"}


def conflicting(record: Record) -> Record:
    """The record of a file whose SOP Instance UID another file has with other content, as it is told."""
    reason = f"its SOP Instance UID is that of {record['duplicate_of']}, which has other content"
    return {**record, "state": "conflict", "reason": reason, "advice": "both are kept, and the first stays the answer"}


def _planned(record: Record) -> Record:
    """What a run that changes nothing tells of a file."""
    return {**record, "state": "planned", "plan": "indexed"} if record.get("state") == "indexed" else record


def _says_the_same(known: Record, record: Record) -> bool:
    return {key: value for key, value in known.items() if key not in _MARKS} == record


def _is_new(record: Record) -> bool:
    return not is_error(record) and "state" not in record


def _has_gone_bad(record: Record) -> bool:
    """Whether a file was read and is no instance, or none any more."""
    return is_error(record) and record.get("cause") not in _MAY_BE_THERE


def tombstone(record: Record) -> Record:
    return {"type": "tombstone", **pick(record, "SOPInstanceUID", "path", "path_b64")}


def is_gone(path: str) -> bool:
    """Whether nothing has this name; what cannot be looked at may be there."""
    try:
        os.lstat(path)
    except FileNotFoundError:
        return True
    except (OSError, ValueError):  # the latter for a zero byte in a name
        return False
    return False


def is_unchanged(path: str, known: Record) -> bool:
    """Whether a file has the size and time with which the index knows it."""
    try:
        state = os.stat(path)
    except (OSError, ValueError):
        return False
    return (known.get("size"), known.get("mtime_ns")) == (state.st_size, str(state.st_mtime_ns))
