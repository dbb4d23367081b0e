"""The folder for what may show identity in its pixels: de-identified in all else, and kept apart from the output.

Nothing in it must go out before somebody has looked at it. It holds no originals: who releases an instance exports it
again from its source, which its error record names.
"""

import os
import shutil
import stat
from contextlib import ExitStack
from pathlib import Path

from dcmtools.disk.atomic import (
    FOLDER_MODE,
    TEMPORARY_PREFIX,
    fsync_file,
    fsync_folder,
    link_new,
    make_folders,
)
from dcmtools.disk.lock import Lock
from dcmtools.files.referencing import holds_same
from dcmtools.model.errors import CannotCreate, Refused, UsageError, from_os
from dcmtools.model.layout import parse_layout
from dcmtools.model.record import Record, path_keys

_STAGING = f"{TEMPORARY_PREFIX}export"
_LOCK_NAME = f"{TEMPORARY_PREFIX}lock"


class Quarantine:
    """A folder that only its owner can look into; UsageError when it and the output are not apart."""

    def __init__(self, folder: Path, out: Path) -> None:
        self.folder = Path(os.path.abspath(folder))
        self.staging = self.folder / _STAGING
        here, there = (Path(os.path.realpath(path)) for path in (folder, out))
        if here.is_relative_to(there) or there.is_relative_to(here):
            raise UsageError(f"--quarantine {folder}: is not apart from the output", "it must not go out")

    def open(self, stack: ExitStack) -> None:
        """Makes the folder, and clears what a killed run left unfinished.

        Raises:
            Refused: others than its owner can look into it.
            Locked: another run uses it.
        """
        try:
            make_folders(self.folder)
            mode = stat.S_IMODE(os.stat(self.folder).st_mode)
            if mode & 0o077:
                reason = f"others than its owner can look into {self.folder} (mode {mode:04o})"
                raise Refused(reason, f"chmod 700 {self.folder}", cause="not-private")
            stack.enter_context(Lock(self.folder / _LOCK_NAME, "export"))
            shutil.rmtree(self.staging, ignore_errors=True)
            self.staging.mkdir(mode=FOLDER_MODE)
        except OSError as problem:
            raise from_os(problem, "making the quarantine", self.folder) from problem
        stack.callback(shutil.rmtree, self.staging, ignore_errors=True)

    def keep(self, record: Record, staged: Path | None) -> str:
        """Gives an instance its name in the folder, durably; without a file in a plan only the name is told."""
        final = self.folder / parse_layout("uid").path(record)
        shown = str(path_keys(final)["path"])
        if staged is None:
            return shown
        try:
            make_folders(final.parent)
            fsync_file(staged)
            self._name(staged, final)
            fsync_folder(final.parent)
        except OSError as problem:
            raise from_os(problem, "keeping", final) from problem
        return shown

    def _name(self, staged: Path, final: Path) -> None:
        try:
            link_new(staged, final)
        except FileExistsError:
            if not holds_same(staged, final):
                reason = f"{final} is there already, with other content"
                raise CannotCreate(
                    reason, "look at it, and move it away", cause="conflict", **path_keys(final)
                ) from None
            staged.unlink()
