"""Peers that misbehave, each with a name: what they send, and that they then hold on to what they have.

An attack gets a `Peer` and does its worst. One that sends an object returns the status of the answer, 0 for success.
"""

import contextlib
import random
import socket
import ssl
import struct
import time
import warnings
import zlib
from collections.abc import Callable, Sequence
from typing import Any

from dcmtools.model.errors import DcmtoolsError
from dcmtools.model.uids import (
    DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    VERIFICATION,
)
from dcmtools.network import command, pdu
from tests.builders import encode_element, uid
from tests.network.storing import CT, MR, encoded

INSTANCE = uid(6, 6, 6, 6)
GOOD = encoded(6, 6, 6, 6)


class Peer:
    """What an attack works with; its sockets stay open until `let_go`."""

    def __init__(self, port: int, context: ssl.SSLContext | None = None) -> None:
        self.port, self.context = port, context
        self.held: list[socket.socket] = []

    def connect(self, data: bytes = b"") -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", self.port), timeout=10)
        self.held.append(sock)
        with contextlib.suppress(OSError):  # it hung up on the first part already
            sock.sendall(data)
        return sock

    def shake_hands(self, context: ssl.SSLContext) -> ssl.SSLSocket:
        secured = context.wrap_socket(self.connect(), server_hostname="localhost")
        self.held.append(secured)
        return secured

    def associate(self, syntax: str = EXPLICIT_VR_LITTLE_ENDIAN, abstract: str = MR) -> socket.socket:
        """A socket on which an association is open: context 1 for storage, 3 for verification."""
        sock = self.connect()
        contexts = (pdu.Proposal(1, abstract, (syntax,)), pdu.Proposal(3, VERIFICATION, (IMPLICIT_VR_LITTLE_ENDIAN,)))
        sock.sendall(request(contexts=contexts))
        kind, _ = read(sock)
        assert kind == pdu.ASSOCIATE_AC
        return sock

    def let_go(self) -> None:
        for sock in self.held:
            sock.close()


Attack = Callable[[Peer], int | None]
ATTACKS: dict[str, Attack] = {}


def request(*, called: str = "PEER", calling: str = "BAD", **keys: Any) -> bytes:
    contexts = keys.pop("contexts", (pdu.Proposal(1, MR, (EXPLICIT_VR_LITTLE_ENDIAN,)),))
    return pdu.encode_request(pdu.Request(called=called, calling=calling, contexts=contexts, **keys))


def exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = sock.recv(size - len(data))
        if not piece:
            raise ConnectionError
        data += piece
    return data


def read(sock: socket.socket) -> tuple[int, bytes]:
    kind, length = pdu.HEADER.unpack(exactly(sock, 6))
    return kind, exactly(sock, length)


def unit(kind: int, body: bytes, length: int | None = None) -> bytes:
    return pdu.HEADER.pack(kind, len(body) if length is None else length) + body


def value(flags: int, data: bytes, context: int = 1, length: int | None = None) -> bytes:
    return struct.pack(">IBB", len(data) + 2 if length is None else length, context, flags) + data


def p_data(flags: int, data: bytes, context: int = 1) -> bytes:
    return unit(pdu.P_DATA, value(flags, data, context))


def store_rq(instance: str = INSTANCE, sop_class: str = MR, **keys: Any) -> bytes:
    rq: dict[str, Any] = {"CommandField": command.C_STORE_RQ, "MessageID": 1, "Priority": 0, "CommandDataSetType": 1}
    rq |= {"AffectedSOPClassUID": sop_class, "AffectedSOPInstanceUID": instance, **keys}
    return command.encode({key: one for key, one in rq.items() if one is not None})


def pieces(data: bytes, size: int = 16000) -> bytes:
    """A data set in PDUs."""
    starts = range(0, max(len(data), 1), size)
    return b"".join(p_data(2 if at + size >= len(data) else 0, data[at : at + size]) for at in starts)


def status_of(sock: socket.socket) -> int | None:
    """The status of the answer, None when there is none."""
    try:
        kind, body = read(sock)
    except OSError:
        return None
    return int(command.decode(body[6:])["Status"]) if kind == pdu.P_DATA else None


