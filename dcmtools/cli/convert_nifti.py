"""The subcommand `convert-nifti`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import typer

from dcmtools.cli.frame import Frame, run
from dcmtools.cli.options import Common, Mode, Selectors, duration, mode_of
from dcmtools.cli.selection import Inputs, chosen
from dcmtools.cli.subcommand import application
from dcmtools.model.record import Record


def convert_nifti(
    selectors: Selectors,
    common: Common,
    *,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The folder for the volumes.")],
    inputs: Inputs = None,
    engine: Annotated[Literal["dcm2niix", "dicom2nifti"], typer.Option("--engine", help="What converts.")] = "dcm2niix",
    template: Annotated[
        str,
        typer.Option(
            "--template",
            metavar="NAMES",
            help="Names of volumes, such as '{PatientID}/{StudyDate}/{SeriesNumber:04d}_{SeriesUIDhash8}'.",
            show_default=False,
        ),
    ] = "",
    allow_incomplete: Annotated[
        bool, typer.Option("--allow-incomplete", help="Convert series of which instances are missing, too.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Convert again what is unchanged.")] = False,
    overwrite_edited: Annotated[
        bool, typer.Option("--overwrite-edited", help="Replace volumes that somebody has changed since.")
    ] = False,
    time_limit: Annotated[
        str, typer.Option("--time-limit", metavar="DUR", help="The longest that one series may take.")
    ] = "30m",
    dcm2niix: Annotated[
        Path | None, typer.Option("--dcm2niix", metavar="FILE", help="Another dcm2niix than the installed one.")
    ] = None,
    mode: Mode = None,
) -> None:
    """Convert series to NIfTI, with the geometry checked.

    Each volume comes with a JSON sidecar and a record. A series of a stream begins as soon as it is complete; one that
    is not complete is refused. What an earlier run converted is left as it is.

    Example:
        dcmtools convert-nifti --out /data/nifti --date yesterday --modality MR,CT --quiet --lock nifti

    Exit codes:
        0   all series are converted, were converted before, or have no pixels
        3   some series failed, are incomplete or suspect; or the command before this one failed
        65  no series could be converted
        66  there is no index, or a path is not there
        73  the folder, or a file in it, cannot be created
        74  the disk is full, or cannot be written
        75  another run converts into this folder; or the deadline passed; or nobody reads the output any more
        78  the engine cannot be used
    """

    def work(frame: Frame) -> Iterator[Record]:
        from dcmtools.images.convert_nifti import ConvertOptions, convert
        from dcmtools.images.naming import DEFAULT_TEMPLATE

        options = ConvertOptions(
            engine=engine,
            jobs=frame.jobs,
            template=template or DEFAULT_TEMPLATE,
            allow_incomplete=allow_incomplete,
            force=force,
            overwrite_edited=overwrite_edited,
            dry_run=frame.common.dry_run,
            time_limit=duration(time_limit),
            mode=mode_of(mode),
            dcm2niix=dcm2niix,
        )
        yield from convert(chosen(frame, inputs, selectors), out, options, stop=frame.stop)

    run("convert-nifti", common, work)


app = application("convert-nifti", convert_nifti)
