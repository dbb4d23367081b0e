"""The subcommand `find`."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from dcmtools.cli.asking import ask, ask_for_each, counted, from_stdin, several
from dcmtools.cli.completion import complete_nodes
from dcmtools.cli.frame import Frame, run
from dcmtools.cli.options import Common, Format, Selectors, Stack
from dcmtools.cli.subcommand import application
from dcmtools.model.errors import UsageError
from dcmtools.model.query import TREE_ORDER, Query, parse_returns
from dcmtools.model.record import Level, Record


def find(
    selectors: Selectors,
    common: Common,
    *,
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="- | INDEX...",
            help="- asks for each record on stdin; index files, or archives, are asked together in place of --index.",
            show_default=False,
        ),
    ] = None,
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
    returns: Annotated[
        str | None,
        typer.Option(
            "--return",
            metavar="KEY,...",
            help="Tell these keys, too; of a lower level all values that there are (index only).",
            show_default=False,
        ),
    ] = None,
    count: Annotated[bool, typer.Option("--count", help="Tell only how many there are.")] = False,
    tree: Annotated[bool, typer.Option("--tree", help="Show patients, their studies and series as a tree.")] = False,
    fail_if_empty: Annotated[bool, typer.Option("--fail-if-empty", help="End with 3 when nothing was found.")] = False,
    events: Annotated[bool, typer.Option("--events", help="Frame the records with begin and end events.")] = False,
) -> None:
    """Find patients, studies, series or instances in the index or on nodes.

    Without selectors: all of them. Names and texts match as in C-FIND, with * and ?, in the index without regard to
    case. Records on stdin, of any level or with any keys, each ask for what belongs to them. `--index -` takes the
    records on stdin for the index itself.

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
        query = frame.query(selectors, _level(frame.common.format), parse_returns(returns or ""))
        if tree:
            query = replace(query.at("series"), sort=query.sort or TREE_ORDER)
        nodes = [word.strip() for word in (node or "").split(",") if word.strip()]
        if node is not None and not nodes:
            raise UsageError("--node has no value", "leave it out to ask the index")
        if inputs and "-" not in inputs and nodes:
            raise UsageError("--node does not go together with an index", "ask one after the other")
        found = _found(frame, inputs or [], nodes, query, stack)
        yield from counted(frame, found, query, nodes) if count else found

    if tree:
        common = replace(common, format="tree")
    run("find", common, work, effects=False, events=events, fail_if_empty=fail_if_empty)


def _found(frame: Frame, inputs: list[str], nodes: list[str], query: Query, stack: str) -> Iterator[Record]:
    if inputs == ["-"]:
        return ask_for_each(frame, frame.records(), nodes, query, stack)
    if "-" in inputs:
        raise UsageError("- stands for all input", "give - or the names of indexes, not both")
    if inputs:
        return several(inputs).find(query)
    if frame.common.index == Path("-") and not nodes:
        return from_stdin(frame, query)
    return ask(frame, nodes, query, stack)


def _level(format: Format | None) -> Level:
    """The level where none is asked for: paths are of instances."""
    return "instance" if format in {"paths", "paths0"} else "study"


app = application("find", find)
