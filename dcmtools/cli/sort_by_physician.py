"""The subcommand `sort-by-physician`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import typer

from dcmtools.cli.frame import Frame, run
from dcmtools.cli.options import Common, Mode, Selectors, mode_of, one_of
from dcmtools.cli.selection import Inputs, chosen
from dcmtools.cli.subcommand import application
from dcmtools.model.record import Record


def sort_by_physician(
    selectors: Selectors,
    common: Common,
    *,
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="The folder that gets a folder for each physician.")
    ],
    inputs: Inputs = None,
    link: Annotated[bool, typer.Option("--link", help="Hard links, copies on another disk (default).")] = False,
    copy: Annotated[bool, typer.Option("--copy", help="Copies.")] = False,
    symlink: Annotated[bool, typer.Option("--symlink", help="Symbolic links.")] = False,
    move: Annotated[bool, typer.Option("--move", help="Move the files.")] = False,
    multi: Annotated[
        Literal["first", "all"], typer.Option("--multi", help="Where several physicians are named: sort by which.")
    ] = "first",
    unknown: Annotated[
        str, typer.Option("--unknown", metavar="NAME", help="The folder of studies that name nobody.")
    ] = "_unknown",
    nobody: Annotated[
        str, typer.Option("--nobody", metavar="WORD,...", help="More words that name nobody.", show_default=False)
    ] = "",
    ascii: Annotated[bool, typer.Option("--ascii", help="Only ASCII in the names of folders.")] = False,
    merge: Annotated[
        Path | None, typer.Option("--merge", metavar="FILE", help="Lines A=B: who is written A is B.")
    ] = None,
    mode: Mode = None,
    group: Annotated[
        str | None, typer.Option("--group", metavar="NAME", help="Who else may read, as --mode says.")
    ] = None,
) -> None:
    """Sort volumes and instances into folders by referring physician.

    The tree is physician/study/series. Spellings of one name share a folder; a name that was corrected since moves its
    study. What is there already is left as it is.

    Example:
        dcmtools convert-nifti --out nifti --date yesterday | dcmtools sort-by-physician - --out /srv/share --quiet

    Exit codes:
        0   all is where it belongs
        3   some files could not be placed; or the command before this one failed
        65  no file could be read
        66  there is no index, or a path is not there
        73  the folder, or a file in it, cannot be created
        74  the disk is full, or cannot be written
        75  another run sorts into this folder; or the deadline passed; or nobody reads the output any more
        78  the file of names to merge, or physicians.json, cannot be used
    """

    def work(frame: Frame) -> Iterator[Record]:
        from dcmtools.files.physicians import NOBODY
        from dcmtools.files.sort_by_physician import SortOptions, sort

        words = (word.strip().casefold() for word in nobody.split(","))
        options = SortOptions(
            how=one_of({"link": link, "copy": copy, "symlink": symlink, "move": move}),
            multi=multi,
            unknown=unknown,
            ascii=ascii,
            merge=merge,
            mode=mode_of(mode),
            group=group,
            dry_run=frame.common.dry_run,
            nobody=NOBODY | {word for word in words if word},
        )
        yield from sort(chosen(frame, inputs, selectors), out, options, stop=frame.stop)

    run("sort-by-physician", common, work)


app = application("sort-by-physician", sort_by_physician)
