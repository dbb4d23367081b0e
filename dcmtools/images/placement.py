"""The last step of a conversion: finished files get their names, all of a volume together, the image last.

Nothing of anybody else's is replaced: not another series' file, not one that a person put there, and of our own only
those that are still as we left them.
"""

import hashlib
import os
import stat
import threading
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path, PurePosixPath

from dcmtools.disk.atomic import FILE_MODE, fsync_folder, make_folders
from dcmtools.images.conversions import Conversions, Kept, files_of
from dcmtools.images.series import Key
from dcmtools.model.record import Record

SUSPECT_FOLDER = "_suspect"
EXTENSIONS: Mapping[str, str] = {"bval": ".bval", "bvec": ".bvec", "sidecar": ".json", "image": ".nii.gz"}  # image last
_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class Finished:
    """A volume whose files are compressed, checked and synced, under temporary names on the same file system."""

    name: PurePosixPath  # relative, without extension
    files: Mapping[str, Path]  # by kind
    hashes: Mapping[str, str]  # their SHA-256
    record: Record  # what is to be said of it


@dataclass(slots=True)
class Placed:
    """Where the files of a volume went."""

    files: dict[str, Kept] = field(default_factory=dict)
    edited: list[str] = field(default_factory=list)  # relative paths of files that a person changed: left as they are


class Placement:
    """The names in one output folder. Thread-safe."""

    def __init__(
        self, out: Path, conversions: Conversions, *, mode: int | None = None, overwrite_edited: bool = False
    ) -> None:
        self.out = out
        self._conversions = conversions
        self._mode = FILE_MODE if mode is None else mode
        self._is_told_mode = mode is not None
        self._overwrite_edited = overwrite_edited
        self._naming = threading.Lock()

    def place(self, key: Key, volumes: Sequence[Finished]) -> list[Placed]:
        """Gives the files of a series their names and takes away those of its volumes that are no more."""
        with self._naming:
            last = self._conversions.last(key)
            before = [files_of(volume) for volume in last.volumes] if last else []
            ours = {one.path: one for files in before for one in files.values()}
            placed = [self._place(key, volume, ours) for volume in volumes]
            now = {one.path for volume in placed for one in volume.files.values()}
            for files in before:
                self._remove(files, now)
            return placed

    def keep(self, files: Iterable[Kept]) -> None:
        """Gives files of ours that stay as they are the mode that was asked for; no folder is closed by that."""
        if not self._is_told_mode:
            return
        for path in (self.out / one.path for one in files):
            if not path.is_symlink():
                path.chmod(self._mode)
            for folder in self._parents(path):
                now = stat.S_IMODE(folder.stat().st_mode)
                if now | _folder_mode(self._mode) != now:
                    folder.chmod(now | _folder_mode(self._mode))

    def is_as_left(self, one: Kept) -> bool | None:
        """Whether a file of ours is still as we left it; None when it is gone."""
        path = self.out / one.path
        try:
            state = path.stat()
        except OSError:
            return None
        if state.st_size != one.size:
            return False
        return state.st_mtime_ns == one.mtime_ns or sha256_of(path) == one.sha256

    def _place(self, key: Key, volume: Finished, ours: Mapping[str, Kept]) -> Placed:
        placed = Placed()
        name = self._free(key, volume, ours, placed.edited)
        make_folders((self.out / name).parent, _folder_mode(self._mode))
        for kind in (kind for kind in EXTENSIONS if kind in volume.files):
            path = f"{name}{EXTENSIONS[kind]}"
            if self._is_edited(path, ours):
                placed.edited.append(path)
                placed.files[kind] = ours[path]
            else:
                placed.files[kind] = self._rename(volume.files[kind], path, volume.hashes[kind])
        fsync_folder((self.out / name).parent)
        return placed

    def _rename(self, finished: Path, path: str, sha256: str) -> Kept:
        target = self.out / path
        finished.chmod(self._mode)
        finished.replace(target)
        state = target.stat()
        return Kept(path, sha256, state.st_size, state.st_mtime_ns)

    def _free(self, key: Key, volume: Finished, ours: Mapping[str, Kept], edited: list[str]) -> PurePosixPath:
        """The volume's name, or one with ~2, ~3... when files that we must not touch have it."""
        for number in count(1):
            name = volume.name if number == 1 else volume.name.with_name(f"{volume.name.name}~{number}")
            paths = {kind: f"{name}{extension}" for kind, extension in EXTENSIONS.items()}
            if self._is_edited(paths["image"], ours):
                edited.append(paths["image"])
            elif not any(self._is_foreign(path, key, ours, volume.hashes.get(kind)) for kind, path in paths.items()):
                return name
        raise AssertionError  # count() does not end

    def _is_foreign(self, path: str, key: Key, ours: Mapping[str, Kept], sha256: str | None) -> bool:
        """Whether a file has this name that is not this series'.

        One with the very bytes that we bring is: a run was killed after it gave the name and before it noted that.
        """
        target = self.out / path
        if path in ours or not os.path.lexists(target):
            return False
        if self._conversions.owner(path) not in {None, key}:
            return True
        return target.is_symlink() or not target.is_file() or sha256_of(target) != sha256

    def _is_edited(self, path: str, ours: Mapping[str, Kept]) -> bool:
        """Whether a person changed a file of ours since, and it is to be kept."""
        return path in ours and not self._overwrite_edited and self.is_as_left(ours[path]) is False

    def _remove(self, files: Mapping[str, Kept], now: Container[str]) -> None:
        """Takes away what we wrote of a volume, is no more, and nobody changed; and folders that this leaves empty."""
        if "image" in files and files["image"].path not in now and self.is_as_left(files["image"]) is False:
            return  # a person works on it: its sidecar and gradients stay with it
        for one in files.values():
            if one.path not in now and self.is_as_left(one):
                (self.out / one.path).unlink(missing_ok=True)
                for folder in self._parents(self.out / one.path):
                    with suppress(OSError):
                        folder.rmdir()

    def _parents(self, path: Path) -> Iterator[Path]:
        yield from (folder for folder in path.parents if folder != self.out and folder.is_relative_to(self.out))


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _folder_mode(mode: int) -> int:
    """Who may read the files may look into the folder."""
    return 0o700 | mode | (mode & 0o444) >> 2
