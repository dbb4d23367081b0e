"""The subcommand `preview`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from dcmtools.cli.frame import Frame, run
from dcmtools.cli.options import Common, Selectors
from dcmtools.cli.selection import Inputs, chosen
from dcmtools.cli.subcommand import application
from dcmtools.model.record import Record


def preview(
    selectors: Selectors,
    common: Common,
    *,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The folder for the pictures.")],
    inputs: Inputs = None,
    size: Annotated[
        int | None,
        typer.Option("--size", min=16, max=8192, metavar="PIXELS", help="The longer side. Default: the image's own."),
    ] = None,
) -> None:
    """Make a picture of each series, volume or file.

    A PNG of the middle slice, or of the middle frame, windowed as the file says, else by its values. A picture that an
    earlier run drew is left as it is.

    Example:
        dcmtools convert-nifti --out nifti --date yesterday | dcmtools preview - --out /srv/www/yesterday

    Exit codes:
        0   there is a picture of everything that has pixels
        3   some could not be drawn; or the command before this one failed
        65  nothing could be drawn
        66  there is no index, or a path is not there
        73  the folder, or a file in it, cannot be created
        74  the disk is full, or cannot be written
        75  the deadline passed, or nobody reads the output any more
    """

    def work(frame: Frame) -> Iterator[Record]:
        from dcmtools.images.preview import preview as draw

        items = chosen(frame, inputs, selectors)
        yield from draw(items, out, size=size, stop=frame.stop, dry_run=frame.common.dry_run)

    run("preview", common, work)


app = application("preview", preview)
