"""C-FIND at one level of a node, and what its answers are worth (PS3.4 C.4.1, C.2.2.2).

Nodes differ: some ignore keys, some answer once for each instance, none can be trusted with a limit, and many compare
bytes where people see letters. So the question is put a little wider than it is meant, and each answer is held
against it again.
"""

import itertools
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from dcmtools.model.errors import BadData, DcmtoolsError, ProtocolError, Unavailable
from dcmtools.model.keys import QUERY_BY_KEYWORD
from dcmtools.model.matching import matches
from dcmtools.model.names import is_uid
from dcmtools.model.node import Local, Node
from dcmtools.model.record import UNIQUE_KEY, Level, Record
from dcmtools.model.uids import EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN, PATIENT_ROOT_FIND, STUDY_ROOT_FIND
from dcmtools.network import command, identifier, status
from dcmtools.network.association import Association, Context
from dcmtools.network.command import Command
from dcmtools.network.requestor import request
from dcmtools.network.response import Stop, never, response

_SYNTAXES = (EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN)
FIND_CONTEXTS = ((STUDY_ROOT_FIND, _SYNTAXES), (PATIENT_ROOT_FIND, _SYNTAXES))

# What is asked back at each level beside what the query names; nodes leave empty what they do not have.
RETURNS: dict[Level, tuple[str, ...]] = {
    "patient": (
        "PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex",
        "NumberOfPatientRelatedStudies", "NumberOfPatientRelatedSeries", "NumberOfPatientRelatedInstances",
    ),
    "study": (
        "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName", "StudyDescription", "StudyInstanceUID",
        "StudyID", "ModalitiesInStudy", "NumberOfStudyRelatedSeries", "NumberOfStudyRelatedInstances",
    ),
    "series": (
        "Modality", "SeriesDate", "SeriesTime", "SeriesDescription", "SeriesInstanceUID", "SeriesNumber",
        "BodyPartExamined", "ProtocolName", "StationName", "NumberOfSeriesRelatedInstances",
    ),
    "instance": (
        "SOPClassUID", "SOPInstanceUID", "InstanceNumber", "ContentDate", "ContentTime", "NumberOfFrames", "Rows",
        "Columns",
    ),
}  # fmt: skip
# In the study root the patient's attributes belong to the study (PS3.4 C.6.2.1).
PATIENT_IN_STUDY = ("PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex")

_MOST_QUERIES = 32
_UIDS_AT_ONCE = 64
# Seconds that a node has to end a query which was cancelled: many send everything all the same.
_PATIENCE = 2.0
_TEXT = frozenset({"LO", "PN", "SH"})
# What is told by the type of the record, or concerns the answer and not what it is about.
_OF_THE_ANSWER = frozenset({"QueryRetrieveLevel", "SpecificCharacterSet"})