def named(name: str, attack: Attack) -> None:
    assert name not in ATTACKS
    ATTACKS[name] = attack


# Before there is an association


def _raw(data: bytes) -> Attack:
    def attack(peer: Peer) -> None:
        peer.connect(data)

    return attack


NOISE = random.Random(1)
for name, data in {
    "http": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "tls to a plain port": bytes.fromhex("16030100c8010000c40303") + NOISE.randbytes(200),
    "ssh": b"SSH-2.0-OpenSSH_9.2\r\n",
    "smtp": b"EHLO x\r\n",
    "line feeds": b"\r\n" * 1000,
    "zeros": bytes(100_000),
    "ones": b"\xff" * 100_000,
    "noise": NOISE.randbytes(100_000),
    "one byte": b"\1",
    "half a head": b"\1\0\0",
    "a head alone": unit(1, b"", 200),
    "no length": unit(1, b""),
    "four gigabytes": unit(1, bytes(1000), 0xFFFFFFFF),
    "just too long": unit(1, bytes(1000), (1 << 20) + 1),
    "a flood of four gigabytes": unit(1, bytes(300_000), 0xFFFFFFFF),
    "half a request": request()[:100],
    "a request but for its last byte": request()[:-1],
}.items():
    named(f"at the door: {name}", _raw(data))
for kind in (0, 2, 3, 4, 5, 6, 7, 8, 0x42, 0xFF):
    named(f"at the door: PDU of type {kind:02x}", _raw(unit(kind, bytes(16))))


# Requests that are none


def _item(kind: int, body: bytes, length: int | None = None) -> bytes:
    return struct.pack(">BxH", kind, len(body) if length is None else length) + body


def _rq(*items: bytes, version: int = 1, called: bytes = b"PEER", calling: bytes = b"BAD") -> bytes:
    head = struct.pack(">HH", version, 0) + called.ljust(16)[:16] + calling.ljust(16)[:16] + bytes(32)
    return unit(1, head + b"".join(items))


CONTEXT_NAME = _item(0x10, b"1.2.840.10008.3.1.1.1")
ABSTRACT, SYNTAX = _item(0x30, MR.encode()), _item(0x40, EXPLICIT_VR_LITTLE_ENDIAN.encode())
USER = _item(0x50, _item(0x51, struct.pack(">I", 16384)))


def _context(*items: bytes, number: int = 1) -> bytes:
    return _item(0x20, bytes((number, 0, 0, 0)) + b"".join(items))


