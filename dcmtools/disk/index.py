"""The index of an archive: one JSON line an instance, append-only; the last for an instance at a path wins (DESIGN §4).

Lines are instance records, events (series-complete, incomplete) and tombstones. What a reader keeps of them in memory
is where each stands, so that an answer is the very line of the file.
"""

import os
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

from dcmtools.disk.journal import Journal
from dcmtools.disk.positions import Position, Positions
from dcmtools.model.errors import BadData, NoInput, from_os
from dcmtools.model.levels import group
from dcmtools.model.query import Query
from dcmtools.model.record import UNIQUE_KEY, Record, decode, encode, path_keys, path_of, pick, type_of

_BLOCK = 4 << 20


class Index:
    """The records of an archive, or of files elsewhere; a file that is missing is an empty index.

    Paths of files below `archive` (default: the folder of the index) are kept relative to it, so that an archive can
    be moved; all others, and all that it gives out, are absolute. Thread-safe; other processes may write to the same
    file, and each call answers from what the file holds at that moment.
    """

    def __init__(self, file: Path | str, archive: Path | str | None = None, *, must_exist: bool = False) -> None:
        self.file = Path(os.path.abspath(file))
        self.root = os.path.realpath(archive or self.file.parent)
        if must_exist and not self.file.is_file():
            reason = f"there is no index {self.file}"
            raise NoInput(reason, "make it with dcmtools index or dcmtools import", **path_keys(self.file))
        self._journal = Journal(self.file)
        self._guard = threading.RLock()
        self._positions = Positions()
        self._told = 0
        self._told_before: frozenset[tuple[str, str]] | None = None

    @property
    def bad_lines(self) -> int:
        """How many lines of the file are no records."""
        with self._guard:
            self._close(self._caught_up())
            return self._positions.bad_lines

    def append(self, records: Iterable[Record]) -> None:
        """Adds records, synced to the disk when this returns; DiskFull or IOFailure when none of them was added.

        What a command says of a record (`state`) is not kept, but for a conflict, which is no answer to any query.
        """
        if lines := self._lines_of(records):
            self._journal.append(lines)

    def append_after(self, look: Callable[[], Iterable[Record]]) -> None:
        """As `append`, of the records that `look` gives: it is called while no other writer can add or undo any."""
        self._journal.append(lambda: self._lines_of(look()))

    def forget(self, records: Iterable[Record]) -> None:
        """Adds a tombstone for each record: it is no longer at its path."""
        self.append({"type": "tombstone", **pick(record, "SOPInstanceUID", "path", "path_b64")} for record in records)

    def instances(self) -> Iterator[Record]:
        """All instances that are there, each once, in the order of their lines."""
        return self._read(Positions.all)

    def find(self, query: Query) -> Iterator[Record]:
        """The records at the query's level to which a matching instance belongs, in the query's order."""
        return query.ordered(group(self._candidates(query), query))

    def lookup(self, sop_instance_uids: Collection[str]) -> dict[str, Record]:
        """SOP Instance UID -> record, for those that are there."""
        found = self._read(lambda positions: positions.of_instances(sop_instance_uids))
        return {str(record["SOPInstanceUID"]): record for record in found}

    def everywhere(self, sop_instance_uids: Collection[str]) -> dict[str, list[Record]]:
        """SOP Instance UID -> its records at all paths, oldest first, aliases and conflicts too."""
        found: dict[str, list[Record]] = {}
        for record in self._read(lambda positions: positions.everywhere(sop_instance_uids)):
            found.setdefault(str(record["SOPInstanceUID"]), []).append(record)
        return found

    def by_study(self, uid: str) -> Iterator[Record]:
        """The instances of a study."""
        return self._read(lambda positions: positions.of_study(uid))

    def by_series(self, uid: str) -> Iterator[Record]:
        """The instances of a series."""
        return self._read(lambda positions: positions.of_series(uid))

    def by_paths(self, paths: Iterable[str | os.PathLike[str]]) -> dict[str, Record]:
        """Path -> record of what was at it when it was indexed, aliases and conflicts too, for paths that are known."""
        names = {self._key_of(path): os.fspath(path) for path in paths}
        found: dict[str, Record] = {}
        for record in self._read(lambda positions: positions.at_paths(names)):
            if path := path_of(record):
                found[os.fspath(path)] = record
        return found

    def events(self) -> Iterator[Record]:
        """The events, oldest first."""
        return self._read(lambda positions: positions.events)

    def expand(self, records: Iterable[Record]) -> Iterator[Record]:
        """The instances that records of any level stand for; other records, and those with a path, pass through.

        An error record takes the place of what the index does not have.
        """
        for record in records:
            kind = type_of(record)
            if kind not in UNIQUE_KEY or path_of(record):
                yield record
            elif not (uid := record.get(UNIQUE_KEY[kind])) or not isinstance(uid, str):
                yield BadData(f"a {kind} record without {UNIQUE_KEY[kind]}", cause="bad-uid").record()
            else:
                yield from self._expanded(record, kind, uid)

    def catch_up(self) -> list[Record]:
        """The lines that came since the last call, all at the first one; lines that are no records are left out.

        After the file was replaced: what was not there before.
        """
        with self._guard:
            descriptor = self._caught_up()
            if descriptor is None:
                return []
            try:
                before, self._told_before = self._told_before, None
                start, self._told = self._told, self._positions.consumed
                if before is not None:
                    found = sorted([*self._positions.all_but(before), *self._positions.events])
                    return list(self._records(descriptor, found))
                return list(self._lines(descriptor, start, self._told))
            finally:
                os.close(descriptor)

    def _expanded(self, record: Record, kind: str, uid: str) -> Iterator[Record]:
        found: Iterator[Record]
        match kind:
            case "instance":
                found = ({**record, **one} for one in self.lookup((uid,)).values())
            case "series":
                found = self.by_series(uid)
            case "study":
                found = self.by_study(uid)
            case _:
                found = (one for one in self.instances() if one.get("PatientID") == uid)
        is_there = False
        for one in found:
            is_there = True
            yield one
        if not is_there:
            # Not which patient: an error ends up in a log.
            name = f"the {kind} {uid}" if kind != "patient" else "the patient"
            keys = {key: record[key] for key in UNIQUE_KEY.values() if key in record and key != "PatientID"}
            yield NoInput(f"{name} is not in {self.file}", "retrieve it first (dcmtools move)", **keys).record()

    def _candidates(self, query: Query) -> Iterator[Record]:
        """The instances among which a query's answers are: the studies of the UIDs that it names, else all."""
        named = {kind: _exact(query.keys.get(UNIQUE_KEY[kind], "")) for kind in ("study", "series", "instance")}
        if query.level == "patient" or not any(named.values()):
            return self.instances()
        return self._read(lambda positions: positions.of_studies_with(named))

    def _read(self, select: Callable[[Positions], Iterable[Position]]) -> Iterator[Record]:
        """The records at the positions selected, as the file had them when the first was asked for."""
        with self._guard:
            descriptor = self._caught_up()
            if descriptor is None:
                return
            chosen = sorted(select(self._positions))
        try:
            yield from self._records(descriptor, chosen)
        finally:
            os.close(descriptor)

    def _records(self, descriptor: int, positions: Iterable[Position]) -> Iterator[Record]:
        for position in positions:
            try:
                yield self._outward(decode(os.pread(descriptor, position.length, position.offset)))
            except ValueError:  # cut off since by a writer whose disk was full
                continue

    def _lines(self, descriptor: int, start: int, end: int) -> Iterator[Record]:
        for _, line in _whole_lines(descriptor, start, end):
            try:
                yield self._outward(decode(line))
            except ValueError:
                continue

    def _caught_up(self) -> int | None:
        """A descriptor of the file, after the positions followed its growth; None when there is none."""
        try:
            descriptor = os.open(self.file, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            self._start_again(Positions())
            return None
        except OSError as problem:
            raise from_os(problem, "reading", self.file) from problem
        try:
            state = os.fstat(descriptor)
            identity = (state.st_dev, state.st_ino)
            if not self._positions.go_on_in(identity, state.st_size, descriptor):
                self._start_again(Positions(identity))
            for offset, line in _whole_lines(descriptor, self._positions.consumed, state.st_size):
                self._positions.take(line, offset, self._key_of)
            self._positions.remember_end(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _start_again(self, positions: Positions) -> None:
        if self._told and self._told_before is None:
            self._told_before = self._positions.keys()
        self._positions = positions
        self._told = 0

    def _key_of(self, path: str | os.PathLike[str]) -> str:
        """A path as the index names it: relative below the root, whichever way a line writes it."""
        text = os.fspath(path)
        below = text.startswith(self.root) and text[len(self.root) : len(self.root) + 1] == "/"
        return text[len(self.root) + 1 :] if below else text

    def _lines_of(self, records: Iterable[Record]) -> bytes:
        return b"".join(encode(self._inward(record)) for record in records)

    def _inward(self, record: Record) -> Record:
        kept = {key: value for key, value in record.items() if key != "state" or value == "conflict"}
        if path := path_of(record):
            kept.pop("path_b64", None)
            kept |= path_keys(self._key_of(path))
        if isinstance(first := record.get("duplicate_of"), str):
            kept["duplicate_of"] = self._key_of(first)
        return kept

    def _outward(self, record: Record) -> Record:
        if "path_b64" in record and (path := path_of(record)):
            record |= path_keys(os.path.join(self.root, path))
        for key in ("path", "duplicate_of"):
            if isinstance(text := record.get(key), str) and not text.startswith("/"):
                record[key] = f"{self.root}/{text}"
        return record

    @staticmethod
    def _close(descriptor: int | None) -> None:
        if descriptor is not None:
            os.close(descriptor)


def _whole_lines(descriptor: int, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    """The lines between two offsets, each with its own; a last one without its newline is left for later."""
    offset, rest = start, b""
    while offset + len(rest) < end and (
        block := os.pread(descriptor, min(_BLOCK, end - offset - len(rest)), offset + len(rest))
    ):
        *lines, rest = (rest + block).split(b"\n")
        for line in lines:
            yield offset, line
            offset += len(line) + 1


def _exact(wanted: str) -> frozenset[str]:
    """The UIDs that a key names; none when it has wildcards."""
    return (
        frozenset() if "*" in wanted or "?" in wanted else frozenset(uid.strip() for uid in wanted.split("\\") if uid)
    )
