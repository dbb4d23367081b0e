"""The subcommand `index`."""

import gc
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Annotated

import typer

from dcmtools.cli.frame import Frame, run
from dcmtools.cli.options import Common
from dcmtools.cli.selection import Paths, beside
from dcmtools.cli.subcommand import application
from dcmtools.model.errors import UsageError
from dcmtools.model.record import Record

# Words of a later day; a folder of that name would change its meaning then.
_VERBS = frozenset({"check", "stats", "compact", "merge", "export"})


def index(
    common: Common,
    *,
    inputs: Paths,
    follow: Annotated[bool, typer.Option("--follow", help="Follow symbolic links below folders.")] = False,
    events: Annotated[bool, typer.Option("--events", help="Frame the records with begin and end events.")] = False,
) -> None:
    """Add DICOM files to the index where they lie.

    Nothing is copied or moved. A file that has not changed since is not read again. Which index: --index, else that of
    the archive. On a terminal the summary is shown, elsewhere the record of each file.

    Example:
        dcmtools index /mnt/scanner1 /mnt/scanner2 --index /data/scanners.jsonl --lock scanners > /dev/null

    Exit codes:
        0   all files are in the index
        3   some files are no DICOM, damaged, or another file of the same UID is in the index; the others are in it
        65  no file could be read
        66  a path is not there
        73  the index cannot be created
        74  the disk is full, or cannot be written
        75  another run holds the lock; or the deadline passed; or nobody reads the output any more
    """

    def work(frame: Frame) -> Iterator[Record]:
        from dcmtools.disk.parallel import in_processes
        from dcmtools.files.referencing import index_paths

        _check(inputs)
        gc.set_threshold(50_000)  # thousands of records without circles are alive at once
        skipped: Counter[str] = Counter()
        where = frame.index()
        yield from beside(
            frame,
            inputs,
            lambda paths: index_paths(
                paths,
                where,
                follow=follow,
                dry_run=frame.common.dry_run,
                stop=frame.stop,
                skipped=skipped,
                spread=partial(in_processes, frame.jobs),
            ),
        )
        frame.tell_skipped(skipped)

    run("index", common, work, events=events, listing=False)


def _check(inputs: list[str]) -> None:
    if inputs[0] in _VERBS:
        raise UsageError(f"'{inputs[0]}' is a word that index keeps for itself", f"write the folder as ./{inputs[0]}")


app = application("index", index)
