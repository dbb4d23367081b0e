"""Headers of many files, in the order of the files, by however many processes or machines (DESIGN §10)."""

import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from dcmtools.disk.header import read_header
from dcmtools.disk.parallel import Lost, in_processes, serially
from dcmtools.model.errors import BadData, DcmtoolsError
from dcmtools.model.record import Record, path_keys

# How the work is spread: parallel.serially, or another function there with its first arguments given.
Spread = Callable[[Callable[[Any], Any], Iterable[tuple[Any, Any]]], Iterator[tuple[Any, Any]]]

# Files that go to a process at once. A single chunk is read where the command runs: a second process would take 5 ms to
# save as many, and sending a chunk takes a fiftieth of reading it.
CHUNK = 256

C = TypeVar("C")


def header_of(path: str | os.PathLike[str]) -> Record:
    """The instance record of a file, or an error record; links that were not to be followed do not come here."""
    try:
        return read_header(path, follow=os.path.islink(path))
    except DcmtoolsError as problem:
        return problem.record()


def headers_of(paths: list[str]) -> list[Record]:
    """The record or the error record of each file."""
    return [header_of(path) for path in paths]


def scan(chunks: Iterable[tuple[list[str], C]], spread: Spread = serially) -> Iterator[tuple[C, list[Record]]]:
    """What stands beside each chunk of paths, with the records of its files.

    When a chunk's process is killed, its files are read one by one, so that only the one at fault has no record.
    """
    for (paths, context), records in spread(headers_of, ((paths, (paths, context)) for paths, context in chunks)):
        yield context, _one_by_one(paths) if isinstance(records, Lost) else records


def _one_by_one(paths: list[str]) -> list[Record]:
    # The first item of a map is worked on here, where nothing may die: an empty one takes its place.
    items: list[tuple[list[str], str]] = [([], ""), *(([path], path) for path in paths)]
    found: list[Record] = []
    for path, records in in_processes(2, headers_of, items):
        found += [_killer(path)] if isinstance(records, Lost) else records
    return found


def _killer(path: str) -> Record:
    where = path_keys(path)
    reason = f"{where['path']}: the process that read it was killed"
    return BadData(reason, "look for a lack of memory in the system's log", **where).record()
