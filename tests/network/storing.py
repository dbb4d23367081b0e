"""Both ends of C-STORE for tests: a listener in this process, a client that may lie, an SCP that does as it is told."""

import os
import socket
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset

from dcmtools.disk.archive import Archive
from dcmtools.disk.header import read_meta
from dcmtools.model.errors import DcmtoolsError
from dcmtools.model.node import Local, Node
from dcmtools.model.record import Record
from dcmtools.model.uids import EXPLICIT_VR_LITTLE_ENDIAN, VERIFICATION
from dcmtools.network import command
from dcmtools.network.acceptor import Acceptor, Policy
from dcmtools.network.association import Association, Message
from dcmtools.network.command import Command
from dcmtools.network.door import Port
from dcmtools.network.listen import Listener, Options
from dcmtools.network.requestor import request
from tests.builders import make_instance, uid

MR = "1.2.840.10008.5.1.4.1.1.4"
CT = "1.2.840.10008.5.1.4.1.1.2"
INSTANCE = uid(1, 1, 1, 1)
Answer = Callable[[Association, Message], int | None]


def node(port: int, **keys: Any) -> Node:
    return Node(**{"name": "PEER", "ae_title": "PEER", "host": "127.0.0.1", "port": port, **keys})


@contextmanager
def listening(folder: Path, **keys: Any) -> Iterator[tuple[Listener, list[Record]]]:
    """A listener on an archive, and the records that come out of it."""
    records: list[Record] = []
    services, options = keys.pop("services", {}), Options(**keys)
    local = Local(ae_title="PEER", port=0, bind="127.0.0.1")
    with Listener(Archive(folder), local, records.append, options=options, services=services) as listener:
        yield listener, records
        listener.drain(5)


@contextmanager
def client(port: int, *contexts: tuple[str, Sequence[str]]) -> Iterator[Association]:
    """An association to a port, for MR in explicit little endian unless told otherwise."""
    wanted = contexts or ((MR, (EXPLICIT_VR_LITTLE_ENDIAN,)), (VERIFICATION, (EXPLICIT_VR_LITTLE_ENDIAN,)))
    with request(node(port), Local(ae_title="SENDER"), wanted) as association:
        yield association


def encoded(*numbers: int, **keys: Any) -> bytes:
    """The bytes of a small data set in explicit little endian; its values may be hostile."""
    out = DicomBytesIO()
    out.is_little_endian, out.is_implicit_VR = True, False
    with warnings.catch_warnings(action="ignore"):
        write_dataset(out, make_instance(*numbers, **keys))
    return out.getvalue()


def send(association: Association, data: bytes | None, instance: str = INSTANCE, **keys: Any) -> Command:
    """Sends a C-STORE with these bytes and this SOP Instance UID; the response."""
    return ask(association, {"AffectedSOPClassUID": MR, "AffectedSOPInstanceUID": instance, **keys}, data)


def ask(association: Association, keys: Command, data: bytes | None = None) -> Command:
    """Sends a request, C-STORE unless told otherwise, in the first context; the response."""
    message_id = association.next_message_id()
    rq = {"CommandField": command.C_STORE_RQ, "MessageID": message_id, "Priority": command.MEDIUM, **keys}
    association.send(next(iter(association.contexts.values())), rq, data)
    answer = association.receive().command
    assert answer["MessageIDBeingRespondedTo"] == message_id
    return answer


def begin(association: Association, data: bytes, instance: str = INSTANCE) -> None:
    """Sends a C-STORE whose data set begins with these bytes, and not its end."""
    rq: Command = {"CommandField": command.C_STORE_RQ, "MessageID": 1, "Priority": command.MEDIUM}
    rq |= {"AffectedSOPClassUID": MR, "AffectedSOPInstanceUID": instance}
    head = association._message(association.contexts[1], rq, None, follows=True)
    association.connection.write([*head, *association._fragments(1, memoryview(data), last=False)], 5)


def finish(association: Association, data: bytes) -> Command:
    """Sends the rest of what was begun; the response."""
    association.connection.write(association._fragments(1, memoryview(data)), 5)
    return association.receive().command


@contextmanager
def answering(answer: Answer, **policy: Any) -> Iterator[tuple[Acceptor, list[tuple[str, bytes]]]]:
    """An SCP that answers each C-STORE with the status that `answer` returns, None for no answer.

    Beside it the SOP Instance UID and the data set of each object that came.
    """
    came: list[tuple[str, bytes]] = []

    def serve(association: Association) -> None:
        while True:
            message = association.receive(idle=20)
            came.append((message.command["AffectedSOPInstanceUID"], association.read_data(1 << 30)))
            if (code := answer(association, message)) is not None:
                rsp = {"CommandField": command.C_STORE_RSP, "Status": code}
                rsp |= {"MessageIDBeingRespondedTo": message.command["MessageID"]}
                association.send(message.context, rsp)

    def choose(_abstract: str, syntaxes: tuple[str, ...]) -> str:
        return syntaxes[0] if syntaxes else ""

    def ignore(_problem: DcmtoolsError) -> None:
        pass

    acceptor = Acceptor(Port("127.0.0.1", 0), Policy(**{"ae_title": "PEER", "choose": choose, **policy}), serve, ignore)
    acceptor.start()
    try:
        yield acceptor, came
    finally:
        acceptor.drain(0.5)


def data_set(path: Path) -> bytes:
    """The bytes of a file's data set."""
    return path.read_bytes()[read_meta(path).offset :]


def files(folder: Path) -> list[Path]:
    """All files below a folder but for the index, locks and temporaries, in order."""
    found = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("index."))
    return sorted(path for path in found if ".dcmtools-" not in str(path))


def left_behind(folder: Path) -> list[Path]:
    """The temporaries of a receiver that hold something; an empty one is ready for the next object."""
    found = (path for path in (folder / ".dcmtools-incoming").glob("*/*") if path.name != ".lock")
    return [path for path in found if path.stat().st_size]


def takes_connections(port: int) -> bool:
    """Whether somebody listens on a port of 127.0.0.1."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except ConnectionError:
        return False
    return True


def resident(pid: int = 0) -> int:
    """The peak of a process's memory in bytes."""
    status = Path(f"/proc/{pid or os.getpid()}/status").read_text()
    return next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmHWM"))
