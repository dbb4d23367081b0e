"""Clean Structured Content: each row of Table E.3.4-1 at its value types, with each option that has a code in it."""

from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sr._concepts_dict import concepts

from dcmtools.files.deidentify import content
from dcmtools.files.deidentify.instance import Deidentifier, Settings
from dcmtools.files.deidentify.profile import Profile
from dcmtools.files.deidentify.pseudonyms import Key
from tests.files.deidentify.markers import SYNTAXES, Writer, write

KEY = Key(b"k" * 32)
VALUE = {
    "TEXT": (0x0040A160, "UT"), "PNAME": (0x0040A123, "PN"), "UIDREF": (0x0040A124, "UI"), "DATE": (0x0040A121, "DA"),
    "TIME": (0x0040A122, "TM"), "DATETIME": (0x0040A120, "DT"), "NUM": (0x0040A30A, "DS"),
}  # fmt: skip
OPTIONS = {
    "none": {}, "UID": {"retain_uids": True}, "DEV": {"retain_device_identity": True},
    "INS": {"retain_institution_identity": True}, "PAT": {"retain_patient_characteristics": True},
    "FUL": {"retain_dates": "full"}, "MOD": {"retain_dates": "modified"}, "DES": {"clean_descriptors": True},
}  # fmt: skip
TERMS: dict[str, dict[str, dict[str, Any]]] = concepts  # type: ignore[assignment]
KNOWN = {
    (scheme, code): term for scheme, words in TERMS.items() for row in words.values() for code, term in row.items()
}


def test_rows_are_those_of_the_table_and_their_codes_those_of_the_dictionary() -> None:
    rows = content.items()
    listed = {key: KNOWN[key[1], key[0]][0] for key in rows if (key[1], key[0]) in KNOWN}

    different = {
        key: (rows[key].name, name) for key, name in listed.items() if _plain(rows[key].name) not in _plain(name)
    }

    assert len(rows) == 211
    assert len(listed) == 198
    # Names that were changed, and such as say the same in other words.
    assert {key[0] for key in different} == {"271921002", "121124", "113514", "160476009", "398201009", "397898000"}


def _plain(name: str) -> str:
    return "".join(filter(str.isalnum, name)).lower()


def item(writer: Writer, key: tuple[str, str, str], number: int, *below: bytes, undefined: bool = False) -> bytes:
    """A content item with a marker as its value."""
    code, scheme, value_type = key
    name = writer.item(
        writer.element(0x00080100, "SH", code.encode()),
        writer.element(0x00080102, "SH", (f"{scheme} [2.0b]" if scheme == "NCDR" else scheme).encode()),
        writer.element(0x00080104, "LO", b"Meaning %d" % number),
        undefined=undefined,
    )
    parts = [
        writer.element(0x0040A010, "CS", b"CONTAINS"), writer.element(0x0040A040, "CS", value_type.encode()),
        writer.sequence(0x0040A043, name, undefined=undefined),
    ]  # fmt: skip
    place = f"{code} {scheme} {value_type}"
    if value_type in VALUE and value_type != "NUM":
        parts.append(writer.marked(*_named(writer, place, VALUE[value_type])))
    elif value_type == "NUM":
        parts.append(writer.sequence(0x0040A300, writer.item(writer.marked(0x0040A30A, place))))
    elif value_type == "CODE":
        parts.append(writer.sequence(0x0040A168, writer.item(writer.marked(0x00080104, place))))
    elif value_type in {"IMAGE", "COMPOSITE", "WAVEFORM"}:
        parts.insert(0, writer.sequence(0x00081199, writer.item(writer.marked(0x00081155, place))))
    parts += [writer.sequence(0x0040A730, *below)] if below else []
    return writer.item(*parts, undefined=undefined)


def _named(writer: Writer, place: str, value: tuple[int, str]) -> tuple[int, str, str]:
    return value[0], place, value[1]


def profile(column: str) -> Profile:
    return Profile(clean_structured_content=True, **OPTIONS[column])  # type: ignore[arg-type]


