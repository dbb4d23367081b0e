"""Records in the order that a query asks for, however many there are: what does not fit into memory waits on disk."""

import heapq
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from itertools import islice
from typing import IO, Any

from dcmtools.disk.atomic import TEMPORARY_PREFIX
from dcmtools.model.errors import from_os
from dcmtools.model.query import Query, rank
from dcmtools.model.record import Record, decode, encode

_RUN = 20_000  # records that are sorted in memory: some 60 MB

Order = tuple[tuple[str, bool], ...]


def ordered(records: Iterable[Record], query: Query) -> Iterator[Record]:
    """The records in the order that the query's `sort` asks for, up to its `limit`; equal ones stay as they came."""
    if query.sort:
        records = _sorted(records, query.sort, query.limit)
    yield from islice(records, query.limit)


def _sorted(records: Iterable[Record], order: Order, limit: int | None) -> Iterator[Record]:
    if limit is not None and limit <= _RUN:
        yield from heapq.nsmallest(limit, records, key=lambda record: _key(record, order))
        return
    source = iter(records)
    first = _run(source, order)
    second = _run(source, order)
    if not second:
        yield from first
        return
    with ExitStack() as stack:
        runs = [stack.enter_context(_spilled(run)) for run in (first, second)]
        del first, second
        while run := _run(source, order):
            runs.append(stack.enter_context(_spilled(run)))
        yield from heapq.merge(*map(_read, runs), key=lambda record: _key(record, order))


def _run(source: Iterator[Record], order: Order) -> list[Record]:
    return sorted(islice(source, _RUN), key=lambda record: _key(record, order))


def _spilled(run: list[Record]) -> IO[bytes]:
    """The records in a file without a name, which goes with the process."""
    import tempfile

    try:
        file = tempfile.TemporaryFile(prefix=TEMPORARY_PREFIX)  # noqa: SIM115  # its reader closes it
        file.writelines(map(encode, run))
        file.seek(0)
    except OSError as problem:
        raise from_os(problem, "sorting in", tempfile.gettempdir()) from problem
    return file


def _read(file: IO[bytes]) -> Iterator[Record]:
    return map(decode, file)


def _key(record: Record, order: Order) -> list[Any]:
    return [_Descending(rank(record.get(key))) if descends else rank(record.get(key)) for key, descends in order]


class _Descending:
    """Turns the order of what it holds round."""

    __slots__ = ("value",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, value: tuple[int, float, str]) -> None:
        self.value = value

    def __lt__(self, other: "_Descending") -> bool:
        return other.value < self.value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Descending) and self.value == other.value
