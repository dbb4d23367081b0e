"""The subcommand `listen`."""

import re
import shlex
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from dcmtools.cli.frame import Frame, run
from dcmtools.cli.options import Common, duration
from dcmtools.cli.subcommand import application
from dcmtools.model.errors import DcmtoolsError, UsageError
from dcmtools.model.node import Local, check_ae_title
from dcmtools.model.record import Record

if TYPE_CHECKING:
    from collections.abc import Callable
    from queue import SimpleQueue
    from socket import socket

    from dcmtools.network.hooks import Commands
    from dcmtools.network.listen import Until
    from dcmtools.network.worker import Orders

_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,3})?)\s*([kmgt]?)(i?)b?\Z", re.IGNORECASE | re.ASCII)


def listen(
    common: Common,
    *,
    action: Annotated[
        Literal["start", "stop", "restart", "status"] | None,
        typer.Argument(help="Without: listen until told to stop. With: a listen in the background.", show_choices=True),
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, metavar="PORT", help="Default: ours of config.ini; 0 chooses one.")
    ] = None,
    aet: Annotated[str | None, typer.Option(metavar="AET", help="Our AE title. Default: that of config.ini.")] = None,
    bind: Annotated[str | None, typer.Option(metavar="ADDRESS", help="Listen on this address only.")] = None,
    query_retrieve: Annotated[
        bool, typer.Option("--query-retrieve", help="Answer C-FIND, C-MOVE and C-GET from the index, too.")
    ] = False,
    allow_ae: Annotated[
        list[str] | None,
        typer.Option(metavar="AET", help="Let in only this calling AE title; several options are possible."),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="ADDRESS", help="Let in only from this address or network, as 10.1.2.0/24; several too."),
    ] = None,
    called_ae_check: Annotated[
        bool, typer.Option("--called-ae-check", help="Let in only who calls us by our AE title.")
    ] = False,
    max_associations: Annotated[int, typer.Option(min=1, metavar="N", help="So many associations at once.")] = 64,
    max_per_host: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="So many from one host. Default: a quarter; all from this machine."),
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(metavar="FILE", help="Speak TLS, with this certificate.")] = None,
    tls_key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Its key, where that stands in a file of its own.")
    ] = None,
    tls_ca: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Let in only who has a certificate that this CA signed.")
    ] = None,
    min_free: Annotated[str, typer.Option(metavar="SIZE", help="Leave so much of the disk free, such as 10GB.")] = "0",
    fsync: Annotated[
        Literal["on", "off"],
        typer.Option(help="off: answer before instances are on the disk; a power cut may then lose the last ones."),
    ] = "on",
    on_duplicate: Annotated[
        Literal["first", "newest"],
        typer.Option("--on-duplicate", help="Which of two contents under one UID is the answer; both are kept."),
    ] = "first",
    compression: Annotated[
        str, typer.Option(metavar="SYNTAX,...", help="Transfer syntaxes by preference, as jpeg-ls,rle.")
    ] = "",
    private_classes: Annotated[
        bool, typer.Option("--private-classes", help="Take objects of private SOP classes, too.")
    ] = False,
    on_instance: Annotated[
        str | None, typer.Option(metavar="CMD", help="Run this for each instance, its record on stdin; no shell.")
    ] = None,
    on_series: Annotated[
        str | None, typer.Option(metavar="CMD", help="Run this for each series that has settled.")
    ] = None,
    on_study: Annotated[
        str | None, typer.Option(metavar="CMD", help="Run this for each study that has settled.")
    ] = None,
    settle: Annotated[
        str, typer.Option(metavar="DUR", help="Settled means that nothing of it came for so long.")
    ] = "60s",
    workers: Annotated[
        int,
        typer.Option(
            min=1,
            max=64,
            metavar="N",
            help="Receive in N processes, for when one core, and not the disk, is the limit.",
        ),
    ] = 1,
    once: Annotated[bool, typer.Option("--once", help="End after the first association that stored.")] = False,
    count: Annotated[int | None, typer.Option(min=1, metavar="N", help="End after N instances.")] = None,
    idle_exit: Annotated[
        str | None, typer.Option(metavar="DUR", help="End when there was no association for so long.")
    ] = None,
) -> None:
    """Receive what nodes send, and answer what they ask.

    Instances go into the archive and its index; a sender hears of success when its instance is safely there. The first
    record says where we listen; then comes one for each instance. SIGTERM ends it when what arrives is finished,
    SIGHUP has it read the nodes again. start puts it into the background with the options beside it, stop and status
    want only --archive; it writes what it has to say to .dcmtools-listen.log in the archive. With --workers several
    processes receive at one port; limits, counts and settling hold for all of them together, and one that dies is told
    of as an error and replaced.
    --index and --dry-run are refused: the archive keeps its own index, and what will come is not known.

    Example:
        dcmtools listen --query-retrieve --min-free 10GB --quiet > /dev/null

    Exit codes:
        0   ended by SIGTERM, --once, --count or --idle-exit
        3   ended so, but some instances were refused; the records say which and why
        69  status: no listen serves the archive
        73  the archive cannot be created
        74  the disk is full, or cannot be written
        75  another listen has the archive, or a program the port; or nobody reads the output any more
        77  the port needs privileges, or others can read the TLS key
        78  a settings or TLS file that cannot be used
    """

    def work(frame: Frame) -> Iterator[Record]:
        from dcmtools.disk.node_keys import KEYS
        from dcmtools.network.acceptor import NOTHING_SAID
        from dcmtools.network.hooks import Hooks
        from dcmtools.network.hosts import among
        from dcmtools.network.listen import Options, Until
        from dcmtools.network.worker import Orders

        if frame.common.index:
            raise UsageError("the archive keeps its own index", "leave --index out")
        if frame.common.dry_run:
            raise UsageError("what will come cannot be tried beforehand", "leave --dry-run out")
        if action:
            from dcmtools.cli.service import control

            yield from control(action, frame.archive, frame.stop)
            return
        options = Options(
            peers=frozenset(map(check_ae_title, allow_ae or ())),
            hosts=among(allow_host or ()),
            check_called=called_ae_check,
            max_associations=max_associations,
            max_per_host=max_per_host,
            compression=KEYS["compression"](compression),
            private_classes=private_classes,
            min_free=_size(min_free),
            fsync=fsync == "on",
        )
        orders = Orders(
            frame.archive,
            _ours(frame.settings.local, port, aet, bind),
            options,
            on_duplicate=on_duplicate,
            tls=_tls(tls_cert, tls_key, tls_ca),
            query_retrieve=query_retrieve,
            nodes_file=frame.settings.nodes_file,
        )
        until = Until(once, count, duration(idle_exit) if idle_exit else None)
        hooks = _hooks(on_instance, on_series, on_study, duration(settle))

        def notice(problem: DcmtoolsError) -> None:
            (frame.talk.debug if problem.cause == NOTHING_SAID else frame.talk.warning)(str(problem))

        with Hooks(hooks, notice) as running:
            for record in _received(frame, orders, workers, until, notice):
                running.arrived(record)
                yield record

    run("listen", common, work, events=False, drains=True)


