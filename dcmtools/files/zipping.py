"""Packs an exported folder into a zip file: the same folder gives the same bytes, and none is replaced."""

import os
import shutil
import zipfile
from pathlib import Path

from dcmtools.disk.atomic import FILE_MODE, TEMPORARY_PREFIX, fsync_folder, link_new, temporary_name
from dcmtools.disk.copying import same_bytes
from dcmtools.disk.tree import INDEX_NAME
from dcmtools.model.errors import CannotCreate, from_os
from dcmtools.model.record import decode, encode, type_of

_EPOCH = (1980, 1, 1, 0, 0, 0)
# What tells of this machine or of this run, and not of the instances.
_OF_THE_RUN = frozenset({"mtime_ns", "made_from"})


def zip_folder(folder: Path, target: Path) -> bool:
    """Makes `target` of a folder; whether it is new, and not there already with the same bytes.

    CannotCreate when another file has its name.
    """
    temporary = target.parent / temporary_name()
    try:
        try:
            _write(folder, temporary)
            link_new(temporary, target)
        except FileExistsError:
            if same_bytes(temporary, target):
                return False
            reason = f"{target} is there already, with other content"
            raise CannotCreate(reason, "choose another name", cause="conflict") from None
        finally:
            temporary.unlink(missing_ok=True)
        fsync_folder(target.parent)
    except OSError as problem:
        raise from_os(problem, "writing", target) from problem
    return True


def _write(folder: Path, temporary: Path) -> None:
    descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
    with os.fdopen(descriptor, "w+b") as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted(folder.rglob("*")):
                if path.is_file() and not path.name.startswith(TEMPORARY_PREFIX) and not _is_derived(path.name):
                    _add(archive, path, path.relative_to(folder).as_posix())
        file.flush()
        os.fsync(descriptor)


def _add(archive: zipfile.ZipFile, path: Path, name: str) -> None:
    info = zipfile.ZipInfo(name, _EPOCH)
    info.compress_type = zipfile.ZIP_DEFLATED
    info.external_attr = FILE_MODE << 16
    if name == INDEX_NAME:
        archive.writestr(info, _index(path))
        return
    with path.open("rb") as data, archive.open(info, "w", force_zip64=True) as member:
        shutil.copyfileobj(data, member, 1 << 20)


def _index(path: Path) -> bytes:
    """The lines of the instances in the order of their paths."""
    lines = [line for line in map(decode, path.read_bytes().splitlines()) if type_of(line) == "instance"]
    kept = ({key: value for key, value in line.items() if key not in _OF_THE_RUN} for line in lines)
    return b"".join(map(encode, sorted(kept, key=lambda line: str(line.get("path")))))


def _is_derived(name: str) -> bool:
    return name.startswith("index.") and name != INDEX_NAME
