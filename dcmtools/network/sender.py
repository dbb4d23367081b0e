"""One association to a node for C-STORE, kept open from file to file and opened again when it must be (PS3.4 B.2).

The next file is read while the peer answers for the last one. What the network loses is sent again, from the first
instance that was not answered for; what the peer refuses is not.
"""

import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dcmtools.model.errors import BadData, DcmtoolsError, ProtocolError, TryLater, Unavailable
from dcmtools.model.node import Local, Node
from dcmtools.model.record import NOT_TRIED, Record
from dcmtools.network import command as commands
from dcmtools.network import pdu, status
from dcmtools.network.association import Association, Context, Released
from dcmtools.network.command import Command
from dcmtools.network.errand import Errand, Outcome
from dcmtools.network.parcel import Change, Parcel, unread
from dcmtools.network.proposal import Pair, not_accepted, pair_of, proposal
from dcmtools.network.requestor import request
from dcmtools.network.upper_layer import Closed, Part, TimedOut

# Makes a copy of the first file under the second name, in one of these transfer syntaxes.
Transcode = Callable[[Path, Path, Sequence[str]], None]
Stop = Callable[[], bool]

# A node that is given up is left alone for so many seconds: what is to be sent to it meanwhile fails at once.
_REST = 60.0
# What counts how much towards that: no association at all, no answer in time, or any other loss, instances in a row.
_UNREACHED, _UNANSWERED, _LOST = 30, 10, 3
_GIVE_UP = 30
# Seconds before the first retry, doubled for each further one.
_PAUSE, _LONGEST_PAUSE = 1.0, 30.0
# So many instances on their way at once, and bytes of them in memory, where the node grants it (PS3.7 D.3.3.3).
_WINDOW, _IN_FLIGHT = 32, 32 << 20
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
class _Ready:
    """The message of a parcel for an association, and its Message ID."""

    parcel: Parcel
    association: Association
    message_id: int
    parts: list[Part]


