"""Brings an index up to date with the files that it knows: again, anew, and without those that are gone (DESIGN §4)."""

import os
import shutil
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from dcmtools.disk.atomic import fsync_folder, temporary_name
from dcmtools.disk.index import Index
from dcmtools.disk.journal import Journal
from dcmtools.files.referencing import Stop, is_error, is_gone, never, tombstone
from dcmtools.model.errors import Incomplete, from_os
from dcmtools.model.record import Record, decode, encode, name_of, path_keys, type_of

# A file system's clock ticks every few milliseconds, that of a memory card every two seconds.
TICK_NS = 2_000_000_000

# What indexes paths into an index.
Indexing = Callable[[Iterable[Path | str], Index], Iterator[Record]]


def known_folders(index: Index) -> list[str]:
    """The folders that hold what the index knows, those within others left out; missing ones too."""
    folders = {os.path.dirname(name) for record in index.files() if (name := name_of(record))}
    tops: list[str] = []
    for folder in sorted(folders, key=lambda one: f"{one}/"):
        if not tops or not f"{folder}/".startswith(f"{tops[-1].rstrip('/')}/"):
            tops.append(folder)
    return tops


def racily_clean(index: Index) -> Callable[[Record], bool]:
    """Tells whether a file may have changed unseen: in the tick in which the index was last written."""
    try:
        written = index.file.stat().st_mtime_ns
    except OSError:
        return lambda _: False
    return lambda known: _number(known.get("mtime_ns")) >= written - TICK_NS


def prune(
    index: Index, roots: Iterable[str] = (), *, yes: bool = False, dry_run: bool = False, stop: Stop = never
) -> Iterator[Record]:
    """Takes files that are gone from the index: a record for each, with the state removed.

    Below these roots only, where there are any. Where more than half of what is known below a root is gone, or below
    the nearest folder that is still there, it may be that a disk is not mounted: then nothing of that is taken from the
    index, and an error record tells so, unless somebody said `yes`.
    """
    known, gone = _known_and_gone(index, [root.rstrip("/") for root in roots], stop)
    for root, some in gone.items():
        if stop():
            return
        below = sum(count for folder, count in known.items() if _is_below(folder, root))
        if 2 * len(some) > below and not yes:
            yield _too_many(len(some), below, root)
            continue
        told = {"state": "planned", "plan": "removed"} if dry_run else {"state": "removed"}
        yield from ({**record, **told} for record in (some if dry_run else _forgotten(index, some)))


def rebuild(
    indexing: Indexing, paths: Iterable[Path | str], index: Index, *, yes: bool = False, stop: Stop = never
) -> Iterator[Record]:
    """Makes the index anew from the files, beside the old one, and puts it in its place when it is whole.

    Events, and what others add meanwhile, are kept. The old index stays when the run is stopped, and, unless somebody
    said `yes`, when less than half of its instances were found.
    """
    index.skip()
    before = sum(1 for _ in index.instances())
    events = [encode(event) for event in index.events()]
    folder = index.file.with_name(temporary_name())
    made = Index(folder / index.file.name, index.root)
    try:
        made.append(map(decode, events))
        found = 0
        for record in indexing(paths, made):
            found += not is_error(record) and type_of(record) == "instance"
            yield record
        if stop():
            return
        if 2 * found < before and not yes:
            yield _too_many(before - found, before, os.fspath(index.file))
            return
        _put_in_place(made, index, frozenset(events))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _put_in_place(made: Index, index: Index, events: frozenset[bytes]) -> None:
    final = os.path.realpath(index.file)
    with Journal(index.file).locked():
        made.append(record for record in index.catch_up() if type_of(record) != "event" or encode(record) not in events)
        try:
            if made.file.exists():
                if os.path.exists(final):  # others may read it, and shall go on to
                    made.file.chmod(stat.S_IMODE(os.stat(final).st_mode))
                os.replace(made.file, final)
                fsync_folder(Path(final).parent)
        except OSError as problem:
            raise from_os(problem, "replacing", index.file) from problem


def _forgotten(index: Index, records: list[Record]) -> list[Record]:
    """Those of the records whose files are still gone when nobody else writes; they are no longer in the index."""
    gone: list[Record] = []

    def look() -> Iterator[Record]:
        gone.extend(record for record in records if is_gone(name_of(record) or ""))
        return map(tombstone, gone)

    index.append_after(look)
    return gone


def _known_and_gone(index: Index, roots: list[str], stop: Stop) -> tuple[Counter[str], dict[str, list[Record]]]:
    """How many files are known in each folder; and those of which nothing is there, by the root they are judged by."""
    known: Counter[str] = Counter()
    gone: dict[str, list[Record]] = {}
    for record in index.files():
        if stop():
            break
        name = name_of(record) or ""
        root = next((root for root in roots if _is_below(name, root)), None) if roots else ""
        if root is not None:
            folder = os.path.dirname(name)
            known[folder] += 1
            if is_gone(name):
                gone.setdefault(root or _nearest(folder), []).append(record)
    return known, gone


def _number(text: object) -> int:
    return int(text) if isinstance(text, str) and text.isdecimal() else 0


def _nearest(folder: str) -> str:
    """The folder, or the nearest one above it that is there."""
    while folder != "/" and not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    return folder


def _is_below(name: str, root: str) -> bool:
    return f"{name}/".startswith(f"{root.rstrip('/')}/")


def _too_many(gone: int, known: int, root: str) -> Record:
    where = path_keys(root)
    reason = f"{gone} of {known} files below {where['path']} are gone, so that nothing was taken from the index"
    return Incomplete(reason, "look whether its disk is mounted, or say --yes", cause="vanished", **where).record()