for name, data in {
    "a body that is too short": unit(1, bytes(40)),
    "version 0": _rq(CONTEXT_NAME, _context(ABSTRACT, SYNTAX), USER, version=0),
    "no items": _rq(),
    "no application context": _rq(_context(ABSTRACT, SYNTAX), USER),
    "another application context": _rq(_item(0x10, b"1.2.3"), _context(ABSTRACT, SYNTAX), USER),
    "an endless application context": _rq(_item(0x10, b"1." * 30000), USER),
    "an item that overruns": _rq(CONTEXT_NAME, _item(0x20, b"\1\0\0\0", 60000)),
    "an item without room for its head": _rq(CONTEXT_NAME, b"\x20\0"),
    "an item in an item that overruns": _rq(CONTEXT_NAME, _context(_item(0x30, b"1.2", 500)), USER),
    "a context without abstract syntax": _rq(CONTEXT_NAME, _context(SYNTAX), USER),
    "a context without transfer syntax": _rq(CONTEXT_NAME, _context(ABSTRACT), USER),
    "a context with two abstract syntaxes": _rq(CONTEXT_NAME, _context(ABSTRACT, ABSTRACT, SYNTAX), USER),
    "a context without anything": _rq(CONTEXT_NAME, _item(0x20, b""), USER),
    "two contexts with one id": _rq(CONTEXT_NAME, _context(ABSTRACT, SYNTAX), _context(ABSTRACT, SYNTAX), USER),
    "no contexts": _rq(CONTEXT_NAME, USER),
    "an even context id": _rq(CONTEXT_NAME, _context(ABSTRACT, SYNTAX, number=2), USER),
    "a context id of 0": _rq(CONTEXT_NAME, _context(ABSTRACT, SYNTAX, number=0), USER),
    "128 contexts": _rq(CONTEXT_NAME, *(_context(ABSTRACT, SYNTAX, number=n) for n in range(1, 256, 2)), USER),
    "2000 contexts": _rq(CONTEXT_NAME, *(_context(ABSTRACT, SYNTAX, number=n % 256) for n in range(2000)), USER),
    "2000 transfer syntaxes": _rq(CONTEXT_NAME, _context(ABSTRACT, *[SYNTAX] * 2000), USER),
    "an abstract syntax without end": _rq(CONTEXT_NAME, _context(_item(0x30, b"9" * 60000), SYNTAX), USER),
    "an abstract syntax that is no text": _rq(CONTEXT_NAME, _context(_item(0x30, b"\xff\0\x1b[2J"), SYNTAX), USER),
    "a transfer syntax that is no text": _rq(CONTEXT_NAME, _context(ABSTRACT, _item(0x40, bytes(64))), USER),
    "no user information": _rq(CONTEXT_NAME, _context(ABSTRACT, SYNTAX)),
    "a maximum length of three bytes": _rq(CONTEXT_NAME, _context(ABSTRACT, SYNTAX), _item(0x50, _item(0x51, b"abc"))),
    "a role whose lengths disagree": _rq(CONTEXT_NAME, _item(0x50, _item(0x54, b"\xff\xff1.2\1\1"))),
    "a user identity of noise": _rq(CONTEXT_NAME, _context(ABSTRACT, SYNTAX), _item(0x50, _item(0x58, b"\xff" * 999))),
    "30000 unknown user items": _rq(CONTEXT_NAME, *[_item(0x50, _item(0x99, b"") * 10000)] * 3),
    "unknown items": _rq(CONTEXT_NAME, _item(0x77, bytes(500)), _context(ABSTRACT, SYNTAX), USER),
}.items():
    named(f"request: {name}", _raw(data))
for name, title in {
    "of spaces": b"                ",
    "of zeros": bytes(16),
    "with line feeds": b"A\r\nB",
    "with terminal escapes": b"\x1b[2J\x1b]0;x\7",
    "that is a path": b"../../etc/passwd",
    "that is not ASCII": "ÄÖÜ\u202e".encode(),
}.items():
    named(f"request: an AE title {name}", _raw(_rq(CONTEXT_NAME, _context(ABSTRACT, SYNTAX), USER, calling=title)))
for size in (1, 6, 7, 8, 9):
    named(
        f"request: ready for PDUs of {size} bytes",
        lambda peer, size=size: small_pdu(peer, size),  # type: ignore[misc]
    )


def small_pdu(peer: Peer, size: int) -> None:
    sock = peer.connect(request(max_pdu=size))
    with contextlib.suppress(OSError):
        read(sock)
        sock.sendall(p_data(3, store_rq()) + pieces(GOOD[:-2]))


# In an association


def _said(*data: bytes) -> Attack:
    def attack(peer: Peer) -> None:
        sock = peer.associate()
        with contextlib.suppress(OSError):
            for one in data:
                sock.sendall(one)

    return attack


