"""The command set of DIMSE messages: group 0000 in implicit VR little endian (PS3.7 6.3, 9.3, Annex E)."""

import struct
from collections.abc import Mapping
from typing import Any

from dcmtools.model.errors import ProtocolError

Command = dict[str, Any]

C_STORE_RQ, C_STORE_RSP = 0x0001, 0x8001
C_GET_RQ, C_GET_RSP = 0x0010, 0x8010
C_FIND_RQ, C_FIND_RSP = 0x0020, 0x8020
C_MOVE_RQ, C_MOVE_RSP = 0x0021, 0x8021
C_ECHO_RQ, C_ECHO_RSP = 0x0030, 0x8030
C_CANCEL_RQ = 0x0FFF
N_EVENT_REPORT_RQ, N_EVENT_REPORT_RSP = 0x0100, 0x8100
N_ACTION_RQ, N_ACTION_RSP = 0x0130, 0x8130
NO_DATA_SET, DATA_SET = 0x0101, 0x0001
MEDIUM, HIGH, LOW = 0, 1, 2

_ROWS = (
    (0x0002, "UI", "AffectedSOPClassUID"),
    (0x0003, "UI", "RequestedSOPClassUID"),
    (0x0100, "US", "CommandField"),
    (0x0110, "US", "MessageID"),
    (0x0120, "US", "MessageIDBeingRespondedTo"),
    (0x0600, "AE", "MoveDestination"),
    (0x0700, "US", "Priority"),
    (0x0800, "US", "CommandDataSetType"),
    (0x0900, "US", "Status"),
    (0x0901, "AT", "OffendingElement"),
    (0x0902, "LO", "ErrorComment"),
    (0x0903, "US", "ErrorID"),
    (0x1000, "UI", "AffectedSOPInstanceUID"),
    (0x1001, "UI", "RequestedSOPInstanceUID"),
    (0x1002, "US", "EventTypeID"),
    (0x1008, "US", "ActionTypeID"),
    (0x1020, "US", "NumberOfRemainingSuboperations"),
    (0x1021, "US", "NumberOfCompletedSuboperations"),
    (0x1022, "US", "NumberOfFailedSuboperations"),
    (0x1023, "US", "NumberOfWarningSuboperations"),
    (0x1030, "AE", "MoveOriginatorApplicationEntityTitle"),
    (0x1031, "US", "MoveOriginatorMessageID"),
)
_BY_ELEMENT = {element: (vr, keyword) for element, vr, keyword in _ROWS}
_BY_KEYWORD = {keyword: (element, vr) for element, vr, keyword in _ROWS}
_SHORT = struct.Struct("<HHIH")
_ELEMENT = struct.Struct("<HHI")
_RESPONSE = 0x8000


def encode(command: Mapping[str, Any]) -> bytes:
    """The bytes of a command set, its group length first; KeyError for a keyword that the table does not know."""
    known = sorted((*_BY_KEYWORD[keyword], value) for keyword, value in command.items())
    body = b"".join([_encode_element(element, vr, value) for element, vr, value in known])
    return _ELEMENT.pack(0, 0, 4) + struct.pack("<I", len(body)) + body


def decode(data: bytes) -> Command:
    """The command set in these bytes, by keyword; elements that we do not know are passed over.

    ProtocolError when it is none, or is a response without its Status: that must not be taken for success.
    """
    command: Command = {}
    position, end = 0, len(data)
    while position < end:
        if end - position < 8:
            raise ProtocolError("the peer sent a command set that ends within an element")
        group, element, length = _ELEMENT.unpack_from(data, position)
        if group != 0 or length > end - position - 8:
            raise ProtocolError(f"the peer sent a command set with a bad element ({group:04x},{element:04x})")
        if element in _BY_ELEMENT:
            vr, keyword = _BY_ELEMENT[element]
            command[keyword] = _decode_value(vr, data[position + 8 : position + 8 + length])
        position += 8 + length
    field = command.get("CommandField")
    if not isinstance(field, int):
        raise ProtocolError("the peer sent a command set without a Command Field")
    if field & _RESPONSE and not isinstance(command.get("Status"), int):
        raise ProtocolError("the peer sent a response without a Status", "see its log")
    return command


def has_data_set(command: Command) -> bool:
    """Whether a data set follows the command (PS3.7 E.1: any value but 0101H)."""
    kind: int = command.get("CommandDataSetType", NO_DATA_SET)
    return kind != NO_DATA_SET


def _encode_element(element: int, vr: str, value: Any) -> bytes:
    if vr == "US":
        return _SHORT.pack(0, element, 2, value)
    if vr == "AT":
        raw = b"".join(struct.pack("<HH", tag >> 16, tag & 0xFFFF) for tag in value)
    else:
        raw = str(value).encode("ascii", "replace")
        raw += (b"\0" if vr == "UI" else b" ") * (len(raw) % 2)
    return _ELEMENT.pack(0, element, len(raw)) + raw


def _decode_value(vr: str, raw: bytes) -> Any:
    if vr == "US":
        return int.from_bytes(raw[:2], "little") if len(raw) >= 2 else None
    if vr == "AT":
        pairs = struct.iter_unpack("<HH", raw[: len(raw) // 4 * 4])
        return [group << 16 | element for group, element in pairs]
    return raw.decode("ascii", "replace").strip(" \0")
