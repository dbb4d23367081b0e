"""The view of an index: tables that answer in milliseconds what its lines would take seconds for (DESIGN §4).

It is derived from the lines and caught up with them whenever somebody looks; nobody else writes to it.
"""

import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

from dcmtools.disk.atomic import identity
from dcmtools.disk.view_file import connected, opened_view, removed_view
from dcmtools.disk.view_fill import Fill, Filled, make_indexes, make_tables
from dcmtools.disk.view_lookup import Place
from dcmtools.disk.view_place import places_for
from dcmtools.disk.view_tail import LONGEST, Tail
from dcmtools.model.errors import DcmtoolsError, IOFailure, TryLater, from_os
from dcmtools.model.record import path_keys

# The bytes before the place up to which a file was read; when they change, other lines have taken their place.
_TAIL = 4096
_TRIES = 20  # to read an index that others replace meanwhile
_MUCH = 4 << 20  # bytes that are quicker taken in with all that was there before, when they are the larger part


class Counts(NamedTuple):
    """How many lines the index has, and how many of them are no records."""

    lines: int
    bad: int


class Snapshot(NamedTuple):
    """An index as it was at one moment: a descriptor of its file, and the view of the lines up to then."""

    descriptor: int
    view: sqlite3.Connection


class View:
    """The view of one index file. Thread-safe; processes share it.

    It is never why something fails: where it cannot be written it is made elsewhere, and at last in memory.
    """

    def __init__(self, journal: Path, root: str, key_of: Callable[[str], str]) -> None:
        self._journal = journal
        self._root = root
        self._key_of = key_of
        self._guard = threading.RLock()
        self._view: sqlite3.Connection | None = None
        self._places: list[Path | None] = []
        self._was_removed = False
        self._tail = Tail(key_of)
        self._empty: sqlite3.Connection | None = None
        self._identity: tuple[int, int] | None = None

    @property
    def file(self) -> Path | None:
        """Where the view lies, once it was looked at; None when it is in memory."""
        return self._places[0] if self._places else None

    def counts(self) -> Counts:
        """How many lines there are."""
        with self.snapshot() as snapshot:
            if snapshot is None:
                return Counts(0, 0)
            return Counts(*snapshot.view.execute("SELECT lines, bad FROM state").fetchone())

    @contextmanager
    def snapshot(self) -> Iterator[Snapshot | None]:
        """The index as it is now, for as long as the block lasts; None when there is no file.

        For quick questions: other threads wait meanwhile. `apart` is for long ones.
        """
        with self._guard, self._held(self._current) as snapshot:
            yield snapshot

    def places(self, select: Callable[[Tail, sqlite3.Connection], Iterable[Place]]) -> tuple[int, list[Place]] | None:
        """A descriptor of the index, for the caller to close, and the places that are selected, in their order.

        As quick as can be: what the view lacks is only taken in when it is much, and else looked at in the tail.
        """
        with self._guard, self._held(self._nearly_current) as snapshot:
            if snapshot is None:
                return None
            places = sorted(select(self._tail, snapshot.view))
            return os.dup(snapshot.descriptor), places

    def lacks(self, inode: int, start: int, uids: Iterable[str]) -> bool:
        """Whether none of these instances is in the file up to this byte, as far as it was looked at; else False."""
        with self._guard:
            view = self._view if self._view is not None or self._tail.start else self._empty
            try:
                return view is not None and self._tail.reaches(inode, start) and self._tail.lacks(view, uids)
            except sqlite3.Error as problem:
                self._give_up(problem)
                return False

    @contextmanager
    def _held(self, bring: Callable[[int], sqlite3.Connection | None]) -> Iterator[Snapshot | None]:
        """A descriptor of the index with the view that `bring` gives of it, in a transaction: neither changes."""
        with self._failures_told():
            for _ in range(_TRIES):
                with self._opened() as descriptor:
                    if descriptor is None:
                        yield None
                        return
                    view = bring(descriptor)
                    if view is None:  # the index was replaced in this moment
                        continue
                    try:
                        yield Snapshot(descriptor, view)
                    finally:
                        _end_reading(view)
                    return
            raise TryLater(f"{self._journal} is replaced again and again", "try again", **path_keys(self._journal))

    def _current(self, descriptor: int) -> sqlite3.Connection | None:
        view = self._caught_up(descriptor)
        return view if self._begin(view, descriptor) is not None else None

    def _nearly_current(self, descriptor: int) -> sqlite3.Connection | None:
        size, view = os.fstat(descriptor).st_size, self._found()
        known = self._begin(view, descriptor) if view is not None else None
        if view is None and size <= LONGEST and not self._is_made():
            view = self._nothing()
            view.execute("BEGIN")
            known = 0
        elif view is None or known is None or size - known > LONGEST:
            if view is not None:
                _end_reading(view)  # who reads cannot write
            view = self._caught_up(descriptor)
            known = self._begin(view, descriptor)
        if known is None:
            return None
        self._tail.follow(descriptor, known, size)
        return view

    def _begin(self, view: sqlite3.Connection, descriptor: int) -> int | None:
        """Begins to read; up to which byte the view knows the file, or None, and then nothing is begun."""
        try:
            view.execute("BEGIN")
            known = _consumed(view, descriptor, self._root)
        except sqlite3.Error as problem:
            self._give_up(problem)
            return None
        if known is None:
            _end_reading(view)
        return known

    def bad_seen(self) -> int:
        """How many lines are no records, of those that were taken in for somebody who asked."""
        with self._guard:
            row = self._view.execute("SELECT bad FROM state").fetchone() if self._view is not None else None
            return self._tail.bad + (row[0] if row else 0)

    def _is_made(self) -> bool:
        """Whether there is a view that would have to be opened only."""
        return self._view is not None or any(place.exists() for place in self._candidates() if place)

    def _candidates(self) -> list[Path | None]:
        """Where the view may lie, the place to try first at the front; None is memory."""
        self._places = self._places or [*places_for(self._journal), None]
        return self._places

    def _nothing(self) -> sqlite3.Connection:
        """A view that has no lines yet: of an index that its tail holds whole."""
        if self._empty is None:
            self._empty = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
            make_tables(self._empty)
            make_indexes(self._empty)
        return self._empty

    @contextmanager
    def apart(self) -> Iterator[Snapshot | None]:
        """As `snapshot`, over a connection of its own: nobody waits, and nothing changes, however long it is read."""
        with self._failures_told(), self._opened() as descriptor:
            if descriptor is None:
                yield None
                return
            view = self._apart(descriptor)
            try:
                yield Snapshot(descriptor, view)
            finally:
                view.close()

    @contextmanager
    def _opened(self) -> Iterator[int | None]:
        """A descriptor of the index; None where there is none."""
        try:
            descriptor = os.open(self._journal, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            yield None
            return
        except OSError as problem:
            raise from_os(problem, "reading", self._journal) from problem
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    @contextmanager
    def _failures_told(self) -> Iterator[None]:
        """Raises what SQLite says of the view as an error of ours, after the view was given up."""
        try:
            yield
        except sqlite3.Error as problem:
            with self._guard:
                self._give_up(problem)
            reason = f"the view of {self._journal} cannot be read: {problem}"
            where = path_keys(self._journal)
            raise IOFailure(reason, "run the same command again: it is made anew", **where) from problem

    def _apart(self, descriptor: int) -> sqlite3.Connection:
        for _ in range(_TRIES):
            with self._guard:
                known = _consumed(self._caught_up(descriptor), descriptor, self._root)
                if self.file is None:
                    break
                view = connected(self.file)
                if known is not None and (self._begin(view, descriptor) or 0) >= known:
                    return view
                view.close()  # the index was replaced, or its view removed, in this moment
        return self._in_memory(descriptor)

    def _caught_up(self, descriptor: int) -> sqlite3.Connection:
        """The view, after it took in what the file has gained."""
        while True:
            try:
                view = self._found() or self._made_or_found(descriptor)
                self._catch_up(view, descriptor)
            except (sqlite3.Error, DcmtoolsError, OSError) as problem:
                if self.file is None:
                    raise self._told(problem) from problem
                self._give_up(problem)
            else:
                self._tail.forget()
                return view

    def _found(self) -> sqlite3.Connection | None:
        """The view that is open, unless its file was removed or made anew by somebody else."""
        if self._view is not None and self.file is not None and identity(self.file) != self._identity:
            self._close()
        return self._view

    def _close(self) -> None:
        if self._view is not None:
            self._view.close()
            self._view = None

    def _made_or_found(self, descriptor: int) -> sqlite3.Connection:
        file = self._candidates()[0]
        if file is None:
            self._view = self._in_memory(descriptor)
        else:
            self._view = opened_view(file, lambda view: self._make(view, descriptor))
            self._identity = identity(file)
        return self._view

    def _in_memory(self, descriptor: int) -> sqlite3.Connection:
        view = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        self._make(view, descriptor)
        return view

    def _give_up(self, problem: Exception) -> None:
        """Removes a damaged view, which is then made anew; where it cannot be written the next place is tried."""
        self._close()
        is_damaged = isinstance(problem, sqlite3.DatabaseError) and not isinstance(problem, sqlite3.OperationalError)
        if is_damaged and self.file is not None and not self._was_removed:
            self._was_removed = True
            removed_view(self.file)
        elif len(self._places) > 1:
            self._places.pop(0)

    def _make(self, view: sqlite3.Connection, descriptor: int) -> None:
        make_tables(view)
        filled = Fill(view, self._key_of).all(descriptor, os.fstat(descriptor).st_size)
        _note(view, descriptor, self._root, filled)

    def _catch_up(self, view: sqlite3.Connection, descriptor: int) -> None:
        size = os.fstat(descriptor).st_size
        if _consumed(view, descriptor, self._root) == size:
            return
        view.execute("BEGIN IMMEDIATE")
        try:
            consumed = _consumed(view, descriptor, self._root)  # another process may have been quicker
            if consumed is None or size - consumed > max(consumed, _MUCH):
                self._make(view, descriptor)
            elif consumed < size:
                filled = Fill(view, self._key_of).more(descriptor, consumed, size)
                _note(view, descriptor, self._root, filled, add=True)
            view.execute("COMMIT")
        except BaseException:
            if view.in_transaction:
                view.execute("ROLLBACK")
            raise

    def _told(self, problem: Exception) -> DcmtoolsError:
        if isinstance(problem, DcmtoolsError):
            return problem
        reason = f"reading {self._journal}: {getattr(problem, 'strerror', None) or problem}"
        return IOFailure(reason, "check the disk, then run the same command again", **path_keys(self._journal))


def known_up_to(snapshot: Snapshot, root: str) -> int | None:
    """Up to which byte a snapshot's view knows the file; None when that was cut or written over since."""
    return _consumed(snapshot.view, snapshot.descriptor, root)


def _consumed(view: sqlite3.Connection, descriptor: int, root: str) -> int | None:
    """Up to which byte the view knows the file; None when it knows another one."""
    row = view.execute("SELECT inode, root, consumed, tail FROM state").fetchone()
    if row is None:
        return None
    state = os.fstat(descriptor)
    inode, known_root, consumed, tail = row
    if (inode, known_root) != (str(state.st_ino), os.fsencode(root).hex()) or consumed > state.st_size:
        return None
    return int(consumed) if _tail(descriptor, consumed) == tail else None


def _note(view: sqlite3.Connection, descriptor: int, root: str, filled: Filled, *, add: bool = False) -> None:
    lines, bad = view.execute("SELECT lines, bad FROM state").fetchone() if add else (0, 0)
    view.execute("DELETE FROM state")
    inode, tail = str(os.fstat(descriptor).st_ino), _tail(descriptor, filled.consumed)
    values = (inode, os.fsencode(root).hex(), filled.consumed, tail, lines + filled.lines, bad + filled.bad)
    view.execute("INSERT INTO state VALUES (?, ?, ?, ?, ?, ?)", values)


def _end_reading(view: sqlite3.Connection) -> None:
    with suppress(sqlite3.ProgrammingError):  # it was closed, since it turned out to be damaged
        if view.in_transaction:
            view.execute("ROLLBACK")


def _tail(descriptor: int, consumed: int) -> bytes:
    length = min(_TAIL, consumed)
    return blake2b(os.pread(descriptor, length, consumed - length), digest_size=16).digest()
