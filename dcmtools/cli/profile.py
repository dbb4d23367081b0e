"""The options of de-identification, by the names that PS3.15 Annex E gives them, and what they mean."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from dcmtools.model.errors import UsageError

if TYPE_CHECKING:
    from dcmtools.files.deidentify.instance import Settings

TITLE = "De-identification (PS3.15 Annex E)"
_PSEUDONYMS = frozenset({"accession", "study-id"})


def _option(*names: str, **more: Any) -> Any:
    return typer.Option(*names, rich_help_panel=TITLE, **more)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileOptions:
    """The Basic Profile and its options."""

    anonymize: Annotated[
        bool, _option("--anonymize", help="De-identify by the Basic Profile; what follows are its options.")
    ] = False
    key_file: Annotated[
        Path | None,
        _option("--key-file", metavar="FILE", help="The key of the pseudonyms. Default: one for this run alone."),
    ] = None
    retain_uids: Annotated[bool, _option("--retain-uids", help="Keep UIDs.")] = False
    retain_device_identity: Annotated[
        bool, _option("--retain-device-identity", help="Keep what names the scanner.")
    ] = False
    retain_institution_identity: Annotated[
        bool, _option("--retain-institution-identity", help="Keep what names the institution.")
    ] = False
    retain_patient_characteristics: Annotated[
        bool, _option("--retain-patient-characteristics", help="Keep sex, age, size, weight and the like.")
    ] = False
    retain_dates: Annotated[
        Literal["none", "full", "modified"],
        _option("--retain-dates", help="Keep dates, or move those of a patient by the same number of days."),
    ] = "none"
    clean_descriptors: Annotated[
        bool, _option("--clean-descriptors", help="Keep harmless words of descriptions and comments.")
    ] = False
    clean_structured_content: Annotated[
        bool, _option("--clean-structured-content", help="Keep the content of reports, with harmless words only.")
    ] = False
    clean_graphics: Annotated[bool, _option("--clean-graphics", help="Keep graphics that are no text.")] = False
    clean_pixel_data: Annotated[
        Path | None,
        _option("--clean-pixel-data", metavar="REGIONS", help="Blank regions by the rules for devices in this file."),
    ] = None
    retain_safe_private: Annotated[
        bool, _option("--retain-safe-private", help="Keep private elements known to be safe.")
    ] = False
    keep: Annotated[
        list[str] | None, _option("--keep", metavar="TAG", help="Keep an element: PatientSex, 0010,0040.")
    ] = None
    remove: Annotated[list[str] | None, _option("--remove", metavar="TAG", help="Remove an element.")] = None
    replace: Annotated[
        list[str] | None, _option("--replace", metavar="TAG=VALUE", help="Give an element this value.")
    ] = None
    pseudonymize: Annotated[
        str,
        _option("--pseudonymize", metavar="WORD,...", help="accession, study-id: a pseudonym, not an empty value."),
    ] = ""
    uid_root: Annotated[str, _option("--uid-root", metavar="ROOT", help="The root of new UIDs.")] = "2.25"
    date_range: Annotated[
        int, _option("--date-range", metavar="DAYS", min=1, max=36500, help="By how many days dates move at most.")
    ] = 3650
    burned_in: Annotated[
        Literal["refuse", "quarantine", "allow"],
        _option("--burned-in", help="What becomes of pixels that may show identity."),
    ] = "refuse"
    quarantine: Annotated[
        Path | None,
        _option("--quarantine", metavar="DIR", help="The folder, apart from OUT, for --burned-in quarantine."),
    ] = None
    on_residue: Annotated[
        Literal["clean", "refuse"], _option("--on-residue", help="What becomes of kept texts that hold identity.")
    ] = "clean"
    allow_private_sop: Annotated[
        bool, _option("--allow-private-sop", help="Take instances of private SOP Classes.")
    ] = False
    crosswalk: Annotated[
        Path | None,
        _option("--crosswalk", metavar="FILE", help="Write who became whom: JSON lines, or CSV by its name."),
    ] = None
    report: Annotated[
        Path | None, _option("--report", metavar="FILE", help="Write what was done, without a value of the source.")
    ] = None


# What can be given without --anonymize: the crosswalk serves --verify, too.
_ALONE = frozenset({"crosswalk"})


def check_alone(options: ProfileOptions) -> None:
    """Raises UsageError for options of a profile without --anonymize: who gives them means that they do something."""
    plain = ProfileOptions()
    for name in ProfileOptions.__slots__:
        if name not in _ALONE and getattr(options, name) != getattr(plain, name):
            option = f"--{name.replace('_', '-')}"
            raise UsageError(f"{option} does nothing without --anonymize", "add --anonymize")


def settings_of(options: ProfileOptions) -> "Settings":
    """How to de-identify, as the options say."""
    from dcmtools.files.deidentify.instance import Settings
    from dcmtools.files.deidentify.own import own_actions
    from dcmtools.files.deidentify.profile import Profile
    from dcmtools.files.deidentify.regions import read_rules

    if (options.burned_in == "quarantine") != (options.quarantine is not None):
        raise UsageError(
            "--burned-in quarantine and --quarantine DIR go together", "name a folder that is not handed out"
        )
    words = {word.strip() for word in options.pseudonymize.split(",") if word.strip()}
    if unknown := words - _PSEUDONYMS:
        raise UsageError(f"--pseudonymize {unknown.pop()[:40]}: is not known", "use accession, study-id, or both")
    profile = Profile(
        retain_uids=options.retain_uids,
        retain_device_identity=options.retain_device_identity,
        retain_institution_identity=options.retain_institution_identity,
        retain_patient_characteristics=options.retain_patient_characteristics,
        retain_dates=options.retain_dates,
        clean_descriptors=options.clean_descriptors,
        clean_structured_content=options.clean_structured_content,
        clean_graphics=options.clean_graphics,
        retain_safe_private=options.retain_safe_private,
        pseudonyms=tuple(sorted(words)),
        own=own_actions(options.keep or (), options.remove or (), options.replace or ()),
    )
    return Settings(
        profile,
        burned_in=options.burned_in,
        on_residue=options.on_residue,
        allow_private_sop=options.allow_private_sop,
        blanking=read_rules(options.clean_pixel_data) if options.clean_pixel_data else (),
    )
