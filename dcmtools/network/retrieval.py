"""One C-MOVE: the request, its responses, and what the last of them means (PS3.4 C.4.2, PS3.7 9.1.4)."""

import time
from collections.abc import Mapping
from dataclasses import dataclass

from dcmtools.model.errors import DcmtoolsError, ProtocolError, Refused, Unavailable
from dcmtools.model.node import Local, Node
from dcmtools.model.uids import EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN, PATIENT_ROOT_MOVE, STUDY_ROOT_MOVE
from dcmtools.network import command, identifier, status
from dcmtools.network.association import Association, Context
from dcmtools.network.command import Command
from dcmtools.network.levels import FIND_CONTEXTS
from dcmtools.network.requestor import request
from dcmtools.network.response import response

_SYNTAXES = (EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN)
_CONTEXTS = (*FIND_CONTEXTS, (STUDY_ROOT_MOVE, _SYNTAXES), (PATIENT_ROOT_MOVE, _SYNTAXES))
# A node that says "pending" again and again and gets nowhere is given so many times its DIMSE timeout.
_STALLS = 10
# Seconds that it has to end a retrieval which was cancelled.
_PATIENCE = 10.0
_COUNTS = ("NumberOfCompletedSuboperations", "NumberOfFailedSuboperations", "NumberOfWarningSuboperations")


@dataclass(frozen=True, slots=True)
class Destination:
    """Ourselves as the node must know us to send: AE title and port."""

    ae_title: str
    port: int

    @property
    def advice(self) -> str:
        """What to have done at the node."""
        return (
            f"register AE title {self.ae_title}, this machine's address and port {self.port} at it "
            "(dcmtools nodes show local)"
        )


def open_for_moves(node: Node, local: Local) -> Association:
    """An association for C-FIND and C-MOVE; Unavailable when the node does not offer retrieval."""
    association = request(node, local, _CONTEXTS)
    try:
        _context(association)
    except Unavailable:
        association.release()
        raise
    return association


class Retrieval:
    """A C-MOVE under way, from its request to its final response."""

    def __init__(
        self, association: Association, node: Node, keys: Mapping[str, str], title: str, priority: int
    ) -> None:
        self.association, self.node = association, node
        self.answer: Command | None = None
        self._context = _context(association)
        self._request: Command = {
            "AffectedSOPClassUID": self._context.abstract,
            "CommandField": command.C_MOVE_RQ,
            "MessageID": association.next_message_id(),
            "Priority": priority,
            "MoveDestination": title,
        }
        self._heard = self._advanced = time.monotonic()
        self._most = 0
        self._cancelled: float | None = None
        association.send(self._context, self._request, identifier.encode(self._keys(keys), self._context.syntax, ""))

    def _keys(self, keys: Mapping[str, str]) -> dict[str, str]:
        """The unique keys of the level and above it; the patient's only in the patient root (PS3.4 C.4.2.2.1)."""
        level = "instance" if "SOPInstanceUID" in keys else "series" if "SeriesInstanceUID" in keys else "study"
        patient = {"PatientID"} if self._context.abstract == STUDY_ROOT_MOVE else set()
        kept = {keyword: value for keyword, value in keys.items() if keyword not in patient}
        return {**kept, "QueryRetrieveLevel": identifier.LEVEL_WORD[level]}

    def listen(self, seconds: float, wake: int) -> None:
        """Waits for a response, or for `wake`, at most that long.

        ProtocolError when the node is silent for too long, gets nowhere, or goes on although it was told to stop.
        """
        if self.association.wait(seconds, wake) and (message := response(self.association, self._request)):
            self._note(message.command)
            if int(message.command["Status"]) not in status.PENDING:
                self.answer = message.command
                return
        self._check_time()

    def advance(self) -> None:
        """Notes that something has landed."""
        self._heard = self._advanced = time.monotonic()

    def cancel(self) -> None:
        """Asks the node to stop, once; its final response is still to come."""
        if self._cancelled is None:
            self._cancelled = time.monotonic()
            message_id = self._request["MessageID"]
            cancel = {"CommandField": command.C_CANCEL_RQ, "MessageIDBeingRespondedTo": message_id}
            self.association.send(self._context, cancel)

    def _note(self, answer: Command) -> None:
        self._heard = time.monotonic()
        done = sum(int(answer.get(key) or 0) for key in _COUNTS)
        if done > self._most:
            self._most, self._advanced = done, self._heard

    def _check_time(self) -> None:
        now, patience = time.monotonic(), self.node.dimse_timeout
        if self._cancelled is not None and now - self._cancelled > _PATIENCE:
            raise ProtocolError(f"{self.node.where} goes on with a C-MOVE that was cancelled", "see its log")
        if now - self._heard > patience:
            raise ProtocolError(
                f"{self.node.where} has been silent for {patience:g} s in the middle of a C-MOVE",
                "see its log, or raise its dimse_timeout",
                cause="no-answer",
            )
        if now - self._advanced > _STALLS * patience:
            raise ProtocolError(
                f"{self.node.where} has got nowhere with a C-MOVE for {_STALLS * patience:g} s",
                "see its log",
                cause="no-progress",
            )


def sent(answer: Command) -> int | None:
    """How many instances a node says it has sent; None when it does not tell."""
    done = [answer.get(key) for key in (_COUNTS[0], _COUNTS[2])]
    return None if done == [None, None] else sum(int(one or 0) for one in done)


def not_sent(answer: Command) -> int:
    """How many instances a node says it could not send."""
    return int(answer.get(_COUNTS[1]) or 0)


def failure(answer: Command, node: Node, destination: Destination, *, came: bool) -> DcmtoolsError | None:
    """What a final response means when it is no plain success; `came` tells whether the node ever connected to us."""
    code = int(answer["Status"])
    if code in {status.SUCCESS, status.CANCEL}:
        return None
    said = f"{node.where} answered {status.told(answer, 'C-MOVE')}"
    if code == status.MOVE_DESTINATION_UNKNOWN:
        words = (f"{said}: it does not know '{destination.ae_title}'", destination.advice)
        return Refused(*words, cause="destination-unknown", status=status.code(code))
    if came or sent(answer) or not _is_about_us(code):
        return status.failure(answer, "C-MOVE", node.where)
    words = (
        f"{said}, and no connection came back to port {destination.port}",
        f"it does not know '{destination.ae_title}', or cannot reach it: {destination.advice}",
    )
    if code >= status.CANNOT_UNDERSTAND:  # Orthanc says the same of a destination that it does not know
        return Refused(*words, cause="destination-unknown", status=status.code(code))
    return Unavailable(*words, cause="no-connection", status=status.code(code))


def went_elsewhere(count: int, node: Node, destination: Destination) -> Unavailable:
    """The error of a node that says it has sent so many instances, of which none came."""
    return Unavailable(
        f"{node.where} says that it has sent {count} instances, and no connection came to port {destination.port}",
        f"it has another address for '{destination.ae_title}': {destination.advice}",
        cause="no-connection",
    )


def _is_about_us(code: int) -> bool:
    """Whether a status may mean that the node cannot send to us: DCMTK's A702, Orthanc's C000, B000 of others."""
    return code in {status.UNABLE_TO_PERFORM, status.SUBOPERATIONS_FAILED} or code >= status.CANNOT_UNDERSTAND


def _context(association: Association) -> Context:
    return association.context_for(STUDY_ROOT_MOVE) or association.require(PATIENT_ROOT_MOVE, "retrieval (C-MOVE)")
