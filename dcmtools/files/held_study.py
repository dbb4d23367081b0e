"""What the records of one study bring for sorting: its files, the names they shall have, and who referred it."""

import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dcmtools.files.physicians import Physician, Spellings, name_in, numbered
from dcmtools.files.sorted_ledger import Ledger, SortedStudy, Vote
from dcmtools.model.names import MAX_BYTES, safe_name, short_hash
from dcmtools.model.record import Record, path_of, type_of

# States in which there is no file to place, or not the one that its UID stands for.
_NOTHING_THERE = frozenset({"failed", "skipped", "conflict", "deleted", "removed"})
_ENDING = re.compile(r"(\.nii)?\.[A-Za-z][A-Za-z0-9]{0,7}\Z", re.IGNORECASE)
_LONGEST_ENDING = 20  # with a number before it


@dataclass(frozen=True, slots=True)
class Item:
    """A volume with its companions, an instance or another file, and the folder for it below the study's."""

    sources: tuple[str, ...]
    folder: str
    series: str | None
    instance: str | None


@dataclass(slots=True)
class HeldStudy:
    """The items of a study; those without a StudyInstanceUID are held by the folder where they lie."""

    name: str
    uid: str | None
    items: dict[str, Item] = field(default_factory=dict)
    events: list[Record] = field(default_factory=list)
    _votes: dict[str, Counter[Vote]] = field(default_factory=dict)
    _folders: Counter[str] = field(default_factory=Counter)
    _guesses: Counter[str] = field(default_factory=Counter)  # from records that do not tell the AccessionNumber
    _shared: dict[str, str] = field(default_factory=dict)  # a study has many items, and few series

    def add(self, record: Record, path: Path) -> None:
        """Holds what is needed of a record; the last record of a path counts."""
        sources = (_absolute(path), *_companions(record))
        series, folder = self._share(_text(record, "SeriesInstanceUID")), self._share(_item_folder(record, path))
        item = Item(tuple(dict.fromkeys(sources)), folder or "_", series, _text(record, "SOPInstanceUID"))
        self.items[sources[0]] = item
        votes = self._votes.setdefault(series or "", Counter())
        if "ReferringPhysicianName" in record or "ReferringPhysicianIdentificationSequence" in record:
            votes[name_in(record)] += 1
        folders = self._folders if "AccessionNumber" in record else self._guesses
        folders[_study_folder(record, self.name)] += 1

    def votes(self, before: Mapping[str, Vote], spellings: Spellings) -> dict[str, Vote]:
        """The name that each series gives: its most common one that names somebody; with those of earlier runs."""
        named = dict(before)
        for series, votes in self._votes.items():
            ordered = [vote for vote, _ in votes.most_common()]
            last = ordered[0] if ordered else before.get(series, ("", ""))
            named[series] = next((vote for vote in ordered if spellings.read(*vote)), last)
        return named

    def folder(self, before: SortedStudy | None, ledger: Ledger) -> str:
        """`<StudyDate>_<AccessionNumber>`, or a hash of the UID where there is none, or where another study has it.

        What it was before remains as long as one of the records says the same.
        """
        if before and not self._folders:
            return before.folder
        names = [name for name, _ in (self._folders or self._guesses).most_common()]
        both = {name: (safe_name(name), safe_name(f"{name}_{short_hash(self.name)}")) for name in names}
        if before and any(before.folder in pair for pair in both.values()):
            return before.folder
        plain, longer = both[names[0]]
        return plain if ledger.claim(plain, self.name) else longer

    def _share(self, text: str | None) -> str | None:
        return self._shared.setdefault(text, text) if text is not None else None


def study_of(record: Record, path: Path) -> str:
    """By what the items of a study are held together."""
    folder = os.path.dirname(_absolute(path))
    return _text(record, "StudyInstanceUID") or f"folder {os.fsencode(folder).decode('utf-8', 'backslashreplace')}"


def file_in(record: Record) -> Path | None:
    """The file that a record asks us to place, if it does."""
    if type_of(record) not in {"volume", "instance", "file"} or record.get("state") in _NOTHING_THERE:
        return None
    return path_of(record)


def chosen(votes: Mapping[str, Vote], spellings: Spellings) -> tuple[tuple[Physician, ...], bool]:
    """Whom most series name, the first of equals; and whether others are named too. Empty when nobody is."""
    read = [found for vote in votes.values() if (found := spellings.read(*vote))]
    counts = Counter(_keys(found) for found in read)
    if not counts:
        return (), False
    most = counts.most_common(1)[0][0]
    return Counter(found for found in read if _keys(found) == most).most_common(1)[0][0], len(counts) > 1


def file_name(source: str, number: int = 1) -> str:
    """The safe name for a file, `~2` before its extension from the second on; companions keep a common stem."""
    stem, ending = _split(os.path.basename(source))
    return numbered(safe_name(stem, max_bytes=MAX_BYTES - _LONGEST_ENDING), number) + ending


def _keys(found: tuple[Physician, ...]) -> tuple[str, ...]:
    return tuple(physician.key for physician in found)


def _item_folder(record: Record, path: Path) -> str:
    folder = _series_folder(record) or safe_name(_split(path.name)[0])
    # The geometry audit doubts such a volume: nobody shall take it for a good one.
    return f"_suspect/{folder}" if record.get("state") == "suspect" else folder


def _series_folder(record: Record) -> str:
    series = _text(record, "SeriesInstanceUID")
    number = record.get("SeriesNumber")
    words = (
        f"{number:04d}" if isinstance(number, int) else _text(record, "SeriesNumber"),
        _text(record, "SeriesDescription"),
        short_hash(series) if series else None,
    )
    return safe_name("_".join(word for word in words if word)) if series else ""


def _study_folder(record: Record, study: str) -> str:
    date, accession = _text(record, "StudyDate"), _text(record, "AccessionNumber")
    return f"{date or 'undated'}_{accession or short_hash(study)}"


def _companions(record: Record) -> list[str]:
    """The other files of a volume; a record has them by their kind, or as a list."""
    files = record.get("files")
    paths = list(files.values()) if isinstance(files, dict) else files if isinstance(files, list) else []
    return [_absolute(Path(one)) for one in paths if isinstance(one, str) and one]


def _absolute(path: Path) -> str:
    return os.path.abspath(path)


def _text(record: Record, keyword: str) -> str | None:
    value = record.get(keyword)
    return str(value).strip() or None if value is not None else None


def _split(name: str) -> tuple[str, str]:
    ending = _ENDING.search(name)
    return (name[: ending.start()], ending[0]) if ending and ending.start() else (name, "")
