"""The files below what a user names, in the order of their names."""

import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from dcmtools.disk.atomic import TEMPORARY_PREFIX
from dcmtools.model.errors import BadData, NoInput
from dcmtools.model.record import Record, path_keys

QUARANTINE = "quarantine"
INDEX_NAME = "index.jsonl"
# What we write ourselves beside the instances.
_OURS = frozenset({"index.lock", "conversions.jsonl", "physicians.json", "sorted.jsonl"})
_OUR_PREFIXES = (TEMPORARY_PREFIX, INDEX_NAME, "index.sqlite")

Skipped = Counter[str]


def files_below(
    paths: Iterable[Path | str], *, follow: bool = False, skipped: Skipped | None = None
) -> Iterator[Path | Record]:
    """The regular files that the paths name or hold, absolute; an error record for each that cannot be looked at.

    Below a folder, what is plainly not meant as an instance is passed over and counted in `skipped` under its kind:
    hidden, dicomdir, special (sockets, pipes, devices), link (unless told to `follow` it), loop. What we write
    ourselves and folders already seen are passed over without a word. Named paths are followed, whatever they are.
    """
    for found in names_below(paths, follow=follow, skipped=skipped):
        yield Path(found) if isinstance(found, str) else found


def names_below(
    paths: Iterable[Path | str], *, follow: bool = False, skipped: Skipped | None = None
) -> Iterator[str | Record]:
    """As `files_below`, with paths as text: making a Path costs as much as looking at the file."""
    return _Scan(follow=follow, skipped=Skipped() if skipped is None else skipped).of(paths)


class _Scan:
    """One pass; it remembers folders by device and inode, so that none is entered twice and no loop is followed."""

    def __init__(self, *, follow: bool, skipped: Skipped) -> None:
        self._follow = follow
        self._skipped = skipped
        self._seen: set[tuple[int, int]] = set()

    def of(self, paths: Iterable[Path | str]) -> Iterator[str | Record]:
        for path in paths:
            # The folder's real name, for one file must not come under two names; a file keeps the name it is given.
            folder, name = os.path.split(os.path.abspath(path))
            place = os.path.join(os.path.realpath(folder), name)
            try:
                mode = os.stat(place).st_mode
            except OSError as problem:
                yield _unreadable(problem, place)
                continue
            if stat.S_ISDIR(mode):
                yield from self._below(os.path.realpath(place))
            elif stat.S_ISREG(mode):
                yield place
            else:
                yield BadData(f"{path_keys(place)['path']} is neither a file nor a folder", **path_keys(place)).record()

    def _below(self, top: str) -> Iterator[str | Record]:
        folders = [top]
        while folders:
            folder = folders.pop()
            try:
                if not self._is_new(folder):
                    continue
                with os.scandir(folder) as found:
                    entries = sorted(found, key=lambda entry: entry.name)
            except OSError as problem:
                yield _unreadable(problem, folder)
                continue
            is_archive = any(entry.name == INDEX_NAME for entry in entries)
            inner: list[str] = []
            for entry in entries:
                if is_archive and entry.name == QUARANTINE:
                    continue
                kind = self._kind(entry)
                if kind == "file":
                    yield entry.path
                elif kind == "folder":
                    inner.append(entry.path)
                elif kind:
                    self._skipped[kind] += 1
            folders.extend(reversed(inner))

    def _is_new(self, folder: str) -> bool:
        state = os.stat(folder)
        key = (state.st_dev, state.st_ino)
        if key in self._seen:
            self._skipped["loop"] += 1
            return False
        self._seen.add(key)
        return True

    def _kind(self, entry: os.DirEntry[str]) -> str:
        """What an entry is: file, folder, the kind under which it is skipped, or nothing when it is ours."""
        name = entry.name
        if name in _OURS or name.startswith(_OUR_PREFIXES):
            return ""
        if name.startswith("."):
            return "hidden"
        if entry.is_symlink():
            return self._kind_of_link(entry) if self._follow else "link"
        if entry.is_dir(follow_symlinks=False):
            return "folder"
        if not entry.is_file(follow_symlinks=False):
            return "special"
        return "dicomdir" if name.upper() == "DICOMDIR" else "file"

    def _kind_of_link(self, entry: os.DirEntry[str]) -> str:
        try:
            mode = entry.stat().st_mode
        except OSError:  # it points nowhere, or in a circle
            return "link"
        return "folder" if stat.S_ISDIR(mode) else "file" if stat.S_ISREG(mode) else "special"


def _unreadable(problem: OSError, place: str) -> Record:
    keys = path_keys(place)
    if isinstance(problem, FileNotFoundError):
        return NoInput(f"{keys['path']} does not exist", "check the path", **keys).record()
    return BadData(f"{keys['path']}: {problem.strerror}", "check its permissions", **keys).record()
