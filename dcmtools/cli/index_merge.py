"""The subcommand `index merge`."""

from collections.abc import Iterator
from typing import Annotated

import typer

from dcmtools.cli.asking import indexes_named
from dcmtools.cli.frame import Frame, run
from dcmtools.cli.options import Common
from dcmtools.cli.subcommand import application
from dcmtools.model.record import Record


def index_merge(
    common: Common,
    *,
    sources: Annotated[
        list[str], typer.Argument(metavar="INDEX...", help="Index files, or archives.", show_default=False)
    ],
) -> None:
    """Take what other indexes know into the index, without reading the files again.

    Each file must still be what its index tells of it. What two of them have is there once; where their contents
    differ, both are kept and the first stays the answer. The indexes that are merged stay as they are.

    Example:
        dcmtools index merge /mnt/*/scanner.jsonl --index /data/all.jsonl > /dev/null

    Exit codes:
        0   all is in the index
        3   some files are gone or changed, or in conflict with others; the rest is in the index
        66  an index is not there
        73  the index cannot be created
        74  the disk is full, or cannot be written
        75  another run holds the lock; or the deadline passed; or nobody reads the output any more
    """

    def work(frame: Frame) -> Iterator[Record]:
        from dcmtools.files.merging import merge

        return merge(indexes_named(sources), frame.index(), dry_run=frame.common.dry_run, stop=frame.stop)

    run("index merge", common, work, events=False, listing=False)


app = application("index merge", index_merge)
