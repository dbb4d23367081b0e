"""The same services on pynetdicom's upper layer: a second opinion when a node and our own do not get on (DESIGN §8).

What is asked and how answers are judged is the same code; only what lies on the wire is written and read by another
program. It is slower, and holds what it receives in memory.
"""

import secrets
import time
from collections.abc import Generator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from dcmtools.model.errors import BadData, Unavailable
from dcmtools.model.node import Local, Node
from dcmtools.model.record import Level, Record
from dcmtools.model.uids import VERIFICATION
from dcmtools.network import identifier, pdu, status
from dcmtools.network.association import Aborted, Association, Context, Message, rejected
from dcmtools.network.command import Command
from dcmtools.network.echo import SYNTAXES, node_keys, timed
from dcmtools.network.levels import FIND_CONTEXTS, Levels, level_key
from dcmtools.network.parcel import Parcel
from dcmtools.network.response import Stop, never
from dcmtools.network.sender import Sender
from dcmtools.network.upper_layer import MAX_PDU, Closed

if TYPE_CHECKING:
    from pynetdicom.association import Association as Theirs

STACK = "pynetdicom"
Wanted = Sequence[tuple[str, Sequence[str]]]


class SecondAssociation(Association):
    """An association of pynetdicom's, with as much of the face of our own as the services look at."""

    def __init__(self, theirs: "Theirs", node: Node) -> None:  # there is no connection of ours below it
        self.link, self.where, self.id, self.open = theirs, node.where, secrets.token_hex(6), True
        accepted = theirs.accepted_contexts
        contexts = (
            Context(int(one.context_id or 0), str(one.abstract_syntax), str(one.transfer_syntax[0])) for one in accepted
        )
        self.contexts: Mapping[int, Context] = MappingProxyType({one.id: one for one in contexts})
        self.window = 1
        self._message_id = 0

    def wait(self, seconds: float = 0, wake: int | None = None) -> bool:
        """Whether the peer has ended the association."""
        del seconds, wake
        return not self.link.is_established

    def receive(self, seconds: float | None = None, *, idle: float | None = None) -> Message:
        """Nothing: what comes unasked is the end of the association."""
        del seconds, idle
        raise Closed(f"{self.where} ended the association", "try again")

    def release(self) -> None:
        """Ends the association in order."""
        if self.link.is_established:
            self.link.release()

    def abort(self, source: int = 0, reason: int = 0) -> None:
        """Ends the association at once."""
        del source, reason
        if self.link.is_established:
            self.link.abort()

    def answer(self, found: Any) -> Command:
        """The command of a response that pynetdicom has read; ProtocolError when there was none."""
        if "Status" not in found:
            raise Closed(f"{self.where} gave no answer, or broke off", "see its log")
        answer: Command = {"Status": int(found.Status)}
        if comment := found.get("ErrorComment"):
            answer["ErrorComment"] = str(comment)
        return answer


def request(node: Node, local: Local, wanted: Wanted) -> SecondAssociation:
    """An open association to a node on pynetdicom's upper layer; the same errors as on our own."""
    from pynetdicom import AE, evt
    from pynetdicom import _config as config

    config.STORE_SEND_CHUNKED_DATASET = True  # the bytes of the file, and not what pydicom would make of them
    config.LOG_REQUEST_IDENTIFIERS = config.LOG_RESPONSE_IDENTIFIERS = False  # which hold names of patients
    entity = AE(ae_title=node.calling_ae_title or local.ae_title)
    entity.connection_timeout, entity.acse_timeout = node.connect_timeout, node.acse_timeout
    entity.dimse_timeout = entity.network_timeout = node.dimse_timeout
    for abstract, syntaxes in wanted:
        entity.add_requested_context(abstract, list(syntaxes))
    connected: list[bool] = []
    theirs = entity.associate(
        node.host,
        node.port,
        ae_title=node.ae_title,
        max_pdu=MAX_PDU,
        tls_args=_tls(node),
        evt_handlers=[(evt.EVT_CONN_OPEN, lambda _: connected.append(True))],
    )
    if theirs.is_established:
        return SecondAssociation(theirs, node)
    if theirs.is_rejected:
        primitive = theirs.acceptor.primitive
        body = bytes((0, primitive.result, primitive.result_source, primitive.diagnostic))  # type: ignore[union-attr,arg-type]
        raise rejected(body, pdu.Request(node.ae_title, entity.ae_title), node.where)
    if not connected:
        raise Unavailable(
            f"cannot reach {node.where}", "check that it runs and that host and port are right", node=node.name
        )
    if theirs.acceptor.primitive is not None:  # it accepted, and not one context
        raise Unavailable(f"{node.where} accepts none of what was asked for", "ask its administrator", node=node.name)
    raise Aborted(f"{node.where} aborted the association request, or did not answer it", "see the log of the peer")


