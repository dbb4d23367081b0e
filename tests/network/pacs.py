"""PACS for tests: how to fill them, what they are called, and one of our own that can be taught to lie."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dcmtools.disk.archive import Archive
from dcmtools.disk.header import read_header
from dcmtools.model.errors import DcmtoolsError
from dcmtools.model.node import Local, Node
from dcmtools.model.record import Record
from dcmtools.network.acceptor import Acceptor, Policy
from dcmtools.network.association import Association, Message
from dcmtools.network.door import Port
from dcmtools.network.listen import Listener
from dcmtools.network.query_retrieve import QueryRetrieve
from tests.builders import write_instance
from tests.peers.processes import Peer, RunTool

# (patient, study of it, series in it) -> what is different about it; three instances each.
SERIES: dict[tuple[int, int, int], dict[str, Any]] = {
    (1, 1, 1): {"PatientName": "Müller^Jörg", "ReferringPhysicianName": "Weiß^Anna"},
    (1, 1, 2): {"PatientName": "Müller^Jörg", "ReferringPhysicianName": "Weiß^Anna"},
    (1, 2, 1): {"PatientName": "Müller^Jörg", "ReferringPhysicianName": "House^Gregory"},
    (1, 2, 2): {"PatientName": "Müller^Jörg", "ReferringPhysicianName": "House^Gregory", "Modality": "CT"},
    (2, 3, 1): {"PatientName": "Wang^XiaoDong=王^小东", "StudyDescription": "Brain", "StationName": "MR1"},
    (3, 4, 1): {"PatientName": "DOE^JOHN", "Modality": "US", "SeriesDescription": "T1 *star*"},
}


def write_studies(folder: Path) -> Path:
    """Writes all of SERIES; returns the folder."""
    for numbers, keys in SERIES.items():
        for instance in (1, 2, 3):
            write_instance(folder / f"{'-'.join(map(str, numbers))}-{instance}.dcm", *numbers, instance, **keys)
    return folder


def fill(peer: Peer, folder: Path, tool: RunTool) -> None:
    """Sends the files in a folder to a peer."""
    sent = tool("storescu", "-aec", peer.ae_title, "127.0.0.1", peer.port, "+sd", folder)
    assert sent.returncode == 0, sent.stderr


def node_of(peer: Peer, **keys: Any) -> Node:
    return node(peer.port, ae_title=peer.ae_title, **keys)


def node(port: int, **keys: Any) -> Node:
    """A node on this machine that is called PACS here, and by its peers unless `keys` say otherwise."""
    return Node(**{"name": "PACS", "ae_title": "PACS", "host": "127.0.0.1", "port": port, **keys})


def archive_of(root: Path, files: Path) -> Archive:
    """An archive that has these files in its index, where they lie."""
    archive = Archive(root)
    root.mkdir(parents=True, exist_ok=True)
    archive.index.append([read_header(path) for path in sorted(files.rglob("*.dcm"))])
    return archive


class OurPacs:
    """A listener with query/retrieve; `commands` are the requests that came in, in their order."""

    def __init__(self, archive: Archive, destinations: Mapping[str, int]) -> None:
        self.commands = list[dict[str, Any]]()
        self.records = list[Record]()
        self.notices = list[DcmtoolsError]()
        self.local = Local("PACS", 0, "127.0.0.1")
        service = QueryRetrieve(archive.index, lambda title: _destination(title, destinations), self.local)
        noting = {field: self._noting(handler) for field, handler in service.handlers.items()}
        self.listener = Listener(archive, self.local, self.records.append, services=noting, notice=self.notices.append)

    @property
    def port(self) -> int:
        return self.listener.port

    def _noting(self, handler: Callable[[Association, Message], None]) -> Callable[[Association, Message], None]:
        def handle(association: Association, message: Message) -> None:
            self.commands.append(message.command)
            handler(association, message)

        return handle


@contextmanager
def our_pacs(archive: Archive, destinations: Mapping[str, int] | None = None) -> Iterator[OurPacs]:
    """A PACS of our own with what an archive holds."""
    pacs = OurPacs(archive, destinations or {})
    with pacs.listener:
        yield pacs


@contextmanager
def scripted(script: Callable[[Association], None], *refused: str) -> Iterator[int]:
    """The port of a PACS that does with each association what the script says, and accepts what is not refused."""

    def choose(abstract: str, syntaxes: tuple[str, ...]) -> str | None:
        return None if abstract in refused else next(iter(syntaxes), "")

    policy = Policy("PACS", choose)
    server = Acceptor(Port("127.0.0.1", 0), policy, script, lambda _: None)
    server.start()
    try:
        yield server.port
    finally:
        server.drain(0)


def _destination(title: str, destinations: Mapping[str, int]) -> Node | None:
    port = destinations.get(title)
    return Node(title, title, "127.0.0.1", port) if port else None


def in_thread(function: Callable[[], None]) -> threading.Thread:
    """A daemon thread that runs the function, started."""
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    return thread
