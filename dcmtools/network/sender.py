"""One association to a node for C-STORE, kept open from file to file and opened again when it must be (PS3.4 B.2).

The next file is read while the peer answers for the last one. What the network loses is sent again, from the first
instance that was not answered for; what the peer refuses is not.
"""

import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dcmtools.disk.part10 import Meta
from dcmtools.disk.values import whole_pydicom
from dcmtools.model.errors import BadData, DcmtoolsError, ProtocolError, TryLater, Unavailable
from dcmtools.model.node import Local, Node
from dcmtools.model.record import NOT_TRIED, Record
from dcmtools.model.uids import EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN, TRANSFER_SYNTAXES
from dcmtools.network import command as commands
from dcmtools.network import status
from dcmtools.network.association import MAX_CONTEXTS, Association, Context, Released
from dcmtools.network.command import Command
from dcmtools.network.parcel import Change, Parcel, named, unread
from dcmtools.network.requestor import request
from dcmtools.network.upper_layer import Closed, Part, TimedOut

Pair = tuple[str, str]  # SOP class, transfer syntax
# Makes a copy of the first file under the second name, in one of these transfer syntaxes.
Transcode = Callable[[Path, Path, Sequence[str]], None]
Stop = Callable[[], bool]

# A node that is given up is left alone for so many seconds: what is to be sent to it meanwhile fails at once.
_REST = 60.0
# What counts how much towards that: no association at all, no answer in time, or any other loss, instances in a row.
_UNREACHED, _UNANSWERED, _LOST = 30, 10, 3
_GIVE_UP = 30
# JPEG 2000 lossless and RLE: for peers that take nothing uncompressed.
LOSSLESS_TARGETS = ("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.5")
LOSSY_TARGETS = (*LOSSLESS_TARGETS, "1.2.840.10008.1.2.4.91")
# Seconds before the first retry, doubled for each further one.
_PAUSE, _LONGEST_PAUSE = 1.0, 30.0
# Only after so many seconds without traffic is it asked whether the peer has closed the association meanwhile.
_IDLE = 0.5


@dataclass(frozen=True, slots=True)
class Settings:
    """How to send: DIMSE priority, how often again, and the C-MOVE that it is done for (AE title, message ID).

    `each` is whether every instance gets its record where no association can be opened at all; else that is raised.
    `change` makes the copy of a file that leaves in its place; `transcode` one in one of some transfer syntaxes, for
    a peer that does not take that of the file; `targets` are those to propose for it beside the uncompressed ones.
    """

    priority: int = commands.MEDIUM
    retries: int = 2
    origin: tuple[str, int] | None = None
    each: bool = False
    change: Change | None = None
    transcode: Transcode | None = None
    targets: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class _Outcome:
    """How one try ended: a state, or the problem that came up and whether it may pass by itself.

    `lost` is how much it counts towards giving the node up.
    """

    state: str
    status: str = ""
    reason: str = ""
    problem: DcmtoolsError | None = None
    transient: bool = False
    lost: int = 0


@dataclass(frozen=True, slots=True)
class _Ready:
    """The message of a parcel for an association, and its Message ID."""

    parcel: Parcel
    association: Association
    message_id: int
    parts: list[Part]


