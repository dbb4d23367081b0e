"""The subcommand `move`."""

from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from dcmtools.cli.completion import complete_nodes
from dcmtools.cli.frame import Frame, run
from dcmtools.cli.options import Common, Selectors, check_input, duration
from dcmtools.cli.subcommand import application
from dcmtools.model.errors import ConfigurationError, DcmtoolsError, UsageError
from dcmtools.model.record import LEVELS, Record, pick, type_of

if TYPE_CHECKING:
    from dcmtools.disk.archive import Archive
    from dcmtools.model.node import Local, Node
    from dcmtools.network.arrivals import Arrivals
    from dcmtools.network.move_run import Options

_UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")


def move(
    selectors: Selectors,
    common: Common,
    *,
    records: Annotated[
        str, typer.Argument(metavar="[-]", help="- moves what the records on stdin name.", show_default=False)
    ] = "",
    from_: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="NODE",
            help="A node's name, or AET@host:port. Default: the node that each record names.",
            autocompletion=complete_nodes,
            show_default=False,
        ),
    ] = "",
    port: Annotated[
        int | None,
        typer.Option(
            min=1, max=65535, metavar="PORT", help="Where the node sends to. Default: its listen_port, else ours."
        ),
    ] = None,
    retries: Annotated[int, typer.Option(min=0, metavar="N", help="So many more tries for what is missing.")] = 2,
    grace: Annotated[
        str, typer.Option(metavar="DUR", help="How long to wait for more once the node says that it is done.")
    ] = "10s",
    wait: Annotated[
        str, typer.Option(metavar="DUR", help="How long to wait for a port or an archive that another holds.")
    ] = "0s",
    priority: Annotated[Literal["low", "medium", "high"], typer.Option(help="What the node is asked for.")] = "medium",
) -> None:
    """Retrieve studies, series or instances from a node (C-MOVE).

    What records on stdin name, as from find, or what selectors choose at the node: whole studies, or with --level
    series only the series that match. It receives by itself; where a listen serves the archive, through that one. What
    the archive has is told as present and not moved again. What came is held against what the node says it has; what
    is missing is asked for again, and then named.

    The node must know us: see dcmtools nodes show local.

    Example:
        dcmtools find --node PACS --date yesterday --modality MR | dcmtools move - --quiet > night.jsonl

    Exit codes:
        0   all is here, or was before
        3   some is missing: the records say what; run it again, it fetches only that
        69  the node cannot be reached, does not offer retrieval, or cannot connect to us
        73  the archive cannot be created
        74  the disk is full, or cannot be written
        75  another program has the port, or another move the archive; or the deadline passed; or the node is busy
        76  the node broke off, or gave no answer in time
        77  the node refused us, or does not know us as a destination
        78  unknown node, or a settings file that cannot be used
    """

    def work(frame: Frame) -> Iterator[Record]:
        from dcmtools.network.command import HIGH, LOW, MEDIUM
        from dcmtools.network.move_run import Options

        if frame.common.index:
            raise UsageError("the archive keeps its own index", "leave --index out")
        ranks = {"low": LOW, "medium": MEDIUM, "high": HIGH}
        options = Options(retries, duration(grace), ranks[priority], frame.common.dry_run)
        yield from _moved(frame, _Wanted(frame, records, selectors, from_, port), options, duration(wait))

    run("move", common, work, listing=False)


def _moved(frame: Frame, wanted: "_Wanted", options: "Options", wait: float) -> Iterator[Record]:
    """What is wanted, moved into the archive; a port is opened as soon as there is anything to move."""
    from dcmtools.disk.archive import Archive
    from dcmtools.network.move import move

    archive, pairs = Archive(frame.archive), iter(wanted)
    with ExitStack() as stack:
        if first := next(pairs, None):
            local = replace(frame.settings.local, port=wanted.port_for(first[0]))
            arrivals = None
            if not options.dry_run:
                arrivals = stack.enter_context(_arrivals(frame, archive, local, first[0], wait))
            for record in move(chain([first], pairs), archive.index, arrivals, local, options=options, stop=frame.stop):
                yield from wanted.passing()
                yield record
        yield from wanted.passing()


def _arrivals(
    frame: Frame, archive: "Archive", local: "Local", node: "Node", wait: float
) -> "AbstractContextManager[Arrivals]":
    from dcmtools.network.arrivals import arrivals_for
    from dcmtools.network.listen import Options as Reception

    return arrivals_for(
        archive,
        local,
        options=Reception(compression=node.compression),
        wait=wait,
        stop=frame.stop,
        notice=lambda problem: frame.talk.info(str(problem)),
    )


class _Wanted:
    """What is to be moved, each with its node: the records on stdin, or what selectors choose at a node.

    Whatever else comes on stdin passes by, and so does what is wrong with a record.
    """

    def __init__(self, frame: Frame, inputs: str, selectors: Selectors, node: str, port: int | None) -> None:
        self._frame, self._selectors, self._node, self._port = frame, selectors, node, port
        self._bound: int | None = None
        self._passing: deque[Record] = deque()
        self._is_stream = inputs == "-"
        if inputs not in {"", "-"}:
            raise UsageError(f"move takes no '{inputs}'", "write - for records on stdin, or use a selector")
        check_input([inputs] if inputs else [], selectors, need=True)
        if not (self._is_stream or node):
            raise UsageError("from which node?", "give --from NODE")

    def __iter__(self) -> Iterator[tuple["Node", Record]]:
        for record in self._frame.records() if self._is_stream else self._found():
            if type_of(record) not in LEVELS:
                self._passing.append(record)
                continue
            try:
                yield self._node_of(record), record
            except DcmtoolsError as problem:
                self._passing.append(problem.record(**pick(record, *_UIDS)))

    def passing(self) -> Iterator[Record]:
        """What has passed by since the last call."""
        while self._passing:
            yield self._passing.popleft()

    def port_for(self, node: "Node") -> int:
        """The port to which a node sends: that of --port, its own listen_port, or ours."""
        return self._port or node.listen_port or self._frame.settings.local.port

    def _found(self) -> Iterator[Record]:
        """All that the selectors choose, before anything is moved: no association shall wait for a move."""
        from dcmtools.network.find import find

        settings = self._frame.settings
        query = self._frame.query(self._selectors, "study")
        yield from list(find(settings.registry.get(self._node), settings.local, query, stop=self._frame.stop))

    def _node_of(self, record: Record) -> "Node":
        name = self._node or record.get("node")
        if not isinstance(name, str) or not name:
            raise UsageError(f"a {type_of(record)} record names no node", "give --from NODE")
        node = self._frame.settings.registry.get(name)
        port = self.port_for(node)
        self._bound = self._bound or port
        if port != self._bound:
            raise ConfigurationError(
                f"{node.name} sends to port {port}, and this move receives at {self._bound}",
                "move from it in a run of its own",
                node=node.name,
            )
        return node


app = application("move", move)
