"""One series becomes volumes: looked up, staged, converted, audited, compressed, named, noted (DESIGN §5.5, §5.11)."""

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from dcmtools.disk.atomic import FILE_MODE, write_atomic
from dcmtools.images.conversions import Conversion, Conversions, files_of
from dcmtools.images.engine import Engine, Limits, Output, Run
from dcmtools.images.naming import Template
from dcmtools.images.placement import EXTENSIONS, SUSPECT_FOLDER, Finished, Placed, Placement
from dcmtools.images.series import Input, Series, digest_of, pixel_bytes
from dcmtools.images.staging import Staged, staged
from dcmtools.model.errors import BadData, DcmtoolsError, DiskFull, Incomplete, TryLater, from_os
from dcmtools.model.record import Record, path_keys

if TYPE_CHECKING:
    from dcmtools.images.audit import Findings, Volume
    from dcmtools.images.planes import Layout

_ADVICE = {
    "truncated": "retrieve the series again",
    "undecodable": "decompress the files (dcmdjpeg, gdcmconv --raw) or use the other --engine",
    "unsupported-transfer-syntax": "decompress the files (gdcmconv --raw) or use the other --engine",
    "out-of-memory": "use fewer --jobs",
    "gantry-tilt": "use the volume only after a look at its sidecar's audit",
    "missing-slices": "retrieve the series again, or ask the scanner's operator",
    "mosaic-unverified": "try --engine dicom2nifti and compare",
    "too-few-slices": "use --engine dcm2niix",
}
# For these an engine may refuse a photograph or a clip, of which no volume was to be made.
# Ultrasound, secondary capture, angiography and fluoroscopy, photographs and endoscopy (PS3.6 A).
_PICTURES = tuple(f"1.2.840.10008.5.1.4.1.1.{number}" for number in ("3.", "6.", "7.", "12.1.", "12.2.", "77.1."))
_PICTURE_ONLY = frozenset({"no-image", "engine-failed", "unsupported-pixels", "unsupported-transfer-syntax"})


@dataclass(frozen=True, slots=True)
class Workshop:
    """What all conversions of a run have in common."""

    out: Path
    engine: Engine
    template: Template
    limits: Limits
    conversions: Conversions
    placement: Placement
    allow_incomplete: bool = False
    force: bool = False
    overwrite_edited: bool = False
    dry_run: bool = False

    @property
    def options(self) -> Record:
        """What makes another volume of the same series: a change is a reason to convert it again."""
        return {"arguments": list(self.engine.arguments), "template": self.template.text}


def convert_series(series: Series, shop: Workshop) -> list[Record]:
    """The records of a series: of its volumes, or of what became of it instead; never an exception but a defect's."""
    try:
        return list(_converted(series, shop))
    except DcmtoolsError as problem:
        return [failure(series, shop.engine, problem)]
    except OSError as problem:
        return [failure(series, shop.engine, _from_os(problem))]


def failure(series: Series, engine: Engine, problem: DcmtoolsError) -> Record:
    """The error record of a series that was not converted."""
    about = {**series.described(), "instances": len(series.instances)}
    return problem.record(level="series", state="failed", **about, engine=engine.name, engine_version=engine.version)


def _from_os(problem: OSError) -> DcmtoolsError:
    """The error with its path as a key only: names of volumes have the patient's ID, which is no part of a reason."""
    told = from_os(problem, "converting the series")
    name = problem.filename
    told.where = path_keys(os.fsdecode(name)) if isinstance(name, (str, bytes, os.PathLike)) else {}
    return told


def _converted(series: Series, shop: Workshop) -> Iterator[Record]:
    if series.incomplete and not shop.allow_incomplete:
        reason = f"the series is incomplete: {series.incomplete}"
        raise Incomplete(reason, "retrieve it again, or say --allow-incomplete")
    if not series.instances and not series.nowhere:
        yield _skipped(series, "not-an-image", "the series holds no images")
        return
    inputs = series.inputs()
    if inputs and all(_is_picture(one.record) for one in inputs) and not _has_place(inputs):
        yield _skipped(series, "no-geometry", "its images have no place in space: a volume of them would be invented")
        return
    digest = digest_of(inputs)
    last = shop.conversions.last(series.key)
    if last and _says_what_is_missing(last, series) and _stands(last, digest, shop):
        yield from _unchanged(last, series, shop)
    elif shop.dry_run:
        image = shop.out / f"{shop.template.path(series.source)}{EXTENSIONS['image']}"
        yield {"type": "series", "state": "planned", **path_keys(image), **series.described(), "instances": len(inputs)}
    else:
        yield from _made(series, inputs, digest, shop)