ECHO = command.encode(
    {"AffectedSOPClassUID": VERIFICATION, "CommandField": 0x30, "MessageID": 1, "CommandDataSetType": 0x101}
)
for name, said in {
    "a second request": (request(),),
    "an acceptance": (unit(2, bytes(68)),),
    "a rejection": (unit(3, bytes(4)),),
    "an unknown PDU": (unit(0x42, bytes(4)),),
    "a reply to no release": (pdu.RELEASE_REPLY,),
    "two releases at once": (pdu.RELEASE_REQUEST * 2,),
    "a release that is too long": (unit(5, bytes(900)),),
    "a release of four gigabytes": (unit(5, bytes(9), 0xFFFFFFFF),),
    "an abort": (pdu.encode_abort(0, 0),),
    "an abort of one byte": (unit(7, b"\0"),),
    "words after an abort": (pdu.encode_abort(0, 0) + p_data(3, store_rq()),),
    "no value in a P-DATA": (unit(4, b""),),
    "a thousand empty P-DATA": (unit(4, b"") * 1000,),
    "a value of no length": (unit(4, value(3, b"", length=0)),),
    "a value of one byte": (unit(4, value(3, b"", length=1)),),
    "a value that overruns": (unit(4, value(3, b"abc", length=500)),),
    "a value without room for its head": (unit(4, b"\0\0"),),
    "a value of four gigabytes": (unit(4, value(3, b"abc", length=0xFFFFFFFF)),),
    "a PDU above the maximum": (unit(4, bytes(200_000)),),
    "a PDU of four gigabytes": (unit(4, bytes(1000), 0xFFFFFFFF),),
    "a context that was not agreed on": (p_data(3, store_rq(), 77),),
    "context 0": (p_data(3, store_rq(), 0),),
    "data before a command": (p_data(2, GOOD),),
    "flags that nobody knows": (p_data(0xFF, store_rq()),),
    "a command without end": (p_data(1, bytes(1000)) * 100,),
    "a command of empty pieces": (p_data(1, b"") * 5000,),
    "a command in two contexts": (p_data(1, store_rq()[:20]) + p_data(3, store_rq()[20:], 3),),
    "a command of nothing": (p_data(3, b""),),
    "a command of noise": (p_data(3, NOISE.randbytes(300)),),
    "a command in another group": (p_data(3, struct.pack("<HHI", 8, 0, 4) + bytes(4)),),
    "a command whose element overruns": (p_data(3, struct.pack("<HHI", 0, 0x100, 500) + b"\1\0"),),
    "a command that is cut": (p_data(3, store_rq()[:-3]),),
    "a command without a field": (p_data(3, command.encode({"MessageID": 1})),),
    "a command without an id": (p_data(3, store_rq(MessageID=None)) + pieces(GOOD[:-2]),),
    "a command without UIDs": (p_data(3, command.encode({"CommandField": 1, "CommandDataSetType": 1})) + pieces(GOOD),),
    "a response to nothing": (p_data(3, command.encode({"CommandField": 0x8001, "Status": 0})),),
    "a response without a status": (p_data(3, command.encode({"CommandField": 0x8001})),),
    "an operation that nobody knows": (p_data(3, command.encode({"CommandField": 0x0666, "MessageID": 1})),),
    "a cancel of nothing": (p_data(3, command.encode({"CommandField": 0xFFF})) * 50,),
    "a query that is not offered": (p_data(3, command.encode({"CommandField": 0x20, "MessageID": 1})),),
    "a store where only echo was agreed on": (p_data(3, store_rq(), 3) + p_data(2, GOOD, 3),),
    "an echo with data": (p_data(3, ECHO, 3) + p_data(2, GOOD, 3),),
    "500 echoes at once, unread": (p_data(3, ECHO, 3) * 500,),
    "a command amid a data set": (p_data(3, store_rq()) + p_data(0, GOOD[:100]) + p_data(3, ECHO, 3),),
    "a data set in another context": (p_data(3, store_rq()) + p_data(2, GOOD, 3),),
    "an object and then http": (p_data(3, store_rq()) + p_data(0, GOOD[:100]) + b"GET / HTTP/1.0\r\n\r\n",),
}.items():
    named(f"association: {name}", _said(*said))


# Vanishing


def _close(sock: socket.socket) -> None:
    sock.close()


def _reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def _finish(sock: socket.socket) -> None:
    sock.shutdown(socket.SHUT_WR)


def _abort(sock: socket.socket) -> None:
    sock.sendall(pdu.encode_abort(0, 0))


PLACES = {
    "between messages": b"",
    "within a command": p_data(1, store_rq()[:30]),
    "before the data set": p_data(3, store_rq()),
    "within the data set": p_data(3, store_rq()) + p_data(0, GOOD[:200]),
    "within a PDU": p_data(3, store_rq()) + p_data(2, GOOD)[:300],
    "before the answer": p_data(3, store_rq(uid(6, 6, 6, 7))) + pieces(GOOD),
}
WAYS = {"closes": _close, "resets": _reset, "shuts its side": _finish, "aborts": _abort}


