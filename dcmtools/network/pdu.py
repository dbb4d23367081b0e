"""The protocol data units of the upper layer, as values and as bytes (PS3.8 9.3, PS3.7 Annex D).

Pure functions: no socket here. Every length is checked against what is there; what is wrong raises ProtocolError.
"""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NoReturn

from dcmtools.model.errors import ProtocolError
from dcmtools.model.uids import APPLICATION_CONTEXT

ASSOCIATE_RQ, ASSOCIATE_AC, ASSOCIATE_RJ, P_DATA, RELEASE_RQ, RELEASE_RP, ABORT = range(1, 8)
HEADER = struct.Struct(">BxI")
PDV_HEADER = struct.Struct(">IBB")
_WINDOW = struct.Struct(">HH")
RELEASE_REQUEST = HEADER.pack(RELEASE_RQ, 4) + bytes(4)
RELEASE_REPLY = HEADER.pack(RELEASE_RP, 4) + bytes(4)

COMMAND_FLAG, LAST_FLAG = 0x01, 0x02
# Results of a proposed presentation context (PS3.8 9.3.3.2).
ACCEPTED, USER_REJECTED, NO_REASON, ABSTRACT_SYNTAX_UNKNOWN, TRANSFER_SYNTAXES_UNKNOWN = range(5)
# One operation at a time each way: so it is where nobody speaks of it.
SYNCHRONOUS = (1, 1)
_NO_ROLES: Mapping[str, tuple[bool, bool]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Proposal:
    """One presentation context as the requestor proposes it: odd id, abstract syntax, transfer syntaxes in order."""

    id: int
    abstract: str
    syntaxes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """The acceptor's answer to one proposal; `syntax` counts only when `result` is ACCEPTED."""

    id: int
    result: int
    syntax: str = ""


@dataclass(frozen=True, slots=True)
class Negotiation:
    """What A-ASSOCIATE-RQ and -AC share. `max_pdu` is what its sender is ready to receive, 0 for no limit.

    `roles` holds (SCU, SCP) by abstract syntax (PS3.7 D.3.3.4). `window` says how many operations the requestor may
    have invoked, and how many it performs, before the first is answered, 0 for no limit (PS3.7 D.3.3.3).
    """

    called: str
    calling: str
    max_pdu: int = 0
    implementation_class: str = ""
    implementation_version: str = ""
    roles: Mapping[str, tuple[bool, bool]] = field(default_factory=lambda: _NO_ROLES)
    window: tuple[int, int] = SYNCHRONOUS
    application_context: str = APPLICATION_CONTEXT
    identity_requested: bool = False


@dataclass(frozen=True, slots=True)
class Request(Negotiation):
    """A-ASSOCIATE-RQ."""

    contexts: tuple[Proposal, ...] = ()


@dataclass(frozen=True, slots=True)
class Accept(Negotiation):
    """A-ASSOCIATE-AC."""

    contexts: tuple[Answer, ...] = ()


def encode_request(request: Request) -> bytes:
    """The bytes of an A-ASSOCIATE-RQ PDU."""
    contexts = (
        _item(
            0x20,
            bytes((one.id, 0, 0, 0)) + _uid(0x30, one.abstract) + b"".join(_uid(0x40, uid) for uid in one.syntaxes),
        )
        for one in request.contexts
    )
    return _associate(ASSOCIATE_RQ, request, b"".join(contexts))


def encode_accept(accept: Accept) -> bytes:
    """The bytes of an A-ASSOCIATE-AC PDU."""
    contexts = (_item(0x21, bytes((one.id, 0, one.result, 0)) + _uid(0x40, one.syntax)) for one in accept.contexts)
    return _associate(ASSOCIATE_AC, accept, b"".join(contexts))


def encode_reject(result: int, source: int, reason: int) -> bytes:
    """The bytes of an A-ASSOCIATE-RJ PDU."""
    return HEADER.pack(ASSOCIATE_RJ, 4) + bytes((0, result, source, reason))


def encode_abort(source: int, reason: int) -> bytes:
    """The bytes of an A-ABORT PDU; source 0 is the service user, 2 the service provider."""
    return HEADER.pack(ABORT, 4) + bytes((0, 0, source, reason))


def decode_request(body: bytes) -> Request:
    """The A-ASSOCIATE-RQ with this body (all after the six bytes of PDU header)."""
    _check_head(body)
    items = list(_items(body[68:]))
    contexts = tuple(_proposal(value) for kind, value in items if kind == 0x20)
    if len({one.id for one in contexts}) != len(contexts):
        _malformed("two presentation contexts with one id")
    return Request(**_common(body, items), contexts=contexts)


def decode_accept(body: bytes) -> Accept:
    """The A-ASSOCIATE-AC with this body."""
    _check_head(body)
    items = list(_items(body[68:]))
    return Accept(**_common(body, items), contexts=tuple(_answer(value) for kind, value in items if kind == 0x21))


def presentation_data(body: memoryview) -> Iterator[tuple[int, int, memoryview]]:
    """The presentation data values of a P-DATA-TF: context id, flags, fragment (PS3.8 9.3.5, Annex E)."""
    position, end = 0, len(body)
    while position < end:
        if end - position < 6:
            _malformed("a presentation data value without room for its header")
        length, context, flags = PDV_HEADER.unpack_from(body, position)
        if length < 2 or length > end - position - 4:
            _malformed(f"a presentation data value of {length} bytes where {end - position - 4} are left")
        yield context, flags, body[position + 6 : position + 4 + length]
        position += 4 + length


def _associate(kind: int, common: Negotiation, contexts: bytes) -> bytes:
    user = _item(0x51, struct.pack(">I", common.max_pdu)) + _uid(0x52, common.implementation_class)
    if common.window != SYNCHRONOUS:
        user += _item(0x53, _WINDOW.pack(*common.window))
    user += b"".join(
        _item(0x54, struct.pack(">H", len(uid)) + uid.encode("ascii") + bytes((scu, scp)))
        for uid, (scu, scp) in common.roles.items()
    )
    user += _item(0x55, common.implementation_version.encode("ascii"))
    head = struct.pack(">HH", 1, 0) + _title(common.called) + _title(common.calling) + bytes(32)
    body = head + _uid(0x10, common.application_context) + contexts + _item(0x50, user)
    return HEADER.pack(kind, len(body)) + body


def _title(text: str) -> bytes:
    return text.encode("ascii").ljust(16)[:16]


def _item(kind: int, value: bytes) -> bytes:
    return struct.pack(">BxH", kind, len(value)) + value


def _uid(kind: int, uid: str) -> bytes:
    return _item(kind, uid.encode("ascii"))


def _check_head(body: bytes) -> None:
    if len(body) < 68:
        _malformed(f"an association PDU of {len(body)} bytes")


def _items(data: bytes) -> Iterator[tuple[int, bytes]]:
    position = 0
    while position < len(data):
        if len(data) - position < 4:
            _malformed("an item without room for its header")
        kind, length = struct.unpack_from(">BxH", data, position)
        value = data[position + 4 : position + 4 + length]
        if len(value) < length:
            _malformed(f"an item of {length} bytes where {len(value)} are left")
        yield kind, value
        position += 4 + length


def _common(body: bytes, items: list[tuple[int, bytes]]) -> dict[str, Any]:
    user = [one for kind, value in items if kind == 0x50 for one in _items(value)]
    found = dict(user)
    maximum = found.get(0x51, bytes(4))
    if len(maximum) != 4:
        _malformed("a maximum length item that is not four bytes long")
    window = found.get(0x53, _WINDOW.pack(*SYNCHRONOUS))
    if len(window) != _WINDOW.size:
        _malformed("an asynchronous operations window item that is not four bytes long")
    return {
        "called": _text(body[4:20]),
        "calling": _text(body[20:36]),
        "max_pdu": int.from_bytes(maximum, "big"),
        "implementation_class": _text(found.get(0x52, b"")),
        "implementation_version": _text(found.get(0x55, b"")),
        "window": _WINDOW.unpack(window),
        "roles": MappingProxyType(dict(_role(value) for kind, value in user if kind == 0x54)),
        "application_context": _text(dict(items).get(0x10, b"")),
        "identity_requested": 0x58 in found,
    }


def _proposal(value: bytes) -> Proposal:
    if len(value) < 4:
        _malformed("a presentation context without an id")
    items = list(_items(value[4:]))
    abstract = [one for kind, one in items if kind == 0x30]
    syntaxes = tuple(_text(one) for kind, one in items if kind == 0x40)
    if len(abstract) != 1 or not syntaxes:
        _malformed("a presentation context without exactly one abstract and at least one transfer syntax")
    return Proposal(value[0], _text(abstract[0]), syntaxes)


def _answer(value: bytes) -> Answer:
    if len(value) < 4:
        _malformed("a presentation context answer without an id")
    syntax = [_text(one) for kind, one in _items(value[4:]) if kind == 0x40] if value[2] == ACCEPTED else []
    if value[2] == ACCEPTED and len(syntax) != 1:
        _malformed("an accepted presentation context without exactly one transfer syntax")
    return Answer(value[0], value[2], syntax[0] if syntax else "")


def _role(value: bytes) -> tuple[str, tuple[bool, bool]]:
    length = int.from_bytes(value[:2], "big")
    if len(value) != length + 4:
        _malformed("a role selection item whose lengths disagree")
    return _text(value[2 : 2 + length]), (bool(value[-2]), bool(value[-1]))


def _text(raw: bytes) -> str:
    """Text of the ACSE: ASCII without padding spaces and NULs; what is not printable ASCII is made visible."""
    text = raw.strip(b" \0").decode("ascii", "backslashreplace")
    return "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in text)


def _malformed(what: str) -> NoReturn:
    raise ProtocolError(f"the peer sent {what}", "its DICOM implementation is broken or this is no DICOM port")
