"""DIMSE statuses in words, and what kind of failure each is (PS3.7 Annex C, PS3.4 B.2.3, C.4).

The words come from pynetdicom's tables, which are loaded only when there is something to say.
"""

from dcmtools.model.errors import DcmtoolsError, ProtocolError, Refused, TryLater, Unavailable
from dcmtools.network.command import Command

SUCCESS = 0x0000
PENDING = frozenset({0xFF00, 0xFF01})
CANCEL = 0xFE00
DUPLICATE_SOP_INSTANCE = 0x0111
SOP_CLASS_NOT_SUPPORTED = 0x0122
UNRECOGNIZED_OPERATION = 0x0211
OUT_OF_RESOURCES = 0xA700
UNABLE_TO_PERFORM = 0xA702
MOVE_DESTINATION_UNKNOWN = 0xA801
IDENTIFIER_MISMATCH = 0xA900
SUBOPERATIONS_FAILED = 0xB000
CANNOT_UNDERSTAND = 0xC000


def is_warning(status: int) -> bool:
    """Whether a status says done, but (PS3.7 C.3)."""
    return status in {0x0001, 0x0107, 0x0116} or 0xB000 <= status <= 0xBFFF


def is_transient(status: int) -> bool:
    """Whether trying the same again later may succeed: the peer is out of resources."""
    return 0xA700 <= status <= 0xA7FF or status == 0x0213


def code(status: int) -> str:
    """The status as records hold it, four hex digits."""
    return f"{status:04X}"


def words(status: int, service: str) -> str:
    """A status in the words of the standard, for a service: C-ECHO, C-STORE, C-FIND, C-MOVE or C-GET."""
    from pynetdicom import status as tables

    table = {
        "C-ECHO": tables.VERIFICATION_SERVICE_CLASS_STATUS,
        "C-STORE": tables.STORAGE_SERVICE_CLASS_STATUS,
        "C-FIND": tables.QR_FIND_SERVICE_CLASS_STATUS,
        "C-MOVE": tables.QR_MOVE_SERVICE_CLASS_STATUS,
        "C-GET": tables.QR_GET_SERVICE_CLASS_STATUS,
    }.get(service, tables.GENERAL_STATUS)
    kind, text = table.get(status) or tables.GENERAL_STATUS.get(status, ("Unknown", ""))
    return f"{kind}: {text}" if text else kind


def told(command: Command, service: str) -> str:
    """What a response says of its failure: status, its words, and the peer's own comment."""
    status = int(command["Status"])
    comment = "".join(char if char.isprintable() else " " for char in str(command.get("ErrorComment") or ""))
    return f"{service} status {code(status)} ({words(status, service)})" + (f": {comment}" if comment else "")


def failure(command: Command, service: str, where: str) -> DcmtoolsError:
    """The error that a response with a failure status means."""
    status = int(command["Status"])
    said = f"{where} answered {told(command, service)}"
    if is_transient(status):
        return TryLater(said, "try again later", cause="out-of-resources", status=code(status))
    if status == 0x0124:
        return Refused(said, "ask its administrator", cause="not-authorized", status=code(status))
    if status in {0x0122, 0x0211}:
        return Unavailable(said, "it does not offer this service", cause="not-offered", status=code(status))
    return ProtocolError(said, "see the log of the peer", cause="status", status=code(status))