class Levels:
    """An open association for C-FIND, on which one level after the other is asked."""

    def __init__(
        self,
        node: Node,
        local: Local,
        stop: Stop = never,
        association: Association | None = None,
        *,
        ignore_accents: bool = False,
    ) -> None:
        self.node, self.stop, self.ignore_accents = node, stop, ignore_accents
        self.association = association or request(node, local, FIND_CONTEXTS)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None or kind is GeneratorExit:  # who has enough closes a generator
            self.association.release()
        else:
            self.association.abort()

    @property
    def roots(self) -> frozenset[str]:
        """The information models that the node offers (PS3.4 C.3)."""
        return frozenset(context.abstract for context in self.association.contexts.values())

    def level(self, level: Level, keys: Mapping[str, str], also: Sequence[str] = ()) -> Generator[Record]:
        """What a node has at one level that matches these keys, each unique key once, as the answers come.

        `also` are keywords wanted back. Nothing else may be asked on this association until all answers were taken or
        the generator was closed. An answer that cannot be read is an error record. Unavailable when the node knows
        nothing of a key, so that no answer can be trusted.
        """
        wanted = (*RETURNS[level], *(PATIENT_IN_STUDY if level == "study" and STUDY_ROOT_FIND in self.roots else ()))
        asked = {**dict.fromkeys((*wanted, *also), ""), **keys}
        restricting = {keyword: value for keyword, value in keys.items() if value not in {"", "*"}}
        check = _Check(level, restricting, self.node.charset, self.ignore_accents)
        with closing(self._answers_to(level, asked)) as answers:
            seen: set[str] = set()
            for answer in answers:
                unique = str(answer.get(UNIQUE_KEY[level]) or "")
                if self.stop():
                    return
                if answer.get("type") == "error":
                    yield answer
                elif unique not in seen and check.passes(answer):
                    seen.add(unique)
                    yield self._record(level, answer) if unique or level == "patient" else self._nameless(level, keys)
        if check.untold and not self.stop():
            raise self._unavailable(level, check.untold)

    def _answers_to(self, level: Level, keys: Mapping[str, str]) -> Generator[Record]:
        for combination in _combinations(keys):
            if self.stop():
                return
            with closing(self._ask(level, combination)) as answers:
                yield from answers

    def _record(self, level: Level, answer: Record) -> Record:
        kept = {keyword: value for keyword, value in answer.items() if keyword not in _OF_THE_ANSWER}
        return {"type": level, **kept, "node": self.node.name}

    def _nameless(self, level: Level, keys: Mapping[str, str]) -> Record:
        """The error record of an answer without its unique key (PS3.4 C.4.1.1.3.2): what it is about is there."""
        problem = ProtocolError(
            f"{self.node.where} told of a {level} without {UNIQUE_KEY[level]}", "see its log", cause="bad-uid"
        )
        uids = {key: uid for key, uid in keys.items() if key in UNIQUE_KEY.values() and is_uid(uid)}
        return problem.record(node=self.node.name, **uids)

    def _unavailable(self, level: Level, untold: Sequence[str]) -> Unavailable:
        return Unavailable(
            f"{self.node.where} does not tell {' and '.join(untold)} at {level} level, so it cannot be asked for that",
            "leave it out, or retrieve first and ask the index",
            cause="not-offered",
        )

    def _context(self, level: Level) -> Context:
        models = (STUDY_ROOT_FIND, PATIENT_ROOT_FIND)
        first, second = models[::-1] if level == "patient" else models
        return self.association.context_for(first) or self.association.require(second, "queries (C-FIND)")

    def _ask(self, level: Level, keys: Mapping[str, str]) -> Generator[Record]:
        context = self._context(level)
        sent = {**self._sent(keys), **level_key(level)}
        rq: Command = {
            "AffectedSOPClassUID": context.abstract,
            "CommandField": command.C_FIND_RQ,
            "MessageID": self.association.next_message_id(),
            "Priority": command.MEDIUM,
        }
        self.association.send(context, rq, identifier.encode(sent, context.syntax, self.node.charset))
        try:
            yield from self._answers(context, rq)
        except GeneratorExit:
            self._cancel(context, rq)
            raise

    @staticmethod
    def _sent(keys: Mapping[str, str]) -> dict[str, str]:
        return {keyword: _wider(keyword, value) for keyword, value in keys.items()}

    def _answers(self, context: Context, rq: Command) -> Iterator[Record]:
        while message := response(self.association, rq, self.stop):
            data = self.association.read_data() if message.has_data else b""
            code = int(message.command["Status"])
            if code in status.PENDING:
                yield self._decoded(data, context.syntax)
            elif code in {status.SUCCESS, status.CANCEL}:
                return
            else:
                raise status.failure(message.command, "C-FIND", self.association.where)
        self._cancel(context, rq)

    def _decoded(self, data: bytes, syntax: str) -> Record:
        try:
            return identifier.decode(data, syntax)
        except BadData as problem:
            return ProtocolError(
                f"{self.node.where} sent an answer that is no data set: {problem.reason}", "see its log"
            ).record(node=self.node.name)

    def _cancel(self, context: Context, rq: Command) -> None:
        """Asks the node to stop, and reads over what still comes for a moment; then the association must end."""
        if not self.association.open:
            return
        end = time.monotonic() + _PATIENCE
        cancel = {"CommandField": command.C_CANCEL_RQ, "MessageIDBeingRespondedTo": rq["MessageID"]}
        with suppress(DcmtoolsError):  # all that was wanted is here
            self.association.send(context, cancel)
            while time.monotonic() < end and (answer := response(self.association, rq, lambda: time.monotonic() > end)):
                if int(answer.command["Status"]) not in status.PENDING:
                    return
        self.association.abort()


