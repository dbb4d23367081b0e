"""What a command works on: records on stdin (`-`), files and folders, or what selectors choose from the index."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dcmtools.cli.frame import Frame
from dcmtools.cli.options import Selectors, check_input
from dcmtools.model.errors import DcmtoolsError, UsageError
from dcmtools.model.record import UNIQUE_KEY, Level, Record, path_keys, path_of, type_of

if TYPE_CHECKING:
    from dcmtools.disk.index import Index

Inputs = Annotated[
    list[str] | None,
    typer.Argument(metavar="- | PATH...", help="- for records on stdin, or files and folders.", show_default=False),
]

Paths = Annotated[
    list[str],
    typer.Argument(
        metavar="- | PATH...", help="- for paths or records on stdin, or files and folders.", show_default=False
    ),
]

PathsOrList = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="- | PATH...", help="- for paths or records on stdin, or files and folders.", show_default=False
    ),
]

FilesFrom = Annotated[
    Path | None,
    typer.Option(
        "--files-from",
        metavar="-|FILE",
        help="Take the paths from a list, one a line or with zero bytes between them (find -print0).",
        show_default=False,
    ),
]

_NIFTI = (".nii", ".nii.gz")


def chosen(
    frame: Frame,
    inputs: Sequence[str] | None,
    selectors: Selectors,
    *,
    level: Level = "series",
    need: bool = False,
) -> Iterator[Record]:
    """The records to work on, those of any level expanded into the instances that they stand for.

    Args:
        frame: the command's frame
        inputs: `-`, or paths, or nothing
        selectors: choose from the index where there are no inputs; all of it where they choose nothing
        level: the level of the choice, where --level is not given
        need: whether to choose nothing is an error (a command that sends or deletes)
    """
    paths = list(inputs or ())
    check_input(paths, selectors, need=need)
    if paths == ["-"]:
        return resolved(frame, frame.records())
    if paths:
        return _instances_below(frame, paths)
    index = frame.index(must_exist=True)
    return index.expand(index.find(frame.query(selectors, level)))


def resolved(frame: Frame, records: Iterable[Record]) -> Iterator[Record]:
    """The records, those without a path replaced by their instances in the index, and bare paths by their headers."""
    index: Index | None = None
    for record in records:
        kind, path = type_of(record), path_of(record)
        if kind in UNIQUE_KEY and path is None and "state" not in record:  # else it tells what became of it
            index = index or frame.index()
            yield from index.expand([record])
        elif kind == "file" and path and "state" not in record and not is_nifti(path):
            yield from _instances_below(frame, [path])
        else:
            yield record


def is_nifti(path: Path | str) -> bool:
    """Whether a file is named as NIfTI files are."""
    return str(path).lower().endswith(_NIFTI)


def _instances_below(frame: Frame, paths: Sequence[Path | str]) -> Iterator[Record]:
    """The instance records of files and of all files in folders; what is no DICOM is passed over in folders only."""
    from dcmtools.disk.header import read_header
    from dcmtools.disk.tree import files_below

    named = {str(Path(path).absolute()) for path in paths}
    for found in files_below(paths):
        if frame.stop():
            return
        if isinstance(found, dict):
            yield found
            continue
        if is_nifti(found):
            yield {"type": "file", **path_keys(found)}
            continue
        try:
            yield read_header(found, follow=True)
        except DcmtoolsError as problem:
            if str(found) in named or problem.cause not in {"not-dicom", "dicomdir"}:
                yield problem.record()


def paths_or_list(
    frame: Frame,
    inputs: Sequence[str] | None,
    files_from: Path | None,
    take: Callable[[Iterator[Path]], Iterator[Record]],
) -> Iterator[Record]:
    """What `take` makes of the paths, as `beside`, or of those in a list; UsageError without either, or with both."""
    if files_from is not None:
        if inputs:
            raise UsageError("--files-from does not go together with paths", "put them into the list")
        return take(_listed(frame.lines(files_from)))
    if not inputs:
        raise UsageError("nothing was given", "give - or paths, or --files-from")
    return beside(frame, inputs, take)


def _listed(lines: Iterable[bytes]) -> Iterator[Path]:
    for line in lines:
        name = line if os.path.lexists(line) else line.rstrip(b"\r")  # as Windows ends its lines
        if name.strip():
            yield Path(os.fsdecode(name))


def beside(frame: Frame, inputs: Sequence[str], take: Callable[[Iterator[Path]], Iterator[Record]]) -> Iterator[Record]:
    """What `take` makes of the paths; records on stdin that name none pass by, in their order.

    Instances, files and folders have a path; records of studies and series stand for the instances in the index.
    """
    if list(inputs) != ["-"]:
        if "-" in inputs:
            raise UsageError("- stands for all input", "give - or paths, not both")
        yield from take(Path(path) for path in inputs)
        return
    passing: deque[Record] = deque()
    for record in take(_paths(frame, passing)):
        while passing:
            yield passing.popleft()
        yield record
    yield from passing


def _paths(frame: Frame, passing: deque[Record]) -> Iterator[Path]:
    index: Index | None = None
    for record in frame.records():
        path = path_of(record)
        if path and type_of(record) in {"instance", "file"}:
            yield path
        elif type_of(record) in UNIQUE_KEY and "state" not in record:
            index = index or frame.index()
            for one in index.expand([record]):
                if (path := path_of(one)) and type_of(one) == "instance":
                    yield path
                else:
                    passing.append(one)
        else:
            passing.append(record)
