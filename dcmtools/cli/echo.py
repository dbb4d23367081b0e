"""The subcommand `echo`."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from dcmtools.cli.frame import Frame, run
from dcmtools.cli.options import Common, NodeArguments, Stack
from dcmtools.cli.subcommand import application
from dcmtools.model.errors import DcmtoolsError
from dcmtools.model.record import Record

if TYPE_CHECKING:
    from dcmtools.model.node import Node


def echo(
    common: Common,
    names: NodeArguments,
    repeat: Annotated[
        int, typer.Option("--repeat", min=1, metavar="N", help="So many echoes on one association; ms is the median.")
    ] = 1,
    stack: Stack = "own",
) -> None:
    """Ask nodes whether they are there (C-ECHO).

    All are asked at once, and each tells in a record of its own: ok, how many milliseconds the echo took (ms) and the
    association before it (connect_ms), and what the peer says it is; or why not.

    Example:
        dcmtools echo PACS ARCHIVE@10.0.0.5:104 --quiet || mail -s 'PACS is away' me@example.org < /dev/null

    Exit codes:
        0   all nodes answered
        3   some answered, others did not
        69  the node cannot be reached, or does not offer C-ECHO
        75  the node serves no more associations now; or the deadline passed
        76  the node broke off, or gave no answer in time
        77  the node refused us: see which AE title is wrong
        78  unknown node, or a settings file that cannot be used
    """

    def work(frame: Frame) -> Iterator[Record]:
        from dcmtools.network.echo import echo_all

        known: list[Node] = []
        for name in dict.fromkeys(names):
            try:
                known.append(frame.settings.registry.get(name))
            except DcmtoolsError as problem:
                if len(names) == 1:
                    raise
                yield problem.record(node=name, ok=False)
        yield from echo_all(known, frame.settings.local, repeat=repeat, stop=frame.stop, stack=stack)

    run("echo", common, work, effects=False)


app = application("echo", echo)
