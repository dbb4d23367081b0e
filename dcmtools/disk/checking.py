"""Holds an index against its own lines, its view and the files that it tells of."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest

from dcmtools.disk.header import read_header
from dcmtools.disk.index import Index
from dcmtools.disk.index_line import parse
from dcmtools.disk.view_fill import whole_lines
from dcmtools.model.errors import BadData, DcmtoolsError, IOFailure
from dcmtools.model.query import Query
from dcmtools.model.record import Record, path_keys, path_of, pick

_NAMES = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
# What the file system, and nobody else, says of a file.
_PLACE = frozenset({"type", "path", "path_b64", "size", "mtime_ns"})


@dataclass(slots=True)
class Checked:
    """How much was looked at."""

    lines: int = 0
    instances: int = 0


def check_lines(index: Index, checked: Checked) -> Iterator[Record]:
    """An error record for each line that is no record."""
    with index.file.open("rb") as file:
        for number, raw in enumerate(whole_lines(file.fileno(), 0, os.fstat(file.fileno()).st_size), 1):
            checked.lines = number
            try:
                parse(raw, str)
            except ValueError as problem:
                reason = f"line {number} of {index.file} is no record: {problem}"
                advice = "index the files again, then drop such lines with dcmtools index compact"
                yield BadData(reason, advice, cause="bad-line", line=number).record()


def check_view(index: Index) -> Iterator[Record]:
    """An error record when the view gives another answer than the lines."""
    everything = Query("series")
    pairs = zip_longest(index.find(everything), index.scan(everything))
    if any(one != other for one, other in pairs):
        reason = f"the view of {index.file} does not tell what its lines do"
        yield IOFailure(reason, "remove it: it is made anew", cause="view", **path_keys(index.file)).record()


def check_files(index: Index, checked: Checked, *, read: bool) -> Iterator[Record]:
    """An error record for each file that is not there any more, or not what the index tells of it.

    By size and time; with `read`, by the header that is read again.
    """
    for record in index.instances():
        checked.instances += 1
        path = path_of(record)
        if path is None:
            continue
        try:
            state = os.stat(path)
            if (state.st_size, str(state.st_mtime_ns)) != (record.get("size"), record.get("mtime_ns")):
                raise _changed(path)
            if read and _content(read_header(path, follow=True), record) != _content(record, record):
                raise _changed(path)
        except FileNotFoundError:
            advice = "dcmtools index --prune-missing forgets such files"
            problem = BadData(f"{path_keys(path)['path']} is not there", advice, cause="vanished", **path_keys(path))
            yield problem.record(**pick(record, *_NAMES))
        except (OSError, ValueError) as failure:  # the latter for a zero byte in a name
            what = getattr(failure, "strerror", None) or failure
            unreadable = BadData(f"{path_keys(path)['path']}: {what}", **path_keys(path))
            yield unreadable.record(**pick(record, *_NAMES))
        except DcmtoolsError as failure:
            yield failure.record(**pick(record, *_NAMES))


def _changed(path: os.PathLike[str]) -> BadData:
    keys = path_keys(path)
    return BadData(f"{keys['path']} is not what was indexed", "index it again", cause="changed", **keys)


def _content(header: Record, record: Record) -> Record:
    """What a header says under the keys that the index knows of it."""
    return {key: header.get(key) for key in record if key[:1].isupper() and key not in _PLACE}
