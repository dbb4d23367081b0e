"""The subcommand `export`."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dcmtools.cli.frame import INDEX_NAME, Frame, run
from dcmtools.cli.options import Common, Selectors
from dcmtools.cli.profile import ProfileOptions, check_alone, settings_of
from dcmtools.cli.selection import Inputs, chosen
from dcmtools.cli.subcommand import application
from dcmtools.model.errors import UsageError
from dcmtools.model.record import Record, path_keys

if TYPE_CHECKING:
    from dcmtools.files.export import ExportOptions, Listener, Result


def export(
    selectors: Selectors,
    profile: ProfileOptions,
    common: Common,
    *,
    out: Annotated[
        Path | None, typer.Argument(metavar="OUT", help="The folder to export to.", show_default=False)
    ] = None,
    inputs: Inputs = None,
    layout: Annotated[
        str | None,
        typer.Option(
            "--layout",
            metavar="TEMPLATE",
            help="uid (default), patient, date, or as '{PatientID}/{InstanceNumber}.dcm'.",
        ),
    ] = None,
    zip: Annotated[bool, typer.Option("--zip", help="OUT is a zip file, which must not be there.")] = False,
    dicomdir: Annotated[
        bool, typer.Option("--dicomdir", help="Name files as media want it, and list them in a DICOMDIR.")
    ] = False,
    link: Annotated[bool, typer.Option("--link", help="Hard links, copies on another disk.")] = False,
    verify: Annotated[
        Path | None,
        typer.Option("--verify", metavar="IN", help="Only search OUT for identity of the files in this folder."),
    ] = None,
    new_key: Annotated[
        Path | None, typer.Option("--new-key", metavar="FILE", help="Only make a file with a new key for --key-file.")
    ] = None,
) -> None:
    """Take instances out, into a folder of their own, as they are or de-identified.

    The folder gets an index of its own. What is there already is left as it is; what is no instance stays behind.

    Example:
        dcmtools find --date yesterday --modality MR | dcmtools export /srv/study - --anonymize --key-file study.key

    Exit codes:
        0   all instances are there, checked where they were de-identified; --verify found nothing
        3   some could not be exported, or were refused; or the command before this one failed
        65  no file could be read
        66  there is no index, or a path is not there
        73  the folder, or a file in it, cannot be created; without a key file it is not empty
        74  the disk is full, or cannot be written
        75  another run exports to this folder; or the deadline passed; or nobody reads the output any more
        77  the key file can be read by others; or all instances were refused
        78  the key file, or another file of settings, cannot be used
    """

    def work(frame: Frame) -> Iterator[Record]:
        if new_key:
            if out or inputs:
                raise UsageError("--new-key only makes a key", "export in a second call, with --key-file")
            yield _made_key(frame, new_key)
            return
        if out is None:
            raise UsageError("there is no folder to export to", "dcmtools export OUT, and - or selectors")
        if not profile.anonymize:
            check_alone(profile)
        if verify:
            yield from _verified(frame, out, verify, profile, inputs)
            return
        from dcmtools.files.export import check_apart, check_not_within, export_zip, files_in, outside
        from dcmtools.files.export import export as take_out

        apart = [out, *([profile.quarantine] if profile.quarantine else [])]
        for folder in apart:
            check_apart(folder, frame.archive)
            check_not_within(folder, (name for name in inputs or () if name != "-"))
        if zip and link:
            raise UsageError("--link does not go together with --zip", "a zip file has copies")
        options = _options(frame, profile, layout, link=link, dicomdir=dicomdir)
        items = chosen(frame, inputs, selectors, level="instance", need=True)
        if inputs and inputs != ["-"] and not (out / INDEX_NAME).exists():  # then nothing need be known of them before
            items = files_in(inputs)
        if inputs and "-" not in inputs:
            items = outside(items, apart)
        with ExitStack() as stack:
            listeners = list(_listeners(frame, out, profile, options, stack))

            def told(item: "Result", record: Record) -> None:
                for listener in listeners:
                    listener(item, record)

            yield from (export_zip if zip else take_out)(items, out, options, stop=frame.stop, told=told)

    run("export", common, work, listing=False)


def _made_key(frame: Frame, path: Path) -> Record:
    from dcmtools.files.deidentify.pseudonyms import new_key

    if not frame.common.dry_run:
        new_key(path)
    return {"type": "file", "state": "created", **path_keys(path.absolute())}


def _verified(
    frame: Frame, out: Path, sources: Path, profile: ProfileOptions, inputs: list[str] | None
) -> Iterator[Record]:
    from dcmtools.disk.tree import files_below
    from dcmtools.files.verify_export import verify_export

    if inputs or profile.anonymize:
        raise UsageError("--verify only looks at OUT", "export in another call")
    yield from verify_export(out, files_below([sources]), profile.crosswalk, stop=frame.stop)


def _options(
    frame: Frame, profile: ProfileOptions, layout: str | None, *, link: bool, dicomdir: bool
) -> "ExportOptions":
    from dcmtools.files.deidentify.pseudonyms import random_key, read_key
    from dcmtools.files.export import ExportOptions
    from dcmtools.files.media_layout import MediaLayout
    from dcmtools.model.layout import parse_layout

    if dicomdir and layout:
        raise UsageError("--layout does not go together with --dicomdir", "media have names of their own")
    key = None
    if profile.anonymize:
        if link:
            raise UsageError("--link does not go together with --anonymize", "what is de-identified is another file")
        if profile.key_file:
            key = read_key(profile.key_file, profile.uid_root, profile.date_range)
        else:
            key = random_key(profile.uid_root, profile.date_range)
            frame.talk.warning(
                "without --key-file pseudonyms are of this run alone: another gives other UIDs and names"
            )
    elif profile.crosswalk:
        raise UsageError("--crosswalk does nothing without --anonymize", "add --anonymize")
    return ExportOptions(
        layout=MediaLayout() if dicomdir else parse_layout(layout or "uid"),
        dicomdir=dicomdir,
        how="link" if link else "copy",
        key=key,
        settings=settings_of(profile) if profile.anonymize else None,
        lasting=profile.key_file is not None,
        dry_run=frame.common.dry_run,
        jobs=frame.jobs,
        quarantine=profile.quarantine,
    )


def _listeners(
    frame: Frame, out: Path, profile: ProfileOptions, options: "ExportOptions", stack: ExitStack
) -> "Iterator[Listener]":
    """Who hears of each result: the report and the crosswalk."""
    from dcmtools.files.crosswalk import Crosswalk
    from dcmtools.files.report import Report

    if options.key is None or options.settings is None or frame.common.dry_run:
        return
    if profile.report:
        yield stack.enter_context(Report(profile.report, out, options.settings, options.key))
    if profile.crosswalk:
        yield stack.enter_context(Crosswalk(profile.crosswalk, out, options.key, options.settings.profile))


app = application("export", export)