def _vanish(said: bytes, way: Callable[[socket.socket], None]) -> Attack:
    def attack(peer: Peer) -> None:
        sock = peer.associate()
        sock.sendall(said)
        way(sock)

    return attack


for place, before in PLACES.items():
    for manner, way in WAYS.items():
        named(f"vanishing: it {manner} {place}", _vanish(before, way))


# Holding on


def _many(count: int, data: bytes) -> Attack:
    def attack(peer: Peer) -> None:
        for _ in range(count):
            peer.connect(data)

    return attack


def _associations(count: int, said: bytes = b"") -> Attack:
    def attack(peer: Peer) -> None:
        for _ in range(count):
            peer.associate().sendall(said)

    return attack


def _drip(data: bytes) -> Attack:
    def attack(peer: Peer) -> None:
        sock = peer.associate()
        with contextlib.suppress(OSError):
            for at in range(60):
                sock.sendall(data[at : at + 1])
                time.sleep(0.002)

    return attack


def _hit_and_run(count: int, way: Callable[[socket.socket], None]) -> Attack:
    def attack(peer: Peer) -> None:
        for _ in range(count):
            way(peer.connect())

    return attack


named("holding: 100 silent connections", _many(100, b""))
named("holding: 400 silent connections, more than there is room for", _many(400, b""))
named("holding: 100 half requests", _many(100, request()[:50]))
named("holding: 30 idle associations", _associations(30))
named("holding: 30 associations within a command", _associations(30, p_data(1, store_rq()[:30])))
named("holding: 30 associations within a data set", _associations(30, p_data(3, store_rq()) + p_data(0, GOOD[:200])))
named("holding: a command byte by byte", _drip(p_data(3, store_rq())))
named("holding: a data set byte by byte", _drip(p_data(3, store_rq())[:10]))
named("running: 200 connections that close", _hit_and_run(200, _close))
named("running: 200 connections that reset", _hit_and_run(200, _reset))


# Objects that must not be acknowledged


def _object(data: bytes, syntax: str = EXPLICIT_VR_LITTLE_ENDIAN, size: int = 16000, **keys: Any) -> Attack:
    def attack(peer: Peer) -> int | None:
        sock = peer.associate(syntax)
        with contextlib.suppress(OSError):
            sock.sendall(p_data(3, store_rq(**keys)) + pieces(data, size))
        return status_of(sock)

    return attack


def _deep(levels: int) -> bytes:
    head = struct.pack("<HH2sHI", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF) + struct.pack(
        "<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF
    )
    tail = struct.pack("<HHIHHI", 0xFFFE, 0xE00D, 0, 0xFFFE, 0xE0DD, 0)
    return head * levels + tail * levels


