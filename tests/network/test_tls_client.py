"""TLS as a client: with DCMTK's storescp, which verifies us, and which we verify (PS3.15 B.12)."""

import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from dcmtools.model.errors import DcmtoolsError, ProtocolError, Refused
from dcmtools.model.node import Local, Node
from dcmtools.network.echo import echo_one
from dcmtools.network.second_stack import SecondSender
from dcmtools.network.sender import Sender
from dcmtools.network.store import store
from tests.builders import write_instance, write_series
from tests.network.storing import answering, data_set, files, node
from tests.network.test_store import records_of, states, success
from tests.peers.processes import StartStorescp

LOCAL = Local(ae_title="SENDER")


@dataclass(frozen=True)
class Identity:
    """A key and a certificate that vouches for itself."""

    key: Path
    certificate: Path


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Identity]:
    """A function that makes an identity for a host, the same for the same host."""
    folder = tmp_path_factory.mktemp("tls")

    def make(host: str) -> Identity:
        found = Identity(folder / f"{host}.key", folder / f"{host}.pem")
        if not found.key.exists():
            name = "IP" if host[0].isdigit() else "DNS"
            words = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={host}"]
            words += ["-addext", f"subjectAltName={name}:{host}", "-keyout", str(found.key)]
            subprocess.run(["openssl", *words, "-out", str(found.certificate)], check=True, capture_output=True)
            found.key.chmod(0o600)
        return found

    return make


Make = Callable[[str], Identity]


def secure(port: int, trusted: Identity, own: Identity | None = None) -> Node:
    keys = {"tls_cert": str(own.certificate), "tls_key": str(own.key)} if own else {}
    return node(port, tls=True, tls_ca=str(trusted.certificate), **keys)


@pytest.mark.parametrize("sender", [Sender, SecondSender])
def test_every_byte_arrives_through_tls(
    storescp: StartStorescp, identity: Make, tmp_path: Path, sender: type[Sender]
) -> None:
    server, client = identity("127.0.0.1"), identity("client")
    peer = storescp("+tls", str(server.key), str(server.certificate), "+cf", str(client.certificate))
    sent = [*write_series(tmp_path / "in", 3), write_instance(tmp_path / "in" / "large.dcm", 2, side=1801)]

    records = list(store(records_of(*sent), secure(peer.port, server, client), LOCAL, sender=sender))

    assert states(records) == ["sent"] * 4
    assert sorted(map(data_set, sent)) == sorted(data_set(path) for path in files(peer.folder))


def test_a_certificate_that_nobody_vouches_for_is_refused_unless_that_is_allowed(
    storescp: StartStorescp, identity: Make
) -> None:
    server, other = identity("127.0.0.1"), identity("client")
    peer = storescp("+tls", str(server.key), str(server.certificate), "-ic")
    wrong = secure(peer.port, other)

    with pytest.raises(Refused, match="is not to be trusted") as caught:
        echo_one(wrong, LOCAL)

    assert caught.value.cause == "tls-verification"
    assert echo_one(replace(wrong, tls_verify=False), LOCAL)["ok"] is True


def test_a_certificate_of_another_host_is_refused(storescp: StartStorescp, identity: Make) -> None:
    server = identity("elsewhere.example")
    peer = storescp("+tls", str(server.key), str(server.certificate), "-ic")

    with pytest.raises(Refused, match="is not to be trusted"):
        echo_one(secure(peer.port, server), LOCAL)


def test_a_node_that_wants_our_certificate_is_said_to(storescp: StartStorescp, identity: Make) -> None:
    server, client = identity("127.0.0.1"), identity("client")
    peer = storescp("+tls", str(server.key), str(server.certificate), "+cf", str(client.certificate))

    with pytest.raises(DcmtoolsError) as caught:
        echo_one(secure(peer.port, server), LOCAL)

    assert caught.value.cause == "client-certificate"
    assert "client certificate" in str(caught.value)
    assert "tls_cert" in caught.value.advice


def test_a_node_that_speaks_no_tls_is_said_to(identity: Make) -> None:
    with answering(success) as (acceptor, _), pytest.raises(ProtocolError, match="TLS handshake") as caught:
        echo_one(secure(acceptor.port, identity("127.0.0.1")), LOCAL)

    assert "tls = no" in caught.value.advice or "may not speak TLS" in caught.value.advice


def test_a_node_that_speaks_only_tls_is_said_to(storescp: StartStorescp, identity: Make) -> None:
    server = identity("127.0.0.1")
    peer = storescp("+tls", str(server.key), str(server.certificate), "-ic")

    with pytest.raises(ProtocolError):
        echo_one(node(peer.port), LOCAL)
