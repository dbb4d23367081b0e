"""TLS for associations: 1.2 or later, verified unless the node says otherwise (PS3.15 B.12, BCP 195)."""

import socket
import ssl

from dcmtools.disk.trust import check_keys_of
from dcmtools.model.errors import ConfigurationError, ProtocolError, Refused
from dcmtools.model.node import Node


def wrap_client(sock: socket.socket, node: Node) -> ssl.SSLSocket:
    """The socket after a TLS handshake with the node, under its connect timeout."""
    context = client_context(node)
    sock.settimeout(node.connect_timeout)
    try:
        return context.wrap_socket(sock, server_hostname=node.host)
    except ssl.SSLCertVerificationError as problem:
        sock.close()
        raise Refused(
            f"the certificate of {node.where} is not to be trusted: {problem.verify_message}",
            "set tls_ca to the CA that signed it",
            node=node.name,
            cause="tls-verification",
        ) from None
    except TimeoutError:
        sock.close()
        raise ProtocolError(
            f"{node.where} did not finish the TLS handshake in {node.connect_timeout:g} s",
            "it may not speak TLS on this port: set tls = no",
            node=node.name,
            cause="no-answer",
        ) from None
    except (ssl.SSLError, OSError) as problem:
        sock.close()
        reason = problem.reason if isinstance(problem, ssl.SSLError) else problem.strerror
        raise ProtocolError(
            f"the TLS handshake with {node.where} failed: {reason}",
            "it may not speak TLS on this port, or want a client certificate (tls_cert, tls_key)",
            node=node.name,
            cause="tls-handshake",
        ) from None


def client_context(node: Node) -> ssl.SSLContext:
    """The client's side of TLS as the node describes it; ConfigurationError when a file of it cannot be used."""
    check_keys_of(node)
    try:
        context = ssl.create_default_context(cafile=node.tls_ca)
        if node.tls_cert:
            context.load_cert_chain(node.tls_cert, node.tls_key)
    except (ssl.SSLError, OSError) as problem:
        raise ConfigurationError(
            f"the TLS files of {node.where} cannot be used: {problem.strerror or problem}",
            "check tls_ca, tls_cert and tls_key",
            node=node.name,
        ) from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if not node.tls_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
