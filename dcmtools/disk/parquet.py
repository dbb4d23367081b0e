"""An index as a Parquet file, for engines that answer larger questions: DuckDB, Spark, pandas (DESIGN §10).

One row an instance and one column a key, so that `SELECT Modality, count(*) FROM 'index.parquet' GROUP BY 1` works.
"""

from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcmtools.disk.atomic import atomic_file
from dcmtools.model.errors import CannotCreate, UsageError, from_os
from dcmtools.model.keys import KEYS, Key
from dcmtools.model.record import Record

if TYPE_CHECKING:
    import pyarrow as pa

_ROWS = 50_000  # that are held at once
_INTEGERS = frozenset({"IS", "US", "UL", "SS", "SL"})
_PLACE = ("TransferSyntaxUID", "path", "mtime_ns", "sha256")


def write_parquet(records: Iterable[Record], file: Path) -> int:
    """Writes instance records to a file that appears whole, compressed with zstd; how many there were.

    What cannot be told in the type of its column (a number that is none) is null there. UsageError without pyarrow.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError:
        raise UsageError("Parquet needs pyarrow", "install dcmtools[parquet]") from None
    schema = _schema(pa)
    source, count = iter(records), 0
    try:
        with atomic_file(file) as out, pq.ParquetWriter(out, schema, compression="zstd") as writer:
            while rows := list(islice(source, _ROWS)):
                writer.write_table(pa.Table.from_pylist([_row(record) for record in rows], schema))
                count += len(rows)
    except FileNotFoundError as problem:
        raise CannotCreate(f"cannot create {file}", "make its folder first", path=str(file)) from problem
    except OSError as problem:
        raise from_os(problem, "writing", file) from problem
    return count


def _schema(pa: Any) -> "pa.Schema":
    columns = [(key.keyword, _type(pa, key)) for key in KEYS]
    return pa.schema([*columns, *((name, pa.string()) for name in _PLACE), ("size", pa.int64())])


def _type(pa: Any, key: Key) -> Any:
    kind = pa.int64() if key.vr in _INTEGERS else pa.float64() if key.vr == "DS" else pa.string()
    return pa.list_(kind) if key.many else kind


def _row(record: Record) -> Record:
    row: Record = {key.keyword: _value(key, record.get(key.keyword)) for key in KEYS}
    row |= {name: _text(record.get(name)) for name in _PLACE}
    return {**row, "size": _integer(record.get("size"))}


def _value(key: Key, value: Any) -> Any:
    one = _integer if key.vr in _INTEGERS else _number if key.vr == "DS" else _text
    if key.many:
        return None if value is None else [one(part) for part in (value if isinstance(value, list) else [value])]
    return one(value)


def _text(value: Any) -> str | None:
    if value is None:
        return None
    return value if isinstance(value, str) else "\\".join(map(str, value)) if isinstance(value, list) else str(value)


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _integer(value: Any) -> int | None:
    return value if type(value) is int and abs(value) < 1 << 63 else None