class Sender:
    """An association to a node, as long as it lasts, and then the next one. For one thread.

    `pairs` are the SOP classes and transfer syntaxes seen so far, which a new association proposes together.
    """

    def __init__(
        self, node: Node, local: Local, settings: Settings, pairs: Callable[[], Iterable[Pair]], stop: Stop
    ) -> None:
        self.node, self.local, self.settings = node, local, settings
        self._pairs, self._stop = pairs, stop
        self._association: Association | None = None
        self._proposed: frozenset[Pair] = frozenset()
        self._before: set[Pair] = set()
        self._used = 0.0
        self._ready: _Ready | None = None
        self._in_a_row = 0
        self._trouble: DcmtoolsError | None = None
        self._rest_until = 0.0
        self.opened = 0

    def deliver(self, parcel: Parcel, ahead: Callable[[], None]) -> Record:
        """The record of an instance after it was sent, or could not be; `ahead` is called while the peer is busy.

        Raises the DcmtoolsError when there has never been an association, unless `each` instance is to hear of it.
        """
        begun, tries = time.monotonic(), 0
        if self._trouble and begun < self._rest_until:
            return self._record(parcel, _Outcome("failed", problem=self._trouble), tries, begun)
        while True:
            tries += 1
            outcome = self._try(parcel, ahead)
            if not outcome.transient or tries > self.settings.retries or self._stop():
                break
            self._pause(tries)
        if outcome.problem and not (self.opened or self.settings.each):
            raise outcome.problem
        self._count(outcome)
        return self._record(parcel, outcome, tries, begun)

    def open(self, pair: Pair) -> Association:
        """The association, opened when there is none that was asked for this pair; DcmtoolsError when that fails."""
        association = self._association
        if association and pair in self._proposed and not self._gone(association):
            return association
        self.release()
        seen = sorted(self._pairs(), key=self._before.__contains__)
        wanted = _proposal(pair, seen, also=self.settings.targets if self.settings.transcode else ())
        self._before.update(wanted)
        self._association = self._request([(abstract, (syntax,)) for abstract, syntax in wanted])
        self._proposed = frozenset(wanted)
        self._note_use()
        self.opened += 1
        return self._association

    def prepare(self, parcel: Parcel) -> None:
        """Makes the message of the next parcel, so that nothing is left to do between two messages but to send it."""
        association, meta = self._association, parcel.item.meta
        if association is None or parcel.data is None:
            return
        if context := association.context_for(meta.sop_class, meta.syntax):
            command = self._command(association, parcel)
            parts = association.prepared(context, command, parcel.data)
            self._ready = _Ready(parcel, association, command["MessageID"], parts)

    def release(self) -> None:
        """Ends the association in order."""
        if self._association:
            self._association.release()
            self._association = None

    def _request(self, wanted: Sequence[tuple[str, Sequence[str]]]) -> Association:
        return request(self.node, self.local, wanted)

    def _note_use(self) -> None:
        self._used = time.monotonic()

    def _gone(self, association: Association) -> bool:
        """Whether the peer has ended an association that nothing was sent on for a while."""
        if time.monotonic() - self._used < _IDLE or not association.wait():
            return False
        try:
            association.receive(1.0)
        except Released:
            association.answer_release()
        except ProtocolError:
            pass
        association.abort()
        self._association = None
        return True

    def _try(self, parcel: Parcel, ahead: Callable[[], None]) -> _Outcome:
        meta = parcel.item.meta
        try:
            association = self.open((meta.sop_class, meta.syntax))
        except DcmtoolsError as problem:
            passing = isinstance(problem, TryLater) or (
                self.opened > 0 and isinstance(problem, ProtocolError | Unavailable)
            )
            return _Outcome("failed", problem=problem, transient=passing, lost=_UNREACHED)
        context = association.context_for(meta.sop_class, meta.syntax)
        try:
            if context is None:
                context = self._transcoded(association, parcel)
        except DcmtoolsError as problem:
            return _Outcome("failed", problem=problem)
        try:
            return self._told(self._exchange(association, context, parcel, ahead))
        except BadData as problem:  # a large file became shorter when a part of it was away
            self._drop()
            return _Outcome("failed", problem=problem)
        except OSError as problem:
            self._drop()
            return _Outcome("failed", problem=unread(problem, parcel.asked))
        except ProtocolError as problem:
            self._drop()
            lost = _UNANSWERED if isinstance(problem, TimedOut) else _LOST
            return _Outcome("failed", problem=problem, transient=True, lost=lost)

    def _transcoded(self, association: Association, parcel: Parcel) -> Context:
        """The context in which a parcel can leave after it was transcoded; DcmtoolsError when there is none."""
        meta = parcel.item.meta
        taken = [one.syntax for one in association.contexts.values() if one.abstract == meta.sop_class]
        if not (self.settings.transcode and taken):
            raise _not_accepted(association, meta)
        transcode = self.settings.transcode
        parcel.replace(lambda source, copy: transcode(source, copy, taken))
        if context := association.context_for(meta.sop_class, parcel.item.meta.syntax):
            return context
        raise _not_accepted(association, parcel.item.meta)

    def _exchange(
        self, association: Association, context: Context, parcel: Parcel, ahead: Callable[[], None]
    ) -> Command:
        """The response to a C-STORE of the file."""
        ready, self._ready = self._ready, None
        if ready and ready.parcel is parcel and ready.association is association:
            message_id = ready.message_id
            association.send_prepared(ready.parts)
        else:
            command = self._command(association, parcel)
            message_id = command["MessageID"]
            if parcel.data is None:
                association.send_file(context, command, parcel.file, parcel.item.meta.offset, parcel.length)
            else:
                association.send(context, command, parcel.data)
        ahead()
        try:
            message = association.receive()
        except Released:
            association.answer_release()
            raise Closed(f"{self.node.where} released the association instead of answering", "try again") from None
        answer = message.command
        if message.field != commands.C_STORE_RSP or answer.get("MessageIDBeingRespondedTo") != message_id:
            raise ProtocolError(f"{self.node.where} answered something else than the C-STORE", "see its log")
        self._note_use()
        return answer

    def _command(self, association: Association, parcel: Parcel) -> Command:
        """The C-STORE-RQ of a parcel (PS3.7 9.1.1)."""
        command: Command = {
            "AffectedSOPClassUID": parcel.item.meta.sop_class,
            "AffectedSOPInstanceUID": parcel.item.meta.sop_instance,
            "CommandField": commands.C_STORE_RQ,
            "MessageID": association.next_message_id(),
            "Priority": self.settings.priority,
        }
        if self.settings.origin:
            title, number = self.settings.origin
            command |= {"MoveOriginatorApplicationEntityTitle": title, "MoveOriginatorMessageID": number}
        return command

    def _told(self, answer: Command) -> _Outcome:
        """What a response says (PS3.4 B.2.3)."""
        value = int(answer["Status"])
        if value == status.SUCCESS:
            return _Outcome("sent", status.code(value))
        if status.is_warning(value):
            said = f"{self.node.where} answered {status.told(answer, 'C-STORE')}"
            return _Outcome("warning", status.code(value), said)
        problem = status.failure(answer, "C-STORE", self.node.where)
        return _Outcome("failed", status.code(value), problem=problem, transient=status.is_transient(value))

    def _drop(self) -> None:
        if self._association:
            self._association.abort()
            self._association = None

    def _pause(self, tries: int) -> None:
        """Waits for what may pass: longer each time, and not in step with others."""
        longest = min(_PAUSE * 2 ** (tries - 1), _LONGEST_PAUSE)
        until = time.monotonic() + random.SystemRandom().uniform(longest / 2, longest)
        while not self._stop() and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, 0.1))

    def _count(self, outcome: _Outcome) -> None:
        """Gives the node a rest when it cannot be reached any more, or loses one instance after the other."""
        self._in_a_row = self._in_a_row + outcome.lost if outcome.lost else 0
        if outcome.problem and self._in_a_row >= _GIVE_UP:
            kind, reason = type(outcome.problem), f"{NOT_TRIED}{outcome.problem.reason}"
            self._trouble = kind(reason, outcome.problem.advice, cause=outcome.problem.cause)
            self._rest_until = time.monotonic() + _REST

    def _record(self, parcel: Parcel, outcome: _Outcome, tries: int, begun: float) -> Record:
        """The item's record with what became of it."""
        record = {**named(parcel.asked), "state": outcome.state, "node": self.node.name}
        if different := parcel.sent_as:
            record["sent_as"] = different
        if self._association:
            record["association"] = self._association.id
        record |= {"tries": tries, "ms": round((time.monotonic() - begun) * 1000, 1)}
        if outcome.status:
            record["status"] = outcome.status
        if outcome.reason:
            record["reason"] = outcome.reason
        if problem := outcome.problem:
            record |= {"cause": problem.cause, "reason": problem.reason, "exit_code": problem.exit_code}
            record |= {"advice": problem.advice} if problem.advice else {}
        return record


