"""Where the view of an index lies: beside it, or in the user's cache where that cannot be (DESIGN §4)."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from dcmtools.disk.places import cache_folder

# SQLite's write-ahead log needs memory that its readers share, which hosts of a network file system cannot.
_NETWORK = (
    "nfs",
    "cifs",
    "smb",
    "9p",
    "afs",
    "ceph",
    "lustre",
    "gpfs",
    "beegfs",
    "glusterfs",
    "fuse",
    "virtiofs",
    "vboxsf",
    "ncpfs",
)
_MOUNTS = "/proc/self/mountinfo"


def places_for(journal: Path) -> Iterator[Path]:
    """The files that may be the view of an index, the one to try first at the front."""
    if not _is_shared(journal.parent):
        yield journal.with_suffix(".sqlite")
    yield cached_view(journal)


def cached_view(journal: Path) -> Path:
    """The view in the user's cache, named after the index's whole path."""
    digest = hashlib.sha256(os.fsencode(os.path.realpath(journal))).hexdigest()[:32]
    return cache_folder() / "views" / f"{digest}.sqlite"


def _is_shared(folder: Path) -> bool:
    """Whether a folder is on a network file system; one that cannot be told is taken for local."""
    try:
        with open(_MOUNTS, encoding="utf-8", errors="surrogateescape") as mounts:
            rows = [row for row in map(_mount, mounts) if _is_below(os.path.realpath(folder), row[0])]
    except OSError:  # not Linux
        return False
    kind = max(rows, key=lambda row: len(row[0]), default=("", ""))[1]
    return kind.startswith(_NETWORK)


def _mount(line: str) -> tuple[str, str]:
    """Where something is mounted, and the kind of its file system (proc_pid_mountinfo(5))."""
    before, _, after = line.partition(" - ")
    point = before.split(" ")[4]
    for code in ("040", "011", "012", "134"):
        point = point.replace(f"\\{code}", chr(int(code, 8)))
    return point, after.split(" ")[0]


def _is_below(path: str, mount: str) -> bool:
    return f"{path}/".startswith(f"{mount.rstrip('/')}/")