@dataclass(slots=True)
class _Check:
    """Holds answers against the keys that were asked for, and notes which of them the node tells anything of."""

    level: Level
    keys: Mapping[str, str]
    charset: str
    ignore_accents: bool
    _told: set[str] = field(default_factory=set)
    _dropped: set[str] = field(default_factory=set)

    def passes(self, answer: Record) -> bool:
        """Whether an answer matches; one that says nothing, or nothing of a key that is asked for, does not."""
        self._told.update(answer)
        if not any(value for keyword, value in answer.items() if keyword not in _OF_THE_ANSWER):
            return False
        matched = [self._matches(answer, keyword, wanted) for keyword, wanted in self.keys.items()]
        return all(matched)

    @property
    def untold(self) -> list[str]:
        """The keys of which no answer said anything, where there were answers."""
        return sorted(self._dropped - self._told)

    def _matches(self, answer: Record, keyword: str, wanted: str) -> bool:
        if keyword == "ModalitiesInStudy" and not answer.get(keyword):
            return True  # it can be told from the series
        if keyword not in answer:
            above = QUERY_BY_KEYWORD[keyword].level != self.level and keyword in UNIQUE_KEY.values()
            if not above:
                self._dropped.add(keyword)
            return above
        found = matches(keyword, wanted, answer[keyword], ignore_accents=self.ignore_accents)
        return found or self._is_hidden(wanted, answer)

    def _is_hidden(self, wanted: str, answer: Record) -> bool:
        """Whether the node could be told what is wanted, but cannot say it: Orthanc leaves out what Latin-1 has not."""
        theirs = "\\".join(map(str, answer.get("SpecificCharacterSet") or ()))
        return identifier.can_write(wanted, self.charset) and not identifier.can_write(wanted, theirs)


def level_key(level: Level) -> dict[str, str]:
    """The key that names the level of a query (PS3.4 C.4.1.1.3)."""
    return {"QueryRetrieveLevel": identifier.LEVEL_WORD[level]}


def _wider(keyword: str, value: str) -> str:
    """A text as it is sent: many nodes take `?` for one byte, and a letter may be more."""
    return value.replace("?", "*") if QUERY_BY_KEYWORD[keyword].vr in _TEXT else value


def _combinations(keys: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """One query for each combination of several values: C-FIND itself knows lists only of UIDs (PS3.4 C.2.2.2.2)."""
    choices = {keyword: _choices(keyword, value) for keyword, value in keys.items()}
    if _count(choices) > _MOST_QUERIES:  # names as they were typed
        choices = {keyword: _values(keyword, value) for keyword, value in keys.items()}
    if _count(choices) > _MOST_QUERIES:  # cheaper to ask for all and to match here
        choices = {
            keyword: found if len(found) == 1 or _is_uid(keyword) else [""] for keyword, found in choices.items()
        }
    for combination in itertools.product(*choices.values()):
        yield dict(zip(choices, combination, strict=True))


def _count(choices: Mapping[str, Sequence[str]]) -> int:
    count = 1
    for keyword, found in choices.items():
        count *= 1 if _is_uid(keyword) else len(found)
    return count


def _is_uid(keyword: str) -> bool:
    return QUERY_BY_KEYWORD[keyword].vr == "UI"


def _values(keyword: str, value: str) -> list[str]:
    values = value.split("\\")
    if not _is_uid(keyword):
        return values
    return ["\\".join(values[first : first + _UIDS_AT_ONCE]) for first in range(0, len(values), _UIDS_AT_ONCE)]


def _choices(keyword: str, value: str) -> list[str]:
    """The values to ask for one after the other; names also as they may be written where letters' case counts."""
    values = _values(keyword, value)
    if QUERY_BY_KEYWORD[keyword].vr != "PN":
        return values
    return list(dict.fromkeys(way for one in values for way in (one, one.upper(), one.title())))
