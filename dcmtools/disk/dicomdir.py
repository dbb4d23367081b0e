"""The list of files that a DICOMDIR is (PS3.10 8.5; PS3.3 F.3).

It may be older than what lies beside it, so that it is used for the names of files only: what they are is read in them.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from dcmtools.disk.dataset import Odd, Walk
from dcmtools.disk.part10 import encoding_in, meta_of, opened, source_of
from dcmtools.disk.values import quiet
from dcmtools.model.errors import BadData
from dcmtools.model.record import Record, path_keys

# pydicom builds all of it: some 100,000 instances.
MAX_SIZE = 64 << 20


def files_listed(path: Path) -> Iterator[Path | Record]:
    """The files that a DICOMDIR names, there or not; an error record for each name that leaves its folder.

    BadData when it cannot be read.
    """
    folder = path.parent
    names: dict[Path, dict[str, str]] = {}
    for parts in _file_ids(path):
        if any(part in {"", ".", ".."} or "/" in part or "\0" in part for part in parts):
            yield _refused(path, "it names a file outside its folder")
            continue
        found = _found(folder, parts, names)
        if Path(os.path.realpath(found)).is_relative_to(os.path.realpath(folder)):
            yield found
        else:
            yield _refused(path, "it names a file that is a link out of its folder")


def _refused(path: Path, reason: str) -> Record:
    name = path_keys(path)["path"]
    return BadData(f"{name}: {reason}", "import the folder", cause="bad-name").record(**path_keys(path))


def _file_ids(path: Path) -> list[list[str]]:
    """The Referenced File IDs (0004,1500) of all records in use, each as its components."""
    from pydicom import dcmread

    keys = path_keys(path)
    advice = "import the folder in which it lies"
    if path.stat().st_size > MAX_SIZE:
        raise BadData(f"{keys['path']} is larger than {MAX_SIZE >> 20} MiB", advice, cause="too-large", **keys)
    _check_whole(path)
    try:
        with quiet():
            return [parts for record in dcmread(path)["DirectoryRecordSequence"].value if (parts := _parts(record))]
    except Exception as problem:  # pydicom raises at least nine kinds, and each says that it cannot be read
        raise BadData(f"{keys['path']} cannot be read as a DICOMDIR", advice, **keys) from problem


def _check_whole(path: Path) -> None:
    """Raises BadData when the list was cut off: pydicom would give what is left of it without a word."""
    with opened(path, follow=True) as (file, _):
        meta = meta_of(file)
        encoding = encoding_in(file, meta)
        read, start, end = source_of(file, meta, encoding)
        with suppress(Odd):  # then pydicom may know better
            Walk(start, end, encoding, ()).through(read)


def _parts(record: Any) -> list[str]:
    file_id, in_use = record.get("ReferencedFileID"), record.get("RecordInUseFlag", 0xFFFF)
    parts = [file_id] if isinstance(file_id, str) else list(file_id or ())
    return [str(part) for part in parts] if in_use else []


def _found(folder: Path, parts: list[str], names: dict[Path, dict[str, str]]) -> Path:
    """The file that components name; a medium may be mounted with its names in lower case, or with version numbers."""
    for part in parts:
        if not os.path.lexists(folder / part):
            if folder not in names:
                names[folder] = _folded(folder)
            part = names[folder].get(part.casefold(), part)  # noqa: PLW2901 - it is what the part is called there
        folder = folder / part
    return folder


def _folded(folder: Path) -> dict[str, str]:
    try:
        return {name.casefold().removesuffix(";1").removesuffix("."): name for name in sorted(os.listdir(folder))}
    except OSError:
        return {}
