"""Takes files into an index where they lie (DESIGN §4)."""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TypeVar

from dcmtools.disk.header import read_header
from dcmtools.disk.index import Index
from dcmtools.disk.part10 import same_data_set
from dcmtools.disk.tree import Skipped, files_below
from dcmtools.model.errors import BadData, DcmtoolsError
from dcmtools.model.record import Record, path_keys, path_of, pick

Stop = Callable[[], bool]

# What goes to the disk together: many enough for one sync to be cheap, few enough for the lines to come out steadily.
BATCH = 1000
SECONDS = 1.0
_CHUNK = 256
# Errors that tell of our reading and not of the file.
_MAY_BE_THERE = frozenset({"unreadable", "changed", "vanished", "temporary"})

_T = TypeVar("_T")


def never() -> bool:
    """Says that nobody wants to stop."""
    return False


def index_paths(
    paths: Iterable[Path | str],
    index: Index,
    *,
    follow: bool = False,
    dry_run: bool = False,
    stop: Stop = never,
    skipped: Skipped | None = None,
) -> Iterator[Record]:
    """A record for each file, which stays where it is: its instance, or why there is none.

    The `state` is indexed, present (unchanged since, by size and time, or the same data set as a file that the index
    has; the record is then that file's) or conflict (another file has this UID, with other content).
    """
    references = _References(index, dry_run=dry_run)
    for chunk in _chunks(until(stop, files_below(paths, follow=follow, skipped=skipped)), _CHUNK):
        known = index.by_paths(one for one in chunk if isinstance(one, Path))
        for one in chunk:
            yield from references.add(one, known.get(os.fspath(one)) if isinstance(one, Path) else None)
    yield from references.flush()


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


def header_of(path: Path) -> Record:
    """The instance record of a file, or an error record; links that were not to be followed do not come here."""
    try:
        return read_header(path, follow=path.is_symlink())
    except DcmtoolsError as problem:
        return problem.record()


def is_error(record: Record) -> bool:
    """Whether a record tells of a failure."""
    return record.get("type") == "error"


def shown(path: Path) -> str:
    """A path as text that JSON can hold."""
    return str(path_keys(path)["path"])


def holds_same(one: Path, other: Path) -> bool:
    """Whether two files hold the same data set; one that is damaged, or a link in the second place, holds none."""
    try:
        return same_data_set(os.path.realpath(one), other)
    except BadData:
        return False


class _References:
    """Files that are indexed where they lie, a batch at a time."""

    def __init__(self, index: Index, *, dry_run: bool) -> None:
        self._index = index
        self._dry_run = dry_run
        self._items: list[tuple[Record, Record | None]] = []
        self._since = time.monotonic()

    def add(self, found: Path | Record, known: Record | None) -> Iterator[Record]:
        """Takes a file in, with what the index has of its path; the records of the batch when it is due."""
        if not isinstance(found, Path):
            self._items.append((found, None))
        elif known and _is_unchanged(found, known):
            self._items.append((self._told_again(known), None))
        else:
            self._items.append((header_of(found), known))
        if len(self._items) >= BATCH or time.monotonic() - self._since >= SECONDS:
            yield from self.flush()

    def flush(self) -> Iterator[Record]:
        """Appends the batch's lines and tells of it."""
        items, self._items = self._items, []
        firsts = self._index.lookup({str(record["SOPInstanceUID"]) for record, _ in items if _is_new(record)})
        lines: list[Record] = []
        told = [self._taken(record, known, firsts, lines) for record, known in items]
        if self._dry_run:
            told = [record if is_error(record) else {**record, "dry_run": True} for record in told]
        else:
            self._index.append(lines)
        yield from told
        self._since = time.monotonic()

    def _told_again(self, known: Record) -> Record:
        if known.get("state") == "conflict":  # until somebody has looked at it, it is said again
            return conflicting(known)
        if "duplicate_of" in known:
            known = self._index.lookup((known["SOPInstanceUID"],)).get(known["SOPInstanceUID"], known)
        return {**known, "state": "present"}

    def _taken(self, record: Record, known: Record | None, firsts: dict[str, Record], lines: list[Record]) -> Record:
        """The record to tell of a file; what the index has to learn goes to `lines`."""
        if known and _has_gone_bad(record):
            lines.append(_tombstone(known))
        if not _is_new(record):
            return record
        uid = str(record["SOPInstanceUID"])
        if known and known["SOPInstanceUID"] != uid:
            lines.append(_tombstone(known))
        path, first = path_of(record), firsts.get(uid)
        there = path_of(first) if first else None
        if first and there and there != path and _is_gone(there):  # it was moved here
            lines.append(_tombstone(first))
            first = None
        if first is None or there is None or there == path or path is None:
            firsts[uid] = record
            lines.append(record)
            return {**record, "state": "indexed"}
        mark = {"duplicate_of": os.fspath(there)}
        if holds_same(path, Path(os.path.realpath(there))):
            lines.append({**record, **mark})
            return {**first, "state": "present", "source": shown(path)}
        lines.append({**record, **mark, "state": "conflict"})
        return conflicting({**record, **mark})


def conflicting(record: Record) -> Record:
    """The record of a file whose SOP Instance UID another file has with other content, as it is told."""
    reason = f"its SOP Instance UID is that of {record['duplicate_of']}, which has other content"
    return {**record, "state": "conflict", "reason": reason, "advice": "both are kept, and the first stays the answer"}


def _is_new(record: Record) -> bool:
    return not is_error(record) and "state" not in record


def _has_gone_bad(record: Record) -> bool:
    """Whether a file was read and is no instance, or none any more."""
    return is_error(record) and record.get("cause") not in _MAY_BE_THERE


def _tombstone(record: Record) -> Record:
    return {"type": "tombstone", **pick(record, "SOPInstanceUID", "path", "path_b64")}


def _is_gone(path: Path) -> bool:
    """Whether nothing has this name; what cannot be looked at may be there."""
    try:
        path.lstat()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return False


def _is_unchanged(path: Path, known: Record) -> bool:
    try:
        state = path.stat()
    except OSError:
        return False
    return (known.get("size"), known.get("mtime_ns")) == (state.st_size, str(state.st_mtime_ns))