# What was done before


def _stands(last: Conversion, digest: str, shop: Workshop) -> bool:
    """Whether nothing has to be done: same input, engine and options, and the outputs are there."""
    if shop.force or not last.is_of(digest, shop.engine.name, shop.engine.version, shop.options):
        return False
    states = [shop.placement.is_as_left(one) for one in last.files()]
    return all(states) if shop.overwrite_edited else None not in states


def _says_what_is_missing(last: Conversion, series: Series) -> bool:
    """Whether the volumes are marked as incomplete if and only if the series is now."""
    return all(bool(volume.get("incomplete")) == bool(series.incomplete) for volume in last.volumes)


def _unchanged(last: Conversion, series: Series, shop: Workshop) -> Iterator[Record]:
    if last.state == "skipped":
        yield {**last.record, **series.described()}
    for volume in last.volumes:
        kept = files_of(volume)
        told = {key: value for key, value in volume.items() if key != "files"}
        state = "suspect" if told["state"] == "suspect" else "unchanged"
        edited = [one.path for one in kept.values() if not shop.placement.is_as_left(one)]
        if not shop.dry_run:
            shop.placement.keep(one for one in kept.values() if one.path not in edited)
        yield _volume_record({**told, "state": state}, Placed(kept, edited), series, shop.out)


# What is done now


def _made(series: Series, inputs: Sequence[Input], digest: str, shop: Workshop) -> Iterator[Record]:
    began = time.monotonic()
    with staged(shop.out, [one.path for one in inputs], pixel_bytes(inputs)) as here:
        run = shop.engine.run(here, series.source, shop.limits)
        if digest_of(series.inputs()) != digest or not here.is_intact():
            reason = "files of the series changed or arrived while it was converted"
            raise TryLater(reason, "run it again when it has arrived", cause="changed")
        conversion: Record = {
            "digest": digest,
            "engine": shop.engine.name,
            "engine_version": shop.engine.version,
            "options": shop.options,
            "instances": [one.uid for one in inputs],
        }
        if not run.outputs:
            yield _nothing(series, inputs, run, conversion, shop)
            return
        finished = list(_finished(series, inputs, digest, run, here, shop))
        seconds = round(time.monotonic() - began, 3)
        placed = shop.placement.place(series.key, finished)
    volumes = [{**volume.record, "seconds": seconds} for volume in finished]
    state = "suspect" if any(volume["state"] == "suspect" for volume in volumes) else "converted"
    lines = [_line(volume, where) for volume, where in zip(volumes, placed, strict=True)]
    shop.conversions.add(series.key, {"state": state, **conversion, "seconds": seconds, "volumes": lines})
    for volume, where in zip(volumes, placed, strict=True):
        yield _volume_record(volume, where, series, shop.out)


def _nothing(series: Series, inputs: Sequence[Input], run: Run, conversion: Record, shop: Workshop) -> Record:
    """The record of a series of which the engine made nothing: no fault of a picture without a place in space."""
    if run.cause in _PICTURE_ONLY and not _has_place(inputs):
        record = _skipped(series, "no-geometry", f"{run.reason}; its images have no place in space")
        shop.conversions.add(series.key, {"state": "skipped", **conversion, "record": record})
        return record
    cause = run.cause or "engine-failed"
    problem = BadData(run.reason or "no volume came out", _ADVICE.get(cause, ""), cause=cause)
    shop.conversions.add(series.key, {"state": "failed", **conversion, "cause": problem.cause})
    raise problem


def _finished(
    series: Series, inputs: Sequence[Input], digest: str, run: Run, here: Staged, shop: Workshop
) -> Iterator[Finished]:
    """The audited volumes, compressed and synced in the staging folder."""
    from dcmtools.images.audit import open_volume
    from dcmtools.images.planes import layout_of

    volumes = [open_volume(output.image) for output in run.outputs]
    layout = layout_of([one.record for one in inputs])
    for number, (output, volume, found) in enumerate(
        zip(run.outputs, volumes, _audited(run, volumes, layout, series.source), strict=True)
    ):
        record = {
            **_verdict(found.flags),
            "suffix": output.suffix,
            "shape": list(volume.shape),
            "zooms": [round(zoom, 6) for zoom in volume.zooms],
            "tr": None if volume.time_step is None else round(volume.time_step, 6),
            "engine": shop.engine.name,
            "engine_version": shop.engine.version,
            "audit": {**found.figures, "flags": found.flags},
            "digest": digest,
            "instances": len(inputs),
            **({"resampled": True} if output.derived else {}),
            **({"incomplete": True} if series.incomplete else {}),
            **({"warnings": list(run.warnings)} if run.warnings else {}),
        }
        name = shop.template.path(series.source, output.suffix)
        name = PurePosixPath(SUSPECT_FOLDER) / name if found.flags else name
        yield Finished(name, *_packed(output, record, series, here.ready / str(number), shop.engine), record)


