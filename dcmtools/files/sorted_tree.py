"""The output folder of sort-by-physician: its settings for one run, and what is known of earlier ones."""

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from dcmtools.disk.atomic import FOLDER_MODE, TEMPORARY_PREFIX, temporary_name
from dcmtools.files.physicians import Registry, Spellings
from dcmtools.files.placing import How, Rights
from dcmtools.files.sorted_ledger import Ledger
from dcmtools.model.errors import UsageError
from dcmtools.model.record import path_keys

LOCK_NAME = ".dcmtools-lock"
_STAGING_PREFIX = f"{TEMPORARY_PREFIX}sort-"


@dataclass(slots=True)
class Tree:
    """The output folder of one run, with what it knows of earlier ones."""

    out: Path
    how: How
    every: bool  # a study of several physicians goes to each
    unknown: str
    rights: Rights
    dry_run: bool
    registry: Registry
    ledger: Ledger
    spellings: Spellings
    _staging: Path | None = None
    _guarded: dict[str, str] = field(default_factory=dict)

    def at(self, target: str) -> str:
        """The path of a place in the tree; a string, as there may be a million of them."""
        return os.path.join(self.out, target)

    def staging(self) -> Path:
        """A folder in the tree for what is not finished, made at the first use."""
        if self._staging is None:
            self._staging = self.out / temporary_name().replace(TEMPORARY_PREFIX, _STAGING_PREFIX, 1)
            self._staging.mkdir(mode=FOLDER_MODE)
        return self._staging

    def save(self) -> None:
        """Writes down the physicians and clears what is unfinished."""
        if self.dry_run:
            return
        if self._staging is not None:
            shutil.rmtree(self._staging, ignore_errors=True)
        self.registry.count(self.ledger.spellings())
        self.registry.save(self.rights.file_mode)
        for path in (self.registry.path, self.ledger.path, self.out / LOCK_NAME):
            if path.exists():
                self.rights.grant(path)

    def sweep(self) -> None:
        """Removes what a killed run left unfinished; call it under the lock."""
        for path in self.out.glob(f"{_STAGING_PREFIX}*"):
            shutil.rmtree(path, ignore_errors=True)

    def guard(self, source: str) -> None:
        """Raises UsageError for a source that may not be placed, or not be moved."""
        folder = os.path.dirname(source)
        if folder not in self._guarded:
            self._guarded[folder] = self._objection(folder)
        if reason := self._guarded[folder]:
            raise UsageError(f"it {reason}", **path_keys(source))

    def _objection(self, folder: str) -> str:
        real = Path(os.path.realpath(folder))
        if real.is_relative_to(os.path.realpath(self.out)):
            return "lies in the output folder itself"
        if self.how == "move" and any((parent / "index.jsonl").exists() for parent in (real, *real.parents)):
            return "is not moved out of its archive, whose index would then name a file that is gone; link or copy it"
        return ""
