"""The subcommand `store`."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from dcmtools.cli.completion import complete_nodes
from dcmtools.cli.frame import Frame, run
from dcmtools.cli.options import Common, Selectors, check_input
from dcmtools.cli.selection import Inputs, chosen
from dcmtools.cli.subcommand import application
from dcmtools.model.record import UNIQUE_KEY, Record, path_keys, path_of, type_of

_NO_INSTANCES = frozenset({"not-dicom", "dicomdir"})


def store(
    selectors: Selectors,
    common: Common,
    *,
    to: Annotated[
        str,
        typer.Option(
            metavar="NODE", help="A node's name, or AET@host:port.", autocompletion=complete_nodes, show_default=False
        ),
    ],
    inputs: Inputs = None,
    priority: Annotated[Literal["low", "medium", "high"], typer.Option(help="What the node is asked for.")] = "medium",
    retries: Annotated[
        int, typer.Option(min=0, metavar="N", help="So often again what may pass: a lost connection, a busy node.")
    ] = 2,
) -> None:
    """Send instances to a node (C-STORE).

    Paths, records on stdin of any level, or what selectors choose from the index: whole studies, or with --level series
    only the series that match. One record an instance tells whether it was sent, with a warning, or failed, and why.
    What the network loses is tried again, what the node refuses is not. --jobs N opens so many associations, one by
    default. Files are never changed.

    Example:
        dcmtools store --to PACS --date yesterday --modality SR --level series --quiet > sent.jsonl

    Exit codes:
        0   all instances are sent, some perhaps with a warning
        3   some failed, or are no DICOM or damaged; the others are sent
        65  no file could be read
        66  there is no index, or a path is not there
        69  the node cannot be reached, or does not take these instances
        75  the node is busy; or the deadline passed; or nobody reads the output any more
        76  the node broke off
        77  the node refused us
        78  unknown node, or a settings file that cannot be used
    """

    def work(frame: Frame) -> Iterator[Record]:
        from dcmtools.network.command import HIGH, LOW, MEDIUM
        from dcmtools.network.store import plan, store

        node = frame.settings.registry.get(to)
        items = _instances(frame, inputs, selectors)
        if frame.common.dry_run:
            outcomes = plan(items, node)
        else:
            outcomes = store(
                items,
                node,
                frame.settings.local,
                jobs=frame.default("jobs") or 1,
                priority={"low": LOW, "medium": MEDIUM, "high": HIGH}[priority],
                retries=retries,
                each=True,
                stop=frame.stop,
            )
        yield from _less_strangers(frame, inputs, outcomes)

    run("store", common, work, listing=False)


def _instances(frame: Frame, inputs: Sequence[str] | None, selectors: Selectors) -> Iterator[Record]:
    """The files to send: those named or below what is named, those of stdin, or those that selectors choose."""
    paths = list(inputs or ())
    check_input(paths, selectors, need=True)
    if not paths:
        return chosen(frame, None, selectors, level="study")
    return _resolved(frame) if paths == ["-"] else _below(paths)


def _resolved(frame: Frame) -> Iterator[Record]:
    """The records on stdin, those of studies and series replaced by their instances, folders by what is in them."""
    index = frame.index()
    for record in frame.records():
        kind, path = type_of(record), path_of(record)
        if kind == "file" and path and path.is_dir():
            yield from _below([str(path)])
        elif kind in UNIQUE_KEY and path is None and "state" not in record:  # else it tells what became of it
            yield from index.expand([record])
        else:
            yield record


def _below(paths: Sequence[str]) -> Iterator[Record]:
    from dcmtools.disk.tree import files_below

    for found in files_below(paths):
        yield found if isinstance(found, dict) else {"type": "instance", **path_keys(found)}


def _less_strangers(frame: Frame, inputs: Sequence[str] | None, outcomes: Iterator[Record]) -> Iterator[Record]:
    """The outcomes, but for files in folders that are no instances at all: only those named are missed."""
    folders = [os.path.realpath(path) for path in inputs or () if os.path.isdir(path)]
    skipped: Counter[str] = Counter()
    for record in outcomes:
        stranger = type_of(record) == "error" and record.get("cause") in _NO_INSTANCES
        if stranger and any(Path(str(record.get("path"))).is_relative_to(folder) for folder in folders):
            skipped[record["cause"]] += 1
        else:
            yield record
    frame.tell_skipped(skipped)


app = application("store", store)
