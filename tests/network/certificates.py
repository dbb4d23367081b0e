"""A CA of our own and what it signed, for tests of TLS; made by openssl once a session."""

import shutil
import subprocess
from pathlib import Path

import pytest


class Certificates:
    """A CA, a certificate of a server at 127.0.0.1 and one of a client, and one of a client that nobody knows."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ca, self.server, self.client, self.stranger = (folder / f"{name}.pem" for name in NAMES)
        self._openssl("req", "-x509", "-subj", "/CN=ca", "-keyout", self.key(self.ca), "-out", self.ca)
        self._openssl(
            "req", "-x509", "-subj", "/CN=stranger", "-keyout", self.key(self.stranger), "-out", self.stranger
        )
        for signed in (self.server, self.client):
            self._sign(signed)

    def key(self, certificate: Path) -> Path:
        """The private key of a certificate."""
        return certificate.with_suffix(".key")

    def _sign(self, certificate: Path) -> None:
        wanted, names = self.folder / "wanted.csr", self.folder / "names.cnf"
        names.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
        subject = f"/CN={certificate.stem}"
        self._openssl("req", "-subj", subject, "-keyout", self.key(certificate), "-out", wanted)
        authority = ("-CA", self.ca, "-CAkey", self.key(self.ca), "-CAcreateserial")
        self._run("x509", "-req", "-in", wanted, *authority, "-extfile", names, "-days", "2", "-out", certificate)

    def _openssl(self, *words: object) -> None:
        self._run(*words, "-newkey", "rsa:2048", "-nodes")

    def _run(self, *words: object) -> None:
        subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True)
        for key in self.folder.glob("*.key"):
            key.chmod(0o600)


NAMES = ("ca", "server", "client", "stranger")


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """The certificates; a test that asks for them fails where openssl is missing."""
    if not shutil.which("openssl"):
        pytest.fail("needs openssl; run: sudo apt-get install openssl", pytrace=False)
    return Certificates(tmp_path_factory.mktemp("certificates"))
