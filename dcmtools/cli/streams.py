"""Records from stdin, and what the stream says of itself: whether upstream did all, failed, or died (DESIGN §3)."""

import os
from collections.abc import Iterator

from dcmtools.cli.signals import Stop
from dcmtools.model.errors import BadData, Incomplete, NoInput, from_os
from dcmtools.model.record import Record, decode, encode, event, is_event, path_keys, type_of

STDIN = 0
_CHUNK = 1 << 16
_MAX_LINE = 64 << 20
# Exit codes of a command that went through all that it was to do, and told of each item that failed.
_CAME_TO_ITS_END = frozenset({0, Incomplete.exit_code, BadData.exit_code})
# How the lines of records begin that were printed for people, or as one array.
_PARTS = (b"[", b"]", b"}", b'"', b" ", b"\t", b"\xef\xbb\xbf")
_NAMES = ("StudyInstanceUID", "SeriesInstanceUID")


class Stream:
    """The records of a descriptor, each as soon as its line is there.

    `begin` and `end` frame one stream and are taken out. After the last record `failed` tells whether upstream lacks
    anything: it had errors, said that something is incomplete, ended with another exit code than 0, or did not say
    that it ended. When it did not come to its end, each series that came without its `series-complete` gets an
    `incomplete` here, so that whoever reads on need not know of frames.
    """

    def __init__(self, stop: Stop, descriptor: int = STDIN) -> None:
        self._stop = stop
        self._descriptor = descriptor
        self._begun = False
        self._open: dict[tuple[str, str], int] = {}
        self._told: set[bytes] = set()
        self.failed = False
        self.died = False

    def records(self) -> Iterator[Record]:
        """All records but the frame's, then what is missing of series that were cut off."""
        for number, line in enumerate(self.lines(), 1):
            if not line or line.isspace():
                continue
            try:
                record = _record(line)
            except ValueError as problem:
                yield _no_record(number, problem)
            except NoInput as problem:
                yield problem.record(line=number)
            else:
                yield from self._take(record)
        if not self._stop():
            yield from self._cut_off()

    def has_told(self, record: Record) -> bool:
        """Whether a failure came from upstream, which has told of it already."""
        return bool(self._told) and encode(record) in self._told

    def _take(self, record: Record) -> Iterator[Record]:
        if is_event(record, "begin") or is_event(record, "listening"):
            yield from self._cut_off()
            self._begun = True
            if record["event"] == "listening":  # the first word of `listen`, which tells its port too
                yield record
        elif is_event(record, "end"):
            yield from self._end(record)
        else:
            self._note(record)
            yield record

    def _end(self, record: Record) -> Iterator[Record]:
        self._begun = False
        code = record.get("exit_code")
        self.failed = self.failed or code != 0
        if code in _CAME_TO_ITS_END:
            self._open.clear()
        else:
            yield from self._incomplete("the command before this one was ended before the series was complete")

    def _note(self, record: Record) -> None:
        kind = type_of(record)
        if kind == "error" or is_event(record, "incomplete"):
            self.failed = True
            self._told.add(encode(record))
        if not self._begun:
            return
        series = (str(record.get(_NAMES[0])), str(record.get(_NAMES[1])))
        if kind == "instance":
            self._open[series] = self._open.get(series, 0) + 1
        elif kind == "event" and record.get("event") in {"series-complete", "incomplete"}:
            self._open.pop(series, None)

    def _cut_off(self) -> Iterator[Record]:
        """The series that were under way when a stream broke off before its end."""
        if not self._begun:
            return
        self._begun, self.failed, self.died = False, True, True
        yield from self._incomplete("the command before this one broke off before the series was complete")

    def _incomplete(self, reason: str) -> Iterator[Record]:
        cut, self._open = self._open, {}
        for (study, series), count in cut.items():
            uids = dict(zip(_NAMES, (study, series), strict=True))
            record = event("incomplete", **uids, expected=None, received=count, missing=[], reason=reason)
            self._told.add(encode(record))
            yield record

    def lines(self) -> Iterator[bytes]:
        """The lines; where zero bytes are among the first of them, as from `find -print0`, what is between those."""
        rest, mark = b"", b""
        while chunk := self._chunk():
            rest += chunk
            mark = mark or (b"\0" if b"\0" in rest else b"\n" if b"\n" in rest else b"")
            if mark:
                *lines, rest = rest.split(mark)
                yield from lines
            if len(rest) > _MAX_LINE:
                raise BadData("a line on stdin is longer than 64 MB", "give one record a line", cause="line-too-long")
        if not self._stop():  # then it is the last line, and not a torn one
            yield rest

    def _chunk(self) -> bytes:
        try:
            return os.read(self._descriptor, _CHUNK) if self._stop.wait_for(self._descriptor) else b""
        except BlockingIOError:
            return self._chunk()
        except OSError as problem:
            raise from_os(problem, "reading stdin") from problem


def _record(line: bytes) -> Record:
    """The record on a line, or the file that a plain path names; ValueError or NoInput when it is neither.

    What is no record may be part of one, and hold a patient's name: it is never repeated (DESIGN §5.9).
    """
    if line.startswith(b"{"):
        return decode(line)
    path = os.path.abspath(os.fsdecode(line.rstrip(b"\r")))
    if _is_there(path):
        return {"type": "file", **path_keys(path)}
    if line.startswith(_PARTS) or b'": ' in line:
        raise ValueError("it looks like a part of one (jq needs -c)")
    raise NoInput("a line on stdin is neither a record nor the path of a file", "give records, or paths that are there")


def _is_there(path: str) -> bool:
    try:
        os.lstat(path)
    except (OSError, ValueError):
        return False
    return True


def _no_record(number: int, problem: ValueError) -> Record:
    reason = f"line {number} on stdin is not a record: {problem}"
    return BadData(reason, "give one JSON object a line", cause="not-json", line=number).record()
