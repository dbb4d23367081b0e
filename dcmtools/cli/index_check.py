"""The subcommand `index check`."""

from collections.abc import Iterator
from typing import Annotated

import typer

from dcmtools.cli.frame import Frame, run
from dcmtools.cli.options import Common
from dcmtools.cli.subcommand import application
from dcmtools.model.record import Record, path_keys


def index_check(
    common: Common,
    *,
    read: Annotated[
        bool, typer.Option("--read", help="Read the header of each file, and not its size and time only.")
    ] = False,
) -> None:
    """Hold the index against its lines, its view and the files that it tells of.

    What is wrong becomes an error record each: lines that are no records, files that vanished or changed, a view that
    does not tell what the lines do. Nothing is changed.

    Example:
        dcmtools index check --read --quiet || mail -s 'archive damaged' pacs-admin < /dev/null

    Exit codes:
        0   all is as the index tells
        3   something is not; the records say what
        66  there is no index
        74  the index cannot be read
    """

    def work(frame: Frame) -> Iterator[Record]:
        from dcmtools.disk.checking import Checked, check_files, check_lines, check_view

        index, checked, problems = frame.index(must_exist=True), Checked(), 0
        for problem in (
            problem
            for part in (check_lines(index, checked), check_view(index), check_files(index, checked, read=read))
            for problem in part
        ):
            problems += 1
            yield problem
        state = "failed" if problems else "ok"
        yield {
            "type": "index",
            **path_keys(index.file),
            "state": state,
            "lines": checked.lines,
            "instances": checked.instances,
            "problems": problems,
        }

    run("index check", common, work, effects=False)


app = application("index check", index_check)
