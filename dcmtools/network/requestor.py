"""Opening an association to a node: name, connection, TLS, negotiation, each with its own words when it fails."""

import socket
from collections.abc import Mapping, Sequence
from datetime import datetime
from types import MappingProxyType

from dcmtools.model.errors import DcmtoolsError, Refused, Unavailable
from dcmtools.model.node import Local, Node, check_hours
from dcmtools.model.uids import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION
from dcmtools.network import pdu
from dcmtools.network.association import Association, Timeouts, establish, proposals
from dcmtools.network.upper_layer import MAX_PDU, Closed, Connection

_NO_ROLES: Mapping[str, tuple[bool, bool]] = MappingProxyType({})


def request(
    node: Node,
    local: Local,
    wanted: Sequence[tuple[str, Sequence[str]]],
    *,
    roles: Mapping[str, tuple[bool, bool]] = _NO_ROLES,
    window: tuple[int, int] = pdu.SYNCHRONOUS,
) -> Association:
    """An open association to a node with the contexts wanted, of which it may have accepted any part.

    `window` is how many operations we would like to invoke and perform at once (PS3.7 D.3.3.3).

    Raises Unavailable (69), Refused (77), TryLater (75) or ProtocolError (76), each naming the node.
    """
    check_hours(node, datetime.now().time())  # noqa: DTZ005 - the hours of the day are those of this machine's clock
    connection = connect(node)
    asked = pdu.Request(
        called=node.ae_title,
        calling=node.calling_ae_title or local.ae_title,
        max_pdu=MAX_PDU,
        implementation_class=IMPLEMENTATION_CLASS_UID,
        implementation_version=IMPLEMENTATION_VERSION,
        roles=roles,
        window=window,
        contexts=proposals(wanted),
    )
    timeouts = Timeouts(
        acse=node.acse_timeout, dimse=node.dimse_timeout, pdu=node.dimse_timeout, idle=node.dimse_timeout
    )
    try:
        return establish(connection, asked, node.where, timeouts)
    except Closed as problem:
        connection.close()
        raise _closed(problem, node) from problem
    except BaseException:
        connection.close()
        raise


def _closed(problem: Closed, node: Node) -> DcmtoolsError:
    """What to say of a connection that ended before the association: with TLS 1.3 a certificate is missed only then."""
    if not node.tls or node.tls_cert:
        return problem
    kind = Refused if "certificate" in problem.reason.partition(": ")[2] else Closed
    return kind(
        f"{node.where} ended the TLS connection instead of answering: {problem.reason.partition(': ')[2]}",
        "it may want a client certificate: set tls_cert and tls_key",
        node=node.name,
        cause="client-certificate",
    )


def connect(node: Node) -> Connection:
    """A connection to a node, through TLS where the node says so."""
    try:
        sock = socket.create_connection((node.host, node.port), timeout=node.connect_timeout)
    except (socket.gaierror, UnicodeError) as problem:  # the latter for a label of more than 63 characters
        raise Unavailable(
            f"cannot find the host of {node.where}: {getattr(problem, 'strerror', None) or 'no such name'}",
            "check its name or the DNS",
            node=node.name,
            cause="unknown-host",
        ) from None
    except TimeoutError:
        raise Unavailable(
            f"no answer from {node.where} within {node.connect_timeout:g} s",
            "check address and port; a firewall that drops packets looks like this",
            node=node.name,
            cause="connect-timeout",
        ) from None
    except OSError as problem:
        raise Unavailable(
            f"cannot reach {node.where}: {problem.strerror or problem}",
            "check that it runs and that host and port are right",
            node=node.name,
        ) from None
    if not node.tls:
        return Connection(sock)
    from dcmtools.network.tls import wrap_client

    try:
        return Connection(wrap_client(sock, node))
    except BaseException:
        sock.close()
        raise
