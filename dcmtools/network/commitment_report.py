"""Taking the report of storage commitment, on whichever association it comes (PS3.4 J.3.3, PS3.7 10.1.1)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from types import MappingProxyType

from dcmtools.disk.values import quiet, whole_pydicom
from dcmtools.model.errors import BadData, DcmtoolsError
from dcmtools.model.record import Record, event
from dcmtools.model.uids import EXPLICIT_VR_BIG_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN
from dcmtools.network import command as commands
from dcmtools.network import status
from dcmtools.network.association import Association, Message

_LONGEST = 16 << 20
_PROCESSING_FAILURE, _NO_ROOM = 0x0110, 0x0213
_EVENT = "commitment-report"
# Failure Reason (PS3.3 C.14.1.1).
REASONS: Mapping[int, str] = MappingProxyType(
    {
        0x0110: "processing failure",
        0x0112: "it has no such instance",
        0x0119: "it has the instance under another SOP class",
        0x0122: "it does not take on this SOP class",
        0x0131: "the transaction was known already",
        0x0213: "it has no room for it",
    }
)
Results = Mapping[str, int]  # SOP Instance UID -> Failure Reason, 0 when it is committed


@dataclass(frozen=True, slots=True)
class Report:
    """What a node says of the instances that it was asked to commit."""

    transaction: str
    results: Results

    def record(self, node: str) -> Record:
        """The event that tells of it."""
        good = [{"ReferencedSOPInstanceUID": uid} for uid, reason in self.results.items() if not reason]
        bad = [
            {"ReferencedSOPInstanceUID": uid, "FailureReason": f"{code:04X}", **_words(code)}
            for uid, code in self.results.items()
            if code
        ]
        keys = {"node": node, "TransactionUID": self.transaction, "ReferencedSOPSequence": good}
        return event(_EVENT, **keys, **({"FailedSOPSequence": bad} if bad else {}))


def results_of(record: Record) -> dict[str, int]:
    """What the event of a report says of each instance."""
    good = {str(one["ReferencedSOPInstanceUID"]): 0 for one in record.get("ReferencedSOPSequence", ())}
    bad = record.get("FailedSOPSequence", ())
    return good | {str(one["ReferencedSOPInstanceUID"]): int(one["FailureReason"], 16) for one in bad}


def take(association: Association, message: Message, keep: Callable[[Report], None]) -> DcmtoolsError | None:
    """Takes a report and has it kept; then says that it has come, so that the node forgets it, or that it has not.

    Returns why it could not be kept, if so it is.
    """
    data = association.read_data(_LONGEST) if message.has_data else b""
    problem, code = None, status.SUCCESS
    try:
        keep(_decoded(data, message.context.syntax, association.where))
    except DcmtoolsError as one:
        problem, code = one, _PROCESSING_FAILURE if isinstance(one, BadData) else _NO_ROOM
    kept = ("AffectedSOPClassUID", "AffectedSOPInstanceUID", "EventTypeID")
    rsp = {key: message.command[key] for key in kept if message.command.get(key)}
    rsp |= {"CommandField": commands.N_EVENT_REPORT_RSP, "Status": code}
    association.send(message.context, {**rsp, "MessageIDBeingRespondedTo": message.command.get("MessageID") or 0})
    return problem


def _decoded(data: bytes, syntax: str, where: str) -> Report:
    """The report in these bytes; BadData when it cannot be read."""
    whole_pydicom()
    from pydicom.filereader import read_dataset

    try:
        with quiet():
            found = read_dataset(BytesIO(data), syntax == IMPLICIT_VR_LITTLE_ENDIAN, syntax != EXPLICIT_VR_BIG_ENDIAN)
            results = {str(one.ReferencedSOPInstanceUID): 0 for one in found.get("ReferencedSOPSequence") or ()}
            for one in found.get("FailedSOPSequence") or ():
                results[str(one.ReferencedSOPInstanceUID)] = int(one.get("FailureReason") or _PROCESSING_FAILURE)
            return Report(str(found.TransactionUID), results)
    except Exception as problem:
        reason = f"{where} sent a report of storage commitment that cannot be read"
        raise BadData(reason, "see its log", cause="unreadable") from problem


def _words(code: int) -> dict[str, str]:
    return {"reason": REASONS[code]} if code in REASONS else {}
