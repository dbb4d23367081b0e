"""The folder in which one series is converted: on the target's file system, under a name that every scan skips."""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dcmtools.disk.atomic import FOLDER_MODE, TEMPORARY_PREFIX

LOCK_NAME = f"{TEMPORARY_PREFIX}lock"
_PREFIX = f"{TEMPORARY_PREFIX}nifti-"  # ours among the temporaries: what else is there is another command's


@dataclass(frozen=True, slots=True)
class Staged:
    """A series laid out for an engine: `inputs` has its files, `out` is empty, `ready` takes what is finished."""

    folder: Path
    inputs: Path  # the folder with the series' files and nothing else
    count: int  # of its files
    pixel_bytes: int = 0  # of the uncompressed pixels, as far as the headers say

    def is_intact(self) -> bool:
        """Whether no other file came into the folder of inputs meanwhile."""
        return len(os.listdir(self.inputs)) == self.count

    @property
    def outputs(self) -> Path:
        """The folder into which the engine writes."""
        return self.folder / "out"

    @property
    def ready(self) -> Path:
        """The folder with what is compressed, checked and synced, and only has to be renamed."""
        return self.folder / "ready"


@contextmanager
def staged(out: Path, paths: Sequence[Path], pixel_bytes: int = 0) -> Iterator[Staged]:
    """A staging folder below `out` that offers these files; gone after the block."""
    folder, home = out / f"{_PREFIX}{os.getpid()}-{os.urandom(6).hex()}", own_folder(paths)
    here = Staged(folder, home or folder / "in", len(paths), pixel_bytes)
    try:
        for new in (folder, here.outputs, here.ready):
            new.mkdir(mode=FOLDER_MODE)
        if home is None:
            here.inputs.mkdir(mode=FOLDER_MODE)
            for number, path in enumerate(paths):
                _offer(Path(os.path.abspath(path)), here.inputs / f"{number:06d}.dcm")
        yield here
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def own_folder(paths: Sequence[Path]) -> Path | None:
    """The folder that holds these files and nothing else, as in our archive; None when there is none.

    Then nothing has to be linked, which is most of the work for a series of thousands of files (0.5 ms each where that
    was measured, against 0.2 ms for its conversion).
    """
    folders = {os.path.dirname(os.path.abspath(path)) for path in paths}
    if len(folders) != 1:
        return None
    folder = folders.pop()
    return Path(folder) if set(os.listdir(folder)) == {path.name for path in paths} else None


def sweep(out: Path) -> int:
    """Removes what killed runs left in `out` and returns how much that was; the caller holds the lock on `out`."""
    left = list(out.glob(f"{_PREFIX}*"))
    for path in left:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return len(left)


def _offer(source: Path, name: Path) -> None:
    """Shows a file under a name: by link where the target's file system knows links, else by copy."""
    for link in (os.symlink, os.link):
        try:
            link(source, name)
        except OSError:
            continue
        return
    shutil.copyfile(source, name)