def _audited(run: Run, volumes: Sequence["Volume"], layout: "Layout", source: Record) -> list["Findings"]:
    from dcmtools.images.audit import audit_gradients, audit_series, audit_time, by_weight

    found = audit_series(volumes, layout, [output.derived for output in run.outputs])
    for one, volume, output in zip(found, volumes, run.outputs, strict=True):
        if "short-file" in volume.flags:
            raise DiskFull("the engine's volume is shorter than its header says", "look whether the disk is full")
        more = [*audit_time(volume, source), *audit_gradients(volume, output.gradients), run.cause]
        one.flags = by_weight(flag for flag in (*one.flags, *more) if flag)
    return found


def _verdict(flags: Sequence[str]) -> Record:
    """The state of a volume, and in words what is wrong with one that is suspect."""
    from dcmtools.images.audit import REASONS

    if not flags:
        return {"state": "converted"}
    return {
        "state": "suspect",
        "cause": flags[0],
        "reason": "; ".join(REASONS.get(flag, f"the engine was in doubt: {flag}") for flag in flags),
        "advice": _ADVICE.get(flags[0], "look at it before you use it"),
        "exit_code": Incomplete.exit_code,
    }


def _packed(
    output: Output, record: Record, series: Series, folder: Path, engine: Engine
) -> tuple[dict[str, Path], dict[str, str]]:
    """The files of a volume under temporary names, and their hashes."""
    from dcmtools.images.gzip_ import compress
    from dcmtools.images.placement import sha256_of
    from dcmtools.images.sidecar import sidecar

    folder.mkdir(mode=0o700)
    files = {kind: folder / f"volume{extension}" for kind, extension in EXTENSIONS.items()}
    hashes = {"image": compress(output.image, files["image"])}
    told = ("state", "cause", "digest", "instances", "audit", "engine", "engine_version", "resampled", "incomplete")
    ours = {**{key: record[key] for key in told if key in record}, "arguments": list(engine.arguments)}
    uids = {key: series.source.get(key) for key in ("StudyInstanceUID", "SeriesInstanceUID")}
    write_atomic(files["sidecar"], sidecar(output.header, series.source, {**uids, **ours}), FILE_MODE)
    for kind, path in output.gradients.items():
        write_atomic(files[kind], path.read_bytes(), FILE_MODE)
    made = {kind: path for kind, path in files.items() if path.exists()}
    return made, {kind: hashes.get(kind) or sha256_of(path) for kind, path in made.items()}


# Records


def _skipped(series: Series, cause: str, reason: str) -> Record:
    count = len(series.instances) + series.no_images
    why = {"state": "skipped", "cause": cause, "reason": reason}
    return {"type": "series", **why, **series.described(), "instances": count}


def _line(volume: Record, placed: Placed) -> Record:
    """A volume in the file of conversions: without its source's keys, which may be corrected later."""
    return {**volume, "files": {kind: one.line() for kind, one in placed.files.items()}}


def _volume_record(volume: Record, placed: Placed, series: Series, out: Path) -> Record:
    image = placed.files["image"]
    first: Record = {key: volume[key] for key in ("state", "cause", "reason", "advice", "exit_code") if key in volume}
    others = {kind: str(out / one.path) for kind, one in placed.files.items() if kind != "image"}
    edited = {"edited": [str(out / path) for path in placed.edited]} if placed.edited else {}
    return {
        "type": "volume",
        **first,
        **path_keys(out / image.path),
        "files": others,
        "size": image.size,
        "sha256": image.sha256,
        **series.described(),
        **{key: value for key, value in volume.items() if key not in first},
        **edited,
    }


def _is_picture(record: Record) -> bool:
    """Whether the SOP class is of pictures and clips, which need not tell where they lie.

    For other classes the engine decides: some vendors keep the positions of MR and CT in private attributes.
    """
    return f"{record.get('SOPClassUID')}.".startswith(_PICTURES)


def _has_place(inputs: Sequence[Input]) -> bool:
    """Whether the headers put any slice somewhere in space."""
    from dcmtools.images.planes import layout_of

    records = [one.record for one in inputs]
    return any(record.get("ImagePositionPatient") for record in records) or len(layout_of(records).planes) > 0
