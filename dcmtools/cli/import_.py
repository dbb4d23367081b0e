"""The subcommand `import`."""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from dcmtools.cli.frame import INDEX_NAME, Frame, run
from dcmtools.cli.options import Common, one_of
from dcmtools.cli.selection import FilesFrom, PathsOrList, paths_or_list
from dcmtools.cli.subcommand import application
from dcmtools.model.errors import UsageError, from_os
from dcmtools.model.record import Record

if TYPE_CHECKING:
    from dcmtools.files.import_ import Extra, Mode


def import_(
    common: Common,
    *,
    inputs: PathsOrList = None,
    files_from: FilesFrom = None,
    copy: Annotated[bool, typer.Option("--copy", help="Copy the files (default).")] = False,
    link: Annotated[bool, typer.Option("--link", help="Share the blocks, else hard links, else copies.")] = False,
    move: Annotated[bool, typer.Option("--move", help="Remove the files where they were.")] = False,
    reference: Annotated[bool, typer.Option("--reference", help="Leave the files where they are, as index.")] = False,
    layout: Annotated[
        str,
        typer.Option(
            "--layout",
            metavar="TEMPLATE",
            help="Where files lie in the archive, such as '{PatientID}/{SeriesNumber:04}/{SOPInstanceUID}.dcm'; "
            "or uid (default), patient, date.",
            show_default=False,
        ),
    ] = "uid",
    on_duplicate: Annotated[
        Literal["first", "newest"],
        typer.Option("--on-duplicate", help="Which of two contents under one UID is the answer; both are kept."),
    ] = "first",
    checksum: Annotated[bool, typer.Option("--checksum", help="Add the sha256 of each file to its record.")] = False,
    quarantine: Annotated[
        bool, typer.Option("--quarantine", help="Copy damaged DICOM files into the archive's quarantine.")
    ] = False,
    follow: Annotated[bool, typer.Option("--follow", help="Follow symbolic links below folders.")] = False,
) -> None:
    """Bring DICOM files into the archive and its index.

    Archives (zip, tar) are unpacked, and a DICOMDIR lists its files. Each instance gets its place
    study/series/instance.dcm, or as --layout says. What is there already stays; another file with the same UID goes to
    quarantine. On a terminal the summary is shown, elsewhere the record of each file.

    Example:
        dcmtools import /media/incoming --move --lock import | dcmtools convert-nifti - --out /data/nifti --quiet

    Exit codes:
        0   all files are in the archive
        3   some files are no DICOM, damaged, or in conflict with the archive; the others are in it
        65  no file could be read
        66  a path is not there
        73  the archive cannot be created
        74  the disk is full, or cannot be written
        75  another run holds the lock; or the deadline passed; or nobody reads the output any more
    """

    def work(frame: Frame) -> Iterator[Record]:
        from dcmtools.disk.archive import Archive
        from dcmtools.files.import_ import import_paths, reference_paths

        flags: dict[Mode, bool] = {"copy": copy, "link": link, "move": move, "reference": reference}
        mode, skipped = one_of(flags), Counter[str]()
        if mode != "reference" and frame.index_file != frame.archive / INDEX_NAME:
            raise UsageError("the archive keeps its own index", "leave --index out, or use --reference")
        wanted: dict[Extra, bool] = {"checksum": checksum, "quarantine": quarantine}
        _check(mode, {"layout": layout != "uid", "on-duplicate": on_duplicate != "first"}, wanted)
        archive = Archive(frame.archive, layout, on_duplicate=on_duplicate)

        def take(paths: Iterator[Path]) -> Iterator[Record]:
            dry_run, stop = frame.common.dry_run, frame.stop
            if mode == "reference":
                index = frame.index()
                return reference_paths(paths, index, follow=follow, dry_run=dry_run, stop=stop, skipped=skipped)
            extras: set[Extra] = {word for word, is_set in wanted.items() if is_set}
            items = import_paths(
                paths, archive, mode, follow=follow, extras=extras, dry_run=dry_run, stop=stop, skipped=skipped
            )
            return _into(archive.root, items)

        yield from paths_or_list(frame, inputs, files_from, take)
        frame.tell_skipped(skipped)

    run("import", common, work, listing=False)


def _check(mode: "Mode", *given: Mapping[Any, bool]) -> None:
    """Raises UsageError for options that mean nothing where files stay where they are."""
    name = next((name for options in given for name, is_given in options.items() if is_given), "")
    if mode == "reference" and name:
        reason = f"--{name} does not go together with --reference"
        raise UsageError(reason, "it is for files that come into the archive")


def _into(archive: Path, items: Iterator[Record]) -> Iterator[Record]:
    """The items, and words for an archive that cannot be made."""
    try:
        yield from items
    except OSError as problem:
        if archive.is_dir():
            raise
        raise from_os(problem, "making the archive", archive) from problem


app = application("import", import_)
