"""TLS for associations: 1.2 or later, verified unless the node says otherwise (PS3.15 B.12, BCP 195)."""

import contextlib
import socket
import ssl
from pathlib import Path
from typing import Any

from dcmtools.disk.trust import check_keys_of, check_private
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


def server_context(cert: Path, key: Path | None = None, ca: Path | None = None) -> ssl.SSLContext:
    """Our side of TLS where we accept; with a `ca` only peers whose certificate it signed come in.

    Without `key` the key stands in `cert`. Refused when others can read the key, ConfigurationError when a file cannot
    be used.
    """
    check_private(key or cert)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.sslsocket_class = _Accepted
    try:
        context.load_cert_chain(cert, key, password=_no_password)
        if ca:
            context.load_verify_locations(cafile=ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except (ssl.SSLError, OSError, ValueError) as problem:
        reason = getattr(problem, "strerror", None) or problem
        raise ConfigurationError(
            f"the TLS files {', '.join(str(one) for one in (cert, key, ca) if one)} cannot be used: {reason}",
            "check --tls-cert, --tls-key and --tls-ca",
        ) from None
    return context


class _Accepted(ssl.SSLSocket):
    """A socket whose peer may have gone already: then it is the handshake that fails, with the socket in our hands."""

    def getpeername(self) -> Any:
        """The address, None when the peer has gone."""
        with contextlib.suppress(OSError):
            return super().getpeername()


def _no_password() -> str:
    """The password of a key that has one: nobody is there to be asked for it."""
    raise ValueError("the key is encrypted")
