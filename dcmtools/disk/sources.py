"""Which files went into an archive before, so that one that is unchanged since need not be opened again.

This is a cache, in the user's cache folder: it is thrown away when in doubt, and whoever asks holds what it says
against the index. A file is the same when its size, times and inode are, as Git has it; one that was changed in the
last seconds is not noted, since a second change in the same tick of the clock would not show.
"""

import os
import sqlite3
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from dcmtools.disk.atomic import make_folders
from dcmtools.disk.places import cache_folder
from dcmtools.model.names import short_hash

# The coarsest clock of a file system in use: that of FAT.
_TICK_NS = 2_000_000_000
_SCHEMA = """
    CREATE TABLE IF NOT EXISTS source (
        path BLOB PRIMARY KEY, state TEXT, place BLOB, place_size INTEGER, place_mtime_ns INTEGER
    ) WITHOUT ROWID
"""


@dataclass(frozen=True, slots=True)
class Place:
    """Where in the archive the data set of a file was found, and the state of what lies there."""

    path: str
    size: int
    mtime_ns: int


class Sources:
    """The files that one archive has taken in. Whatever goes wrong with it, it knows nothing."""

    def __init__(self, root: Path) -> None:
        self._file = cache_folder() / "sources" / f"{short_hash(os.fspath(root), 32)}.sqlite"
        self._connection: sqlite3.Connection | None = None

    def __enter__(self) -> Self:
        with suppress(OSError):
            self._open(must_exist=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._connection:
            self._connection.close()

    def recall(self, paths: Iterable[Path]) -> dict[Path, Place]:
        """Where the data sets of files are that have not changed since they were noted."""
        found: dict[Path, Place] = {}
        if self._connection is None:
            return found
        try:
            for path in paths:
                query = "SELECT state, place, place_size, place_mtime_ns FROM source WHERE path = ?"
                row = self._connection.execute(query, (os.fsencode(path),)).fetchone()
                with suppress(OSError):  # whoever reads it says so
                    if row and row[0] == _state(os.stat(path)):
                        found[path] = Place(os.fsdecode(row[1]), row[2], row[3])
        except sqlite3.Error:
            self._throw_away()
            return {}
        return found

    def note(self, found: Iterable[tuple[Path, int, int, Path]]) -> None:
        """Notes that a file, of this size and time when it was read, has its data set in a place of the archive."""
        latest = time.time_ns() - _TICK_NS
        rows = []
        for path, size, mtime_ns, place in found:
            with suppress(OSError):
                now, there = os.stat(path), os.lstat(place)
                if (now.st_size, now.st_mtime_ns) == (size, mtime_ns) and mtime_ns < latest:
                    rows.append((os.fsencode(path), _state(now), os.fsencode(place), there.st_size, there.st_mtime_ns))
        if not rows:
            return
        try:
            connection = self._open()
            with connection:
                connection.executemany("INSERT OR REPLACE INTO source VALUES (?, ?, ?, ?, ?)", rows)
        except (sqlite3.Error, OSError):
            self._throw_away()

    def _open(self, *, must_exist: bool = False) -> sqlite3.Connection:
        if self._connection is None:
            if must_exist:
                self._file.stat()
            make_folders(self._file.parent)
            os.close(os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            try:
                connection = sqlite3.connect(self._file, timeout=5.0)
                connection.execute("PRAGMA synchronous = OFF")
                connection.execute(_SCHEMA)
            except sqlite3.Error as problem:
                self._throw_away()
                raise OSError(str(problem)) from problem
            self._connection = connection
        return self._connection

    def _throw_away(self) -> None:
        with suppress(sqlite3.Error, OSError):
            if self._connection:
                self._connection.close()
        self._connection = None
        with suppress(OSError):
            self._file.unlink()


def _state(state: os.stat_result) -> str:
    return f"{state.st_size} {state.st_mtime_ns} {state.st_ctime_ns} {state.st_ino}"
