"""The subcommand `index export`."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from dcmtools.cli.frame import Frame, run
from dcmtools.cli.options import Common
from dcmtools.cli.subcommand import application
from dcmtools.model.errors import UsageError
from dcmtools.model.record import Record, path_keys


def index_export(
    common: Common,
    *,
    parquet: Annotated[
        Path, typer.Option("--parquet", metavar="FILE", help="The Parquet file to write, whole or not at all.")
    ],
) -> None:
    """Write all instances of the index to a Parquet file, for DuckDB, Spark or pandas.

    One row an instance, one column a key; thirty times smaller than the index. Needs dcmtools[parquet].

    Example:
        dcmtools index export --parquet /data/index.parquet --quiet

    Exit codes:
        0   written
        2   pyarrow is not installed
        66  there is no index
        73  the file cannot be created
        74  the disk is full, or cannot be written
    """

    def work(frame: Frame) -> Iterator[Record]:
        from dcmtools.disk.parquet import write_parquet

        index, file = frame.index(must_exist=True), parquet.expanduser().absolute()
        if os.path.realpath(file) == os.path.realpath(index.file):
            raise UsageError(f"{file} is the index itself", "give the Parquet file a name of its own")
        if frame.common.dry_run:
            yield {"type": "file", **path_keys(file), "state": "planned", "plan": "written"}
            return
        count = write_parquet(index.instances(), file)
        yield {"type": "file", **path_keys(file), "state": "written", "instances": count, "size": file.stat().st_size}

    run("index export", common, work, events=False)


app = application("index export", index_export)
