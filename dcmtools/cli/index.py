"""The subcommand `index`."""

import gc
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dcmtools.cli.frame import Frame, run
from dcmtools.cli.options import Common
from dcmtools.cli.selection import Inputs, beside
from dcmtools.cli.subcommand import application
from dcmtools.model.errors import UsageError
from dcmtools.model.record import Record

if TYPE_CHECKING:
    from dcmtools.disk.index import Index
    from dcmtools.disk.scanning import Spread


def index(
    common: Common,
    *,
    inputs: Inputs = None,
    follow: Annotated[bool, typer.Option("--follow", help="Follow symbolic links below folders.")] = False,
    refresh: Annotated[
        bool,
        typer.Option("--refresh", help="Look again at what the index knows, and for new files in its folders."),
    ] = False,
    rebuild: Annotated[
        bool,
        typer.Option("--rebuild", help="Make the index anew from the files; it takes its place when whole."),
    ] = False,
    prune_missing: Annotated[
        bool, typer.Option("--prune-missing", help="Take files that are gone from the index.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Even if more than half of the files are gone.")] = False,
    cluster: Annotated[
        str | None,
        typer.Option(
            "--cluster",
            metavar="tcp://HOST:PORT",
            help="Read on the workers of a dask scheduler, which see the same paths.",
            show_default=False,
        ),
    ] = None,
    events: Annotated[bool, typer.Option("--events", help="Frame the records with begin and end events.")] = False,
) -> None:
    """Add DICOM files to the index where they lie.

    Nothing is copied or moved. A file that has not changed since is not read again. Which index: --index, else that of
    the archive. On a terminal the summary is shown, elsewhere the record of each file.

    With --refresh, --rebuild or --prune-missing no path need be given: the folders of what the index knows are meant.
    Then files that changed in the very moment in which the index was written are read again, too.

    Example:
        dcmtools index /mnt/scanner1 /mnt/scanner2 --index /data/scanners.jsonl --lock scanners > /dev/null

    Exit codes:
        0   all files are in the index
        3   some files are no DICOM, damaged, or another file of the same UID is in the index; the others are in it;
            or so many files are gone that none was taken out
        65  no file could be read
        66  a path is not there
        69  no scheduler answers
        73  the index cannot be created
        74  the disk is full, or cannot be written
        75  another run holds the lock; or the deadline passed; or nobody reads the output any more
    """

    def work(frame: Frame) -> Iterator[Record]:
        from dcmtools.files.referencing import index_paths, trust
        from dcmtools.files.refreshing import known_folders, prune, racily_clean
        from dcmtools.files.refreshing import rebuild as rebuilt

        paths = list(inputs or ())
        again = refresh or rebuild or prune_missing
        _check(paths, again=again, rebuild=rebuild, dry_run=frame.common.dry_run)
        gc.set_threshold(50_000)  # thousands of records without circles are alive at once
        skipped: Counter[str] = Counter()
        where = frame.index(must_exist=again and not paths)
        roots = [os.path.abspath(path) for path in paths] or known_folders(where)
        with _spread(frame, cluster) as spread:

            def indexed(some: Iterable[Path | str], index: "Index") -> Iterator[Record]:
                return index_paths(
                    some,
                    index,
                    follow=follow,
                    dry_run=frame.common.dry_run,
                    stop=frame.stop,
                    skipped=skipped,
                    spread=spread,
                    doubt=racily_clean(where) if again else trust,
                )

            there = [root for root in roots if paths or os.path.lexists(root)]
            if rebuild:
                yield from rebuilt(indexed, there, where, yes=yes, stop=frame.stop)
            else:
                yield from beside(frame, paths or there, lambda some: indexed(some, where)) if paths or there else ()
            if prune_missing and not rebuild:
                yield from prune(where, roots if paths else (), yes=yes, dry_run=frame.common.dry_run, stop=frame.stop)
        frame.tell_skipped(skipped)

    run("index", common, work, events=events, listing=False)


@contextmanager
def _spread(frame: Frame, address: str | None) -> "Iterator[Spread]":
    """How files are read: in processes here, or on a cluster."""
    if address is None:
        from dcmtools.disk.parallel import in_processes

        yield partial(in_processes, frame.jobs)
        return
    from dcmtools.disk.cluster import cluster

    with cluster(address) as spread:
        yield spread


def _check(paths: list[str], *, again: bool, rebuild: bool, dry_run: bool) -> None:
    if not (paths or again):
        raise UsageError("no path was given", "name files or folders, or use --refresh")
    if again and "-" in paths:
        raise UsageError("- does not go together with --refresh, --rebuild or --prune-missing", "name folders, or none")
    if rebuild and dry_run:
        raise UsageError("--rebuild does not go together with --dry-run", "use --refresh --dry-run")


app = application("index", index)
