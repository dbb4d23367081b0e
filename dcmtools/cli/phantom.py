"""The subcommand `phantom`."""

from collections.abc import Iterator
from datetime import date as Date  # noqa: N812  # the option is called so
from pathlib import Path
from typing import Annotated

import typer

from dcmtools.cli.frame import Frame, run
from dcmtools.cli.options import Common
from dcmtools.cli.subcommand import application
from dcmtools.model.errors import UsageError
from dcmtools.model.record import Record


def phantom(
    common: Common,
    *,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder that gets the files.")],
    patients: Annotated[int, typer.Option("--patients", min=1, metavar="N", help="How many patients.")] = 3,
    studies: Annotated[int, typer.Option("--studies", min=1, metavar="N", help="How many studies each has.")] = 1,
    date: Annotated[str, typer.Option("--date", metavar="DATE", help="The day of the studies.")] = "yesterday",
    seed: Annotated[int, typer.Option("--seed", min=0, metavar="N", help="Another seed makes other people.")] = 0,
    kinds: Annotated[str, typer.Option("--kinds", metavar="KIND,...", help="Some of mr, fmri, ct, us, sr.")] = "",
) -> None:
    """Make valid DICOM files without patients, for demos and tests.

    Each study has one series of each kind: MR, a time series in MR, CT, a clip of ultrasound, a report. Names have
    umlauts and Chinese characters, physicians are spelt in several ways or missing. The same seed makes the same bytes.

    Example:
        dcmtools phantom fixtures --patients 5 --date 2024-01-31 --seed 7 --quiet

    Exit codes:
        0   the files are there, made now or before
        3   another file has the name of one; the others are there
        73  a folder or file cannot be created
        74  the disk is full, or cannot be written
        75  the deadline passed, or nobody reads the output any more
    """

    def work(frame: Frame) -> Iterator[Record]:
        from dcmtools.images.phantom import KINDS, make

        yield from make(
            out,
            patients=patients,
            studies=studies,
            date=_day(date, frame.today),
            seed=seed,
            kinds=[word.strip() for word in kinds.split(",") if word.strip()] or KINDS,
            stop=frame.stop,
            dry_run=frame.common.dry_run,
        )

    run("phantom", common, work, listing=False)


def _day(text: str, today: Date) -> Date:
    from dcmtools.model.dates import date_range

    days = date_range(text, today)
    if len(days) != len("20240131"):
        raise UsageError(f"'{text}' is not one day", "write for example yesterday or 2024-01-31")
    return Date(int(days[:4]), int(days[4:6]), int(days[6:]))


app = application("phantom", phantom)
