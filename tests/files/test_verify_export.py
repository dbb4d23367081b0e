"""A de-identified folder is held against its sources: what is left in it is found wherever it lies."""

import gzip
import zipfile
from collections.abc import Callable
from pathlib import Path
from struct import pack
from typing import Any

import pydicom
import pytest
from pydicom.uid import DeflatedExplicitVRLittleEndian

from dcmtools.files.deidentify.instance import Settings
from dcmtools.files.deidentify.profile import Profile
from dcmtools.files.deidentify.pseudonyms import Key
from dcmtools.files.export import ExportOptions, export, export_zip, files_in
from dcmtools.files.media_layout import MediaLayout
from dcmtools.files.verify_export import verify_export
from dcmtools.model.errors import NoInput
from dcmtools.model.layout import parse_layout
from dcmtools.model.record import Record
from tests.builders import write_instance

NAME = "Zwentibold^Quirin"
OPTIONS = ExportOptions(key=Key(b"k" * 32), settings=Settings(Profile()))


def verified(folder: Path, out: str = "out") -> list[Record]:
    return list(verify_export(folder / out, sorted((folder / "in").iterdir()), stop=lambda: False))


def states(folder: Path, out: str = "out") -> set[str]:
    return {str(one.get("state") or one["cause"]) for one in verified(folder, out)}


def exported(folder: Path, **keys: object) -> Path:
    """The result of a source with these keys, which is clean."""
    write_instance(folder / "in" / "a.dcm", **{"PatientName": NAME, **keys})
    list(export(files_in([folder / "in"]), folder / "out", OPTIONS))
    assert states(folder) == {"verified"}
    return next((folder / "out").rglob("*.dcm"))


def test_folder_that_is_not_there_or_empty_is_no_success(tmp_path: Path) -> None:
    write_instance(tmp_path / "in" / "a.dcm")
    (tmp_path / "empty").mkdir()

    for out in ("missing", "empty"):
        with pytest.raises(NoInput):
            verified(tmp_path, out)


def test_zip_is_looked_into(tmp_path: Path) -> None:
    write_instance(tmp_path / "in" / "a.dcm", PatientName=NAME)
    list(export_zip(files_in([tmp_path / "in"]), tmp_path / "clean.zip", OPTIONS))
    list(export_zip(files_in([tmp_path / "in"]), tmp_path / "plain.zip", ExportOptions()))

    clean, plain = verified(tmp_path, "clean.zip"), verified(tmp_path, "plain.zip")

    assert {one["state"] for one in clean} == {"verified"}
    assert sum(str(one.get("member")).endswith(".dcm") for one in clean) == 1
    assert {one["cause"] for one in plain if str(one.get("member")).endswith(".dcm")} == {"verify"}
    assert {one["cause"] for one in plain if one.get("member") == "index.jsonl"} == {"residue"}


