"""Previews: a picture of the middle of each series and of each NIfTI volume, so that one look tells what it is."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dcmtools.disk.atomic import make_folders, write_atomic
from dcmtools.disk.header import read_header
from dcmtools.images.preview_choice import View, is_image, views
from dcmtools.model.errors import BadData, CannotCreate, DcmtoolsError, NoInput, UsageError, from_os
from dcmtools.model.keys import keywords_of
from dcmtools.model.names import safe_name, short_hash
from dcmtools.model.record import Record, is_event, path_keys, path_of, pick, type_of
from dcmtools.model.uids import EXPLICIT_VR_BIG_ENDIAN, EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN

# Whoever changes how pictures look raises it: older ones are drawn again.
REVISION = 1

SMALLEST, LARGEST = 16, 8192  # pixels

# Pixels that lie in the file as they are; all others go through a decoder, and deflate through a decompressor.
_NATIVE = frozenset({IMPLICIT_VR_LITTLE_ENDIAN, EXPLICIT_VR_LITTLE_ENDIAN, EXPLICIT_VR_BIG_ENDIAN})
_NIFTI = (".nii.gz", ".nii")
# What a picture's record keeps of its source, so that it can be sorted as that can (DESIGN §3).
_KEPT = (
    *keywords_of("patient"),
    *keywords_of("study"),
    *keywords_of("series"),
    "SOPClassUID",
    "SOPInstanceUID",
    "NumberOfFrames",
)
# What other commands made of an instance that is now at the path of their record.
_PLACED = frozenset({"linked", "copied", "moved", "updated", "present"})
_NOTHING_THERE = frozenset({"failed", "refused", "removed", "skipped", "planned"})
_NAMES = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")

Stop = Callable[[], bool]


def preview(
    records: Iterable[Record], out: Path, *, size: int | None = None, stop: Stop, dry_run: bool = False
) -> Iterator[Record]:
    """A file record for each picture in `out`: drawn, present (an older run drew it), planned, or skipped.

    Instances are held until their series is complete, or the records end; volumes and NIfTI files are drawn at once.
    What cannot be drawn becomes an error record, and other records pass through.

    Args:
        records: instance, volume, file records and events, in any order
        out: the folder for the PNGs
        size: the longer side of a picture in pixels; default: that of the image, between 256 and 1024
        stop: looked at between pictures
        dry_run: only tells what would be drawn

    Raises:
        UsageError: no picture has such a size.
        CannotCreate, DiskFull, IOFailure: the pictures cannot be written.
    """
    if size is not None and not SMALLEST <= size <= LARGEST:
        raise UsageError(f"a picture cannot be {size} pixels long", f"choose {SMALLEST} to {LARGEST}")
    desk = _Desk(out.absolute(), size, dry_run=dry_run)
    for record in records:
        if stop():
            return
        yield from desk.take(record, stop)
    yield from desk.draw_held(stop)


def _instance_at(path: Path) -> Record:
    try:
        return read_header(path, follow=True)
    except BadData as problem:
        if problem.cause in {"not-dicom", "dicomdir"}:
            return {
                "type": "file",
                "state": "skipped",
                "cause": problem.cause,
                "reason": problem.reason,
                **path_keys(path),
            }
        return problem.record()


@dataclass(frozen=True, slots=True)
class _Subject:
    """What a picture is drawn of: a frame (from 0) of an instance that stands for several, or a volume."""

    record: Record
    path: Path
    name: str
    frame: int | None = None
    instances: tuple[str, ...] = ()
    more: Record = field(default_factory=dict)


class _Desk:
    """Instances that wait for the rest of their series, and the drawing of what is complete."""

    def __init__(self, out: Path, size: int | None, *, dry_run: bool) -> None:
        self._out = out
        self._size = size
        self._dry_run = dry_run
        self._held: dict[tuple[str, str], dict[str, Record]] = {}

    def take(self, record: Record, stop: Stop) -> Iterator[Record]:
        """What follows from one record."""
        kind, path = type_of(record), path_of(record)
        if kind == "instance" and record.get("state") != "planned":
            yield from self._hold(record, path)
        elif kind in {"volume", "file"} and path and _is_nifti(path) and record.get("state") not in _NOTHING_THERE:
            yield self._picture(_of_volume(record, path))
        elif path and _is_placed_instance(record, path):
            yield from self._hold(path_keys(path), path)  # its keys are those of the place: its own are in the file
        else:
            yield from self._complete(record, stop)
            yield record

    def draw_held(self, stop: Stop, study: str | None = None, series: str | None = None) -> Iterator[Record]:
        """The pictures of what waits: of all, of a study, or of a series."""
        for key in [key for key in self._held if study in {None, key[0]} and series in {None, key[1]}]:
            if stop():
                return
            yield from self._series(list(self._held.pop(key).values()), stop)

    def _hold(self, record: Record, path: Path | None) -> Iterator[Record]:
        if path is None:
            yield _failure(NoInput("it has no path", "give records of files that are here"), record)
            return
        if not all(record.get(name) for name in _NAMES):  # somebody left keys out
            record = _instance_at(path)
            if type_of(record) != "instance":
                yield record
                return
        key = (str(record.get("StudyInstanceUID")), str(record.get("SeriesInstanceUID")))
        self._held.setdefault(key, {})[str(record.get("SOPInstanceUID"))] = record

    def _complete(self, record: Record, stop: Stop) -> Iterator[Record]:
        study, series = record.get("StudyInstanceUID"), record.get("SeriesInstanceUID")
        if is_event(record, "series-complete") and series:
            yield from self.draw_held(stop, series=str(series))
        elif is_event(record, "study-complete") and study:
            yield from self.draw_held(stop, study=str(study))

    def _series(self, series: list[Record], stop: Stop) -> Iterator[Record]:
        if not any(is_image(record) for record in series):
            yield _skipped(series[0], "it is no image", instances=len(series))
        for view in views(series):
            if stop():
                return
            yield self._picture(_of_view(view))

    def _picture(self, subject: _Subject) -> Record:
        """The record of a picture, whatever became of it."""
        png = self._out / f"{safe_name(subject.name)}.png"
        try:
            state = self._brought_up_to_date(png, subject)
        except _Unwritable as problem:
            raise problem.told from problem
        except DcmtoolsError as problem:
            return _failure(problem, subject.record)
        except Exception as problem:  # noqa: BLE001 - a worker's door: one bad file never stops the others
            kind = type(problem).__name__
            return _failure(BadData(f"no picture can be drawn of it ({kind})", cause="undrawable"), subject.record)
        kept = pick(subject.record, *_KEPT) | subject.more
        size = {} if state == "planned" else {"size": png.stat().st_size}
        place = {**path_keys(png), **size, "source": path_keys(subject.path)["path"]}
        return {"type": "file", **kept, **place, "state": state}

    def _brought_up_to_date(self, png: Path, subject: _Subject) -> str:
        """The state of a picture that is there in the end, unless this is a dry run."""
        from dcmtools.images.preview_paper import source_of

        source = _digest(subject.path, self._size, subject.frame, *subject.instances)
        there = source_of(png)
        if there == source:
            return "present"
        if there is None and os.path.lexists(png):
            reason = "a file that dcmtools has not drawn has the name of its picture, and stays"
            raise CannotCreate(reason, "move it away, or choose another --out", cause="conflict", **path_keys(png))
        if self._dry_run:
            return "planned"
        _write(png, self._drawn(subject, source))
        return "drawn"

    def _drawn(self, subject: _Subject, source: str) -> bytes:
        syntax = str(subject.record.get("TransferSyntaxUID") or IMPLICIT_VR_LITTLE_ENDIAN)
        if subject.frame is not None and syntax not in _NATIVE:
            from dcmtools.images.preview_child import draw_apart

            return draw_apart(subject.path, subject.frame, syntax, self._size, source)
        from dcmtools.images import preview_paper

        if subject.frame is None:
            from dcmtools.images import preview_planes

            return preview_paper.png(preview_planes.draw(subject.path, self._size), source)
        from dcmtools.images import preview_frame

        return preview_paper.png(preview_frame.draw(subject.path, subject.frame, syntax, self._size), source)


def _of_view(view: View) -> _Subject:
    path = path_of(view.record)
    if path is None:
        raise AssertionError
    uids = tuple(sorted(str(record.get("SOPInstanceUID")) for record in view.sources))
    more = {"frame": view.frame + 1} if view.is_one_frame else {"instances": len(uids)}
    return _Subject(view.record, path, view.name, view.frame, uids, more)


def _of_volume(record: Record, path: Path) -> _Subject:
    return _Subject(record, path, f"{_stem(path)}_{short_hash(str(path.absolute()))}")


class _Unwritable(Exception):
    """The pictures cannot be written: this one and, likely, all that follow."""

    def __init__(self, told: DcmtoolsError) -> None:
        super().__init__(str(told))
        self.told = told


def _write(png: Path, data: bytes) -> None:
    try:
        make_folders(png.parent)
        write_atomic(png, data)
    except OSError as problem:
        raise _Unwritable(from_os(problem, "writing a picture into", png.parent)) from problem


def _digest(path: Path, *more: Any) -> str:
    """What a picture depends on: the file as it is now, the other images of its series, and the way of drawing."""
    try:
        state = os.stat(path)
    except OSError as problem:
        raise from_os(problem, "reading it") from problem
    text = "\n".join(map(str, (REVISION, state.st_size, state.st_mtime_ns, *more)))
    return hashlib.sha256(text.encode()).hexdigest()


def _failure(problem: DcmtoolsError, record: Record) -> Record:
    """The error record; paths are made of what people are called, so that they are keys and not in the reason."""
    where = pick(record, "path", "path_b64")
    if "path" in problem.where:  # that of the picture
        where = {**pick(problem.where, "path", "path_b64"), "source": where.get("path")}
    uids = pick(record, "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
    return problem.record(**uids, **where, state="failed")


def _skipped(record: Record, reason: str, **more: Any) -> Record:
    """The record of what has no picture; its path is that of the source."""
    place = pick(record, "path", "path_b64")
    return {"type": "file", **pick(record, *_KEPT), **place, **more, "state": "skipped", "reason": reason}


def _is_placed_instance(record: Record, path: Path) -> bool:
    """Whether a file record stands for an instance; that of a picture names the one that it shows."""
    is_file = type_of(record) == "file" and record.get("state") in _PLACED
    return is_file and bool(record.get("SOPInstanceUID")) and path.suffix.lower() != ".png"


def _is_nifti(path: Path) -> bool:
    return path.name.lower().endswith(_NIFTI)


def _stem(path: Path) -> str:
    name = path.name
    suffix = next(suffix for suffix in _NIFTI if name.lower().endswith(suffix))
    return name[: -len(suffix)]