class Sender:
    """An association to a node, as long as it lasts, and then the next one. For one thread.

    Whoever has one sends a parcel whenever `takes` says so, settles while it is `busy`, and asks for the records of
    what is over when there is time for that, which is while the node is busy. Where the node grants a window, several
    parcels are on their way at once (PS3.7 D.3.3.3), and are answered in any order; else it is a window of one. What
    was lost, or may pass, is sent again alone: so an instance at which the node breaks off costs nobody beside it more
    than one try.

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
        self._sent: dict[int, Errand] = {}  # by Message ID: without an answer so far
        self._again: list[Errand] = []
        self._over: list[Errand] = []
        self._alone, self._in_flight, self._due = False, 0, 0
        self._in_a_row = 0
        self._trouble: DcmtoolsError | None = None
        self._rest_until = 0.0
        self.opened = 0

    @property
    def busy(self) -> bool:
        """Whether a parcel is without its record so far."""
        return bool(self._sent or self._again)

    def takes(self, parcel: Parcel) -> bool:
        """Whether a parcel can leave now: nothing is on its way, or the window has room for one more.

        A large one waits until all before it are answered. When its file fails on the way the association must end,
        and that should cost nobody else's answer.
        """
        if not self.busy:
            return True
        association = self._association
        if self._again or self._alone or association is None or len(self._sent) >= association.window:
            return False
        small = parcel.data is not None and self._in_flight + parcel.length <= _IN_FLIGHT
        return small and pair_of(parcel) in self._proposed

    def send(self, parcel: Parcel) -> None:
        """Sends a parcel, which is closed when it is done.

        Raises the DcmtoolsError when there has never been an association, unless `each` instance is to hear of it.
        """
        self._send(Errand(parcel, time.monotonic()))

    def settle(self) -> None:
        """Waits for an answer, and takes those that came with it; when none is due, tries the next one again."""
        if (association := self._association) and self._sent:
            self._take(association)
            while self._sent and association.holds_more:
                self._take(association)
        elif self._again:
            self._pause()
            again = self._again.pop(0)
            if self._stop():
                self._finish(again, again.outcome)
            else:
                self._send(again)

    def prepare(self, parcel: Parcel) -> None:
        """Makes the message of the next parcel, so that nothing is left to do between two messages but to send it."""
        association, meta = self._association, parcel.item.meta
        if association is None or parcel.data is None or (self._ready and self._ready.parcel is parcel):
            return
        if context := association.context_for(meta.sop_class, meta.syntax):
            command = self._command(association, parcel)
            parts = association.prepared(context, command, parcel.data)
            self._ready = _Ready(parcel, association, command["MessageID"], parts)

    def records(self) -> list[tuple[int, Record]]:
        """The number and the record of each item that is over since this was last asked; their files are closed."""
        over, self._over = self._over, []
        for one in over:
            one.parcel.close()
        return [(one.parcel.item.number, one.record(self.node.name)) for one in over]

    def close(self) -> None:
        """Gives up what is on its way, and closes its files."""
        for one in (*self._sent.values(), *self._again):
            one.parcel.close()
        self._sent, self._again = {}, []

    def open(self, pair: Pair) -> Association:
        """The association, opened when there is none that was asked for this pair; DcmtoolsError when that fails."""
        association = self._association
        if association and pair in self._proposed and (self._sent or not self._gone(association)):
            return association
        self.release()
        seen = sorted(self._pairs(), key=self._before.__contains__)
        wanted = proposal(pair, seen, also=self.settings.targets if self.settings.transcode else ())
        self._before.update(wanted)
        self._association = self._request([(abstract, (syntax,)) for abstract, syntax in wanted])
        self._proposed = frozenset(wanted)
        self._note_use()
        self.opened += 1
        return self._association

    def release(self) -> None:
        """Ends the association in order."""
        if self._association:
            self._association.release()
            self._association = None

    def _request(self, wanted: Sequence[tuple[str, Sequence[str]]]) -> Association:
        # Who is not to try again loses one instance with an association, and not all that are on their way.
        window = (_WINDOW, 1) if self.settings.retries else pdu.SYNCHRONOUS
        return request(self.node, self.local, wanted, window=window)

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

    def _send(self, one: Errand) -> None:
        """Sends a parcel, for the first time or once more; what goes wrong at once is settled at once."""
        if self._trouble and time.monotonic() < self._rest_until:
            self._note(one, Outcome("failed", problem=self._trouble))
            return
        one.tries += 1
        self._alone = one.tries > 1
        try:
            association = self.open(pair_of(one.parcel))
        except DcmtoolsError as problem:
            passing = isinstance(problem, TryLater) or (
                self.opened > 0 and isinstance(problem, ProtocolError | Unavailable)
            )
            self._judge(one, Outcome("failed", problem=problem, transient=passing, lost=_UNREACHED))
            return
        try:
            context = self._context(association, one.parcel)
        except DcmtoolsError as problem:
            self._judge(one, Outcome("failed", problem=problem))
            return
        self._give(association, context, one)

    def _give(self, association: Association, context: Context, one: Errand) -> None:
        """Writes the message of a parcel; from then on it is on its way."""
        try:
            message_id = self._write(association, context, one.parcel)
        except BadData as problem:  # a large file became shorter when a part of it was away
            self._break_off(one, problem)
        except OSError as problem:
            self._break_off(one, unread(problem, one.parcel.asked))
        except ProtocolError as problem:
            while self._sent and association.open and association.wait():  # it may have answered before it broke off
                self._take(association)
            self._lose(problem, one)
        else:
            self._sent[message_id] = one
            self._in_flight += one.parcel.length

    def _break_off(self, one: Errand, problem: DcmtoolsError) -> None:
        """Ends the association in the middle of a message that cannot be ended."""
        self._judge(one, Outcome("failed", problem=problem))
        self._lose(Closed(f"the association with {self.node.where} ended for another file", "try again"))

    def _take(self, association: Association) -> None:
        """Takes one answer; when there is none but an error, all that is on its way is lost."""
        try:
            one, answer = self._answered(association)
        except ProtocolError as problem:
            self._lose(problem)
            return
        self._note_use()
        self._in_flight -= one.parcel.length
        self._judge(one, self._told(answer))

    def _lose(self, problem: ProtocolError, *others: Errand) -> None:
        """Ends an association that is of no use any more; what was not answered on it is lost, as the others are."""
        self._drop()
        unanswered = [*self._sent.values(), *others]
        self._sent, self._in_flight = {}, 0
        lost = _UNANSWERED if isinstance(problem, TimedOut) else _LOST
        for one in unanswered:
            self._judge(one, Outcome("failed", problem=problem, transient=True, lost=lost))

    def _judge(self, one: Errand, outcome: Outcome) -> None:
        """Finishes a parcel after a try, or keeps it for another one."""
        if not outcome.transient or one.tries > self.settings.retries or self._stop():
            self._finish(one, outcome)
            return
        one.outcome, self._due = outcome, max(self._due, one.tries)
        self._again.append(one)
        self._again.sort(key=lambda again: again.parcel.item.number)

    def _finish(self, one: Errand, outcome: Outcome) -> None:
        if outcome.problem and not (self.opened or self.settings.each):
            one.parcel.close()
            raise outcome.problem
        self._count(outcome)
        self._note(one, outcome)

    def _note(self, one: Errand, outcome: Outcome) -> None:
        one.outcome, one.ended = outcome, time.monotonic()
        one.association = self._association.id if self._association else ""
        self._over.append(one)

    def _context(self, association: Association, parcel: Parcel) -> Context:
        """The context in which a parcel can leave, if need be after it was transcoded."""
        meta = parcel.item.meta
        return association.context_for(meta.sop_class, meta.syntax) or self._transcoded(association, parcel)

    def _transcoded(self, association: Association, parcel: Parcel) -> Context:
        """The context in which a parcel can leave after it was transcoded; DcmtoolsError when there is none."""
        meta = parcel.item.meta
        taken = [one.syntax for one in association.contexts.values() if one.abstract == meta.sop_class]
        if not (self.settings.transcode and taken):
            raise not_accepted(association, meta)
        transcode = self.settings.transcode
        parcel.replace(lambda source, copy: transcode(source, copy, taken))
        if context := association.context_for(meta.sop_class, parcel.item.meta.syntax):
            return context
        raise not_accepted(association, parcel.item.meta)

    def _write(self, association: Association, context: Context, parcel: Parcel) -> int:
        """Sends the C-STORE of a file; its Message ID.

        No answer is read meanwhile, and the node can write all the same: those to a whole window are some 5 KB, for
        which there is room on their way even where buffers are at their smallest.
        """
        ready, self._ready = self._ready, None
        if ready and ready.parcel is parcel and ready.association is association:
            association.send_prepared(ready.parts)
            return ready.message_id
        command = self._command(association, parcel)
        if parcel.data is None:
            association.send_file(context, command, parcel.file, parcel.item.meta.offset, parcel.length)
        else:
            association.send(context, command, parcel.data)
        return int(command["MessageID"])

    def _answered(self, association: Association) -> tuple[Errand, Command]:
        """The next response to a C-STORE, and what was sent with it."""
        message_id, answer = self._answer(association)
        if one := self._sent.pop(message_id, None):
            return one, answer
        raise ProtocolError(f"{self.node.where} answered something else than the C-STORE", "see its log")

    def _answer(self, association: Association) -> tuple[int, Command]:
        """The next response, and the Message ID of the request that it answers; 0 when it answers no C-STORE."""
        try:
            message = association.receive()
        except Released:
            association.answer_release()
            raise Closed(f"{self.node.where} released the association instead of answering", "try again") from None
        is_ours = message.field == commands.C_STORE_RSP
        return message.command.get("MessageIDBeingRespondedTo", 0) if is_ours else 0, message.command

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

    def _told(self, answer: Command) -> Outcome:
        """What a response says (PS3.4 B.2.3)."""
        value = int(answer["Status"])
        if value == status.SUCCESS:
            return Outcome("sent", status.code(value))
        if status.is_warning(value):
            said = f"{self.node.where} answered {status.told(answer, 'C-STORE')}"
            return Outcome("warning", status.code(value), said)
        problem = status.failure(answer, "C-STORE", self.node.where)
        return Outcome("failed", status.code(value), problem=problem, transient=status.is_transient(value))

    def _drop(self) -> None:
        if self._association:
            self._association.abort()
            self._association = None

    def _pause(self) -> None:
        """Waits for what may pass, if something came up: longer each time, and not in step with others."""
        tries, self._due = self._due, 0
        if not tries:
            return
        longest = min(_PAUSE * 2 ** (tries - 1), _LONGEST_PAUSE)
        until = time.monotonic() + random.SystemRandom().uniform(longest / 2, longest)
        while not self._stop() and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, 0.1))

    def _count(self, outcome: Outcome) -> None:
        """Gives the node a rest when it cannot be reached any more, or loses one instance after the other."""
        self._in_a_row = self._in_a_row + outcome.lost if outcome.lost else 0
        if outcome.problem and self._in_a_row >= _GIVE_UP:
            kind, reason = type(outcome.problem), f"{NOT_TRIED}{outcome.problem.reason}"
            self._trouble = kind(reason, outcome.problem.advice, cause=outcome.problem.cause)
            self._rest_until = time.monotonic() + _REST