def _proposal(pair: Pair, seen: Iterable[Pair], also: Sequence[str]) -> list[Pair]:
    """What a new association proposes: this pair, those seen, and what is uncompressed where there is room for it.

    Implicit little endian is the default of every class (PS3.5 10.1), and a refusal can so tell what would be taken.
    `also` are further transfer syntaxes into which we could transcode.
    """
    uncompressed = (IMPLICIT_VR_LITTLE_ENDIAN, EXPLICIT_VR_LITTLE_ENDIAN)
    wanted = dict.fromkeys([pair, *((pair[0], syntax) for syntax in uncompressed), *seen])
    for syntax in (*uncompressed, *also):
        wanted |= dict.fromkeys((abstract, syntax) for abstract in dict.fromkeys(one for one, _ in wanted))
    return list(wanted)[:MAX_CONTEXTS]


def _not_accepted(association: Association, meta: Meta) -> Unavailable:
    """What to say of a context that the peer refused: that, and what it would take."""
    whole_pydicom()
    from pydicom.uid import UID

    name, syntax = UID(meta.sop_class).name, TRANSFER_SYNTAXES.get(meta.syntax, meta.syntax)
    taken = [one.syntax for one in association.contexts.values() if one.abstract == meta.sop_class]
    if not taken:
        return Unavailable(f"{association.where} does not take {name}", "ask its administrator", cause="not-accepted")
    words = " or ".join(TRANSFER_SYNTAXES.get(one, one) for one in dict.fromkeys(taken))
    return Unavailable(
        f"{association.where} does not take {name} as {syntax}, but as {words}",
        "let it be transcoded (--transcode lossless), or ask its administrator",
        cause="not-accepted",
    )
