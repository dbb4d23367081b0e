"""Where the lines of named instances, series, studies and paths stand in an index file, by its view."""

import sqlite3
from collections.abc import Collection, Iterable, Iterator
from itertools import islice
from typing import Any

from dcmtools.disk.view_fill import stored
from dcmtools.model.record import Level

Place = tuple[int, int]
_AT_ONCE = 500
_ENDING = ".dcm"


def of_instances(view: sqlite3.Connection, uids: Iterable[str]) -> Iterator[Place]:
    """The answers for these instances."""
    return _places(view, "SELECT offset, length FROM instance WHERE answer AND uid IN ({})", uids)


def everywhere(view: sqlite3.Connection, uids: Iterable[str]) -> Iterator[Place]:
    """These instances at all their paths."""
    return _places(view, "SELECT offset, length FROM instance WHERE uid IN ({})", uids)


def of_group(view: sqlite3.Connection, level: Level, uid: str) -> list[Place]:
    """The answers that belong to a patient (by PatientID), study or series."""
    parts = f"SELECT id FROM part WHERE {level} = ?"
    return view.execute(f"SELECT offset, length FROM instance WHERE answer AND part IN ({parts})", (uid,)).fetchall()


def at_paths(view: sqlite3.Connection, paths: Collection[str]) -> Iterator[Place]:
    """What was last at each of these paths, as the index names them."""
    last: dict[str | bytes, Place] = {}
    found = "SELECT path, offset, length FROM instance WHERE path IN ({})"
    for path, offset, length in named(view, found, [stored(path) for path in paths]):
        last[path] = max(last.get(path, (0, 0)), (offset, length))
    for path, place in _in_archive(view, paths):
        last[path] = max(last.get(path, (0, 0)), place)
    yield from last.values()


def _in_archive(view: sqlite3.Connection, paths: Iterable[str]) -> Iterator[tuple[str, Place]]:
    """What is at paths where an archive puts instances, which the view does not hold as such."""
    wanted = {(parts[0], parts[1], parts[2].removesuffix(_ENDING)): path for path in paths if (parts := _parts(path))}
    found = (
        "SELECT study, series, uid, offset, length FROM instance JOIN part ON part.id = instance.part"
        " WHERE path IS NULL AND uid IN ({})"
    )
    for study, series, uid, offset, length in named(view, found, {uid for _, _, uid in wanted}):
        if path := wanted.get((study, series, uid)):
            yield path, (offset, length)


def _parts(path: str) -> list[str]:
    parts = path.split("/")
    return parts if len(parts) == 3 and parts[0] and path.endswith(_ENDING) and path.isascii() else []


def _places(view: sqlite3.Connection, statement: str, uids: Iterable[str]) -> Iterator[Place]:
    return ((offset, length) for offset, length in named(view, statement, dict.fromkeys(uids)))


def named(view: sqlite3.Connection, statement: str, values: Iterable[str | bytes]) -> Iterator[tuple[Any, ...]]:
    """The rows of a statement for any number of values."""
    source = iter(values)
    while some := list(islice(source, _AT_ONCE)):
        yield from view.execute(statement.format(",".join("?" * len(some))), some)
