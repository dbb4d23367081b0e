"""The subcommand `export`."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from dcmtools.cli.frame import Frame, run
from dcmtools.cli.options import Common, Selectors
from dcmtools.cli.selection import Inputs, chosen
from dcmtools.cli.subcommand import application
from dcmtools.model.errors import UsageError
from dcmtools.model.record import Record

PROFILE = "De-identification (PS3.15 Annex E)"


def _profile(*names: str, **more: Any) -> Any:
    return typer.Option(*names, rich_help_panel=PROFILE, **more)


def export(
    selectors: Selectors,
    common: Common,
    *,
    out: Annotated[
        Path | None, typer.Argument(metavar="OUT", help="The folder to export to.", show_default=False)
    ] = None,
    inputs: Inputs = None,
    layout: Annotated[
        str,
        typer.Option(
            "--layout", metavar="TEMPLATE", help="uid, patient, date, or such as '{PatientID}/{SOPInstanceUID}.dcm'."
        ),
    ] = "uid",
    link: Annotated[bool, typer.Option("--link", help="Hard links, copies on another disk.")] = False,
    new_key: Annotated[
        Path | None, typer.Option("--new-key", metavar="FILE", help="Only make a file with a new key for --key-file.")
    ] = None,
    anonymize: Annotated[
        bool, _profile("--anonymize", help="De-identify by the Basic Profile; what follows are its options.")
    ] = False,
    key_file: Annotated[
        Path | None,
        _profile("--key-file", metavar="FILE", help="The key of the pseudonyms. Default: one for this run alone."),
    ] = None,
    retain_uids: Annotated[bool, _profile("--retain-uids", help="Keep UIDs.")] = False,
    retain_device_identity: Annotated[
        bool, _profile("--retain-device-identity", help="Keep what names the scanner.")
    ] = False,
    retain_institution_identity: Annotated[
        bool, _profile("--retain-institution-identity", help="Keep what names the institution.")
    ] = False,
    retain_patient_characteristics: Annotated[
        bool, _profile("--retain-patient-characteristics", help="Keep sex, age, size, weight and the like.")
    ] = False,
    retain_dates: Annotated[
        Literal["none", "full", "modified"],
        _profile("--retain-dates", help="Keep dates, or move those of a patient by the same number of days."),
    ] = "none",
    clean_descriptors: Annotated[
        bool, _profile("--clean-descriptors", help="Keep harmless words of descriptions and comments.")
    ] = False,
    clean_structured_content: Annotated[
        bool, _profile("--clean-structured-content", help="Keep the content of reports, with harmless words only.")
    ] = False,
    clean_graphics: Annotated[bool, _profile("--clean-graphics", help="Keep graphics that are no text.")] = False,
    retain_safe_private: Annotated[
        bool, _profile("--retain-safe-private", help="Keep private elements known to be safe.")
    ] = False,
    keep: Annotated[
        list[str] | None,
        _profile("--keep", metavar="TAG", help="Keep an element: PatientSex, 0010,0040.", show_default=False),
    ] = None,
    remove: Annotated[
        list[str] | None, _profile("--remove", metavar="TAG", help="Remove an element.", show_default=False)
    ] = None,
    replace: Annotated[
        list[str] | None,
        _profile("--replace", metavar="TAG=VALUE", help="Give an element this value.", show_default=False),
    ] = None,
    pseudonymize: Annotated[
        str,
        _profile("--pseudonymize", metavar="WORD,...", help="accession, study-id: a pseudonym, not an empty value."),
    ] = "",
    uid_root: Annotated[str, _profile("--uid-root", metavar="ROOT", help="The root of new UIDs.")] = "2.25",
    date_range: Annotated[
        int, _profile("--date-range", metavar="DAYS", min=1, max=36500, help="By how many days dates move at most.")
    ] = 3650,
    crosswalk: Annotated[
        Path | None,
        _profile("--crosswalk", metavar="FILE", help="Write who became whom: JSON lines, or CSV by its name."),
    ] = None,
    report: Annotated[
        Path | None, _profile("--report", metavar="FILE", help="Write what was done, without a value of the source.")
    ] = None,
    burned_in: Annotated[
        Literal["refuse", "allow"],
        _profile("--burned-in", help="What becomes of pixels that may show identity."),
    ] = "refuse",
    on_residue: Annotated[
        Literal["clean", "refuse"], _profile("--on-residue", help="What becomes of kept texts that hold identity.")
    ] = "clean",
    allow_private_sop: Annotated[
        bool, _profile("--allow-private-sop", help="Take instances of private SOP Classes.")
    ] = False,
) -> None:
    """Take instances out, into a folder of their own, as they are or de-identified.

    The folder gets an index of its own. What is there already is left as it is; what is no instance stays behind.

    Example:
        dcmtools find --date yesterday --modality MR | dcmtools export /srv/study - --anonymize --key-file study.key

    Exit codes:
        0   all instances are there, checked where they were de-identified
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
        from dcmtools.files import export as exporting
        from dcmtools.files.crosswalk import Crosswalk
        from dcmtools.files.deidentify.instance import Settings
        from dcmtools.files.deidentify.own import own_actions
        from dcmtools.files.deidentify.profile import Profile
        from dcmtools.files.deidentify.pseudonyms import new_key as make_key
        from dcmtools.files.deidentify.pseudonyms import random_key, read_key
        from dcmtools.files.report import Report
        from dcmtools.model.layout import parse_layout

        if new_key:
            if out or inputs:
                raise UsageError("--new-key only makes a key", "export in a second call, with --key-file")
            if not frame.common.dry_run:
                make_key(new_key)
            yield {"type": "file", "path": str(new_key.absolute()), "state": "created"}
            return
        if out is None:
            raise UsageError("there is no folder to export to", "dcmtools export OUT - or selectors")
        exporting.check_apart(out, frame.archive)
        settings = Settings(
            Profile(
                retain_uids=retain_uids,
                retain_device_identity=retain_device_identity,
                retain_institution_identity=retain_institution_identity,
                retain_patient_characteristics=retain_patient_characteristics,
                retain_dates=retain_dates,
                clean_descriptors=clean_descriptors,
                clean_structured_content=clean_structured_content,
                clean_graphics=clean_graphics,
                retain_safe_private=retain_safe_private,
                pseudonyms=_pseudonyms(pseudonymize),
                own=own_actions(keep or (), remove or (), replace or ()),
            ),
            burned_in=burned_in,
            on_residue=on_residue,
            allow_private_sop=allow_private_sop,
        )
        if not anonymize and (settings != Settings(Profile()) or key_file):
            raise UsageError("options of a profile do nothing without --anonymize", "add --anonymize")
        if anonymize and link:
            raise UsageError("--link does not go together with --anonymize", "what is de-identified is another file")
        key = None
        if anonymize:
            key = read_key(key_file, uid_root, date_range) if key_file else random_key(uid_root, date_range)
            if not key_file:
                frame.talk.warning(
                    "without --key-file the pseudonyms are of this run alone: another one gives other UIDs and names"
                )
        options = exporting.ExportOptions(
            layout=parse_layout(layout),
            how="link" if link else "copy",
            key=key,
            settings=settings if anonymize else None,
            lasting=key_file is not None,
            dry_run=frame.common.dry_run,
            jobs=frame.jobs,
        )
        if not anonymize and (crosswalk or report):
            raise UsageError("--crosswalk and --report do nothing without --anonymize", "add --anonymize")
        items = chosen(frame, inputs, selectors, level="instance", need=True)
        with ExitStack() as stack:
            listeners: list[exporting.Listener] = []
            if key and report and not frame.common.dry_run:
                listeners.append(stack.enter_context(Report(report, out, settings, key)))
            if key and crosswalk and not frame.common.dry_run:
                listeners.append(stack.enter_context(Crosswalk(crosswalk, out, key, settings.profile)))

            def told(item: exporting.Result, record: Record) -> None:
                for listener in listeners:
                    listener(item, record)

            yield from exporting.export(items, out, options, stop=frame.stop, told=told)

    run("export", common, work, listing=False)


def _pseudonyms(text: str) -> tuple[str, ...]:
    words = tuple(sorted({word.strip() for word in text.split(",") if word.strip()}))
    if unknown := set(words) - {"accession", "study-id"}:
        raise UsageError(f"--pseudonymize {unknown.pop()[:40]}: is not known", "use accession, study-id, or both")
    return words


app = application("export", export)
