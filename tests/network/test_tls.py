"""TLS where we accept: with DCMTK's clients and our own, mutual or not, and what is wrong with its files."""

import os
import shutil
from pathlib import Path

import pytest

from dcmtools.model.errors import ConfigurationError, DcmtoolsError, Refused
from dcmtools.model.node import Local
from dcmtools.network.echo import verify
from dcmtools.network.requestor import request
from dcmtools.network.tls import server_context
from tests.builders import write_series
from tests.conftest import StartDcmtools
from tests.network.certificates import Certificates
from tests.network.storing import MR, client, files, listening, node
from tests.peers.processes import RunTool


def test_storescu_and_ours_send_through_mutual_tls_and_others_do_not(
    tmp_path: Path, certificates: Certificates, start_dcmtools: StartDcmtools, tool: RunTool
) -> None:
    server, own, ca = certificates.server, certificates.client, certificates.ca
    words = ("--tls-cert", server, "--tls-key", certificates.key(server), "--tls-ca", ca)
    process = start_dcmtools("listen", "--port", 0, "--archive", "archive", *words)
    assert process.stdout
    port = process.stdout.readline().split('"port":')[1].split(",")[0]
    sent = write_series(tmp_path / "in", 3)
    mutual = ("+tls", certificates.key(own), own, "+cf", ca)

    assert tool("storescu", *mutual, "127.0.0.1", port, *sent).returncode == 0
    assert tool("storescu", "--anonymous-tls", "+cf", ca, "127.0.0.1", port, sent[0]).returncode != 0
    assert tool("storescu", "127.0.0.1", port, sent[0]).returncode != 0

    assert len([path for path in files(tmp_path / "archive") if path.suffix == ".dcm"]) == 3
    process.terminate()
    assert process.wait(30) == 0


def test_without_a_ca_anybody_may_come_in_through_tls(
    tmp_path: Path, certificates: Certificates, tool: RunTool
) -> None:
    context = server_context(certificates.server, certificates.key(certificates.server))
    with listening(tmp_path / "archive", tls=context) as (listener, _):
        done = tool("echoscu", "--anonymous-tls", "+cf", certificates.ca, "127.0.0.1", listener.port)
        assert done.returncode == 0, done.stderr
        with pytest.raises(DcmtoolsError), client(listener.port):
            pass


def test_our_own_client_names_what_is_wrong(tmp_path: Path, certificates: Certificates) -> None:
    context = server_context(certificates.server, certificates.key(certificates.server))
    wanted = [(MR, ("1.2.840.10008.1.2.1",)), ("1.2.840.10008.1.1", ("1.2.840.10008.1.2",))]
    with listening(tmp_path, tls=context) as (listener, _):
        with request(node(listener.port, tls=True, tls_ca=str(certificates.ca)), Local(), wanted) as association:
            verify(association)
        stranger = node(listener.port, tls=True, tls_ca=str(certificates.stranger))
        with pytest.raises(Refused, match="not to be trusted"):
            request(stranger, Local(), wanted)


def test_a_key_that_others_can_read_is_refused(tmp_path: Path, certificates: Certificates) -> None:
    key = tmp_path / "open.key"
    shutil.copy(certificates.key(certificates.server), key)
    key.chmod(0o644)

    with pytest.raises(Refused, match="chmod 600"):
        server_context(certificates.server, key)


@pytest.mark.parametrize("wrong", ["missing", "no key", "another key", "no CA"])
def test_files_that_cannot_be_used_are_named(tmp_path: Path, certificates: Certificates, wrong: str) -> None:
    rubbish = tmp_path / "rubbish.pem"
    rubbish.write_text("rubbish")
    os.chmod(rubbish, 0o600)
    server, key = certificates.server, certificates.key(certificates.server)
    files_ = {
        "missing": (tmp_path / "no.pem", None, None),
        "no key": (server, rubbish, None),
        "another key": (server, certificates.key(certificates.client), None),
        "no CA": (server, key, rubbish),
    }[wrong]

    with pytest.raises(ConfigurationError, match=r"\.(pem|key)"):
        server_context(*files_)
