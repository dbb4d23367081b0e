"""What an import is given: files, folders, archives of files, and lists of files (DICOMDIR)."""

import os
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path

from dcmtools.disk.containers import SUFFIXES, Kind, Member, kind_of, members_of
from dcmtools.disk.dicomdir import files_listed
from dcmtools.disk.tree import Skipped, files_below
from dcmtools.model.errors import BadData
from dcmtools.model.record import Record, path_keys

Input = Path | Member | Record


class Inputs:
    """The files to import, with archives unpacked into `folder`; without one archives are refused, each with words."""

    def __init__(self, folder: Path | None, *, follow: bool = False, skipped: Skipped | None = None) -> None:
        self._folder = folder
        self._follow = follow
        self._skipped = Skipped() if skipped is None else skipped
        self._named: set[str] = set()
        self._aside: deque[Record] = deque()

    def of(self, paths: Iterable[Path | str]) -> Iterator[Input]:
        """The files that the paths name or hold, in their order."""
        for found in files_below(self.paths(paths), follow=self._follow, skipped=self._skipped):
            yield from self.refused()
            kind = self._kind(found) if isinstance(found, Path) else ""
            if isinstance(found, Path) and kind:
                yield from self._unpacked(found, kind)
            else:
                yield found
        yield from self.refused()

    def paths(self, paths: Iterable[Path | str]) -> Iterator[Path | str]:
        """The paths, a DICOMDIR replaced by what it lists; what was refused on the way waits in `refused`."""
        for path in paths:
            kind = "" if str(path).lower().endswith(".dcm") else kind_of(path)
            if kind == "dicomdir":
                yield from self._listed(Path(path))
            elif kind and self._folder is None:
                self._aside.append(_not_unpacked(Path(path)))
            else:
                if kind:
                    self._named.add(_key(path))
                yield path

    def refused(self) -> Iterator[Record]:
        """The error records since the last call."""
        while self._aside:
            yield self._aside.popleft()

    def _listed(self, path: Path) -> Iterator[Path]:
        try:
            for found in files_listed(path):
                if isinstance(found, Path):
                    yield found
                else:
                    self._aside.append(found)
        except BadData as problem:
            self._aside.append(problem.record())

    def _kind(self, found: Path) -> Kind:
        """What kind of archive a file is, if it is one: it was named, or its own name says so."""
        if os.fspath(found).lower().endswith(SUFFIXES) or (self._named and _key(found) in self._named):
            kind = kind_of(found)
            return "" if kind == "dicomdir" else kind
        return ""

    def _unpacked(self, path: Path, kind: Kind) -> Iterator[Member | Record]:
        if self._folder is None:
            yield _not_unpacked(path)
        else:
            yield from members_of(path, kind, self._folder, self._skipped)


def _key(path: Path | str) -> str:
    """A named file as the tree scan names it."""
    found = Path(path).absolute()
    return str(found.parent.resolve() / found.name)


def _not_unpacked(path: Path) -> Record:
    keys = path_keys(path.absolute())
    reason = f"{keys['path']} is an archive: what is in it can only be copied"
    return BadData(reason, "import it with --copy", cause="container").record(**keys)
