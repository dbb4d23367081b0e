"""The index of an archive: one JSON line an instance, append-only; the last for an instance at a path wins (DESIGN §4).

Lines are instance records, events (series-complete, incomplete) and tombstones. Where each stands is kept in a view
that is derived from them, so that an answer is the very line of the file, and found without reading the others.
"""

import os
import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

from dcmtools.disk.compaction import Compacted, compact
from dcmtools.disk.following import Follower
from dcmtools.disk.index_scan import scanned
from dcmtools.disk.journal import Journal
from dcmtools.disk.ordering import ordered
from dcmtools.disk.view import View
from dcmtools.disk.view_counts import counts_of
from dcmtools.disk.view_lookup import Place, of_group
from dcmtools.disk.view_query import answers
from dcmtools.disk.view_tail import Tail
from dcmtools.model.errors import BadData, NoInput, from_os
from dcmtools.model.levels import group
from dcmtools.model.query import Query
from dcmtools.model.record import UNIQUE_KEY, Level, Record, decode, encode, name_of, path_keys, pick, type_of

# So many of the instances that we wrote are remembered.
_MOST = 20_000


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
        self._below = f"{self.root}/" if self.root != "/" else "\0"
        self._journal = Journal(self.file)
        self._view = View(self.file, self.root, self._key_of)
        self._follower = Follower(self.file, self._key_of)
        # The instances of the lines that the journal holds for its own; not before somebody asks.
        self._written: set[str] | None = None

    @property
    def bad_lines(self) -> int:
        """How many lines of the file are no records."""
        return self._view.counts().bad

    @property
    def bad_lines_seen(self) -> int:
        """How many of the lines that were looked at so far are no records."""
        return self._view.bad_seen()

    def append(self, records: Iterable[Record]) -> None:
        """Adds records, synced to the disk when this returns; DiskFull or IOFailure when none of them was added.

        What a command says of a record (`state`) is not kept, but for a conflict, which is no answer to any query.
        """
        records = list(records)
        if records:
            lines = self._lines_of(records)
            self._journal.append(lambda: self._noted(records, lines))

    def append_after(self, look: Callable[[], Iterable[Record]], *, sync: bool = True) -> None:
        """As `append`, of the records that `look` gives: it is called while no other writer can add or undo any.

        Without `sync` they survive our end, but not the machine's.
        """

        def lines() -> bytes:
            records = list(look())
            return self._noted(records, self._lines_of(records))

        self._journal.append(lines, sync=sync)

    def lacks(self, sop_instance_uids: Collection[str]) -> bool:
        """Whether it has none of these instances at any path, where that can be told at once; else False.

        So it can while nobody but us writes to it: then only what we wrote must be known beside what was looked at.
        """
        if self._written is None or len(self._written) > _MOST:
            with self._journal.alone():
                self._written = set()
                self._journal.disown()
        return self.still_lacks(sop_instance_uids)

    def still_lacks(self, sop_instance_uids: Collection[str]) -> bool:
        """As `lacks`, also for who is called while lines are written (`append_after`)."""
        # In this order: what was written is only forgotten together with whose it was.
        written, own = self._written, self._journal.own
        if written is None or not written.isdisjoint(sop_instance_uids):
            return False
        if self.state() != (own.inode, own.end, own.mtime_ns):
            return False
        return self._view.lacks(own.inode, own.start, sop_instance_uids)

    def state(self) -> tuple[int, int, int]:
        """Which file it is, how long, and from when: what was read of one that is the same still holds."""
        try:
            found = os.stat(self.file)
        except FileNotFoundError:
            return 0, 0, 0
        return found.st_ino, found.st_size, found.st_mtime_ns

    def forget(self, records: Iterable[Record]) -> None:
        """Adds a tombstone for each record: it is no longer at its path."""
        self.append({"type": "tombstone", **pick(record, "SOPInstanceUID", "path", "path_b64")} for record in records)

    def statistics(self) -> Record:
        """How much it holds: lines, patients, studies, series, instances, bytes; and where its view lies."""
        with self._view.snapshot() as snapshot:
            counts = {} if snapshot is None else counts_of(snapshot.view)
            view = self._view.file
        return {"type": "index", **path_keys(self.file), **counts, "view": os.fspath(view) if view else None}

    def compact(self, *, dry_run: bool = False) -> Compacted:
        """Writes the file anew without lines that say nothing any more, and tells what became of it."""
        done = compact(self._journal, self._view, self.root, self._key_of, dry_run=dry_run)
        self._view.counts()  # whoever asks next shall not have to wait
        return done

    def instances(self) -> Iterator[Record]:
        """All instances that are there, each once, in the order of their lines."""
        return self._answers(Query("instance"))

    def files(self) -> Iterator[Record]:
        """All instances at all paths, aliases and conflicts too, in the order of their lines."""
        with self._view.apart() as snapshot:
            if snapshot is not None:
                for place in snapshot.view.execute("SELECT offset, length FROM instance ORDER BY offset"):
                    if (record := self._record(snapshot.descriptor, *place)) is not None:
                        yield record

    def find(self, query: Query) -> Iterator[Record]:
        """The records at the query's level to which a matching instance belongs, in the query's order."""
        return ordered(self._answers(query), query)

    def scan(self, query: Query) -> Iterator[Record]:
        """As `find`, from the lines alone and without the view: all of them are read, so that it takes seconds."""
        return ordered(group(self._scanned(), query), query)

    def lookup(self, sop_instance_uids: Collection[str]) -> dict[str, Record]:
        """SOP Instance UID -> record, for those that are there."""
        found = self._quickly(lambda tail, view: tail.of_instances(view, sop_instance_uids))
        return {str(record["SOPInstanceUID"]): record for record in found}

    def everywhere(self, sop_instance_uids: Collection[str]) -> dict[str, list[Record]]:
        """SOP Instance UID -> its records at all paths, oldest first, aliases and conflicts too."""
        found: dict[str, list[Record]] = {}
        for record in self._quickly(lambda tail, view: tail.everywhere(view, sop_instance_uids)):
            found.setdefault(str(record["SOPInstanceUID"]), []).append(record)
        return found

    def by_study(self, uid: str) -> Iterator[Record]:
        """The instances of a study."""
        return self.belonging_to("study", uid)

    def by_series(self, uid: str) -> Iterator[Record]:
        """The instances of a series."""
        return self.belonging_to("series", uid)

    def belonging_to(self, level: Level, name: str) -> Iterator[Record]:
        """The instances of a patient (by PatientID), study or series; the one of this UID at instance level."""
        if level == "instance":
            return iter(self.lookup((name,)).values())
        return self._read(lambda view: of_group(view, level, name))

    def by_paths(self, paths: Iterable[str | os.PathLike[str]]) -> dict[str, Record]:
        """Path -> record of what was at it when it was indexed, aliases and conflicts too, for paths that are known."""
        names = [self._key_of(path) for path in paths]
        found = self._quickly(lambda tail, view: tail.at_paths(view, names))
        return {name: record for record in found if (name := name_of(record))}

    def events(self) -> Iterator[Record]:
        """The events, oldest first."""
        return self._read(lambda view: view.execute("SELECT offset, length FROM event ORDER BY offset").fetchall())

    def expand(self, records: Iterable[Record]) -> Iterator[Record]:
        """The instances that records of any level stand for; other records, and those with a path, pass through.

        An error record takes the place of what the index does not have.
        """
        for record in records:
            kind = type_of(record)
            if kind not in UNIQUE_KEY or name_of(record):
                yield record
            elif not (uid := record.get(UNIQUE_KEY[kind])) or not isinstance(uid, str):
                yield BadData(f"a {kind} record without {UNIQUE_KEY[kind]}", cause="bad-uid").record()
            else:
                yield from self._expanded(record, kind, uid)

    def skip(self) -> None:
        """Lets `catch_up` begin behind the last line that is there now."""
        self._follower.skip()

    def catch_up(self) -> list[Record]:
        """The lines that came since the last call, all at the first one; lines that are no records are left out.

        After the file was replaced: what was not there before.
        """
        return [self._outward(record) for record in self._follower.news()]

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
                found = self.belonging_to("patient", uid)
        is_there = False
        for one in found:
            is_there = True
            yield one
        if not is_there:
            # Not which patient: an error ends up in a log.
            name = f"the {kind} {uid}" if kind != "patient" else "the patient"
            keys = {key: record[key] for key in UNIQUE_KEY.values() if key in record and key != "PatientID"}
            yield NoInput(f"{name} is not in {self.file}", "retrieve it first (dcmtools move)", **keys).record()

    def _scanned(self) -> Iterator[Record]:
        try:
            descriptor = os.open(self.file, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        except OSError as problem:
            raise from_os(problem, "reading", self.file) from problem
        try:
            yield from (self._outward(decode(raw)) for raw in scanned(descriptor, self._key_of))
        finally:
            os.close(descriptor)

    def _answers(self, query: Query) -> Iterator[Record]:
        with self._view.apart() as snapshot:
            if snapshot is not None:
                yield from answers(snapshot.view, query, lambda *place: self._record(snapshot.descriptor, *place))

    def _quickly(self, select: Callable[[Tail, sqlite3.Connection], Iterable[Place]]) -> Iterator[Record]:
        """The records at the places selected, without the view being brought up to date for that."""
        if (found := self._view.places(select)) is not None:
            yield from self._records(*found)

    def _read(self, select: Callable[[sqlite3.Connection], Iterable[Place]]) -> Iterator[Record]:
        """The records at the places selected, as the file had them when the first was asked for."""
        with self._view.snapshot() as snapshot:
            if snapshot is None:
                return
            places = sorted(select(snapshot.view))
            descriptor = os.dup(snapshot.descriptor)
        yield from self._records(descriptor, places)

    def _records(self, descriptor: int, places: Iterable[Place]) -> Iterator[Record]:
        """The records at these places of a file, whose descriptor is closed at the end."""
        try:
            for offset, length in places:
                if (record := self._record(descriptor, offset, length)) is not None:
                    yield record
        finally:
            os.close(descriptor)

    def _record(self, descriptor: int, offset: int, length: int) -> Record | None:
        """The record of a line; None when it was cut off since, by a writer whose disk was full."""
        try:
            return self._outward(decode(os.pread(descriptor, length, offset)))
        except ValueError:
            return None

    def _key_of(self, path: str | os.PathLike[str]) -> str:
        """A path as the index names it: relative below the root, whichever way a line writes it."""
        return os.fspath(path).removeprefix(self._below)

    def _lines_of(self, records: Iterable[Record]) -> bytes:
        return b"".join(encode(self._inward(record)) for record in records)

    def _noted(self, records: list[Record], lines: bytes) -> bytes:
        if self._written is not None:
            self._written.update(str(record.get("SOPInstanceUID")) for record in records)
        return lines

    def _inward(self, record: Record) -> Record:
        kept = record.copy()
        if kept.get("state") != "conflict":
            kept.pop("state", None)
        if name := name_of(record):
            kept.pop("path_b64", None)
            kept |= path_keys(self._key_of(name))
        if isinstance(first := record.get("duplicate_of"), str):
            kept["duplicate_of"] = self._key_of(first)
        return kept

    def _outward(self, record: Record) -> Record:
        if "path_b64" in record and (name := name_of(record)):
            record |= path_keys(os.path.join(self.root, name))
        for key in ("path", "duplicate_of"):
            if isinstance(text := record.get(key), str) and not text.startswith("/"):
                record[key] = f"{self.root}/{text}"
        return record