def echo_one(node: Node, local: Local, *, repeat: int = 1, stop: Stop = never) -> Record:
    """The record of `repeat` echoes, as `echo.echo_one` gives it."""
    begun = time.perf_counter()
    with request(node, local, [(VERIFICATION, SYNTAXES)]) as association:
        connected = (time.perf_counter() - begun) * 1000

        def verify() -> None:
            answer = association.answer(association.link.send_c_echo())
            if answer["Status"] != status.SUCCESS:
                raise status.failure(answer, "C-ECHO", node.where)

        took = timed(verify, repeat, stop)
        acceptor = association.link.acceptor
        peer = {
            "implementation_class": str(acceptor.implementation_class_uid or ""),
            "implementation_version": acceptor.implementation_version_name or "",
            "max_pdu": acceptor.maximum_length,
        }
    times = {**took, "connect_ms": round(connected, 2)}
    return {"type": "node", **node_keys(node), "ok": True, "state": "ok", **times, "peer": peer, "stack": STACK}


class SecondLevels(Levels):
    """C-FIND at one level after the other, on pynetdicom's upper layer."""

    def __init__(self, node: Node, local: Local, stop: Stop = never, *, ignore_accents: bool = False) -> None:
        self._second = request(node, local, FIND_CONTEXTS)
        super().__init__(node, local, stop, self._second, ignore_accents=ignore_accents)

    def _ask(self, level: Level, keys: Mapping[str, str]) -> Generator[Record]:
        from pynetdicom.dsutils import decode, encode

        context = self._context(level)
        implicit = context.syntax == SYNTAXES[0]
        asked = identifier.encode({**self._sent(keys), **level_key(level)}, context.syntax, self.node.charset)
        number = self._second.next_message_id()
        theirs = self._second.link
        answers = theirs.send_c_find(decode(_stream(asked), implicit, True), context.abstract, number)  # noqa: FBT003
        try:
            for found, data in answers:
                answer = self._second.answer(found)
                if answer["Status"] not in status.PENDING:
                    if answer["Status"] in {status.SUCCESS, status.CANCEL}:
                        return
                    raise status.failure(answer, "C-FIND", self.node.where)
                if self.stop():
                    break
                if data is not None:
                    yield self._decoded(encode(data, implicit, True) or b"", context.syntax)  # noqa: FBT003
        except GeneratorExit:
            self._second.abort()
            raise
        self._second.abort()


class SecondSender(Sender):
    """C-STORE to a node, on pynetdicom's upper layer; the file is read by pynetdicom, too."""

    def prepare(self, parcel: Parcel) -> None:
        """Nothing: pynetdicom makes its messages itself."""

    def _request(self, wanted: Wanted) -> Association:
        return request(self.node, self.local, wanted)

    def _write(self, association: Association, context: Context, parcel: Parcel) -> int:
        """Sends a file and waits for the answer, which is kept: pynetdicom knows no other way."""
        del context  # pynetdicom finds it by the file
        title, number = self.settings.origin or (None, None)
        second: SecondAssociation = association  # type: ignore[assignment]
        message_id = second.next_message_id()
        try:
            found = second.link.send_c_store(parcel.item.path, message_id, self.settings.priority, title, number)
        except (ValueError, AttributeError, RuntimeError) as problem:
            if not second.link.is_established:
                raise Closed(f"{self.node.where} ended the association", "try again") from None
            reason = f"pynetdicom cannot send it ({type(problem).__name__})"
            raise BadData(reason, "leave --stack out", cause="not-sent") from problem
        self._kept = message_id, second.answer(found)
        return message_id

    def _answer(self, association: Association) -> tuple[int, Command]:
        del association
        return self._kept


def _stream(data: bytes) -> Any:
    from io import BytesIO

    return BytesIO(data)


def _tls(node: Node) -> tuple[Any, str] | None:
    if not node.tls:
        return None
    from dcmtools.network.tls import client_context

    return client_context(node), node.host
