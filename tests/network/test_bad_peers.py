"""More than 120 kinds of misbehaving peers: none of them stops the receiver, or keeps a good peer waiting."""

import resource
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from dcmtools.disk.archive import Archive
from dcmtools.model.node import Local
from dcmtools.model.uids import EXPLICIT_VR_LITTLE_ENDIAN, VERIFICATION
from dcmtools.network.association import Timeouts
from dcmtools.network.echo import verify
from dcmtools.network.listen import Listener
from dcmtools.network.requestor import request
from dcmtools.network.tls import server_context
from tests.builders import uid
from tests.network.bad_peers import ATTACKS, HALF, TLS_ATTACKS, Peer, _refused_handshake, _trusting
from tests.network.certificates import Certificates
from tests.network.storing import MR, data_set, encoded, files, listening, node, send

# The deadlines of a bad peer are minutes away: a good one that is served has waited for none of them. It takes 10 to
# 20 ms, and at most a third of a second while any of the bad ones is there.
PATIENCE = 30.0
TIMEOUTS = Timeouts(acse=300, pdu=300, idle=300)


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Listener, Path]]:
    """One receiver for all the attacks, one after the other."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    folder = tmp_path_factory.mktemp("attacked") / "archive"
    with listening(folder, timeouts=TIMEOUTS) as (listener, _):
        yield listener, folder
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture(scope="module")
def attacked_through_tls(
    tmp_path_factory: pytest.TempPathFactory, certificates: Certificates
) -> Iterator[tuple[Listener, Path]]:
    """The same, with mutual TLS."""
    context = server_context(certificates.server, certificates.key(certificates.server), certificates.ca)
    folder = tmp_path_factory.mktemp("attacked") / "archive"
    with listening(folder, timeouts=TIMEOUTS, tls=context) as (listener, _):
        yield listener, folder


number = iter(range(1, 10_000))


def check_good_peer(listener: Listener, certificates: Certificates | None = None) -> bytes:
    """A good peer is served while the bad one holds what it has; what it sent."""
    keys = {
        "tls": True,
        "tls_ca": str(certificates.ca),
        "tls_cert": str(certificates.client),
        "tls_key": str(certificates.key(certificates.client)),
    } if certificates else {}  # fmt: skip
    peer = node(listener.port, connect_timeout=PATIENCE, acse_timeout=PATIENCE, dimse_timeout=PATIENCE, **keys)
    instance = next(number)
    sent = encoded(1, 1, 1, instance)
    wanted = [(MR, (EXPLICIT_VR_LITTLE_ENDIAN,)), (VERIFICATION, (EXPLICIT_VR_LITTLE_ENDIAN,))]
    with request(peer, Local(ae_title="GOOD"), wanted) as association:
        verify(association)
        assert send(association, sent, uid(1, 1, 1, instance))["Status"] == 0
    return sent


@pytest.mark.parametrize("name", ATTACKS)
def test_a_bad_peer_harms_nobody_and_its_objects_are_not_acknowledged(
    attacked: tuple[Listener, Path], name: str
) -> None:
    listener, folder = attacked
    peer = Peer(listener.port)
    try:
        status = ATTACKS[name](peer)
        sent = check_good_peer(listener)
    finally:
        peer.let_go()

    assert status != 0x0000
    assert sent in {data_set(path) for path in (folder / uid(1, 1)).rglob("*.dcm") if path.stat().st_mtime_ns}
    assert all(path.is_relative_to(folder) for path in files(folder.parent))


@pytest.mark.parametrize("name", TLS_ATTACKS)
def test_a_bad_peer_harms_nobody_where_tls_is_spoken(
    attacked_through_tls: tuple[Listener, Path], certificates: Certificates, name: str
) -> None:
    listener, _ = attacked_through_tls
    good = ssl.create_default_context(cafile=certificates.ca)
    good.load_cert_chain(certificates.client, certificates.key(certificates.client))
    peer = Peer(listener.port, good)
    try:
        TLS_ATTACKS[name](peer)
        check_good_peer(listener, certificates)
    finally:
        peer.let_go()


def test_a_certificate_that_our_ca_did_not_sign_does_not_come_in(
    attacked_through_tls: tuple[Listener, Path], certificates: Certificates
) -> None:
    def context(_: Peer) -> ssl.SSLContext:
        made = _trusting()
        made.load_cert_chain(certificates.stranger, certificates.key(certificates.stranger))
        return made

    peer = Peer(attacked_through_tls[0].port)
    try:
        _refused_handshake(context)(peer)
    finally:
        peer.let_go()


def test_there_are_at_least_120_of_them() -> None:
    assert len(ATTACKS) + len(TLS_ATTACKS) >= 120
    assert HALF > 100


def test_after_all_of_them_everything_acknowledged_is_there_and_nothing_is_torn(
    attacked: tuple[Listener, Path],
) -> None:
    listener, folder = attacked
    check_good_peer(listener)

    indexed = {record["SOPInstanceUID"]: Path(record["path"]) for record in Archive(folder).index.instances()}
    named_so = [path for path in files(folder) if path.suffix == ".dcm" and "quarantine" not in path.parts]

    assert set(named_so) == set(indexed.values())
    for path in named_so:
        if path.is_relative_to(folder / uid(1, 1)):
            assert data_set(path) == encoded(1, 1, 1, int(path.stem.rpartition(".")[2]))
    assert threading.active_count() < 500
    socket.create_connection(("127.0.0.1", listener.port)).close()
