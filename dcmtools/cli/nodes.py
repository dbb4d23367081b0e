"""The subcommand `nodes`: the list of nodes, and what a PACS must know of us."""

import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from dcmtools.cli.completion import complete_nodes
from dcmtools.cli.frame import Frame, run
from dcmtools.cli.options import Common, NodeArguments
from dcmtools.cli.subcommand import group
from dcmtools.model.errors import DcmtoolsError
from dcmtools.model.node import Node, node_from_address
from dcmtools.model.record import Record

if TYPE_CHECKING:
    from dcmtools.disk.registry import Change, Registry

_KEYS = "Keys of the node, as in nodes.ini"
_LOOKUPS = 16  # names of hosts that are looked up at once
_ANY_ADDRESS = frozenset({"", "0.0.0.0", "::"})  # noqa: S104  # what they mean is the point here


def _key(*names: str, **more: Any) -> Any:
    return typer.Option(*names, show_default=False, rich_help_panel=_KEYS, **more)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeKeys:
    """The keys of a node that have a default."""

    listen_port: Annotated[
        str | None, _key("--listen-port", metavar="PORT", help="Where it sends what we retrieve. Default: our port.")
    ] = None
    calling_ae_title: Annotated[
        str | None, _key("--calling-ae-title", metavar="AET", help="What we call ourselves towards it.")
    ] = None
    compression: Annotated[
        str | None,
        _key("--compression", metavar="SYNTAX,...", help="Transfer syntaxes by preference, as jpeg-ls,rle."),
    ] = None
    charset: Annotated[
        str | None, _key("--charset", metavar="TERM", help="Character set of our queries. Default: ISO_IR 192.")
    ] = None
    description: Annotated[str | None, _key("--description", metavar="TEXT", help="For people.")] = None
    tls: Annotated[bool | None, _key("--tls/--no-tls", help="Whether the connection is encrypted.")] = None
    tls_verify: Annotated[
        bool | None, _key("--tls-verify/--no-tls-verify", help="Whether its certificate is verified. Default: yes.")
    ] = None
    tls_ca: Annotated[str | None, _key("--tls-ca", metavar="FILE", help="The authority that we trust.")] = None
    tls_cert: Annotated[str | None, _key("--tls-cert", metavar="FILE", help="Our certificate.")] = None
    tls_key: Annotated[str | None, _key("--tls-key", metavar="FILE", help="Its key, which only you can read.")] = None
    retrieve: Annotated[
        Literal["auto", "move", "get"] | None, _key("--retrieve", help="How we retrieve. Default: auto.")
    ] = None
    connect_timeout: Annotated[str | None, _key("--connect-timeout", metavar="SECONDS", help="To connect.")] = None
    acse_timeout: Annotated[
        str | None, _key("--acse-timeout", metavar="SECONDS", help="To agree on an association.")
    ] = None
    dimse_timeout: Annotated[str | None, _key("--dimse-timeout", metavar="SECONDS", help="For an answer.")] = None
    max_associations: Annotated[
        str | None, _key("--max-associations", metavar="N", help="How many associations at once.")
    ] = None
    allowed_hours: Annotated[
        str | None, _key("--allowed-hours", metavar="HOURS", help="When transfers are welcome, such as 20:00-06:00.")
    ] = None

    def texts(self) -> dict[str, str]:
        """What was given, as it is written into nodes.ini."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        return {key: _text(key, value) for key, value in given.items() if value is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """The keys that every node has."""

    ae_title: Annotated[str | None, _key("--ae-title", metavar="AET", help="Its AE title.")] = None
    host: Annotated[str | None, _key("--host", metavar="HOST", help="Its address or name.")] = None
    port: Annotated[str | None, _key("--port", metavar="PORT", help="Its port.")] = None


Name = Annotated[
    str, typer.Argument(metavar="NAME", help="A node's name.", autocompletion=complete_nodes, show_default=False)
]
NewName = Annotated[str, typer.Argument(metavar="NEWNAME", help="Letters, digits and . _ -", show_default=False)]


def list_(common: Common) -> None:
    """List the nodes of all files.

    Example:
        dcmtools nodes list --format csv

    Exit codes:
        0   done
        78  a file is wrong: each mistake is told with its line
    """
    run("nodes list", common, _list, effects=False)


def show(names: NodeArguments, common: Common) -> None:
    """Show nodes; show local tells what a PACS must know of us.

    For each node: our AE title, the address of ours that it sees, and the port to which it has to connect.

    Example:
        dcmtools nodes show local --format csv > to-be-registered.csv

    Exit codes:
        0   done
        3   some nodes are not known, or no route leads there
        69  the same of all nodes: no route
        78  the same of all nodes: not known; or a file is wrong
    """

    def work(frame: Frame) -> Iterator[Record]:
        for name in names:
            yield from _local(frame) if name.casefold() == "local" else _shown(frame, name)

    run("nodes show", common, work, effects=False)


def add(
    name: NewName,
    address: Annotated[str, typer.Argument(metavar="AET@HOST:PORT", help="Or AET@[IPV6]:PORT.", show_default=False)],
    keys: NodeKeys,
    common: Common,
) -> None:
    """Add a node to your nodes.ini.

    Example:
        dcmtools nodes add PACS ARCHIVE@pacs.example.org:104 --description "the hospital's archive"

    Exit codes:
        0   done, or it is there and just so
        73  there is another node of this name, or the file cannot be written
        78  a mistake in what was given or in a file, or the name is the administrator's
    """
    _change(
        "nodes add",
        common,
        lambda registry: registry.add(name, _keys(address) | keys.texts(), dry_run=common.dry_run),
    )


def edit(
    name: Name,
    where: Annotated[
        str | None, typer.Argument(metavar="[AET@HOST:PORT]", help="Its new address.", show_default=False)
    ] = None,
    *,
    address: Address,
    keys: NodeKeys,
    unset: Annotated[
        list[str] | None,
        _key("--unset", metavar="KEY", help="Take this key away, so that its default holds; several are possible."),
    ] = None,
    common: Common,
) -> None:
    """Change a node in your nodes.ini.

    Comments and other nodes stay as they are.

    Example:
        dcmtools nodes edit PACS --compression jpeg-ls,j2k-lossless --unset charset

    Exit codes:
        0   done
        73  the file cannot be written
        77  it is the administrator's node
        78  it is not known, or a mistake in what was given or in a file
    """

    def change(registry: "Registry") -> "Change":
        parts = {key: value for key, value in asdict(address).items() if value is not None}
        moved = _keys(where) if where else {}
        taken: dict[str, str | None] = dict.fromkeys(key.replace("-", "_") for key in unset or ())
        return registry.edit(name, taken | moved | parts | keys.texts(), dry_run=common.dry_run)

    _change("nodes edit", common, change)


def remove(name: Name, common: Common) -> None:
    """Remove a node from your nodes.ini.

    Example:
        dcmtools nodes remove OLDPACS

    Exit codes:
        0   done
        73  the file cannot be written
        77  it is the administrator's node
        78  it is not known
    """
    _change("nodes remove", common, lambda registry: registry.remove(name, dry_run=common.dry_run))


def copy(name: Name, new_name: NewName, common: Common) -> None:
    """Copy a node to your nodes.ini under another name.

    That is how to change a node of the administrator's.

    Example:
        dcmtools nodes copy PACS MYPACS && dcmtools nodes edit MYPACS --calling-ae-title RESEARCH

    Exit codes:
        0   done, or it is there and just so
        73  there is another node of the new name, or the file cannot be written
        78  it is not known, or the new name is wrong or the administrator's
    """
    _change("nodes copy", common, lambda registry: registry.copy(name, new_name, dry_run=common.dry_run))


def _list(frame: Frame) -> Iterator[Record]:
    for node in frame.settings.registry.nodes:
        _warn(frame, node)
        yield _record(node)


def _shown(frame: Frame, name: str) -> Iterator[Record]:
    nodes = frame.settings.registry
    try:
        node = nodes.find(name) or nodes.get(name)
    except DcmtoolsError as problem:
        yield problem.record()
        return
    _warn(frame, node)
    yield _record(node)


def _local(frame: Frame) -> Iterator[Record]:
    """What to register at each node: one record a node; without nodes one without an address."""
    from concurrent.futures import ThreadPoolExecutor

    from dcmtools.network.route import source_address

    local, nodes = frame.settings.local, frame.settings.registry.nodes
    own: Record = {"type": "node", "node": "local", "ae_title": local.ae_title, "host": None, "port": local.port}
    bound = None if local.bind in _ANY_ADDRESS else local.bind
    if not nodes:
        yield {**own, "host": bound, "description": "add a node to see which address it sees"}
    with ThreadPoolExecutor(min(len(nodes), _LOOKUPS) or 1) as pool:
        waiting = [pool.submit(source_address, node) for node in nodes]
        for node, found in zip(nodes, waiting, strict=True):
            theirs = {"ae_title": node.calling_ae_title or local.ae_title, "port": node.listen_port or local.port}
            try:
                address = {"host": bound or found.result(), "towards": node.name}
            except DcmtoolsError as problem:
                yield problem.record()
            else:
                yield {**own, **theirs, **address, "description": f"to be registered at {node.where}"}


def _change(command: str, common: Common, change: Callable[["Registry"], "Change"]) -> None:
    """Runs a change of the user's file; what is wrong in files does not stop it here, for it may mend that."""

    def work(frame: Frame) -> Iterator[Record]:
        from dcmtools.disk.registry import read_registry

        done = change(read_registry(common.nodes))
        if done.node:
            _warn(frame, done.node)
        record = _record(done.node) if done.node else {"type": "node", "node": done.name}
        planned = {"state": "planned", "plan": done.state} if common.dry_run and done.state != "unchanged" else {}
        yield {**record, "state": done.state, **planned}

    run(command, common, work, events=False)


def _warn(frame: Frame, node: Node) -> None:
    from dcmtools.disk.trust import warnings

    for text in warnings(node):
        frame.talk.warning(text)


def _record(node: Node) -> Record:
    """The node record; null where a default of ours holds."""
    keys = {"node" if key == "name" else key: value for key, value in asdict(node).items()}
    return {"type": "node", **keys, "compression": list(node.compression)}


def _keys(address: str) -> dict[str, str]:
    node = node_from_address(address)
    return {"ae_title": node.ae_title, "host": node.host, "port": str(node.port)}


def _text(key: str, value: str | bool) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    # What is typed is relative to here, what stands in nodes.ini is relative to that.
    return str(Path(os.path.expanduser(value)).absolute()) if key in {"tls_ca", "tls_cert", "tls_key"} else value


app = group(
    "nodes", "Show and change the list of nodes.", list_=list_, show=show, add=add, edit=edit, copy=copy, remove=remove
)