def test_damaged_and_encrypted_zip_is_an_error(tmp_path: Path) -> None:
    write_instance(tmp_path / "in" / "a.dcm")
    (tmp_path / "out").mkdir()
    with zipfile.ZipFile(tmp_path / "out" / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", bytes(100))
    whole = (tmp_path / "out" / "a.zip").read_bytes()

    for damaged in (whole[:-9], whole[:33] + b"\xff\xff" + whole[35:]):
        (tmp_path / "out" / "a.zip").write_bytes(damaged)

        assert "verify" in states(tmp_path)


Change = Callable[[Path], object]


def _append(data: bytes) -> Change:
    return lambda path: path.write_bytes(path.read_bytes() + data)


def _within_pixels(path: Path) -> None:
    read = pydicom.dcmread(path)
    read.PixelData += NAME.encode() + b" "
    read.save_as(path)


def _set(keyword: str, value: str) -> Change:
    def change(path: Path) -> None:
        read = pydicom.dcmread(path)
        setattr(read, keyword, value)
        read.save_as(path)

    return change


@pytest.mark.parametrize(
    "change",
    [
        _append(NAME.encode()),
        _append(pack("<HH2sHI", 0xFFFC, 0xFFFC, b"OB", 0, 18) + NAME.encode() + b" "),
        _within_pixels,
        lambda path: path.with_name(".dcmtools-left").write_bytes(NAME.encode()),
        lambda path: path.with_name("a.gz").write_bytes(gzip.compress(NAME.encode())),
        lambda path: path.with_name("a").write_bytes(gzip.compress(gzip.compress(NAME.encode()))),
        _set("Manufacturer", "Quirin"),
    ],
)
def test_what_is_left_is_found_wherever_it_lies(change: Change, tmp_path: Path) -> None:
    change(exported(tmp_path))

    assert "residue" in states(tmp_path)


@pytest.mark.parametrize("where", ["pixels", "behind"])
def test_deflated_instance_is_searched_to_its_end(where: str, tmp_path: Path) -> None:
    path = exported(tmp_path, syntax=DeflatedExplicitVRLittleEndian)
    if where == "behind":
        path.write_bytes(path.read_bytes() + NAME.encode())
    else:
        _within_pixels(path)

    assert "residue" in states(tmp_path)


@pytest.mark.parametrize(
    ("keyword", "value"),
    [("PatientName", "Liu"), ("PatientName", "Liu^X"), ("PatientID", "4711"), ("ManufacturerModelName", "LIU")],
)
def test_short_identity_is_found_as_a_whole_value(keyword: str, value: str, tmp_path: Path) -> None:
    path = exported(tmp_path, PatientName="Liu^Bo", PatientID="4711")

    _set(keyword, value)(path)

    assert "residue" in states(tmp_path)


def test_source_without_a_preamble_counts_and_one_that_is_damaged_is_told(tmp_path: Path) -> None:
    path = exported(tmp_path)
    source = tmp_path / "in" / "a.dcm"
    whole = source.read_bytes()
    source.write_bytes(whole[132:])
    _set("Manufacturer", "Quirin")(path)

    bare = states(tmp_path)
    source.write_bytes(whole[:200])
    write_instance(tmp_path / "in" / "b.dcm", 2)

    assert "residue" in bare
    assert "truncated" in states(tmp_path)


def exported_all(folder: Path, profile: Profile | None = None, **settings: Any) -> list[Path]:
    """The results of all sources."""
    options = ExportOptions(key=Key(b"k" * 32), settings=Settings(profile or Profile(), **settings))
    list(export(files_in([folder / "in"]), folder / "out", options))
    return sorted((folder / "out").rglob("*.dcm"))


def test_words_of_one_patient_may_be_those_of_anothers_scanner(tmp_path: Path) -> None:
    write_instance(tmp_path / "in" / "a.dcm", 1, PatientName="Acmecorp^Avanto", PatientID="12000", Manufacturer="Other")
    write_instance(
        tmp_path / "in" / "b.dcm", 2, Manufacturer="Acmecorp", SequenceName="Avanto 3", RepetitionTime="12000"
    )

    paths = exported_all(tmp_path)

    assert len(paths) == 2
    assert states(tmp_path) == {"verified"}
    assert {str(pydicom.dcmread(path).get("Manufacturer")) for path in paths} == {"Acmecorp", "Other"}


@pytest.mark.parametrize(
    "change",
    [
        _set("SequenceName", "of Acmecorp"), _set("StudyDescription", "Acmecorp"), _set("PatientName", "Acmecorp"),
        _set("RepetitionTime", "12001"), _append(b"Acmecorp"), _set("ImageComments", "see Avanto"),
    ],
)  # fmt: skip
def test_words_of_a_scanner_are_excused_where_they_are_a_scanners_and_nowhere_else(
    change: Change, tmp_path: Path
) -> None:
    write_instance(tmp_path / "in" / "a.dcm", 1, PatientName="Acmecorp^Avanto", PatientID="12001")
    write_instance(tmp_path / "in" / "b.dcm", 2, Manufacturer="Acmecorp", ImageComments="see Avanto")
    paths = exported_all(tmp_path)
    assert states(tmp_path) == {"verified"}

    for path in paths:
        change(path)

    assert "residue" in states(tmp_path)


def test_what_is_allowed_to_show_identity_is_verified_but_for_its_pixels(tmp_path: Path) -> None:
    write_instance(tmp_path / "in" / "a.dcm", BurnedInAnnotation="YES", PatientName=NAME)
    (path,) = exported_all(tmp_path, burned_in="allow")

    (told,) = (one for one in verified(tmp_path) if one["path"] == str(path))
    _set("Manufacturer", "Quirin")(path)

    assert (told["state"], told["pixels"]) == ("verified", "unchecked")
    assert "residue" in states(tmp_path)


def test_instance_that_says_that_identity_is_there_and_is_of_somebody_else_does_not_pass(tmp_path: Path) -> None:
    write_instance(tmp_path / "in" / "a.dcm", BurnedInAnnotation="YES", PatientName=NAME)
    (path,) = exported_all(tmp_path, burned_in="allow")

    _set("DeidentificationMethod", "by hand")(path)

    assert "verify" in states(tmp_path)


def test_person_may_share_a_name_with_an_institution_that_is_retained(tmp_path: Path) -> None:
    write_instance(
        tmp_path / "in" / "a.dcm", PatientName=NAME, ReferringPhysicianName="Flobbertyx^Jan",
        InstitutionName="Flobbertyx Kliniek",
    )  # fmt: skip
    (path,) = exported_all(tmp_path, Profile(retain_institution_identity=True))
    assert pydicom.dcmread(path).InstitutionName == "Flobbertyx Kliniek"

    clean = states(tmp_path)
    _set("Manufacturer", "of Flobbertyx")(path)

    assert clean == {"verified"}
    assert "residue" in states(tmp_path)


def test_birth_date_of_one_may_be_the_day_of_anothers_study(tmp_path: Path) -> None:
    write_instance(tmp_path / "in" / "a.dcm", 1, PatientBirthDate="20240117", StudyDate="20240118")
    write_instance(tmp_path / "in" / "b.dcm", 2, PatientBirthDate="19630417", StudyDate="20240117")
    paths = exported_all(tmp_path, Profile(retain_dates="full"))

    clean = states(tmp_path)
    _set("Manufacturer", "born 17.04.63")(paths[0])

    assert clean == {"verified"}
    assert "residue" in states(tmp_path)


RETAINING = {
    "uids": Profile(retain_uids=True),
    "device": Profile(retain_device_identity=True),
    "institution": Profile(retain_institution_identity=True),
    "patient": Profile(retain_patient_characteristics=True),
    "full": Profile(retain_dates="full"),
    "modified": Profile(retain_dates="modified"),
    "descriptors": Profile(clean_descriptors=True),
}


@pytest.mark.parametrize("kind", ["folder", "zip", "dicomdir"])
@pytest.mark.parametrize("option", RETAINING)
def test_result_of_each_option_is_verified(option: str, kind: str, tmp_path: Path) -> None:
    for number in (1, 2, 3):
        write_instance(
            tmp_path / "in" / f"{number}.dcm", number, PatientName=f"Zwenti{'abc'[number - 1]}^Quirin",
            StationName="M1", PatientBirthDate=f"2024011{number}", StudyDate=f"2024011{number + 1}",
            InstitutionName="Quirin Clinic", PatientSex="O", PatientID=f"ZQ-77889{number}",
            Manufacturer="Acme", StudyDescription="brain of Zwentia",
        )  # fmt: skip
    layout = MediaLayout() if kind == "dicomdir" else parse_layout("uid")
    options = ExportOptions(
        layout=layout, key=Key(b"k" * 32), settings=Settings(RETAINING[option]), dicomdir=kind == "dicomdir"
    )
    list((export_zip if kind == "zip" else export)(files_in([tmp_path / "in"]), tmp_path / "out", options))

    assert states(tmp_path) == {"verified"}
