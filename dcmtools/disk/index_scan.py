"""The instances of an index from its lines alone: the plain way, against which the view is checked."""

import os
from collections.abc import Callable, Iterator

from dcmtools.disk.index_line import CONFLICT, TOMBSTONE, parse
from dcmtools.disk.view_fill import whole_lines


def scanned(descriptor: int, key_of: Callable[[str], str]) -> Iterator[bytes]:
    """The lines of the instances that are there, each instance once, in the order of the lines."""
    live: dict[tuple[str, str], tuple[int, int, int]] = {}
    position = 0
    for raw in whole_lines(descriptor, 0, os.fstat(descriptor).st_size):
        offset, position = position, position + len(raw)
        try:
            line = parse(raw, key_of)
        except ValueError:
            continue
        if line.kind <= TOMBSTONE:
            live.pop((line.uid, line.path), None)
        if line.kind < TOMBSTONE:
            live[line.uid, line.path] = (line.kind, offset, len(raw))
    best: dict[str, tuple[int, int, int]] = {}
    for (uid, _), entry in live.items():
        if entry[0] < CONFLICT:
            best[uid] = min(entry, best.get(uid, entry))
    for _, offset, length in sorted(best.values(), key=lambda entry: entry[1]):
        yield os.pread(descriptor, length, offset)