def cleaned(folder: Path, writer: Writer, data: bytes, column: str) -> tuple[bytes, Dataset]:
    target = folder / "target.dcm"
    target.unlink(missing_ok=True)
    Deidentifier(KEY, Settings(profile(column))).deidentify(write(folder, data), target)
    return target.read_bytes(), pydicom.dcmread(target)


def found_in(data_set: Dataset) -> dict[tuple[str, str, str], Dataset]:
    return {
        (one.ConceptNameCodeSequence[0].CodeValue, one.ConceptNameCodeSequence[0].CodingSchemeDesignator.split()[0],
         one.ValueType): one
        for one in data_set.get("ContentSequence") or ()
    }  # fmt: skip


@pytest.mark.parametrize("undefined", [False, True])
@pytest.mark.parametrize("encoding", SYNTAXES)
@pytest.mark.parametrize("column", OPTIONS)
def test_each_item_goes_by_its_row(column: str, encoding: str, undefined: bool, tmp_path: Path) -> None:
    writer = Writer(encoding)
    rows = content.items()
    report = [item(writer, key, number, undefined=undefined) for number, key in enumerate(rows)]
    data = writer.file(writer.sequence(0x0040A730, *report, undefined=undefined))

    result, read = cleaned(tmp_path, writer, data, column)

    there, left = found_in(read), writer.left_in(result)
    letters = {key: content.action(key, profile(column).columns) for key in rows}
    kept = {" ".join(key) for key, letter in letters.items() if letter == "K"}
    times = {" ".join(key) for key, letter in letters.items() if letter == "C" and key[2] == "TIME"}
    assert set(there) == {key for key, letter in letters.items() if letter != "X"}
    assert {place.rsplit(" ", 1)[0] for place in left} == {
        place for place in kept | times if any(name.startswith(f"{place} ") for name in writer.markers)
    }
    assert all(one.ConceptNameCodeSequence[0].CodeMeaning.startswith("Meaning ") for one in there.values())


@pytest.mark.parametrize("sequence", [0x0040A730, 0x00400555])
def test_item_goes_with_all_that_is_below_it_at_any_depth(sequence: int, tmp_path: Path) -> None:
    writer = Writer()
    age, devices, other = ("121033", "DCM", "NUM"), ("121000", "DCM", "CONTAINER"), ("99", "99X", "CONTAINER")
    deep = item(writer, other, 1, item(writer, age, 2), item(writer, devices, 3, item(writer, ("1", "99X", "NUM"), 4)))

    result, read = cleaned(tmp_path, writer, writer.file(writer.sequence(sequence, deep)), "none")

    assert writer.left_in(result) == {}
    below = read[sequence][0].get("ContentSequence")
    assert not below


def test_value_of_a_concept_that_is_not_listed_is_cleaned(tmp_path: Path) -> None:
    writer = Writer()
    text = writer.item(
        writer.element(0x0040A040, "CS", b"TEXT"), writer.element(0x0040A160, "UT", b"brain T2 Zaqxsw"),
    )  # fmt: skip

    _, read = cleaned(tmp_path, writer, writer.file(writer.sequence(0x0040A730, text)), "none")

    assert read.ContentSequence[0].TextValue == "brain T2"


def test_kept_value_that_holds_the_patients_name_is_cleaned(tmp_path: Path) -> None:
    writer = Writer()
    serial = writer.item(
        writer.element(0x0040A040, "CS", b"TEXT"),
        writer.sequence(0x0040A043, writer.item(
            writer.element(0x00080100, "SH", b"113880"), writer.element(0x00080102, "SH", b"DCM"),
            writer.element(0x00080104, "LO", b"of Zwentibold"),
        )),
        writer.element(0x0040A160, "UT", b"phone of Zwentibold"),
    )  # fmt: skip
    name = writer.element(0x00100010, "PN", b"Zwentibold^Quirin")

    result, read = cleaned(tmp_path, writer, writer.file(name, writer.sequence(0x0040A730, serial)), "DEV")

    assert b"Zwentibold" not in result
    assert read.ContentSequence[0].TextValue == "REMOVED"