def _deflated(data: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


HALF = len(GOOD) // 2 // 2 * 2
LIE = encode_element(0x00091010, "OB", b"abcd", 0xFFFFFFF0)
LONG = encode_element(0x00200013, "IS", b"1 ", 60000)
for name, bad in {
    "cut after four bytes": _object(GOOD[:4]),
    "cut in the middle": _object(GOOD[:HALF]),
    "without its last two bytes": _object(GOOD[:-2]),
    "of nothing": _object(b""),
    "of noise": _object(NOISE.randbytes(5000)),
    "of zeros": _object(bytes(5000)),
    "of text": _object(b"Hello, world. " * 100),
    "with a length of four gigabytes": _object(GOOD + LIE),
    "with a length beyond its end": _object(GOOD + LONG),
    "in pieces of one byte, and cut": _object(GOOD[:-2], size=1),
    "nested 100000 deep": _object(_deep(100_000) + GOOD),
    "nested 65 deep": _object(_deep(66) + GOOD),
    "that begins with meta information": _object(encode_element(0x00020010, "UI", b"1.2\0") + GOOD),
    "that is a file": _object(bytes(128) + b"DICM" + GOOD),
    "that is implicit where explicit was agreed on": _object(
        struct.pack("<HHI", 8, 0x16, 26) + MR.encode() + bytes(40)
    ),
    "with a deflate bomb": _object(_deflated(bytes(200 << 20)), DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN),
    "with noise for deflate": _object(NOISE.randbytes(3000), DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN),
    "with deflate that is cut": _object(_deflated(GOOD)[:-40], DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN),
    "of another instance": _object(GOOD, instance=uid(6, 6, 6, 5)),
    "of another class": _object(GOOD, sop_class=CT),
    "without a study": _object(encoded(6, 6, 6, 6, StudyInstanceUID=None)),
    "without a series": _object(encoded(6, 6, 6, 6, SeriesInstanceUID=None)),
    "without an instance": _object(encoded(6, 6, 6, 6, SOPInstanceUID=None)),
}.items():
    named(f"object: {name}", bad)
HOSTILE: Sequence[str] = (
    "../../../tmp/x",
    "/etc/passwd",
    "..",
    ".",
    "1" * 65,
    "1.2\n3",
    "1.2;id",
    "CON",
    "-1",
    "1..2",
    "~root",
    "%2e%2e%2f",
)
for hostile in HOSTILE:
    named(
        f"object: SOP Instance UID {hostile!r}",
        _object(encoded(6, 6, 6, 6, SOPInstanceUID=hostile), instance=hostile),
    )
    named(f"object: Study Instance UID {hostile!r}", _object(encoded(6, 6, 6, 6, StudyInstanceUID=hostile)))


# TLS

TLS_ATTACKS: dict[str, Attack] = {}


def _trusting(version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_2) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.maximum_version = version if version < ssl.TLSVersion.TLSv1_2 else ssl.TLSVersion.MAXIMUM_SUPPORTED
    return context


def _refused_handshake(context: Callable[[Peer], ssl.SSLContext]) -> Attack:
    def attack(peer: Peer) -> None:
        with contextlib.suppress(OSError, DcmtoolsError):
            sock = peer.shake_hands(context(peer))
            sock.sendall(request())
            assert read(sock)[0] != pdu.ASSOCIATE_AC, "it came in without a certificate that counts"

    return attack


def _within(*said: bytes, way: Callable[[socket.socket], None] | None = None) -> Attack:
    def attack(peer: Peer) -> None:
        assert peer.context
        sock = peer.shake_hands(peer.context)
        with contextlib.suppress(OSError):
            for one in said:
                sock.sendall(one)
        if way:
            way(sock)

    return attack


def _cut_hello(peer: Peer) -> None:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        _trusting().wrap_bio(incoming, outgoing).do_handshake()
    peer.connect(outgoing.read()[:60])


def _old(peer: Peer) -> None:
    with warnings.catch_warnings(action="ignore"):  # who speaks it is warned of it
        context = _trusting(ssl.TLSVersion.TLSv1_1)
        context.minimum_version = ssl.TLSVersion.TLSv1
    context.set_ciphers("ALL:@SECLEVEL=0")
    with contextlib.suppress(OSError):
        peer.shake_hands(context)
        raise AssertionError("TLS 1.1 was let in")


TLS_ATTACKS |= {
    "tls: a silent connection": _raw(b""),
    "tls: 100 silent connections": _many(100, b""),
    "tls: 400 silent connections": _many(400, b""),
    "tls: noise": _raw(NOISE.randbytes(2000)),
    "tls: plain DICOM": _raw(request()),
    "tls: http": _raw(b"GET / HTTP/1.0\r\n\r\n"),
    "tls: half a hello": _cut_hello,
    "tls: a record of 64 KiB": _raw(b"\x16\3\1\xff\xff" + bytes(65535)),
    "tls: an alert": _raw(b"\x15\3\3\0\2\2\x28"),
    "tls: 1.1": _old,
    "tls: no client certificate": _refused_handshake(lambda _: _trusting()),
    "tls: silence after the handshake": _within(),
    "tls: noise after the handshake": _within(NOISE.randbytes(2000)),
    "tls: half a request after the handshake": _within(request()[:80]),
    "tls: four gigabytes after the handshake": _within(unit(1, bytes(1000), 0xFFFFFFFF)),
    "tls: a reset after the handshake": _within(request(), way=_reset),
    "tls: plain bytes amid the records": _within(
        request(), way=lambda sock: socket.socket.shutdown(sock, socket.SHUT_WR)
    ),
    "tls: 100 connections that reset": _hit_and_run(100, _reset),
}
