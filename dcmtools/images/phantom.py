"""Phantoms: valid DICOM files of people who do not exist, for demonstrations, tests and CI fixtures.

The same seed and options give the same bytes on every machine and on every day: UIDs are hashes of what they name
(PS3.5 B.2), there is no clock, and no chance but the seed.
"""

import datetime as dt
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from dcmtools.disk.atomic import make_folders, write_atomic
from dcmtools.disk.dataset import walk
from dcmtools.disk.values import decoder_for
from dcmtools.model.errors import CannotCreate, UsageError, from_os
from dcmtools.model.keys import BY_TAG
from dcmtools.model.names import safe_name
from dcmtools.model.record import Record, path_keys
from dcmtools.model.uids import EXPLICIT_VR_LITTLE_ENDIAN

# A head in MR, the same as a time series, a chest in CT, an ultrasound clip in colour, a report.
KINDS = ("mr", "fmri", "ct", "us", "sr")

# What an accession number of 16 characters has room for.
MOST_PATIENTS = 999
MOST_STUDIES = 99
_SEED_DIGITS = 18

_CHARSET = 0x00080005
_GROUP_LENGTH = slice(140, 144)  # its value, behind the preamble and the prefix (PS3.10 7.1)


def make(
    out: Path,
    *,
    patients: int = 3,
    studies: int = 1,
    date: dt.date,
    seed: int = 0,
    kinds: Sequence[str] = KINDS,
    stop: Callable[[], bool],
    dry_run: bool = False,
) -> Iterator[Record]:
    """The instance records of the phantoms below `out`, in state made, present (they were there) or planned.

    Each patient has so many studies on the `date`, each study one series of every kind. What is there stays as it is;
    another content under the same name is an error record.

    Raises:
        UsageError: no such kind, or a number for which there is no room.
        CannotCreate, DiskFull, IOFailure: the files cannot be written.
    """
    _check(patients, studies, seed, kinds)
    for data in _files(patients, studies, date, seed, kinds):
        if stop():
            return
        record = _record(data)
        path = _path_for(out, record)
        try:
            yield _conflict(path, record) if _is_other(path, data) else _put(path, data, record, dry_run=dry_run)
        except OSError as problem:
            raise from_os(problem, "writing", path) from problem


def _check(patients: int, studies: int, seed: int, kinds: Sequence[str]) -> None:
    if not (0 < patients <= MOST_PATIENTS and 0 < studies <= MOST_STUDIES):
        raise UsageError(f"there is room for 1 to {MOST_PATIENTS} patients with 1 to {MOST_STUDIES} studies each")
    if not 0 <= seed < 10**_SEED_DIGITS:
        raise UsageError(f"a seed is a whole number of at most {_SEED_DIGITS} digits")
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise UsageError(f"there is no phantom '{unknown[0]}'", f"use {', '.join(KINDS)}")


def _files(patients: int, studies: int, date: dt.date, seed: int, kinds: Sequence[str]) -> Iterator[bytes]:
    from dcmtools.images.phantom_people import Study
    from dcmtools.images.phantom_series import series

    for patient, number in itertools.product(range(patients), range(studies)):
        for kind in dict.fromkeys(kinds):
            yield from series(Study(seed, date, patient, number), kind).encoded()


def _record(data: bytes) -> Record:
    """The index keys of a file's bytes, as a scan of its header finds them."""
    start = _GROUP_LENGTH.stop + int.from_bytes(data[_GROUP_LENGTH], "little")
    found = walk(data, start, EXPLICIT_VR_LITTLE_ENDIAN, BY_TAG)
    decoder = decoder_for(found[_CHARSET][1])
    values = {BY_TAG[tag].keyword: decoder.value(BY_TAG[tag], element) for tag, element in found.items()}
    return {"type": "instance", **values, "TransferSyntaxUID": EXPLICIT_VR_LITTLE_ENDIAN}


def _path_for(out: Path, record: Record) -> Path:
    study, series, instance = (
        safe_name(record[key]) for key in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
    )
    return out.absolute() / study / series / f"{instance}.dcm"


def _is_other(path: Path, data: bytes) -> bool:
    """Whether something else has the name already."""
    return path.exists() and (path.stat().st_size != len(data) or path.read_bytes() != data)


def _conflict(path: Path, record: Record) -> Record:
    return CannotCreate(
        f"{path} is there and is not this phantom",
        "choose another folder, or move the file away",
        cause="conflict",
        SOPInstanceUID=record["SOPInstanceUID"],
        **path_keys(path),
    ).record(state="failed")


def _put(path: Path, data: bytes, record: Record, *, dry_run: bool) -> Record:
    """The record with its place and state, after the file is there."""
    placed = record | path_keys(path) | {"size": len(data)}
    present = path.exists()
    if dry_run and not present:
        return placed | {"state": "planned"}
    if not present:
        make_folders(path.parent)
        write_atomic(path, data)
    return placed | {"mtime_ns": str(path.stat().st_mtime_ns), "state": "present" if present else "made"}
