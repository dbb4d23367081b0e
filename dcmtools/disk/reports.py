"""Where who receives for an archive leaves the reports of storage commitment for who waits for them (PS3.4 J.3.3).

Who is to wait for a report makes an empty file named by its transaction before it asks, and the report takes that
file's place, whole. Others are not kept: nobody fills the archive with reports that no one asked for.
"""

import contextlib
import os
import time
from pathlib import Path

from dcmtools.disk.atomic import FILE_MODE, TEMPORARY_PREFIX, make_folders, write_atomic
from dcmtools.model.errors import from_os
from dcmtools.model.names import is_uid
from dcmtools.model.record import Record, decode, encode

_FOLDER = f"{TEMPORARY_PREFIX}reports"
# What is older was left by one that was killed while it waited.
_OLD = 7 * 86400.0


class Reports:
    """The reports of one archive."""

    def __init__(self, root: Path) -> None:
        self.folder = root / _FOLDER

    def expect(self, transaction: str) -> None:
        """Says that somebody waits for the report of a transaction, until `forget`; CannotCreate and its like."""
        try:
            make_folders(self.folder)
            self._sweep()
            os.close(os.open(self._file(transaction), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE))
        except OSError as problem:
            raise from_os(problem, "waiting for a report in", self.folder) from problem

    def put(self, transaction: str, record: Record) -> None:
        """Leaves a report, durable, for who waits for it; does nothing where nobody does."""
        if not is_uid(transaction) or not os.path.lexists(file := self._file(transaction)):
            return
        try:
            write_atomic(file, encode(record))
        except OSError as problem:
            raise from_os(problem, "keeping a report in", self.folder) from problem

    def get(self, transaction: str) -> Record | None:
        """The report of a transaction, None as long as there is none."""
        try:
            data = self._file(transaction).read_bytes()
        except OSError as problem:
            raise from_os(problem, "waiting for a report in", self.folder) from problem
        return decode(data) if data else None

    def forget(self, transaction: str) -> None:
        """Says that nobody waits any more."""
        with contextlib.suppress(OSError):
            self._file(transaction).unlink()

    def _file(self, transaction: str) -> Path:
        return self.folder / f"{transaction}.json"

    def _sweep(self) -> None:
        for path in self.folder.iterdir():
            with contextlib.suppress(OSError):
                if time.time() - path.lstat().st_mtime > _OLD:
                    path.unlink()
