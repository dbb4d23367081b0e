"""The subcommand `find`."""

from collections.abc import Iterator
from typing import Annotated

import typer

from dcmtools.cli.asking import ask, ask_for_each
from dcmtools.cli.completion import complete_nodes
from dcmtools.cli.frame import Frame, run
from dcmtools.cli.options import Common, Selectors, Stack
from dcmtools.cli.subcommand import application
from dcmtools.model.errors import UsageError
from dcmtools.model.record import Record

_PATHS = frozenset({"paths", "paths0"})


def find(
    selectors: Selectors,
    common: Common,
    *,
    records: Annotated[str, typer.Argument(metavar="-", help="- asks for each record on stdin.")] = "",
    node: Annotated[
        str | None,
        typer.Option(
            metavar="NODE,...",
            help="Ask these nodes (names, or AET@host:port) and not the index.",
            show_default=False,
            autocompletion=complete_nodes,
        ),
    ] = None,
    stack: Stack = "own",
    fail_if_empty: Annotated[bool, typer.Option("--fail-if-empty", help="End with 3 when nothing was found.")] = False,
    events: Annotated[bool, typer.Option("--events", help="Frame the records with begin and end events.")] = False,
) -> None:
    """Find patients, studies, series or instances in the index or on nodes.

    Without selectors: all of them. Names and texts match as in C-FIND, with * and ?, in the index without regard to
    case. Records on stdin, of any level or with any keys, each ask for what belongs to them.

    Example:
        dcmtools find --node PACS --date yesterday --modality MR --fail-if-empty > yesterday.jsonl

    Exit codes:
        0   asked and answered, also when nothing was found
        3   some nodes or records failed; or nothing was found, with --fail-if-empty
        66  there is no index
        69  the node cannot be reached, or does not answer queries
        75  the node serves no more associations now; or the deadline passed
        76  the node broke off
        77  the node refused us
        78  unknown node, or a settings file that cannot be used
    """

    def work(frame: Frame) -> Iterator[Record]:
        if records not in {"", "-"}:
            raise UsageError(f"find takes no '{records}'", "write - for records on stdin, or use a selector")
        query = frame.query(selectors, "instance" if frame.common.format in _PATHS else "study")
        nodes = [word.strip() for word in (node or "").split(",") if word.strip()]
        if node is not None and not nodes:
            raise UsageError("--node has no value", "leave it out to ask the index")
        if records == "-":
            yield from ask_for_each(frame, frame.records(), nodes, query, stack)
        else:
            yield from ask(frame, nodes, query, stack)

    run("find", common, work, effects=False, events=events, fail_if_empty=fail_if_empty)


app = application("find", find)