def _received(
    frame: Frame, orders: "Orders", workers: int, until: "Until", notice: "Callable[[DcmtoolsError], None]"
) -> Iterator[Record]:
    """The records of a receiver in this process, or of several in their own; SIGHUP has the nodes read again."""
    from dcmtools.network.listen import GRACE, listen, received
    from dcmtools.network.worker import listener_keys

    keys, outdate = listener_keys(orders, notice)  # whatever keeps a receiver from beginning shows here
    if workers == 1:
        signal.signal(signal.SIGHUP, lambda *_: outdate())
        return listen(**keys, until=until, stop=frame.stop, notice=notice)
    from dcmtools.network.crew import Crew

    def begin(arrived: "SimpleQueue[Record]", sock: "socket | None") -> Crew:
        crew = Crew(workers, orders, arrived.put, notice, sock=sock)
        signal.signal(signal.SIGHUP, lambda *_: crew.reload())
        return crew

    return received(begin, until=until, stop=frame.stop, grace=GRACE)


def _tls(cert: Path | None, key: Path | None, ca: Path | None) -> tuple[Path, Path | None, Path | None] | None:
    """The files of our side of TLS, None without a certificate."""
    if cert is None:
        if key or ca:
            raise UsageError("--tls-key and --tls-ca go with --tls-cert", "give our certificate, too")
        return None
    return cert, key, ca


def _ours(local: Local, port: int | None, aet: str | None, bind: str | None) -> Local:
    """Our side as the configuration has it, but for what the call says."""
    return Local(
        ae_title=local.ae_title if aet is None else check_ae_title(aet),
        port=local.port if port is None else port,
        bind=local.bind if bind is None else bind,
    )


def _hooks(instance: str | None, series: str | None, study: str | None, settle: float) -> "Commands":
    """The commands as lists of words; UsageError for what a shell could not read either."""
    from dcmtools.network.hooks import Commands

    words = {"instance": _words("--on-instance", instance), "series": _words("--on-series", series)}
    return Commands(**words, study=_words("--on-study", study), settle=settle)


def _words(option: str, text: str | None) -> tuple[str, ...]:
    if text is None:
        return ()
    try:
        words = tuple(shlex.split(text))
    except ValueError as problem:
        raise UsageError(f"{option}: {problem}", "write it as on a command line") from None
    if not words:
        raise UsageError(f"{option} has no command", "name one, or leave it out")
    return words


def _size(text: str) -> int:
    """The bytes that 500MB, 10G or 4GiB mean; UsageError when it means nothing."""
    match = _SIZE.match(text.strip())
    if not match:
        raise UsageError(f"'{text[:40]}' is not a size", "write for example 500MB or 10GB")
    number, prefix, binary = match.groups()
    power = " kmgt".index(prefix.lower() or " ")
    return int(float(number) * (1024 if binary else 1000) ** power)


app = application("listen", listen)
