"""Takes what other indexes know into an index, without reading the files again (DESIGN §4)."""

import os
from collections.abc import Iterable, Iterator
from itertools import islice

from dcmtools.disk.index import Index
from dcmtools.files.referencing import References, Stop, is_unchanged, never
from dcmtools.model.errors import BadData
from dcmtools.model.record import Record, name_of, path_keys, pick

_CHUNK = 256
_NAMES = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")


def merge(sources: Iterable[Index], index: Index, *, dry_run: bool = False, stop: Stop = never) -> Iterator[Record]:
    """A record for each instance of the sources, as if its file were indexed here: indexed, present or conflict.

    A file that is gone, or no longer what its index tells of it, is an error record and not taken in.
    """
    references = References(index, dry_run=dry_run)
    for source in sources:
        records = source.instances()
        while chunk := list(islice(records, _CHUNK)):
            if stop():
                return
            known = index.by_paths(name for record in chunk if (name := name_of(record)))
            for record in chunk:
                name = name_of(record) or ""
                yield from references.add(*_entry(name, record, known.get(name)))
    yield from references.flush()


def _entry(name: str, record: Record, known: Record | None) -> tuple[str | Record, Record | None]:
    """What there is to take in of a file, and what the index has of its path."""
    if not is_unchanged(name, record):
        return _gone_or_changed(name, record), None
    if known is not None and is_unchanged(name, known):
        return name, known
    return {key: value for key, value in record.items() if key not in {"duplicate_of", "state"}}, known


def _gone_or_changed(name: str, record: Record) -> Record:
    where = path_keys(name)
    is_there = os.path.lexists(name)
    what = "is not what its index tells of it" if is_there else "is not there"
    problem = BadData(f"{where['path']} {what}", "index it again", cause="changed" if is_there else "vanished", **where)
    return problem.record(**pick(record, *_NAMES))
