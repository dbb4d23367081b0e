"""Files one study into the tree: what is missing is placed, what is there is left, what is elsewhere is brought along.

The order makes a kill at any moment harmless: place, publish, sync, write the ledger, and only then remove.
"""

import itertools
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path, PurePosixPath

from dcmtools.disk.atomic import fsync_folder
from dcmtools.files import placing
from dcmtools.files.held_study import HeldStudy, Item, chosen, file_name
from dcmtools.files.sorted_ledger import Placed, SortedStudy, source_keys
from dcmtools.files.sorted_place import Action, Piece, look, same_bytes
from dcmtools.files.sorted_tree import Tree
from dcmtools.model.errors import CannotCreate, DcmtoolsError, DiskFull, from_os
from dcmtools.model.record import Record, event, path_keys

_LONGEST_PATH = 4095  # PATH_MAX with its closing zero byte


class Filing:
    """One study on its way into the tree.

    `records` are for the output; `failure`, as a full disk, is what ended it early, when all that could be kept is
    kept.
    """

    def __init__(self, tree: Tree, study: HeldStudy) -> None:
        self.tree, self.study = tree, study
        self.records: list[Record] = []
        self.failure: DcmtoolsError | None = None
        self._before = tree.ledger.study(study.name)
        self._placed = tree.ledger.placed(study.name)
        self._named = {source for item in study.items.values() for source in item.sources}
        self._folder = study.folder(self._before, tree.ledger)
        self._decide()
        self._wanted = {f"{physician}/{self._folder}" for physician in self._folders}
        self._staged = {folder for folder in self._wanted if _can_be_made(tree.out / folder)}
        self._by_source: dict[str, list[Placed]] = {}
        for one in self._placed.values():
            self._by_source.setdefault(one.source, []).append(one)
        self._claimed: dict[str, str] = {}  # target -> bytes
        self._kept: set[str] = set()  # targets
        self._failed: set[str] = set()  # sources
        self._broken: set[str | None] = set()  # series of them
        self._converted = {item.series for item in study.items.values() if item.series and _is_volume(item)}
        self._moved: dict[str, str] = {}  # earlier target -> target
        self._leaving: dict[str, str] = {}  # source -> target
        self._touched: set[Path] = set()
        self._lines: list[Record] = []

    def run(self) -> None:
        """Files the study."""
        try:
            self._place_all()
        except DcmtoolsError as problem:
            self.failure = problem
        try:
            self._commit()
        except DcmtoolsError as problem:
            self.failure = self.failure or problem
        except OSError as problem:
            self.failure = self.failure or from_os(problem, "writing to", self.tree.out)

    def _place_all(self) -> None:
        if not self.tree.dry_run:
            self.tree.registry.save(self.tree.rights.file_mode)  # a folder is known before it is there
        for physician in self._folders:
            for item in self.study.items.values():
                self._file(item, physician)
            self._bring_along(physician)

    def _decide(self) -> None:
        tree = self.tree
        votes = self.study.votes(self._before.votes if self._before else {}, tree.spellings)
        found, disputed = chosen(votes, tree.spellings)
        taken = found if tree.every else found[:1]
        self._folders = list(dict.fromkeys(map(tree.registry.folder, taken))) or [tree.unknown]
        self._others = [physician.spelling for physician in found[len(taken) :]]
        keys = tuple(map(tree.registry.key, taken))
        self._now = SortedStudy(self._folder, keys, tuple(physician.spelling for physician in taken), votes)
        if disputed:
            reason = "the series of this study name different referring physicians; the most common one has it"
            self._warn("physicians-differ", reason, physician=self._folders[0])

    def _file(self, item: Item, physician: str) -> None:
        """Places a volume with its companions, or an instance."""
        try:
            pieces = [self._piece(source, item) for source in item.sources]
            base = f"{physician}/{self._folder}/{item.folder}"
            self._settle(base, [(piece, os.path.basename(piece.origin)) for piece in pieces])
        except (DcmtoolsError, OSError) as problem:
            self._fail(item, item.sources, problem)

    def _bring_along(self, physician: str) -> None:
        """Moves what earlier runs placed of this study, and this one does not name, to where the study is now."""
        for rest, entries in self._unnamed().items():
            target = PurePosixPath(physician, self._folder, rest)
            if os.fspath(target) in self._placed:
                self._kept.add(os.fspath(target))
                continue
            piece = self._relocated(entries[0])
            try:
                self._settle(os.fspath(target.parent), [(piece, target.name)])
            except (DcmtoolsError, OSError) as problem:
                self._fail(piece.item, (piece.origin,), problem)

    def _unnamed(self) -> dict[str, list[Placed]]:
        groups: dict[str, list[Placed]] = {}
        for one in self._placed.values():
            if one.source in self._named or self._is_superseded(one):
                continue
            if os.path.lexists(self.tree.at(one.path)):
                groups.setdefault("/".join(one.path.split("/")[2:]), []).append(one)
        return groups

    def _is_superseded(self, one: Placed) -> bool:
        """Whether an unnamed file was a volume of a series that has others now: a conversion took its source away.

        What we moved here has no source and is the only copy; instances never stand for others of their series.
        """
        gone = one.instance is None and not one.moved and one.series in self._converted
        return gone and one.source not in self._named and not os.path.lexists(one.source)

    def _piece(self, source: str, item: Item) -> Piece:
        """The file as it is to be placed; one that is gone is taken from where we placed it."""
        self.tree.guard(source)
        earlier = self._by_source.get(source, ())
        there = next((one for one in earlier if os.path.lexists(self.tree.at(one.path))), None)
        if os.path.lexists(source) or there is None:
            return Piece(source, source, self.tree.how, item)
        return replace(self._relocated(there), item=item)

    def _relocated(self, one: Placed) -> Piece:
        actual = self.tree.at(one.path)
        item = Item((one.source,), "", one.series, one.instance)
        if os.path.islink(actual):
            return Piece(one.source, os.readlink(actual), "symlink", item, one)
        return Piece(one.source, actual, "link", item, one)

    def _settle(self, base: str, pieces: list[tuple[Piece, str]]) -> None:
        """Does what is to be done for files that belong together, under the first number that all can have."""
        for number in itertools.count(1):
            targets = [f"{base}/{file_name(name, number)}" for _, name in pieces]
            actions = [self._look(piece, target) for (piece, _), target in zip(pieces, targets, strict=True)]
            if None not in actions:
                break
        for (piece, _), target, action in zip(pieces, targets, actions, strict=True):
            if action == "new" and number > 1:
                reason = "another file has this name already; this one is placed beside it"
                self._warn("name-taken", reason, **path_keys(self.tree.at(target)))
            if action is not None:
                self._step(piece, target, action)

    def _look(self, piece: Piece, target: str) -> Action | None:
        """What is to be done at a target; None when another file is there, which stays."""
        if claimed := self._claimed.get(target):
            return "present" if same_bytes(piece.actual, claimed) else None
        if len(os.fsencode(self.tree.at(target))) > _LONGEST_PATH:
            raise CannotCreate("the path of its place is too long", "choose a shorter --out")
        return look(piece, self._where(target), self._placed.get(target), moving=self.tree.how == "move")

    def _step(self, piece: Piece, target: str, action: Action) -> None:
        self._claimed[target] = piece.actual
        try:
            state = self._act(piece, target, action)
        except (DcmtoolsError, OSError) as problem:
            self._fail(piece.item, (piece.origin,), problem)
        else:
            self._kept.add(target)
            self._report(piece, target, state)

    def _act(self, piece: Piece, target: str, action: Action) -> str:
        """Does it, and tells the state: linked, copied, updated or present."""
        path = self._where(target)
        if self.tree.dry_run:
            return self._planned(piece, action)
        state = "present"
        if action in {"new", "update"}:
            state = self._write(piece, Path(path), action)
        elif not os.path.islink(path):
            self.tree.rights.grant(path)
        if action != "present" or self._is_moved_now(piece, target):
            self._lines.append(self._line(piece, target, path))
        return state

    def _is_moved_now(self, piece: Piece, target: str) -> bool:
        """Whether a file that an earlier run linked or copied leaves its source with this one."""
        known = self._placed.get(target)
        return self.tree.how == "move" and piece.before is None and known is not None and not known.moved

    def _write(self, piece: Piece, path: Path, action: Action) -> str:
        rights, staging = self.tree.rights, self.tree.staging()
        if path.parent not in self._touched:
            rights.make_folders(path.parent)
            self._touched.add(path.parent)
        if action == "new":
            return placing.place(Path(piece.actual), path, piece.how, rights, staging)
        placing.replace(Path(piece.actual), path, piece.how, rights, staging)
        return "updated"

    def _planned(self, piece: Piece, action: Action) -> str:
        if action == "new":
            return placing.prospect(Path(piece.actual), self.tree.out, piece.how)
        return "updated" if action == "update" else "present"

    def _line(self, piece: Piece, target: str, path: str) -> Record:
        there = os.lstat(path)
        if piece.before is not None:
            size, mtime_ns = piece.before.size, piece.before.mtime_ns
        else:
            here = os.stat(piece.actual)
            size, mtime_ns = here.st_size, here.st_mtime_ns
        moved = self.tree.how == "move" if piece.before is None else piece.before.moved
        more = (piece.item.series, piece.item.instance, moved)
        return Placed(target, piece.origin, size, mtime_ns, there.st_mtime_ns, *more).line(self.study.name)

    def _report(self, piece: Piece, target: str, state: str) -> None:
        """Adds the file's record; moved, when an earlier place of it or the source itself goes."""
        whence: str | None = None
        if earlier := self._earlier(piece, target):
            self._moved[earlier.path] = target
            whence = self.tree.at(earlier.path)
        elif self.tree.how == "move" and piece.before is None:
            whence = piece.origin
        if self.tree.how == "move" and piece.before is None:
            self._leaving[piece.origin] = target
        state = "moved" if whence and state != "updated" else state
        plan = {"state": "planned", "plan": state} if self.tree.dry_run and state != "present" else {"state": state}
        path = self.tree.at(target)
        record = {"type": "file", **plan, **path_keys(path), **source_keys(piece.origin)}
        if whence:
            record |= {**source_keys(whence, "from"), **source_keys(path, "to")}
        record["physician"] = target.partition("/")[0]
        others = {"other_physicians": self._others} if self._others else {}
        self.records.append({**record, **others, **self._uids(piece.item)})

    def _earlier(self, piece: Piece, target: str) -> Placed | None:
        """Another place of the same file, which it leaves with this step."""
        if target in self._placed:
            return None
        prefix = _study_of(target)
        for one in self._by_source.get(piece.origin, ()):
            stays = one.path == target or (_study_of(one.path) in self._wanted and _study_of(one.path) != prefix)
            if not stays and os.path.lexists(self.tree.at(one.path)):
                return one
        return None

    def _commit(self) -> None:
        if self.tree.dry_run:
            return
        if self._lines or self._touched:
            self._publish()
        kept = bool(self._lines or self._placed)
        study = [self._now.line(self.study.name)] if kept and self._now != self._before else []
        self.tree.ledger.append([*self._lines, *study], self.tree.rights.file_mode)
        if self.failure is None:
            self.tree.ledger.append(list(self._removed()), self.tree.rights.file_mode)
            self._remove_sources()

    def _publish(self) -> None:
        """Makes the names durable, and a new study folder visible in one step."""
        for touched in self._touched:
            fsync_folder(touched)
        for folder in sorted(self._staged):
            unseen, final = self.tree.staging() / folder, self.tree.out / folder
            if unseen.is_dir():
                self.tree.rights.make_folders(final.parent)
                try:
                    unseen.rename(final)
                except OSError as problem:
                    doing = f"making the folder of study {self.study.uid or ''}".rstrip() + " below"
                    raise from_os(problem, doing, self.tree.out) from problem
                fsync_folder(final.parent)
        self._staged.clear()

    def _removed(self) -> Iterator[Record]:
        """Removes the earlier places that the study has left, and tells the ledger's lines of it."""
        synced: set[Path] = set()
        folded = {target.casefold(): target for target in self._kept}
        for one in self._placed.values():
            if self._stays(one):
                continue
            # On a file system that does not tell case this may be the new place in other letters.
            twin = folded.get(one.path.casefold())
            if twin is None or not _is_one_folder(self.tree.at(twin), self.tree.at(one.path)):
                self._remove_place(one)
                synced.add(self._without_empty(self.tree.out / one.path))
            yield {"type": "file", "study": self.study.name, "path": one.path, "state": "removed"}
        for folder in synced:
            with suppress(FileNotFoundError):  # emptied later, and synced by its parent
                fsync_folder(folder)

    def _stays(self, one: Placed) -> bool:
        if one.path in self._kept or one.source in self._failed:
            return True
        if self._is_superseded(one):
            return one.series in self._broken  # the old volume is better than none
        return one.source not in self._named and _study_of(one.path) in self._wanted

    def _remove_place(self, one: Placed) -> None:
        path = self.tree.at(one.path)
        try:
            there = os.lstat(path)
            target = self._moved.get(one.path)
            twins = [one.source] if target is None else [one.source, self.tree.at(target)]
            if one.is_at(there) or stat.S_ISLNK(there.st_mode) or any(_is_file(twin, there) for twin in twins):
                os.unlink(path)
            else:
                reason = "this file was changed by hand and stays here; its source has another place now"
                self._warn("changed-by-hand", reason, **path_keys(path))
                return
        except FileNotFoundError:
            return
        except OSError as problem:
            self.records.append(self._not_removed(problem, path, one.series))
            return
        if target is None:
            uids = self._uids(Item((one.source,), "", one.series, one.instance))
            where = {**path_keys(path), **source_keys(one.source)}
            self.records.append({"type": "file", "state": "removed", **where, **uids})

    def _not_removed(self, problem: OSError, path: str, series: str | None) -> Record:
        """The error record of a file that should go; its path is made of names, and no part of the reason."""
        uids = self._uids(Item((path,), "", series, None))
        return from_os(problem, "removing a file from where it was").record(**path_keys(path), **uids)

    def _without_empty(self, path: Path) -> Path:
        """The nearest folder above that is left, when empty ones are gone."""
        for folder in itertools.takewhile(lambda parent: parent != self.tree.out, path.parents):
            try:
                folder.rmdir()
            except FileNotFoundError:
                continue
            except OSError:
                return folder
        return self.tree.out

    def _remove_sources(self) -> None:
        series = {source: item.series for item in self.study.items.values() for source in item.sources}
        for source, target in self._leaving.items():
            if source in self._failed or not os.path.lexists(source) or os.path.islink(self.tree.at(target)):
                continue
            try:
                os.unlink(source)
            except OSError as problem:
                self.records.append(self._not_removed(problem, source, series.get(source)))

    def _where(self, target: str) -> str:
        """Where a target is now: in staging, as long as its study's folder is not published."""
        if _study_of(target) in self._staged and not self.tree.dry_run:
            return os.path.join(self.tree.staging(), target)
        return self.tree.at(target)

    def _fail(self, item: Item, sources: tuple[str, ...], problem: DcmtoolsError | OSError) -> None:
        """Notes an error for each source; a full disk ends the study.

        Paths are made of what people are called: they are keys of the record, and never part of its reason.
        """
        told = problem if isinstance(problem, DcmtoolsError) else from_os(problem, "placing it")
        if isinstance(told, DiskFull):
            raise told from problem
        self._failed.update(sources)
        self._broken.add(item.series)
        for source in sources:
            where = {**path_keys(source), **source_keys(source), "state": "failed", "physician": self._folders[0]}
            self.records.append(told.record(**where, **self._uids(item)))

    def _uids(self, item: Item) -> Record:
        uids = {
            "StudyInstanceUID": self.study.uid,
            "SeriesInstanceUID": item.series,
            "SOPInstanceUID": item.instance,
        }
        return {keyword: uid for keyword, uid in uids.items() if uid}

    def _warn(self, cause: str, reason: str, **where: object) -> None:
        uid = {"StudyInstanceUID": self.study.uid} if self.study.uid else {}
        self.records.append(event("warning", cause=cause, reason=reason, **uid, **where))


def _is_one_folder(path: str, other: str) -> bool:
    with suppress(OSError):
        return os.path.samefile(os.path.dirname(path), os.path.dirname(other))
    return False


def _is_file(path: str, there: os.stat_result) -> bool:
    with suppress(OSError):
        return os.path.samestat(os.lstat(path), there)
    return False


def _can_be_made(folder: Path) -> bool:
    """Whether a study folder is new, and its parent is, or is a folder of this file system."""
    parent = folder.parent
    return not os.path.lexists(folder) and (
        not os.path.lexists(parent) or (parent.is_dir() and not parent.is_symlink())
    )


def _is_volume(item: Item) -> bool:
    return item.instance is None and item.sources[0].lower().endswith((".nii", ".nii.gz"))


def _study_of(target: str) -> str:
    """The physician's and the study's folder of a path in the tree."""
    return "/".join(target.split("/")[:2])
