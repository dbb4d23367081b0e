"""Which of our addresses a node sees."""

import socket

from dcmtools.model.errors import Unavailable
from dcmtools.model.node import Node


def source_address(node: Node) -> str:
    """The address of this machine from which a connection to the node would come.

    No packet is sent: connecting a UDP socket only chooses the route. Unavailable when the host has no address, or
    when no route leads to it.
    """
    try:
        found = socket.getaddrinfo(node.host, node.port, type=socket.SOCK_DGRAM)
    except (OSError, UnicodeError) as problem:
        raise _unknown(node, getattr(problem, "strerror", None) or "no such host", "unknown-host") from None
    reason = "it has no address"
    for family, kind, protocol, _, address in found:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.connect(address)
                return str(probe.getsockname()[0])
        except OSError as problem:
            reason = problem.strerror or str(problem)
    raise _unknown(node, reason, "unreachable")


def _unknown(node: Node, reason: str, cause: str) -> Unavailable:
    text = f"cannot tell our address towards {node.where}: {reason}"
    return Unavailable(text, "check its host and our network", node=node.name, cause=cause)
