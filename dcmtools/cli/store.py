"""The subcommand `store`."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from dcmtools.cli.completion import complete_nodes
from dcmtools.cli.frame import Frame, run
from dcmtools.cli.options import Common, Selectors, Stack, check_input, duration
from dcmtools.cli.selection import Inputs, chosen
from dcmtools.cli.subcommand import application
from dcmtools.model.errors import UsageError
from dcmtools.model.record import UNIQUE_KEY, Record, path_keys, path_of, type_of

if TYPE_CHECKING:
    from dcmtools.model.node import Node
    from dcmtools.network.parcel import Change
    from dcmtools.network.present import Present
    from dcmtools.network.sender import Sender, Transcode

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
    skip_present: Annotated[
        bool, typer.Option("--skip-present", help="Ask the node what it has (C-FIND), and send the rest.")
    ] = False,
    commit: Annotated[
        bool, typer.Option("--commit", help="Have the node take over what it got (storage commitment).")
    ] = False,
    commit_wait: Annotated[
        str, typer.Option("--commit-wait", metavar="DUR", help="How long to wait for the node's report on that.")
    ] = "60s",
    stack: Stack = "own",
    transcode: Annotated[
        Literal["never", "lossless", "any"],
        typer.Option(help="What may be done for a node that does not take a file's transfer syntax."),
    ] = "lossless",
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEYWORD=VALUE",
            show_default=False,
            help="Send copies with this attribute set, as fixtures; several options are possible.",
        ),
    ] = None,
    new_uids: Annotated[
        bool, typer.Option("--new-uids", help="Send copies with new UIDs, the same for the same in all of this run.")
    ] = False,
) -> None:
    """Send instances to a node (C-STORE).

    Paths, records on stdin of any level, or what selectors choose from the index: whole studies, or with --level series
    only the series that match. One record an instance tells whether it was sent, with a warning, or failed, and why.
    What the network loses is tried again, what the node refuses is not. --jobs N opens so many associations, one by
    default. Where the node grants it, up to 32 instances are on their way at once. Files are never changed.

    A file in a transfer syntax that the node does not take is decompressed, or with --transcode any even compressed
    with a loss where it takes nothing else; what left instead is told as sent_as. With --commit an instance has failed
    unless the node reports that it is committed, to us at our own port (or listen_port of the node), which the listen
    of our archive may hold.

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
        from dcmtools.network.proposal import LOSSLESS_TARGETS, LOSSY_TARGETS
        from dcmtools.network.store import plan, store

        node = frame.settings.registry.get(to)
        if skip_present and new_uids:
            raise UsageError("--skip-present does not go together with --new-uids", "no node has what has new UIDs")
        change, wait = _fixture(set_, new_uids=new_uids), duration(commit_wait)
        items = _instances(frame, inputs, selectors)
        with ExitStack() as children, ExitStack() as senders:  # what transcodes ends after those that send
            local = frame.settings.local
            if frame.common.dry_run:
                outcomes = plan(items, node)
            else:
                outcomes = store(
                    items,
                    node,
                    local,
                    sender=_sender(stack),
                    present=_present(frame, node) if skip_present else None,
                    jobs=frame.default("jobs") or 1,
                    stop=frame.stop,
                    priority={"low": LOW, "medium": MEDIUM, "high": HIGH}[priority],
                    retries=retries,
                    each=True,
                    change=change,
                    targets=LOSSY_TARGETS if transcode == "any" else LOSSLESS_TARGETS,
                    transcode=None if transcode == "never" else _transcoder(children, lossy=transcode == "any"),
                )
                senders.callback(outcomes.close)
                if commit:
                    from dcmtools.network.commitment import committed

                    outcomes = committed(outcomes, node, local, seconds=wait, archive=frame.archive, stop=frame.stop)
                    senders.callback(outcomes.close)
            yield from _less_strangers(frame, inputs, outcomes)

    run("store", common, work, listing=False)


def _sender(stack: str) -> "type[Sender]":
    if stack == "own":
        from dcmtools.network.sender import Sender

        return Sender
    from dcmtools.network.second_stack import SecondSender

    return SecondSender


def _present(frame: Frame, node: "Node") -> "Present":
    from dcmtools.network.present import Present

    return Present(node, frame.settings.local, frame.stop)


def _fixture(values: Sequence[str] | None, *, new_uids: bool) -> "Change | None":
    """What makes the changed copies that leave in place of the files, where that is wanted."""
    if not (values or new_uids):
        return None
    from dcmtools.files.fixture import Fixture, parse

    return Fixture(parse(values or ()), new_uids=new_uids)


def _transcoder(stack: ExitStack, *, lossy: bool) -> "Transcode":
    """What transcodes a file; its module is loaded, and its processes are started, for the first that needs it."""

    @cache
    def ready() -> "Transcode":
        from dcmtools.images.transcode import Transcoder

        return stack.enter_context(Transcoder(lossy=lossy))

    def transcode(source: Path, copy: Path, syntaxes: Sequence[str]) -> None:
        ready()(source, copy, syntaxes)

    return transcode


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
