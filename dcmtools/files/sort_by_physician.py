"""Lays out volumes and instances by referring physician, study and series.

    <physician>/<StudyDate>_<AccessionNumber>/<SeriesNumber>_<SeriesDescription>_<hash>/<files>

The physician is decided for a study as a whole, at its `study-complete` or at the end of the input. A second run
writes nothing; a corrected name moves the study.
"""

import grp
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dcmtools.disk.lock import Lock
from dcmtools.files.filing import Filing
from dcmtools.files.held_study import HeldStudy, file_in, study_of
from dcmtools.files.physicians import NOBODY, Registry, Spellings, read_merges
from dcmtools.files.placing import How, Rights
from dcmtools.files.sorted_ledger import NAME, Ledger
from dcmtools.files.sorted_tree import LOCK_NAME, Tree
from dcmtools.model.errors import UsageError, from_os
from dcmtools.model.names import safe_name
from dcmtools.model.record import Record, is_event

REGISTRY_NAME = "physicians.json"


@dataclass(frozen=True, slots=True)
class SortOptions:
    """How to sort; "link" is a hard link on one file system, else a copy."""

    how: How = "link"
    multi: Literal["first", "all"] = "first"
    unknown: str = "_unknown"
    ascii: bool = False
    merge: Path | None = None
    mode: int | None = None
    group: str | None = None
    dry_run: bool = False
    nobody: frozenset[str] = NOBODY


def sort(
    stream: Iterable[Record], out: Path, options: SortOptions | None = None, *, stop: Callable[[], bool] = lambda: False
) -> Iterator[Record]:
    """Places the files of volume, instance and file records below `out`, and yields a file record for each.

    Other records pass through; events of a study come out after its files. `stop` is asked between studies.

    Raises:
        Locked: another run sorts into this folder.
        ConfigurationError: the file of names to merge, or physicians.json, cannot be used.
        DiskFull: when all that was placed before is written down.
    """
    options = options or SortOptions()
    out = Path(os.path.abspath(out))
    rights = Rights(options.mode, _gid(options.group))
    with ExitStack() as stack:
        if not options.dry_run:
            _make(out, rights)
            stack.enter_context(Lock(out / LOCK_NAME, "sort-by-physician"))
        tree = _tree(out, options, rights)
        stack.callback(tree.save)
        if not options.dry_run:
            tree.sweep()
        yield from _sorted(stream, tree, stop)


def _sorted(stream: Iterable[Record], tree: Tree, stop: Callable[[], bool]) -> Iterator[Record]:
    held: dict[str, HeldStudy] = {}
    for record in stream:
        if stop():
            return
        uid = str(record.get("StudyInstanceUID") or "")
        if path := file_in(record):
            name = study_of(record, path)
            held.setdefault(name, HeldStudy(name, uid or None)).add(record, path)
        elif is_event(record, "study-complete") and uid in held:
            yield from _filed(held.pop(uid), tree)
            yield record
        elif is_event(record, "series-complete") and uid in held:
            held[uid].events.append(record)
        elif is_event(record, "end"):
            yield from _all_filed(held, tree, stop)
            yield record
        else:
            yield record
    yield from _all_filed(held, tree, stop)


def _all_filed(held: dict[str, HeldStudy], tree: Tree, stop: Callable[[], bool]) -> Iterator[Record]:
    while held and not stop():
        yield from _filed(held.pop(next(iter(held))), tree)


def _filed(study: HeldStudy, tree: Tree) -> Iterator[Record]:
    filing = Filing(tree, study)
    filing.run()
    yield from filing.records
    if filing.failure:
        raise filing.failure
    yield from study.events


def _tree(out: Path, options: SortOptions, rights: Rights) -> Tree:
    unknown = safe_name(options.unknown)
    if unknown.casefold() in {REGISTRY_NAME, NAME}:
        raise UsageError(f"--unknown {unknown}: is the name of a file of ours", "choose another name")
    merges = read_merges(options.merge) if options.merge else {}
    return Tree(
        out=out,
        how=options.how,
        every=options.multi == "all",
        unknown=unknown,
        rights=rights,
        dry_run=options.dry_run,
        registry=Registry(out / REGISTRY_NAME, reserved=(unknown, REGISTRY_NAME, NAME), ascii_only=options.ascii),
        ledger=Ledger(out / NAME),
        spellings=Spellings(merges, options.nobody),
    )


def _make(out: Path, rights: Rights) -> None:
    try:
        rights.make_folders(out)
    except OSError as problem:
        raise from_os(problem, "making the output folder", out) from problem


def _gid(group: str | None) -> int | None:
    """The number of a group that is given by name or number."""
    if group is None:
        return None
    if group.isascii() and group.isdecimal():
        return int(group)
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise UsageError(f"--group {group}: there is no such group here", "see: getent group") from None
